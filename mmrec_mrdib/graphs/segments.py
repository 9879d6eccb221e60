"""Reductions over segments of rows, by torch-scatter where it is installed and was built for the device."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import torch_scatter
except (ImportError, OSError):  # OSError: built against another PyTorch
    torch_scatter = None


def segment_reduce(values: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    """Reduce the rows of `values` that share an index.

    Args:
        values: (E, ...) rows.
        index: (E,) segment of each row, 0 <= index < size.
        size: number of segments S.
        reduce: 'sum', 'mean', 'max' or 'min'; empty segments give 0.

    Returns:
        (S, ...)
    """
    if reduce not in ("sum", "mean", "max", "min"):
        raise ValueError(f"reduce={reduce!r}: expected sum, mean, max or min")
    if _scatter_runs_on(values.device):
        return torch_scatter.scatter(values, index, dim=0, dim_size=size, reduce=reduce)
    return _native_reduce(values, index, size, reduce)


def _scatter_runs_on(device: torch.device) -> bool:
    """A torch-scatter that was built without CUDA, as on a machine without a card, has kernels for the CPU alone."""
    if torch_scatter is None:
        return False
    return device.type == "cpu" or (device.type == "cuda" and torch.ops.torch_scatter.cuda_version() != -1)


def _native_reduce(values: Tensor, index: Tensor, size: int, reduce: str) -> Tensor:
    out = values.new_zeros(size, *values.shape[1:])
    if reduce == "sum":
        return out.index_add(0, index, values)
    kind = {"mean": "mean", "max": "amax", "min": "amin"}[reduce]
    at = index.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return out.scatter_reduce(0, at, values, kind, include_self=False)


def segment_softmax(scores: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax of (E,) or (E, h) scores within each segment; the values of a segment sum to 1."""
    top = segment_reduce(scores.detach(), index, size, "max")
    weights = torch.exp(scores - top.index_select(0, index))
    return weights / segment_reduce(weights, index, size, "sum").index_select(0, index)
