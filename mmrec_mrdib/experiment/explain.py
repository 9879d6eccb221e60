"""Why an item is recommended: a score as a sum of parts, exactly (`plugins/channel.py`)."""

from __future__ import annotations

import json
from typing import Any

from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment.export import Trained
from mmrec_mrdib.plugins.channel import Channel, explained

_SHOWN = 3  # items of the history


def explain(trained: Trained, user: str, item: str | None = None, top: int = 5) -> dict[str, Any]:
    """The parts of a user's scores, in original ids.

    Args:
        item: explain this item; none: the `top` best that the user does not have.

    Returns:
        'user', 'weight' (w of the readout), 'items': of each 'item', 'score', 'backbone', 'modalities' (name -> part) and 'history'
        ((item, part) pairs, largest first).

    Raises:
        ConfigError: the model reads no content.
        DataError: the user or the item is not known.
    """
    model = trained.model
    if not isinstance(model, Channel) or model.settings.readout == "none":
        raise ConfigError(
            f"{trained.result['model']} has no content readout: its score is the model's alone; +MRdIB and +Content have one"
        )
    known, _ = trained.split_users([user])
    if not known:
        raise DataError(f"--user={user}: not in the data, or without training interactions")
    place = {token: n for n, token in enumerate(trained.items)}
    if item is not None and place.get(item, 0) < 1:
        raise DataError(f"--item={item}: not in the data")
    items = [item] if item is not None else trained.recommend([user], top)["item"].tolist()
    number = {token: n for n, token in enumerate(trained.users)}[user]
    out = []
    for token in items:
        parts = explained(model, number, place[token])
        parts["history"] = [(str(trained.items[i]), part) for i, part in parts["history"]]
        out.append({"item": str(token), **parts})
    return {"user": user, "model": trained.result["model"], "weight": float(model.weight), "items": out}


def as_json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def as_text(found: dict[str, Any]) -> str:
    """A line an item: the score, its parts, and the three items of the history that speak most for it."""
    lines = [
        f"{found['model']}, user {found['user']}: score = backbone + modalities (readout weight {found['weight']:.4g})"
    ]
    for entry in found["items"]:
        parts = "".join(f"  {m} {part:+.4f}" for m, part in entry["modalities"].items())
        lines.append(f"item {entry['item']}: {entry['score']:.4f} = backbone {entry['backbone']:.4f}{parts}")
        because = ", ".join(f"{item} ({part:+.4f})" for item, part in entry["history"][:_SHOWN])
        lines.append(f"    because of {because}" if because else "    no history")
    return "\n".join(lines) + "\n"
