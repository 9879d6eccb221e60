"""Errors that a user can mend. The command line prints their one line and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MRdIBError(Exception):
    """Base of all errors whose message says what is wrong, where, and how to mend it."""


class ConfigError(MRdIBError):
    """A parameter, model or data set name that is unknown, out of range or contradictory."""


class DataError(MRdIBError):
    """An input file that is missing, malformed or does not fit the others."""


class CheckpointError(MRdIBError):
    """A checkpoint that is missing, foreign, or would have to be unpickled."""


class ContractError(MRdIBError):
    """A model that does not keep the contract of `models/base.py`."""


class NonFiniteLossError(MRdIBError):
    """A loss term became NaN or infinite; the message names the term."""


class ProcessError(MRdIBError):
    """One of the processes of a training has ended, gives no answer, or went another way than the others."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean A or B?' with the nearest of the known names, or '' when nothing is near."""
    by_folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_folded, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(by_folded[n] for n in near)}?" if near else ""


def without(path: object, error: MRdIBError) -> str:
    """The message without the file's name at its start, for where that is told already."""
    return str(error).removeprefix(str(path)).removeprefix(": ").removeprefix(", ")


def listed(values: Iterable[object], limit: int = 5) -> str:
    """'a, b, c and 7 more': enough of a long list to find the culprit."""
    texts = [str(v) for v in values]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")
