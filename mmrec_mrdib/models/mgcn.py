"""MGCN: multi-view graph convolutional network (Yu et al., MM 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mmrec_mrdib.models.shared import Fuser, GatedSettings, GatedViews


class MGCNSettings(GatedSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/MGCN.yaml")


class MGCN(GatedViews):
    """A behaviour view over the user-item graph, a view a modality over its item-item graph, fused by behaviour.

    z^m = W_m x^m + b_m; q^m = L(kNN_k(X^m))^n_item_layers Purifier(E_i, z^m), the graph valued by cosines; c^m = [R q^m ; q^m];
    content = LightGCN([E_u ; E_i]); common = Fuser(c^1 ... c^M); separate^m = sigmoid(W_p^m content + b) * (c^m - common);
    side = (sum_m separate^m + common) / (M + 1); s(u, i) = <all_u, all_i>, all = content + side.
    Loss: BPR + lambda / 2 (|u|^2 + |i|^2 + |j|^2) / B + c (InfoNCE(side_i, content_i) + InfoNCE(side_u, content_u)) over the
    positives of the batch. M >= 1: with one modality, common is c^1 and the fuser and the preference gate, which could not
    matter, are left out. Views: R q^m and q^m, after the item-item graph.

    Deviations: raw features are frozen (`trainable_features` for public code's way). Negative cosines of the graphs count as 0.
    """

    settings_class: ClassVar[type[GatedSettings]] = MGCNSettings

    def make_encoder(self, dims: int, d: int) -> nn.Module:
        encoder = nn.Linear(dims, d)
        nn.init.xavier_uniform_(encoder.weight)
        return encoder

    def build_fusion(self, d: int) -> None:
        several = len(self.modalities) > 1
        self.fuser = Fuser(d) if several else None
        self.preferences = nn.ModuleDict({m: nn.Linear(d, d) for m in self.modalities if several})

    def side(self, content: Tensor, views: dict[str, Tensor]) -> Tensor:
        """(U + I, d) what the modalities add to the behaviour view."""
        if self.fuser is None:
            return next(iter(views.values())) / 2
        common = self.fuser(list(views.values()))
        side = common
        for m, c in views.items():
            side = side + torch.sigmoid(self.preferences[m](content)) * (c - common)
        return side / (len(views) + 1)
