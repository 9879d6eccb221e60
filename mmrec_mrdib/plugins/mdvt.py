"""MDVT, "Model-Agnostic Multimodal-Driven Virtual Triplets" (arXiv 2505.16665)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.graphs import full_precision, gather_rows
from mmrec_mrdib.graphs.neighbours import row_blocks
from mmrec_mrdib.models.base import StepLoss
from mmrec_mrdib.plugins.base import Plugin, PluginSettings

FIRST = 3  # the epoch whose loss `trigger: dynamic` looks at first


class MDVTSettings(PluginSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "plugin/MDVT.yaml", "plugin/MDVT-{preset}.yaml")
    training: Literal["joint"]
    """The backbone's users and items are what it moves."""
    virtual_weight: float = Field(ge=0, le=1)
    """s, the share of the virtual triplets' loss; the backbone's has the rest."""
    virtual_k: int = Field(ge=1)
    """k, virtual positives, and as many negatives, of a user."""
    trigger: Literal["dynamic", "static"]
    """When they begin: as the backbone's loss stops falling, or after a number of epochs."""
    least_decline: float = Field(ge=0)
    """dynamic, h: they begin once an epoch's loss is less than this share of it below the last one's."""
    warm_up: int = Field(ge=0)
    """static, W: the last epoch without them, counted from 0."""
    refresh: Literal["step", "epoch"]
    """How often virtual positives and negatives are found anew."""


class MDVT(Plugin):
    """From the trigger on L = (1 - s) L_rec + s V around `backbone`; before, L_rec.

    V = - mean over all users of log2 sigmoid(mean_{i in T+(u)} s(u, i) - mean_{i in T-(u)} s(u, i)), in bits, as it is published: of equal scores 1.
    T+(u), T-(u): the k items of the whole catalogue with largest and smallest cosine to u, the user's own training items among them; which
    they are gets no gradient, their embeddings and the user's do. u and i are what the backbone's scores are inner products of, in a training step.

    Trigger, looked at before each epoch, and never off again: `dynamic`, after epoch e >= 3, counted from 0, if (L_(e-1) - L_e) / |L_e| < h, L_e the
    sum of the epoch's losses; `static`: after epoch W. RecBole's own Trainer announces no epoch: there, it does not begin.

    Any backbone that learns from pairs and whose scores are inner products, with features or without: nothing of MDVT reads them. Any number of
    modalities. Scores are the backbone's; there are no parameters. Padding is in no mean and in no T. Similarities are made in blocks of users.

    Deviations: all users and items, also for MMGCN (public code: the batch's rows). `hybrid`, the paper's third trigger, is a search by hand with the
    first two. Preset `lazy`: T found once an epoch, for a fraction of the time.
    """

    settings_class = MDVTSettings
    begun: Tensor
    sums: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.find_tables()
        self.register_buffer("begun", torch.tensor(False))
        # Of the losses of the last two epochs.
        self.register_buffer("sums", torch.full((2,), math.nan, dtype=torch.float64))
        self._found: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: module._begin(bool(module.begun)))

    def _begin(self, begun: bool) -> None:
        self.begun.fill_(begun)
        self.whole = begun and self.settings.virtual_weight > 0

    def row_tables(self) -> list[nn.Parameter]:
        return [] if self.settings.virtual_weight else super().row_tables()

    def before_epoch(self, epoch: int) -> None:
        super().before_epoch(epoch)
        settings: MDVTSettings = self.settings
        self._found = None
        last, latest = self.sums.tolist()
        if settings.trigger == "static":
            self._begin(epoch > settings.warm_up)
        elif epoch > FIRST and last - latest < settings.least_decline * abs(latest):
            self._begin(True)
        self.sums.copy_(torch.tensor([latest, 0.0]))

    def step_loss(self, interaction: Any) -> StepLoss:
        """The backbone's losses, and from the trigger on virtual."""
        if not self.whole:
            step = super().step_loss(interaction)
        else:
            s = self.settings.virtual_weight
            parts, _, emb = self.host_step(interaction, self.batch(interaction))
            parts = {name: (1 - s) * part for name, part in parts.items()}
            step = StepLoss(parts | {"virtual": s * self._virtual(emb.users.float(), emb.items.float())})
        if self.training:
            self.sums[1] += step.total.detach()
        return step

    def _virtual(self, users: Tensor, items: Tensor) -> Tensor:
        """V of (U, d) users and (I, d) items."""
        with full_precision(users):
            if self._found is None or self.settings.refresh == "step":
                self._found = extremes(users, items, self.settings.virtual_k)
            liked, disliked = (gather_rows(items, ids.flatten()).unflatten(0, ids.shape) for ids in self._found)
            margins = (users[1:] * (liked.mean(1) - disliked.mean(1))).sum(1)
        return F.softplus(-margins).mean() / math.log(2)


@torch.no_grad()
def extremes(users: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(U - 1, k) ids of the items with largest, and with smallest, cosine to each user but the padding; row n is user n + 1.

    Args:
        users, items: (U, d) and (I, d), row 0 padding.
        k: at most I - 1 are taken.
    """
    unit, users = F.normalize(items[1:]), users[1:]  # a user's own length changes no order
    k = min(k, len(unit))
    found = [
        [torch.topk(cosines, k, dim=1, largest=largest).indices + 1 for largest in (True, False)]
        for cosines in (users[block] @ unit.T for block in row_blocks(len(users), len(unit)))
    ]
    largest, smallest = (torch.cat(ids) for ids in zip(*found, strict=True))
    return largest, smallest
