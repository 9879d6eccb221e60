"""What all models have: numbers of users and items, and the features."""

import os

import numpy as np
import torch
from torch import nn


class AbstractRecommender(nn.Module):
    def pre_epoch_processing(self):
        pass

    def post_epoch_processing(self):
        pass

    def calculate_loss(self, interaction):
        raise NotImplementedError

    def full_sort_predict(self, interaction):
        raise NotImplementedError


class GeneralRecommender(AbstractRecommender):
    def __init__(self, config, dataloader):
        super().__init__()
        self.USER_ID, self.ITEM_ID = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.NEG_ITEM_ID = config["NEG_PREFIX"] + self.ITEM_ID
        self.n_users, self.n_items = dataloader.dataset.get_user_num(), dataloader.dataset.get_item_num()
        self.batch_size, self.device = config["train_batch_size"], config["device"]
        self.v_feat, self.t_feat = None, None
        if not config["end2end"] and config["is_multimodal_model"]:
            folder = os.path.abspath(config["data_path"] + config["dataset"])
            for name, key in (("v_feat", "vision_feature_file"), ("t_feat", "text_feature_file")):
                file = os.path.join(folder, config[key])
                if os.path.isfile(file):
                    table = np.load(file, allow_pickle=True)
                    setattr(self, name, torch.from_numpy(table).type(torch.FloatTensor).to(self.device))
            assert self.v_feat is not None or self.t_feat is not None, "Features all NONE"
