"""MRdIB's terms of the loss, over representations that anybody has made: a model of the contract (`plugin.py`) or any other module
(`hosts/attach.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_mrdib import registry
from mmrec_mrdib.encoded import Batch, Encoded
from mmrec_mrdib.errors import ContractError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.mrdib.encoder import Gaussian
from mmrec_mrdib.mrdib.history import Histories, leave_one_out
from mmrec_mrdib.mrdib.objectives.contrast import contrast
from mmrec_mrdib.mrdib.objectives.rate import rate
from mmrec_mrdib.mrdib.objectives.redundant import Redundancy
from mmrec_mrdib.mrdib.objectives.synergistic import synergistic
from mmrec_mrdib.mrdib.objectives.unique import unique
from mmrec_mrdib.mrdib.settings import MRdIBSettings
from mmrec_mrdib.mrdib.weighting import TERMS, AutoWeights


class Terms(nn.Module):
    """The objectives that settings ask for, their estimators and their weights. Whoever inherits has `settings` and `histories`."""

    settings: MRdIBSettings
    histories: Histories
    redundancy: Redundancy
    objectives: nn.ModuleDict
    weights: dict[str, float]
    auto: AutoWeights | None

    def gaussian(
        self,
        widths: Mapping[str, int],
        scales: Mapping[str, float] | None,
        stream: Callable[[torch.device], torch.Generator] | None = None,
    ) -> Gaussian:
        """The stage, for representations of these widths.

        Args:
            scales: modality -> mean square of mu, which the variances are relative to; None: they are absolute.
            stream: see `Gaussian`.
        """
        s = self.settings
        return Gaussian(widths, s.init_log_var, s.min_log_var, s.max_log_var, s.sigma, s.prior_std, scales, stream)

    def build_terms(self, widths: Mapping[str, int]) -> None:
        """Estimators, further objectives and weights, for representations of these widths."""
        settings = self.settings
        estimator = registry.component("estimators", settings.mi_estimator)
        self.redundancy = Redundancy(
            tuple(widths) if settings.redundant_weight else (),
            lambda a, b: estimator.create((widths[a], widths[b]), settings.mi_hidden_size, settings.mi_ema_rate),
        )
        self.objectives = nn.ModuleDict(
            {name: registry.component("objectives", name)(widths) for name, w in settings.objectives.items() if w}
        )
        weights = {t: getattr(settings, f"{t}_weight") for t in TERMS}
        if not self.redundancy.pairs:
            weights["redundant"] = 0.0
        self.weights = {t: weight for t, weight in weights.items() if weight}
        self.auto = None
        if settings.weighting == "auto":
            shares = {"redundant": settings.redundant_share, "unique": settings.unique_share}
            self.auto = AutoWeights(
                self.weights, settings.rate_target, shares, settings.weight_bounds, settings.balance_interval
            )

    def add_terms(
        self,
        parts: dict[str, Tensor],
        enc: Encoded,
        batch: Batch,
        views: Mapping[str, tuple[Tensor, Tensor]] | None,
        fused: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """The plug-in's terms beside the host's.

        Args:
            parts: name -> loss of the host, filled with ours.
            views: modality -> ((Q, d), (R, d)), users and items as the host sees them through it; None: users are their histories.
            fused: gives (B,) s(u, i) - s(u, j) of the host's scores, where a synergistic term by such views needs it.

        Returns:
            What to look at: rate and unique by modality, mi by pair, in nats; automatic alphas.
        """
        host = tuple(parts)
        logs: dict[str, Tensor] = {}
        weights: Mapping[str, Any] = self.weights if self.auto is None else self.auto.values()
        self._rate_and_redundancy(enc, batch, weights, parts, logs)
        if views is None:
            self._by_history(enc, batch, weights, parts, logs)
        else:
            self._by_backbone(views, fused, enc, batch, weights, parts, logs)
        for name, objective in self.objectives.items():
            parts[f"objective/{name}"] = self.settings.objectives[name] * objective(enc, batch)
        if self.auto is not None:
            logs |= {f"alpha/{t}": value for t, value in weights.items()}
            if self.training and self.auto.due():
                terms = {t: parts[t] / weights[t] for t in ("redundant", "unique") if t in weights}
                self.auto.balance(torch.stack([parts[p] for p in host]).sum(), terms, list(enc.z.values()))
        return logs

    def begin_epoch(self) -> None:
        if self.auto is not None:
            self.auto.begin_epoch()

    def items_to_read(self, batch: Batch) -> Tensor | None:
        """(R,) sorted ids of what a step reads: the batch's items and its users' histories; None where that is nearly all there is."""
        _, theirs = self.histories.entries(batch.users_once[0])
        read = batch.present.clone()
        read[theirs] = True
        items = read.nonzero().flatten()
        return None if 4 * len(items) > 3 * batch.n_items else items

    def _rate_and_redundancy(
        self, enc: Encoded, batch: Batch, weights: Mapping[str, Any], parts: dict[str, Tensor], logs: dict[str, Tensor]
    ) -> None:
        # Everything is over the distinct items of the batch.
        if "rate" in weights:
            if enc.rate is None:
                raise ContractError("the encoding stage gave no variance; is the model in evaluation mode?")
            if enc.items is None:
                rates = {m: rate(kl, batch.present) for m, kl in enc.rate.items()}
            else:
                rates = {m: rate(batch.distinct_items_of(kl, enc)) for m, kl in enc.rate.items()}
            total = torch.stack(list(rates.values())).sum()
            if self.settings.rate_reduce == "mean":
                per_dim = [value / enc.z[m].shape[1] for m, value in rates.items()]
                parts["rate"] = weights["rate"] * torch.stack(per_dim).sum()
            else:
                parts["rate"] = weights["rate"] * total
            logs |= {f"rate/{m}": value.detach() for m, value in rates.items()}
            if self.auto is not None and self.training:
                self.auto.hold_rate(total.detach() / sum(z.shape[1] for z in enc.z.values()))
        if "redundant" in weights:
            distinct = {m: batch.distinct_items_of(z, enc) for m, z in enc.z.items()}
            parts["redundant"], nats = self.redundancy(distinct, weights["redundant"])
            logs |= {f"mi/{pair}": value for pair, value in nats.items()}

    def _by_backbone(
        self,
        views: Mapping[str, tuple[Tensor, Tensor]],
        fused: Callable[[], Tensor],
        enc: Encoded,
        batch: Batch,
        weights: Mapping[str, Any],
        parts: dict[str, Tensor],
        logs: dict[str, Tensor],
    ) -> None:
        """Unique and synergistic by the backbone's views (the paper)."""
        alpha_4 = self.settings.synergy_weight
        if "unique" not in weights and not alpha_4:
            return
        margins = {m: batch.margins(*pair, enc) for m, pair in views.items()}
        if "unique" in weights:
            uniques = {m: unique(values) for m, values in margins.items()}
            parts["unique"] = weights["unique"] * torch.stack(list(uniques.values())).sum()
            logs |= {f"unique/{m}": value.detach() for m, value in uniques.items()}
        if alpha_4:
            parts["synergistic"] = alpha_4 * synergistic(fused(), margins.values())

    def _by_history(
        self, enc: Encoded, batch: Batch, weights: Mapping[str, Any], parts: dict[str, Tensor], logs: dict[str, Tensor]
    ) -> None:
        """Unique and synergistic by what the user's other items say (ours)."""
        settings = self.settings
        alpha_4 = settings.synergy_weight
        if "unique" not in weights and not alpha_4:
            return
        lengths = self.histories.lengths(batch.users)
        # The pairs of very active users are as many as those of all the others: they count as `history_cap` pairs.
        counts = (settings.history_cap / lengths.clamp_min(1)).clamp(max=1.0) * (lengths > 1)
        widths = [z.shape[1] for z in enc.z.values()]
        unit = torch.cat([F.normalize(z) for z in enc.z.values()], 1)
        place: Tensor | None = None
        if enc.items is not None:
            place = torch.zeros(batch.n_items, dtype=torch.long, device=unit.device)
            place[enc.items] = torch.arange(len(enc.items), device=unit.device)
        views = leave_one_out(self.histories, unit, batch.users, batch.positive, place, widths, batch.users_once)

        def rows(items: Tensor) -> Tensor:
            return gather_rows(unit, items if place is None else place[items])

        t = settings.contrast_temperature
        if settings.unique_loss == "softmax":
            candidates, blocked = self._candidates(batch)
            uniques, together = contrast(
                views, rows(batch.positive), rows(candidates), blocked, counts, t, widths, "unique" in weights
            )
        else:
            assert batch.negative is not None
            products = views * (rows(batch.positive) - rows(batch.negative))
            margins = [x.sum(1) for x in products.split(widths, 1)]
            share = counts * (len(counts) / counts.sum().clamp_min(1e-12))
            uniques = torch.stack([unique(values / t, share) for values in margins])
            together = unique(torch.stack(margins).sum(0) / t, share)
        if "unique" in weights:
            parts["unique"] = weights["unique"] * uniques.sum()
            logs |= {f"unique/{m}": value for m, value in zip(enc.z, uniques.detach().unbind(), strict=True)}
        if alpha_4:
            parts["synergistic"] = alpha_4 * together

    def _candidates(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The distinct positive items of the batch (C,), and (B, C) bool, which of them each pair's user has: these, the pair's own among
        them, are no negatives."""
        items = torch.unique(batch.positive)
        # Of the other items one column, which is dropped: to leave them out would need their number on the host.
        column = torch.full((batch.n_items,), len(items), device=items.device)
        column[items] = torch.arange(len(items), device=items.device)
        users, place = batch.users_once
        of, theirs = self.histories.entries(users)
        has = torch.zeros(len(users), len(items) + 1, dtype=torch.bool, device=items.device)
        has[of, column[theirs]] = True
        return items, gather_rows(has[:, :-1], place)
