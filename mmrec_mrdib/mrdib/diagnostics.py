"""What a trained model's representations hold: redundancy by estimators it was not trained on, and a decomposition in bits.

Everything is measured on means (what scores are made of), items and users without padding, on the CPU, and is the same for
the same seed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec_mrdib.mrdib.estimators.base import MIEstimator
from mmrec_mrdib.mrdib.estimators.gaussian import GaussianMI
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.mrdib.pid import broja, information

_FOLDS = 5
_STEPS = 300
_JUDGE_EVERY = 10
_PERMUTATIONS = 5
_WIDTH = 64


def linear_cka(a: Tensor, b: Tensor) -> float:
    """|A'B|^2 / (|A'A| |B'B|) of centred (R, d) matrices, Frobenius norms (Kornblith et al., ICML 2019): 0 none ... 1 the same up to a
    rotation and a scale."""
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    norm = (a.T @ a).norm() * (b.T @ b).norm()
    return float((a.T @ b).square().sum() / norm) if norm > 0 else 0.0


def held_out(make: Callable[[], MIEstimator], a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """An estimate in nats by a fresh estimator, on items that it was not trained on: mean and standard deviation over 5 folds.

    Three folds train it, the fourth picks the step, the fifth is what is reported: with a few thousand items a network would
    otherwise report how well it memorises them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        folds = torch.randperm(len(a)).chunk(_FOLDS)
        values = []
        for n in range(_FOLDS):
            test, pick = folds[n], folds[(n + 1) % _FOLDS]
            train = torch.cat([folds[(n + k) % _FOLDS] for k in range(2, _FOLDS)])
            estimator = make()
            optimizer = torch.optim.Adam(estimator.parameters(), 1e-3, weight_decay=1e-4)
            best = (0.0, 0.0)  # a network that says nothing: the bound is 0
            for step in range(1, _STEPS + 1):
                optimizer.zero_grad()
                estimator.train()
                estimator(a[train], b[train], 0.0).loss.backward()
                optimizer.step()
                if step % _JUDGE_EVERY == 0:
                    estimator.eval()
                    with torch.no_grad():
                        picked = float(estimator(a[pick], b[pick], 0.0).nats)
                        if picked > best[0]:
                            best = (picked, float(estimator(a[test], b[test], 0.0).nats))
            values.append(best[1])
    return float(np.mean(values)), float(np.std(values, ddof=1))


def redundancy(z: Mapping[str, Tensor], seed: int = 0) -> dict[str, dict[str, float]]:
    """Dependence of each pair of modalities, 'a-b' -> measure -> value.

    `mine`, `mine_std`: nats, a lower bound, by a fresh network on held-out items; `gaussian`: nats, linear dependence, without
    finite-sample bias; `gaussian_excess`: by how much it exceeds its mean over permuted rows, which know nothing of each other; `cka`: 0 to 1;
    `cka_permuted`: what CKA gives when the rows of one are permuted, its floor at this size.

    Args:
        z: modality -> (R, d_m) representations of distinct items, row-aligned; see `of_one_width`.
    """
    z = of_one_width(z)
    x = {m: _standardised(values) for m, values in z.items()}
    out = {}
    for a, b in itertools.combinations(x, 2):
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(len(z[b]), generator=generator) for _ in range(_PERMUTATIONS)]
        gaussian, *floor = (float(GaussianMI()(x[a], y, 0.0).nats) for y in (x[b], *(x[b][order] for order in orders)))
        mine, spread = held_out(functools.partial(MINE, (x[a].shape[1], x[b].shape[1]), 64, 0.01), x[a], x[b], seed)
        out[f"{a}-{b}"] = {
            "mine": mine,
            "mine_std": spread,
            "gaussian": gaussian,
            "gaussian_excess": gaussian - float(np.mean(floor)),
            "cka": linear_cka(z[a], z[b]),
            "cka_permuted": linear_cka(z[a], z[b][orders[0]]),
        }
    return out


def modality_scores(views: Mapping[str, tuple[Tensor, Tensor]], users: Tensor, items: Tensor) -> dict[str, Tensor]:
    """s_m(u, i) = <p_u^m, q_i^m> of the pairs, (N,) by modality, brought to mean 0 and standard deviation 1 over all items for each user:
    what counts is where a user's item stands among the items, not how large the user's scores are.

    Args:
        views: modality -> ((U, d), (I, d)): users and items as the modality alone sees them, both with the padding row.
        users, items: (N,) ids.
    """
    out = {}
    for m, (of_users, table) in views.items():
        known = table[1:].double()
        mean, cov = known.mean(0), torch.cov(known.T, correction=0)
        p = of_users[users].double()
        std = ((p @ cov) * p).sum(1).clamp_min(1e-24).sqrt()
        out[m] = ((p * (table[items].double() - mean)).sum(1) / std).float()
    return out


def decompose(
    scores: Mapping[str, Tensor], relevant: Tensor, bins: int = 6, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """What pairs of modalities say about relevance, in bits: 'a-b' -> the atoms of the partial information decomposition.

    Scores are cut into `bins` of equal size. `redundant`, `unique_a`, `unique_b`, `synergistic`, their sum `total` = I(relevant; a, b), and
    `floor`: the same sum for permuted labels, i.e. what a finite sample gives where there is nothing.

    Args:
        scores: modality -> (N,).
        relevant: (N,) bool.
    """
    y = relevant.numpy().astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(y)
    cut = {m: _quantile_bins(values.numpy(), bins) for m, values in scores.items()}
    out = {}
    for a, b in itertools.combinations(cut, 2):

        def table(labels: np.ndarray, a: str = a, b: str = b) -> np.ndarray:
            counts = np.zeros((2, bins, bins))
            np.add.at(counts, (labels, cut[a], cut[b]), 1)
            return counts

        atoms = broja(table(y))
        out[f"{a}-{b}"] = {
            "a": a,
            "b": b,
            "redundant": atoms.redundant,
            "unique_a": atoms.unique1,
            "unique_b": atoms.unique2,
            "synergistic": atoms.synergistic,
            "total": sum(atoms),
            "floor": information(table(shuffled).reshape(2, -1)),
        }
    return out


def _standardised(x: Tensor) -> Tensor:
    """Columns to mean 0 and standard deviation 1, constant ones to 0: mutual information does not change, networks learn better."""
    x = x.float() - x.float().mean(0)
    std = x.std(0, correction=0)
    return x * torch.where(std > 1e-4 * std.max(), 1 / std.clamp_min(1e-12), 0.0)


def of_one_width(z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same (R, d) for all modalities, d <= 64: of wider ones the 64 leading principal components, more columns than a few thousand items
    can tell apart; zero columns, which say nothing, beside the narrower ones."""
    narrow = {m: _leading(x.float()) if x.shape[1] > _WIDTH else x.float() for m, x in z.items()}
    width = max(x.shape[1] for x in narrow.values())
    return {m: F.pad(x, (0, width - x.shape[1])) for m, x in narrow.items()}


def _leading(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, _ = torch.svd_lowrank(x - x.mean(0), min(_WIDTH, len(x)), niter=4)
    return u * s


def _quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
