"""Segment reductions: the native path against a loop, and torch-scatter against the native path."""

import pytest
import torch

from mmrec_mrdib import graphs


@pytest.fixture
def edges():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 3, generator=generator), torch.randint(
        0, 12, (200,), generator=generator
    ) + 1  # 0, 13 empty


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_native_path_against_a_loop(edges, reduce):
    values, index = edges
    op = {
        "sum": lambda v: v.sum(0),
        "mean": lambda v: v.mean(0),
        "max": lambda v: v.amax(0),
        "min": lambda v: v.amin(0),
    }
    truth = torch.stack([op[reduce](values[index == s]) if (index == s).any() else torch.zeros(3) for s in range(14)])
    torch.testing.assert_close(graphs._native_reduce(values, index, 14, reduce), truth)


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_both_paths_agree_in_value_and_gradient(edges, reduce):
    pytest.importorskip("torch_scatter", reason="torch-scatter is not built here")
    values, index = edges
    results = []
    for path in (graphs._native_reduce, graphs.segment_reduce):
        x = values.clone().requires_grad_()
        out = path(x, index, 14, reduce)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


def test_softmax_sums_to_one_and_survives_large_scores(edges):
    values, index = edges
    weights = graphs.segment_softmax(values * 1000, index, 14)
    sums = graphs.segment_reduce(weights, index, 14, "sum")
    torch.testing.assert_close(sums[1:13], torch.ones(12, 3))
    assert weights.isfinite().all()


def test_gather_rows_is_indexing():
    table = torch.randn(5, 4, requires_grad=True)
    ids = torch.tensor([1, 1, 3])
    graphs.gather_rows(table, ids).sum().backward()
    assert table.grad[:, 0].tolist() == [0, 2, 0, 1, 0]


def test_unknown_reduction():
    with pytest.raises(ValueError, match="median"):
        graphs.segment_reduce(torch.ones(2, 1), torch.tensor([0, 1]), 2, "median")
