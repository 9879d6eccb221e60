"""Which variant ranks where, over all backbones and data sets of a board: the numbers of a critical-difference diagram (Demsar, JMLR 7, 2006)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmrec_mrdib.significance import cliques, critical_difference, friedman

LEVEL = 0.05
LEAST_BLOCKS, LEAST_VARIANTS = 2, 3


def mean_ranks(rows: Iterable[Mapping[str, Any]], variants: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean ranks of the variants over blocks, which are backbones on data sets, by each metric's mean over seeds; 1 is the best.

    A block is complete where every variant has all its seeds; others are left out. Where Friedman's test (in the form of Iman and Davenport) does
    not tell the ranks apart, no two variants are, and Nemenyi's test is not asked: one clique of all.

    Args:
        rows: of a board.

    Returns:
        plain values: variants; blocks, (data set, backbone); left_out, with what each lacks; undrawn, why there are no ranks, or None;
        metrics: of each, ranks by variant, both statistics with p, critical_difference, cliques.
    """
    blocks: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["variant"] in variants:
            block = blocks.setdefault((row["dataset"], row["backbone"]), {})
            if row["status"] == "complete" and all(m in row["mean"] for m in metrics):
                block[row["variant"]] = row["mean"]
    lacking = {key: [v for v in variants if v not in block] for key, block in blocks.items()}
    complete = [key for key, missing in lacking.items() if not missing]
    out: dict[str, Any] = {
        "variants": list(variants),
        "blocks": [list(key) for key in complete],
        "left_out": [
            {"dataset": d, "backbone": b, "missing": missing} for (d, b), missing in lacking.items() if missing
        ],
        "undrawn": None,
        "metrics": {},
    }
    if len(variants) < LEAST_VARIANTS:
        out["undrawn"] = f"ranks need three variants or more, this board has {len(variants)}"
    elif len(complete) < LEAST_BLOCKS:
        out["undrawn"] = (
            f"ranks need two complete pairs of a backbone and a data set or more, this board has {len(complete)} of {len(blocks)}"
        )
    else:
        for metric in metrics:
            found = friedman(np.array([[blocks[key][v][metric] for v in variants] for key in complete]))
            difference = critical_difference(len(complete), len(variants), LEVEL)
            groups = cliques(found.ranks, difference if found.f_p < LEVEL else math.inf)
            out["metrics"][metric] = {
                "ranks": dict(zip(variants, found.ranks, strict=True)),
                "chi2": found.chi2,
                "chi2_p": found.chi2_p,
                "f": found.f if math.isfinite(found.f) else None,  # all blocks rank alike
                "f_p": found.f_p,
                "critical_difference": difference,
                "cliques": [[variants[n] for n in group] for group in groups],
            }
    return out
