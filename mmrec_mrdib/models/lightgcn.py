"""LightGCN, a plain baseline: RecBole's model on our graph (He et al., SIGIR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmrec_mrdib import compat
from mmrec_mrdib.graphs import Edges, SparseMatrix, propagate_mean

compat.activate()

from recbole.model.general_recommender.lightgcn import LightGCN as RecBoleLightGCN


class LightGCN(RecBoleLightGCN):
    """RecBole's LightGCN, loss and all, without features. Its own adjacency code fails on current SciPy, and multiplies in COO.

    Reference embedding_dict.user_emb, .item_emb: user_embedding.weight, item_embedding.weight (rows by id; 0 is padding). The MMRec line's
    regulariser, norms of the batch's rows that are not squared, is `require_pow=false`.
    """

    def get_norm_adj_mat(self) -> SparseMatrix:
        users, items = (
            torch.from_numpy(ids).long() for ids in (self.interaction_matrix.row, self.interaction_matrix.col)
        )
        edges = Edges(users, items, torch.ones(len(users)), (self.n_users, self.n_items))
        return edges.normalised("both").both_ways().matrix()

    def forward(self) -> tuple[Tensor, Tensor]:
        nodes = propagate_mean(self.norm_adj_matrix, self.get_ego_embeddings(), self.n_layers)
        users, items = torch.split(nodes, [self.n_users, self.n_items])
        return users, items
