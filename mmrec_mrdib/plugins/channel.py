"""A content score beside the backbone's: what the user's other items say about an item, read out late.

    s'(u, i) = s(u, i) + w sum_m <p_u^m, zhat_i^m>,    p_u^m = nrm( sum over the user's training items j of zhat_j^m )

w is chosen on the validation split out of a short ladder, within the evaluation's own pass; 0 is in the ladder. Where the backbone's scores are
inner products, so are these: [u ; w p_u^1 ; ...] and [i ; zhat_i^1 ; ...]. New items have a score by their features, new users one by
their items, whatever the backbone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrec_mrdib.data import corrupt
from mmrec_mrdib.encoded import Embeddings
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.mrdib.history import Histories
from mmrec_mrdib.plugins.base import Plugin
from mmrec_mrdib.plugins.readout import Readout
from mmrec_mrdib.plugins.settings import ChannelSettings as ChannelSettings


class Channel(Plugin, Readout):
    """A plug-in with a readout. Subclasses write `content`."""

    settings_class: ClassVar[type[ChannelSettings]] = ChannelSettings

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.build_readout(Histories(self.interactions(dataset)))
        if (kind := self.settings.content_control) is not None:
            for m in self.modalities:
                table = self.features(m).numpy(force=True).copy()  # of a backbone that may be on a GPU already
                corrupt.control(table, kind, corrupt.generator(self.settings.split_seed, "content", m))
                self.register_buffer(f"controlled_{m}", torch.from_numpy(table), persistent=False)

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        own = {"readout"} if cls.settings_class.from_config(config).readout == "late" else set()
        return super().claims(config) | own

    def content_features(self) -> dict[str, Tensor]:
        """Modality -> (I, D_m) features that the content score is made of, row 0 zero; under `content_control`, controlled."""
        if self.settings.content_control is None:
            return {m: self.features(m) for m in self.modalities}
        return {m: getattr(self, f"controlled_{m}") for m in self.modalities}

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

    def choose(self, rung: int, unit: float) -> None:
        super().choose(rung, unit)
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
