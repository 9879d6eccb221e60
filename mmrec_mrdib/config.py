"""Our Config: RecBole's, without its global effects, with strict keys and with our property files.

The only file that knows `recbole.config`. What differs from RecBole's class, and why:

- the command line is given by the caller; RecBole's reads `sys.argv` of whatever program it is part of;
- text becomes a value through YAML's safe subset; RecBole's calls `eval` on it;
- an unknown key is an error that names the nearest valid ones; RecBole's accepts it and ignores it;
- values are checked against the type of their default, and parameters without effect are refused (`parameters.py`);
- the environment is left as it is: `CUDA_VISIBLE_DEVICES` is the caller's;
- models come from our registry, defaults from `properties/` laid over RecBole's;
- the lists of RecBole's argument names are copied before they are extended.

RecBole's own Config works with our models as well: pass the class as `model=`; see tests/test_compat.py.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from mmrec_mrdib import compat, parameters, paths, process, registry
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.errors import ConfigError, did_you_mean
from mmrec_mrdib.models.base import MultimodalRecommender
from mmrec_mrdib.schema import Loader, read_yaml

compat.activate()

import recbole.config
from recbole.data.dataloader import TrainDataLoader
from recbole.data.utils import get_dataloader
from recbole.utils import InputType, ModelType

logger = logging.getLogger(__name__)

_INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")  # RecBole's form '[8,inf)' is no YAML
# Keys that RecBole reads without giving them a default in its property files.
_RECBOLE_EXTRA = (
    "model",
    "dataset",
    "config_files",
    "device",
    "encoding",
    "nproc",
    "ip",
    "port",
    "world_size",
    "offset",
)


_VERBATIM = ("field_separator", "seq_separator")  # a comma, a blank: text that YAML takes for a sign


class Config(recbole.config.Config):
    """Parameters of one run: property files < `config_files` < `config_dict` < `overrides` (the command line).

    Args:
        model: registered name ('VBPR', 'MRdIB', or a general recommender of RecBole) or a model class.
        dataset: name of the data set; found by `paths.find_dataset`.
        config_file_list: YAML files of the user.
        config_dict: values; text among them is read as YAML ('[5, 10]' is a list).
        overrides: the same, with the highest rank.

    Raises:
        ConfigError: unknown key, value of the wrong type, unknown model, contradictory evaluation settings.
        DataError: the data set does not exist.
    """

    parameters: dict[str, list[str]]

    def __init__(
        self,
        model: str | type,
        dataset: str,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self._overrides = dict(overrides or {})
        try:
            super().__init__(model, dataset, config_file_list, dict(config_dict or {}))
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ConfigError(str(error)) from error
        given, inter = self.external_config_dict, mmrec.file_of(self._dataset_folder, dataset)
        pairs = self["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and self.loader is TrainDataLoader
        parameters.check_together(self, given, pairs)
        if self.positives_alone and given.get("train_neg_sample_args") is not None:
            named = given.get("backbone", self["model"])
            raise ConfigError(f"--train_neg_sample_args: no effect here: {named} is trained without negatives")
        fixed = (
            not self["benchmark_filename"] and inter.is_file() and mmrec.is_mmrec(inter, self["encoding"] or "utf-8")
        )
        parameters.check_layout(self, given, self.internal_config_dict, fixed, str(self._dataset_folder))

    @property
    def learner(self) -> str:
        """The name of the model whose batches training takes: the backbone's, where a plug-in trains together with it."""
        name: str = self["model"]
        if name not in registry.PLUGINS or self.model_class.is_staged(self):
            return name
        return registry.variant(self["backbone"]).root

    @property
    def loader(self) -> Any:
        """RecBole's class of training batches for that model."""
        return get_dataloader({"model": self.learner, "MODEL_TYPE": self["MODEL_TYPE"]}, "train")

    @property
    def positives_alone(self) -> bool:
        """Whether training needs no negatives: `Batch.negative` is None."""
        pointwise = self["MODEL_INPUT_TYPE"] == InputType.POINTWISE
        learner = self.model_class if self.learner == self["model"] else registry.model_class(self.learner)
        return pointwise and issubclass(learner, MultimodalRecommender)

    @property
    def layers(self) -> tuple[Config, ...]:
        """Those of the plug-ins, from the outermost inwards: in each a plug-in finds its own values."""
        if self["model"] not in registry.PLUGINS:
            return ()
        return (self, *(self.host().layers if "+" in self["backbone"] else ()))

    def host(self) -> Config:
        """The Config of what a plug-in is around: all that was given, but for what is the plug-in's alone."""
        host = registry.variant(self["backbone"])
        own = {"backbone", "preset", "model", "dataset", "seed"}
        own |= registry.parameters(self["model"]) - host.parameters
        given = quoted({k: v for k, v in self.external_config_dict.items() if k not in own} | {"seed": self["seed"]})
        return of_variant(host, self.dataset, values=given)

    # Seams of RecBole's constructor, in the order in which it calls them.

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = copy.deepcopy(self.parameters)

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        # Copies: RecBole fills mappings such as eval_args with its defaults, in place.
        return {key: parse_value(key, copy.deepcopy(value)) for key, value in config_dict.items()}

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for file in file_list or ():
            values |= read_yaml(Path(file))
        return values

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._convert_config_dict(self._overrides)

    def _get_model_and_dataset(self, model: str | type, dataset: str) -> tuple[str, type, str]:
        if isinstance(model, str):
            return model, registry.model_class(model), dataset
        return model.__name__, model, dataset

    def _load_internal_config_dict(self, model: str, model_class: Any, dataset: str) -> None:
        if model_class.type not in (ModelType.GENERAL, ModelType.TRADITIONAL):
            raise ConfigError(f"{model} is not a general recommender: it needs more than users, items and features")
        external = self.external_config_dict
        self._dataset_folder = paths.find_dataset(dataset, external.get("data_path"))
        backbone = external.get("backbone") if model in registry.PLUGINS else None
        if backbone is not None and not isinstance(backbone, str):
            raise ConfigError(f"backbone={backbone!r}: expected the name of a model, as in backbone: VBPR")
        preset = external.get("preset") if backbone else None
        host = registry.variant(backbone or model)
        if model in registry.PLUGINS and not backbone:
            raise ConfigError(f"{model} wraps a model: name it, as in --model=VBPR+{model}, or backbone: VBPR")
        if preset is not None and preset not in registry.presets(model):
            raise ConfigError(f"--preset={preset}: {model} has {', '.join(registry.presets(model)) or 'no presets'}")
        ours, recboles = paths.properties_dir(), paths.recbole_dir() / "properties"
        files = [
            recboles / "overall.yaml",
            recboles / "dataset/sample.yaml",
            ours / "overall.yaml",
            recboles / f"dataset/{dataset}.yaml",
            *(file for v in host.layers for file in _plugin_files(v.plugin, v.preset)),
            *(_plugin_files(model, preset) if backbone else []),  # what several plug-ins have: the outermost one's
            *registry.property_files(host.root),
            ours / f"dataset/{dataset}.yaml",
        ]
        self.internal_config_dict: dict[str, Any] = {"preset": None} if backbone else {}
        for file in files:
            if file.is_file():
                self.internal_config_dict |= copy.deepcopy(_shipped(file))
        beside_the_data = self._dataset_folder / f"{dataset}.yaml"
        if beside_the_data.is_file():
            values = read_yaml(beside_the_data)
            self._check_keys(values, model, f"{beside_the_data}: ")
            self.internal_config_dict |= values
        self._check_keys(self.external_config_dict, model)
        self.internal_config_dict["MODEL_TYPE"] = model_class.type

    def _check_keys(self, values: dict[str, Any], model: str, where: str = "") -> None:
        """Refuse unknown keys and wrong values, and bring lists to their form."""
        known = known_keys() | set(self.internal_config_dict)
        named = {"model": model, "dataset": self.dataset}
        if model in registry.PLUGINS:
            named["model"] = named["backbone"] = self.variable_config_dict.get("backbone", values.get("backbone"))
        for source in (values, self.file_config_dict, self.cmd_config_dict):
            for key in named.keys() & source.keys():
                if source[key] not in (named[key], model):
                    raise ConfigError(
                        f"{where}--{key}={source[key]}: no effect here: {named[key]} is named already; leave it out"
                    )
        for key, value in values.items():
            if key in named:
                continue
            if key not in known:
                raise ConfigError(f"{where}unknown parameter '{key}' for {model}.{did_you_mean(str(key), known)}")
            default = self.internal_config_dict.get(key)
            values[key] = parameters.shaped(key, value, default)
            parameters.check(key, values[key], default, model, where)

    def _set_default_parameters(self) -> None:
        self.final_config_dict.setdefault("data_path", "")
        super()._set_default_parameters()
        self._set_input_type()
        self.final_config_dict["data_path"] = str(self._dataset_folder.absolute())  # found again from any folder

    def _set_input_type(self) -> None:
        """Of a plug-in that trains together with its backbone: what that is trained on."""
        if self.learner != self["model"]:
            self.final_config_dict["MODEL_INPUT_TYPE"] = registry.model_class(self.learner).input_type

    def _init_device(self) -> None:
        """RecBole's sets CUDA_VISIBLE_DEVICES for the whole process; here `gpu_id` counts the visible ones."""
        final, given = self.final_config_dict, self.external_config_dict
        final |= {"single_spec": True, "local_rank": 0}
        wanted, gpu = final["device"], str(final["gpu_id"]).strip()
        if wanted not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device={wanted}: expected auto, cpu or cuda; --gpu_id says which GPU")
        if wanted == "cuda" and not (final["use_gpu"] and gpu):
            raise ConfigError(f"--device=cuda: not with --use_gpu={final['use_gpu']} and --gpu_id='{gpu}'")
        if not gpu.isdigit() and gpu not in ("", "-1"):
            raise ConfigError(f"--gpu_id={gpu}: expected the number of one GPU: a model is trained on one device")
        use = wanted != "cpu" and final["use_gpu"] and gpu.isdigit()
        count = torch.cuda.device_count() if use and torch.cuda.is_available() else 0
        if use and count and int(gpu) >= count:
            raise ConfigError(f"--gpu_id={gpu}: {count} GPUs are visible; expected a number from 0 to {count - 1}")
        if use and not count:
            if wanted == "cuda":
                raise ConfigError(
                    "--device=cuda: PyTorch finds no GPU here; --device=cpu, or install a build of PyTorch that fits the driver"
                )
            if given.get("use_gpu") or "gpu_id" in given:
                logger.warning("--use_gpu, --gpu_id: PyTorch finds no GPU here; training on the CPU")
        if final["enable_scaler"] and not count:
            logger.warning("--enable_scaler: no effect without a GPU")
        if count and process.several():  # each takes the next one
            gpu = str(int(gpu) + process.place().local)
            if int(gpu) >= count:
                raise ConfigError(
                    f"process {process.place().local} of this machine would take GPU {gpu}, and {count} are visible: start "
                    "as many processes as there are GPUs, or --device=cpu"
                )
        final["gpu_id"] = gpu if count else ""
        final["device"] = torch.device("cuda", int(gpu)) if count else torch.device("cpu")


@functools.cache
def _shipped(file: Path) -> dict[str, Any]:
    """A property file of RecBole or ours, which does not change while the program runs."""
    return read_yaml(file)


@functools.cache
def known_keys() -> frozenset[str]:
    """All parameters that RecBole or we give a meaning, those of other models' property files aside."""
    ours, recboles = paths.properties_dir(), paths.recbole_dir() / "properties"
    keys = set(_RECBOLE_EXTRA)
    for file in (recboles / "overall.yaml", recboles / "dataset/sample.yaml", ours / "overall.yaml"):
        keys |= set(_shipped(file))
    for group in ("general", "training", "evaluation", "dataset"):
        keys |= set(getattr(recbole.config.configurator, f"{group}_arguments"))
    return frozenset(keys)


def of_variant(
    variant: registry.Variant,
    dataset: str,
    config_files: Sequence[str | Path] = (),
    values: Mapping[str, Any] | None = None,
) -> Config:
    """The Config of a model in its parts."""
    overrides = dict(values or {})
    if variant.plugin is None:
        return Config(variant.base, dataset, config_files, None, overrides)
    if variant.preset is not None and overrides.setdefault("preset", variant.preset) != variant.preset:
        raise ConfigError(f"--preset={overrides['preset']}: {variant.name} names {variant.preset}; give one of them")
    return Config(variant.plugin, dataset, config_files, {"backbone": variant.base}, overrides)


def _plugin_files(plugin: str | None, preset: str | None) -> list[Path]:
    """Of a plug-in's parameters, lowest rank first."""
    assert plugin is not None
    named = [] if preset is None else [registry.property_file("plugin", plugin, f"{plugin}-{preset}")]
    return [*registry.property_files(plugin), *named]


def quoted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that a Config has parsed, so that another parses them to the same: text that is read as YAML is quoted."""
    return {k: json.dumps(v) if isinstance(v, str) and k not in _VERBATIM else v for k, v in values.items()}


def parse_value(key: str, value: Any) -> Any:
    """Text as the value it denotes in YAML ('0.1', 'true', '[5, 10]', 'null'); other types as they are."""
    if not isinstance(value, str) or key in _VERBATIM:
        return value
    if value == "None":  # Python's; 'none' is a word (feature_norm: none), null and ~ are YAML's
        return None
    try:
        return yaml.load(value, Loader=Loader)
    except yaml.YAMLError as error:
        if key in _INTERVALS:
            return value
        raise ConfigError(f"--{key}={value}: not a valid YAML value ({getattr(error, 'problem', error)})") from error
