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
}
# Without features; in place of RecBole's model of that name.
BASELINES: dict[str, str] = {
    "LightGCN": "mmrec_mrdib.models.lightgcn:LightGCN",
}
# RecBole's general recommenders that need more than RecBole's class (`general.py`).
GENERAL: dict[str, str] = {
    name: f"mmrec_mrdib.general:{name}" for name in ("Pop", "Random", "ItemKNN", "EASE", "RecVAE", "NCL", "NGCF")
}
# RecBole's that do not run here, and why.
REFUSED: dict[str, str] = {
    "RaCT": "trains in three stages, each from the pickled checkpoint of the one before, and nothing is unpickled here; "
    "its first stage by itself is MultiVAE: --model MultiVAE",
}
# RecBole's other kinds of model by the sub-package that holds them, and what they need.
_OTHER_KINDS: dict[str, str] = {
    "sequential_recommender": "a sequential recommender: it needs the order of each user's interactions",
    "context_aware_recommender": "a context-aware recommender: it predicts clicks from fields of users and items",
    "knowledge_aware_recommender": "a knowledge-aware recommender: it needs a knowledge graph",
    "exlib_recommender": "a context-aware recommender of decision trees: it predicts clicks from fields of users and items",
}
PLUGIN = "MRdIB"
PLUGIN_CLASS = "mmrec_mrdib.mrdib.plugin:MRdIB"


def load(path: str) -> Any:
    """The object at 'module:Name'."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def recbole_models() -> dict[str, str]:
    """RecBole's general recommenders (BPR, ItemKNN, ...) by name, read off its package without importing it."""
    return _exports("general_recommender")


def baselines() -> list[str]:
    """Plain baselines that run: RecBole's general recommenders but those refused, and ours."""
    return [name for name in recbole_models() | GENERAL | BASELINES if name not in REFUSED]


def _exports(kind: str) -> dict[str, str]:
    """name -> 'module:Name' of what a sub-package of RecBole's models offers."""
    init = (paths.recbole_dir() / "model" / kind / "__init__.py").read_text()
    found = re.findall(rf"from (recbole\.model\.{kind}\.\w+) import (\w+)", init)
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
        ConfigError: unknown name (the message lists the known ones and the nearest), or a model of RecBole's that does not run here
            (it says why).
    """
    if name == PLUGIN:
        return load(PLUGIN_CLASS)
    if name in REFUSED:
        raise ConfigError(f"--model={name} does not run here: it {REFUSED[name]}")
    table = recbole_models() | GENERAL | BASELINES | MODELS
    if name not in table:
        if reason := _of_another_kind(name):
            raise ConfigError(f"--model={name} does not run here: it is {reason}")
        raise ConfigError(
            f"unknown model '{name}'.{did_you_mean(name, [*MODELS, *baselines()])} Multimodal models: {', '.join(MODELS)}; "
            f"plain baselines: {', '.join(baselines())}"
        )
    return load(table[name])


def _of_another_kind(name: str) -> str | None:
    """What one of RecBole's models needs that is no general recommender, by any spelling of its name; None for other names."""
    for kind, reason in _OTHER_KINDS.items():
        found = {n.lower(): path for n, path in _exports(kind).items()}.get(name.lower())
        if found is None:
            continue
        package = found.partition(":")[0].rpartition(".")[2]
        if kind == "exlib_recommender" and importlib.util.find_spec(package) is None:
            reason += f", and the package {package}, which is not installed"
        return f"{reason}; choose a general recommender such as BPR or a multimodal model such as VBPR"
    return None


def is_multimodal(name: str) -> bool:
    """Whether the model keeps the contract of `models/base.py`, and so can be wrapped by MRdIB."""
    return name in MODELS
