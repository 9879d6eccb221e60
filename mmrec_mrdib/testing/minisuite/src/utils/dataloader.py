"""Batches: (3, B) of users, items and sampled negatives to train on; users and what is masked for them to evaluate."""

import copy
import random

import numpy as np
import torch
from scipy.sparse import coo_matrix


class AbstractDataLoader:
    def __init__(self, config, dataset, additional_dataset=None, batch_size=1, neg_sampling=False, shuffle=False):
        self.config, self.dataset, self.additional_dataset = config, dataset, additional_dataset
        self.dataset_bk = dataset.copy(dataset.df)
        self.batch_size, self.neg_sampling, self.shuffle = batch_size, neg_sampling, shuffle
        self.device = config["device"]
        self.pr = 0

    def pretrain_setup(self):
        pass

    def __iter__(self):
        if self.shuffle:
            self.dataset.shuffle()
        return self

    def __next__(self):
        if self.pr >= self.pr_end:
            self.pr = 0
            raise StopIteration
        return self._next_batch_data()


class TrainDataLoader(AbstractDataLoader):
    def __init__(self, config, dataset, batch_size=1, shuffle=False):
        super().__init__(config, dataset, None, batch_size, True, shuffle)
        uid, iid = dataset.uid_field, dataset.iid_field
        self.history_items_per_u = {u: set(items) for u, items in dataset.df.groupby(uid)[iid]}
        self.all_items = dataset.df[iid].unique().tolist()
        random.shuffle(self.all_items)

    @property
    def pr_end(self):
        return len(self.dataset)

    def pretrain_setup(self):
        """Each training starts from the same order."""
        self.dataset = copy.deepcopy(self.dataset_bk)
        self.all_items.sort()
        random.shuffle(self.all_items)

    def inter_matrix(self, form="coo", value_field=None):
        df = self.dataset.df
        rows, cols = df[self.dataset.uid_field].values, df[self.dataset.iid_field].values
        matrix = coo_matrix((np.ones(len(df)), (rows, cols)), (self.dataset.user_num, self.dataset.item_num))
        return matrix if form == "coo" else matrix.tocsr()

    def _next_batch_data(self):
        part = self.dataset.df.iloc[self.pr : self.pr + self.batch_size]
        self.pr += self.batch_size
        users, items = part[self.dataset.uid_field].values, part[self.dataset.iid_field].values
        rows = [torch.tensor(np.array(users)), torch.tensor(np.array(items))]
        if self.config["use_neg_sampling"]:
            rows.append(torch.tensor([self._negative(u) for u in users]))
        return torch.stack(rows).long().to(self.device)

    def _negative(self, user):
        item = random.choice(self.all_items)
        while item in self.history_items_per_u[user]:
            item = random.choice(self.all_items)
        return item


class EvalDataLoader(AbstractDataLoader):
    def __init__(self, config, dataset, additional_dataset=None, batch_size=1, shuffle=False):
        super().__init__(config, dataset, additional_dataset, batch_size, False, shuffle)
        uid, iid = dataset.uid_field, dataset.iid_field
        self.eval_users = np.array(sorted(dataset.df[uid].unique()), dtype=np.int)
        relevant = {u: items.tolist() for u, items in dataset.df.groupby(uid)[iid]}
        known = {u: items.tolist() for u, items in additional_dataset.df.groupby(uid)[iid]}
        self.eval_items_per_u = [relevant[u] for u in self.eval_users]
        self.masked = [known.get(u, []) for u in self.eval_users]
        self.eval_len_list = np.array([len(items) for items in self.eval_items_per_u])

    @property
    def pr_end(self):
        return len(self.eval_users)

    def _next_batch_data(self):
        part = slice(self.pr, self.pr + self.batch_size)
        self.pr += self.batch_size
        masked = [(row, item) for row, items in enumerate(self.masked[part]) for item in items]
        users = torch.tensor(self.eval_users[part]).to(self.device)
        return [users, torch.tensor(masked).T.to(self.device)]

    def get_eval_items(self):
        return self.eval_items_per_u

    def get_eval_len_list(self):
        return self.eval_len_list

    def get_eval_users(self):
        return self.eval_users
