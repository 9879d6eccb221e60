"""Users as their histories say: the view p_u^m of a user through a modality is made of the items that the user has, and of nothing else.

    p_u^m = nrm( sum_{j in H_u} zhat_j^m ),    p_u^m(-i) = nrm( sum_{j in H_u, j != i} zhat_j^m ),    zhat = z / |z|

H_u are the user's training items. No parameter of the user: the view exists for users that were never trained on, and it lives in the
space of z^m whatever the host does with z^m. Leave-one-out, (-i), keeps an item from predicting itself while training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmrec_mrdib.graphs import Edges, full_precision, gather_rows, occurrences


class Histories(nn.Module):
    """The training items of each user, as the rows of a sparse matrix; moves with the model, is in no checkpoint.

    Args:
        interactions: (U, I) entries, each pair once.
    """

    indptr: Tensor
    items: Tensor

    def __init__(self, interactions: Edges) -> None:
        super().__init__()
        n_users, self.n_items = interactions.shape
        order = torch.argsort(interactions.rows * self.n_items + interactions.cols)
        counts = torch.bincount(interactions.rows, minlength=n_users)
        self.register_buffer("indptr", F.pad(counts.cumsum(0), (1, 0)), persistent=False)
        self.register_buffer("items", interactions.cols[order], persistent=False)

    def lengths(self, users: Tensor) -> Tensor:
        """(Q,) |H_u|."""
        return self.indptr[users + 1] - self.indptr[users]

    def entries(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(row, item) of every training interaction of these users, (E,) each: row n is users[n], items ascend within a row."""
        lengths = self.lengths(users)
        rows = torch.repeat_interleave(torch.arange(len(users), device=users.device), lengths)
        start = self.indptr[users] - F.pad(lengths.cumsum(0), (1, 0))[:-1]
        return rows, self.items[start.index_select(0, rows) + torch.arange(len(rows), device=users.device)]

    def sums(self, table: Tensor, users: Tensor, place: Tensor | None = None) -> Tensor:
        """(Q, d) sum of the rows of an (R, d) table over each user's items; linear in the histories of these users.

        Args:
            place: (I,) where an item's row of the table is; none: row = id.
        """
        rows, items = self.entries(users)
        out: Tensor = _Sums.apply(table.float(), rows, items if place is None else place[items], self.lengths(users))
        return out


class _Sums(torch.autograd.Function):
    """A x with a 0/1 matrix A given by its sorted entries; the backward sorts them by column once: two CSR products, no (E, d)."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        ctx.save_for_backward(rows, items)
        ctx.shape = (len(table), len(lengths))
        return _product(lengths, items, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        rows, items = ctx.saved_tensors
        n_items, _ = ctx.shape
        order = torch.argsort(items)
        return _product(occurrences(items, n_items), rows[order], grads[0]), None, None, None


def _product(lengths: Tensor, cols: Tensor, x: Tensor) -> Tensor:
    crow = F.pad(lengths.cumsum(0), (1, 0))
    ones = torch.ones(len(cols), dtype=x.dtype, device=x.device)
    with full_precision(x):
        return torch.sparse_csr_tensor(crow, cols, ones, (len(lengths), len(x)), check_invariants=False) @ x


def profiles(histories: Histories, unit: Tensor, users: Tensor) -> Tensor:
    """(Q, d) p_u of these users from unit rows zhat (I, d); 0 for users without items."""
    return F.normalize(histories.sums(unit, users))


def leave_one_out(
    histories: Histories,
    unit: Tensor,
    users: Tensor,
    items: Tensor,
    rows: Tensor | None = None,
    widths: Sequence[int] = (),
    once: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(B, D) p_u(-i) of the pairs: the gradient of row i through it is exactly 0. A user whose only item is i has no view: 0.

    Args:
        unit: (R, D) zhat, of one modality or of several side by side.
        users, items: (B,) pairs out of the training interactions.
        rows: (I,) where an item's row of `unit` is; none: row = id.
        widths: of the modalities, each of which is brought to length 1; none: there is one.
        once: the distinct users, and where among them each pair's is, where they are known.
    """
    distinct, place = torch.unique(users, return_inverse=True) if once is None else once
    mine = items if rows is None else rows[items]
    rest = gather_rows(histories.sums(unit, distinct, rows), place) - gather_rows(unit, mine)
    alone = (histories.lengths(users) < 2)[:, None]  # what rounding leaves is no view
    rest = rest.masked_fill(alone, 0.0)
    return torch.cat([F.normalize(x) for x in rest.split(list(widths) or rest.shape[1], 1)], 1)
