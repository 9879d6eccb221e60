"""Results of other programs: their scores or lists, evaluated as ours on the same split, in run folders that boards take as measured.

RUNS/imported/<name>-<dataset>-<seed>-<hash>/ holds `result.json` and `per_user.npz` as every run; in the result `origin` says by whom, and
`imported` from which file, and what was counted on the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmrec_mrdib import process, registry
from mmrec_mrdib.config import Config
from mmrec_mrdib.data.prepare import PREPARED, check_target, write_folder
from mmrec_mrdib.data.sources import scores
from mmrec_mrdib.errors import ConfigError, DataError, listed
from mmrec_mrdib.evaluation import Ranking, RankingSplit, by_user, cells, rank
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment.export import original_ids
from mmrec_mrdib.experiment.leaderboard import Cell, Spec
from mmrec_mrdib.experiment.leaderboard import cells as board_cells
from mmrec_mrdib.experiment.run import Splits, make_config, prepare
from mmrec_mrdib.experiment.tables import NEW
from mmrec_mrdib.experiment.workers import Failure
from mmrec_mrdib.schema import DataSettings

IMPORTED = "imported"  # in the folder of runs
CLAIMED, CHECKED = "their claim", "checked"  # of their split
_EVALUATION = ("eval_args", "metrics", "topk", "eval_mask", "eval_batch_size")
_FEW_TESTS = 20  # interactions; with fewer, that all of them are listed proves nothing
_BY_CHANCE = 10.0  # hits to be expected of lists at random; none at all has then a probability of e^-10


@dataclass(frozen=True)
class Claim:
    """What the user says of a result.

    Attributes:
        name: of their model, as it is to stand on boards; 'X+Y' is compared with 'X' of the same origin.
        origin: the program and version, a commit, a table.
        seed: of the training.
    """

    name: str
    origin: str
    seed: int

    def __post_init__(self) -> None:
        for option, text in (("--name", self.name), ("--origin", self.origin)):
            if not text.strip() or not text.isprintable():
                raise ConfigError(f"{option}={text!r}: expected a line of text")
        if self.seed < 0:
            raise ConfigError(f"--seed={self.seed}: expected 0 or more")


@dataclass(frozen=True)
class Imported:
    """A folder that was written, and what there is to tell of it."""

    folder: Path
    result: dict[str, Any]
    told: list[str]


class Split:
    """A data set as an evaluation sees it, with the ids that files have.

    Args:
        values, config_files: parameters, see `Config`; those of the data and of the evaluation count.
        ids: 'original': of a folder that `data prepare` made, what its users.txt and items.txt say; 'numbers': those of its .inter. In
            other folders both are the ids of the data.
    """

    def __init__(
        self,
        dataset: str,
        values: Mapping[str, Any] | None = None,
        config_files: Sequence[str] = (),
        ids: str = "original",
    ) -> None:
        given = values = dict(values or {})
        ks, metrics = (
            re.findall(r"\w+", str(values.get(k, default))) for k, default in (("topk", 20), ("metrics", "Recall"))
        )
        if ks and metrics:  # nothing is selected here: any of them will do
            values = {"valid_metric": f"{metrics[0]}@{ks[0]}", **given}
        config = make_config("Pop", dataset, None, config_files, {**values, "device": "cpu"})
        used = {*config.parameters["Dataset"], *DataSettings.model_fields, *_EVALUATION, "data_path", "valid_metric"}
        if idle := sorted(given.keys() - used):
            raise ConfigError(
                f"--{idle[0]}: is no parameter of the data or the evaluation, and nothing is trained here"
            )
        self.config: Config = config
        self.metrics = [m.lower() for m in config["metrics"]]
        self.ks: list[int] = list(config["topk"])
        self.splits: Splits = prepare(config)
        self.dataset = self.splits.dataset
        self.fingerprint = self.dataset.split_fingerprint(self.splits.parts)
        folder, fields = Path(config["data_path"]), (self.dataset.uid_field, self.dataset.iid_field)
        self.prepared, self.ids = (folder / PREPARED).is_file(), ids
        own = [np.asarray(self.dataset.field2id_token[f]).astype(str) for f in fields]
        self.names = {"numbers": own, "original": own}
        if self.prepared:
            self.names["original"] = [
                original_ids(tokens, folder, kind) for tokens, kind in zip(own, ("users", "items"), strict=True)
            ]
        self._index = [pd.Index(names[1:]) for names in self.names[ids]]  # without padding
        for kind, index in zip(("users", "items"), self._index, strict=True):
            if not index.is_unique:
                raise DataError(f"{folder / f'{kind}.txt'}: an id stands there twice ({index[index.duplicated()][0]})")

    def place(self, kind: str, ids: np.ndarray, file: Path) -> np.ndarray:
        """Internal ids (from 1) of the 'user's or 'item's of a file.

        Raises:
            DataError: some are not in the data.
        """
        found = self.look_up(kind, ids)
        if not found.all():
            unknown = list(dict.fromkeys(ids[found == 0]))
            other = "numbers" if self.ids == "original" else "original"
            mend = "its ids must be those of the data set"
            if self.prepared and pd.Index(self.names[other][kind == "item"]).isin(unknown).any():
                mend = (
                    f"they are {'numbers of its .inter' if other == 'numbers' else 'original ids'}: say --ids={other}"
                )
            raise DataError(
                f"{file}: {len(unknown)} {kind}s are not in {self.dataset.dataset_name} ({listed(unknown)}); {mend}"
            )
        return found

    def look_up(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """(E,) internal ids, 0 where there is none."""
        codes, distinct = pd.factorize(np.asarray(ids, dtype=object))
        return (self._index[kind == "item"].get_indexer(distinct) + 1)[codes]

    def pairs(self, part: int) -> np.ndarray:
        """Sorted numbers of the pairs of a split (0 train, 1 valid, 2 test): user * items + item."""
        feat = self.splits.parts[part].inter_feat
        users, items = feat[self.dataset.uid_field].numpy(), feat[self.dataset.iid_field].numpy()
        return np.sort(users * self.dataset.item_num + items)


class _Scores:
    """A model as `rank` takes it, that has the scores of a file, and -inf for what the file does not have."""

    def __init__(self, given: scores.Pairs | scores.Matrix, split: Split, file: Path) -> None:
        self.n_users, self.n_items = split.dataset.user_num, split.dataset.item_num
        self.user_field = split.dataset.uid_field
        users = torch.from_numpy(split.place("user", given.users, file))
        items = torch.from_numpy(split.place("item", given.items, file))
        self.unscored = 0
        self.has = torch.zeros(self.n_users, dtype=torch.bool)
        self.has[users] = True
        if isinstance(given, scores.Matrix):
            self.matrix = given.scores
            self.row = torch.zeros(self.n_users, dtype=torch.long)
            self.row[users] = torch.arange(len(users))
            self.items, self.unscored = items, self.n_items - 1 - len(items)
            self.block = self._of_matrix
            return
        keys, counts = np.unique(users.numpy() * self.n_items + items.numpy(), return_counts=True)
        if (counts > 1).any():
            user, item = divmod(int(keys[counts > 1][0]), self.n_items)
            names = split.names[split.ids]
            raise DataError(
                f"{file}: {int((counts > 1).sum())} pairs stand there twice (user {names[0][user]}, item {names[1][item]}, ...); "
                "which score holds?"
            )
        self.indptr, self.order = by_user(users, torch.arange(len(users)), self.n_users)
        self.items, self.values = items[self.order], torch.from_numpy(given.scores)[self.order]
        self.block = self._of_pairs

    def _of_pairs(self, users: Tensor) -> Tensor:
        out = torch.full((len(users), self.n_items), -torch.inf, dtype=torch.float64)
        where, _ = cells(users, self.indptr, self.items, self.n_items)
        which, _ = cells(users, self.indptr, torch.arange(len(self.items)), 0)
        out.view(-1)[where] = self.values[which]
        return out

    def _of_matrix(self, users: Tensor) -> Tensor:
        rows = self.matrix[self.row[users].numpy()]
        out = torch.full((len(users), self.n_items), -torch.inf, dtype=torch.from_numpy(rows[:0]).dtype)
        out[:, self.items] = torch.from_numpy(rows)
        out[~self.has[users]] = -torch.inf
        return out

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.block(interaction[self.user_field])


def evaluate(file: Path, split: Split, part: str = "test", absent: str = "error") -> tuple[Ranking, dict[str, int]]:
    """Rank a split by the scores or lists of a file, and count what does not go without saying.

    Items that the evaluation leaves out (of the user's training) are dropped from the lists, and lists that are then shorter than k are
    evaluated as they are. Ties are broken as in our models' scores, by `torch.topk`, which knows nothing of relevance.

    Args:
        part: 'valid' or 'test'.
        absent: 'error', or 'zero': users of the split that the file does not have get a list without a hit.

    Raises:
        DataError: see `data/sources/scores.py`; ids that the data does not have, pairs that stand there twice, users that are missing,
            lists that were ranked among a sample of the items.
    """
    given = scores.read(file)
    model = _Scores(given, split, file)
    ranked: RankingSplit = getattr(split.splits, part)
    names = split.names[split.ids]
    lacking = ranked.users[~model.has[ranked.users]]
    if len(lacking) and (absent == "error" or len(lacking) == len(ranked.users)):
        raise DataError(
            f"{file}: {len(lacking)} of {len(ranked.users)} {part} users are not there ({listed(names[0][lacking.numpy()], 3)}); "
            "is it the same split? --absent=zero gives them a list without a hit"
        )
    counts = {
        "users": len(ranked.users),
        "users_without_list": len(lacking),
        "users_not_evaluated": int(model.has.sum()) - int(model.has[ranked.users].sum()),
        "users_ranked_against_scores": getattr(given, "against", 0),
        "items_without_scores": model.unscored,
    }
    counts |= _audit(file, model, ranked, split.ks, names, isinstance(given, scores.Pairs))
    return rank(model, ranked, split.metrics, split.ks, split.dataset.uid_field), counts


def _audit(
    file: Path, model: _Scores, split: RankingSplit, ks: Sequence[int], names: list[np.ndarray], of_pairs: bool
) -> dict[str, int]:
    """Counts of what is special in the scores, as far as the ranking of the split reads them."""
    seen = ties = covered = open_cells = found = relevant = 0
    short = dict.fromkeys(ks, 0)
    for block in split:
        values = model.block(block.users)
        flat = values.view(-1)
        masked = torch.zeros(len(flat), dtype=torch.bool)
        masked[block.masked] = True
        seen += int((flat[masked] > -torch.inf).sum())
        flat[masked] = -torch.inf
        broken = torch.isnan(values) | (values == torch.inf)
        if bool(broken.any()):
            row, item = (int(n) for n in broken.nonzero()[0])
            raise DataError(
                f"{file}: {int(broken.sum())} scores are NaN or infinite (user {names[0][block.users[row]]}, item {names[1][item]}, "
                "...); -inf alone says that an item is not to be ranked"
            )
        length, available = (values > -torch.inf).sum(1), (~masked).view_as(values).sum(1)
        for k in ks:
            short[k] += int((length < available.clamp(max=k)).sum())
        best = torch.topk(values, min(max(ks) + 1, split.n_items), dim=1).values
        ties += int(((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -torch.inf)).any(1).sum())
        covered, open_cells = covered + int(length.sum()), open_cells + int(available.sum())
        found, relevant = found + int((flat[block.relevant] > -torch.inf).sum()), relevant + len(block.relevant)
    if found == relevant >= _FEW_TESTS and covered < open_cells / 2:
        raise DataError(
            f"{file}: the lists hold {covered / open_cells:.1%} of the items, yet every {split.name} interaction: they were ranked among a "
            "sample of the items, which makes metrics larger than they are; rank the whole catalogue"
        )
    by_chance = relevant * covered / max(open_cells, 1)
    if found == 0 and by_chance >= _BY_CHANCE:
        raise DataError(
            f"{file}: none of the {relevant} {split.name} interactions is listed, where any lists of this length would have about "
            f"{by_chance:.0f}: they leave out what they are judged by (as 'recommend' does with the items of all splits)"
        )
    counts = {f"users_with_fewer_than_{k}_items": n for k, n in short.items()}
    return {"items_of_training_dropped": seen if of_pairs else 0, "users_with_ties": ties} | counts


_SAID = {
    "users_without_list": "of {users} users have no list: 0 in every metric",
    "users_not_evaluated": "users of the file are not evaluated: ignored",
    "items_of_training_dropped": "listed items are of their user's training (or left out by eval_mask): dropped",
    "items_without_scores": "items of the data have no scores: never ranked",
    "users_with_ties": "users have equal scores among their best: ranked as our models' would be",
    "users_ranked_against_scores": "users have scores that run against the ranks: ranked by rank",
}


def _told(part: str, counts: Mapping[str, int], ks: Sequence[int]) -> list[str]:
    told = [f"{counts[k]} {text.format(**counts)}" for k, text in _SAID.items() if counts[k]]
    short = [(k, n) for k in ks if (n := counts[f"users_with_fewer_than_{k}_items"])]
    told += [f"{n} users have fewer than {k} items: evaluated as they are" for k, n in short]
    return [f"{part}: {line}" for line in told]


def check_split(file: Path, split: Split) -> None:
    """Hold the interactions that they trained and tested on (a table user, item, split) against ours.

    Raises:
        DataError: another split; valid and test interactions of users without training items count on neither side.
    """
    theirs = scores.read_split(file)
    trained = np.unique(theirs["train"][0].astype(str))
    width = split.dataset.item_num
    for part, (name, (users, items)) in enumerate(theirs.items()):
        known = np.isin(users.astype(str), trained)
        u, i = split.look_up("user", users[known]), split.look_up("item", items[known])
        there = np.unique((u * width + i)[(u > 0) & (i > 0)])
        foreign = len(set(zip(users[known], items[known], strict=True))) - len(there)
        ours = split.pairs(part)
        more, fewer = foreign + len(np.setdiff1d(there, ours)), len(np.setdiff1d(ours, there))
        if more or fewer:
            raise DataError(
                f"{file}: not the split of {split.dataset.dataset_name}: in {name} {more} interactions of theirs are not ours, and "
                f"{fewer} of ours are not theirs; train on the split that 'mmrec-mrdib data export' writes"
            )


@process.as_found()
def import_scores(
    file: Path,
    split: Split,
    claim: Claim,
    runs: Path,
    valid: Path | None = None,
    their_split: Path | None = None,
    absent: str = "error",
) -> Imported:
    """Evaluate a file of scores or lists on test, and leave a run folder. What they selected on is their claim.

    Args:
        valid: their file for the validation split, evaluated beside.
        their_split: see `check_split`.
        absent: see `evaluate`.

    Raises:
        DataError: see `evaluate` and `check_split`; nothing is written.
    """
    started = time.perf_counter()
    if their_split is not None:
        check_split(their_split, split)
    ranking, counts = evaluate(file, split, "test", absent)
    on_valid = None if valid is None else evaluate(valid, split, "valid", absent)
    told = _told("test", counts, split.ks) + ([] if on_valid is None else _told("valid", on_valid[1], split.ks))
    source = {
        "file": str(file.absolute()),
        "digest": _digest(file),
        "valid_file": None if valid is None else str(valid.absolute()),
        "split": CLAIMED if their_split is None else CHECKED,
        "test": counts,
        "valid": None if on_valid is None else on_valid[1],
    }
    result = {
        "state": record.COMPLETE,
        "modalities": [],
        "best_epoch": None,
        "valid": {} if on_valid is None else on_valid[0].means,
        "test": ranking.means,
        "seconds_per_epoch": None,
        "total_seconds": time.perf_counter() - started,
        "versions": record.versions(),
        "code": [record.code()],
        "epochs": [],
    }
    users = ranking.users
    return _write(runs, split, claim, result, source, users, ranking.per_user, told)


@process.as_found()
def import_folder(folder: Path, split: Split, claim: Claim, runs: Path) -> Imported:
    """Take over a run folder that was written elsewhere: its result and its users' metrics, if they are of this split.

    Raises:
        DataError: not complete, diverged, of another split, or its users' metrics are not those that its result has.
    """
    result = record.load_result(folder)
    if (why := record.diverged(result)) is not None:
        raise DataError(f"{folder}: {why}; what its best epoch gave is no outcome")
    theirs = result.get("data", {}).get("splits")
    if theirs != split.fingerprint:
        raise DataError(
            f"{folder}: " + ("does not say which split it is of (an older version wrote it); run it again" if theirs is None else
            f"of another split ({theirs}) than {split.dataset.dataset_name} here ({split.fingerprint}); give the parameters that it was "
            "split with, as --key=value")
        )  # fmt: skip
    path = folder / "per_user.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            users, metrics, values = (file[name] for name in ("users", "metrics", "values"))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    expected = split.splits.test.users.numpy()
    own = split.names["numbers"][0]
    place = pd.Index(users.astype(str)).get_indexer(own[expected])
    if len(users) != len(expected) or (place < 0).any() or values.shape != (len(users), len(metrics)):
        raise DataError(f"{path}: not the {len(expected)} test users of {split.dataset.dataset_name}, each once")
    per_user = {str(m): values[place, n].astype(np.float64) for n, m in enumerate(metrics)}
    test = result["test"]
    if wrong := [m for m, x in per_user.items() if m in test and not np.isclose(x.mean(), test[m], rtol=1e-6)]:
        raise DataError(
            f"{path}: the mean of {listed(wrong)} is not what result.json says; one of the files was changed"
        )
    known = {m: x for m, x in per_user.items() if m in test}
    source = {
        "split": CHECKED,
        "config": result["config"],
        **result.get("imported", {}),
        "folder": str(folder.absolute()),
    }
    kept = {k: v for k, v in result.items() if k not in ("version", "config", "data", "origin")}
    kept |= {"test": {m: test[m] for m in known}, "seconds_per_epoch": result.get("seconds_per_epoch")}
    eval_mask = result.get("eval_mask")
    return _write(runs, split, claim, kept, source, expected, known, [], eval_mask)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _write(
    runs: Path, split: Split, claim: Claim, result: Mapping[str, Any], source: Mapping[str, Any], users: np.ndarray,
    per_user: Mapping[str, np.ndarray], told: list[str], eval_mask: str | None = None,
) -> Imported:  # fmt: skip
    """The folder, as a whole; what was imported under the same name, origin, seed and split before is replaced."""
    config, dataset = split.config, split.dataset
    eval_mask = eval_mask or config["eval_mask"]
    base, _, plugin = claim.name.partition("+")
    data_keys = ("dataset", *_EVALUATION, *sorted(DataSettings.model_fields))
    whole = {
        "version": record.RESULT_VERSION,
        **result,
        "model": claim.name,
        "backbone": base,
        "plugin": plugin or None,
        "preset": None,
        "dataset": dataset.dataset_name,
        "seed": claim.seed,
        "eval_mask": eval_mask,
        "origin": claim.origin,
        "imported": dict(source),
        "data": {
            "splits": split.fingerprint,
            "users": dataset.user_num - 1,
            "items": dataset.item_num - 1,
            "interactions": [len(p) for p in split.splits.parts],
            "notes": dataset.notes,
        },
        "config": {k: record.plain(config[k]) for k in data_keys},
    }
    identity = "\n".join([claim.name, claim.origin, split.fingerprint, eval_mask])
    digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
    slug = re.sub(r"[^\w.+()-]+", "_", claim.name)[:80]
    root = runs / IMPORTED
    folder = record.run_folder(root, slug, dataset.dataset_name, claim.seed, digest)
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder.name}-"))
    try:
        record.write_per_user(temporary / "per_user.npz", split.names["numbers"][0][users], per_user)
        record.write_json(temporary / "result.json", whole)
        temporary.chmod(0o755)
        if folder.exists():
            told = [*told, f"{folder}: was there, is replaced"]
            shutil.rmtree(folder)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Imported(folder, whole, told)


# On boards.


@dataclass
class ForeignCell(Cell):
    """A model of another program; its name ends in '[origin]', so that it is nobody else's."""

    own: registry.Variant = field(default_factory=lambda: registry.Variant(""))
    origin: str = ""

    @property
    def backbone(self) -> str:
        return f"{self.own.base} [{self.origin}]"

    @property
    def variant(self) -> str:
        return self.own.kind

    def notes(self, spec: Spec) -> list[str]:
        sources = [result["imported"] for result in self.results.values()]
        out = ["trained and selected elsewhere"]
        if any(source["split"] == CLAIMED for source in sources):
            out.append("that it was trained on this split is their claim")
        counts = [source["test"] for source in sources if "test" in source]
        if absent := max((c["users_without_list"] for c in counts), default=0):
            out.append(f"{absent} of {counts[0]['users']} users without a list count as 0")
        if unscored := max((c["items_without_scores"] for c in counts), default=0):
            out.append(f"{unscored} items without scores are never ranked")
        for k in sorted({int(m.rpartition("@")[2]) for m in spec.metrics}):
            if short := max((c[f"users_with_fewer_than_{k}_items"] for c in counts), default=0):
                out.append(f"{short} lists are shorter than {k}")
        return out


def foreign_cells(spec: Spec) -> tuple[list[Cell], list[str]]:
    """What was imported of a board's data sets, as cells, and a line on each run that is left out: of another split or evaluation, or without
    one of the board's metrics."""
    out: dict[tuple[str, str], ForeignCell] = {}
    told: list[str] = []
    splits: dict[str, tuple[str, str]] = {}
    for file in sorted((spec.runs / IMPORTED).glob("*/result.json")):
        result = record.load_result(file)
        dataset = result["dataset"]
        if dataset not in spec.datasets:
            continue
        if not {"origin", "imported"} <= result.keys():
            told.append(
                f"{file.parent}: left out: not written by 'leaderboard import-run', which takes such a folder, too"
            )
            continue
        if dataset not in splits:
            splits[dataset] = _of_board(spec, dataset)
        lacking = [m for m in spec.metrics if m not in result["test"] and not m.startswith(NEW)]
        why = (
            f"of another split of {dataset} than this board's" if result["data"]["splits"] != splits[dataset][0]
            else f"evaluated with eval_mask {result['eval_mask']}, this board with {splits[dataset][1]}" if result["eval_mask"] != splits[dataset][1]
            else f"without {listed(lacking)}; import it again with --topk and --metrics" if lacking
            else f"its seed {result['seed']} is none of the board's" if result["seed"] not in spec.seeds
            else ""
        )  # fmt: skip
        if why:
            told.append(f"{file.parent}: left out: {why}")
            continue
        label = f"{result['model']} [{result['origin']}]"
        cell = out.setdefault(
            (dataset, label), ForeignCell(label, dataset, {}, own=_variant(result["model"]), origin=result["origin"])
        )
        cell.results[result["seed"]] = result | {"folder": str(file.parent)}
    for cell in out.values():
        cell.results = dict(sorted(cell.results.items()))
        if missing := [s for s in spec.seeds if s not in cell.results]:
            cell.failures[f"seed{'s' if len(missing) > 1 else ''} {listed(missing)}"] = Failure("not imported", "")
    return list(out.values()), told


def _of_board(spec: Spec, dataset: str) -> tuple[str, str]:
    """Fingerprint of a board's split of a data set, and what its evaluation masks."""
    cell = next((c for c in board_cells(spec) if c.dataset == dataset), None)
    if cell is None:
        return "", ""
    config = make_config(cell.model, dataset, spec.seeds[0], spec.config_files, cell.values)
    splits = prepare(config)
    return splits.dataset.split_fingerprint(splits.parts), config["eval_mask"]


def _variant(name: str) -> registry.Variant:
    with contextlib.suppress(ConfigError):
        return registry.variant(name)
    base, _, plugin = name.partition("+")
    return registry.Variant(base, plugin)


# Data for other programs.


def export_data(dataset: str, target: Path, values: Mapping[str, Any], config_files: Sequence[str] = ()) -> list[str]:
    """The split and the features as every program can read them: interactions.csv (user, item, split), and by modality `<m>_feat.npy` with
    `<m>_ids.txt`, the item of each row. Returns lines to tell.

    Raises:
        ConfigError: the target exists.
    """
    check_target(target)
    split = Split(dataset, {"feature_norm": "none", **values}, config_files)
    data, (users, items) = split.dataset, split.names["original"]
    told = []
    frames = []
    for name, part in zip(("train", "valid", "test"), split.splits.parts, strict=True):
        feat = part.inter_feat
        u, i = feat[data.uid_field].numpy(), feat[data.iid_field].numpy()
        frames.append(pd.DataFrame({"user": users[u], "item": items[i], "split": name}))
    told.append(", ".join(f"{len(f)} {f['split'].iloc[0]}" for f in frames) + " interactions in interactions.csv")

    def write(folder: Path) -> None:
        pd.concat(frames).to_csv(folder / "interactions.csv", index=False, lineterminator="\n")
        for m, features in data.features.items():
            has = ~data.missing[m]
            has[0] = False
            np.save(folder / f"{m}_feat.npy", features[has].numpy())
            (folder / f"{m}_ids.txt").write_text("".join(f"{t}\n" for t in items[has.numpy()]), encoding="utf-8")
            told.append(f"{m}_feat.npy: {int(has.sum())} of {data.item_num - 1} items, {features.shape[1]} dimensions")

    write_folder(target, [write])
    return told
