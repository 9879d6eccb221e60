"""Does the leaderboard call nothing significant where there is nothing? `python -m benchmarks.null [--real]`

The null is exact: both sides are the same model, with other seeds. Simulated: users, seeds and noise are drawn, as often as wanted. Real: one
model is trained with many seeds, and these are dealt into two sides in many ways; the deals share runs, so their share of false alarms has no
error of the usual kind. Each is judged by the code that judges a board. Results: docs/statistics.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mmrec_mrdib.experiment import leaderboard
from mmrec_mrdib.experiment.leaderboard import LEVEL, Compared, compare, decide

TESTS = ("bootstrap", "t")


def simulated(
    rng: np.random.Generator,
    seeds: int,
    gain: float = 0.0,
    users: int = 100,
    seed_sd: float = 0.004,
    noise: float = 0.1,
) -> Compared:
    """Two sides of one model, `seeds` runs each: a user's metric is what the user is worth, what the seed is worth to all, and noise.

    Args:
        gain: what the second side is better by.
    """
    worth = rng.beta(0.4, 1.2, users) * (rng.random(users) > 0.3)  # many are never served at all
    values = worth + seed_sd * rng.standard_normal((2, seeds, 1)) + noise * rng.standard_normal((2, seeds, users))
    return _compared(values[0], values[1] + gain, seeds)


def _compared(before: np.ndarray, after: np.ndarray, asked: int) -> Compared:
    """From the sides' (S, N) metrics by seed and user."""
    return compare(before.mean(1), after.mean(1), (after - before).mean(0), asked, resamples=2000)  # many boards


def alarms(boards: Iterable[list[Compared]]) -> dict[str, tuple[int, int]]:
    """'bootstrap', 't' (each by itself) and 'board' (both, as printed in bold) -> boards with one false alarm or more, and boards in all."""
    counts = dict.fromkeys((*TESTS, "board"), 0)
    total = 0
    for found in boards:
        entries = decide(found, len(found))
        total += 1
        for test in TESTS:
            counts[test] += any(e[test] is not None and e[test]["p_holm"] < LEVEL for e in entries)
        counts["board"] += any(e["significant"] for e in entries)
    return {name: (n, total) for name, n in counts.items()}


def interval(n: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, z2 = n / total, 1.96**2
    middle, half = share + z2 / (2 * total), 1.96 * np.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, (middle - half) / (1 + z2 / total)), (middle + half) / (1 + z2 / total)


def deals(runs: np.ndarray, rng: np.random.Generator, number: int) -> Iterator[list[Compared]]:
    """Boards of two metrics from the (R, N, 2) metrics of R runs by user: half of the runs against the others, dealt anew each time."""
    half = len(runs) // 2
    for _ in range(number):
        order = rng.permutation(len(runs))
        a, b = runs[order[:half]], runs[order[half : 2 * half]]
        yield [_compared(a[:, :, m], b[:, :, m], half) for m in range(runs.shape[2])]


def t_alone(values: np.ndarray, rng: np.random.Generator, number: int = 50_000) -> float:
    """Share of deals of R runs with means `values` (R,) in which the t-test by itself is below the level: cheap, so without error of sampling."""
    half = len(values) // 2
    dealt = rng.permuted(np.broadcast_to(values, (number, len(values))), axis=1)
    return float((stats.ttest_rel(dealt[:, :half], dealt[:, half : 2 * half], axis=1).pvalue < LEVEL).mean())


def trained(model: str, dataset: str, seeds: int, values: dict[str, Any], folder: Path) -> np.ndarray:
    """(R, N, 2) Recall@20 and NDCG@20 of the test users, by seed."""
    from mmrec_mrdib.experiment.run import train

    out = []
    for seed in range(1, seeds + 1):
        result = train(model, dataset, seed, values=values, runs=folder, resume=True)
        with np.load(Path(result["folder"]) / "per_user.npz", allow_pickle=False) as file:
            names = list(file["metrics"])
            out.append(file["values"][:, [names.index(m) for m in ("recall@20", "ndcg@20")]])
        means = ", ".join(f"{m:.4f}" for m in out[-1].mean(0))
        print(f"  seed {seed}: {len(result['epochs'])} epochs, recall@20 and ndcg@20 {means}", flush=True)
    return np.stack(out)


def _show(what: str, found: dict[str, tuple[int, int]], independent: bool = True) -> None:
    shares = []
    for name, (n, total) in found.items():
        low, high = interval(n, total)
        error = f" ({low:.1%} to {high:.1%})" if independent else ""
        shares.append(f"{name} {n / total:.1%}{error}")
    print(f"{what}: {'; '.join(shares)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--boards",
        type=int,
        default=2000,
        metavar="N",
        help="simulated boards of one comparison (default: %(default)s)",
    )
    parser.add_argument("--real", action="store_true", help="train, too")
    parser.add_argument("--model", default="BPR", help="default: %(default)s")
    parser.add_argument("--dataset", default="ml-100k", help="default: %(default)s")
    parser.add_argument("--data_path", metavar="DIR")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="runs to deal from (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--deals", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/null"), metavar="DIR", help="default: %(default)s")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    few = leaderboard.LEAST_SEEDS - 2
    print("boards with a false alarm at level 0.05, simulated (95 % interval)")
    for seeds, size, boards in ((5, 1, options.boards), (few, 1, options.boards), (5, 12, options.boards // 6)):
        many = ([simulated(rng, seeds) for _ in range(size)] for _ in range(boards))
        _show(f"  {seeds} seeds, {size} comparison{'s' if size > 1 else ''}, {boards} boards", alarms(many))
    if options.real:
        print(f"real: {options.model} on {options.dataset}, {options.seeds} seeds")
        values = {"epochs": options.epochs, "show_progress": False} | (
            {"data_path": options.data_path} if options.data_path else {}
        )
        runs = trained(options.model, options.dataset, options.seeds, values, options.runs)
        half = options.seeds // 2
        boards = list(deals(runs, rng, options.deals))
        for m, name in enumerate(("recall@20", "ndcg@20")):
            found = alarms([board[m]] for board in boards)
            _show(f"  {half} seeds against {half}, {name}, {options.deals} deals", found, independent=False)
            print(
                f"    t by itself in 50,000 deals of the same runs: {t_alone(runs[:, :, m].mean(1), rng):.1%}",
                flush=True,
            )
        _show(f"  {half} against {half}, both metrics on a board", alarms(boards), independent=False)


if __name__ == "__main__":
    main()
