"""One model on several processes that torchrun has started: what they share, split and agree on (docs/distributed.md).

Every process (a rank) has the whole model, the whole data and the same random streams, and makes the same global batches. Of each batch it
takes a share, and of an evaluation some blocks of users. Gradients are added up with the shares' weights, so that every rank makes the
optimiser's step that one process would make. That is right for losses that are means over a batch's pairs, and for norms of its rows where
the norm is taken over all ranks; losses that compare a batch's pairs with each other are not, and their models are refused.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from mmrec_mrdib import process
from mmrec_mrdib.errors import ConfigError, NonFiniteLossError, ProcessError, first_line

MODELS = ("VBPR", "LightGCN", "FREEDOM")  # whose losses were checked
TIMEOUT = timedelta(minutes=10)  # of waiting for another rank, which may be writing a checkpoint
_DRIFT = 1e-3  # of a tensor's largest entry: what two ranks may differ by after an epoch; rounding is far below it


def check(config: Any) -> None:
    """Before anything is read: whether several processes, if there are several, can train this.

    Raises:
        ConfigError: they cannot.
    """
    if not process.several():
        return
    from mmrec_mrdib import registry

    name, size = config["model"], process.place().size
    if name in registry.PLUGINS:
        root = registry.variant(config["backbone"]).root
        how = f"train {root} by them (--baseline), then the variant by one process, which finds {root} trained"
        why = "a plug-in's losses compare what is in the whole batch"
    else:
        why = "the losses of others are no means over a batch's pairs, or were not checked"
        how = "start it without torchrun; mmrec-mrdib leaderboard --jobs N trains several models at a time"
    if name not in MODELS:
        plain = "plain " if name in registry.PLUGINS else ""
        named = f"{config['backbone']}+{name}" if plain else name
        raise ConfigError(f"{named} on {size} processes: they train {plain}{', '.join(MODELS)}; {why}; {how}")
    if name == "LightGCN" and not config["require_pow"]:
        raise ConfigError(
            f"--require_pow=false on {size} processes: norms of a batch's rows are no means over its pairs; leave it out, "
            "or start it without torchrun"
        )
    simple = {"distribution": "uniform", "sample_num": 1, "dynamic": False}
    if any(config["train_neg_sample_args"][k] != v for k, v in simple.items()):
        raise ConfigError(
            f"--train_neg_sample_args on {size} processes: they share uniform negatives, one a pair; leave it out, or start "
            "it without torchrun"
        )


def join(config: Any) -> Ranks:
    """The ranks of this training: `ALONE` unless torchrun has started several processes. Waits for all of them the first time."""
    check(config)
    if not process.several():
        return ALONE
    place, device = process.place(), config["device"]
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if not dist.is_available() or not getattr(dist, f"is_{backend}_available")():
            raise ConfigError(f"{place.size} processes: this build of PyTorch has no {backend} to join them by")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _clearly():
            dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(_leave)
    return Ranks(place.rank, place.size, device)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _clearly() -> Iterator[None]:
    """What PyTorch raises where another rank has gone, in one line."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            "lost the other processes of this training: one of them has ended, and its own message says why, or gave no answer for "
            f"{TIMEOUT.total_seconds():.0f} s; the same command with --resume goes on from what is saved ({first_line(error)[:200]})"
        ) from error


@dataclass
class Ranks:
    """This process among those of one training. Of one process (`ALONE`) every method leaves all as it is.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: where tensors are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _whole: bool = False  # whether each rank has the whole of the current batch

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    # Work: what is this rank's.

    def part(self, n: int) -> slice:
        """This rank's of n things: contiguous, and of no other rank."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def share(self, batch: Any) -> tuple[Any, float]:
        """This rank's pairs of a global batch, and their share of it: the weight of means over them. A batch of fewer pairs than ranks is
        taken by all of them, with equal weights."""
        n = len(batch)
        self._whole = n < self.size
        if not self.several or self._whole:
            return batch, 1 / self.size
        part = self.part(n)
        return batch[part], (part.stop - part.start) / n

    # Sums.

    def summed(self, x: Tensor) -> Tensor:
        """Sum of what each rank has of the current batch: of a batch that all have whole, what this one has."""
        return x if self._whole else self.total(x.clone())

    def total(self, x: Tensor, op: Literal["SUM", "MIN", "MAX"] = "SUM") -> Tensor:
        """x, in place, added up over the ranks; the same bits on each. Or the smallest or largest of each entry."""
        if self.several:
            with _clearly():
                dist.all_reduce(x, getattr(dist.ReduceOp, op))
        return x

    @torch.no_grad()
    def add_up_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients of the global batch, from each rank's, which are weighted already: dense ones whole, those of tables that are updated
        by rows (`optim.RowAdam`) by the rows of all ranks."""
        if not self.several:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [p for p in parameters if not p.grad.is_sparse]
        tables = [p for p in parameters if p.grad.is_sparse]
        ids = self._rows([table.grad._indices()[0] for table in tables], [len(table) for table in tables])
        values = []
        for table, rows in zip(tables, ids, strict=True):
            own = table.grad._indices()[0]
            at = torch.searchsorted(rows, own)
            values.append(table.new_zeros(len(rows), *table.shape[1:]).index_add_(0, at, table.grad._values()))
        parts = [*(p.grad for p in dense), *values]
        if not parts:
            return
        flat = self.total(torch.cat([x.reshape(-1) for x in parts]))
        summed = [x.view_as(like) for x, like in zip(flat.split([x.numel() for x in parts]), parts, strict=True)]
        for p, grad in zip(dense, summed[: len(dense)], strict=True):
            p.grad = grad
        for table, rows, grad in zip(tables, ids, summed[len(dense) :], strict=True):
            table._row_adam.catch_up(table, rows)  # type: ignore[attr-defined]  # also those that other ranks have read
            table.grad = torch.sparse_coo_tensor(rows[None], grad, table.shape, check_invariants=False)

    def _rows(self, ids: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Sorted distinct ids that any rank has, for each of some tables; all in one exchange."""
        if not ids:
            return []
        starts = torch.tensor([0, *sizes], device=self.device).cumsum(0)
        own = torch.cat([x + start for x, start in zip(ids, starts, strict=False)])
        longest = int(self.total(torch.tensor(len(own), device=self.device), "MAX"))
        padded = own[:1].repeat(longest) if len(own) else own.new_full((longest,), -1)
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        with _clearly():
            dist.all_gather(gathered, padded)
        union = torch.unique(torch.cat(gathered))
        union = union[union >= 0]
        ends = torch.searchsorted(union, starts).tolist()
        return [union[a:b] - starts[n] for n, (a, b) in enumerate(itertools.pairwise(ends))]

    def joined(self, rows: Sequence[Tensor], at: int, n: int, width: int) -> Tensor:
        """(n, width) int64 rows of all ranks, of which this one has those from `at` on, in pieces, maybe none."""
        out = torch.zeros(n, width, dtype=torch.long, device=self.device)
        for piece in rows:
            out[at : at + len(piece)] = piece
            at += len(piece)
        return self.total(out)

    # Agreement.

    def of_first(self, values: dict[str, float]) -> dict[str, float]:
        """The first rank's values under the same names."""
        if not self.several:
            return values
        x = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        with _clearly():
            dist.broadcast(x, 0)
        return dict(zip(values, x.tolist(), strict=True))

    def says(self, yes: bool) -> bool:
        """What the first rank says. Also where all wait for it."""
        return bool(self.of_first({"": float(yes)})[""])

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """A NaN that one rank meets in the block is raised by all."""
        own: NonFiniteLossError | None = None
        try:
            yield
        except NonFiniteLossError as error:
            if not self.several:
                raise
            own = error
        if self.several and int(self.total(torch.tensor(int(own is not None), device=self.device))):
            raise own or NonFiniteLossError("another process met NaN; its message says where")

    def check_same(self, what: str, *values: Any) -> None:
        """
        Raises:
            ProcessError: the ranks' values (tensors on the CPU, or anything with a text) differ; on all of them.
        """
        if not self.several:
            return
        digest = hashlib.blake2b(digest_size=7)
        for value in values:
            digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
        number = int.from_bytes(digest.digest(), "little")
        least = self.total(torch.tensor([number, -number], device=self.device), "MIN")
        if int(least[0]) != -int(least[1]):
            raise ProcessError(
                f"{what} of the {self.size} processes differ: start all with the same command, data and code"
            )

    @torch.no_grad()
    def align(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Take the first rank's tensors. Ranks make the same steps, but rows of a table are brought up to date (`optim.RowAdam`) in other
        company on each, and vector units round the last few of a tensor otherwise than the rest.

        Raises:
            ProcessError: they differ by more than rounding; on all ranks.
        """
        if not self.several:
            return
        names, worst = [], []
        for name, x in named:
            if x.device.type != self.device.type:  # the optimiser's count of steps
                continue
            own = x.clone()
            with _clearly():
                dist.broadcast(x, 0)
            if x.is_floating_point() and x.numel():
                names.append(name)
                gap = (own - x).abs().max() / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
                worst.append(gap.double().nan_to_num())  # NaN is told by who looks for it
        if not names:
            return
        gaps = self.total(torch.stack(worst), "MAX")
        if bool((gaps > _DRIFT).any()):
            n = int(gaps.argmax())
            raise ProcessError(
                f"{names[n]} differs between the {self.size} processes, by {float(gaps[n]):.2g} of its largest entry: they did "
                "not make the same steps; start it without torchrun"
            )


ALONE = Ranks()
