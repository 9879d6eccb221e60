"""SMORE: spectrum-based modality representation fusion (Ong & Khong, WSDM 2025)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import Edges, SparseMatrix, full_precision, largest, nearest
from mmrec_mrdib.models.base import Encoded
from mmrec_mrdib.models.shared import GatedSettings, GatedViews

FUSION = "*"  # the view of all modalities at once, beside theirs


class SMORESettings(GatedSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/SMORE.yaml")

    modality_knn_k: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Neighbours in the graphs of some modalities, where they are not knn_k."""
    dropout: float = Field(ge=0, lt=1)
    """Share of the preference gates' entries that are left out in training."""


class SMORE(GatedViews):
    """Views of ids gated by filtered spectra of the modalities, one a modality and one of their product, over item-item graphs.

    z^m = W_m x^m + b_m and its spectrum s^m = rfft(z^m) (orthonormal). What gates: irfft(s^m * w^m) for the view of m, irfft(prod_m s^m * w^*)
    for the fused view, w complex filters. Views c^v = [R q^v ; q^v], q^v = G_v^n_item_layers Purifier(E_i, .), G_m = L(kNN_k(X^m)) valued by
    cosines, G_* their element-wise largest. content = LightGCN([E_u ; E_i]);
    side = (sum_m gate_m(content) * softmax_d(a_m(c^*)) * c^m + gate_*(content) * c^*) / (M + 1), gate = sigmoid(W . + b) with dropout, a_m
    W tanh(W' . + b), its softmax over the d coordinates; s(u, i) = <all_u, all_i>, all = content + side.
    Loss: MGCN's, BPR + lambda / 2 (|u|^2 + |i|^2 + |j|^2) / B + c (InfoNCE(side_i, content_i) + InfoNCE(side_u, content_u)). M >= 1: with
    one modality two filters of it. Views: R q^m and q^m.

    | reference | ours |
    |---|---|
    | U (user_embedding.weight), I (item_id_embedding.weight) | users, items |
    | F_m (m_embedding.weight) | features_m, with trainable_features |
    | T_m (m_trs) | encoders.m |
    | omega_v, omega_t, omega_f, (1, d/2 + 1) complex or (1, d/2 + 1, 2) real | filters.m, filters.*, (d/2 + 1, 2): real and imaginary |
    | g_v, g_t, g_f | purifiers.m.gate, purifiers.*.gate |
    | a_v, a_t (two linear maps) | queries.m.0, queries.m.2 |
    | b_v, b_t, b_f | preferences.m, preferences.* |

    Deviations: raw features are frozen (`trainable_features` for public code's way). Negative cosines of the graphs count as 0.
    """

    settings_class: ClassVar[type[GatedSettings]] = SMORESettings
    settings: SMORESettings

    def graphs(self, dataset: Any) -> tuple[SparseMatrix, SparseMatrix, dict[str, SparseMatrix]]:
        block = self.interactions(dataset).normalised("both")
        of_modalities = {m: self.knn_graph(m) for m in self.modalities}
        graphs = of_modalities | {FUSION: largest(list(of_modalities.values()))}
        return block.both_ways().matrix(), block.matrix(), {v: g.matrix() for v, g in graphs.items()}

    def knn_graph(self, modality: str) -> Edges:
        given = self.settings.modality_knn_k
        if not set(given) <= set(self.modalities):
            raise ConfigError(
                f"--modality_knn_k={given}: expected names of modalities in use: {', '.join(self.modalities)}"
            )
        k = given.get(modality, self.settings.knn_k)
        return nearest(self.known_features(modality), k, True, self.settings.knn_method).normalised("rows")

    def build_fusion(self, d: int) -> None:
        views = [*self.modalities, FUSION]
        self.filters = nn.ParameterDict({v: nn.Parameter(torch.randn(d // 2 + 1, 2)) for v in views})
        self.queries = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d, bias=False)) for m in self.modalities}
        )
        self.preferences = nn.ModuleDict({v: nn.Linear(d, d) for v in views})

    def sources(self, enc: Encoded) -> Mapping[str, Tensor]:
        d = self.settings.embedding_size
        with full_precision(self.items):  # Fourier transforms have no half-precision form
            spectra = {m: torch.fft.rfft(z.float(), norm="ortho") for m, z in enc.z.items()}
            spectra[FUSION] = functools.reduce(torch.mul, spectra.values())
            filters = {v: torch.view_as_complex(self.filters[v]) for v in spectra}
            return {v: torch.fft.irfft(s * filters[v], n=d, norm="ortho") for v, s in spectra.items()}

    def side(self, content: Tensor, views: dict[str, Tensor]) -> Tensor:
        fused = views[FUSION]
        total = self._liked(content, FUSION) * fused
        for m in self.modalities:
            total = total + self._liked(content, m) * torch.softmax(self.queries[m](fused), 1) * views[m]
        return total / len(views)

    def _liked(self, content: Tensor, view: str) -> Tensor:
        gate = torch.sigmoid(self.preferences[view](content))
        return F.dropout(gate, self.settings.dropout, self.training) if self.settings.dropout else gate
