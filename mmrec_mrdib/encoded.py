"""What passes between a model, the encoding stage and the losses: representations, embeddings, batches. No RecBole here: models that know
nothing of it are trained with the same objectives (`hosts/attach.py`).

Shapes: B batch, U users, I items, R encoded items, M modalities, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.losses import at_least_single, margin


@dataclass(frozen=True)
class Encoded:
    """Modality representations of the whole catalogue or of some items.

    Attributes:
        z: modality -> (R, d), what the model computes with (a sample where the stage is stochastic and training).
        mean: modality -> (R, d); the same tensors as z where the stage is deterministic.
        rate: modality -> (R,) KL(q(z|x) || N(0, I)) of each item in nats, or None where the stage is deterministic.
        items: (R,) sorted ids of the encoded items, or None: all items, so that row = id.
        users: (Q,) sorted ids of the users that the step needs, or None: all users.
    """

    z: Mapping[str, Tensor]
    mean: Mapping[str, Tensor]
    rate: Mapping[str, Tensor] | None = None
    items: Tensor | None = None
    users: Tensor | None = None


@dataclass(frozen=True)
class Embeddings:
    """What scores are made of, for the users and items of an `Encoded`: Q of U users, R of I items.

    Attributes:
        users: (Q, d') and items: (R, d'); the score is their inner product unless the model says otherwise.
        views: modality -> ((Q, d), (R, d)): users and items as seen through one modality alone, p_u^m and q_i^m, both in one
            space, so that <p_u^m, q_i^m> is what the modality alone says; empty where the model has none.
        extra: further tensors, those that the model's losses need and, of a model whose users and items have several parts, those that
            plug-ins read: `collaborative_users`, `collaborative_items`, the part of ids alone in the width of the views, and
            `content_users`, `content_items`, the last columns, where they are made of modalities alone.
    """

    users: Tensor
    items: Tensor
    views: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Training pairs: users (B,), items positive (B,), and negative (B,) or None for models without negatives."""

    users: Tensor
    positive: Tensor
    negative: Tensor | None
    n_items: int
    _known: dict[tuple[Any, ...], tuple[Tensor, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def present(self) -> Tensor:
        """(I,) bool: whether each item is in the batch."""
        seen = torch.zeros(self.n_items, dtype=torch.bool, device=self.positive.device)
        seen[self.positive] = True
        if self.negative is not None:
            seen[self.negative] = True
        return seen

    @cached_property
    def items(self) -> Tensor:
        """(R,) the distinct items of the batch, sorted."""
        if self.n_items > 64 * len(self.users):  # a look at each item would cost more than sorting the batch
            return torch.unique(self.positive if self.negative is None else torch.cat([self.positive, self.negative]))
        return self.present.nonzero().flatten()

    @cached_property
    def distinct_users(self) -> Tensor:
        """(Q,) the distinct users of the batch, sorted."""
        return torch.unique(self.users)

    @cached_property
    def users_once(self) -> tuple[Tensor, Tensor]:
        """(Q,) `distinct_users`, and where among them each pair's user is (B,)."""
        users, place = torch.unique(self.users, return_inverse=True)
        return users, place

    def user_rows(self, enc: Encoded) -> Tensor:
        """(B,) where the batch's users are among the encoded ones."""
        return self._rows(self.users, enc.users)

    def positive_rows(self, enc: Encoded) -> Tensor:
        """(B,) where the positives are among the encoded items."""
        return self._rows(self.positive, enc.items)

    def users_of(self, table: Tensor, enc: Encoded) -> Tensor:
        """(B, d) rows of a (Q, d) table of the encoded users for the batch's users."""
        return self._gather(table, self.users, enc.users)

    def items_of(self, table: Tensor, enc: Encoded) -> tuple[Tensor, Tensor]:
        """(B, d) rows of an (R, d) table of the encoded items for the positives and for the negatives."""
        assert self.negative is not None
        return self._gather(table, self.positive, enc.items), self._gather(table, self.negative, enc.items)

    def distinct_items_of(self, table: Tensor, enc: Encoded) -> Tensor:
        """(R, d) rows of a table of the encoded items for the distinct items of the batch."""
        if enc.items is not None and len(enc.items) == len(self.items):
            return table
        return gather_rows(table, self._rows(self.items, enc.items))

    def margins(self, users: Tensor, items: Tensor, enc: Encoded) -> Tensor:
        """(B,) s(u, i) - s(u, j) of the pairs, from the tables of the encoded users (Q, d) and items (R, d)."""
        return self._once(lambda: margin(self.users_of(users, enc), *self.items_of(items, enc)), users, items)

    def _gather(self, table: Tensor, ids: Tensor, encoded: Tensor | None) -> Tensor:
        return self._once(lambda: at_least_single(gather_rows(table, self._rows(ids, encoded))), table, ids)

    def _rows(self, ids: Tensor, encoded: Tensor | None) -> Tensor:
        return ids if encoded is None else self._once(lambda: torch.searchsorted(encoded, ids), encoded, ids)

    def _once(self, make: Callable[[], Tensor], *of: Tensor) -> Tensor:
        """What several losses need of the same tensors is made once: gathering, and scattering its gradient, is much of a step."""
        key = tuple(map(id, of))
        if key not in self._known:
            self._known[key] = (make(), *of)  # holding the tensors keeps their ids
        return self._known[key][0]


@dataclass(frozen=True)
class StepLoss:
    """Losses of one step.

    Attributes:
        parts: named scalars whose sum is minimised.
        logs: named scalars to look at (KL in nats, ...), detached.
    """

    parts: Mapping[str, Tensor]
    logs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.parts.values())).sum()


class EncodingStage(nn.Module):
    """How features become z. `encode` gets an encoder's features and returns z and its mean, (R, d) each, and the rate
    (R,) in nats or None (see `Encoded`)."""

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError

    def forward(
        self, encoders: Mapping[str, nn.Module], features: Mapping[str, Tensor], items: Tensor | None
    ) -> Encoded:
        z: dict[str, Tensor] = {}
        mean: dict[str, Tensor] = {}
        rate: dict[str, Tensor] = {}
        for m, encoder in encoders.items():
            z[m], mean[m], nats = self.encode(m, encoder, features[m])
            if nats is not None:
                rate[m] = nats
        return Encoded(z, mean, rate or None, items)


class Deterministic(EncodingStage):
    """z is the encoder's output."""

    def encode(
        self, modality: str, encoder: Callable[[Tensor], Tensor], features: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        z = encoder(features)
        return z, z, None
