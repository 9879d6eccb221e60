"""The readout of the content: scores of items by what a user's other items say, and the ladder out of which validation takes its weight.

Of the plug-ins around models of the contract (`plugins/channel.py`) and of those attached to any other (`hosts/attach.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrec_mrdib.mrdib.history import Histories, profiles

_SCALE_USERS = 512  # of the split, whose scores tell the scale of the ladder


class Readout(nn.Module):
    """Subclasses write `content`, `content_features` and `host_scores`.

    Buffers: `weight`, w in the units of the scores (0 until a validation has chosen it); `step`, its place in the ladder, -1 before.
    """

    settings: Any
    histories: Histories
    weight: Tensor
    step: Tensor
    first_item: int = 1
    """Row of the first item: 0 where there is no padding."""
    _content: tuple[dict[str, Tensor], Tensor] | None

    def build_readout(self, histories: Histories | None) -> None:
        """Its buffers; without histories only where `readout` is none."""
        if histories is not None:
            self.histories = histories
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("step", torch.tensor(-1))
        self._content = None

    def content(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> (R, d_m) what the content score of items with these features is made of, before it is brought to length 1."""
        raise NotImplementedError

    def content_features(self) -> dict[str, Tensor]:
        """Modality -> (I, D_m) features that the content score is made of, a padding row zero; under `content_control`, controlled."""
        raise NotImplementedError

    def host_scores(self, users: Tensor) -> Tensor:
        """(B, I) the host's own scores of all items."""
        raise NotImplementedError

    def unit_rows(self, features: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Modality -> (R, d_m) zhat of items with the given features, or of the whole catalogue, where a padding row is 0."""
        if features is not None:
            return {m: F.normalize(z) for m, z in self.content(features).items()}
        rows = {m: F.normalize(z) for m, z in self.content(self.content_features()).items()}
        first = self.first_item
        return {m: torch.cat([torch.zeros_like(z[:first]), z[first:]]) for m, z in rows.items()} if first else rows

    @torch.no_grad()
    def catalogue(self) -> tuple[dict[str, Tensor], Tensor]:
        """Modality -> (I, d_m) zhat of all items, and (I, sum d_m) the same side by side; kept for one evaluation."""
        if self._content is None or self.training:
            unit = self.unit_rows()
            self._content = (unit, torch.cat(list(unit.values()), 1))
        return self._content

    def profiles(self, users: Tensor, histories: Histories | None = None) -> Tensor:
        """(B, sum d_m) [p_u^1 ; ...] of users (B,), of these histories or of the training's."""
        unit, _ = self.catalogue()
        return torch.cat([profiles(histories or self.histories, z, users) for z in unit.values()], 1)

    @property
    def reads_content(self) -> bool:
        """Whether the content score counts at present."""
        return self.settings.readout == "late" and float(self.weight) > 0

    # The ladder.

    def rungs(self) -> list[int]:
        """Places in the ladder that the next validation compares: all of them at first, then the chosen one and its neighbours."""
        if self.settings.readout == "none":
            return []
        n, at = len(self.settings.readout_ladder), int(self.step)
        return list(range(n)) if at < 0 else list(range(max(at - 1, 0), min(at + 2, n)))

    @torch.no_grad()
    def scale(self, users: Sequence[Tensor]) -> float:
        """One unit of the ladder: the spread of the backbone's scores over the items by that of the content scores, each the mean over some
        users of the standard deviation."""
        some = torch.cat(list(users))
        some = some[:: max(1, len(some) // _SCALE_USERS)]
        host = self.host_scores(some)[:, self.first_item :].std(1).mean()
        content = (self.profiles(some) @ self.catalogue()[1][self.first_item :].T).std(1).mean()
        return float(host / content) if content > 0 else 0.0

    def readout(self) -> dict[str, float] | None:
        """The chosen rung of the ladder, 'rung', and the weight in the scores' units, 'weight'; None without a readout."""
        if self.settings.readout == "none" or int(self.step) < 0:
            return None
        return {"rung": self.settings.readout_ladder[int(self.step)], "weight": float(self.weight)}

    def choose(self, rung: int, unit: float) -> None:
        """Take w from the ladder, a unit being `scale`'s."""
        self.step.fill_(rung)
        self.weight.fill_(self.settings.readout_ladder[rung] * unit)
