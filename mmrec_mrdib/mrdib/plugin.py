"""MRdIB, the plug-in (arXiv 2509.20225), and the form of it that carries the features' information into the ranking.

`--preset paper` is the method as published: the backbone's own encoders become Gaussian, and objectives are added to its loss. The default is
ours: the objectives ask that a user's *other items* predict, through encoders of the plug-in's own, and the ranking reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmrec_mrdib.encoded import Batch, Embeddings, Encoded, StepLoss
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.mrdib.encoder import Linear
from mmrec_mrdib.mrdib.settings import MRdIBSettings as MRdIBSettings
from mmrec_mrdib.mrdib.terms import Terms
from mmrec_mrdib.plugins.channel import Channel
from mmrec_mrdib.plugins.views import Views, check_negatives


class MRdIB(Channel, Terms):
    """L = L_rec + alpha_1 L_KL + alpha_2 L_R + alpha_3 L_U + alpha_4 L_S around `backbone`; L_rec is all of the backbone's own loss.

    z^m is a sample of N(mu^m, diag sigma^2) while training, and mu^m in evaluation; mu^m is a linear map of the features (`encoders: own`),
    or the backbone's projection (`backbone`).

    | term | formula, `user_view: history` | `user_view: backbone` (the paper) | over |
    |---|---|---|---|
    | rate | sum_m E_i KL(q(z^m given x_i^m) to N(0, s^2 I)) | the same | distinct items of the batch |
    | redundant | mean over pairs of I(z^m; z^m'), by `mi_estimator` | the same | distinct items of the batch |
    | unique | sum_m -ln softmax of <p_u^m(-i), zhat_i^m> / t | sum_m BPR of <p_u^m, q_i^m> | pairs of the batch |
    | synergistic | -ln softmax of sum_m <p_u^m(-i), zhat_i^m> / t | BPR of s(u, i), weighted by how wrong every modality alone is | pairs |

    history (ours): p_u^m(-i) is the direction of the sum of zhat over the user's other training items (`mrdib/history.py`); no negatives are
    items that the user has; pairs of users with one item have no view and do not count.
    backbone (the paper): p_u^m and q_i^m are the backbone's own views of users and items through a modality; where it has none, p_u^m
    is a table owned by the plug-in and q_i^m is z_i^m.

    With `readout: late` scores read the representations, s' = s + w sum_m <p_u^m, zhat_i^m> (`plugins/channel.py`); with `none` scores are
    the backbone's. With `training: staged` the backbone is trained first, as it is without the plug-in, and only the plug-in's own encoders
    learn after that: the gain over the backbone is then all the content's.
    Any number of modalities; with one, L_R is 0. A term whose weight is 0 is not computed. With `weighting: auto` alpha_1 to alpha_3
    set themselves (see AutoWeights).

    Deviations: pairs and sums over M > 2 modalities, alpha_4, the automatic weights, own encoders, history views and the readout are
    ours.
    """

    settings_class = MRdIBSettings
    settings: MRdIBSettings
    without_features = "choose --encoders=own"

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        return cls.settings_class.from_config(config).encoders == "backbone"

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        return super().claims(config) | ({"sampling"} if cls.reads_encoders(config) else set())

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = self.settings
        self._check_negatives(settings)
        self.whole = self.reads_encoders(config) and settings.user_view == "history"  # histories reach beyond a batch
        self.own_encoders: nn.ModuleDict | None = None
        if settings.encoders == "own":
            features = self.content_features()
            self.own_encoders = nn.ModuleDict({m: Linear(x, settings.content_size) for m, x in features.items()})
        with torch.no_grad():
            means = self._means(self.content_features())
        widths = {m: z.shape[1] for m, z in means.items()}
        scales = {m: max(float(z[1:].square().mean()), 1e-12) for m, z in means.items()}
        stage = self.gaussian(widths, scales if settings.sigma_scale == "relative" else None, self.draws.on)
        if self.own_encoders is None:
            self.replace_stage(stage)
        else:
            self.stage = stage
        self.build_terms(widths)
        by_views = settings.user_view == "backbone" and (settings.unique_weight or settings.synergy_weight)
        self.own_views = Views(self.core if by_views else None)

    def _check_negatives(self, settings: MRdIBSettings) -> None:
        by_views = settings.user_view == "backbone" and (settings.unique_weight or settings.synergy_weight)
        option = "user_view=backbone" if by_views else f"unique_loss={settings.unique_loss}"
        if by_views or settings.unique_loss == "bpr":
            check_negatives(
                self, f"--{option}", "choose --user_view=history --unique_loss=softmax, or --training=staged"
            )

    # Representations.

    def _means(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoders = self.core.encoders if self.own_encoders is None else self.own_encoders
        return {m: encoders[m](x) for m, x in features.items()}

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._means(features)

    # The step.

    def terms(self, enc: Encoded | None, emb: Embeddings | None, batch: Batch, host: Mapping[str, Tensor]) -> StepLoss:
        """Logs: rate and unique by modality, mi by pair, in nats; automatic alphas."""
        history = self.settings.user_view == "history"
        if self.own_encoders is not None:
            items = self.items_to_read(batch) if history else None
            features = self.content_features()
            if items is not None:
                features = {m: gather_rows(x, items) for m, x in features.items()}
            enc = self.stage(self.own_encoders, features, items)
        assert enc is not None
        views = None
        if not history:
            assert emb is not None
            views = self.own_views.pairs(enc, emb)

        def fused() -> Tensor:
            assert emb is not None and enc is not None
            return batch.margins(emb.users, emb.items, enc)

        parts = dict(host)
        logs = self.add_terms(parts, enc, batch, views, fused)
        return StepLoss({name: part for name, part in parts.items() if name not in host}, logs)

    def evaluation_embeddings(self) -> Embeddings:
        emb = super().evaluation_embeddings()
        return replace(emb, views=self.own_views.pairs(self.encode_items(), emb)) if len(self.own_views) else emb

    def before_epoch(self, epoch: int) -> None:
        self.begin_epoch()
        super().before_epoch(epoch)

    def mi_parameters(self) -> list[nn.Parameter]:
        return [*super().mi_parameters(), *self.redundancy.parameters()]
