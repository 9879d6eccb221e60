"""Adam for large tables: dense Adam's steps at the cost of the rows that a batch reads.

Adam moves every row at every step, also the rows that got no gradient: their momentum decays and goes on pushing. For a table of a
million rows that is most of a training's time. But what a row does without gradients is known beforehand, so it can be done later, all at once,
when the row is next read: the same steps, but for rounding and for 1e-5 of the first ones (see RowAdam).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_mrdib.errors import ContractError
from mmrec_mrdib.graphs import gather_rows


def rows(table: nn.Parameter, ids: Tensor) -> Tensor:
    """(R, d) rows of a table of the model by distinct ids, up to date. How a training step reads the tables that a model lists as
    `row_tables`; under another optimiser than RowAdam it is a plain gather."""
    owner: RowAdam | None = getattr(table, "_row_adam", None)
    if owner is None or not torch.is_grad_enabled():
        return gather_rows(table, ids)
    owner.catch_up(table, ids)
    return F.embedding(ids, table, sparse=True)


def _read(x: Tensor, ids: Tensor | slice) -> Tensor:
    return x[ids] if isinstance(ids, slice) else x.index_select(0, ids)  # twice as fast as x[ids]


class RowAdam(torch.optim.Adam):
    """Adam (Kingma & Ba, ICLR 2015) without weight decay, in which some tables are brought up to date by rows.

    A row that was last at step s and is read at step s + k + 1 has missed k steps without a gradient, whose sum is, element by element,

        - m sum_j b_j / (sqrt(v) a_j + eps),    b_j = lr beta1^j / (1 - beta1^(s+j)),    a_j = sqrt(beta2^j / (1 - beta2^(s+j)))

    for j = 1 ... k. With w = sqrt(v) a_1 / (sqrt(v) a_1 + eps), a number from 0 to 1, that is -m / (sqrt(v) a_1 + eps) times
    sum_j b_j / (1 + w (a_j / a_1 - 1)), a smooth function of w alone, which depends on s and k but not on the row: its polynomial of degree 6
    through the Chebyshev nodes is kept for each s, and one term is added at each step. What is left out is about 1e-5 of a row's way
    where s is one of the first steps, at which a_j falls fastest, and below float32's rounding later. Terms beyond j = 256 are below
    1e-11 of the first.

    A step costs O(rows read), `flush` O(all rows). Tables are only right after `flush`, but for rows that `rows` has just read.

    Args:
        params: parameters or groups, as for Adam; they hold the tables, too.
        tables: those that are only read through `rows`.
    """

    _TERMS = 256
    _NODES = 7

    def __init__(self, params: Iterable[Any], tables: Iterable[nn.Parameter], **adam: Any) -> None:
        super().__init__(params, **adam)
        self.tables = list(tables)
        if any(group["weight_decay"] or group["amsgrad"] or group["maximize"] for group in self.param_groups):
            raise ValueError("RowAdam has no weight decay, AMSGrad or maximisation")
        nodes = (1 + np.cos(np.pi * (np.arange(self._NODES) + 0.5) / self._NODES)) / 2
        self._nodes = torch.from_numpy(nodes)
        self._to_powers = torch.from_numpy(np.linalg.inv(np.vander(nodes, increasing=True)).T)
        self._last: list[Tensor] = []
        # Rows that were brought up to date for the coming step: their ids, and moments that are not yet written.
        self._pending: dict[nn.Parameter, tuple[Tensor, Tensor, Tensor]] = {}
        for table in self.tables:
            table._row_adam = self  # type: ignore[attr-defined]
            if not self.state[table]:
                zeros = torch.zeros_like(table, memory_format=torch.preserve_format)
                self.state[table] = {"step": torch.tensor(0.0), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            self._last.append(torch.zeros(len(table), dtype=torch.long, device=table.device))
        self._begin()

    def _begin(self) -> None:
        """All rows are up to date: what was deferred is counted from here."""
        self._group = {id(p): group for group in self.param_groups for p in group["params"]}
        self._pending.clear()
        self._steps = 0  # since then
        for last in self._last:
            last.zero_()
        if not self.tables:
            return
        self._base = int(self.state[self.tables[0]]["step"])
        device = self.tables[0].device
        self._beta1, self._beta2 = self._group[id(self.tables[0])]["betas"]
        lags = torch.arange(self._TERMS, 0, -1, dtype=torch.float64, device=device)  # j
        self._powers1, self._roots2 = self._beta1**lags, self._beta2 ** (lags / 2)
        self._nodes, self._to_powers = self._nodes.to(device), self._to_powers.to(device)
        # For each step s since then: a_1 and the polynomial's coefficients; the same in the precision of the tables.
        self._sums = torch.zeros(512, self._NODES + 1, dtype=torch.float64, device=device)
        self._past = torch.zeros(512, self._NODES + 1, device=device)
        self._open()

    def _open(self) -> None:
        """From now on rows may be last at this step s."""
        if self._steps == len(self._sums):
            self._sums, self._past = (torch.cat([x, torch.zeros_like(x)]) for x in (self._sums, self._past))
        self._sums[self._steps, 0] = (self._beta2 / (1 - self._beta2 ** (self._base + self._steps + 1))) ** 0.5
        self._past[self._steps] = self._sums[self._steps]

    def _defer(self, lr: float) -> None:
        """A step was made, the t-th of all: rows that had no part in it, last at s = t - j, owe the term j more."""
        first, t = max(0, self._steps - self._TERMS), self._base + self._steps
        sums, n = self._sums[first : self._steps], self._steps - first
        bend = self._roots2[-n:] / (1 - self._beta2**t) ** 0.5 / sums[:, 0] - 1  # a_j / a_1 - 1
        b = self._powers1[-n:] * (lr / (1 - self._beta1**t))
        sums[:, 1:] += (b[:, None] / (1 + bend[:, None] * self._nodes)) @ self._to_powers
        self._past[first : self._steps] = sums
        self._open()

    @torch.no_grad()
    def catch_up(self, table: nn.Parameter, ids: Tensor | slice) -> None:
        """Make the steps that the given rows of a table have missed."""
        self._write_pending(table)
        if not self._steps:
            return
        n = next(n for n, t in enumerate(self.tables) if t is table)
        state, last, group = self.state[table], self._last[n], self._group[id(table)]
        beta1, beta2 = group["betas"]
        since = _read(last, ids)
        past = self._past.index_select(0, since)
        m, v = _read(state["exp_avg"], ids), _read(state["exp_avg_sq"], ids)
        scaled = v.sqrt().mul_(past[:, :1])
        lower = scaled + group["eps"]
        w = scaled.div_(lower)
        *rest, total = past[:, 1:].split(1, dim=1)
        for coefficient in reversed(rest):
            total = torch.addcmul(coefficient, total, w)
        total.mul_(m).div_(lower)
        missed = (self._steps - since).to(m.dtype).unsqueeze(1)
        data = table.detach()
        if isinstance(ids, slice):
            data[ids] -= total
        else:
            data.index_add_(0, ids, total.neg_())  # with another alpha than 1 it takes a slow way
        m, v = m * beta1**missed, v * beta2**missed
        last[ids] = self._steps
        if isinstance(ids, slice):
            state["exp_avg"][ids], state["exp_avg_sq"][ids] = m, v
        else:
            self._pending[table] = (ids, m, v)  # the step that these rows are read for will write them

    def _write_pending(self, table: nn.Parameter) -> None:
        if table in self._pending:
            ids, m, v = self._pending.pop(table)
            self.state[table]["exp_avg"].index_copy_(0, ids, m)
            self.state[table]["exp_avg_sq"].index_copy_(0, ids, v)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step: the tables by the rows of their sparse gradients, everything else as Adam does.

        Raises:
            ContractError: a table has a dense gradient, so it was read otherwise than through `rows`.
        """
        assert closure is None
        grads = [table.grad for table in self.tables]
        for table, grad in zip(self.tables, grads, strict=True):
            if grad is not None and not grad.is_sparse:
                raise ContractError(
                    f"a table of {len(table)} rows is listed in row_tables but was read directly; read it with optim.rows"
                )
            table.grad = None
        super().step()
        self._steps += 1
        for table, last, grad in zip(self.tables, self._last, grads, strict=True):
            self.state[table]["step"] += 1
            if grad is not None:
                self._row_step(table, last, grad)
                table.grad = grad
        if self.tables:
            self._defer(self._group[id(self.tables[0])]["lr"])
        return None

    def _row_step(self, table: nn.Parameter, last: Tensor, grad: Tensor) -> None:
        state, group = self.state[table], self._group[id(table)]
        (beta1, beta2), t = group["betas"], self._base + self._steps
        read, places = self._pending.get(table), grad._indices()
        if read is not None and places.data_ptr() == read[0].data_ptr() and places.shape[1] == len(read[0]):
            ids, m, v = self._pending.pop(table)  # the rows that were read, once each
            g = grad._values()
        else:  # read more than once: the gradients of a row are to be added up
            self._write_pending(table)
            grad = grad.coalesce()
            ids, g = grad.indices()[0], grad.values()
            m, v = _read(state["exp_avg"], ids), _read(state["exp_avg_sq"], ids)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"].index_copy_(0, ids, m)
        state["exp_avg_sq"].index_copy_(0, ids, v)
        lower = v.sqrt_().div_((1 - beta2**t) ** 0.5).add_(group["eps"])
        table.detach().index_add_(0, ids, m.div_(lower).mul_(-group["lr"] / (1 - beta1**t)))
        last[ids] = self._steps

    @torch.no_grad()
    def flush(self) -> None:
        """Bring all rows of all tables up to date: before they are read in any other way than through `rows`."""
        for table in self.tables:
            self._write_pending(table)
            for start in range(0, len(table), 1 << 14):
                self.catch_up(table, slice(start, start + (1 << 14)))
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Adam's own, after a flush."""
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._begin()
