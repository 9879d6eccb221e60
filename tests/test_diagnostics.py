"""Partial information decomposition, and measures of redundancy, against known values."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from mmrec_mrdib.errors import ConfigError, ContractError
from mmrec_mrdib.mrdib import diagnostics
from mmrec_mrdib.mrdib.estimators.mine import MINE
from mmrec_mrdib.mrdib.pid import broja, information


def table(function, n_y):
    """(Y, X1, X2) of two fair bits."""
    out = np.zeros((n_y, 2, 2))
    for a, b in itertools.product((0, 1), repeat=2):
        out[function(a, b), a, b] = 0.25
    return out


COPIES = np.zeros((2, 2, 2))
COPIES[0, 0, 0] = COPIES[1, 1, 1] = 0.5


@pytest.mark.parametrize(
    ("joint", "atoms"),
    [
        (table(lambda a, b: a ^ b, 2), (0, 0, 0, 1)),
        (table(lambda a, b: a & b, 2), (0.311278, 0, 0, 0.5)),
        (COPIES, (1, 0, 0, 0)),
        (table(lambda a, b: a, 2), (0, 1, 0, 0)),
        (table(lambda a, b: b, 2), (0, 0, 1, 0)),
        (table(lambda a, b: 2 * a + b, 4), (0, 1, 1, 0)),
        (np.ones((2, 3, 4)), (0, 0, 0, 0)),
    ],
    ids=["xor", "and", "copies", "first", "second", "both", "independent"],
)
def test_broja_golden(joint, atoms):
    assert tuple(broja(joint)) == pytest.approx(atoms, abs=1e-5)
    assert tuple(broja(joint * 1000)) == pytest.approx(atoms, abs=1e-5)  # counts


def least_by_search(p):
    """min I_Q(Y; X1, X2) of binary variables: Q has one free number for each y. Searched on a grid, refined."""
    low, high = np.zeros(2), np.zeros(2)
    for y in range(2):  # q(y, 0, 0) between these, so that no cell is negative
        low[y] = max(0, p[y, 0].sum() + p[y, :, 0].sum() - p[y].sum())
        high[y] = min(p[y, 0].sum(), p[y, :, 0].sum())
    best = math.inf
    for _ in range(12):
        grid = [np.linspace(low[y], high[y], 15) for y in range(2)]
        values = {}
        for t in itertools.product(*grid):
            q = np.empty_like(p)
            for y in range(2):
                q[y, 0, 0] = t[y]
                q[y, 0, 1] = p[y, 0].sum() - t[y]
                q[y, 1, 0] = p[y, :, 0].sum() - t[y]
                q[y, 1, 1] = p[y].sum() - q[y, 0, 0] - q[y, 0, 1] - q[y, 1, 0]
            values[t] = information(np.maximum(q, 0).reshape(2, -1))
        at, value = min(values.items(), key=lambda item: item[1])
        best = min(best, value)
        width = (high - low) / 7
        low, high = np.maximum(low, np.array(at) - width), np.minimum(high, np.array(at) + width)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_broja_finds_the_least_information(seed):
    p = np.random.default_rng(seed).dirichlet(np.ones(8)).reshape(2, 2, 2)
    atoms = broja(p)
    both = information(p.reshape(2, -1))
    assert sum(atoms) == pytest.approx(both, abs=1e-9)
    assert both - atoms.synergistic == pytest.approx(least_by_search(p), abs=1e-5)


def test_broja_agrees_with_dit():
    """dit's solver often stops early, with more information left to the pairs: there it is not compared atom by atom."""
    dit = pytest.importorskip("dit", reason="dit is not installed")
    from dit.pid import PID_BROJA

    rng, compared = np.random.default_rng(1), 0
    for shape in [(2, 2, 2)] * 10 + [(2, 3, 2)] * 4:
        p = rng.dirichlet(np.ones(math.prod(shape))).reshape(shape)
        outcomes = [(a, b, y) for y, a, b in np.ndindex(shape)]
        theirs = PID_BROJA(dit.Distribution(outcomes, p.ravel()), ((0,), (1,)), (2,))
        values = [theirs.get_pi(node) for node in (((0,), (1,)), ((0,),), ((1,),), ((0, 1),))]
        ours = broja(p)
        assert (
            ours.synergistic > values[3] - 1e-3
        )  # never more left to the pairs; dit meets the marginals to about 1e-4
        if ours.synergistic < values[3] + 1e-3:
            compared += 1
            assert tuple(ours) == pytest.approx(values, abs=2e-3)
    assert compared >= 8


def test_broja_refuses_what_is_no_distribution(monkeypatch):
    for wrong in (np.ones((2, 2)), -np.ones((2, 2, 2)), np.zeros((2, 2, 2)), np.full((2, 2, 2), np.nan)):
        with pytest.raises(ContractError):
            broja(wrong)
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ConfigError, match=r"mmrec-mrdib\[report\]"):
        broja(COPIES)


def test_information_in_bits():
    assert information(np.eye(4)) == pytest.approx(2)
    assert information(np.outer([1, 3], [2, 2, 5])) == pytest.approx(0)


def test_decompose_finds_planted_synergy_and_redundancy():
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.normal(size=(2, 20_000)).astype(np.float32))
    xor = diagnostics.decompose({"a": a, "b": b}, a * b > 0)["a-b"]
    # Six bins of each: the sign of the product is known of every cell, but for values next to the median.
    assert xor["synergistic"] == pytest.approx(1, abs=0.03) and xor["redundant"] + xor["unique_a"] < 0.01
    copies = diagnostics.decompose({"a": a, "b": 3 * a + 1, "c": b}, a > 0)
    assert copies["a-b"]["redundant"] == pytest.approx(1, abs=0.03)
    assert copies["a-c"]["unique_a"] == pytest.approx(1, abs=0.03)
    assert copies["b-c"]["a"] == "b"
    nothing = diagnostics.decompose({"a": a, "b": b}, torch.from_numpy(rng.random(20_000) > 0.5))["a-b"]
    # A plug-in estimate from N samples: about (cells - 1) / (2 N ln 2), and the floor says so.
    assert nothing["total"] == pytest.approx(35 / (2 * 20_000 * math.log(2)), rel=0.7)
    assert nothing["floor"] == pytest.approx(nothing["total"], rel=1)


def test_scores_are_standardised_within_each_user():
    torch.manual_seed(0)
    z, p = torch.randn(31, 4), torch.randn(5, 4)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(1, 31))
    scores = diagnostics.modality_scores({"m": (p, z)}, every[:, 0], every[:, 1])["m"].view(5, 30)
    raw = p @ z[1:].T
    torch.testing.assert_close(scores, (raw - raw.mean(1, keepdim=True)) / raw.std(1, correction=0, keepdim=True))
    nobody = diagnostics.modality_scores({"m": (torch.zeros(5, 4), z)}, every[:, 0], every[:, 1])["m"]
    assert nobody.isfinite().all()


def test_cka_by_hand():
    torch.manual_seed(0)
    a = torch.randn(50, 3)
    rotation = torch.linalg.qr(torch.randn(3, 3)).Q
    assert diagnostics.linear_cka(a, 5 * a @ rotation + 2) == pytest.approx(1)
    x, y = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [0.0], [5.0]])
    assert diagnostics.linear_cka(x, y) == pytest.approx(np.corrcoef(x.T, y.T)[0, 1] ** 2)
    assert diagnostics.linear_cka(a, torch.ones(50, 2)) == 0


def test_held_out_mine_finds_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2000, 1, generator=generator)
    noise = torch.randn(2000, 1, generator=generator)
    b = 0.9 * a + math.sqrt(1 - 0.81) * noise

    def make():
        return MINE((1, 1), 64, 0.01)

    value, spread = diagnostics.held_out(make, a, b)
    assert 0.6 < value < 0.9 and spread < 0.2  # the truth is 0.83
    assert diagnostics.held_out(make, a, b) == (value, spread)  # the seed decides
    nothing, _ = diagnostics.held_out(make, a, noise)
    assert abs(nothing) < 0.03
    wide = torch.randn(2000, 32, generator=generator)
    overfit, _ = diagnostics.held_out(
        lambda: MINE((32, 32), 64, 0.01), wide, torch.randn(2000, 32, generator=generator)
    )
    assert abs(overfit) < 0.05


def test_redundancy_of_planted_representations():
    torch.manual_seed(0)
    a = torch.randn(600, 4)
    z = {"a": a, "same": a @ torch.randn(4, 4), "other": torch.randn(600, 4)}
    out = diagnostics.redundancy(z)
    assert set(out) == {"a-same", "a-other", "same-other"}
    assert out["a-same"]["gaussian"] > 5 and out["a-same"]["mine"] > 0.7 and out["a-same"]["cka"] > 0.5
    assert abs(out["a-other"]["gaussian"]) < 0.05 and abs(out["a-other"]["mine"]) < 0.05
    assert all(
        v["gaussian_excess"] == pytest.approx(v["gaussian"], abs=0.05) for v in out.values()
    )  # unrelated rows: 0
    assert out["a-other"]["cka"] == pytest.approx(out["a-other"]["cka_permuted"], abs=0.02)
