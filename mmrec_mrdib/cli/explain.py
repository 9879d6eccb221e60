"""`mmrec-mrdib explain`: where the scores of a user's recommendations come from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrec_mrdib.cli.recommend import warnings_only
from mmrec_mrdib.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="mmrec-mrdib explain",
        description="Take the scores of a user's recommendations apart, exactly: the backbone's part, each modality's, and the three items of\n"
        "the user's history that speak most for it. For models with a content readout (+MRdIB, +Content).",
        epilog="examples:\n"
        "  mmrec-mrdib explain runs/LightGCN+MRdIB-baby-1-* --user 42\n"
        "  mmrec-mrdib explain RUN --user 42 --item 7 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    out.add_argument("--user", required=True, metavar="ID", help="original id")
    out.add_argument("--item", metavar="ID", help="original id; default: the best items that the user does not have")
    out.add_argument("--top", type=int, default=5, metavar="K", help="how many, without --item (default: %(default)s)")
    out.add_argument("--json", action="store_true", help="as JSON, with the whole history")
    out.add_argument("--data_path", type=Path, metavar="DIR", help="where the data set is now, if it was moved")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.top < 1:
        raise ConfigError(f"--top={options.top}: expected 1 or more")
    warnings_only()

    from mmrec_mrdib.experiment import explain
    from mmrec_mrdib.experiment.export import load

    found = explain.explain(load(options.run, options.data_path), options.user, options.item, options.top)
    sys.stdout.write(explain.as_json(found) if options.json else explain.as_text(found))
    return 0
