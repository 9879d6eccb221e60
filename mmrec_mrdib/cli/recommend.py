"""`mmrec-mrdib recommend`: top-K lists of a trained model."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.errors import ConfigError, DataError, without


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib recommend",
        description="Write the items of highest score for each user, in original ids, with scores. Items that the user has in any split are\n"
        "left out unless --no-exclude-seen is given (as exclude_seen=False in Python).",
        epilog="examples:\n"
        "  mmrec-mrdib recommend runs/MGCN+MRdIB-baby-1-0a1b2c3d --top 20 --output recs.csv\n"
        "  mmrec-mrdib recommend RUN --users users.txt --no-exclude-seen --output recs.jsonl\n"
        "  mmrec-mrdib recommend RUN --new-items new/ --output new.csv\n"
        "  mmrec-mrdib recommend RUN --histories baskets.csv --output baskets-recs.csv\n\n"
        "exit codes: 0 done; 1 some users are unknown (told on stderr), the others are written; 2 a mistake to mend",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    out.add_argument(
        "--users", type=Path, metavar="FILE", help="original user ids, one a line; default: all trained on"
    )
    out.add_argument("--top", type=int, default=20, metavar="K", help="items a user (default 20)")
    out.add_argument(
        "--exclude-seen", action=argparse.BooleanOptionalAction, help="leave out, or keep, items the user has in any split (default: out)"
    )  # fmt: skip
    out.add_argument(
        "--new-items", type=Path, metavar="DIR", help="rank the items of this folder instead, which the model never saw: "
        "<modality>_feat.npy and <modality>_ids.txt of every modality, scaled as the training's were (VBPR, FREEDOM, any model +MRdIB)",
    )  # fmt: skip
    out.add_argument(
        "--histories", type=Path, metavar="FILE", help="recommend to the users of this file, who need not have been trained on, by their "
        "items there: a header and a line a pair, user and item, separated by a tab or a comma (+MRdIB, +Content)",
    )  # fmt: skip
    out.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="name that ends in .csv, .jsonl or .parquet"
    )
    out.add_argument("--data_path", type=Path, metavar="DIR", help="where the data set is now, if it was moved")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    warnings_only()
    check_output_folder(options.output)
    if options.new_items is not None and options.exclude_seen is not None:
        raise ConfigError(
            "--exclude-seen and --new-items: nobody has seen items that the model never saw; leave one of them out"
        )
    if options.histories is not None and (options.users is not None or options.new_items is not None):
        raise ConfigError(
            "--histories names its own users and ranks the training's items: leave --users and --new-items out"
        )
    wanted = None if options.users is None else read_users(options.users)
    histories = None if options.histories is None else read_histories(options.histories)

    from mmrec_mrdib.experiment.export import load, write_recommendations

    trained = load(options.run, options.data_path)
    if histories is not None:
        blocks = trained.history_blocks(histories, options.top, options.exclude_seen is not False)
        rows = write_recommendations(blocks, options.output)
        print(f"{options.output}: {rows} rows, {len(histories)} users", file=sys.stderr)
        return 0
    known, unknown = trained.split_users(trained.users[trained.trained_users] if wanted is None else wanted)
    if options.new_items is not None:
        blocks = trained.new_blocks(options.new_items, known, options.top)
    else:
        blocks = trained.blocks(known, options.top, options.exclude_seen is not False)
    rows = write_recommendations(blocks, options.output)
    print(f"{options.output}: {rows} rows, {len(known)} users", file=sys.stderr)
    if unknown:
        print(f"{len(unknown)} users unknown or without training interactions:", *unknown, sep="\n", file=sys.stderr)
        return 1
    return 0


def warnings_only() -> None:
    """What a training tells of its data is of no interest here."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("mmrec_mrdib").setLevel(logging.WARNING)


def read_users(path: Path) -> list[str]:
    """Ids, one a line; blank lines are skipped."""
    from mmrec_mrdib.data import text

    try:
        users = [line for line in text.lines(path) if line]
    except DataError as error:
        what = without(path, error)
        raise DataError(
            f"--users={path}: cannot be read ({what}); expected a text file with one user id a line"
        ) from error
    if not users:
        raise DataError(f"--users={path}: no user ids in it; expected one a line")
    return users


def read_histories(path: Path) -> dict[str, list[str]]:
    """User -> its items, in the order of the file."""
    from mmrec_mrdib.data import text

    form = "expected a header and two columns, user and item, separated by a tab or a comma"
    try:
        lines = text.lines(path)
    except DataError as error:
        raise DataError(f"--histories={path}: cannot be read ({without(path, error)}); {form}") from error
    separator = "\t" if lines and "\t" in lines[0] else ","
    histories: dict[str, list[str]] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        cells = line.split(separator)
        if len(cells) != 2 or not all(cells):
            raise DataError(f"--histories={path}, line {number}: '{line[:60]}'; {form}")
        histories.setdefault(cells[0], []).append(cells[1])
    if not histories:
        raise DataError(f"--histories={path}: no pairs in it; {form}")
    return histories


def check_output_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output={path}: the folder {path.absolute().parent} does not exist")
