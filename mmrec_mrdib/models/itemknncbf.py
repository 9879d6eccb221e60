"""ItemKNNCBF, a plain baseline: content neighbours of a user's items (Ferrari Dacrema et al., RecSys 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mmrec_mrdib.errors import DataError
from mmrec_mrdib.general import Neighbours
from mmrec_mrdib.graphs import shrunk_neighbours
from mmrec_mrdib.schema import Settings


class ItemKNNCBFSettings(Settings):
    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "model/ItemKNNCBF.yaml")

    knn_k: int = Field(ge=1)
    """Neighbours that an item has, itself included."""
    shrink: float = Field(ge=0)
    """What is added to the product of two items' norms."""


class ItemKNNCBF(Neighbours):
    """s(u, j) = sum of S_ij over the items i of u; nothing is trained: the model is ready when it is made.

    S_ij = <x_i, x_j> / (|x_i| |x_j| + shrink), x the features of all modalities side by side; of each row i the `knn_k` largest are kept.
    M >= 1. Scale matters: the modality of the larger norms decides the neighbours, and `shrink` is to be seen beside the squares of the
    norms; `feature_norm` says how features are scaled (public code: none).

    There is no z: plug-ins bring encoders of their own.

    Deviations: neighbours are those of the item that the user has, as in public multimodal code; the paper's code keeps the largest of each
    candidate's column. Items without features (rows of zeros) are nobody's neighbours.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = ItemKNNCBFSettings.from_config(config)
        features = getattr(dataset, "features", None)
        if not features:
            raise DataError(
                f"ItemKNNCBF needs item features, but '{config['dataset']}' has none; expected <modality>_feat.npy in its folder"
            )
        joined = torch.cat(list(features.values()), 1)
        self.similarity = shrunk_neighbours(joined, settings.knn_k, settings.shrink).scipy()

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(B, I) scores of all items for each user."""
        return self.scores(interaction[self.USER_ID])
