"""The command line: `mmrec-mrdib COMMAND`. One file a command; PyTorch is imported only when a command runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from mmrec_mrdib import __version__, process
from mmrec_mrdib.errors import ConfigError, MRdIBError

COMMANDS = {
    "train": "train a model, with or without MRdIB, or both side by side",
    "host": "run a model of a checkout of MMRec or a suite like it, plain and with MRdIB",
    "leaderboard": "compare models by data sets by seeds: equal tuning, paired tests, tables and a page; also results of other programs",
    "tune": "search the hyper-parameters of a model on the validation split",
    "recommend": "top-K lists of a trained model, in original ids",
    "explain": "why an item is recommended: backbone and modalities, and the items of the history that speak for it",
    "data": "get a public data set by its name, check one, prepare one from raw files, encode texts and pictures, export it for other programs",
    "report": "what the representations of trained models hold: a page of figures, plain beside +MRdIB",
    "export": "user, item and per-modality embeddings of a trained model, with ids, or the lists that its evaluation ranks",
}


def _fail(message: str, quiet: bool = False) -> int:
    if not quiet:
        print(f"error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 done in part (a run diverged, a user is unknown), 2 a mistake the user can mend, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    process.settle()
    if arguments and arguments[0] in COMMANDS:
        here = process.place()
        if here.size > 1 and arguments[0] != "train":
            return _fail(f"{arguments[0]} runs in one process: start it without torchrun", here.rank > 0)
        command = importlib.import_module(f"mmrec_mrdib.cli.{arguments[0]}")
        try:
            return command.main(arguments[1:])
        except MRdIBError as error:  # that the command line is wrong needs to be said once
            whose = f"process {here.rank} of {here.size}: " if here.size > 1 else ""
            return _fail(f"{whose}{error}", here.rank > 0 and isinstance(error, ConfigError))
        except KeyboardInterrupt:  # outside of training: nothing to resume
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # e.g. `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:  # a folder that is a file, no permission, a full disk
            print(f"error: {error.filename or arguments[0]}: {error.strerror or error}", file=sys.stderr)
            return 2
    parser = argparse.ArgumentParser(
        prog="mmrec-mrdib",
        description="MRdIB for multimodal recommenders on RecBole (arXiv 2509.20225).",
        epilog="'mmrec-mrdib COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"mmrec-mrdib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    parser.parse_args(arguments)
    return 0
