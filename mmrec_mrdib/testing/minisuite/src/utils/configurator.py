"""Parameters: overall.yaml, the data set's and the model's, under what was given; an unknown name is None."""

import os
import re

import torch
import yaml


class Config:
    def __init__(self, model=None, dataset=None, config_dict=None, mg=False):
        given = {} if config_dict is None else config_dict
        given |= {"model": model, "dataset": dataset}
        self.final_config_dict = self._from_files(given, mg)
        self.final_config_dict.update(given)
        self.final_config_dict["valid_metric_bigger"] = True
        use_gpu = self.final_config_dict["use_gpu"]
        if use_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(self.final_config_dict["gpu_id"])
        self.final_config_dict["device"] = torch.device("cuda" if torch.cuda.is_available() and use_gpu else "cpu")

    def _from_files(self, given, mg):
        folder = os.path.join(os.getcwd(), "configs")
        files = [
            os.path.join(folder, "overall.yaml"),
            os.path.join(folder, "dataset", f"{given['dataset']}.yaml"),
            os.path.join(folder, "model", f"{given['model']}.yaml"),
        ]
        loader = yaml.FullLoader
        loader.add_implicit_resolver(
            "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
        )
        values, searched = {}, []
        for file in files:
            if os.path.isfile(file):
                with open(file, encoding="utf-8") as stream:
                    found = yaml.load(stream.read(), Loader=loader)
                searched += found.get("hyper_parameters") or []
                values.update(found)
        values["hyper_parameters"] = searched
        return values

    def __getitem__(self, name):
        return self.final_config_dict.get(name)

    def __setitem__(self, name, value):
        self.final_config_dict[name] = value
