"""Models of an unmodified checkout of MMRec, or of a suite with its interface, in a process of their own (`child.py`)."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mmrec_mrdib import paths, registry
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean, listed
from mmrec_mrdib.mrdib.settings import MRdIBSettings
from mmrec_mrdib.schema import Settings, read_yaml

logger = logging.getLogger(__name__)
_MODULES = ("utils/configurator.py", "utils/dataset.py", "utils/dataloader.py", "common/trainer.py")
FAILED = 2  # exit code of a child that has told why in one line


class HostModel(Settings):
    """What is known of a model of a suite, see properties/hosts/mmrec.yaml."""

    projections: dict[str, str] = Field(default_factory=dict)
    user_view: str | dict[str, str] | None = None
    freeze: tuple[str, ...] = ()
    z_in_score: Literal["yes", "as a gate", "through the graph", "no"] | None = None
    recompute: str | None = None
    note: str | None = None


@dataclass
class Task:
    """What a child does: all variants of a model under all seeds.

    Attributes:
        code: the folder that the suite's code is imported from, and runs in.
        variants: of `registry.kinds()`.
        values: parameters of the host, over those of its files; `plugin`: the plug-in's.
    """

    suite: str
    root: str
    code: str
    model: str
    dataset: str
    seeds: list[int]
    variants: list[str]
    table: dict[str, Any]
    values: dict[str, Any]
    plugin: dict[str, Any]
    runs: str
    trust: bool = False
    threads: int = 1
    quiet: bool = False
    folders: list[str] = field(default_factory=list)


def code_folder(root: Path) -> Path:
    """Where the code of a checkout is.

    Raises:
        ConfigError: it has not MMRec's layout.
    """
    if not root.is_dir():
        raise ConfigError(f"--root={root}: no such folder")
    for folder in (root, root / "src", *sorted(p for p in root.iterdir() if p.is_dir())):
        if all((folder / module).is_file() for module in _MODULES):
            return folder.resolve()
    raise ConfigError(
        f"--root={root}: not a suite of MMRec's form: neither it nor a folder of it has {', '.join(_MODULES)}"
    )


def table(suite: str) -> dict[str, Any]:
    """Model -> what is known of it: of a suite by name, or of a yaml file."""
    if suite.endswith((".yaml", ".yml")):
        found = read_yaml(Path(suite))
    else:
        folder = paths.properties_dir() / "hosts"
        known = sorted(p.stem for p in folder.glob("*.yaml"))
        if suite not in known:
            raise ConfigError(
                f"--suite={suite}: expected {', '.join(known)}, or a yaml file of that form.{did_you_mean(suite, known)}"
            )
        found = read_yaml(folder / f"{suite}.yaml")
    like = found.pop("like", None)
    return (table(like) if like else {}) | found


def known_of(suite: str, model: str, given: Mapping[str, Any]) -> HostModel:
    """What the table and the command line say of a model."""
    entry = table(suite).get(model, {})
    if not isinstance(entry, dict):
        raise ConfigError(f"--suite={suite}: {model}: expected projections, user_view, ..., found {entry!r}")
    return HostModel.checked(entry | {k: v for k, v in given.items() if v is not None})


def named_paths(text: str, option: str) -> dict[str, str]:
    """'image=image_trs,text=text_trs'."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip().isidentifier() and path.strip() for name, _, path in pairs):
        raise ConfigError(f"{option}={text}: expected modality=path, as in image=image_trs,text=text_trs")
    return {name.strip(): path.strip() for name, _, path in pairs}


def variants_of(names: Sequence[str], known: HostModel, model: str) -> list[str]:
    """Checked."""
    kinds = {k: parts for k, parts in registry.kinds().items() if parts[0] in (None, "MRdIB", "Content")}
    for name in names:
        if name not in kinds:
            raise ConfigError(f"--variants: no '{name}'.{did_you_mean(name, kinds)} Known: {', '.join(kinds)}")
        if name == "mrdib-paper" and not known.projections:
            why = f": {known.note}" if known.note else ""
            raise ConfigError(
                f"--variants={name}: no projections of {model} are known{why}; name them: --projections image=PATH,text=PATH (mrdib.suggest lists them)"
            )
    return list(dict.fromkeys(names))


def split_values(
    values: Mapping[str, Any], code: Path, model: str, dataset: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the host's, the plug-in's): a parameter that both have is the host's; `mrdib.<name>` is the plug-in's in any case.

    Raises:
        ConfigError: neither has it.
    """
    own = set(MRdIBSettings.model_fields) - {"backbone", "preset", "training", "encoders", "user_view"}
    files = [code / "configs" / f for f in ("overall.yaml", f"dataset/{dataset}.yaml", f"model/{model}.yaml")]
    theirs = frozenset().union(*(read_yaml(f) for f in files if f.is_file()))
    host: dict[str, Any] = {}
    plugin: dict[str, Any] = {}
    for key, value in values.items():
        plain = key.removeprefix("mrdib.")
        if plain in own and (plain != key or key not in theirs):
            plugin[plain] = value
        elif plain == key and (key in theirs or _is_read(code, key)):
            host[key] = value
        else:
            raise ConfigError(
                f"--{key}: neither {model}'s configuration in {code / 'configs'} nor the plug-in has it.{did_you_mean(plain, theirs | own)}"
            )
    return host, plugin


def _is_read(code: Path, key: str) -> bool:
    """Whether the suite's code asks for a parameter that none of its files has."""
    pattern = re.compile(rf"""config\[['"]{re.escape(key)}['"]\]""")
    return any(pattern.search(file.read_text(encoding="utf-8", errors="replace")) for file in code.rglob("*.py"))


def run(task: Task) -> list[dict[str, Any]]:
    """Run a task in a child and return its results, in its order.

    Raises:
        ConfigError: the host cannot work, in one line.
        KeyboardInterrupt: Ctrl-C, of which the child hears, too.
    """
    from mmrec_mrdib.experiment import record

    with tempfile.TemporaryDirectory() as scratch:
        file, told = Path(scratch) / "task.json", Path(scratch) / "told.json"
        file.write_text(json.dumps(asdict(task)), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(paths.PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
        }
        command = [sys.executable, "-m", "mmrec_mrdib.hosts.child", str(file), str(told)]
        output = subprocess.DEVNULL if task.quiet else 2  # what the host prints is no result of ours
        done = subprocess.run(command, env=environment, check=False, stdout=output)
        found = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    if done.returncode or "folders" not in found:
        why = found.get("error", f"its process ended with code {done.returncode}")
        raise ConfigError(f"{task.model} of {task.root}: {why}")
    return [record.load_result(folder) | {"folder": folder} for folder in found["folders"]]


def plan(
    suite: str, root: Path, model: str, dataset: str, seeds: Sequence[int], variants: Sequence[str], given: Mapping[str, Any],
    values: Mapping[str, Any], runs: Path, data_path: str | None, trust: bool, threads: int, quiet: bool,
) -> Task:  # fmt: skip
    """A checked task.

    Raises:
        ConfigError, DataError: what a look at the folder and the tables can tell.
    """
    code = code_folder(root)
    models = {p.stem for p in (code / "models").glob("*.py") if p.stem != "__init__"}
    if model.lower() not in models:
        raise ConfigError(
            f"--model={model}: {code / 'models'} has no {model.lower()}.py.{did_you_mean(model, models)} It has: {listed(sorted(models), 30)}"
        )
    datasets = {p.stem for p in (code / "configs" / "dataset").glob("*.yaml")}
    if dataset not in datasets:
        raise DataError(
            f"--dataset={dataset}: {code / 'configs' / 'dataset'} has no {dataset}.yaml, which such a suite needs to read it.{did_you_mean(dataset, datasets)} "
            f"It has: {listed(sorted(datasets), 30) or 'none'}"
        )
    known = known_of(suite, model, given)
    host, plugin = split_values(values, code, model, dataset)
    if data_path is not None:
        host["data_path"] = f"{Path(data_path).resolve()}{os.sep}"
    return Task(
        Path(suite).stem, str(root.resolve()), str(code), model, dataset, list(seeds), variants_of(variants, known, model),
        known.model_dump(), host, plugin, str(runs.resolve()), trust, threads, quiet,
    )  # fmt: skip
