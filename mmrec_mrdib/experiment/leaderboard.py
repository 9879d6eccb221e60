"""Models by data sets by seeds, tuned with equal budgets, tested in pairs: the board and the runs behind it.

A cell is one model (plain or +MRdIB) on one data set. Its runs are ordinary run folders: one that is complete is not trained again, one that
was interrupted goes on, and a failed one is tried again by the next call. The test split is read once a run, after all choices, and with
other seeds than the one that tuned.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmrec_mrdib import paths, registry
from mmrec_mrdib.config import Config, known_keys, parse_value
from mmrec_mrdib.errors import ConfigError, DataError, NonFiniteLossError, did_you_mean
from mmrec_mrdib.experiment import record, tune
from mmrec_mrdib.experiment.ranks import mean_ranks
from mmrec_mrdib.experiment.run import display_name, is_staged, make_config, prepare, run
from mmrec_mrdib.experiment.tables import NEW, csv_cell, csv_text
from mmrec_mrdib.experiment.workers import Failure, Pool
from mmrec_mrdib.general import fitted_in_one_pass
from mmrec_mrdib.paths import write_atomically
from mmrec_mrdib.schema import DataSettings, read_yaml
from mmrec_mrdib.significance import (
    RESAMPLES,
    Outcome,
    holm,
    holm_level,
    paired_bootstrap,
    paired_t,
    smallest_over_seeds,
    smallest_over_users,
    wilcoxon,
)

logger = logging.getLogger(__name__)
BOARD_VERSION = 3
WORK = "mmrec_mrdib.experiment.leaderboard:work"
LEVEL = 0.05
LEAST_SEEDS = 5  # with fewer, a t-test over seeds says next to nothing, and no gain is called significant
VARIANTS = ("plain", "mrdib")
REPORTED = "reported.csv"  # in the folder of runs: results of others


@dataclass(frozen=True)
class Spec:
    """What is to be compared.

    Attributes:
        models: backbones, or models of RecBole.
        datasets: names.
        seeds: of the training.
        variants: 'plain', 'mrdib', 'mrdib-paper', 'content', ... (`registry.kinds`), also 'mrdib+mg'.
        against: variants that the others are compared with, the first of them in every table. A pair is compared once: of two that are both
            named here, the later one with the earlier.
        trials: of tuning a cell; 0: no tuning. Models without a search space are not tuned.
        pruning: of these trials, see `tune`.
        tuning_seed: none of `seeds`; none given: 0, or the first number after them.
        weights: of variants that are trained together with their backbone: 'search' (part of the variant's search space), 'auto' (they set
            themselves), or 'fixed' (as configured).
        metrics: of the board, as in 'recall@20'; all are tested, and p-values corrected over all.
        values, config_files: parameters of all runs; `dataset_values`: of those on one data set.
        data_path: folder of the data sets; those built in are found without.
        storage, runs: see `tune`.
        fresh: tune and train anew what is complete.
        only_complete: train nothing; a run that is not complete is a failure, 'not run'.
    """

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    variants: tuple[str, ...] = VARIANTS
    against: tuple[str, ...] = ("plain",)
    trials: int = 0
    pruning: str = "median"
    tuning_seed: int | None = None
    weights: str = "fixed"
    metrics: tuple[str, ...] = ("recall@20", "ndcg@20")
    values: Mapping[str, Any] = field(default_factory=dict)
    dataset_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config_files: tuple[str, ...] = ()
    data_path: str | None = None
    storage: str | None = None
    runs: Path = Path("runs")
    fresh: bool = False
    only_complete: bool = False

    @property
    def seed_of_tuning(self) -> int:
        if self.tuning_seed is not None:
            return self.tuning_seed
        return 0 if 0 not in self.seeds else max(self.seeds) + 1


@dataclass
class Cell:
    """A model on a data set, and what has become of it.

    Attributes:
        model: 'VBPR' or 'VBPR+MRdIB'.
        values: its parameters, without those that tuning finds.
        space: what tuning searches; empty: it is not tuned.
        host: (model, values) that are tuned in its place: a variant whose backbone is trained first takes the parameters that were found
            for that backbone, from the same trials, and searches none of its own.
        tuned: outcome of tuning (see `tune.Tuned`), or None.
        results: seed -> the run's result.
        failures: 'tuning' or 'seed N' -> why.
    """

    model: str
    dataset: str
    values: dict[str, Any]
    space: dict[str, list[Any]] = field(default_factory=dict)
    host: tuple[str, dict[str, Any]] | None = None
    tuned: dict[str, Any] | None = None
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def backbone(self) -> str:
        return registry.variant(self.model).root

    @property
    def variant(self) -> str:
        return registry.variant(self.model).kind

    def notes(self, spec: Spec) -> list[str]:
        """What its row says beside numbers."""
        if not spec.trials:
            return []
        if not self.space:
            return ["not tuned: no search space"]
        if self.host is None:
            return []
        return [f"tuned as {self.host[0] if '+' in self.host[0] else 'its plain backbone'}, nothing of its own"]


def cells(spec: Spec) -> Iterator[Cell]:
    """All cells, their configuration checked.

    Raises:
        ConfigError, DataError: before anything is trained.
    """
    if spec.trials and spec.seed_of_tuning in spec.seeds:
        raise ConfigError(
            f"--tuning_seed={spec.tuning_seed}: is one of the seeds that are tested; a seed that has chosen the parameters favours them"
        )
    if spec.trials and spec.only_complete:
        raise ConfigError("only_complete trains nothing, and so does not tune; leave one of them")
    for rival in spec.against:
        if rival != "plain" and rival not in spec.variants:
            known = ",".join(spec.variants)
            raise ConfigError(
                f"--against={rival}: not among --variants={known}; name one of them, or add it there.{did_you_mean(rival, spec.variants)}"
            )
    made: list[Cell] = []
    plugins = frozenset().union(*map(registry.parameters, registry.PLUGINS))
    if "plain" in spec.variants:
        _check_files(spec, plugins)
    theirs = plugins.union(*map(registry.parameters, spec.models)) - known_keys()
    for dataset in spec.datasets:
        for base in spec.models:
            for variant in spec.variants:
                name = registry.of_kind(base, variant).name
                plugged = name != base
                values = {**spec.values, **spec.dataset_values.get(dataset, {})}
                if spec.data_path is not None and not _built_in(dataset, spec.data_path):
                    values["data_path"] = spec.data_path
                # A parameter that only some models of the board have, or a plug-in, is for those (Pop has no embedding_size).
                plain = {k: v for k, v in values.items() if k not in theirs - registry.parameters(base)}
                own = {k: v for k, v in values.items() if k in registry.variant(name).parameters}
                values = plain | own
                cell = Cell(name, dataset, values)
                config = make_config(cell.model, dataset, spec.seeds[0], spec.config_files, values)
                if plugged and not _fits(base, config):
                    continue
                if spec.weights == "auto" and plugged and config["encoders"] == "backbone":
                    cell.values = values = values | {"weighting": "auto"}
                    config = make_config(cell.model, dataset, spec.seeds[0], spec.config_files, values)
                _check_metrics(spec, config)
                if is_staged(config):
                    trained = config.host()
                    while is_staged(trained):
                        trained = trained.host()
                    host = registry.variant(display_name(trained))
                    cell.host = (host.name, plain | {k: v for k, v in own.items() if k in host.parameters})
                if spec.trials and tune.has_space(base):
                    whole = tune.search_space(cell.host[0] if cell.host else cell.model, spec.weights)
                    try:
                        cell.space = tune.searched(whole, values, tune.given_files(config, spec.config_files))
                    except ConfigError as error:
                        raise ConfigError(f"{cell.model} on {dataset}: {error}") from error
                made.append(cell)
                yield cell
    compared = {rival.variant for _, rival in _pairs(spec, made)}
    for rival in spec.against:
        if rival != "plain" and rival not in compared:
            raise ConfigError(f"--against={rival}: no model here has that variant and one to compare with it")


def _fits(base: str, config: Config) -> bool:
    """Whether a board has the variant: plug-ins that act on a backbone's encoders are for those that have any, and what trains together with a
    backbone for those that are trained in steps."""
    if any(c.model_class.reads_encoders(c) for c in config.layers) and not registry.is_multimodal(base):
        return False
    together = not all(map(is_staged, config.layers))
    return not (together and fitted_in_one_pass(registry.model_class(base)))


def _check_files(spec: Spec, of_plugins: frozenset[str]) -> None:
    """A plain model would refuse them as unknown, without a word on what to do."""
    for file in spec.config_files:
        if given := sorted(of_plugins & set(read_yaml(Path(file)))):
            raise ConfigError(
                f"{file}: {', '.join(given)} is a parameter of plug-ins alone; give it as --{given[0]}=VALUE"
            )


def _built_in(dataset: str, data_path: str) -> bool:
    return dataset in paths.BUILTIN_DATASETS and not (Path(data_path) / dataset).is_dir()


def _check_metrics(spec: Spec, config: Config) -> None:
    have = {f"{m.lower()}@{k}" for m in config["metrics"] for k in config["topk"]}
    if config["cold_items"]:
        have |= {NEW + metric for metric in have}
    for metric in spec.metrics:
        if metric not in have:
            raise ConfigError(
                f"--columns: {metric} is not computed; choose of {', '.join(sorted(have))}, or change --metrics and --topk"
            )


# Running.


def work(payload: Mapping[str, Any]) -> dict[str, Any]:
    """One task, in a worker: tune a cell, or train it with one seed."""
    fresh = payload["fresh"]
    if payload["kind"] == "tune":
        tuned = tune.tune(
            payload["model"], payload["dataset"], payload["trials"], payload["values"], payload["config_files"], payload["storage"],
            Path(payload["runs"]), payload["seed"], payload["space"], pruning=payload["pruning"], fresh=fresh,
        )  # fmt: skip
        return vars(tuned)
    config = make_config(
        payload["model"], payload["dataset"], payload["seed"], payload["config_files"], payload["values"]
    )
    folder = record.run_folder(
        Path(payload["runs"]),
        display_name(config),
        payload["dataset"],
        payload["seed"],
        record.run_hash(config, _fingerprint(config)),
    )
    if (folder / "result.json").is_file() and not fresh:
        result, seconds = record.load_result(folder), 0.0
    elif payload["only_complete"]:
        raise DataError("not run")
    else:
        result = run(config, Path(payload["runs"]), resume=not fresh)
        seconds = result["total_seconds"]
    if (why := record.diverged(result)) is not None:  # its best epoch is kept, but is no outcome of this configuration
        raise NonFiniteLossError(why)
    return {"folder": str(folder), "seconds": seconds}


_fingerprints: dict[str, str] = {}


def _fingerprint(config: Config) -> str:
    """Of the data, read once a process and setting."""
    names = [*config.parameters["Dataset"], *DataSettings.model_fields, "eval_args", "data_path", "dataset"]
    key = json.dumps({n: record.plain(config[n]) for n in sorted(set(names))}, sort_keys=True)
    if key not in _fingerprints:
        splits = prepare(config)
        _fingerprints[key] = splits.dataset.fingerprint(splits.parts)
    return _fingerprints[key]


def execute(spec: Spec, pool: Pool, told: Callable[[str], None] = lambda text: None, threads: int = 0) -> list[Cell]:
    """Train all that is missing. `told` hears of each task that ends.

    Args:
        threads: PyTorch's threads of each task at most; 0: as configured.
    """
    board = list(cells(spec))
    tasks: dict[str, tuple[Cell, int | None]] = {}
    total = sum(len(spec.seeds) + bool(cell.space) for cell in board)
    ended, started, trained = 0, time.monotonic(), 0

    def submit(cell: Cell, seed: int | None) -> None:
        key = f"{cell.model} on {cell.dataset}, {'tuning' if seed is None else f'seed {seed}'}"
        params = cell.tuned["params"] if cell.tuned else {}
        model, values = cell.host if cell.host and seed is None else (cell.model, cell.values)
        tasks[key] = (cell, seed)
        pool.submit(
            key,
            {
                "kind": "tune" if seed is None else "train",
                "model": model,
                "dataset": cell.dataset,
                "seed": spec.seed_of_tuning if seed is None else seed,
                "values": {**values, **params, **_limited(cell, spec, threads)},
                "config_files": list(spec.config_files),
                "trials": spec.trials,
                "pruning": spec.pruning,
                "space": cell.space,
                "fresh": spec.fresh,
                "only_complete": spec.only_complete,
                "storage": spec.storage,
                "runs": str(spec.runs),
                "threads": threads,
            },
        )

    try:
        # The same seed of all cells, then the next: the whole board grows together.
        for cell in board:
            if cell.space:
                submit(cell, None)
        for each in spec.seeds:
            for cell in board:
                if not cell.space:
                    submit(cell, each)
        while tasks:
            key, outcome = pool.next()
            cell, seed = tasks.pop(key)
            ended += 1
            if isinstance(outcome, Failure):
                cell.failures[key.rpartition(", ")[2]] = outcome
                logger.error("%s: %s\n%s", key, outcome.reason, outcome.trace)
                if seed is None:
                    ended += len(spec.seeds)
            elif seed is None:
                cell.tuned = outcome
                for each in spec.seeds:
                    submit(cell, each)
            else:
                cell.results[seed] = record.load_result(outcome["folder"]) | {"folder": outcome["folder"]}
                trained += outcome["seconds"] > 0
            told(f"{ended} of {total}: {key}: {_short(outcome, spec)}{_left(ended, total, started, trained)}")
    finally:
        pool.close()
    for cell in board:
        cell.results = dict(sorted(cell.results.items()))
    return board


def uses_gpus(spec: Spec) -> bool:
    """Whether runs may be spread over GPUs: neither is the CPU asked for, nor one GPU by its number."""
    sources = [*(read_yaml(Path(file)) for file in spec.config_files), *spec.dataset_values.values(), spec.values]
    given = {key: parse_value(key, value) for source in sources for key, value in source.items()}
    return given.get("device") != "cpu" and "gpu_id" not in given and given.get("use_gpu") is not False


def _limited(cell: Cell, spec: Spec, threads: int) -> dict[str, int]:
    """`threads` where more are configured (0 is PyTorch's choice: all cores). It does not change what is computed, nor the run's name."""
    configured = make_config(cell.model, cell.dataset, spec.seeds[0], spec.config_files, cell.values)["threads"]
    return {"threads": threads} if threads and (configured == 0 or configured > threads) else {}


def _short(outcome: dict[str, Any] | Failure, spec: Spec) -> str:
    if isinstance(outcome, Failure):
        return f"FAILED: {outcome.reason}"
    if "params" in outcome:
        failed = f" ({outcome['failed']} failed)" if outcome["failed"] else ""
        return f"best of {outcome['trials']} trials{failed} {outcome['value']:.4f}{_foreign(outcome['code'])}"
    result = record.load_result(outcome["folder"])
    valid = result["valid"]
    metric = spec.metrics[0] if spec.metrics[0] in valid else next(iter(valid))
    how = f"({outcome['seconds']:.0f} s)" if outcome["seconds"] else "(was there)"
    return f"valid {metric} {valid[metric]:.4f} {how}{_foreign(record.codes(result))}"


def _foreign(codes: Sequence[str]) -> str:
    return "" if list(codes) == [record.code()] else f"; by other code: {', '.join(codes)}"


def _left(ended: int, total: int, started: float, trained: int) -> str:
    if not trained or ended >= total:
        return ""
    seconds = (time.monotonic() - started) / ended * (total - ended)
    return f"; about {seconds / 60:.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"


# The board.


def board(spec: Spec, done: Sequence[Cell], command: str = "") -> dict[str, Any]:
    """Rows and comparisons, as plain values: what every form of output is made of."""
    rows = [_row(cell, spec) for cell in done]
    used = sorted({code for row in rows for code in row["code"]})
    for row in rows:
        if used != [record.code()] and row["code"]:
            row["notes"].append(f"code {', '.join(row['code'])}")
    rows += _reported_rows(spec)
    return {
        "version": BOARD_VERSION,
        "command": command,
        "code": record.code(),
        "codes": used,
        "metrics": list(spec.metrics),
        "seeds": list(spec.seeds),
        "trials": spec.trials,
        "pruning": spec.pruning,
        "tuning_seed": spec.seed_of_tuning if spec.trials else None,
        "weights": spec.weights,
        "rows": rows,
        "against": list(spec.against),
        "comparisons": _comparisons(spec, done),
        "ranks": mean_ranks(rows, spec.variants, [m for m in spec.metrics if not m.startswith(NEW)]),
    }


def _row(cell: Cell, spec: Spec) -> dict[str, Any]:
    results = cell.results
    values = {m: [v for r in results.values() if (v := _value(r, m)) is not None] for m in spec.metrics}
    times = [r["seconds_per_epoch"] for r in results.values() if r["seconds_per_epoch"] is not None]
    reasons = [f"{what}: {failure.reason}" for what, failure in cell.failures.items()]
    complete = len(results) == len(spec.seeds)
    return {
        "source": "measured",
        "dataset": cell.dataset,
        "model": cell.model,
        "backbone": cell.backbone,
        "variant": cell.variant,
        "status": "complete" if complete else "incomplete" if results else "failed",
        "reasons": reasons,
        "notes": cell.notes(spec),
        "code": sorted(
            {code for r in results.values() for code in record.codes(r)}.union((cell.tuned or {"code": ()})["code"])
        ),
        "seeds": list(results),
        "folders": [r["folder"] for r in results.values()],
        "values": values,
        "mean": {m: statistics.fmean(v) for m, v in values.items() if v},
        "std": {m: statistics.stdev(v) for m, v in values.items() if len(v) > 1},
        "tuned": cell.tuned,
        "seconds_per_epoch": statistics.median(times) if times else None,
    }


def _value(result: Mapping[str, Any], metric: str) -> float | None:
    """A metric of a run on test; 'new:recall@20' is that of the held-out items, where the model has a score for them."""
    if metric.startswith(NEW):
        return result.get("cold", {}).get(metric.removeprefix(NEW))
    value: float = result["test"][metric]
    return value


def _pairs(spec: Spec, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """(cell, what it is compared with), of one backbone on one data set."""
    by_name = {(c.dataset, c.backbone, c.variant): c for c in cells}
    for n, against in enumerate(spec.against):
        for (dataset, backbone, variant), cell in by_name.items():
            rival = by_name.get((dataset, backbone, against))
            if rival is not None and variant not in spec.against[: n + 1]:
                yield cell, rival


def _comparisons(spec: Spec, done: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each variant against its plain backbone and against every rival asked for: every data set and metric."""
    found: list[Compared] = []
    metrics = [m for m in spec.metrics if not m.startswith(NEW)]
    pairs = 0
    for cell, rival in _pairs(spec, done):
        pairs += 1
        seeds = [s for s in cell.results if s in rival.results]
        if not seeds:
            continue
        per_user = [_per_user_differences(rival.results[s], cell.results[s], metrics) for s in seeds]
        for metric in metrics:
            before = np.array([rival.results[s]["test"][metric] for s in seeds])
            after = np.array([cell.results[s]["test"][metric] for s in seeds])
            # One difference a user, averaged over the seeds: users are what a larger sample would have more of.
            users = np.mean([d[metric] for d in per_user], axis=0)
            one = compare(before, after, users, len(spec.seeds))
            named = {"dataset": cell.dataset, "backbone": cell.backbone, "model": cell.model, "against": rival.variant}
            one.entry = named | {"metric": metric, "seeds": seeds} | one.entry
            found.append(one)
    return decide(found, pairs * len(metrics))


@dataclass
class Compared:
    """One comparison.

    Attributes:
        entry: of the board.
        seeds: (S,) differences by seed; users: (N,) by user.
        before: mean of the plain model.
    """

    entry: dict[str, Any]
    seeds: np.ndarray
    users: np.ndarray
    before: float


def compare(
    before: np.ndarray, after: np.ndarray, users: np.ndarray, asked: int, resamples: int = RESAMPLES
) -> Compared:
    """The tests of one comparison, uncorrected, and what it lacks to be called significant whatever they say.

    Args:
        before, after: (S,) a metric of the plain model and of the variant, by seed.
        users: (N,) mean difference of each user.
        asked: seeds that were asked for.
        resamples: of the bootstrap.
    """
    seeds = after - before
    enough, mean = len(seeds) >= LEAST_SEEDS, float(before.mean())
    half = max(smallest_over_seeds(seeds, LEVEL), smallest_over_users(users, LEVEL)) if enough else math.inf
    missing = [f"{len(seeds)} of {asked} seeds"] if len(seeds) < asked else []
    missing += [] if enough else [f"fewer than {LEAST_SEEDS} seeds"]
    entry = {
        "difference": float(seeds.mean()),
        "gain": float(after.mean() / mean - 1) if mean else None,
        # 95 % of itself, uncorrected: the wider of Student's t over seeds and the normal one over users, as a share of the mean before.
        "interval": [float(seeds.mean() + sign * half) / mean for sign in (-1, 1)] if enough and mean else None,
        "bootstrap": _plain(paired_bootstrap(users, resamples=resamples)),
        "wilcoxon": _plain(wilcoxon(users)),
        "t": _plain(paired_t(seeds)) if enough else None,
        "missing": missing,
    }
    return Compared(entry, seeds, users, mean)


def decide(found: Sequence[Compared], family: int) -> list[dict[str, Any]]:
    """Entries of the board: p-values corrected (Holm), each kind of test by itself; which differences are significant, what the others lack,
    and the smallest gain that would have been.

    A difference is significant if all seeds asked for are there, five or more, and both the bootstrap over users and the t-test over seeds say so.
    The t-test alone keeps the level for another draw of seeds; a second condition can only lower the rate of false alarms.

    Args:
        family: comparisons that were asked for. Those that failed count, with p = 1: a failure must not make the others significant.
    """
    entries = copy.deepcopy([one.entry for one in found])
    for test in ("bootstrap", "wilcoxon", "t"):
        tests = [entry[test] for entry in entries if entry[test] is not None]
        p = [t["p"] for t in tests] + [1.0] * (family - len(tests))
        for n, (t, adjusted) in enumerate(zip(tests, holm(p), strict=False)):
            t["p_holm"], t["level"] = adjusted, holm_level(p[:n] + p[n + 1 :], LEVEL)
    for one, entry in zip(found, entries, strict=True):
        smallest = math.inf
        if not entry["missing"]:
            smallest = max(
                smallest_over_seeds(one.seeds, entry["t"]["level"]),
                smallest_over_users(one.users, entry["bootstrap"]["level"]),
            )
            both = {"users": entry["bootstrap"], "seeds": entry["t"]}
            entry["missing"] = [f"p {t['p_holm']:.2g} over {name}" for name, t in both.items() if t["p_holm"] >= LEVEL]
        entry["smallest"] = smallest / one.before if math.isfinite(smallest) and one.before else None
        entry["significant"] = not entry["missing"]
    return entries


def _plain(outcome: Outcome) -> dict[str, float | None]:
    effect = outcome.effect if np.isfinite(outcome.effect) else None
    return {"p": outcome.p, "effect": effect, "n": outcome.n}


def _per_user_differences(
    plain: Mapping[str, Any], variant: Mapping[str, Any], metrics: Iterable[str]
) -> dict[str, np.ndarray]:
    """Metric -> (N,) variant minus plain of each test user."""
    tables = []
    for result in (plain, variant):
        with np.load(Path(result["folder"]) / "per_user.npz", allow_pickle=False) as file:
            tables.append({name: file[name] for name in ("users", "metrics", "values")})
    if not np.array_equal(tables[0]["users"], tables[1]["users"]):
        raise DataError(
            f"{plain['folder']} and {variant['folder']}: not the same test users; were they trained on the same data?"
        )
    columns = [{str(m): t["values"][:, n] for n, m in enumerate(t["metrics"])} for t in tables]
    return {m: columns[1][m] - columns[0][m] for m in metrics}


# Results of others.

_COLUMNS = ("model", "dataset", "metric", "value", "std", "seed", "source")


def import_reported(file: Path, runs: Path, source: str | None) -> int:
    """Add results that were not measured here, to be shown apart. Rows of the same model, data set, metric, seed and source replace earlier ones.

    Args:
        file: CSV with the columns model, dataset, metric, value; optional: std, seed, source.
        source: where they are from, for rows that do not say.

    Raises:
        DataError: missing columns, a value that is not a number, no source.
    """
    rows = _read_reported(file, source)
    path = runs / REPORTED
    kept = {_identity(r): r for r in (_read_reported(path, None) if path.is_file() else [])}
    kept |= {_identity(r): r for r in rows}
    runs.mkdir(parents=True, exist_ok=True)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in kept.values())
    write_atomically(path, buffer.getvalue().encode())
    return len(rows)


def _identity(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[k] for k in ("model", "dataset", "metric", "seed", "source"))


def _read_reported(file: Path, source: str | None) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            lines = [
                (reader.line_num, dict(zip(header, (v or "" for v in row.values()), strict=False))) for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error})") from error
    missing = [c for c in ("model", "dataset", "metric", "value") if c not in header]
    if missing:
        raise DataError(
            f"{file}: no column {', '.join(missing)}; expected model,dataset,metric,value (and, if known, std,seed,source)"
        )
    out = []
    for number, line in lines:
        row = {name: csv_text(str(line.get(name) or "").strip()) for name in _COLUMNS}
        row["metric"] = row["metric"].lower()
        row["source"] = row["source"] or source or ""
        if not row["source"]:
            raise DataError(f"{file}, line {number}: from where? Give a column 'source', or --source=TEXT for all rows")
        for name in ("value", "std"):
            if row[name] or name == "value":
                try:
                    finite = np.isfinite(float(row[name]))
                except ValueError:
                    finite = False
                if not finite:
                    raise DataError(f"{file}, line {number}: {name} '{row[name]}' is not a number")
        if not row["model"] or not row["dataset"] or "@" not in row["metric"]:
            raise DataError(f"{file}, line {number}: expected a model, a data set and a metric such as recall@20")
        out.append(row)
    return out


def _reported_rows(spec: Spec) -> list[dict[str, Any]]:
    path = spec.runs / REPORTED
    if not path.is_file():
        return []
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in _read_reported(path, None):
        if row["dataset"] in spec.datasets and row["metric"] in spec.metrics:
            groups.setdefault((row["dataset"], row["model"], row["source"]), []).append(row)
    out = []
    for (dataset, model, source), rows in groups.items():
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(row["metric"], []).append(float(row["value"]))
        std = {r["metric"]: float(r["std"]) for r in rows if r["std"]}
        std |= {m: statistics.stdev(v) for m, v in values.items() if len(v) > 1}
        out.append(
            {
                "source": source,
                "dataset": dataset,
                "model": model,
                "backbone": model.partition("+")[0],
                "variant": "reported",
                "status": "reported",
                "reasons": [],
                "notes": [],
                "code": [],
                "seeds": sorted({r["seed"] for r in rows if r["seed"]}),
                "folders": [],
                "values": values,
                "mean": {m: statistics.fmean(v) for m, v in values.items()},
                "std": std,
                "tuned": None,
                "seconds_per_epoch": None,
            }
        )
    return out
