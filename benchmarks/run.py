"""Speed, as ratios within one run: `python -m benchmarks.run`.

- an epoch of each backbone against a bare PyTorch loop of its mathematics (benchmarks/floors.py), and of its +MRdIB variant against it;
- the ranking of the validation split against bare matmul, mask and top-k over ready embeddings;
- negative sampling against `torch.randint`, a kNN graph against bare blocked matmul and top-k, propagation and InfoNCE against other ways;
- start-up: `run_mrdib.py --help`, and a process from its start to the end of its first batch.

Rounds alternate between the sides, so that a change of the machine's speed meets all of them; the ratio of the medians counts. Prints a table
and writes benchmarks/results/<time>.json with facts about the machine.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import functools
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.floors import FLOORS
from mmrec_mrdib import registry
from mmrec_mrdib.experiment.record import versions
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.graphs import knn, segment_reduce
from mmrec_mrdib.losses import info_nce
from mmrec_mrdib.models.base import MultimodalRecommender
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.trainer import MRdIBTrainer

TARGETS = {  # by the first pattern that matches a ratio's name
    r"epoch: .* / bare loop": 1.2,
    r"epoch: VBPR\+MRdIB \(paper\) / VBPR": 1.4,
    r"epoch: .*\+MRdIB \(paper\) / .*": 1.1,
    r"evaluation: .*\+MRdIB \(paper\) / .*": 1.02,
    r"own epoch: VBPR\+MRdIB / VBPR": 2.0,
    r"own epoch: .*\+MRdIB / .*": 1.25,
    r"evaluation: .*\+MRdIB / .*": 1.3,
    r"evaluation: .* / bare": 1.2,
    r"negatives: .* / .*": 3,
    r"kNN graph: .* / .*": 1.3,
}


def evaluation_floor(splits, users: torch.Tensor, items: torch.Tensor, k: int) -> Callable[[], None]:
    """Full ranking as bare matmul, mask and top-k over ready embeddings, in the same blocks."""
    blocks = list(splits.valid)

    @torch.no_grad()
    def evaluate() -> None:
        for block in blocks:
            scores = users[block.users] @ items.T
            scores.view(-1)[block.masked] = -torch.inf
            torch.topk(scores, k, dim=1)

    return evaluate


def products(splits, d: int = 64, layers: int = 2) -> dict[str, Callable[[], object]]:
    """Forward and backward of a propagation over the user-item graph, in three ways."""
    graph = MultimodalRecommender.interactions(splits.parts[0]).normalised("both").both_ways()
    matrix, n = graph.matrix(), graph.shape[0]
    coo = torch.sparse_coo_tensor(
        torch.stack([graph.rows, graph.cols]), graph.values, graph.shape, check_invariants=False
    ).coalesce()
    rows, cols = coo.indices()
    x = torch.randn(n, d, requires_grad=True)

    def run(product: Callable[[torch.Tensor], torch.Tensor]) -> None:
        y = x
        for _ in range(layers):
            y = product(y)
        y.sum().backward()

    return {
        "COO torch.sparse.mm": lambda: run(lambda y: torch.sparse.mm(coo, y)),
        "CSR, own backward": lambda: run(matrix),
        "segment sums": lambda: run(lambda y: segment_reduce(y[cols] * coo.values()[:, None], rows, n, "sum")),
    }


def contrasts(splits, d: int = 64) -> dict[str, Callable[[], object]]:
    """Forward and backward of InfoNCE over a batch's users: all pairs of the batch, and its distinct users."""
    users = next(iter(splits.train))[splits.dataset.uid_field]
    a, b = (torch.randn(splits.dataset.user_num, d, requires_grad=True) for _ in range(2))

    def plain() -> None:
        x, y = (torch.nn.functional.normalize(torch.nn.functional.embedding(users, t)) for t in (a, b))
        logits = x @ y.T / 0.2
        torch.nn.functional.cross_entropy(logits, torch.arange(len(users))).backward()

    return {
        "B x B cross entropy": plain,
        "distinct with multiplicities": lambda: info_nce(a, b, users, users, 0.2).backward(),
    }


def alternate(sides: dict[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each side; the sides take turns. With one thread, of CPU time: what else the machine does counts little."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(rounds + warmup):
        for name, call in sides.items():
            started = clock()
            call()
            if n >= warmup:
                seconds[name].append(clock() - started)
    return {name: statistics.median(s) for name, s in seconds.items()}


def trainer_of(model: str, dataset: str, values: dict) -> tuple[MRdIBTrainer, object]:
    config = make_config(model, dataset, 1, values=values)
    folder = Path(tempfile.mkdtemp())
    config["checkpoint_dir"] = str(folder)
    splits = prepare(config)
    torch.manual_seed(0)
    return MRdIBTrainer(config, model_class(config["model"])(config, splits.parts[0]), folder), splits


def ready_embeddings(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Users and items whose inner products a model ranks by."""
    model.eval()
    if isinstance(model, MultimodalRecommender):
        table = model.evaluation_embeddings()
        return table.users, table.items
    users, items = model.forward()  # RecBole's LightGCN
    return users.detach(), items.detach()


def negatives(splits) -> dict[str, Callable[[], object]]:
    """An epoch's negatives, and as many numbers without a check."""
    train, n_items = splits.train, splits.dataset.item_num
    generator = torch.Generator().manual_seed(0)
    return {
        "torch.randint": lambda: torch.randint(1, n_items, (len(train.users),), generator=generator),
        "sampler": lambda: train.sampler.sample(train.users, generator),
    }


def neighbours(items: int, dims: int, k: int = 10) -> dict[str, Callable[[], object]]:
    """A kNN graph of generated features, and bare matmul and top-k in the same blocks."""
    features = torch.randn(items + 1, dims, generator=torch.Generator().manual_seed(0))
    features[0] = 0
    rows = max(1, (1 << 24) // len(features))

    def bare() -> None:
        x = torch.nn.functional.normalize(features)
        for start in range(0, len(x), rows):
            torch.topk(x[start : start + rows] @ x.T, k, dim=1)

    return {"bare": bare, "knn": lambda: knn(features, k, True)}


FIRST_BATCH = """
import sys
from mmrec_mrdib import process
process.settle()
import itertools, json
from pathlib import Path
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.trainer import MRdIBTrainer
dataset, values, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = make_config("VBPR+MRdIB (paper)", dataset, 1, values=values)
splits = prepare(config)
trainer = MRdIBTrainer(config, model_class(config["model"])(config, splits.parts[0]), Path(folder))
trainer._train_epoch(list(itertools.islice(splits.train, 1)), 0)
"""


def start_up(dataset: str, values: dict, rounds: int = 5) -> dict[str, float]:
    """Median seconds of whole processes: the help text, and to the end of the first batch."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "--help": [sys.executable, "run_mrdib.py", "--help"],
            "first batch": [sys.executable, "-c", FIRST_BATCH, dataset, json.dumps(values), folder],
        }
        sides = {
            name: functools.partial(subprocess.run, command, check=True, cwd=root, stdout=subprocess.DEVNULL)
            for name, command in commands.items()
        }
        return alternate(sides, rounds, warmup=1)


def graph_construction(items: int, dims: int) -> dict[str, float]:
    """Seconds and peak memory of an item-item graph of generated features, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.graphs", "--items", str(items), "--dims", str(dims)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--modalities")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(FLOORS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--epochs_alone", action="store_true", help="epochs of plain models beside their bare loops, and nothing else"
    )
    parser.add_argument("--threads", type=int, default=1, help="as the parameter `threads` (default 1)")
    parser.add_argument("--graph_items", type=int, default=20_000, help="items of the graph benchmark; 0: without it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    values = {k: getattr(options, k) for k in ("data_path", "modalities") if getattr(options, k)}
    ratios: dict[str, float] = {}
    seconds: dict[str, dict[str, float]] = {}

    def compare(kind: str, sides: dict[str, Callable[[], object]], rounds: int) -> None:
        """The first side is what the others are measured against, each against the one before it."""
        medians = alternate(sides, rounds)
        seconds.setdefault(kind, {}).update(medians)
        for base, name in itertools.pairwise(sides):
            report(f"{kind}: {name} / {base}", medians[name] / medians[base])

    def report(name: str, ratio: float) -> None:
        ratios[name] = ratio
        target = next((t for pattern, t in TARGETS.items() if re.fullmatch(pattern, name)), None)
        verdict = "" if target is None else f"  target <= {target}: {'met' if ratio <= target else 'MISSED'}"
        print(f"{name:44} {ratio:5.2f}{verdict}", flush=True)

    if options.epochs_alone:
        for model in options.models:
            plain, splits = trainer_of(model, options.dataset, values)
            own = functools.partial(plain._train_epoch, splits.train, 0)
            compare("epoch", {"bare loop": FLOORS[model](splits, plain.model), model: own}, options.rounds)
        return 0

    for model in options.models:
        names = [model, f"{model}+MRdIB (paper)"] if registry.is_multimodal(model) else [model]
        trainers = {name: trainer_of(name, options.dataset, values) for name in names}
        plain, splits = trainers[model]
        epochs = {n: functools.partial(t._train_epoch, s.train, 0) for n, (t, s) in trainers.items()}
        compare("epoch", {"bare loop": FLOORS[model](splits, plain.model)} | epochs, options.rounds)
        evaluations = {n: functools.partial(t.rank, s.valid) for n, (t, s) in trainers.items()}
        floor = evaluation_floor(splits, *ready_embeddings(plain.model), max(plain.config["topk"]))
        compare("evaluation", {"bare": floor} | evaluations, options.rounds * 2)
        # Ours trains after its backbone: its own epoch beside the backbone's, and a ranking that reads the content.
        ours, splits = trainer_of(f"{model}+MRdIB", options.dataset, values)
        ours.model.freeze_backbone()
        ours.model.choose(1, 1.0)
        own = functools.partial(ours._train_epoch, splits.train, 0)
        compare("own epoch", {model: epochs[model], f"{model}+MRdIB": own}, options.rounds)
        ranking = functools.partial(ours.rank, splits.valid)
        compare("evaluation", {model: evaluations[model], f"{model}+MRdIB": ranking}, options.rounds * 2)
    compare("negatives", negatives(splits), options.rounds * 4)
    compare("kNN graph", neighbours(5_000, 384), options.rounds // 2 + 1)
    compare("propagation", products(splits), options.rounds * 2)
    compare("InfoNCE", contrasts(splits), options.rounds * 2)
    graphs = graph_construction(options.graph_items, 4096) if options.graph_items else {}
    if graphs:
        limit = "met" if graphs["peak_gib"] < 2 else "MISSED"
        print(
            f"kNN graph of {options.graph_items} items x 4096 dims: {graphs['seconds']:.0f} s, "
            f"peak {graphs['peak_gib']:.2f} GiB  target < 2: {limit}"
        )
    seconds["start-up"] = start_up(options.dataset, values)
    for name, limit in (("--help", 0.5), ("first batch", 4.0)):
        took = seconds["start-up"][name]
        print(f"start-up: {name}: {took:.2f} s  target < {limit}: {'met' if took < limit else 'MISSED'}")
    result = {
        "dataset": options.dataset,
        "rounds": options.rounds,
        "ratios": ratios,
        "seconds": seconds,
        "graph_construction": graphs,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": options.threads,
        },
        "versions": versions(),
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"  # two may run side by side
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
