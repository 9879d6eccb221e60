"""Interactions with a column that says the split."""

import os
from logging import getLogger

import lmdb  # used by nobody
import pandas as pd


class RecDataset:
    def __init__(self, config, df=None):
        self.config = config
        self.logger = getLogger()
        self.dataset_name = config["dataset"]
        self.dataset_path = os.path.abspath(config["data_path"] + self.dataset_name)
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.splitting_label = config["inter_splitting_label"]
        if df is not None:
            self.df = df
            return
        file = os.path.join(self.dataset_path, config["inter_file_name"])
        if not os.path.isfile(file):
            raise ValueError(f"File {file} not exist")
        columns = [self.uid_field, self.iid_field, self.splitting_label]
        self.df = pd.read_csv(file, usecols=columns, sep=config["field_separator"])[columns]
        self.item_num = int(self.df[self.iid_field].max()) + 1
        self.user_num = int(self.df[self.uid_field].max()) + 1

    def split(self):
        parts = [self.df[self.df[self.splitting_label] == n].drop(columns=self.splitting_label) for n in range(3)]
        if self.config["filter_out_cod_start_users"]:
            known = set(parts[0][self.uid_field])
            parts = [parts[0], *(p[p[self.uid_field].isin(known)] for p in parts[1:])]
        return [self.copy(part) for part in parts]

    def copy(self, df):
        out = RecDataset(self.config, df)
        out.item_num, out.user_num = self.item_num, self.user_num
        return out

    def get_user_num(self):
        return self.user_num

    def get_item_num(self):
        return self.item_num

    def shuffle(self):
        self.df = self.df.sample(frac=1, replace=False).reset_index(drop=True)

    def __len__(self):
        return len(self.df)
