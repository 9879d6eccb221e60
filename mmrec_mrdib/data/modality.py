"""Item features of one modality: where they are, whose they are, and how they come into RecBole's item order."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmrec_mrdib.data import text
from mmrec_mrdib.errors import ConfigError, DataError, did_you_mean, listed

SUFFIX = "_feat.npy"
_BLOCK = 4096  # rows read and checked at a time


@dataclass(frozen=True)
class FeatureFile:
    """A feature matrix on disk, memory-mapped, with the item token of each row.

    Attributes:
        name: the modality.
        path: the .npy file.
        rows: (R, D) memory map, any real dtype.
        row_of: token -> row.
        blank: tokens whose row is all 0, the field's mark of a picture or text that is missing: they have no features.
    """

    name: str
    path: Path
    rows: np.ndarray
    row_of: dict[str, int]
    blank: frozenset[str]

    def without(self, tokens: Collection[str]) -> tuple[list[str], list[str]]:
        """(those without a row, those with a row of zeros), sorted.

        Raises:
            DataError: all of them lack features.
        """
        lacking = sorted((t for t in tokens if t not in self.row_of), key=natural)
        blank = sorted(self.blank.intersection(tokens), key=natural)
        if tokens and len(lacking) + len(blank) == len(tokens):
            what = f"{len(blank)} rows are all 0, {len(lacking)} have no row (ids here: {listed(self.row_of, 3)})"
            raise DataError(f"{self.path}: none of the {len(tokens)} items has {self.name} features: {what}")
        return lacking, blank


def natural(token: str) -> tuple[int, str]:
    """Sorts whole numbers by value."""
    return (int(token) if token.isdecimal() else -1, token)


def find(folder: Path, overrides: dict[str, tuple[str, str | None]]) -> dict[str, tuple[Path, Path | None]]:
    """Feature file and ids file of every modality in the folder, in alphabetical order of the names.

    A file that `overrides` names is that modality's alone, not a second one by its own name.
    """
    found: dict[str, tuple[Path, Path | None]] = {}
    renamed = {folder / file for file, _ in overrides.values()}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        name = path.name.removesuffix(SUFFIX)
        ids = folder / f"{name}_ids.txt"
        if path not in renamed:
            found[name] = (path, ids if ids.is_file() else None)
    for name, (file, ids_name) in overrides.items():
        for part in (file, ids_name):
            if part is not None and not (folder / part).is_file():
                raise DataError(f"modality_files.{name}: {folder / part}: no such file")
        found[name] = (folder / file, folder / ids_name if ids_name else None)
    return found


_NAMED = re.compile(r"(?:(.+)[_.-])?(?:feats?|features?|embs?|embeddings?)", re.IGNORECASE)
# MMRec's neighbours and caches, made anew here. Not every graph: knowledge_graph.npy may be somebody's features.
_GRAPH = re.compile(r"(?:user|item)_graph(?:_.*)?|(?:.*_)?adj(?:_.*)?", re.IGNORECASE)
_ARRAYS = (".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".h5", ".hdf5", ".mat", ".safetensors")
_MENDS = {
    ".npz": "np.save('{new}', np.load('{old}')[KEY])",
    ".pt": "np.save('{new}', torch.load('{old}', weights_only=True).numpy())",
    ".pth": "np.save('{new}', torch.load('{old}', weights_only=True).numpy())",
    ".csv": "np.save('{new}', np.loadtxt('{old}', delimiter=',')), or, with ids: mmrec-mrdib data prepare csv --features",
    ".tsv": "np.save('{new}', np.loadtxt('{old}')), or, with ids: mmrec-mrdib data prepare csv --features",
    ".txt": "np.save('{new}', np.loadtxt('{old}'))",
    ".parquet": "mmrec-mrdib data prepare csv --features",
    ".json": "np.save('{new}', np.array(json.load(open('{old}')), dtype='float32'))",
    ".safetensors": "np.save('{new}', safetensors.numpy.load_file('{old}')[KEY])",
}


def unread(folder: Path, found: dict[str, tuple[Path, Path | None]]) -> dict[str, str]:
    """Files of the folder that look like features but are none of `found`: name -> why, and how to mend it."""
    used = {part.name for files in found.values() for part in files if part is not None}
    out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        bare, suffix = Path(path.name.removesuffix(".gz")), path.suffix.lower()
        named = _NAMED.fullmatch(bare.stem)
        known = named or (bare.suffix.lower() in _ARRAYS and not _GRAPH.fullmatch(bare.stem))
        if path.name.startswith(".") or not path.is_file() or path.name in used or not known:
            continue
        new = f"{(named[1] if named else bare.stem) or '<modality>'}{SUFFIX}"
        if new in used:  # the same features in another form, or what `data encode` says of them
            continue
        if suffix == ".npy":
            mend = f"rename it to {new}, or name it in modality_files"
        else:
            mend = f"unpack it to {new}" if suffix == ".gz" else _MENDS.get(suffix, "np.save('{new}', ARRAY)")
            mend = mend.format(new=new, old=path.name)
        out[path.name] = f"not read: features are in <modality>{SUFFIX}; {mend}"
    return out


def bad_name(name: str) -> str | None:
    """Why this cannot be a modality's name, or None where it can.

    The name becomes that of a part of the model, beside everything that PyTorch's modules have by themselves.
    """
    from torch import nn

    if not name:
        return "a modality needs a name"
    if not re.fullmatch(r"[\w-]+", name):
        return "expected letters, digits, - and _ alone"
    if hasattr(nn.ModuleDict, name) or hasattr(nn.ParameterDict, name) or hasattr(nn.ModuleDict(), name):
        return "PyTorch's modules use this name themselves"
    return None


def check_name(name: str, path: Path) -> None:
    """
    Raises:
        DataError: a model could not have a part of this name.
    """
    why = bad_name(name)
    if why is not None:
        ids = f", ids: {json.dumps(f'{name}_ids.txt')}" if (path.parent / f"{name}_ids.txt").is_file() else ""
        new = "my_" + (re.sub(r"[^A-Za-z0-9_]", "_", name) or "features")
        raise DataError(
            f"{path}: a modality cannot be called '{name}': {why}; rename the file, or give the modality another name: "
            f"--modality_files='{{{new}: {{file: {json.dumps(path.name)}{ids}}}}}'"
        )


def select(found: dict[str, tuple[Path, Path | None]], wanted: Sequence[str] | None, folder: Path) -> list[str]:
    """The names to use: those asked for, checked, or all that were found.

    Raises:
        ConfigError: one that is not there.
        DataError: one that cannot be used.
    """
    for name in wanted or ():
        if name not in found:
            others = [f" {file}: {why}" for file, why in unread(folder, found).items() if file.startswith(name)]
            raise ConfigError(
                f"--modalities: no modality '{name}' in {folder}.{did_you_mean(name, found)} "
                f"Available: {', '.join(found) or 'none'}; '{name}' would be read from {name}{SUFFIX}"
                + ";".join(others)
            )
    names = list(wanted or found)
    for name in names:
        check_name(name, found[name][0])
    pairs = [
        f"{a}-{b}" for n, a in enumerate(names) for b in names[n + 1 :]
    ]  # as models name what belongs to two of them
    twice = {p for p in pairs if pairs.count(p) > 1}
    if twice:
        raise DataError(
            f"{folder}: modalities {', '.join(names)}: '{min(twice)}' could be two pairs of them; rename one without '-'"
        )
    return names


def open_file(name: str, path: Path, ids: Path | None, n_ids: int | None) -> FeatureFile:
    """Open a feature file. Of its values no more is read than tells which rows are all 0.

    Args:
        ids: text file with the token of each row; None: the row number is the token.
        n_ids: the number of rows expected where the row number is the token (largest item id + 1); None where
            row numbers cannot be tokens, so that an ids file is required.

    Raises:
        DataError: not a 2-d array of real numbers, pickled objects inside, wrong number of rows, repeated ids.
    """
    rows = open_rows(path)
    if ids is not None:
        tokens = _read_ids(ids, len(rows), path, n_ids is not None)
    elif n_ids is None:
        raise DataError(
            f"{path}: whose features are these? Expected {path.name.removesuffix(SUFFIX)}_ids.txt beside it, with the "
            "item id of each row, one a line (only in the MMRec layout row numbers are item ids)"
        )
    elif len(rows) != n_ids:
        raise DataError(
            f"{path}: {len(rows)} rows, but the interactions name items 0 to {n_ids - 1}, so {n_ids} rows are expected; "
            f"row r must belong to item id r (or name each row's item in {path.name.removesuffix(SUFFIX)}_ids.txt)"
        )
    else:
        tokens = [str(r) for r in range(n_ids)]
    row_of = {token: row for row, token in enumerate(tokens)}
    return FeatureFile(name, path, rows, row_of, frozenset(tokens[r] for r in blank_rows(rows)))


def blank_rows(rows: np.ndarray) -> list[int]:
    """Numbers of the rows that are all 0. None of a single column: there 0 is a number like others."""
    if rows.shape[1] == 1:
        return []
    out: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        likely = np.flatnonzero(~block[:, :32].any(axis=1))  # few rows are read whole
        out.extend((likely[~block[likely].any(axis=1)] + start).tolist())
    return out


def open_rows(path: Path) -> np.ndarray:
    """The (R, D) matrix of a feature file as a memory map.

    Raises:
        DataError: not a 2-d array of real numbers, or pickled objects inside.
    """
    try:
        what = text.disguise(path)
        if what is not None:
            raise DataError(
                f"{path}: no array of numbers but {what.replace('NAME', repr(path.name)).replace('FILE', repr(path.name))}"
            )
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except ValueError as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error) or "pickle" in str(error).lower():
            raise DataError(_no_array(path)) from error
        raise DataError(f"{path}: not a valid .npy file ({error})") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    except DataError:
        raise
    except Exception as error:  # a broken header ends in anything: TokenError, OverflowError, RecursionError, ...
        raise DataError(f"{path}: not a valid .npy file ({type(error).__name__}: {error})") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "fiub" or 0 in rows.shape:
        shape = getattr(rows, "shape", "?")
        raise DataError(
            f"{path}: found shape {shape}, dtype {getattr(rows, 'dtype', '?')}; expected (items, dimensions) of numbers"
        )
    return rows


def _no_array(path: Path) -> str:
    """NumPy takes whatever does not begin as its arrays do for a pickle; so only what does, or begins as one, is called so."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"\x93NUMPY", b"\x80")):
        return (
            f"{path}: holds Python objects (a pickle), which are never loaded; save it as a plain array of "
            "numbers: np.save(path, np.stack(rows).astype('float32'))"
        )
    looks = "text" if head.isascii() and b"\0" not in head else f"bytes that begin with {head[:8].hex(' ')}"
    return f"{path}: no array of NumPy but {looks}; save it with np.save(path, array)"


def _read_ids(ids: Path, n_rows: int, path: Path, numbers: bool) -> list[str]:
    tokens = [line.strip() for line in text.lines(ids)] if numbers else text.lines(ids)
    if len(tokens) != n_rows:
        raise DataError(f"{ids}: {len(tokens)} lines for the {n_rows} rows of {path.name}; expected one id a row")
    seen: dict[str, int] = {}
    for line, token in enumerate(tokens, 1):
        if not token:
            raise DataError(f"{ids}, line {line}: no id")
        if token in seen:
            raise DataError(
                f"{ids}, line {line}: id '{token}' stands in line {seen[token]} already; keep one row an item"
            )
        seen[token] = line
    return tokens


@dataclass(frozen=True)
class Scaling:
    """How raw features became those of the training: what new items must go through, too.

    Attributes:
        norm: 'none', 'standard', 'l2' or 'unit' (first 'standard', then 'l2').
        mean, scale: (D,) of the training's items, for 'standard' and 'unit'; scale 0 marks a constant column.
    """

    norm: str
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(R, D) float32 from (R, D) raw float32."""
        if self.mean is not None and self.scale is not None:
            constant = self.scale == 0
            values = ((values - self.mean) / np.where(constant, 1.0, self.scale)).astype(np.float32)
            values[:, constant] = 0.0
        if self.norm in ("l2", "unit"):
            return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        return values


def table(rows: int, width: int, folder: Path | None) -> np.ndarray:
    """(rows, width) zeros, float32: in memory, or mapped from a nameless file in the folder, which ends with the process. Of a mapped
    table the system keeps in memory what is in use and there is room for."""
    if folder is None:
        return np.zeros((rows, width), dtype=np.float32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not as a signal at some later write
                os.posix_fallocate(file.fileno(), 0, rows * width * 4)
            return np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, width))
    except OSError as error:
        raise DataError(
            f"--features_on_disk: {folder} cannot hold {rows * width * 4 / 1e9:.1f} GB ({error}); "
            "set $MMREC_MRDIB_CACHE to a folder with room"
        ) from error


def align(
    file: FeatureFile, tokens: Sequence[str], norm: str, folder: Path | None = None
) -> tuple[np.ndarray, np.ndarray, Scaling]:
    """Features in RecBole's internal item order. Made in blocks of rows: one table is all the memory it takes, or none with a folder.

    Args:
        tokens: (I,) item tokens by internal id; tokens[0] is the padding.
        norm: see `Scaling`; its statistics are of the items that have features.
        folder: for a table on disk, see `table`.

    Returns:
        features (I, D) float32, has (I,) bool, and the scaling. Row 0 is zero; items without features get the mean row.

    Raises:
        DataError: NaN or infinite values; names rows and items.
    """
    rows = np.array([-1 if t in file.blank else file.row_of.get(t, -1) for t in tokens], dtype=np.int64)
    rows[0] = -1
    has = rows >= 0
    out = table(len(tokens), file.rows.shape[1], folder)
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(tokens), _BLOCK)]
    bad: list[int] = []
    for part in blocks:
        take = rows[part][has[part]]
        with np.errstate(over="ignore"):
            values = np.asarray(file.rows[take], dtype=np.float32)
        bad.extend(take[~np.isfinite(values).all(axis=1)].tolist())
        out[part][has[part]] = values
    if bad:
        raise DataError(
            f"{file.path}: NaN or infinite values in {len(bad)} rows ({listed(sorted(bad))}, counted from 0); "
            "replace them, or leave these rows out of the file together with their ids and set --missing=mean"
        )

    def mean_of(f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(D,) float64 mean of f over the rows that have features."""
        total = np.zeros(out.shape[1])
        for part in blocks:
            total += f(out[part][has[part]]).sum(axis=0, dtype=np.float64)
        return total / has.sum()

    scaling = Scaling(norm)
    if not has.any():
        return out, has, scaling
    if norm in ("standard", "unit"):
        mean = mean_of(lambda x: x)
        std = np.sqrt(mean_of(lambda x: np.square(x - mean)))
        # A constant column carries nothing; its rounding noise must not be blown up to unit variance.
        constant = std <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
        scaling = Scaling(norm, mean, np.where(constant, 0.0, std))
    for part in blocks:
        out[part][has[part]] = scaling(out[part][has[part]])
    if not has[
        1:
    ].all():  # standardised, the mean is 0: exactly, or its rounding would have a direction, and neighbours in graphs
        out[~has] = 0.0 if norm == "standard" else mean_of(lambda x: x)
    out[0] = 0.0
    return out, has, scaling
