"""A content score beside the backbone's: what the user's other items say about an item, read out late.

    s'(u, i) = s(u, i) + w sum_m <p_u^m, zhat_i^m>,    p_u^m = nrm( sum over the user's training items j of zhat_j^m )

w is chosen on the validation split out of a short ladder, within the evaluation's own pass; 0 is in the ladder. Where the backbone's scores are
inner products, so are these: [u ; w p_u^1 ; ...] and [i ; zhat_i^1 ; ...]. New items have a score by their features, new users one by
their items, whatever the backbone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from mmrec_mrdib.data import corrupt
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.models.base import Embeddings
from mmrec_mrdib.mrdib.history import Histories, profiles
from mmrec_mrdib.plugins.base import Plugin, PluginSettings
from mmrec_mrdib.schema import Control

_SCALE_USERS = 512  # of the split, whose scores tell the scale of the ladder


class ChannelSettings(PluginSettings):
    readout: Literal["late", "none"]
    """late: the content score is added to the backbone's; none: scores are the backbone's."""
    readout_ladder: tuple[Annotated[float, Field(ge=0)], ...]
    """Weights w to choose from on validation, in units of (spread of the backbone's scores) / (spread of the content scores)."""
    content_control: Control | None = None
    """Take the information out of the features that the content score is made of, and keep their form; the backbone's stay."""
    split_seed: int
    """Seed of that control."""
    stage_epochs: int = Field(ge=1, default=1)
    """staged: upper bound of the plug-in's own epochs."""
    stage_patience: int = Field(ge=1, default=1)
    """staged: evaluations in a row without a better valid metric that end them."""
    stage_batch_size: int = Field(ge=1, default=2048)
    """staged: pairs a step of the plug-in's own epochs."""
    stage_learning_rate: float = Field(gt=0, default=0.01)
    """staged: step size of the plug-in's own parameters."""

    @field_validator("readout_ladder")
    @classmethod
    def _sorted(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] != 0:
            raise ValueError("expected ascending weights that begin with 0, as in [0, 0.2, 0.4]")
        return value


class Channel(Plugin):
    """A plug-in with a readout. Subclasses write `content`.

    Buffers: `weight`, w in the units of the scores (0 until a validation has chosen it); `step`, its place in the ladder, -1 before.
    """

    settings_class: ClassVar[type[ChannelSettings]] = ChannelSettings
    weight: Tensor
    step: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.histories = Histories(self.interactions(dataset))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("step", torch.tensor(-1))
        self._content: tuple[dict[str, Tensor], Tensor] | None = None
        if (kind := self.settings.content_control) is not None:
            for m in self.modalities:
                table = self.features(m).numpy().copy()
                corrupt.control(table, kind, corrupt.generator(self.settings.split_seed, "content", m))
                self.register_buffer(f"controlled_{m}", torch.from_numpy(table), persistent=False)

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        own = {"readout"} if cls.settings_class.from_config(config).readout == "late" else set()
        return super().claims(config) | own

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (R, d_m) what the content score of items with these features is made of, before it is brought to length 1."""
        raise NotImplementedError

    def content_features(self) -> dict[str, Tensor]:
        """Modality -> (I, D_m) features that the content score is made of, row 0 zero; under `content_control`, controlled."""
        if self.settings.content_control is None:
            return {m: self.features(m) for m in self.modalities}
        return {m: getattr(self, f"controlled_{m}") for m in self.modalities}

    def unit_rows(self, features: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Modality -> (R, d_m) zhat of items with the given features, or of the whole catalogue, whose padding row is 0."""
        if features is not None:
            return {m: F.normalize(z) for m, z in self.content(features).items()}
        rows = {m: F.normalize(z) for m, z in self.content(self.content_features()).items()}
        return {m: torch.cat([torch.zeros_like(z[:1]), z[1:]]) for m, z in rows.items()}

    @torch.no_grad()
    def catalogue(self) -> tuple[dict[str, Tensor], Tensor]:
        """Modality -> (I, d_m) zhat of all items, and (I, sum d_m) the same side by side; kept for one evaluation."""
        if self._content is None or self.training:
            unit = self.unit_rows()
            self._content = (unit, torch.cat(list(unit.values()), 1))
        return self._content

    def profiles(self, users: Tensor, histories: Histories | None = None) -> Tensor:
        """(B, sum d_m) [p_u^1 ; ...] of users (B,), of these histories or of the training's."""
        unit, _ = self.catalogue()
        return torch.cat([profiles(histories or self.histories, z, users) for z in unit.values()], 1)

    @property
    def reads_content(self) -> bool:
        """Whether the content score counts at present."""
        return self.settings.readout == "late" and float(self.weight) > 0

    # Scores.

    def full_sort_predict(self, interaction: Any) -> Tensor:
        users = interaction[self.USER_ID]
        if self.reads_content and self.host_embeddings() is not None:
            emb = self.evaluation_embeddings()
            return emb.users[users] @ emb.items.T
        scores = self.host_scores(users)
        if self.reads_content:
            items = self.catalogue()[1]  # scores of Pop and of others that count are in float64
            scores = torch.addmm(scores.to(items.dtype), self.profiles(users) * self.weight, items.T)
        return scores

    def predict(self, interaction: Any) -> Tensor:
        scores: Tensor = self.backbone.predict(interaction)
        if self.reads_content:
            users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]
            scores = scores + self.weight * (self.profiles(users) * self.catalogue()[1][items]).sum(-1)
        return scores

    def evaluation_embeddings(self) -> Embeddings:
        """The backbone's embeddings with the content's beside them; views are zhat and the histories' where the readout is on."""
        if self._evaluation is None or self.training:
            emb = super().evaluation_embeddings()
            if self.reads_content:
                unit, items = self.catalogue()
                everybody = torch.arange(self.n_users, device=items.device)
                of_users = self.profiles(everybody)
                views = dict(
                    zip(
                        unit,
                        zip(of_users.split([z.shape[1] for z in unit.values()], 1), unit.values(), strict=True),
                        strict=True,
                    )
                )
                emb = dataclasses.replace(
                    emb,
                    users=torch.cat([emb.users, self.weight * of_users], 1),
                    items=torch.cat([emb.items, items], 1),
                    views=views,
                )
            self._evaluation = emb
        return self._evaluation

    def new_scorer(self, features: Mapping[str, Tensor], items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The backbone's score, where it has one for such items, and w times the content score; the content score alone where it has none.

        Raises:
            ConfigError: the backbone has none, and there is no readout.
        """
        of_host: Callable[[Tensor], Tensor] | None = None
        try:
            of_host = super().new_scorer(features, items)
        except ConfigError:
            if self.settings.readout == "none":
                raise
        if of_host is not None and not self.reads_content:
            return of_host
        if items is not None:
            features = {m: gather_rows(x, items) for m, x in self.content_features().items()}
        rows = torch.cat(list(self.unit_rows(features).values()), 1)

        def scores(users: Tensor) -> Tensor:
            beside = self.profiles(users) @ rows.T
            return beside if of_host is None else of_host(users) + self.weight * beside

        return scores

    def drop_evaluation_cache(self) -> None:
        super().drop_evaluation_cache()
        self._content = None

    # The ladder.

    def rungs(self) -> list[int]:
        """Places in the ladder that the next validation compares: all of them at first, then the chosen one and its neighbours."""
        if self.settings.readout == "none":
            return []
        n, at = len(self.settings.readout_ladder), int(self.step)
        return list(range(n)) if at < 0 else list(range(max(at - 1, 0), min(at + 2, n)))

    @torch.no_grad()
    def scale(self, users: Sequence[Tensor]) -> float:
        """One unit of the ladder: the spread of the backbone's scores over the items by that of the content scores, each the mean over some
        users of the standard deviation."""
        some = torch.cat(list(users))
        some = some[:: max(1, len(some) // _SCALE_USERS)]
        host = self.host_scores(some)[:, 1:].std(1).mean()
        content = (self.profiles(some) @ self.catalogue()[1][1:].T).std(1).mean()
        return float(host / content) if content > 0 else 0.0

    def readout(self) -> dict[str, float] | None:
        """The chosen rung of the ladder, 'rung', and the weight in the scores' units, 'weight'; None without a readout."""
        if self.settings.readout == "none" or int(self.step) < 0:
            return None
        return {"rung": self.settings.readout_ladder[int(self.step)], "weight": float(self.weight)}

    def choose(self, rung: int, unit: float) -> None:
        """Take w from the ladder, a unit being `scale`'s."""
        self.step.fill_(rung)
        self.weight.fill_(self.settings.readout_ladder[rung] * unit)
        self._evaluation = None


@torch.no_grad()
def explained(model: Channel, user: int, item: int) -> dict[str, Any]:
    """Where a score comes from: the backbone's part, each modality's, and what each item of the user's history adds. Exact: the readout is a
    sum, <p_u, zhat_i> = sum_j <zhat_j, zhat_i> / |sum_j zhat_j|.

    Returns:
        'score', 'backbone', 'modalities' (name -> part), 'history' ((item, part) pairs, largest first; their parts sum to the
        modalities').
    """
    users = torch.tensor([user], device=model.weight.device)
    unit, _ = model.catalogue()
    host = float(model.host_scores(users)[0, item])
    _, mine = model.histories.entries(users)
    parts, by_item = {}, torch.zeros(len(mine), device=mine.device)
    for m, z in unit.items():
        rows = z[mine]
        length = rows.sum(0).norm().clamp_min(torch.finfo(z.dtype).tiny)
        each = model.weight * (rows @ z[item]) / length
        parts[m] = float(each.sum())
        by_item += each
    order = torch.argsort(by_item, descending=True)
    history = [(int(mine[n]), float(by_item[n])) for n in order]
    return {"score": host + sum(parts.values()), "backbone": host, "modalities": parts, "history": history}
