"""Typed, frozen settings: what the values of the property files mean, and in which range they make sense.

Defaults live in `properties/*.yaml` only. A settings class names its files; `from_config` reads them, lays the values of
a RecBole Config over them and checks the result. So a settings object is complete under RecBole's own Config too, which
knows nothing of our property files.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmrec_mrdib import paths
from mmrec_mrdib.errors import ConfigError


class Loader(yaml.SafeLoader):
    """YAML's safe subset, with 1e-3 read as a number (YAML 1.1 asks for 1.0e-3)."""


Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else than a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values


@functools.cache
def _defaults(file: str, module: str) -> dict[str, Any]:
    """A property file of the package that a settings class is in, or else of ours."""
    for folder in (paths.properties_of(module), paths.properties_dir()):
        if (folder / file).is_file():
            return read_yaml(folder / file)
    return {}


class Settings(BaseModel):
    """Base of all settings. Subclasses declare fields and `files`, the property files that hold the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    files: ClassVar[tuple[str, ...]] = ("overall.yaml",)

    @classmethod
    def from_config(cls, config: Any, **extra: Any) -> Self:
        """Settings from a Config (RecBole's or ours; anything with `key in config` and
        `config[key]`).

        Raises:
            ConfigError: a value of the wrong type or out of range, or a required one that is missing.
        """
        names = cls.model_fields
        values: dict[str, Any] = {}
        for file in cls.files:
            preset = config["preset"] if "preset" in config else None  # noqa: SIM401  (a Config has no get)
            defaults = _defaults(file.format(dataset=config["dataset"], preset=preset), cls.__module__)
            values |= {k: v for k, v in defaults.items() if k in names}
        values |= {k: config[k] for k in names if k in config} | extra
        return cls.checked({k: v for k, v in values.items() if v is not None})

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_one_line(error)) from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"--{key}={first['input']!r}: {message.removeprefix('value error, ')}"


Control = Literal["shuffle", "constant", "random"]


def _names(value: Any) -> Any:
    """'text,vggish' -> ['text', 'vggish']: how lists are written on the command line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class ModalityFile(Settings):
    """Where one modality's features are, when not in `<modality>_feat.npy`."""

    file: str
    """Feature file (.npy, one row an item), relative to the data set's folder."""
    ids: str | None = None
    """Text file with the item id (token) of each row, one a line; none: row number = item id (MMRec layout)."""


class DataSettings(Settings):
    """How item features and interactions are read."""

    files: ClassVar[tuple[str, ...]] = ("overall.yaml", "dataset/{dataset}.yaml")

    modalities: tuple[str, ...] | None = None
    """Names of the modalities used, in this order; none: all that the data set has."""
    modality_files: dict[str, ModalityFile] = Field(default_factory=dict)
    """Modalities whose files are not named `<modality>_feat.npy` (and `<modality>_ids.txt`)."""
    feature_norm: Literal["none", "standard", "l2", "unit"]
    """none: as in the file (MMRec's convention); standard: each column to mean 0, std 1; l2: each row to
    length 1; unit: standard, then l2."""
    features_on_disk: bool
    """Whether the scaled features are mapped from a scratch file in the cache folder instead of being held in memory."""
    missing: Literal["error", "mean", "drop"]
    """What to do with items that lack features: refuse, give them the mean row, or leave the items out. A row of zeros counts as lacking, but
    is never refused: with `error` the mean row stands in."""
    cold_items: float = Field(ge=0, lt=1)
    """Share of the items that are held out of all splits and ranked at the end as new ones."""
    feature_noise: float | None = None
    """Signal-to-noise ratio in dB of Gaussian noise added to the features; none: no noise."""
    feature_dropout: float = Field(ge=0, lt=1)
    """Share of the items that lose one modality each, at random; the mean row stands in."""
    feature_control: Control | dict[str, Control] | None = None
    """Take the information out of all modalities, or of those named, and keep the form."""
    split_seed: int
    """Seed of a random split and of corrupted features, apart from `seed`: all seeds of a comparison share them."""

    _split_names = field_validator("modalities", mode="before")(_names)

    @field_validator("modalities")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or len(set(value)) != len(value)):
            raise ValueError("name one modality or more, each once")
        return value


class EvaluationSettings(Settings):
    """How rankings are judged."""

    eval_mask: Literal["train", "history"]
    """Items left out of a user's ranking: train items (MMRec's convention), or train and, at test, valid items (RecBole's)."""


class TrainingSettings(Settings):
    """What our trainer adds to RecBole's."""

    checkpoint_interval: float = Field(ge=0)
    """Seconds between two writings of the resumable checkpoint; 0 writes it after each epoch."""
    learning_rate_scheduler: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0)]]
    """(a, b): the learning rate of epoch e is `learning_rate` * a^(e / b)."""
    threads: int = Field(ge=0)
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
