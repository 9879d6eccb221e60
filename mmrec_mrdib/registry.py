"""Names of models and where their classes live. To add a model: one file, one yaml, one line here."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

from mmrec_mrdib import paths
from mmrec_mrdib.errors import ConfigError, did_you_mean

MODELS: dict[str, str] = {
    "VBPR": "mmrec_mrdib.models.vbpr:VBPR",
    "MMGCN": "mmrec_mrdib.models.mmgcn:MMGCN",
    "DualGNN": "mmrec_mrdib.models.dualgnn:DualGNN",
    "FREEDOM": "mmrec_mrdib.models.freedom:FREEDOM",
    "MGCN": "mmrec_mrdib.models.mgcn:MGCN",
    "SOIL": "mmrec_mrdib.models.soil:SOIL",
    "LGMRec": "mmrec_mrdib.models.lgmrec:LGMRec",
    "DRAGON": "mmrec_mrdib.models.dragon:DRAGON",
    "BM3": "mmrec_mrdib.models.bm3:BM3",
}
# Plain baselines of ours, never wrapped; in place of RecBole's model of that name, if it has one.
BASELINES: dict[str, str] = {
    "ItemKNNCBF": "mmrec_mrdib.models.itemknncbf:ItemKNNCBF",
    "LayerGCN": "mmrec_mrdib.models.layergcn:LayerGCN",
    "SelfCF": "mmrec_mrdib.models.selfcf:SelfCF",
    "BPR": "mmrec_mrdib.models.bpr:BPR",
    "LightGCN": "mmrec_mrdib.models.lightgcn:LightGCN",
}
PLUGIN = "MRdIB"
PLUGIN_CLASS = "mmrec_mrdib.mrdib.plugin:MRdIB"


def load(path: str) -> Any:
    """The object at 'module:Name'."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def recbole_models() -> dict[str, str]:
    """RecBole's general recommenders (BPR, ItemKNN, ...) by name, read off its package without importing it."""
    init = (paths.recbole_dir() / "model" / "general_recommender" / "__init__.py").read_text()
    found = re.findall(r"from (recbole\.model\.general_recommender\.\w+) import (\w+)", init)
    return {name: f"{module}:{name}" for module, name in found}


def split_variant(name: str) -> tuple[str, bool]:
    """('VBPR', True) for 'VBPR+MRdIB', ('VBPR', False) for 'VBPR'."""
    base, plus, plugin = name.partition("+")
    if plus and plugin.lower() != PLUGIN.lower():
        raise ConfigError(f"--model={name}: the only plug-in is {PLUGIN}; write {base}+{PLUGIN} or {base}")
    return base, bool(plus)


def model_class(name: str) -> Any:
    """The class of a multimodal backbone, of MRdIB itself, or of one of RecBole's general recommenders.

    Raises:
        ConfigError: unknown name; the message lists the known ones and the nearest.
    """
    if name == PLUGIN:
        return load(PLUGIN_CLASS)
    table = recbole_models() | BASELINES | MODELS
    if name not in table:
        raise ConfigError(
            f"unknown model '{name}'.{did_you_mean(name, table)} Multimodal models: {', '.join(MODELS)}; "
            f"RecBole's general recommenders ({', '.join(list(recbole_models())[:6])}, ...) run as plain baselines."
        )
    return load(table[name])


def is_multimodal(name: str) -> bool:
    """Whether the model keeps the contract of `models/base.py`, and so can be wrapped by MRdIB."""
    return name in MODELS
