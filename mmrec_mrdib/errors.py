"""Errors that a user can mend. The command line prints their one line and exits with code 2.

Each class says what it is and, after 'To mend:', what to do: the reference is made from these docstrings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MRdIBError(Exception):
    """Base of all errors whose message says what is wrong, where, and how to mend it.

    To mend: do what the message says. `except MRdIBError` catches whatever is yours to mend; any other exception is a fault of the program.
    """


class ConfigError(MRdIBError):
    """A parameter or the name of a model, plug-in or preset that is unknown, out of range, without effect or contradictory.

    To mend: take the nearest name that the message offers, or a value in the range that it states. All parameters with their defaults and ranges
    are in the reference, those of the own package in its `properties/`.
    """


class DataError(MRdIBError):
    """An input, mostly a file, that is missing, malformed or does not fit the others.

    To mend: the message names the file and, where there is one, the line. `mmrec-mrdib data check DIR` lists at once everything that the loader
    would refuse; items without features need `--missing=mean` or `--missing=drop`.
    """


class CheckpointError(MRdIBError):
    """A checkpoint that is missing, damaged, of another model, or would have to be unpickled.

    To mend: name a `best.pt` that this program wrote, with its `result.json` beside it; delete one that cannot be resumed, and start anew. Of
    another program's pickle, save the state dict alone there (`torch.save(model.state_dict(), path)`): that loads without unpickling.
    """


class ContractError(MRdIBError):
    """A model, a plug-in or a host that does not keep the contract of `models/base.py`, or is not as `attach` was told.

    To mend: the message names what is returned or expected, mostly a shape. `mmrec_mrdib.testing.contract.ContractTests` checks a backbone at
    once, `mmrec_mrdib.suggest` lists what of a host can be attached to.
    """


class NonFiniteLossError(MRdIBError):
    """A loss term, or a parameter, became NaN or infinite before the first good epoch; the message names it.

    To mend: lower `--learning_rate` or the weight of the term that is named, look at the scale of the features (`--feature_norm=standard`,
    `data check`), or clip gradients (`--clip_grad_norm='{max_norm: 1.0}'`). A run that diverges after a good epoch keeps that epoch and says so.
    """


class OutOfMemoryError(MRdIBError):
    """A GPU's memory is not enough; the message says what to lower.

    To mend: lower `--train_batch_size` or `--eval_batch_size` (`auto` takes what is free), or `--jobs` where several runs share the GPU. On a
    board it is one failed cell; the same command with other sizes tries it again.
    """


class ProcessError(MRdIBError):
    """One of the processes of a training has ended, gives no answer, or went another way than the others.

    To mend: look for the message of the process that failed first, mend what it says, and start the same command with `--resume`.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean A or B?' with the nearest of the known names, or '' when nothing is near."""
    by_folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_folded, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(by_folded[n] for n in near)}?" if near else ""


def without(path: object, error: MRdIBError) -> str:
    """The message without the file's name at its start, for where that is told already."""
    return str(error).removeprefix(str(path)).removeprefix(": ").removeprefix(", ")


def first_line(error: BaseException) -> str:
    """What an error of another library says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def listed(values: Iterable[object], limit: int = 5) -> str:
    """'a, b, c and 7 more': enough of a long list to find the culprit."""
    texts = [str(v) for v in values]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")
