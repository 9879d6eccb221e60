"""Names of models and where their classes live. To add a model: one file, one yaml, one line here."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any, NamedTuple

from mmrec_mrdib import paths
from mmrec_mrdib.errors import ConfigError, did_you_mean

MODELS: dict[str, str] = {
    "VBPR": "mmrec_mrdib.models.vbpr:VBPR",
    "MMGCN": "mmrec_mrdib.models.mmgcn:MMGCN",
    "GRCN": "mmrec_mrdib.models.grcn:GRCN",
    "DualGNN": "mmrec_mrdib.models.dualgnn:DualGNN",
    "MVGAE": "mmrec_mrdib.models.mvgae:MVGAE",
    "SLMRec": "mmrec_mrdib.models.slmrec:SLMRec",
    "FREEDOM": "mmrec_mrdib.models.freedom:FREEDOM",
    "MGCN": "mmrec_mrdib.models.mgcn:MGCN",
    "SOIL": "mmrec_mrdib.models.soil:SOIL",
    "LATTICE": "mmrec_mrdib.models.lattice:LATTICE",
    "SMORE": "mmrec_mrdib.models.smore:SMORE",
    "PGL": "mmrec_mrdib.models.pgl:PGL",
    "GUME": "mmrec_mrdib.models.gume:GUME",
    "MENTOR": "mmrec_mrdib.models.mentor:MENTOR",
    "DAMRS": "mmrec_mrdib.models.damrs:DAMRS",
    "MMGCF": "mmrec_mrdib.models.mmgcf:MMGCF",
    "LGMRec": "mmrec_mrdib.models.lgmrec:LGMRec",
    "DRAGON": "mmrec_mrdib.models.dragon:DRAGON",
    "BM3": "mmrec_mrdib.models.bm3:BM3",
}
# Plain baselines of ours, without encoders; in place of RecBole's model of that name, if it has one.
BASELINES: dict[str, str] = {
    "ItemKNNCBF": "mmrec_mrdib.models.itemknncbf:ItemKNNCBF",
    "LayerGCN": "mmrec_mrdib.models.layergcn:LayerGCN",
    "SelfCF": "mmrec_mrdib.models.selfcf:SelfCF",
    "BPR": "mmrec_mrdib.models.bpr:BPR",
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
# What can be put around a model, as in MODEL+PLUGIN; defaults in properties/plugin/<Name>.yaml, named sets of other values in
# properties/plugin/<Name>-<preset>.yaml.
PLUGINS: dict[str, str] = {
    "MRdIB": "mmrec_mrdib.mrdib.plugin:MRdIB",
    "Content": "mmrec_mrdib.plugins.content:Content",
}


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


class Variant(NamedTuple):
    """A model's name in its parts: 'VBPR+MRdIB (paper)' is VBPR with the plug-in MRdIB in its preset 'paper'; a plain model has neither."""

    base: str
    plugin: str | None = None
    preset: str | None = None

    @property
    def name(self) -> str:
        """'VBPR', 'VBPR+MRdIB', 'VBPR+MRdIB (paper)'."""
        plugged = f"{self.base}+{self.plugin}" if self.plugin else self.base
        return f"{plugged} ({self.preset})" if self.preset else plugged

    @property
    def kind(self) -> str:
        """'plain', 'mrdib', 'mrdib-paper': what boards call their variants."""
        if self.plugin is None:
            return "plain"
        return self.plugin.lower() + (f"-{self.preset}" if self.preset else "")


def presets(plugin: str) -> list[str]:
    """Names of a plug-in's sets of values."""
    folder = paths.properties_dir() / "plugin"
    return sorted(path.stem.removeprefix(f"{plugin}-") for path in folder.glob(f"{plugin}-*.yaml"))


def kinds() -> dict[str, tuple[str | None, str | None]]:
    """'plain', 'mrdib', 'mrdib-paper', 'content', ... -> (plug-in, preset)."""
    known = [(None, None), *((p, preset) for p in PLUGINS for preset in (None, *presets(p)))]
    return {Variant("", *parts).kind: parts for parts in known}


def variant(name: str) -> Variant:
    """The parts of 'VBPR', 'VBPR+MRdIB', 'VBPR+MRdIB (paper)' or 'VBPR+MRdIB-paper'.

    Raises:
        ConfigError: no such plug-in, or no such preset of it.
    """
    base, plus, rest = name.partition("+")
    if not plus:
        return Variant(base)
    wanted = re.sub(r"\s*\((\w+)\)$", r"-\1", rest.strip()).lower()
    known = kinds()
    if wanted not in known or wanted == "plain":
        names = ", ".join(f"{base}+{Variant('', *parts).name[1:]}" for kind, parts in known.items() if kind != "plain")
        raise ConfigError(f"--model={name}: no such plug-in or preset; write {base}, or one of {names}")
    return Variant(base, *known[wanted])


def model_class(name: str) -> Any:
    """The class of a multimodal backbone, of a plug-in, or of one of RecBole's general recommenders.

    Raises:
        ConfigError: unknown name (the message lists the known ones and the nearest), or a model of RecBole's that does not run here
            (it says why).
    """
    if name in PLUGINS:
        return load(PLUGINS[name])
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
    """Whether the model keeps the contract of `models/base.py`, and so has modality representations that a plug-in can change."""
    return name in MODELS
