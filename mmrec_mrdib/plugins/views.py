"""How users and items look through one modality alone: the backbone's views, or a table of users where it has none."""

from __future__ import annotations

from typing import Any

import torch
from recbole.utils import InputType
from torch import Tensor, nn

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import gather_rows
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded


class Views(nn.ParameterDict):
    """p_u^m and q_i^m: of the backbone (`Embeddings.views`); for a modality without, p_u^m is a row of a table here, (U, d_m), and q_i^m is
    z_i^m.

    Args:
        backbone: the plain model whose views are taken; none: nobody asks for them.
    """

    def __init__(self, backbone: Any | None) -> None:
        super().__init__()
        if backbone is None:
            return
        backbone.eval()
        with torch.no_grad():
            offered, z = backbone.evaluation_embeddings().views, backbone.encode_items().z
        backbone.train()
        for m in z.keys() - offered.keys():
            self[m] = nn.init.xavier_uniform_(nn.Parameter(torch.empty(backbone.n_users, z[m].shape[1])))

    def pairs(self, enc: Encoded, emb: Embeddings) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality -> ((Q, d_m), (R, d_m)) of the encoded users and items."""
        own = {
            m: (table if enc.users is None else gather_rows(table, enc.users), enc.z[m]) for m, table in self.items()
        }
        return {**own, **emb.views}

    def margins(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """Modality -> (B,) <p_u^m, q_i^m> - <p_u^m, q_j^m> of the batch's pairs."""
        return {m: batch.margins(*pair, enc) for m, pair in self.pairs(enc, emb).items()}


def check_negatives(plugin: Any, what: str, instead: str) -> None:
    """Before training: whether there are sampled negatives to compare with.

    Raises:
        ConfigError: the backbone is trained without.
    """
    if plugin.input_type != InputType.PAIRWISE:
        backbone = plugin.settings.backbone
        raise ConfigError(f"{what}: compares with sampled negatives, and {backbone} is trained without; {instead}")
