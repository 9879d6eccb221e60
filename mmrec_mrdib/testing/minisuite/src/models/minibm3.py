"""No projection of features and no negatives: ids alone, drawn together."""

import torch
import torch.nn.functional as F
from common.abstract_recommender import GeneralRecommender
from torch import nn


class MiniBM3(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        d = config["embedding_size"]
        self.user_embedding, self.item_id_embedding = nn.Embedding(self.n_users, d), nn.Embedding(self.n_items, d)
        self.predictor = nn.Linear(d, d)
        self.cl_weight = config["cl_weight"]

    def calculate_loss(self, interaction):
        users, items = interaction
        u, i = self.user_embedding(users), self.item_id_embedding(items)
        spread = (torch.pdist(F.normalize(self.item_id_embedding.weight)).pow(2) * -2).exp().mean().log()
        together = 1 - F.cosine_similarity(self.predictor(u), F.dropout(i.detach(), 0.3)).mean()
        back = 1 - F.cosine_similarity(self.predictor(i), F.dropout(u.detach(), 0.3)).mean()
        return (together + back + self.cl_weight * spread).reshape(1)

    def full_sort_predict(self, interaction):
        u = self.predictor(self.user_embedding(interaction[0]))
        return u @ self.predictor(self.item_id_embedding.weight).T
