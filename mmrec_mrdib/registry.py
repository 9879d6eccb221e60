"""Names of models, plug-ins, estimators and objectives, and where their classes live. To add one: one file, one yaml, one line here.

Other packages add theirs by an entry point of the group `mmrec_mrdib.<group>` (see `GROUPS`), or a script assigns it:
`registry.MODELS["Mine"] = "my_package.mine:Mine"`. Either way its property files are in `properties/` of that package (docs/extend.md).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
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
# What can be put around a model, as in MODEL+PLUGIN or MODEL+PLUGIN+PLUGIN; defaults in properties/plugin/<Name>.yaml, named sets of other values in
# properties/plugin/<Name>-<preset>.yaml.
PLUGINS: dict[str, str] = {
    "MRdIB": "mmrec_mrdib.mrdib.plugin:MRdIB",
    "Content": "mmrec_mrdib.plugins.content:Content",
    "DVIB": "mmrec_mrdib.plugins.dvib:DVIB",
    "FETTLE": "mmrec_mrdib.plugins.fettle:FETTLE",
    "MDVT": "mmrec_mrdib.plugins.mdvt:MDVT",
    "Noise": "mmrec_mrdib.plugins.noise:Noise",
    "Dropout": "mmrec_mrdib.plugins.dropout:Dropout",
    "L2": "mmrec_mrdib.plugins.l2:L2",
    "Unimodal": "mmrec_mrdib.plugins.unimodal:Unimodal",
    "MG": "mmrec_mrdib.plugins.mg:MG",
}
# Estimators of mutual information, for `mi_estimator`.
ESTIMATORS: dict[str, str] = {
    "mine": "mmrec_mrdib.mrdib.estimators.mine:MINE",
    "club": "mmrec_mrdib.mrdib.estimators.club:CLUB",
    "infonce": "mmrec_mrdib.mrdib.estimators.infonce:InfoNCE",
    "gaussian": "mmrec_mrdib.mrdib.estimators.gaussian:GaussianMI",
}
# Objectives beside MRdIB's four, for `objectives: {name: weight}`; none is ours.
OBJECTIVES: dict[str, str] = {}

# Groups of entry points, `mmrec_mrdib.<group>`: the table that they add to, and the class that theirs are subclasses of.
GROUPS: dict[str, tuple[dict[str, str], str]] = {
    "models": (MODELS, "mmrec_mrdib.models.base:MultimodalRecommender"),
    "baselines": (BASELINES, "mmrec_mrdib.models.base:GeneralRecommender"),
    "plugins": (PLUGINS, "mmrec_mrdib.plugins.base:Plugin"),
    "estimators": (ESTIMATORS, "mmrec_mrdib.mrdib.estimators.base:MIEstimator"),
    "objectives": (OBJECTIVES, "mmrec_mrdib.mrdib.objectives.base:Objective"),
}
_OURS = {group: dict(table) for group, (table, _) in GROUPS.items()}
# (group, name) of entry points that cannot be used, and why.
UNUSABLE: dict[tuple[str, str], str] = {}


def load(path: str) -> Any:
    """The object at 'module:Name'."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def component(group: str, name: str) -> Any:
    """The class that a table of `GROUPS` names.

    Raises:
        ConfigError: it is not there, cannot be imported, or is something else than the group holds.
    """
    table, base = GROUPS[group]
    if why := UNUSABLE.get((group, name)):
        raise ConfigError(f"{name}: {why}")
    if name not in table:
        known = ", ".join(table) or "none"
        raise ConfigError(f"no '{name}' among the {group}.{did_you_mean(name, table)} Known: {known}")
    path = table[name]
    if _OURS[group].get(name) == path:
        return load(path)
    try:
        found = load(path)
    except Exception as error:
        raise ConfigError(f"{name}: {path} cannot be loaded ({type(error).__name__}: {error})") from error
    wanted = load(base)
    if not (isinstance(found, type) and issubclass(found, wanted)):
        hint = "; plain recommenders are registered in BASELINES, group mmrec_mrdib.baselines" * (group == "models")
        raise ConfigError(f"{name}: {path} is no {wanted.__name__}, which the {group} are{hint}")
    return found


def additions() -> dict[str, dict[str, str]]:
    """Group -> what is not ours, for `add` in another process."""
    return {g: dict(table.items() - _OURS[g].items()) for g, (table, _) in GROUPS.items()}


def add(more: Mapping[str, Mapping[str, str]]) -> None:
    """Register what another process has in its tables, see `additions`."""
    for group, names in more.items():
        GROUPS[group][0].update(names)


def discover() -> None:
    """Fill the tables from the entry points of installed packages. A name that is taken, or that could not be part of a model's name, is kept
    out and told where it is asked for: nothing is replaced in silence."""
    points = importlib.metadata.entry_points()
    for point in (p for group in GROUPS for p in points.select(group=f"mmrec_mrdib.{group}")):
        group = point.group.partition(".")[2]
        table = GROUPS[group][0]
        whose = f"the entry point {point.name} = {point.value} of {getattr(point.dist, 'name', None) or 'a package'}"
        if table.get(point.name) == point.value:
            continue  # a package that is found twice
        if not re.fullmatch(r"\w+", point.name):
            UNUSABLE[group, point.name] = f"{whose} needs a name of letters, digits and '_'"
        elif point.name.lower() in map(str.lower, _names(group)):
            UNUSABLE[group, point.name] = (
                f"{whose} takes a name that is taken; uninstall that package, or rename it there"
            )
        else:
            table[point.name] = point.value


def _names(group: str) -> list[str]:
    """All names that one of this group must differ from: models and plug-ins are named by the same option."""
    if group in ("estimators", "objectives"):
        return list(GROUPS[group][0])
    return [*MODELS, *PLUGINS, *baselines()]


def recbole_models() -> dict[str, str]:
    """RecBole's general recommenders (BPR, ItemKNN, ...) by name, read off its package without importing it."""
    return _exports("general_recommender")


def baselines() -> list[str]:
    """Plain baselines that run: RecBole's general recommenders but those refused, and ours."""
    return [name for name in recbole_models() | GENERAL | BASELINES if name not in REFUSED]


def _exports(kind: str) -> dict[str, str]:
    """name -> 'module:Name' of what a sub-package of RecBole's models offers; nothing where RecBole is not installed."""
    if importlib.util.find_spec("recbole") is None:
        return {}
    init = (paths.recbole_dir() / "model" / kind / "__init__.py").read_text()
    found = re.findall(rf"from (recbole\.model\.{kind}\.\w+) import (\w+)", init)
    return {name: f"{module}:{name}" for module, name in found}


class Variant(NamedTuple):
    """A model's name in its parts: 'VBPR+MRdIB (paper)' is VBPR with the plug-in MRdIB in its preset 'paper'; a plain model has neither.
    The base of 'VBPR+MG+MRdIB' is 'VBPR+MG': a plug-in is around what stands left of it."""

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
        """'plain', 'mrdib', 'mrdib-paper', 'mg+mrdib': what boards call their variants."""
        own = (f"{v.plugin}-{v.preset}" if v.preset else f"{v.plugin}" for v in self.layers)
        return "+".join(own).lower() or "plain"

    @property
    def root(self) -> str:
        """The plain model: 'VBPR'."""
        return self.base.partition("+")[0]

    @property
    def layers(self) -> tuple[Variant, ...]:
        """From the innermost plug-in outwards: 'VBPR+MG' and 'VBPR+MG+MRdIB'."""
        return (*variant(self.base).layers, self) if self.plugin else ()

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters of its plug-ins."""
        return frozenset().union(*(parameters(v.plugin) for v in self.layers if v.plugin))


def property_file(kind: str, name: str, stem: str | None = None) -> Path:
    """properties/<kind>/<name>.yaml of a model or plug-in: ours, or in the package of its class; it need not exist.

    Args:
        kind: 'model', 'plugin' or 'search'.
        stem: the file's name, where it is another one.
    """
    path = (BASELINES | PLUGINS | MODELS).get(name, "mmrec_mrdib")
    return paths.properties_of(path.partition(":")[0]) / kind / f"{stem or name}.yaml"


def property_files(name: str) -> list[Path]:
    """Those of a model's or plug-in's parameters that exist, lowest rank first: RecBole's, ours."""
    if name in PLUGINS:
        files = [property_file("plugin", name)]
    else:
        recboles = [] if is_multimodal(name) else [paths.recbole_dir() / f"properties/model/{name}.yaml"]
        files = [*recboles, property_file("model", name)]
    return [file for file in files if file.is_file()]


def parameters(name: str) -> frozenset[str]:
    """Names of a model's or plug-in's own parameters: those in its property files, but for what all models have (`learning_rate`)."""
    everybodys = _keys(paths.properties_dir() / "overall.yaml") | _keys(paths.recbole_dir() / "properties/overall.yaml")
    return frozenset().union(*map(_keys, property_files(name))) - everybodys


@functools.cache
def _keys(file: Path) -> frozenset[str]:
    from mmrec_mrdib.schema import read_yaml

    return frozenset(read_yaml(file))


def presets(plugin: str) -> list[str]:
    """Names of a plug-in's sets of values."""
    folder = property_file("plugin", plugin).parent
    return sorted(path.stem.removeprefix(f"{plugin}-") for path in folder.glob(f"{plugin}-*.yaml"))


def kinds() -> dict[str, tuple[str | None, str | None]]:
    """'plain', 'mrdib', 'mrdib-paper', 'content', ... -> (plug-in, preset)."""
    known = [(None, None), *((p, preset) for p in PLUGINS for preset in (None, *presets(p)))]
    return {Variant("", *parts).kind: parts for parts in known}


def variants_told() -> str:
    """'+MRdIB', '+MRdIB (paper)', ...: for the texts of help."""
    return ", ".join(f"'{Variant('', *parts).name}'" for kind, parts in kinds().items() if kind != "plain")


def variant(name: str) -> Variant:
    """The parts of 'VBPR', 'VBPR+MRdIB', 'VBPR+MRdIB (paper)', 'VBPR+MRdIB-paper' or 'VBPR+MRdIB (paper)+MG'.

    Raises:
        ConfigError: no such plug-in, no such preset of it, or the same plug-in twice.
    """
    root, *plugged = name.split("+")
    found = Variant(root)
    for each in plugged:
        wanted = re.sub(r"\s*\((\w+)\)$", r"-\1", each.strip()).lower()
        known = kinds()
        if wanted not in known or wanted == "plain":
            names = ", ".join(
                f"{root}+{Variant('', *parts).name[1:]}" for kind, parts in known.items() if kind != "plain"
            )
            raise ConfigError(f"--model={name}: no such plug-in or preset; write {root}, or one of {names}, or several")
        plugin, preset = known[wanted]
        if plugin in (v.plugin for v in found.layers):
            raise ConfigError(f"--model={name}: {plugin} is named twice")
        found = Variant(found.name, plugin, preset)
    return found


def of_kind(base: str, kind: str) -> Variant:
    """The variant of a model that boards call 'plain', 'mrdib', 'mrdib-paper+mg', ...

    Raises:
        ConfigError: there is none.
    """
    return Variant(base) if kind == "plain" else variant(f"{base}+{kind}")


def model_class(name: str) -> Any:
    """The class of a multimodal backbone, of a plug-in, or of one of RecBole's general recommenders.

    Raises:
        ConfigError: unknown name (the message lists the known ones and the nearest), or a model of RecBole's that does not run here
            (it says why).
    """
    for group in ("plugins", "baselines", "models"):
        if name in GROUPS[group][0] or (group, name) in UNUSABLE:
            return component(group, name)
    if name in REFUSED:
        raise ConfigError(f"--model={name} does not run here: it {REFUSED[name]}")
    table = recbole_models() | GENERAL
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


discover()
