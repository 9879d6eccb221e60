"""Seeds, and what is found by its name."""

import importlib
import random

import numpy as np
import torch


def get_model(model_name):
    return getattr(importlib.import_module(f"models.{model_name.lower()}"), model_name)


def get_trainer():
    return importlib.import_module("common.trainer").Trainer


def init_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def early_stopping(value, best, cur_step, max_step, bigger=True):
    better = value > best if bigger else value < best
    if better:
        return value, 0, False, True
    return best, cur_step + 1, cur_step + 1 > max_step, False


def dict2str(result):
    return "    ".join(f"{metric}: {value:.4f}" for metric, value in result.items())
