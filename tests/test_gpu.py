"""The same on a real GPU: skipped where PyTorch finds none. tests/test_elsewhere.py is what can be said without one."""

from __future__ import annotations

import io
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from recbole.utils import init_seed
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec_mrdib import cli, distributed, registry
from mmrec_mrdib.evaluation import scores_in_memory
from mmrec_mrdib.experiment import export
from mmrec_mrdib.experiment.record import load_checkpoint
from mmrec_mrdib.experiment.run import train
from mmrec_mrdib.graphs import Edges, Pattern, segment_reduce, segments
from mmrec_mrdib.testing.toy import write_mmrec
from mmrec_mrdib.trainer import MRdIBTrainer
from tests.conftest import ROOT
from tests.test_elsewhere import SETTINGS, VARIANTS, trainer_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU here")
# On one H200 GRCN's loss was 1.7 % off on the toy data; its products have been changed since, without a card at hand.
DOUBTFUL = pytest.mark.xfail(reason="GRCN's step differed from the CPU's: docs/gpu.md")
NAMES = [
    *registry.BASELINES,
    *(m + p for m in registry.MODELS for p in ("", "+MRdIB", "+MRdIB (paper)") if m != "GRCN" or p == "+MRdIB"),
    *(pytest.param("GRCN" + p, marks=DOUBTFUL) for p in ("", "+MRdIB (paper)")),
    *VARIANTS,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_mmrec(folder / "toy", users=40, items=30, dims={"a": 12, "b": 8})
    return folder


class DrawnByTheHost(TorchDispatchMode):
    """Random numbers come from the host's generators on every device, so that both draw the same."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[tuple[int, int], torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cuda":
            key = (generator._cdata, generator.initial_seed())  # an operation sees another object of Python's
            kwargs["generator"] = self.streams.setdefault(key, torch.Generator().manual_seed(key[1]))
        device = torch.device("cuda") if kwargs.get("device") is not None else None
        if device is not None:
            device, kwargs["device"] = kwargs["device"], "cpu"
        host = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        out = func(*host, **kwargs)
        if device is None:
            device = next((a.device for a in args if isinstance(a, torch.Tensor)), torch.device("cpu"))
        if func._schema.name.endswith("_"):
            return args[0].copy_(out)
        return tuple(x.to(device) for x in out) if isinstance(out, tuple) else out.to(device)


@pytest.mark.parametrize("name", NAMES)
def test_losses_gradients_and_rankings_are_those_of_the_host(name: str, data: Path) -> None:
    """Of the same weights, batch and random numbers: as far apart as sums in another order are."""
    found = []
    weights: dict[str, torch.Tensor] = {}
    batch = None
    for device in ("cpu", "cuda"):
        with DrawnByTheHost():
            trainer, parts = trainer_of(name, data, {}, device=device)
            model = trainer.model
            weights = weights or {k: v.detach().clone() for k, v in model.state_dict().items()}
            model.load_state_dict(weights)
            if batch is None and parts.train is not None and not trainer.one_pass:
                batch = next(iter(parts.train))
            init_seed(2, True)
            model.train()
            if hasattr(model, "before_epoch"):
                model.before_epoch(0)
            grads: dict[str, torch.Tensor] = {}
            loss = torch.zeros(())
            if not trainer.one_pass:
                terms = model.calculate_loss(batch.to(torch.device(device)))
                loss = sum(terms) if isinstance(terms, tuple) else terms
                loss.backward()
                grads = {n: p.grad.to_dense().cpu() for n, p in model.named_parameters() if p.grad is not None}
            else:
                trainer._train_epoch(parts.train, 0)
            ranking = trainer.rank(parts.valid).means
        found.append((float(loss.detach()), grads, ranking))
    (loss, grads, ranking), (there, theirs, ranked) = found
    assert math.isfinite(there) and there == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert grads.keys() == theirs.keys()
    largest = max((float(g.abs().max()) for g in grads.values()), default=1.0)
    for n, g in grads.items():
        torch.testing.assert_close(theirs[n], g, rtol=0, atol=2e-4 * largest, msg=lambda m, n=n: f"{n}: {m}")
    # An item on the edge of a list may change places: one user of 40 more or less.
    assert ranked == pytest.approx(ranking, abs=0.03)


@pytest.mark.parametrize("name", ["VBPR", "FREEDOM+MRdIB", "MGCN+MRdIB (paper)"])
def test_a_run_and_what_is_made_of_it_here_and_on_the_host(name: str, data: Path, tmp_path: Path) -> None:
    values = {"data_path": str(data), **SETTINGS, "epochs": 3, "device": "cuda"}
    if name == "FREEDOM+MRdIB":
        values["stage_epochs"] = 2
    result = train(name, "toy", 1, values=values, runs=tmp_path)
    assert result["state"] == "complete" and result["device"] == torch.cuda.get_device_name()
    assert 0 < result["peak_gpu_memory_mb"] < 1000
    state = load_checkpoint(Path(result["folder"]) / "best.pt")["state_dict"]
    assert {v.device.type for v in state.values()} == {"cpu"}
    code = (
        "import sys; from mmrec_mrdib.experiment import export; t = export.load(sys.argv[1]); assert t.model.device.type == 'cpu'; "
        "print(t.recommend(k=3).to_json())"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, result["folder"]], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lists = export.load(Path(result["folder"])).recommend(k=3)
    here = pd.read_json(io.StringIO(done.stdout))
    same = (here.iloc[:, 1].astype(str).to_numpy() == lists.iloc[:, 1].astype(str).to_numpy()).mean()
    assert same > 0.95  # ties


def test_a_resumed_run_draws_what_one_that_was_not_interrupted_draws(data: Path, tmp_path: Path) -> None:
    values = {"data_path": str(data), **SETTINGS, "epochs": 6, "device": "cuda", "checkpoint_interval": 0}
    whole = train("FREEDOM+Noise", "toy", 1, values=values, runs=tmp_path / "whole")
    stock = MRdIBTrainer._train_epoch

    def stopped(self: Any, part: Any, index: int, *args: Any, **kwargs: Any) -> float:
        if index == 3:
            raise KeyboardInterrupt
        return stock(self, part, index, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MRdIBTrainer, "_train_epoch", stopped)
        train("FREEDOM+Noise", "toy", 1, values=values, runs=tmp_path / "parts")
    parts = train("FREEDOM+Noise", "toy", 1, values=values, runs=tmp_path / "parts", resume=True)
    for one, other in zip(whole["epochs"], parts["epochs"], strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-3)  # sums on a GPU have no fixed order


@pytest.mark.parametrize("name", ["VBPR", "LightGCN", "FREEDOM+MRdIB", "MGCN+MRdIB (paper)", "LATTICE", "SMORE"])
def test_mixed_precision_is_near_full(name: str, data: Path) -> None:
    losses = []
    for amp in (False, True):
        with DrawnByTheHost():
            trainer, parts = trainer_of(name, data, {}, device="cuda", enable_amp=amp)
            parts.train.generator.manual_seed(1)
            losses.append(trainer._train_epoch(parts.train, 0))
            assert all(0 <= v <= 1 for v in trainer._valid_epoch(parts.valid)[1].values())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_blocks_of_the_evaluation_by_the_memory_of_the_card() -> None:
    assert scores_in_memory("auto", torch.device("cuda", torch.cuda.current_device())) > 1 << 20


def test_values_at_the_places_of_a_pattern(data: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, cols = (
        torch.randint(0, 300, (2000,), generator=generator),
        torch.randint(0, 200, (2000,), generator=generator),
    )
    pattern = Pattern(Edges(rows, cols, torch.ones(2000), (300, 200)))
    a, b = torch.randn(300, 64, generator=generator), torch.randn(200, 64, generator=generator)
    truth = (a.double()[pattern.rows] * b.double()[pattern.cols]).sum(1)
    on_card = pattern.cuda().dots(a.cuda(), b.cuda()).cpu().double()
    torch.testing.assert_close(on_card, truth, rtol=1e-5, atol=1e-5)
    x = torch.randn(200, 64, generator=generator)
    matrix = torch.zeros(300, 200, dtype=torch.double).index_put((pattern.rows.cpu(), pattern.cols.cpu()), truth)
    product = pattern.product(truth.float().cuda(), x.cuda()).cpu().double()
    torch.testing.assert_close(product, matrix @ x.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_segments(reduce: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values, index = torch.randn(200, 3, generator=generator), torch.randint(0, 12, (200,), generator=generator)
    truth = segments._native_reduce(values, index, 14, reduce)
    torch.testing.assert_close(segment_reduce(values.cuda(), index.cuda(), 14, reduce).cpu(), truth)


def test_too_little_memory_is_one_line(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (64 << 20) / free))
    try:
        code = cli.main(
            ["train", "--model", "VBPR", "--dataset", "toy", "--data_path", str(data), "--runs", str(tmp_path),
             "--embedding_size=4000000", "--epochs=1", "--device=cuda", "--valid_metric=Recall@5", "--topk=[5]"]
        )  # fmt: skip
    except SystemExit as error:
        code = error.code
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = capfd.readouterr().err
    assert code and "Traceback" not in told and "memory" in told


def test_a_board_shares_the_card(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "mmrec_mrdib", "leaderboard", "--models", "VBPR,FREEDOM", "--datasets", "toy", "--data_path", str(data),
        "--variants", "plain,mrdib", "--seeds", "2", "--jobs", "2", "--epochs=2", "--topk=[5]", "--valid_metric=Recall@5", "--runs", str(tmp_path / "runs"),
        "--output", str(tmp_path / "board"), "--columns", "recall@5",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "runs").glob("*/result.json"))) >= 8


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_nccl_available()), reason="no NCCL in this build"
)
@pytest.mark.parametrize("model", distributed.MODELS)
def test_what_processes_exchange_passes_nccl(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL refuses tensors of the host, and a second process on one card: a group of one that acts as if it were several."""
    values = {"data_path": str(data), **SETTINGS, "epochs": 3, "device": "cuda", "train_batch_size": 64}
    alone = train(model, "toy", 1, values=values, runs=tmp_path / "alone")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("mmrec_mrdib.process.several", lambda: True)
    monkeypatch.setattr(distributed.Ranks, "several", property(lambda self: True))
    try:
        joined = train(model, "toy", 1, values=values, runs=tmp_path / "joined")
        assert torch.distributed.get_backend() == "nccl"
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    for one, other in zip(alone["epochs"], joined["epochs"], strict=True):
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-3)
