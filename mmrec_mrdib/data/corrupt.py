"""Features made worse on purpose: noise, lost modalities, and controls that take the information away but keep the form.

All of it happens after scaling, draws from `split_seed` alone (so that a plain model and its variant, and all seeds, see the same), and
leaves the padding row 0 at zero.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from mmrec_mrdib.errors import ConfigError


def generator(seed: int, *names: str) -> np.random.Generator:
    """A stream of its own for each purpose and modality."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def add_noise(values: np.ndarray, snr_db: float, rng: np.random.Generator) -> None:
    """Gaussian noise in place: each column's variance over the items is 10^(snr_db / 10) times that of its noise.

    Args:
        values: (I, D) float32.
    """
    scale = values[1:].std(axis=0, dtype=np.float64) * 10 ** (-snr_db / 20)
    for row in range(1, len(values), 4096):  # the noise of all items at once would double the memory
        part = values[row : row + 4096]
        part += (rng.standard_normal(part.shape) * scale).astype(np.float32)


def control(values: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """In place: 'shuffle' permutes rows across items; 'constant' gives all items one row, each column's root mean square;
    'random' draws normal values with each column's mean and standard deviation.

    Args:
        values: (I, D) float32.
    """
    known = values[1:]
    if kind == "shuffle":
        values[1:] = known[rng.permutation(len(known))]
    elif kind == "constant":
        values[1:] = np.sqrt(np.square(known, dtype=np.float64).mean(axis=0))
    else:
        mean, std = known.mean(axis=0, dtype=np.float64), known.std(axis=0, dtype=np.float64)
        values[1:] = rng.normal(mean, std, known.shape)


def lose(values: Mapping[str, np.ndarray], share: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """In place: this share of the items loses one modality each, drawn evenly; the mean row of the others stands in.

    Args:
        values: modality -> (I, D) float32.

    Returns:
        modality -> (I,) bool, the items that lost it.
    """
    n = len(next(iter(values.values()))) - 1
    which = np.full(n, -1)
    which[rng.permutation(n)[: round(share * n)]] = rng.integers(len(values), size=round(share * n))
    lost = {}
    for number, (name, table) in enumerate(values.items()):
        gone = lost[name] = np.concatenate([[False], which == number])
        kept = ~gone
        kept[0] = False
        table[gone] = table[kept].mean(axis=0, dtype=np.float64)
    return lost


def controls_by_modality(setting: str | Mapping[str, str] | None, modalities: list[str]) -> dict[str, str]:
    """Modality -> its control; one word means all of them.

    Raises:
        ConfigError: a modality that is not in use.
    """
    if setting is None:
        return {}
    if isinstance(setting, str):
        return dict.fromkeys(modalities, setting)
    for name in setting:
        if name not in modalities:
            raise ConfigError(f"--feature_control: no modality '{name}' in use; found {', '.join(modalities)}")
    return dict(setting)
