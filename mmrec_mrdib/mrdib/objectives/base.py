"""What an objective of one's own is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from mmrec_mrdib.encoded import Batch, Encoded


class Objective(nn.Module, ABC):
    """A term of the loss beside MRdIB's: a subclass in a file, a line in `registry.OBJECTIVES` (or an entry point of the group
    `mmrec_mrdib.objectives`), and `--objectives="{name: weight}"`. It may have parameters; they train with the plug-in's.

    Args:
        widths: modality -> d_m, the width of its representation.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)

    @abstractmethod
    def forward(self, enc: Encoded, batch: Batch) -> Tensor:
        """() what is minimised, times its weight.

        Args:
            enc: the representations that the plug-in's other terms see, of the whole catalogue or of some items.
            batch: the pairs; `batch.negative` is None where the backbone is trained without negatives.
        """

    @staticmethod
    def distinct(enc: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Modality -> (R, d_m) representations of the distinct items of the batch, row-aligned."""
        return {m: batch.distinct_items_of(z, enc) for m, z in enc.z.items()}
