"""Where MRdIB could be attached to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

_MODALITIES = {"v": "image", "vision": "image", "visual": "image", "image": "image", "img": "image", "t": "text", "text": "text",
               "txt": "text", "textual": "text", "a": "audio", "audio": "audio"}  # fmt: skip


def suggest(model: nn.Module, features: Mapping[str, Any] | None = None) -> str:
    """The projections that `attach` could take, a line each, and the line to write: Linear layers as wide at their input as a modality's
    features.

    Args:
        features: modality -> (I, D) array, or D. None: what the model holds of that form, by the names of its tables.
    """
    found = {m: x if isinstance(x, int) else int(np.shape(x)[1]) for m, x in (features or _tables(model)).items()}
    linears = {path: part for path, part in model.named_modules() if isinstance(part, nn.Linear)}
    lines, chosen = [], {}
    for m, width in found.items():
        fitting = {path: part for path, part in linears.items() if part.in_features == width}
        alike = [path for path in fitting if m in {_MODALITIES.get(w, w) for w in re.split(r"[._\d]+", path)}]
        for path, part in fitting.items():
            lines.append(f"{m}: '{path}' (Linear, {part.in_features} -> {part.out_features})")
        if fitting:
            chosen[m] = next(iter(alike or fitting))
        for path, matrix in model.named_parameters():
            if (
                "." not in path
                and matrix.dim() == 2
                and len(matrix) == width
                and len(matrix) != getattr(model, "n_items", -1)
            ):
                lines.append(f"{m}: '{path}' is a matrix {tuple(matrix.shape)}, which cannot be intercepted")
    joint = [path for path, part in linears.items() if len(found) > 1 and part.in_features == sum(found.values())]
    for path in joint:
        lines.append(f"{', '.join(found)}: '{path}' (Linear over all of them; the order is that of its columns)")
        chosen = chosen or dict.fromkeys(found, path)
    if not chosen:
        lines.append(
            "no Linear is as wide at its input as features"
            + (
                f" ({', '.join(f'{m} {w}' for m, w in found.items())})"
                if found
                else ": give features={modality: array}"
            )
            + "; encoders of the plug-in's own need none:"
        )
        return "\n".join([*lines, "plug = mrdib.attach(model, features={...}, train=(users, items))"])
    more = ", features={...}" if len(set(chosen.values())) < len(chosen) else ""
    return "\n".join([*lines, f"plug = mrdib.attach(model, projections={chosen!r}, train=(users, items){more})"])


def _tables(model: nn.Module) -> dict[str, int]:
    """Modality -> width of what looks like its features: matrices with a modality's name and 'feat', or a modality's embedding."""
    named = [
        *model.named_parameters(),
        *model.named_buffers(),
        *((n, x) for n, x in vars(model).items() if isinstance(x, Tensor)),
    ]
    out: dict[str, int] = {}
    for name, x in named:
        words = re.split(r"[._\d]+", name.lower())
        modality = next((_MODALITIES[w] for w in words if w in _MODALITIES), None)
        is_features = any(w.startswith("feat") for w in words) or "embedding" in words
        if x.dim() == 2 and modality is not None and is_features and len(x) == getattr(model, "n_items", len(x)):
            out.setdefault(modality, x.shape[1])
    return out
