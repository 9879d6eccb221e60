"""`mmrec-mrdib tune`: search the hyper-parameters of one model on one data set."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib import registry
from mmrec_mrdib.cli import parameters
from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib tune",
        description="Search the hyper-parameters of one model on one data set, on the validation split; the test split is not read.\n"
        "Writes best.yaml (for --config_files), trials.csv, history.png and importance.png. The same command goes on where an\n"
        "interrupted one stopped, also with more trials; several machines that name one --storage share the work.",
        epilog="examples:\n"
        "  mmrec-mrdib tune --model VBPR+MRdIB --dataset ml-100k --trials 20\n"
        "  mmrec-mrdib tune --model FREEDOM --dataset baby --data_path data --storage postgresql+psycopg://me@host/optuna\n"
        "  run_mrdib.py --model VBPR --dataset ml-100k --config_files tuned/VBPR+MRdIB-ml-100k/best.yaml\n\n"
        "Parameters of a run (--key=value, or in --config_files) stay as given and leave the search space. The search spaces:\n"
        "properties/search/<Model>.yaml of the package that the model is in. The trials' --seed (default: 0) should be none of those that you test with.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--model",
        required=True,
        help=f"{', '.join(registry.MODELS)}, with or without {registry.variants_told()}, or several of these; or a baseline, ours or RecBole's",
    )
    out.add_argument("--dataset", required=True, help="as in run_mrdib.py")
    out.add_argument(
        "--trials", type=int, default=20, metavar="N", help="finished trials in all (default: %(default)s)"
    )
    out.add_argument("--space", type=Path, metavar="FILE.yaml", help="search space, in place of properties/search/")
    out.add_argument(
        "--weights",
        choices=("search", "auto"),
        default="search",
        help="MRdIB's weights: part of the search, or automatic (default: %(default)s)",
    )
    out.add_argument(
        "--pruning", choices=("median", "none"), default="median", help="stop hopeless trials (default: %(default)s)"
    )
    out.add_argument("--fresh", action="store_true", help="forget earlier trials of the same search")
    out.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: SQLite in RUNS/optuna.db)")
    out.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="yaml files with parameters")
    out.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    out.add_argument("--output", type=Path, metavar="DIR", help="default: tuned/<model>-<dataset>")
    return out


def main(arguments: Sequence[str]) -> int:
    options, values = parameters.parse(parser(), arguments)
    if options.trials < 1:
        raise ConfigError(f"--trials={options.trials}: expected 1 or more")
    warnings_only()
    seed = _seed(values.pop("seed", "0"))
    folder = options.output or Path("tuned") / f"{options.model}-{options.dataset}"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output={folder}: expected a folder")

    from mmrec_mrdib.experiment import record, tune

    space = tune.search_space(options.model, options.weights, options.space)
    if options.weights == "auto" and "+" in options.model:
        values["weighting"] = "auto"
    logging.getLogger(tune.__name__).setLevel(logging.INFO)  # it says what is not searched
    tuned = tune.tune(
        options.model, options.dataset, options.trials, values, options.config_files, options.storage, options.runs, seed,
        space, lambda text: print(text, file=sys.stderr, flush=True), options.pruning, options.fresh,
    )  # fmt: skip
    if tuned.trials < options.trials:
        print(f"all {tuned.trials} points of the search space were tried", file=sys.stderr)
    if tuned.code != [record.code()]:
        print(f"trials of other code are among them ({', '.join(tuned.code)}); --fresh forgets them", file=sys.stderr)
    written = tune.write(tuned, options.model, options.dataset, options.storage, options.runs, folder, seed)
    print(f"best of {tuned.trials} trials: valid {tuned.value:.4f}")
    for key, value in tuned.params.items():
        print(f"  {key}: {value}")
    print("written:", *written)
    return 0


def _seed(text: str) -> int:
    if not text.isdigit():
        raise ConfigError(f"--seed={text}: expected a whole number from 0")
    return int(text)
