"""Data in which one column of the features decides who likes what: does a bottleneck lose less than constant noise when useless columns come
along, and does any plug-in gain where the features say nothing?

    python -m benchmarks.planted --output OUT

writes data sets of the same interactions, `planted-K` with K useless columns beside the one, and `independent` without it, runs a board of
all variants over them, and prints its two tables. Resumable; a board is read again at no cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import GONE, percent, table

ROOT = Path(__file__).resolve().parent.parent
USELESS = (0, 16, 64)
VARIANTS = "plain,content,noise,l2,mrdib,mrdib-bottleneck,mrdib-noise,mrdib-paper,dvib"
METRIC = "recall@20"


def write(folder: Path, users: int = 1500, items: int = 1500, each: int = 8, taste: float = 2.0, seed: int = 0) -> None:
    """User u likes item i with a chance in proportion to exp(taste · t_u · x_i), t 1 or −1, x uniform with variance 1.

    Of each user's items one is for validation and three are for test. Modality `a` has x and K useless columns in an order of its own, `b`
    has useless columns alone, which are standard normal.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-(3**0.5), 3**0.5, items)
    # With Gumbel noise the largest are draws without replacement.
    logits = taste * rng.choice([-1.0, 1.0], (users, 1)) * x + rng.gumbel(size=(users, items))
    chosen = np.argsort(-logits, axis=1)[:, :each]
    labels = [2, 2, 2, 1] + [0] * (each - 4)
    lines = [
        f"{u}\t{i}\t{label}"
        for u, row in enumerate(chosen)
        for i, label in zip(rng.permutation(row), labels, strict=True)
    ]
    lines += [f"{i % users}\t{i}\t0" for i in np.setdiff1d(np.arange(items), chosen)]  # every item occurs
    noise = rng.standard_normal((2, items, max(USELESS) + 2))
    for name, useless in [*((f"planted-{k}", k) for k in USELESS), ("independent", 16)]:
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        a = np.column_stack([noise[0, :, 0] if name == "independent" else x, noise[0, :, 1 : useless + 1]])
        np.save(target / "a_feat.npy", a[:, rng.permutation(a.shape[1])].astype(np.float32))
        np.save(target / "b_feat.npy", noise[1, :, : useless + 2].astype(np.float32))
        (target / f"{name}.inter").write_text("\n".join(["userID\titemID\tx_label", *lines]) + "\n")


def board(options: argparse.Namespace) -> Any:
    data = options.output / "data"
    write(data)
    command = [
        sys.executable, "-m", "mmrec_mrdib", "leaderboard", "--data_path", str(data),
        "--models", "VBPR,BPR",  # one with the features in its own score, one without any
        "--datasets", ",".join([*(f"planted-{k}" for k in USELESS), "independent"]), "--variants", VARIANTS, "--against", "noise",
        "--seeds", str(options.seeds), "--feature_norm=standard", "--learning_rate=0.005", f"--epochs={options.epochs}",
        "--stopping_step=10", "--columns", METRIC, "--runs", str(options.output / "runs"), "--output", str(options.output / "board"),
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((options.output / "board" / "leaderboard.json").read_text())


def lines(board: Any) -> list[str]:
    """Table 1: a model's metric on each data set, and what it keeps of it with all the useless columns, ± over seeds. Table 2: gains where
    the features are independent of who likes what, with the board's intervals, over plain and over constant noise."""
    rows = {(row["model"], row["dataset"]): row for row in board["rows"] if row["values"]}
    models = list(dict.fromkeys(model for model, _ in rows))
    found = {(c["model"], c["against"]): c for c in board["comparisons"] if c["dataset"] == "independent"}
    out, gains = [], []
    for model in models:
        values = [rows[model, f"planted-{k}"]["values"][METRIC] for k in USELESS]
        kept = [last / first for first, last in zip(values[0], values[-1], strict=True)]
        share = f"{statistics.fmean(kept):.0%} ± {statistics.stdev(kept):.0%}".replace("%", " %")
        out.append([model, *(f"{statistics.fmean(v):.4f}" for v in values), share])
        if rows[model, "independent"]["variant"] != "plain":
            gains.append([model, *(interval(found.get((model, other))) for other in ("plain", "noise"))])
    useless = [f"{k} useless" for k in USELESS]
    return [*table(["", *useless, "kept"], out), "", *table(["independent", "over plain", "over +Noise"], gains)]


def interval(compared: Any) -> str:
    if compared is None or compared["interval"] is None:  # an interval wants five seeds
        return GONE
    low, high = compared["interval"]
    text = f"{percent(compared['gain'])} ({percent(low)} to {percent(high)})"
    return f"**{text}**" if compared["significant"] else text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--epochs", type=int, default=60, metavar="N")
    print("\n".join(lines(board(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
