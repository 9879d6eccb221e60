"""Our Config: RecBole's, without its global effects, with strict keys and with our property files.

The only file that knows `recbole.config`. What differs from RecBole's class, and why:

- the command line is given by the caller; RecBole's reads `sys.argv` of whatever program it is part of;
- text becomes a value through YAML's safe subset; RecBole's calls `eval` on it;
- an unknown key is an error that names the nearest valid ones; RecBole's accepts it and ignores it;
- values are checked against the type of their default;
- models come from our registry, defaults from `properties/` laid over RecBole's;
- the lists of RecBole's argument names are copied before they are extended.

RecBole's own Config works with our models as well: pass the class as `model=`; see tests/test_compat.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmrec_mrdib import compat, paths, registry
from mmrec_mrdib.errors import ConfigError, did_you_mean
from mmrec_mrdib.evaluation import PER_USER, RECBOLE_ONLY
from mmrec_mrdib.schema import Loader, read_yaml

compat.activate()

import recbole.config
from recbole.utils import ModelType

# RecBole would pickle whole data sets for these; we never unpickle.
_REFUSED = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
_SEVERAL_PROCESSES = ("nproc", "world_size")  # of one training; RecBole's values for none: 1 and -1
# Keys that RecBole reads without giving them a default in its property files.
_RECBOLE_EXTRA = (
    "model",
    "dataset",
    "config_files",
    "encoding",
    "nproc",
    "ip",
    "port",
    "world_size",
    "offset",
)


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
        _check_evaluation(self)

    # Seams of RecBole's constructor, in the order in which it calls them.

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        self.parameters = copy.deepcopy(self.parameters)

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return {key: parse_value(key, value) for key, value in config_dict.items()}

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
        backbone = external.get("backbone") if model == registry.PLUGIN else None
        if model == registry.PLUGIN and not registry.is_multimodal(str(backbone)):
            raise ConfigError(
                f"backbone={backbone}: {registry.PLUGIN} wraps a multimodal model, one of {', '.join(registry.MODELS)}"
            )
        ours, recboles = paths.properties_dir(), paths.recbole_dir() / "properties"
        files = [
            recboles / "overall.yaml",
            recboles / "dataset/sample.yaml",
            ours / "overall.yaml",
            recboles / f"dataset/{dataset}.yaml",
            *([ours / "mrdib.yaml"] if backbone else []),
            recboles / f"model/{model}.yaml" if not registry.is_multimodal(backbone or model) else None,
            ours / f"model/{backbone or model}.yaml",
            ours / f"dataset/{dataset}.yaml",
        ]
        self.internal_config_dict: dict[str, Any] = {}
        for file in files:
            if file is not None and file.is_file():
                self.internal_config_dict |= read_yaml(file)
        beside_the_data = self._dataset_folder / f"{dataset}.yaml"
        if beside_the_data.is_file():
            values = read_yaml(beside_the_data)
            self._check_keys(values, model, f"{beside_the_data}: ")
            self.internal_config_dict |= values
        self._check_keys(self.external_config_dict, model)
        self.internal_config_dict["MODEL_TYPE"] = model_class.type

    def _check_keys(self, values: Mapping[str, Any], model: str, where: str = "") -> None:
        known = known_keys() | set(self.internal_config_dict) | {"backbone"}
        for key, value in values.items():
            if key not in known:
                raise ConfigError(f"{where}unknown parameter '{key}' for {model}.{did_you_mean(str(key), known)}")
            if key in _REFUSED and value:
                raise ConfigError(f"{where}{key} is not supported: it stores pickled objects, never loaded here")
            if key in _SEVERAL_PROCESSES and value not in (None, 1, -1):
                raise ConfigError(
                    f"{where}--{key}={value}: one model is trained by one process: batches, graphs and estimators here know no ranks "
                    "(RecBole's distributed mode would need a sampler and gradients shared between them). To use more "
                    "cores train several models at a time: mmrec-mrdib leaderboard --jobs N"
                )
            _check_type(key, value, self.internal_config_dict.get(key))

    def _set_default_parameters(self) -> None:
        self.final_config_dict.setdefault("data_path", "")
        super()._set_default_parameters()
        self.final_config_dict["data_path"] = str(self._dataset_folder)
        if not self.final_config_dict["use_gpu"]:
            self.final_config_dict["gpu_id"] = ""


@functools.cache
def known_keys() -> frozenset[str]:
    """All parameters that RecBole or we give a meaning, those of other models' property files aside."""
    ours, recboles = paths.properties_dir(), paths.recbole_dir() / "properties"
    keys = set(_RECBOLE_EXTRA)
    for file in (recboles / "overall.yaml", recboles / "dataset/sample.yaml", ours / "overall.yaml"):
        keys |= set(read_yaml(file))
    for group in ("general", "training", "evaluation", "dataset"):
        keys |= set(getattr(recbole.config.configurator, f"{group}_arguments"))
    return frozenset(keys)


def parse_value(key: str, value: Any) -> Any:
    """Text as the value it denotes in YAML ('0.1', 'true', '[5, 10]', 'null'); other types as they are."""
    if not isinstance(value, str):
        return value
    if value == "None":  # Python's; 'none' is a word (feature_norm: none), null and ~ are YAML's
        return None
    try:
        return yaml.load(value, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key}={value}: not a valid YAML value ({getattr(error, 'problem', error)})") from error


_AT_LEAST_ONE = ("epochs", "train_batch_size", "eval_batch_size", "eval_step", "stopping_step")


def _check_type(key: str, value: Any, default: Any) -> None:
    """Refuse e.g. text where the default is a number. A default of None says nothing about the type."""
    if value is None or default is None:
        return
    wanted: tuple[type, ...]
    kind: Any = default  # matching on `default` itself would narrow its type for good
    match kind:
        case bool():
            wanted, name = (bool,), "true or false"
        case int():
            wanted, name = (int,), "a whole number"
        case float():
            wanted, name = (int, float), "a number"
        case dict():
            wanted, name = (dict,), "a mapping such as {key: value}"
        case _:
            return
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ConfigError(f"--{key}={value!r}: expected {name}, as in the default {default!r}")
    _check_range(key, value)


def _check_range(key: str, value: Any) -> None:
    if key in _AT_LEAST_ONE and value < 1:
        raise ConfigError(f"--{key}={value}: expected 1 or more")
    if key == "learning_rate" and value <= 0:
        raise ConfigError(f"--{key}={value}: expected a number above 0")


def _check_evaluation(config: Config) -> None:
    ranking = PER_USER + RECBOLE_ONLY
    for metric in config["metrics"]:
        if metric.lower() not in ranking:
            raise ConfigError(
                f"metrics: '{metric}' is not a metric of full ranking.{did_you_mean(metric, ranking)} "
                f"Known: {', '.join(ranking)}"
            )
    name, at, k = str(config["valid_metric"]).partition("@")
    metrics = {m.lower() for m in config["metrics"]}
    if name.lower() not in metrics or not at or not k.isdigit() or int(k) not in config["topk"]:
        raise ConfigError(
            f"valid_metric={config['valid_metric']}: expected one of metrics={list(config['metrics'])} "
            f"at one of topk={list(config['topk'])}, as in {config['metrics'][0]}@{config['topk'][0]}"
        )
    if set(config["eval_args"]["mode"].values()) != {"full"}:
        raise ConfigError(f"eval_args.mode={config['eval_args']['mode']}: only full ranking is supported (mode: full)")
    if str(config["learner"]).lower() not in ("adam", "adamw", "sgd", "adagrad", "rmsprop"):
        raise ConfigError(f"learner={config['learner']}: expected adam, adamw, sgd, adagrad or rmsprop")
