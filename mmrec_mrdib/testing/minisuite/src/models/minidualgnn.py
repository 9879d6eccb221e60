"""Items are their projected features. Scores are of the table that the last training batch left; ids are shifted in place; a GPU is taken for
granted; a graph of users comes from a pickle, where there is one."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from common.abstract_recommender import GeneralRecommender
from torch import nn


class Tower(nn.Module):
    def __init__(self, features, n_users, d):
        super().__init__()
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_users, d)))
        self.MLP = nn.Linear(features.shape[1], 2 * d)
        self.MLP_1 = nn.Linear(2 * d, d)

    def forward(self, features):
        return torch.cat([self.preference, self.MLP_1(F.leaky_relu(self.MLP(features)))])


class MiniDualGNN(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        d = config["embedding_size"]
        graph = os.path.join(os.path.abspath(config["data_path"] + config["dataset"]), config["user_graph_dict_file"])
        if os.path.isfile(graph):
            self.user_graph_dict = np.load(graph, allow_pickle=True).item()
        if self.v_feat is not None:
            self.v_gcn = Tower(self.v_feat, self.n_users, d)
        if self.t_feat is not None:
            self.t_gcn = Tower(self.t_feat, self.n_users, d)
        self.reg_weight = config["reg_weight"]
        self.result = nn.Parameter(nn.init.xavier_normal_(torch.rand(self.n_users + self.n_items, d))).to(self.device)
        self.ones = torch.ones(1).cuda()
        self.v_rep = self.t_rep = None

    def forward(self, interaction):
        nodes = 0
        if self.v_feat is not None:
            self.v_rep = self.v_gcn(self.v_feat)
            nodes = nodes + F.normalize(self.v_rep)
        if self.t_feat is not None:
            self.t_rep = self.t_gcn(self.t_feat)
            nodes = nodes + F.normalize(self.t_rep)
        self.result = nodes * self.ones
        users, positives, negatives = interaction
        positives += self.n_users
        negatives += self.n_users
        margin = (self.result[users] * (self.result[positives] - self.result[negatives])).sum(1)
        return margin

    def calculate_loss(self, interaction):
        margin = self.forward(interaction)
        loss = -torch.mean(torch.log2(torch.sigmoid(margin)))
        users = interaction[0]
        reg = sum(
            (gcn.preference[users] ** 2).mean()
            for gcn in (getattr(self, "v_gcn", None), getattr(self, "t_gcn", None))
            if gcn
        )
        return loss, self.reg_weight * reg

    def full_sort_predict(self, interaction):
        return self.result[: self.n_users][interaction[0]] @ self.result[self.n_users :].T
