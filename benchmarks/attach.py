"""What the readout brings to hosts that know nothing of it: BPR and LightGCN in plain PyTorch, with `mrdib.attach` beside them.

    python -m benchmarks.attach DATA_PATH/citeulike-t --seeds 1,2,3

Each host is trained with early stopping on validation Recall@20; then encoders of the plug-in's own, raw features, and encoders on shuffled
features get the same readout, with the weight that is best on validation. Test is read once, by our evaluator.
"""

from __future__ import annotations

from mmrec_mrdib import process

process.settle()  # as the command line does

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmrec_mrdib as mrdib
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.evaluation import RankingSplit, rank
from mmrec_mrdib.graphs import Edges

ROWS = {
    "features": {},
    "raw features": {"raw": True},
    "shuffled features": {"content_control": "shuffle"},
}


class BPR(nn.Module):
    """Users and items as vectors."""

    layers = 0

    def __init__(self, n_users: int, n_items: int, pairs: tuple[Tensor, Tensor], width: int = 64) -> None:
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        self.users, self.items = nn.Embedding(n_users, width), nn.Embedding(n_items, width)
        for table in (self.users, self.items):
            nn.init.xavier_uniform_(table.weight)
        edges = Edges(*pairs, torch.ones(len(pairs[0])), (n_users, n_items))
        self.graph = edges.normalised("both").both_ways().matrix()
        self.scored: tuple[Tensor, Tensor] | None = None

    def forward(self) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.users.weight, self.items.weight])
        total = x
        for _ in range(self.layers):
            x = self.graph(x)
            total = total + x
        users, items = torch.split(total / (self.layers + 1), [self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        u, i = self.forward()
        rows = self.users(users), self.items(positives), self.items(negatives)
        decay = torch.stack([r.square().sum() for r in rows]).sum() / len(users)
        return F.softplus((u[users] * (i[negatives] - i[positives])).sum(1)).mean() + 1e-4 * decay

    def rank_all(self, users: Tensor) -> Tensor:
        if self.scored is None or self.training:
            self.scored = self.forward()
        u, i = self.scored
        return u[users] @ i.T


class LightGCN(BPR):
    """The same on the graph of both, two layers (He et al., SIGIR 2020)."""

    layers = 2


def split_of(folder: Path) -> tuple[list[tuple[Tensor, Tensor]], dict[str, np.ndarray]]:
    frame = mmrec.read(folder / f"{folder.name}.inter")
    parts = [frame[frame["x_label"] == n] for n in range(3)]
    known = set(parts[0]["userID"])
    pairs = [p[p["userID"].isin(known)] for p in parts]
    tensors = [tuple(torch.from_numpy(p[c].to_numpy(copy=True)) for c in ("userID", "itemID")) for p in pairs]
    return tensors, {f.stem.removesuffix("_feat"): np.load(f) for f in sorted(folder.glob("*_feat.npy"))}  # type: ignore[return-value]


class Scorer:
    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def full_sort_predict(self, interaction: Any) -> Tensor:
        found: Tensor = self.scores(interaction["users"]).clone()
        return found


def train(host: BPR, pairs: tuple[Tensor, Tensor], valid: RankingSplit, epochs: int, patience: int) -> None:
    """Adam, judged every third epoch."""
    optimizer = torch.optim.Adam(host.parameters(), 5e-3)
    best, kept, vain = -1.0, {}, 0
    for epoch in range(1, epochs + 1):
        host.train()
        for part in torch.randperm(len(pairs[0])).split(2048):
            optimizer.zero_grad(set_to_none=True)
            host.calculate_loss(pairs[0][part], pairs[1][part], torch.randint(host.n_items, part.shape)).backward()
            optimizer.step()
        if epoch % 3:
            continue
        host.eval()
        host.scored = None
        with torch.no_grad():
            score = rank(Scorer(host.rank_all), valid, ["recall"], [20], "users").means["recall@20"]
        if score > best:
            best, vain, kept = score, 0, {k: v.clone() for k, v in host.state_dict().items()}
        elif (vain := vain + 1) >= patience:
            break
    host.load_state_dict(kept)
    host.eval()
    host.scored = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a data set in the MMRec layout")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--users", type=int, help="judge this many users of each split (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs, features = split_of(options.folder)
    for n in (1, 2) if options.users else ():
        drawn = np.random.default_rng(0).permutation(torch.unique(pairs[n][0]).numpy())[: options.users]
        some = torch.isin(pairs[n][0], torch.from_numpy(drawn))
        pairs[n] = pairs[n][0][some], pairs[n][1][some]
    shape = (int(max(u.max() for u, _ in pairs)) + 1, len(next(iter(features.values()))))
    valid, test = (RankingSplit("", *p, [pairs[0]], *shape, 1 << 24, padded=False) for p in pairs[1:])
    for kind in (BPR, LightGCN):
        found: dict[str, list[dict[str, float]]] = {}
        for seed in map(int, options.seeds.split(",")):
            torch.manual_seed(seed)
            host = kind(*shape, pairs[0])
            train(host, pairs[0], valid, options.epochs, options.patience)
            rows: dict[str, Any] = {"plain": None} | ROWS
            for name, values in rows.items():
                scores = host.rank_all
                if values is not None:
                    plug = mrdib.attach(host, train=pairs[0], features=features, method="rank_all", seed=seed, **values)
                    plug.fit(*pairs[1])
                    scores = plug.scores
                with torch.no_grad():
                    found.setdefault(name, []).append(
                        rank(Scorer(scores), test, ["recall", "ndcg"], [5, 20], "users").means
                    )
                if values is not None:
                    plug.remove()
        for name, results in found.items():
            cells = []
            for metric in results[0]:
                mean, plain = (statistics.fmean(r[metric] for r in found[n]) for n in (name, "plain"))
                cells.append(f"{metric} {mean:.4f}" + (f" ({mean / plain - 1:+.1%})" if name != "plain" else ""))
            print(f"{kind.__name__:9} {name:18} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
