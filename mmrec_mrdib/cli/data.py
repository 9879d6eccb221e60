"""`mmrec-mrdib data`: what is to be done with data before training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrec_mrdib.errors import DataError


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="mmrec-mrdib data", description="Look at a data set.")
    commands = out.add_subparsers(metavar="COMMAND", required=True, dest="command")
    check = commands.add_parser(
        "check",
        help="all that the loader would refuse or repair, and statistics",
        description="List everything in a data set's folder that the loader would refuse (error) or repair, what looks odd "
        "(warning), and statistics. Nothing is changed.",
        epilog="example:\n  mmrec-mrdib data check datasets/baby\n\nexit codes: 0 usable; 1 there are errors; 2 no such folder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="the folder that holds <its name>.inter")
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    return out


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if not options.folder.is_dir():
        raise DataError(f"{options.folder}: no such folder")

    from mmrec_mrdib.data.check import check

    report = check(options.folder)
    if options.json:
        print(json.dumps(report.plain(), indent=1))
    else:
        for finding in report.findings:
            print(finding)
        if report.findings:
            print()
        _show(report.statistics)
        errors = sum(f.level == "error" for f in report.findings)
        layout = f"{report.layout} layout" if report.layout != "none" else "no interactions"
        print(f"{layout}; {f'{errors} errors: not usable' if errors else 'usable'}")
    sys.stdout.flush()
    return 0 if report.usable else 1


def _show(values: dict[str, Any], indent: str = "") -> None:
    for name, value in values.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            print(label)
            _show(value, indent + "  ")
        elif isinstance(value, dict):
            print(f"{label:24}" + ", ".join(f"{k.replace('_', ' ')} {_text(v)}" for k, v in value.items()))
        else:
            print(f"{label:24}{_text(value)}")


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
