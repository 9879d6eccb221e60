"""`mmrec-mrdib leaderboard`: models by data sets by seeds, tuned with equal budgets, tested in pairs."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrec_mrdib import registry
from mmrec_mrdib.cli import parameters
from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError

_EPILOG = """\
examples:
  mmrec-mrdib leaderboard --models VBPR,MGCN,FREEDOM --datasets ml-100k --seeds 5
  mmrec-mrdib leaderboard --models Pop,VBPR,FREEDOM --datasets ml-100k,baby --data_path data --tune 20 --seeds 5 --jobs 2
  mmrec-mrdib leaderboard --models all --datasets baby --data_path data --seeds 5 --jobs 2            the field; resumable
  mmrec-mrdib leaderboard --models LightGCN --datasets baby --variants plain,mrdib,mrdib-paper,content --against content     against a rival
  mmrec-mrdib leaderboard import table2.csv --source "MMRec, table 2"      results of others, shown apart
  mmrec-mrdib leaderboard import-run scores.npz --dataset baby --name MGCN --origin "MMRec 1.0"     measured from scores of others

Every run is a folder in RUNS. The same command trains only what is missing, goes on with what was interrupted, and tries again what
failed. Parameters of a run are given as --key=value for all data sets, or as --DATASET.key=value for one:
--baby.modalities=image,text; what is given is not searched. Written: leaderboard.md, .csv (tidy), .tex (booktabs), .json and .html, comparisons.csv, gains.svg and, of three
variants and two backbones or data sets or more, ranks.svg in OUTPUT.
"""


BOARD_BASELINES = ("Pop", "ItemKNN", "ItemKNNCBF", "BPR", "LightGCN", "LayerGCN", "SelfCF")  # of --models all


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib leaderboard",
        description="Compare models, plain and +MRdIB, honestly: equal tuning budgets, selection on the validation split, the test split read\n"
        "once a run, several seeds, paired tests over users and seeds, corrected for their number.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--models",
        required=True,
        metavar="A,B",
        help=f"all (the multimodal models and some baselines), or some of {', '.join(registry.MODELS)}, and RecBole's",
    )
    out.add_argument("--datasets", required=True, metavar="X,Y", help="as in run_mrdib.py")
    out.add_argument("--seeds", default="5", metavar="N|A,B", help="how many (1 to N), or which (default: %(default)s)")
    out.add_argument(
        "--variants",
        default="plain,mrdib",
        metavar="A,B",
        help=f"some of {', '.join(registry.kinds())}; several plug-ins at once as mrdib+mg (default: %(default)s)",
    )
    out.add_argument(
        "--against",
        default="",
        metavar="A,B",
        help="some of --variants: compare the others with these, too, as in --against=content (default: with plain alone)",
    )
    out.add_argument(
        "--tune", type=int, default=0, metavar="N", help="trials of tuning for each model and variant (default: none)"
    )
    out.add_argument(
        "--tuning_seed",
        type=int,
        metavar="N",
        help="seed of tuning, not one of --seeds (default: 0, or the next after them)",
    )
    out.add_argument(
        "--pruning", choices=("median", "none"), default="median", help="stop hopeless trials (default: %(default)s)"
    )
    out.add_argument("--fresh", action="store_true", help="tune and train anew, also what is complete")
    out.add_argument(
        "--weights",
        choices=("search", "auto", "fixed"),
        help="MRdIB's weights: part of the search (default with --tune), automatic, or as configured (default)",
    )
    out.add_argument("--columns", default="recall@20,ndcg@20", help="metrics of the board (default: %(default)s)")
    out.add_argument("--data_path", metavar="DIR", help="folder of the data sets; built-in ones are found without")
    out.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="yaml files with parameters")
    out.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    out.add_argument("--output", type=Path, default=Path("leaderboard"), metavar="DIR", help="default: %(default)s")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: %(default)s)")
    out.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="where they run (default: %(default)s)"
    )
    out.add_argument(
        "--ray_address", metavar="HOST:PORT", help="of a running Ray cluster (default: $RAY_ADDRESS, or this machine's)"
    )
    out.add_argument(
        "--storage", metavar="URL", help="of tuning: an SQLAlchemy URL (default: SQLite in RUNS/optuna.db)"
    )
    return out


def import_parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib leaderboard import",
        description="Add results that others reported. They are shown apart, marked as reported, and enter no comparison.",
        epilog="The CSV has the columns model,dataset,metric,value and, where known, std,seed,source.",
    )
    out.add_argument("file", type=Path, metavar="FILE.csv")
    out.add_argument("--source", metavar="TEXT", help="where they are from, for rows that do not say")
    out.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    return out


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "import":
        return _import(arguments[1:])
    if arguments and arguments[0] == "import-run":
        from mmrec_mrdib.cli import import_run

        return import_run.main(arguments[1:])
    options, values = parameters.parse(parser(), arguments)
    warnings_only()
    if options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output={options.output}: expected a folder")
    if options.jobs < 1 or options.tune < 0:
        raise ConfigError("--jobs and --tune: expected numbers from 1 and from 0")
    datasets = _names(options.datasets, "--datasets")
    own = {d: {k.removeprefix(f"{d}."): v for k, v in values.items() if k.startswith(f"{d}.")} for d in datasets}
    shared = {k: v for k, v in values.items() if not any(k.startswith(f"{d}.") for d in datasets)}
    if "seed" in shared:
        raise ConfigError("--seed: a leaderboard has --seeds")

    from rich.console import Console

    from mmrec_mrdib.experiment import foreign, leaderboard, tables, tune
    from mmrec_mrdib.experiment.workers import LocalPool, Pool, RayPool, visible_gpus

    spec = leaderboard.Spec(
        models=_models(options.models),
        datasets=datasets,
        seeds=_seeds(options.seeds),
        variants=_variants(options.variants),
        against=("plain", *_rivals(options.against)),
        trials=options.tune,
        pruning=options.pruning,
        tuning_seed=options.tuning_seed,
        weights=options.weights or ("search" if options.tune else "fixed"),
        metrics=tuple(m.lower() for m in _names(options.columns, "--columns")),
        values=shared,
        dataset_values=own,
        config_files=tuple(options.config_files),
        data_path=options.data_path,
        storage=options.storage,
        runs=options.runs,
        fresh=options.fresh,
    )
    if spec.weights == "search" and not spec.trials:
        raise ConfigError("--weights=search: needs --tune=N")
    if spec.tuning_seed is not None and (spec.tuning_seed < 0 or not spec.trials):
        raise ConfigError(f"--tuning_seed={spec.tuning_seed}: expected a number from 0, and --tune=N")
    planned = list(leaderboard.cells(spec))  # mistakes show before any worker starts
    imported, left_out = foreign.foreign_cells(spec)
    print(*left_out, sep="\n", end="\n" if left_out else "", file=sys.stderr)
    if spec.trials:
        tune.optuna()
        for cell in planned:
            if not cell.space:
                print(f"{cell.model} on {cell.dataset}: no search space, so not tuned", file=sys.stderr)
            elif given := [k for k in tune.search_space(cell.model, spec.weights) if k not in cell.space]:
                print(f"{cell.model} on {cell.dataset}: given, so not searched: {', '.join(given)}", file=sys.stderr)
    logging.getLogger("mmrec_mrdib").setLevel(logging.ERROR)
    pool: Pool
    if options.executor == "ray":
        pool = RayPool(leaderboard.WORK, options.ray_address, gpu=leaderboard.uses_gpus(spec))
    else:
        pool = LocalPool(leaderboard.WORK, options.jobs, visible_gpus() if leaderboard.uses_gpus(spec) else ())
    # Several processes share the cores: none takes more than its part, whatever is configured.
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    try:
        done = leaderboard.execute(spec, pool, lambda text: print(text, file=sys.stderr, flush=True), threads)
    except KeyboardInterrupt:
        command = shlex.join(["mmrec-mrdib", "leaderboard", *(a for a in arguments if a != "--fresh")])
        print(f"\ninterrupted; complete runs are kept; go on with: {command}", file=sys.stderr)
        return 130
    built = leaderboard.board(spec, [*done, *imported], shlex.join(["mmrec-mrdib", "leaderboard", *arguments]))
    written = tables.write(built, options.output)
    Console().print(tables.terminal(built))
    print("written:", *written)
    others = {cell.model for cell in imported}  # whose missing seeds no command can train
    failed = [r for r in built["rows"] if r["status"] in ("failed", "incomplete") and r["model"] not in others]
    if failed:
        print(f"{len(failed)} cells are not complete; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _import(arguments: Sequence[str]) -> int:
    options = import_parser().parse_args(arguments)

    from mmrec_mrdib.experiment import leaderboard

    rows = leaderboard.import_reported(options.file, options.runs, options.source)
    print(f"{rows} reported results in {options.runs / leaderboard.REPORTED}")
    return 0


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"{option}={text}: expected names separated by commas, each once")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds={text}: expected a number of seeds, or seeds such as 1,2,3") from error
    seeds = list(range(1, numbers[0] + 1)) if len(numbers) == 1 else numbers
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: expected a number of seeds, or distinct seeds such as 1,2,3")
    return tuple(seeds)


def _models(text: str) -> tuple[str, ...]:
    return (*BOARD_BASELINES, *registry.MODELS) if text == "all" else _names(text, "--models")


def _variants(text: str) -> tuple[Any, ...]:
    names = _names(text, "--variants")
    for name in names:
        try:
            known = registry.of_kind("", name).kind == name
        except ConfigError as error:
            if "twice" in str(error):
                raise
            known = False
        if not known:
            raise ConfigError(
                f"--variants={text}: expected some of {', '.join(registry.kinds())}, or several plug-ins as mrdib+mg"
            )
    return names


def _rivals(text: str) -> tuple[str, ...]:
    names = _names(text, "--against") if text else ()
    if "plain" in names:
        raise ConfigError(f"--against={text}: every variant is compared with plain anyway; name others")
    return names
