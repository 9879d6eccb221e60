"""Hyper-parameter search on the validation split, with Optuna: resumable, shareable between machines, the same for every variant.

A study is one model on one data set with one set of given parameters; its name has a hash of all of that, so that another question
never continues an old answer. What is given is not searched. The budget counts finished trials (complete, pruned, failed, diverged):
what a killed process left open is tried again and not counted. The test split is not read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import math
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmrec_mrdib import process, registry
from mmrec_mrdib.compat import plain
from mmrec_mrdib.config import Config
from mmrec_mrdib.errors import ConfigError, MRdIBError, NonFiniteLossError, first_line, listed
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment.run import best_on_valid, build, make_config, prepare
from mmrec_mrdib.experiment.tables import csv_cell
from mmrec_mrdib.mrdib.weighting import TERMS
from mmrec_mrdib.paths import write_atomically
from mmrec_mrdib.schema import read_yaml

logger = logging.getLogger(__name__)
# What two processes get that both find an empty database and both create its tables: one of them is too late.
_TOO_LATE = ("IntegrityError", "ProgrammingError", "StorageInternalError")
_HEARTBEAT = 20  # seconds; a trial whose process was not heard of for three of them is lost
_PROCESS, _FAILED, _DIVERGED, _CODE = "process", "failed", "diverged", "code"  # of a trial
_DUPLICATE, _SURPLUS = "duplicate_of", "surplus"  # of a trial that is not trained and does not count
_RETRIED = "retried"  # of the study: failed trials whose points were queued again
_WARMUP_EPOCHS = 10  # no trial is pruned before
_PATIENCE = 5  # trials that are never pruned
PRUNING = ("median", "none")
_AUTOMATIC = tuple(f"{term}_weight" for term in TERMS)  # where `weighting: auto`
# What an impossible point may raise: it costs the point its trial. A full disk or a lost database is not the point's fault.
_IMPOSSIBLE = (MRdIBError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError)
# Weights of the plug-in that are a parameter of the backbone: the same term of the loss twice. Searched over the same values.
TWINS = {"FREEDOM": {"unique_weight": "reg_weight"}}
_ALIAS = {"unimodal_weight": "unique_weight"}  # the same term, of the control


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        study: its name in the storage.
        params: the best trial's values.
        value: its valid score.
        trials: finished trials that count against the budget.
        pruned, failed: how many of these were stopped early, or were impossible points.
        diverged: how many of those that failed became NaN.
        seconds: time of all trials together.
        code: that ran the trials, see `record.code`.
    """

    study: str
    params: dict[str, Any]
    value: float
    trials: int
    pruned: int
    failed: int
    diverged: int
    seconds: float
    code: list[str]


def optuna() -> Any:
    """The library, quiet.

    Raises:
        ConfigError: not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise ConfigError("tuning needs Optuna: pip install 'mmrec-mrdib[tune]'") from error
    library.logging.set_verbosity(library.logging.ERROR)  # what fails a trial is told by us, or raised
    warnings.filterwarnings("ignore", category=library.exceptions.ExperimentalWarning)  # heartbeats, since 2021
    return library


def search_space(model: str, weights: str = "search", file: Path | None = None) -> dict[str, list[Any]]:
    """Parameter -> the values to choose from.

    Where a weight of the plug-in is a parameter of the backbone (`TWINS`), the variant searches that weight over the backbone's values and
    leaves the parameter at 0, so that their sum can reach what the plain model reaches, and no more. Automatic weights are multiples of the
    backbone's losses: there the parameter is searched as for the plain model.

    Args:
        model: 'VBPR' or 'VBPR+MRdIB'; the variant has its backbone's space and those of its plug-ins.
        weights: 'search' adds the plug-ins' spaces to the variant's, 'auto' those without MRdIB's weights (they set themselves), 'fixed' none.
        file: a yaml file in place of the shipped ones in properties/search.

    Raises:
        ConfigError: no space is known, or the file is not one.
    """
    variant = registry.variant(model)
    base = variant.root
    registry.model_class(base)  # an unknown or refused name is told as such
    if file is not None:
        space = read_yaml(file)
    else:
        own = registry.property_file("search", base)
        if not has_space(model):
            names = dict.fromkeys([*registry.MODELS, *registry.baselines()])
            known = ", ".join(sorted(n for n in names if has_space(n)))
            raise ConfigError(
                f"no search space for {base} in {own.parent}; give one with --space=FILE.yaml. Known: {known}"
            )
        of_base = space = read_yaml(own)
        for _, plugin, preset in variant.layers if weights != "fixed" else ():
            assert plugin is not None
            searched_too = registry.property_file("search", plugin, f"{plugin}-{preset}" if preset else plugin)
            added = read_yaml(searched_too) if searched_too.is_file() else {}
            if weights == "auto":
                added = {k: v for k, v in added.items() if k not in _AUTOMATIC}
            space = space | added
            for weight in added:
                if parameter := TWINS.get(base, {}).get(_ALIAS.get(weight, weight)):
                    space |= {weight: of_base[parameter], parameter: [0.0]}
    for key, values in space.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"search space: {key}: expected a list of values, found {values!r}")
    return space


def has_space(model: str) -> bool:
    """Whether properties/search/ has a search space for the model (or the variant's backbone)."""
    return registry.property_file("search", registry.variant(model).root).is_file()


def searched(
    space: Mapping[str, Sequence[Any]], values: Mapping[str, Any], files: Sequence[Path]
) -> dict[str, list[Any]]:
    """The part of a space that is not given: what the user sets, as a value or in a file (see `given_files`), stays as it is.

    Raises:
        ConfigError: nothing is left.
    """
    given = set(values).union(*(read_yaml(file) for file in files))
    left = {k: list(v) for k, v in space.items() if k not in given}
    if len(left) < len(space) and all(len(v) == 1 for v in left.values()):
        raise ConfigError(
            f"nothing is left to search: all of the search space is given ({', '.join(k for k in space if k in given)}); "
            f"leave out at least one of {', '.join(k for k, v in space.items() if len(v) > 1)}"
        )
    return left


def given_files(config: Config, config_files: Sequence[str | Path]) -> list[Path]:
    """The user's yaml files of a run: `config_files`, and the one beside the data."""
    beside = Path(config["data_path"]) / f"{config['dataset']}.yaml"
    return [*map(Path, config_files), *([beside] if beside.is_file() else [])]


def tune(
    model: str,
    dataset: str,
    trials: int,
    values: Mapping[str, Any] | None = None,
    config_files: Sequence[str | Path] = (),
    storage: str | None = None,
    runs: Path = Path("runs"),
    seed: int = 1,
    space: Mapping[str, Sequence[Any]] | None = None,
    told: Callable[[str], None] = lambda text: None,
    pruning: str = "median",
    fresh: bool = False,
) -> Tuned:
    """Search until `trials` are finished, counting those that the storage has already.

    Each trial trains with the same seed and is judged by the best valid score of its epochs; the median rule stops hopeless ones
    early. A point that cannot be built or trained is a failed trial, counted and never tried again. Proposals come from TPE with a seed of their own for each trial, so that an interrupted search goes on as it would have
    gone. A point that was tried before is not trained again and does not count; a small space may be exhausted before the budget is.

    Args:
        values, config_files: parameters that stay as they are, see `Config`; they leave the search space.
        storage: an SQLAlchemy URL; none: SQLite in `runs`/optuna.db. Several processes and machines may share one.
        seed: of the training and of the proposals.
        told: hears of each finished trial.
        pruning: 'median' or 'none'.
        fresh: forget the earlier trials of this study.

    Raises:
        ConfigError: no Optuna, no such storage, nothing left to search, or no trial succeeded.
        MRdIBError: what would fail every trial, as a data set that is not there.
    """
    library = optuna()
    whole = search_space(model) if space is None else space
    fixed = dict(values or {})
    files = given_files(make_config(model, dataset, seed, config_files, fixed), config_files)
    space = searched(whole, fixed, files)
    if held := [k for k in whole if k not in space]:
        logger.info("%s on %s: given, so not searched: %s", model, dataset, ", ".join(held))
    bigger = bool(_probe(model, dataset, seed, config_files, fixed, space)["valid_metric_bigger"])
    name = study_name(model, dataset, seed, config_files, fixed, space, pruning)
    runs.mkdir(parents=True, exist_ok=True)
    study = _open(
        library, storage or f"sqlite:///{runs.absolute() / 'optuna.db'}", name, bigger, trials, pruning, fresh
    )
    points = math.prod(len(choices) for choices in space.values())
    mine: list[int] = []  # trials that this process trained

    def objective(trial: Any) -> float:
        trial.set_user_attr(_PROCESS, _this_process())
        trial.set_user_attr(_CODE, record.code())
        if _ahead(library, study, trial.number) >= trials:  # another process began the last one at the same moment
            trial.set_user_attr(_SURPLUS, True)
            raise library.TrialPruned
        params = {
            k: json.loads(trial.suggest_categorical(k, [json.dumps(v) for v in choices]))
            for k, choices in space.items()
        }
        earlier = _same_point(library, study, trial)
        if earlier is not None:
            trial.set_user_attr(_DUPLICATE, earlier.number)
            if earlier.state != library.trial.TrialState.COMPLETE:
                raise library.TrialPruned
            return float(earlier.value)
        mine.append(trial.number)
        started = time.perf_counter()
        scores: list[float] = []

        def judge(epoch: int, score: float) -> None:
            scores.append(score)
            trial.report(score, epoch)
            if trial.should_prune():
                raise library.TrialPruned

        try:
            config = make_config(model, dataset, seed, config_files, fixed | params)
            with tempfile.TemporaryDirectory() as folder:
                best_on_valid(config, Path(folder), judge)
        except _IMPOSSIBLE as error:
            if isinstance(error, library.exceptions.OptunaError):  # some are RuntimeErrors
                raise
            if process.gpu_is_lost(str(error)):  # no fault of this point, and every later trial would fail
                raise
            diverged = isinstance(error, NonFiniteLossError)
            if not diverged and not any(t.value is not None for t in _counted(library, study)):
                build(make_config(model, dataset, seed, config_files, fixed))  # it may not be the point's fault
            kind = "" if isinstance(error, MRdIBError) else f"{type(error).__name__}: "
            trial.set_user_attr(_FAILED, (kind + str(error)).strip().splitlines()[0])
            if diverged:
                trial.set_user_attr(_DIVERGED, True)
            raise library.TrialPruned from error
        finally:
            trial.set_user_attr("seconds", time.perf_counter() - started)
            trial.set_user_attr("epochs", len(scores))
        return max(scores) if bigger else min(scores)

    while True:
        _free_lost(library, study)
        counted = _counted(library, study)
        running = [t for t in study.trials if t.state == library.trial.TrialState.RUNNING]
        if len(counted) >= min(trials, points):
            break
        if len(counted) + len(running) >= trials:  # others are at the last ones
            time.sleep(0.5)
            continue
        study.sampler = library.samplers.TPESampler(
            seed=seed * 1_000_003 + len(study.trials), n_startup_trials=min(10, max(trials // 2, 1))
        )
        trained = len(mine)
        study.optimize(objective, n_trials=1)
        if len(mine) > trained:
            told(_progress(library, study, study.trials[mine[-1]], trials))
    return _summary(library, study, name)


def study_name(
    model: str,
    dataset: str,
    seed: int,
    config_files: Sequence[str | Path],
    fixed: Mapping[str, Any],
    space: Mapping[str, Sequence[Any]],
    pruning: str = "median",
) -> str:
    """'<model>-<dataset>-<8 hex digits>': the digits change with the data, any given parameter, the seed, the space and the pruning."""
    config = make_config(model, dataset, seed, config_files, fixed)
    splits = prepare(config)
    digest = record.run_hash(config, splits.dataset.fingerprint(splits.parts))
    text = json.dumps([digest, seed, {k: list(v) for k, v in sorted(space.items())}, pruning], sort_keys=True)
    return f"{model}-{dataset}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _probe(
    model: str,
    dataset: str,
    seed: int,
    config_files: Sequence[str | Path],
    fixed: Mapping[str, Any],
    space: Mapping[str, Sequence[Any]],
) -> Config:
    """A Config of the given parameters. What no trial could use shows now, and not in the middle of the search.

    Raises:
        ConfigError: a given parameter, or all the values of one that is searched; or automatic weights that are searched.
    """
    config = make_config(model, dataset, seed, config_files, fixed)
    for key, choices in space.items():
        for n, value in enumerate(choices, 1):
            try:
                make_config(model, dataset, seed, config_files, {**fixed, key: value})
                break
            except ConfigError:
                if n == len(choices):
                    raise
    weights = [k for k in space if k in _AUTOMATIC]
    if weights and config["weighting"] == "auto":
        raise ConfigError(
            f"weighting=auto: {', '.join(weights)} set themselves and cannot be searched; use --weights=auto"
        )
    return config


def _open(library: Any, url: str, name: str, bigger: bool, trials: int, pruning: str, fresh: bool) -> Any:
    for attempts_left in reversed(range(5)):
        try:
            storage = library.storages.RDBStorage(
                url,
                # SQLite locks the whole file for each write: waiting is better than failing.
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
                heartbeat_interval=_HEARTBEAT,
                grace_period=3 * _HEARTBEAT,
            )
            if fresh and name in library.get_all_study_names(storage):
                library.delete_study(study_name=name, storage=storage)
            median = library.pruners.MedianPruner(
                n_startup_trials=min(_PATIENCE, trials), n_warmup_steps=_WARMUP_EPOCHS
            )
            return library.create_study(
                storage=storage,
                study_name=name,
                direction="maximize" if bigger else "minimize",
                load_if_exists=True,
                pruner=median if pruning == "median" else library.pruners.NopPruner(),
            )
        except Exception as error:  # SQLAlchemy's, the driver's, Optuna's
            # SQLite's is an OperationalError, as many others are: only its text tells.
            late = type(error).__name__ in _TOO_LATE or "already exists" in str(error)
            if attempts_left and late:
                time.sleep(0.5)
                continue
            reason = first_line(error)
            raise ConfigError(
                f"--storage={url}: cannot be opened ({reason}); expected an SQLAlchemy URL such as sqlite:///optuna.db or "
                "postgresql+psycopg://user:password@host/database"
            ) from error
    raise AssertionError


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"


def _start_time(pid: int) -> str:
    """When a process of this machine was started, so that a number used again is not taken for it; '' if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _free_lost(library: Any, study: Any) -> None:
    """Give up trials whose process is gone, and have their points tried again. Other machines' are known by their heartbeat."""
    state = library.trial.TrialState
    library.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        host, _, rest = trial.user_attrs.get(_PROCESS, "::").partition(":")
        pid, _, started = rest.partition(":")
        if host == socket.gethostname() and pid.isdigit() and _start_time(int(pid)) != started:
            study.tell(trial.number, state=state.FAIL, skip_if_finished=True)
    retried = set(study.user_attrs.get(_RETRIED, []))
    lost = [t for t in study.get_trials(deepcopy=False, states=(state.FAIL,)) if t.number not in retried]
    if lost:
        study.set_user_attr(_RETRIED, sorted(retried | {t.number for t in lost}))
        for trial in lost:
            study.enqueue_trial(trial.params)


def _finished(library: Any, study: Any) -> list[Any]:
    states = (library.trial.TrialState.COMPLETE, library.trial.TrialState.PRUNED)
    return study.get_trials(deepcopy=False, states=states)


def _counted(library: Any, study: Any) -> list[Any]:
    """Each point once: two processes may have tried the same one."""
    first: dict[str, Any] = {}
    for trial in filter(_counts, _finished(library, study)):
        first.setdefault(json.dumps(trial.params, sort_keys=True), trial)
    return list(first.values())


def _counts(trial: Any) -> bool:
    return not {_DUPLICATE, _SURPLUS} & trial.user_attrs.keys()


def _ahead(library: Any, study: Any, number: int) -> int:
    """Trials before `number` that count, or will: one reading, so that one which ends meanwhile is not missed."""
    state = library.trial.TrialState
    states = (state.COMPLETE, state.PRUNED, state.RUNNING)
    before = [t for t in study.get_trials(deepcopy=False, states=states) if t.number < number and _counts(t)]
    finished = {json.dumps(t.params, sort_keys=True) for t in before if t.state != state.RUNNING}
    return len(finished) + sum(t.state == state.RUNNING for t in before)


def _same_point(library: Any, study: Any, trial: Any) -> Any:
    """An earlier trial of the same point that is finished, or that another process is at."""
    running = study.get_trials(deepcopy=False, states=(library.trial.TrialState.RUNNING,))
    others = [
        *_counted(library, study),
        *(t for t in running if t.number < trial.number and _counts(t)),
    ]
    return next((t for t in others if t.params == trial.params), None)


def _progress(library: Any, study: Any, trial: Any, trials: int) -> str:
    done = _counted(library, study)
    complete = [t.value for t in done if t.value is not None]
    best = f"best {study.best_value:.4f}" if complete else "none complete yet"
    if _FAILED in trial.user_attrs:
        outcome = f"failed: {trial.user_attrs[_FAILED]}"
    elif trial.state == library.trial.TrialState.PRUNED:
        outcome = f"stopped at epoch {trial.last_step}"
    else:
        outcome = f"{trial.value:.4f}" if trial.value is not None else str(trial.state.name).lower()
    params = "  ".join(f"{k} {json.loads(v)}" for k, v in trial.params.items())
    return f"trial {len(done)} of {trials}: {outcome} ({trial.user_attrs.get('seconds', 0):.0f} s)  {params}; {best}"


def _summary(library: Any, study: Any, name: str) -> Tuned:
    counted = _counted(library, study)
    if not any(t.state == library.trial.TrialState.COMPLETE for t in counted):
        reasons = dict.fromkeys(t.user_attrs[_FAILED] for t in counted if _FAILED in t.user_attrs)
        raise ConfigError(
            f"{name}: none of {len(counted)} trials succeeded; look at the search space ({listed(reasons, 3) or 'all stopped early'})"
        )
    best = study.best_trial
    failed = sum(_FAILED in t.user_attrs for t in counted)
    return Tuned(
        study=name,
        params={k: json.loads(v) for k, v in best.params.items()},
        value=float(best.value),
        trials=len(counted),
        pruned=sum(t.state == library.trial.TrialState.PRUNED for t in counted) - failed,
        failed=failed,
        diverged=sum(_DIVERGED in t.user_attrs for t in counted),
        seconds=sum(t.user_attrs.get("seconds", 0.0) for t in counted),
        code=sorted({t.user_attrs.get(_CODE, record.code({})) for t in counted}),
    )


def write(
    tuned: Tuned, model: str, dataset: str, storage: str | None, runs: Path, folder: Path, seed: int
) -> list[Path]:
    """best.yaml (for --config_files), trials.csv, and, with matplotlib, history.png and importance.png. Returns the paths."""
    library = optuna()
    url = storage or f"sqlite:///{runs.absolute() / 'optuna.db'}"
    study = library.load_study(study_name=tuned.study, storage=url)
    folder.mkdir(parents=True, exist_ok=True)
    head = (
        f"# {model} on {dataset}: best of {tuned.trials} trials on validation, {tuned.value:.6f} "
        f"({tuned.pruned} stopped early, {tuned.failed} failed); study {tuned.study}\n"
        f"# Found with seed {seed}: test with other seeds.\n"
    )
    out = [folder / "best.yaml", folder / "trials.csv"]
    write_atomically(out[0], (head + yaml.safe_dump(plain(tuned.params), sort_keys=True)).encode())
    counted = _counted(library, study)
    names = list(dict.fromkeys(itertools.chain.from_iterable(t.params for t in counted)))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["trial", "state", "value", "epochs", "seconds", *map(csv_cell, names)])
    for t in counted:
        failed = t.user_attrs.get(_FAILED)
        state = t.state.name.lower() if failed is None else f"failed: {failed}"
        measured = [t.user_attrs.get("epochs", ""), f"{t.user_attrs.get('seconds', 0):.2f}"]
        params = [csv_cell(json.loads(t.params[n])) if n in t.params else "" for n in names]
        rows.writerow([t.number, state, "" if t.value is None else t.value, *measured, *params])
    write_atomically(out[1], table.getvalue().encode())
    try:
        from mmrec_mrdib.experiment import figures
    except ImportError:
        logger.warning("no pictures: matplotlib is not installed (pip install 'mmrec-mrdib[plot]')")
        return out
    complete = library.trial.TrialState.COMPLETE
    scores = [
        (t.number, t.value if t.state == complete else _best_seen(t, study), t.state == complete) for t in counted
    ]
    out.append(folder / "history.png")
    write_atomically(out[-1], figures.history(f"{model} on {dataset}", scores, study.direction.name == "MAXIMIZE"))
    values = [t.value for t in counted if t.state == complete]
    if len(values) >= 4 and len(set(values)) > 1 and len(names) > 1:  # equal scores have nothing to explain
        importance = library.importance.get_param_importances(
            study, evaluator=library.importance.FanovaImportanceEvaluator(seed=0)
        )
        out.append(folder / "importance.png")
        panels = {"share of the variance (fANOVA)": {name: {"importance": float(v)} for name, v in importance.items()}}
        write_atomically(out[-1], figures.bars(panels, "importance"))
    return out


def _best_seen(trial: Any, study: Any) -> float:
    pick = max if study.direction.name == "MAXIMIZE" else min
    return float(pick(trial.intermediate_values.values(), default=math.nan))
