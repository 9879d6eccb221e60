"""`mmrec-mrdib export`: embeddings of a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.cli.recommend import check_output_folder, warnings_only


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib export",
        description="Write user, item and per-modality embeddings with original ids, ready for a nearest-neighbour index:\n"
        "the score of a user and an item is the inner product of their rows of `users` and `items`.",
        epilog="examples:\n"
        "  mmrec-mrdib export runs/MGCN+MRdIB-baby-1-0a1b2c3d --output embeddings.npz\n"
        "  mmrec-mrdib export RUN --output embeddings        a folder of parquet files (id, vector)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    out.add_argument(
        "--output", type=Path, required=True, metavar="FILE.npz|DIR", help="one file, or a folder for parquet"
    )
    out.add_argument("--data_path", type=Path, metavar="DIR", help="where the data set is now, if it was moved")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    warnings_only()
    check_output_folder(options.output)

    from mmrec_mrdib.experiment.export import load, write_embeddings

    names = write_embeddings(load(options.run, options.data_path), options.output)
    print(f"{options.output}: {', '.join(names)}", file=sys.stderr)
    return 0
