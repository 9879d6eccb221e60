"""Recall, NDCG, precision and MAP of lists, rounded to four digits."""

import numpy as np
import torch


class TopKEvaluator:
    def __init__(self, config):
        self.config = config
        self.metrics, self.topk = [m.lower() for m in config["metrics"]], config["topk"]

    def evaluate(self, batch_matrix_list, eval_data, is_test=False, idx=0):
        lists = torch.cat(batch_matrix_list).cpu().numpy()
        hit = np.array([np.isin(row, items) for row, items in zip(lists, eval_data.get_eval_items())])
        n = eval_data.get_eval_len_list()
        rank = np.arange(1, hit.shape[1] + 1)
        hits = hit.cumsum(1)
        ideal = (1 / np.log2(rank + 1)).cumsum()
        out = {}
        for metric in self.metrics:
            for k in self.topk:
                most = np.minimum(n, k)
                value = {
                    "recall": lambda k=k, most=most: hits[:, k - 1] / n,
                    "precision": lambda k=k, most=most: hits[:, k - 1] / k,
                    "ndcg": lambda k=k, most=most: (hit / np.log2(rank + 1)).cumsum(1)[:, k - 1] / ideal[most - 1],
                    "map": lambda k=k, most=most: (hit * hits / rank).cumsum(1)[:, k - 1] / most,
                }[metric]()
                out[f"{metric}@{k}"] = round(float(value.mean()), 4)
        return out
