"""Everything that is to be said of a data set's folder before anyone trains on it: all findings at once, and statistics.

The loader (`data/dataset.py`) stops at the first thing it cannot use; this goes on, through the same readers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from mmrec_mrdib import paths
from mmrec_mrdib.data import filters, modality
from mmrec_mrdib.data.sources import atomic, mmrec
from mmrec_mrdib.errors import MRdIBError, listed, without
from mmrec_mrdib.schema import DataSettings, ModalityFile, read_yaml

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
    """Look at the interactions of the folder (`<folder's name>.inter`, `inter.csv`, or the files of a given split) and at every `<modality>_feat.npy`
    beside them, as the loader would with the `<name>.yaml` that is there. Nothing is written or unpickled.

    What depends on further parameters (the split of a single atomic file, filters on the command line) is not looked at.
    """
    folder = Path(folder)
    report = Report(str(folder), "none")
    values = _settings(folder, report)
    frame, unseen, n_ids = _read(folder, values, report)
    tokens: set[str] | None = None
    if frame is not None:
        where = _where(folder, values)
        frame = _filtered(frame, values, report, where)
        report.findings += _interactions(frame, where, report.layout == "MMRec")
        report.statistics |= _counts(frame)
        tokens = set(frame["itemID"].astype(str)) | unseen
    _features(folder, tokens, n_ids, values, report)
    order = ("error", "repair", "warning")
    report.findings.sort(key=lambda f: order.index(f.level))
    return report


@functools.cache
def _defaults(name: str) -> dict[str, Any]:
    """What the loader's Config begins with, for a data set of this name."""
    ours, recboles = paths.properties_dir(), paths.recbole_dir() / "properties"
    files = [recboles / "overall.yaml", recboles / "dataset/sample.yaml", ours / "overall.yaml"]
    files += [place / f"dataset/{name}.yaml" for place in (recboles, ours)]
    return {k: v for file in files if file.is_file() for k, v in read_yaml(file).items()}


def _settings(folder: Path, report: Report) -> dict[str, Any]:
    """The parameters of a training that says nothing of its own, with those of the `<name>.yaml` beside the data."""
    name = folder.resolve().name
    values = dict(_defaults(name))
    path = folder / f"{name}.yaml"
    try:
        own = read_yaml(path) if path.is_file() else {}
        files = {k: ModalityFile.checked(v) for k, v in (own.get("modality_files") or {}).items()}
        dict((own.get("val_interval") or {}).items())
        own["modalities"] = DataSettings.checked({**_required(values), "modalities": own.get("modalities")}).modalities
    except (MRdIBError, AttributeError) as error:
        report.findings.append(Finding("error", path.name, str(error).removeprefix(f"{path}: ")))
        return values
    return values | own | {"modality_files": {k: (v.file, v.ids) for k, v in files.items()}}


def _required(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k in DataSettings.model_fields and v is not None}


def _where(folder: Path, values: Mapping[str, Any]) -> str:
    name = folder.resolve().name
    splits = values.get("benchmark_filename")
    return f"{name}.{{{','.join(splits)}}}.inter" if splits else mmrec.file_of(folder, name).name


def _read(folder: Path, values: Mapping[str, Any], report: Report) -> tuple[pd.DataFrame | None, set[str], int | None]:
    """Interactions in columns userID, itemID and, where the split is given, x_label; further items that the loader will know; and the number
    of item ids in the MMRec layout."""
    name = folder.resolve().name
    path = mmrec.file_of(folder, name)
    how = atomic.Format.of(values)
    given = values.get("benchmark_filename")
    parts = [folder / f"{name}.{split}.inter" for split in given] if given else [path]
    try:
        if given and len(given) != 3:
            report.findings.append(Finding("error", _where(folder, values), "expected three: train, valid and test"))
            return None, set(), None
        if not given and not path.is_file():
            what = f"no such file, and no {mmrec.CSV}; the interactions are read from it"
            splits = atomic.split_files(folder)
            if splits is not None:
                what += f"; for {splits[0].name} and the others write 'benchmark_filename: [train, valid, test]' into {name}.yaml"
            report.findings.append(Finding("error", path.name, what))
            if splits is None:
                return None, set(), None
            given, parts = list(mmrec.SPLITS), splits
        report.layout = "MMRec" if not given and mmrec.is_mmrec(path, how.encoding) else "RecBole"
        if mmrec.CSV not in [p.name for p in parts] and (folder / mmrec.CSV).is_file():
            report.findings.append(Finding("warning", mmrec.CSV, f"not read: {parts[0].name} is there"))
    except MRdIBError as error:
        report.findings.append(Finding("error", path.name, without(path, error)))
        return None, set(), None
    if report.layout == "RecBole":
        return *_atomic(folder, parts, how, values, report), None
    frame, problems = mmrec.examine(path, values.get("val_interval") or {}, how.encoding)
    report.findings += [Finding("error", path.name, p.what, p.cells, p.examples) for p in problems]
    if frame is None:
        return None, set(), None
    n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0
    return (
        frame.sort_values("x_label", kind="stable"),
        set(),
        n_ids,
    )  # of a repeated pair the loader keeps the first split's


def _atomic(
    folder: Path, parts: list[Path], how: atomic.Format, values: Mapping[str, Any], report: Report
) -> tuple[pd.DataFrame | None, set[str]]:
    """The interactions of atomic files, with an x_label where there are several, and the items of the .item file, where that is loaded;
    findings go into the report."""
    wanted = values.get("load_col")
    found: list[pd.DataFrame] = []
    items: set[str] = set()
    name = folder.resolve().name
    files: list[tuple[Path, str, tuple[str, ...]]] = [(p, "inter", (how.user, how.item)) for p in parts]
    files += [(folder / f"{name}.{kind}", kind, (key,)) for kind, key in (("user", how.user), ("item", how.item))]
    for path, kind, ids in files:
        fields = "*" if wanted is None else wanted.get(kind, ())
        if not path.is_file():
            if kind == "inter":
                report.findings.append(Finding("error", path.name, "no such file"))
            continue
        table, problems = atomic.examine(path, how, ids)
        for p in problems:
            used = bool(fields) and (p.column is None or p.column in ids or fields == "*" or p.column in fields)
            what = p.what if used else f"{p.what}; matters where load_col names it"
            report.findings.append(Finding("error" if used else "warning", path.name, what, p.cells, p.examples))
        if table is None:
            continue
        if kind == "inter":
            found.append(table.frame.rename(columns={how.user: "userID", how.item: "itemID"}))
            spaced = [t for i in ids for t in table.frame[i].unique() if t != t.strip()]
            if spaced:
                what = f"{len(spaced)} ids begin or end with a space: it is part of the id"
                report.findings.append(Finding("warning", path.name, what, len(spaced), tuple(map(repr, spaced[:5]))))
            late = (values.get("eval_args") or {}).get("order") == "TO" and len(parts) == 1
            if late and not (how.time in table.kinds and (fields == "*" or how.time in fields)):
                report.findings.append(
                    Finding("error", path.name, f"order TO needs the column {how.time}, in the file and in load_col")
                )
        else:
            items |= set(table.frame[how.item]) if kind == "item" and fields else set()
            repeated = int(table.frame.duplicated(list(ids)).sum())
            if repeated:
                report.findings.append(
                    Finding("repair", path.name, f"{repeated} ids stand there twice: the first counts", repeated)
                )
    if len(found) < len(parts):
        return None, items
    if len(parts) == 1:
        return found[0], items
    return pd.concat([f.assign(x_label=n) for n, f in enumerate(found)], ignore_index=True), items


def _filtered(frame: pd.DataFrame, values: Mapping[str, Any], report: Report, where: str) -> pd.DataFrame:
    """What the yaml's filters leave; repeated interactions are told, and are still there."""
    pairs = ["userID", "itemID"]
    repeated = frame.duplicated(pairs)
    if repeated.any():
        examples = tuple(f"user {u} item {i}" for u, i in frame.loc[repeated, pairs].head(5).itertuples(index=False))
        what = f"{repeated.sum()} repeated interactions: kept once"
        report.findings.append(Finding("repair", where, what, int(repeated.sum()), examples))
    keys = ("user_inter_num_interval", "item_inter_num_interval")
    try:
        limits = [None if values.get(k) is None else filters.Intervals(k, values[k]) for k in keys]
        for column, wanted in (values.get("val_interval") or {}).items():
            if column in frame and frame[column].dtype.kind in "fi":
                within = filters.Intervals(f"val_interval.{column}", wanted)
                frame = frame[within(frame[column].to_numpy(dtype=np.float64))]
    except MRdIBError as error:
        report.findings.append(Finding("error", f"{Path(report.folder).resolve().name}.yaml", str(error)))
        limits = [None, None]
    frame = frame[~frame.duplicated(pairs)]
    keep, _ = filters.by_number([pd.factorize(frame[c])[0] for c in pairs], limits)
    return frame[keep]


def _interactions(frame: pd.DataFrame, where: str, labelled: bool) -> Iterator[Finding]:
    if "x_label" not in frame:
        if frame.empty:
            yield Finding("error", where, "no interactions", 0)
        return
    splits = {name: frame[frame["x_label"] == n] for n, name in enumerate(mmrec.SPLITS)}
    for n, (name, part) in enumerate(splits.items()):
        if part.empty:
            yield Finding(
                "error",
                where,
                f"the {name} split is empty; give it interactions{f' with x_label {n}' if labelled else ''}",
                0,
            )
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
    users, items = frame["userID"].nunique(), frame["itemID"].nunique()
    counts = {"users": users, "items": items, "density": len(frame) / (users * items) if len(frame) else 0.0}
    if "x_label" not in frame:
        return counts | {"interactions": {"all": len(frame)}}
    train = frame[frame["x_label"] == 0]
    per_user = train["userID"].value_counts()
    return counts | {
        "interactions": {name: int((frame["x_label"] == n).sum()) for n, name in enumerate(mmrec.SPLITS)},
        "train_items_per_user": {
            "min": int(per_user.min()) if len(per_user) else 0,
            "median": float(per_user.median()) if len(per_user) else 0.0,
            "max": int(per_user.max()) if len(per_user) else 0,
        },
        "cold_items": int(items - train["itemID"].nunique()),
    }


def _features(
    folder: Path, tokens: set[str] | None, n_ids: int | None, values: Mapping[str, Any], report: Report
) -> None:
    missing = str(values.get("missing", "error"))
    try:
        found = modality.find(folder, values.get("modality_files") or {})
    except MRdIBError as error:
        report.findings.append(Finding("error", folder.name, str(error)))
        found = modality.find(folder, {})
    for name, why in modality.unread(folder, found).items():
        report.findings.append(Finding("warning", name, why))
    wanted = values.get("modalities")
    try:
        modality.select(found, wanted, folder)
    except MRdIBError as error:
        report.findings.append(Finding("error", folder.name, str(error)))
    found = {k: v for k, v in found.items() if not wanted or k in wanted}
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
            report.findings.append(Finding("error", path.name, without(path, error)))
            try:
                rows, file = modality.open_rows(path), None  # its values may still be looked at
            except MRdIBError:
                continue
        modalities[name] = _values(rows, path.name, report)
        if tokens is None or file is None:
            continue
        try:
            lacking, _ = file.without(tokens)
        except MRdIBError as error:
            report.findings.append(Finding("error", path.name, without(path, error)))
            continue
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


def _values(rows: np.ndarray, where: str, report: Report) -> dict[str, Any]:
    """Statistics of a feature matrix, read in blocks; findings go into the report."""
    n, width = rows.shape
    total, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    broken: list[int] = []
    zero = modality.blank_rows(rows)
    for start in range(0, n, _BLOCK):
        with np.errstate(over="ignore"):
            block = np.asarray(rows[start : start + _BLOCK], dtype=np.float32).astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        broken.extend((np.flatnonzero(~finite) + start).tolist())
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
        what = f"{len(zero)} rows are all 0 and count as missing: the mean row stands in, without neighbours in item graphs (--missing=drop: without such items)"
        report.findings.append(Finding("repair", where, what, len(zero), tuple(f"row {r}" for r in zero[:5])))
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
