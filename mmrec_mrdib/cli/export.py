"""`mmrec-mrdib export`: embeddings of a trained model, or the lists that its evaluation ranks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.cli.recommend import check_output_folder, warnings_only
from mmrec_mrdib.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib export",
        description="Write user, item and per-modality embeddings with original ids, ready for a nearest-neighbour index:\n"
        "the score of a user and an item is the inner product of their rows of `users` and `items`.\n"
        "With --lists, write what the evaluation ranks instead: for each user of the split the best items, those of training left out,\n"
        "as user, rank, item, score: for other programs, and for `leaderboard import-run`, which finds the same metrics in them.",
        epilog="examples:\n"
        "  mmrec-mrdib export runs/MGCN+MRdIB-baby-1-0a1b2c3d --output embeddings.npz\n"
        "  mmrec-mrdib export RUN --output embeddings        a folder of parquet files (id, vector)\n"
        "  mmrec-mrdib export RUN --lists test --top 100 --output test.csv        or .jsonl, .parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    out.add_argument(
        "--output", type=Path, required=True, metavar="FILE.npz|DIR", help="one file, or a folder for parquet"
    )
    out.add_argument("--lists", choices=("valid", "test"), help="the lists of this split, in place of embeddings")
    out.add_argument(
        "--top", type=int, metavar="K", help="items a user of --lists (default 100; more than there are: all)"
    )
    out.add_argument("--data_path", type=Path, metavar="DIR", help="where the data set is now, if it was moved")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    warnings_only()
    check_output_folder(options.output)

    if options.top is not None and options.lists is None:
        raise ConfigError("--top: without --lists there are no lists")

    from mmrec_mrdib.experiment.export import load, write_embeddings, write_recommendations

    trained = load(options.run, options.data_path)
    if options.lists is not None:
        blocks = trained.evaluation_blocks(options.lists, 100 if options.top is None else options.top)
        print(f"{options.output}: {write_recommendations(blocks, options.output)} rows", file=sys.stderr)
        return 0
    names = write_embeddings(trained, options.output)
    print(f"{options.output}: {', '.join(names)}", file=sys.stderr)
    return 0
