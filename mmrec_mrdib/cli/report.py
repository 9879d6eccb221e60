"""`mmrec-mrdib report`: what the representations of trained models hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib report",
        description="Measure what the modality representations of trained models hold, plain beside +MRdIB: training curves, rate of each\n"
        "modality, unimodal against fused ranking, redundancy between modalities by measures that were not trained on, partial\n"
        "information decomposition in bits, t-SNE. Writes one HTML page that works offline, and the same figures as JSON.",
        epilog="examples:\n"
        "  mmrec-mrdib report runs/VBPR-baby-1-* runs/VBPR+MRdIB-baby-1-*\n"
        "  mmrec-mrdib report RUN --output reports/vbpr.html --no-tsne",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of complete runs")
    out.add_argument(
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="the page (default: %(default)s); FILE.json is written beside it",
    )
    out.add_argument("--data_path", type=Path, metavar="DIR", help="where the data set is now, if it was moved")
    out.add_argument(
        "--seed", type=int, default=0, help="of the sampled negatives, folds and t-SNE (default: %(default)s)"
    )
    out.add_argument("--no-tsne", action="store_true", help="leave out the slowest part")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.output.suffix != ".html":
        raise ConfigError(f"--output={options.output}: expected a name that ends in .html")
    if not options.output.absolute().parent.is_dir():
        raise ConfigError(f"--output={options.output}: no such folder: {options.output.absolute().parent}")
    if len(set(options.runs)) != len(options.runs):
        raise ConfigError("a run is named twice")
    warnings_only()

    from mmrec_mrdib.experiment import report

    built = report.build(
        options.runs, options.data_path, not options.no_tsne, options.seed, lambda text: print(text, file=sys.stderr)
    )
    for path in report.write(built, options.output):
        print(path)
    return 0
