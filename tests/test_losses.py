"""Losses against their formulas."""

import pytest
import torch

from mmrec_mrdib.graphs import neighbours
from mmrec_mrdib.losses import (
    bpr,
    cosines,
    frobenius,
    info_nce,
    info_nce_against_all,
    mean_cosines,
    moment_gaps,
    squares,
)


def test_bpr_and_frobenius():
    s = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    truth = -torch.log(torch.sigmoid(s[0] - s[1]))
    torch.testing.assert_close(bpr(s[0] - s[1]), truth.mean())
    torch.testing.assert_close(bpr(s[0] - s[1], weight=torch.tensor([1.0, 0.0])), truth[0] / 2)
    assert frobenius(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]])).item() == 6


def naive(a, b, rows, cols, temperature):
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a[rows], b[cols]))
    terms = torch.exp(a @ b.T / temperature)
    return -torch.log(terms.diagonal() / terms.sum(1)).mean()


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_with_repeated_ids_is_the_plain_formula(same, temperature):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 5, generator=generator, dtype=torch.float32) for n in (7, 7 if same else 9))
    rows = torch.randint(0, 7, (40,), generator=generator)  # each id many times
    cols = rows if same else torch.randint(0, 9, (40,), generator=generator)
    results = []
    for loss in (info_nce, naive):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y, rows, cols, temperature)
        (3 * value).backward()
        results.append((value.detach(), x.grad, y.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_info_nce_at_a_tiny_temperature_and_of_zero_rows():
    a = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ids = torch.arange(6)
    loss = info_nce(a, a, ids, ids, 1e-3)  # exp(1000) is not a float
    assert loss.item() == pytest.approx(0, abs=1e-3)
    zero = info_nce(torch.zeros(6, 4), a, ids, ids, 0.2)  # all terms equal
    assert zero.item() == pytest.approx(torch.tensor(6.0).log().item(), abs=1e-5)
    zero.backward()
    assert a.grad.isfinite().all()


def test_moment_gaps_and_squares():
    a, b, c = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([2.0, 4.0])
    # variances 14/3, 1 and 2; means 3, 0 and 3
    assert moment_gaps(a, b).item() == pytest.approx(14 / 3 - 1 + 3)
    assert moment_gaps(a, b, c).item() == pytest.approx((14 / 3 - 1 + 3) + (14 / 3 - 2) + (1 + 3))
    assert squares(a, b).item() == 52


@pytest.mark.parametrize("block", [neighbours.BLOCK, 1])  # all rows at once, row by row
def test_info_nce_against_all_but_the_padding(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 5, generator=generator) for _ in range(2))
    rows = torch.tensor([3, 1, 3, 8, 8, 8])

    def plain(a, b, rows, temperature):
        terms = torch.exp(torch.cosine_similarity(a[rows][:, None], b[None, 1:], dim=2) / temperature)
        return -torch.log(terms[torch.arange(len(rows)), rows - 1] / terms.sum(1)).mean()

    results = []
    for loss in (info_nce_against_all, plain):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y, rows, 0.2)
        (3 * value).backward()
        results.append((value.detach(), x.grad, y.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert info_nce_against_all(a, b, rows, 0.2) == results[0][0]


def test_cosines():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(
        cosines(a, torch.tensor([[6.0, 8.0], [1.0, 1.0], [-2.0, 0.0]])), torch.tensor([1.0, 0.0, -1.0])
    )


def test_mean_cosines_are_those_of_the_gathered_rows():
    generator = torch.Generator().manual_seed(0)
    table, one, other = (torch.randn(n, 3, generator=generator) for n in (4, 5, 5))
    one[2] = 0  # a target that was dropped out altogether
    rows, results = torch.tensor([1, 3, 1, 0, 1]), []
    plain = lambda x, rows, *targets: sum(torch.cosine_similarity(x[rows], t).mean() for t in targets)  # noqa: E731
    for loss in (mean_cosines, plain):
        x = table.clone().requires_grad_()
        value = loss(x, rows, one, other)
        value.backward()
        results.append((value.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
