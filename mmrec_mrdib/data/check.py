"""Everything that is to be said of a data set's folder before anyone trains on it: all findings at once, and statistics.

The loader (`data/dataset.py`) stops at the first thing it cannot use; this goes on, through the same readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mmrec_mrdib.data import modality
from mmrec_mrdib.data.sources import atomic, mmrec
from mmrec_mrdib.errors import MRdIBError, listed
from mmrec_mrdib.schema import ModalityFile, read_yaml

_BLOCK = 4096  # rows of features looked at at a time


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        level: 'error': the loader refuses; 'repair': it mends by itself, and says so; 'warning': it goes on, results may suffer.
        where: the file.
        what: one line: what is wrong and how to mend it.
        count: how many cells, rows or columns are concerned.
        examples: some of them.
    """

    level: Literal["error", "repair", "warning"]
    where: str
    what: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f" ({listed(self.examples, 5)})" if self.examples else ""
        return f"{self.level:7} {self.where}: {self.what}{shown}"


@dataclass
class Report:
    """Outcome of `check`.

    Attributes:
        folder: the data set's folder.
        layout: 'MMRec', 'RecBole' or 'none' where there are no interactions to read.
        findings: errors first.
        statistics: plain values by name.
    """

    folder: str
    layout: str
    findings: list[Finding] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the loader takes the folder."""
        return not any(f.level == "error" for f in self.findings)

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "usable": self.usable}


def check(folder: str | Path) -> Report:
    """Look at `<folder>/<folder's name>.inter` and at every `<modality>_feat.npy` beside it. Nothing is written or unpickled.

    Of RecBole's atomic files only ids are looked at: their split is a matter of the configuration.
    """
    folder = Path(folder)
    path = folder / f"{folder.resolve().name}.inter"
    report = Report(str(folder), "none")
    tokens: set[str] | None = None
    n_ids: int | None = None
    try:
        layout = "MMRec" if mmrec.is_mmrec(path) else "RecBole"
    except (MRdIBError, OSError) as error:
        what = "no such file; the interactions are read from it" if not path.is_file() else str(error)
        report.findings.append(Finding("error", path.name, what.removeprefix(f"{path}: ")))
    else:
        report.layout = layout
        if layout == "MMRec":
            frame, problems = mmrec.examine(path)
            report.findings += [Finding("error", path.name, p.what, p.cells, p.examples) for p in problems]
            if frame is not None:
                report.findings += _interactions(frame, path.name)
                report.statistics |= _counts(frame)
                tokens = set(frame["itemID"].astype(str))
                n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0
        else:
            tokens = _atomic(path, report)
    _features(folder, tokens, n_ids, report)
    order = ("error", "repair", "warning")
    report.findings.sort(key=lambda f: order.index(f.level))
    return report


def _interactions(frame: pd.DataFrame, where: str) -> Iterator[Finding]:
    pairs = ["userID", "itemID"]
    repeated = frame.duplicated(pairs)
    if repeated.any():
        examples = tuple(f"user {u} item {i}" for u, i in frame.loc[repeated, pairs].head(5).itertuples(index=False))
        yield Finding(
            "repair", where, f"{repeated.sum()} repeated interactions: kept once", int(repeated.sum()), examples
        )
    frame = frame[~repeated]
    splits = {name: frame[frame["x_label"] == n] for n, name in enumerate(mmrec.SPLITS)}
    for n, (name, part) in enumerate(splits.items()):
        if part.empty:
            yield Finding("error", where, f"the {name} split is empty; give it interactions with x_label {n}", 0)
    train = splits["train"]
    if train.empty:
        return
    for name in ("valid", "test"):
        cold = ~splits[name]["userID"].isin(train["userID"])
        users = splits[name].loc[cold, "userID"].unique()
        if len(users):
            what = f"{len(users)} users of {name} have no training interaction: left out ({cold.sum()} interactions)"
            yield Finding("repair", where, what, len(users), tuple(f"user {u}" for u in users[:5]))
        if len(splits[name]) and cold.all():
            yield Finding("error", where, f"no user of {name} has a training interaction; nothing is left to evaluate")
    per_user = train["userID"].value_counts()
    full = per_user.index[per_user >= train["itemID"].nunique()]
    if len(full):
        what = f"{len(full)} users have all training items, so no negative can be drawn for them; leave them out"
        yield Finding("error", where, what, len(full), tuple(f"user {u}" for u in full[:5]))
    unseen = np.setdiff1d(frame["itemID"], train["itemID"])
    if len(unseen):
        what = f"{len(unseen)} items occur in valid or test only: ranked, but never trained on"
        yield Finding("warning", where, what, len(unseen), tuple(f"item {i}" for i in unseen[:5]))


def _counts(frame: pd.DataFrame) -> dict[str, Any]:
    frame = frame.drop_duplicates(["userID", "itemID"])
    users, items = frame["userID"].nunique(), frame["itemID"].nunique()
    train = frame[frame["x_label"] == 0]
    per_user = train["userID"].value_counts()
    return {
        "users": users,
        "items": items,
        "interactions": {name: int((frame["x_label"] == n).sum()) for n, name in enumerate(mmrec.SPLITS)},
        "density": len(frame) / (users * items) if len(frame) else 0.0,
        "train_items_per_user": {
            "min": int(per_user.min()) if len(per_user) else 0,
            "median": float(per_user.median()) if len(per_user) else 0.0,
            "max": int(per_user.max()) if len(per_user) else 0,
        },
        "cold_items": int(items - train["itemID"].nunique()),
    }


def _atomic(path: Path, report: Report) -> set[str] | None:
    """Item tokens of an atomic .inter file; findings and counts go into the report."""
    try:
        frame = atomic.read_frame(path)
    except MRdIBError as error:
        report.findings.append(Finding("error", path.name, str(error).removeprefix(f"{path}: ")))
        return None
    wanted = ("user_id:token", "item_id:token")
    for column in wanted:
        empty = np.flatnonzero(frame[column].str.strip() == "")
        if len(empty):
            lines = tuple(f"line {n + 2}" for n in empty[:5])
            report.findings.append(
                Finding("error", path.name, f"{len(empty)} cells of {column} are empty", len(empty), lines)
            )
    users, items = (frame[c].nunique() for c in wanted)
    repeated = int(frame.duplicated(list(wanted)).sum())
    if repeated:
        report.findings.append(Finding("repair", path.name, f"{repeated} repeated interactions: kept once", repeated))
    report.statistics |= {
        "users": users,
        "items": items,
        "interactions": {"all": len(frame) - repeated},
        "density": (len(frame) - repeated) / (users * items) if len(frame) else 0.0,
    }
    return set(frame["item_id:token"])


def _features(folder: Path, tokens: set[str] | None, n_ids: int | None, report: Report) -> None:
    overrides, missing = _own_settings(folder, report)
    try:
        found = modality.find(folder, overrides)
    except MRdIBError as error:
        report.findings.append(Finding("error", folder.name, str(error)))
        found = modality.find(folder, {})
    if not found:
        what = f"no <modality>{modality.SUFFIX} here: multimodal models need one or more"
        report.findings.append(Finding("warning", folder.name, what))
    modalities = report.statistics.setdefault("modalities", {})
    for name, (path, ids) in found.items():
        try:
            # Without interactions there is nothing to hold the number of rows against.
            file = modality.open_file(name, path, ids, n_ids) if tokens is not None or ids else None
            rows = modality.open_rows(path) if file is None else file.rows
        except MRdIBError as error:
            report.findings.append(Finding("error", path.name, str(error).removeprefix(f"{path}: ")))
            try:
                rows, file = modality.open_rows(path), None  # its values may still be looked at
            except MRdIBError:
                continue
        modalities[name] = _values(rows, path.name, report)
        if tokens is None or file is None:
            continue
        lacking = sorted(tokens - file.row_of.keys())
        modalities[name]["items_without"] = len(lacking)
        if lacking:
            what = f"no features for {len(lacking)} of {len(tokens)} items; "
            if missing == "error":
                what += "add their rows, or train with --missing=mean or --missing=drop"
            else:
                what += f"missing={missing} in the folder's yaml takes care of them"
            level: Literal["error", "repair"] = "error" if missing == "error" else "repair"
            report.findings.append(Finding(level, path.name, what, len(lacking), tuple(lacking[:5])))
        spare = len(file.row_of.keys() - tokens)
        if spare:
            what = f"{spare} rows belong to items without interactions: not used"
            report.findings.append(Finding("warning", path.name, what, spare))


def _own_settings(folder: Path, report: Report) -> tuple[dict[str, tuple[str, str | None]], str]:
    """modality_files and missing of the `<name>.yaml` beside the data, where there is one."""
    path = folder / f"{folder.resolve().name}.yaml"
    if not path.is_file():
        return {}, "error"
    try:
        values = read_yaml(path)
        files = {k: ModalityFile.checked(v) for k, v in (values.get("modality_files") or {}).items()}
    except (MRdIBError, AttributeError) as error:
        report.findings.append(Finding("error", path.name, str(error).removeprefix(f"{path}: ")))
        return {}, "error"
    return {k: (v.file, v.ids) for k, v in files.items()}, str(values.get("missing", "error"))


def _values(rows: np.ndarray, where: str, report: Report) -> dict[str, Any]:
    """Statistics of a feature matrix, read in blocks; findings go into the report."""
    n, width = rows.shape
    total, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    broken: list[int] = []
    zero: list[int] = []
    for start in range(0, n, _BLOCK):
        with np.errstate(over="ignore"):
            block = np.asarray(rows[start : start + _BLOCK], dtype=np.float32).astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        broken.extend((np.flatnonzero(~finite) + start).tolist())
        zero.extend((np.flatnonzero(~block.any(axis=1)) + start).tolist())
        block = block[finite]
        if len(block):
            total += block.sum(axis=0)
            squares += np.square(block).sum(axis=0)
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    sound = n - len(broken)
    if broken:
        what = f"NaN or infinite values (as float32) in {len(broken)} of {n} rows; replace them"
        report.findings.append(Finding("error", where, what, len(broken), tuple(f"row {r}" for r in broken[:5])))
    if zero:
        what = f"{len(zero)} rows are all 0: such items have no neighbours in item graphs"
        report.findings.append(Finding("warning", where, what, len(zero), tuple(f"row {r}" for r in zero[:5])))
    out: dict[str, Any] = {"rows": n, "dims": width, "dtype": str(rows.dtype), "rows_not_finite": len(broken)}
    if not sound:
        return out
    mean = total / sound
    std = np.sqrt(np.maximum(squares / sound - mean**2, 0.0))
    constant = np.flatnonzero(low == high)
    if len(constant) and sound > 1:
        what = f"{len(constant)} of {width} columns are constant: they carry nothing"
        report.findings.append(
            Finding("warning", where, what, len(constant), tuple(f"column {c}" for c in constant[:5]))
        )
    shifted = np.flatnonzero((np.abs(mean) > 3 * std) & (low < high))
    if len(shifted):
        what = (
            f"|mean| > 3 std in {len(shifted)} of {width} columns: a linear projection sees little but the mean; keep "
            "--feature_norm=standard or unit (the defaults)"
        )
        report.findings.append(Finding("warning", where, what, len(shifted), tuple(f"column {c}" for c in shifted[:5])))
    return out | {
        "min": float(low.min()),
        "max": float(high.max()),
        "mean": float(mean.mean()),
        "std": float(std.mean()),
        "constant_columns": len(constant),
    }
