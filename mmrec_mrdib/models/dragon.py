"""DRAGON: dyadic relations with homogeneous graphs for multimodal recommendation (Zhou et al., ECAI 2023)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from mmrec_mrdib.models.dualgnn import UserGraphModel, UserGraphSettings
from mmrec_mrdib.models.freedom import ItemGraphSettings, mixed_item_graph


class DRAGONSettings(UserGraphSettings, ItemGraphSettings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/DRAGON.yaml")


class DRAGON(UserGraphModel):
    """DualGNN's propagation and user-user graph, the modalities side by side instead of summed, and FREEDOM's frozen item-item graph.

    rep^m, w and the user graph as DualGNN's; rep_u = ||_m w_um rep_u^m, plus the neighbours' weighted mean; rep_i = ||_m rep_i^m, h_i =
    rows of S^n_item_layers rep_i, S = sum_m w_m L(kNN_k(X^m)), binary; s(u, i) = <rep_u, rep_i + h_i>, width M d.
    Loss: as DualGNN's, log2 and all. M >= 1. Views: rep_u^m and rep_i^m. Under MRdIB, as DualGNN's, of a sample of z^m only the direction goes on.

    | reference | here |
    |---|---|
    | v_gcn.preference, t_gcn.preference (or v_preference, t_preference) | preferences.image, preferences.text (rows by id; 0 is padding) |
    | v_gcn.MLP, t_gcn.MLP (.weight, .bias) | encoders.image.0, encoders.text.0 |
    | v_gcn.MLP_1, t_gcn.MLP_1 (.weight, .bias) | encoders.image.2, encoders.text.2 |
    | weight_u (U, M, 1) | fusion (U, M); columns in the order of `modalities` |
    | the user graph of an epoch; the item graph | user_graph, item_graph: each a SparseMatrix |
    | mm_image_weight, n_mm_layers, knn_k, 2 propagations | modality_weights, n_item_layers, knn_k, n_layers |
    | weight_i, MLP_v, MLP_t, image_trs, text_trs, MLP_user, trainable features | none: they take part in nothing |

    Deviations: as DualGNN's of the user graph and of the final table. The item-item graph's shares are FREEDOM's: without
    `modality_weights`, text gets 0.9 and the others share 0.1.
    """

    settings_class = DRAGONSettings

    def build(self, settings: DRAGONSettings) -> None:
        self.item_graph = mixed_item_graph(self, settings)
        self.n_item_layers = settings.n_item_layers

    def fuse(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        rep = h = items.flatten(1)
        for _ in range(self.n_item_layers):
            h = self.item_graph(h)
        return (self.fusion[:, :, None] * users).flatten(1), rep + h
