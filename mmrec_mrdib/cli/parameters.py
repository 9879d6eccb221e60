"""Parameters of a run on the command line: any of RecBole's, the model's or MRdIB's, as --key=value or --key value."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mmrec_mrdib.errors import ConfigError, did_you_mean


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The parser's own options, and all others as parameters.

    Raises:
        ConfigError: something that is neither, or a parameter given twice with different values.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    options, rest = parser.parse_known_args(joined(arguments, known))
    return options, parameters(rest, known)


def joined(arguments: Sequence[str], known: set[str]) -> list[str]:
    """'--key value' as '--key=value' for parameters that argparse does not know (RecBole's form is with '=')."""
    out: list[str] = []
    takes_more = False
    for argument in arguments:
        previous = out[-1] if out else ""
        is_bare = previous.startswith("--") and "=" not in previous and previous not in known
        if is_bare and not argument.startswith("--") and not takes_more:
            out[-1] = f"{previous}={argument}"
        else:
            out.append(argument)
        takes_more = argument == "--config_files" or (takes_more and not argument.startswith("--"))
    return out


def parameters(rest: Sequence[str], known: set[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            names = {option.removeprefix("--") for option in known}
            raise ConfigError(f"'{argument}': expected an option or --key=value.{did_you_mean(key, names)}")
        if values.get(key, value) != value:
            raise ConfigError(f"--{key} is given twice, as {values[key]} and {value}")
        values[key] = value
    return values
