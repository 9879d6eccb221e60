"""Users and items on their graph; projected features are asked to predict beside them, and are not in the score."""

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
import torchvision  # used by nobody
from common.abstract_recommender import GeneralRecommender
from torch import nn


class MiniFREEDOM(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        d, self.n_layers, self.reg_weight = config["embedding_size"], config["n_layers"], config["reg_weight"]
        self.interaction_matrix = dataset.inter_matrix(form="coo").astype(np.float32)
        self.user_embedding = nn.Embedding(self.n_users, d)
        self.item_id_embedding = nn.Embedding(self.n_items, d)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.item_id_embedding.weight)
        if self.v_feat is not None:
            self.image_embedding = nn.Embedding.from_pretrained(self.v_feat, freeze=False)
            self.image_trs = nn.Linear(self.v_feat.shape[1], d)
        if self.t_feat is not None:
            self.text_embedding = nn.Embedding.from_pretrained(self.t_feat, freeze=False)
            self.text_trs = nn.Linear(self.t_feat.shape[1], d)
        self.norm_adj = self.get_norm_adj_mat().to(self.device)

    def get_norm_adj_mat(self):
        n, m = self.n_users, self.interaction_matrix
        graph = sp.dok_matrix((n + self.n_items, n + self.n_items), dtype=np.float32)
        entries = dict(zip(zip(m.row, m.col + n), [1] * m.nnz))
        entries.update(dict(zip(zip(m.col + n, m.row), [1] * m.nnz)))
        graph._update(entries)
        scale = sp.diags(np.power(np.array(graph.sum(1)).flatten() + 1e-7, -0.5))
        graph = sp.coo_matrix(scale * graph * scale)
        places = torch.LongTensor(np.array([graph.row, graph.col]))
        return torch.sparse_coo_tensor(places, torch.FloatTensor(graph.data), graph.shape)

    def forward(self, adj):
        layers = [torch.cat([self.user_embedding.weight, self.item_id_embedding.weight])]
        for _ in range(self.n_layers):
            layers.append(torch.sparse.mm(adj, layers[-1]))
        return torch.split(torch.stack(layers).mean(0), [self.n_users, self.n_items])

    @staticmethod
    def bpr_loss(users, positives, negatives):
        return -F.logsigmoid((users * (positives - negatives)).sum(1)).mean()

    def calculate_loss(self, interaction):
        users, positives, negatives = interaction
        u, i = self.forward(self.norm_adj)
        loss = self.bpr_loss(u[users], i[positives], i[negatives])
        beside = 0.0
        if self.t_feat is not None:
            text = self.text_trs(self.text_embedding.weight)
            beside += self.bpr_loss(u[users], text[positives], text[negatives])
        if self.v_feat is not None:
            image = self.image_trs(self.image_embedding.weight)
            beside += self.bpr_loss(u[users], image[positives], image[negatives])
        return loss + self.reg_weight * beside

    def full_sort_predict(self, interaction):
        u, i = self.forward(self.norm_adj)
        return u[interaction[0]] @ i.T
