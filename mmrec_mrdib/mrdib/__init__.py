"""MRdIB: `plugin.py` wraps a backbone, `hosts/attach.py` any other model; `encoder.py` is its stochastic stage, `terms.py` its loss; objectives
and estimators, one file each."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("attach", "suggest"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import mmrec_mrdib

    return getattr(mmrec_mrdib, name)
