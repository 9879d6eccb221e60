"""`train`: one model on one data set; plain, with MRdIB, or both side by side."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_mrdib import registry
from mmrec_mrdib.cli import parameters
from mmrec_mrdib.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

_EPILOG = """\
examples:
  run_mrdib.py --model VBPR --dataset ml-100k                 VBPR+MRdIB on the built-in data set
  run_mrdib.py --model VBPR --dataset ml-100k --compare --seeds 1,2,3
                                                              plain and +MRdIB, same seeds, side by side
  run_mrdib.py --model BPR --dataset ml-100k --baseline       a general recommender of RecBole
  run_mrdib.py --model VBPR --dataset baby --data_path data --modalities=image,text --learning_rate=5e-4

exit codes: 0 done; 1 a run diverged, its best epoch so far is what is shown; 2 a mistake to mend; 130 interrupted

baselines:
{baselines}

parameters:
  Any parameter of RecBole, of the model or of MRdIB is an option --key=value; an unknown one is refused, with the
  nearest names. The defaults and what they mean: properties/overall.yaml, plugin/MRdIB.yaml and model/<Model>.yaml in
  {properties}{others}
"""


def parser() -> argparse.ArgumentParser:
    from mmrec_mrdib import paths

    out = argparse.ArgumentParser(
        prog="run_mrdib.py",
        description="Train a multimodal recommender with MRdIB (default), plain (--baseline) or both (--compare). The best "
        "epoch is chosen on the validation split; the test split is read once, at that epoch.",
        epilog=_EPILOG.format(properties=paths.properties_dir(), baselines=_baselines(), others=_others()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument(
        "--model",
        required=True,
        help=f"{', '.join(registry.MODELS)}, with or without {registry.variants_told()}, or several of these, as in VBPR+MRdIB+MG; or, with --baseline, a general recommender (below)",
    )
    out.add_argument(
        "--dataset", required=True, help="name of a folder in datasets/ or --data_path, or ml-100k (built in)"
    )
    variant = out.add_mutually_exclusive_group()
    variant.add_argument("--baseline", action="store_true", help="the plain model, without MRdIB")
    variant.add_argument("--compare", action="store_true", help="both, with the same seeds, side by side")
    out.add_argument("--seeds", metavar="1,2,3", help="one run a seed (default: the seed of the configuration)")
    out.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="yaml files with parameters")
    out.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders go (default: runs)"
    )
    out.add_argument(
        "--resume",
        action="store_true",
        help="go on from interrupted runs; keep complete ones (without it all are trained anew)",
    )
    out.add_argument("--output", type=Path, metavar="FILE.json", help="also write the result(s) there")
    out.add_argument("--quiet", action="store_true", help="one line a run instead of one an epoch")
    return out


def _others() -> str:
    """What other packages offer, and where their defaults are."""
    lines = [
        f"\n  {name} ({path}): {registry.property_file('plugin' if group == 'plugins' else 'model', name)}"
        for group in ("models", "baselines", "plugins")
        for name, path in registry.additions()[group].items()
    ]
    return "".join(["\nof other packages:", *lines]) if lines else ""


def _baselines() -> str:
    """The names, in lines of the epilog's width."""
    names = ", ".join(sorted(registry.baselines(), key=str.lower))
    return textwrap.fill(names, 115, initial_indent="  ", subsequent_indent="  ")


def main(arguments: Sequence[str]) -> int:
    options, values = parameters.parse(parser(), arguments)
    seeds = _seeds(options.seeds, values)
    models = _models(options)
    _check_output(options.output)

    from mmrec_mrdib import distributed, process
    from mmrec_mrdib.experiment import record
    from mmrec_mrdib.experiment.run import Interrupted, display_name, make_config, run

    first = process.place().rank == 0  # of several processes one speaks
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.ERROR if not first else logging.WARNING if options.quiet else logging.INFO)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[console], force=True)
    logging.getLogger("mmrec_mrdib").setLevel(logging.INFO)
    # All of them before the first run: a misspelt parameter must not show after an hour of training.
    configs = [
        make_config(m, options.dataset, seed, *_for_model(options.config_files, values, m, models))
        for seed in seeds
        for m in models
    ]
    for config in configs:
        distributed.check(config)
    results = []
    try:
        for n, config in enumerate(configs, 1):
            result = run(config, options.runs, options.resume)
            results.append(result)
            if first:
                print(_progress(n, len(configs), result), file=sys.stderr)
    except Interrupted as error:
        if not first:
            return 130
        size = process.place().size
        starter = ["python"] if size == 1 else ["torchrun", f"--nproc-per-node={size}"]
        command = shlex.join([*starter, "run_mrdib.py", *(a for a in arguments if a != "--resume"), "--resume"])
        print(f"\n{error}\ngo on with: {command}", file=sys.stderr)
        return 130
    if not first:
        return int(any(record.diverged(result) is not None for result in results))
    if options.output is not None:
        many = options.compare or len(results) > 1
        record.write_json(options.output, results if many else results[0])
    _show(results, [display_name(c) for c in configs[: len(models)]], options.dataset)  # a preset may be a parameter
    broken = [(result, why) for result in results if (why := record.diverged(result)) is not None]
    for result, why in broken:
        print(f"error: {result['model']}, seed {result['seed']}: {why}", file=sys.stderr)
    return 1 if broken else 0


def _progress(n: int, total: int, result: dict[str, Any]) -> str:
    metric = str(result["config"]["valid_metric"]).lower()
    return (
        f"run {n} of {total}: {result['model']}, seed {result['seed']}: valid {metric} {result['valid'][metric]:.4f} "
        f"at epoch {result['best_epoch']} of {len(result['epochs'])}, {result['total_seconds']:.0f} s"
    )


def _seeds(text: str | None, values: dict[str, str]) -> list[int | None]:
    if text is None:
        return [None]
    if "seed" in values:
        raise ConfigError("--seeds and --seed: give one of them")
    try:
        seeds = [int(s) for s in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds={text}: expected whole numbers such as 1,2,3") from error
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds={text}: expected distinct numbers from 0")
    return list(seeds)


def _models(options: argparse.Namespace) -> list[str]:
    variant = registry.variant(options.model)
    if variant.plugin and options.baseline:
        raise ConfigError(f"--model={options.model} names the variant; use --model={variant.root} with --baseline")
    plugged = variant.name if variant.plugin else registry.Variant(variant.base, "MRdIB").name
    if options.compare:
        return [variant.root, plugged]
    return [variant.root] if options.baseline else [plugged]


def _for_model(
    files: Sequence[str], values: dict[str, str], model: str, models: Sequence[str]
) -> tuple[Sequence[str], dict[str, Any]]:
    """config_files and values of one model: in a comparison the plug-in's parameters are for the +MRdIB side only."""
    if len(models) == 1 or "+" in model:
        return files, values
    from mmrec_mrdib.schema import read_yaml

    plugins = frozenset().union(*map(registry.parameters, registry.PLUGINS))
    merged: dict[str, Any] = {}
    for file in files:
        merged |= read_yaml(Path(file))
    return (), {k: v for k, v in (merged | values).items() if k not in plugins}


def _check_output(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(f"--output={path}: expected a file in a folder that exists")


def _show(results: list[dict[str, Any]], models: Sequence[str], dataset: str) -> None:
    from rich.console import Console

    console = Console()
    console.print(comparison(results, models, dataset))
    console.print("run folders:")
    for result in results:
        console.print(f"  {result['folder']}", soft_wrap=True, highlight=False)


def comparison(results: list[dict[str, Any]], models: Sequence[str], dataset: str) -> Table:
    """A table of the test metrics of some models: mean over seeds (± standard deviation), and the gain of each relative to the first."""
    import statistics

    from rich.table import Table

    runs = {m: [r for r in results if r["model"] == m] for m in models}
    n = len(runs[models[0]])
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    table = Table(title=f"{dataset}, {seeds}: test, at the epoch best on valid", title_justify="left")
    table.add_column("metric")
    beside = len(models) == 2  # of more, the gain stands in the cell
    for m in models:
        table.add_column(m, justify="right", overflow="fold")
    if beside:
        table.add_column("gain", justify="right")

    def row(name: str, values: list[list[float]], digits: int, gain: bool) -> None:
        means = [statistics.fmean(v) for v in values]
        cells = []
        for n, (mean, v) in enumerate(zip(means, values, strict=True)):
            cell = f"{mean:.{digits}f}" + (f" ± {statistics.stdev(v):.{digits}f}" if len(v) > 1 else "")
            change = f"{mean / means[0] - 1:+.1%}" if n and gain and means[0] else ""
            cells += [cell, change] if n and beside else [f"{cell} ({change})" if change else cell]
        table.add_row(name, *cells)

    for metric in results[0]["test"]:
        row(metric, [[r["test"][metric] for r in runs[m]] for m in models], 4, True)
    if all("cold" in r for r in results):
        table.add_section()
        for metric in (m for m in results[0]["cold"] if "@" in m):
            row(f"new items: {metric}", [[r["cold"][metric] for r in runs[m]] for m in models], 4, True)
    table.add_section()
    valid = str(results[0]["config"]["valid_metric"]).lower()
    row(f"valid {valid}", [[r["valid"][valid] for r in runs[m]] for m in models], 4, True)
    row("best epoch", [[r["best_epoch"] for r in runs[m]] for m in models], 0, False)
    row("seconds an epoch", [[r["seconds_per_epoch"] for r in runs[m]] for m in models], 3, False)
    return table
