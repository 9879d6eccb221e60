"""RecBole's atomic files, from and to the MMRec layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_mrdib.data import modality
from mmrec_mrdib.data.prepare import TEST, TRAIN, VALID, Collector, Features, Table, write_folder
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.errors import DataError, listed

SPLITS = mmrec.SPLITS


def read(folder: Path) -> tuple[Table, np.ndarray | None]:
    """Interactions of `<name>.inter`, or of `<name>.train.inter`, `.valid.inter` and `.test.inter` with their split.

    Raises:
        DataError: neither is there, or a file lacks user_id:token and item_id:token.
    """
    name = folder.resolve().name
    whole = folder / f"{name}.inter"
    parts = [folder / f"{name}.{split}.inter" for split in SPLITS]
    if not whole.is_file() and not all(p.is_file() for p in parts):
        raise DataError(f"{folder}: neither {whole.name} nor {', '.join(p.name for p in parts)}")
    collector, labels = Collector(), []
    for label, path in enumerate([whole] if whole.is_file() else parts):
        frame = read_frame(path)
        users, items = frame["user_id:token"].to_numpy(), frame["item_id:token"].to_numpy()
        numbers = {
            name: pd.to_numeric(frame[f"{name}:float"], errors="coerce").to_numpy(dtype=np.float64)
            if f"{name}:float" in frame
            else np.full(len(frame), np.nan)
            for name in ("rating", "timestamp")
        }
        collector.extend(users, items, numbers["rating"], numbers["timestamp"])
        labels.append(np.full(len(frame), label))
    return collector.table(), None if whole.is_file() else np.concatenate(labels)


def read_frame(path: Path) -> pd.DataFrame:
    """An atomic .inter file, all cells as text.

    Raises:
        DataError: not a tab-separated table, or one without user_id:token and item_id:token.
    """
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_filter=False, engine="c")
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a tab-separated table ({str(error).strip().splitlines()[0]})") from error
    lacking = [c for c in ("user_id:token", "item_id:token") if c not in frame.columns]
    if lacking:
        raise DataError(f"{path}: the header lacks {', '.join(lacking)} (found {listed(frame.columns, 8)})")
    return frame


def features(folder: Path) -> dict[str, Features]:
    """Every modality of a folder whose rows are named by `<modality>_ids.txt`."""
    found = {}
    for name, (path, ids) in modality.find(folder, {}).items():
        file = modality.open_file(name, path, ids, None)
        found[name] = Features(file.rows, file.row_of)
    return found


def write(target: Path, source: Path) -> int:
    """Turn an MMRec folder into atomic files: three benchmark files, a yaml that names them, and features with their ids.

    Returns the number of interactions.
    """
    frame = mmrec.read(source / f"{source.resolve().name}.inter").drop_duplicates(["userID", "itemID"])
    n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0

    def interactions(folder: Path) -> None:
        for label, split in zip((TRAIN, VALID, TEST), SPLITS, strict=True):
            part = frame[frame["x_label"] == label]
            columns = {"user_id:token": part["userID"], "item_id:token": part["itemID"]}
            pd.DataFrame(columns).to_csv(folder / f"{target.name}.{split}.inter", sep="\t", index=False)
        (folder / f"{target.name}.yaml").write_text("benchmark_filename: [train, valid, test]\n", encoding="utf-8")

    def copier(name: str, path: Path, ids: Path | None) -> Callable[[Path], None]:
        file = modality.open_file(name, path, ids, n_ids)

        def copy(folder: Path) -> None:
            np.save(folder / f"{name}_feat.npy", file.rows)
            tokens = sorted(file.row_of, key=file.row_of.__getitem__)
            (folder / f"{name}_ids.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")

        return copy

    found = modality.find(source, {})
    write_folder(target, [interactions, *(copier(name, *files) for name, files in found.items())])
    return len(frame)
