"""An extension of griffe, which reads docstrings for the site: what this package's docstrings have and Markdown, or Google's style, has not."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SHARED = re.compile(r"^(?P<indent>\s*)(?P<names>\w+(?:, \*{0,2}\w+)+): (?P<text>.*)$")
_TAG = re.compile(r"(`[^`]*`)|<")  # code, which stays as it is
_BLOCK = re.compile(r"^ {4,}")


class Docstrings(griffe.Extension):
    """'users, items: ...' documents both; '<u, i>' is an inner product and no tag."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = mended(obj.docstring.value)


def mended(text: str) -> str:
    out: list[str] = []
    arguments = False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            arguments = line in ("Args:", "Attributes:")
        if arguments and (found := _SHARED.match(line)):
            names = found["names"].split(", ")
            out += [f"{found['indent']}{name}: see `{names[-1]}`." for name in names[:-1]]
            line = f"{found['indent']}{names[-1]}: {found['text']}"
        out.append(line if _BLOCK.match(line) and not arguments else _TAG.sub(lambda m: m[1] or "&lt;", line))
    return "\n".join(out)
