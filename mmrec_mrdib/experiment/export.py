"""A trained run, taken from its folder: recommendations and embeddings in original ids."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmrec_mrdib import compat, paths, process
from mmrec_mrdib.config import quoted
from mmrec_mrdib.data import modality, text
from mmrec_mrdib.data.prepare import PREPARED
from mmrec_mrdib.data.sources.table import pyarrow
from mmrec_mrdib.errors import CheckpointError, ConfigError, DataError, listed
from mmrec_mrdib.evaluation import by_user, cells, score_all
from mmrec_mrdib.experiment import record
from mmrec_mrdib.experiment.run import make_config, prepare, seeded_model
from mmrec_mrdib.general import inner_products
from mmrec_mrdib.graphs import Edges
from mmrec_mrdib.models.base import MultimodalRecommender
from mmrec_mrdib.mrdib.history import Histories
from mmrec_mrdib.plugins.channel import Channel

_SCORES = 1 << 24  # user-item scores in memory at a time: 64 MB
# What a Config derives, or what belongs to the machine: not handed on to the Config that is made again.
_DERIVED = (
    "MODEL_TYPE",
    "MODEL_INPUT_TYPE",
    "eval_type",
    "model",
    "dataset",
    "backbone",
    "seed",
    "device",
    "local_rank",
)
_ELSEWHERE = ("data_path", "checkpoint_dir", "gpu_id", "use_gpu", "show_progress", "single_spec")


class Trained:
    """A model with the weights of its run's best epoch, and the data it was trained on.

    Attributes:
        result: the content of result.json.
        model: in evaluation mode.
        dataset: the data set.
        splits: train, valid and test.
        users, items: original ids by internal id, '[PAD]' first: the data's own, or those that `data prepare` numbered.
    """

    def __init__(self, result: dict[str, Any], model: Any, splits: Any, names: Path) -> None:
        self.result, self.model, self.splits, self.dataset = result, model.eval(), splits, splits.dataset
        uid, iid = self.dataset.uid_field, self.dataset.iid_field
        self.users: np.ndarray = original_ids(self.dataset.field2id_token[uid], names, "users")
        self.items: np.ndarray = original_ids(self.dataset.field2id_token[iid], names, "items")
        self._id_of = {token: n for n, token in enumerate(self.users)}
        parts = [(part.inter_feat[uid], part.inter_feat[iid]) for part in splits.parts]
        self.trained_users = np.zeros(len(self.users), dtype=bool)
        self.trained_users[parts[0][0].numpy()] = True
        self._seen = [(users.to(model.device), items.to(model.device)) for users, items in parts]

    def split_users(self, users: Iterable[str]) -> tuple[list[str], list[str]]:
        """(those the model was trained on, the others), in the order given, each once."""
        distinct = list(dict.fromkeys(map(str, users)))
        known = [u for u in distinct if self.trained_users[self._id_of.get(u, 0)]]
        return known, [u for u in distinct if not self.trained_users[self._id_of.get(u, 0)]]

    def recommend(self, users: Iterable[str] | None = None, k: int = 20, exclude_seen: bool = True) -> pd.DataFrame:
        """The k items of highest score for each user: columns user, rank (from 1), item, score; original ids.

        Args:
            users: original ids, each once; none: all that were trained on.
            exclude_seen: leave out items that the user has in any split.

        Raises:
            DataError: a user is not known or had no training interaction.
        """
        return pd.concat(list(self.blocks(users, k, exclude_seen)), ignore_index=True)

    @torch.no_grad()
    def blocks(
        self, users: Iterable[str] | None = None, k: int = 20, exclude_seen: bool = True
    ) -> Iterator[pd.DataFrame]:
        """`recommend` piece by piece, in bounded memory."""
        ids = self._ids(users, k)
        n_items = len(self.items)
        # Item 0 is padding: nobody's.
        everyone = torch.arange(len(self.users), device=ids.device)
        left_out = [(everyone, torch.zeros_like(everyone)), *(self._seen if exclude_seen else [])]
        users_of, items_of = (torch.cat(columns) for columns in zip(*left_out, strict=True))
        listed_by_user = by_user(users_of, items_of, len(self.users))
        for part in ids.split(max(_SCORES // n_items, 1)):
            scores = score_all(self.model, part, self.dataset.uid_field, n_items).float()
            scores.view(-1)[cells(part, *listed_by_user, n_items)[0]] = -torch.inf
            yield self._listed(self.users[part.cpu().numpy()], scores, k)

    @torch.no_grad()
    def evaluation_blocks(self, split: str = "test", k: int = 100) -> Iterator[pd.DataFrame]:
        """What the evaluation of a split ranks, as `blocks` has it: for each user of the split the k items of highest score but those that
        the evaluation leaves out. `leaderboard import-run` finds the run's metrics in it.

        Args:
            split: 'valid' or 'test'.
        """
        if k < 1:
            raise ConfigError(f"--top={k}: expected 1 or more")
        for block in getattr(self.splits, split):
            scores = score_all(self.model, block.users, self.dataset.uid_field, len(self.items))
            scores.view(-1)[block.masked] = -torch.inf
            yield self._listed(self.users[block.users.cpu().numpy()], scores, k)

    @torch.no_grad()
    def new_blocks(self, folder: str | Path, users: Iterable[str] | None = None, k: int = 20) -> Iterator[pd.DataFrame]:
        """As `blocks`, for items that were never trained on, from their features alone.

        Args:
            folder: holds `<modality>_feat.npy` and `<modality>_ids.txt` of every modality the model uses, raw as those of
                the training; they go through the training's scaling.

        Raises:
            ConfigError: the model is not defined for such items.
            DataError: files that are missing or broken, dimensions other than the training's, an item without a modality,
                or one that the model knows already.
        """
        if not getattr(self.model, "modalities", ()):
            raise ConfigError(
                f"--new-items: {self.result['model']} knows no features, so it has no score for a new item; "
                f"{self.result['model']}+MRdIB has"
            )
        tokens, features = self._new_features(Path(folder))
        scores = self.model.new_scorer(features)
        ids = self._ids(users, k)
        for part in ids.split(max(_SCORES // len(tokens), 1)):
            best = torch.topk(scores(part).float(), min(k, len(tokens)), dim=1)
            values, found = best.values.cpu().numpy(), best.indices.cpu().numpy()
            yield pd.DataFrame(
                {
                    "user": np.repeat(self.users[part.cpu().numpy()], values.shape[1]),
                    "rank": np.tile(np.arange(1, values.shape[1] + 1), len(part)),
                    "item": tokens[found.ravel()],
                    "score": values.ravel(),
                }
            )

    def _new_features(self, folder: Path) -> tuple[np.ndarray, dict[str, Tensor]]:
        if not folder.is_dir():
            raise DataError(f"--new-items={folder}: no such folder")
        found = modality.find(folder, {})
        files: dict[str, modality.FeatureFile] = {}
        for m, dims in self.model.feature_dims.items():
            if m not in found:
                raise DataError(
                    f"--new-items={folder}: no {m}{modality.SUFFIX}; the model uses {', '.join(self.dataset.features)}"
                )
            files[m] = modality.open_file(m, *found[m], None)
            if files[m].rows.shape[1] != dims:
                raise DataError(f"{files[m].path}: {files[m].rows.shape[1]} columns; the model was trained with {dims}")
        tokens = list(next(iter(files.values())).row_of)
        known = set(self.items) & set(tokens)
        if known:
            raise DataError(
                f"--new-items={folder}: {len(known)} items are in the training data ({listed(sorted(known))})"
            )
        features = {}
        for m, file in files.items():
            lacking = [t for t in tokens if t not in file.row_of]
            if lacking or len(file.row_of) != len(tokens):
                other = lacking or sorted(set(file.row_of) - set(tokens))
                raise DataError(
                    f"{file.path}: not the same items as the other modalities ({listed(other)}); every one needs all"
                )
            raw = np.asarray(file.rows[[file.row_of[t] for t in tokens]], dtype=np.float32)
            if not np.isfinite(raw).all():
                raise DataError(f"{file.path}: NaN or infinite values")
            scaled = torch.from_numpy(self.dataset.scalings[m](raw))
            blank = [n for n, t in enumerate(tokens) if t in file.blank]
            if blank:  # as in training: a row of zeros is no features, and the mean row stands in
                known = ~self.dataset.missing[m]
                known[0] = False
                scaled[blank] = self.dataset.features[m][known].mean(dim=0)
            features[m] = scaled.to(self.model.device)
        return np.asarray(tokens), features

    @torch.no_grad()
    def history_blocks(
        self, histories: Mapping[str, Sequence[str]], k: int = 20, exclude_seen: bool = True
    ) -> Iterator[pd.DataFrame]:
        """As `blocks`, for users that need not have been trained on: by what their items say (`plugins/channel.py`), and by nothing else.

        Args:
            histories: user -> original ids of its items, each known.

        Raises:
            ConfigError: the model reads no content.
            DataError: an item is not known; a user has none.
        """
        if not isinstance(self.model, Channel) or self.model.settings.readout == "none":
            raise ConfigError(
                f"--histories: {self.result['model']} scores users that it was trained on; a model with a content readout "
                f"(+MRdIB, +Content) scores any history"
            )
        place = {token: n for n, token in enumerate(self.items)} | {"[PAD]": -1}
        unknown = list(dict.fromkeys(i for items in histories.values() for i in items if place.get(i, -1) < 1))
        empty = [user for user, items in histories.items() if not items]
        if unknown or empty:
            what = (
                f"{len(unknown)} items are not in the data ({listed(unknown)})"
                if unknown
                else f"no items for {listed(empty)}"
            )
            raise DataError(f"--histories: {what}")
        if k < 1:
            raise ConfigError(f"--top={k}: expected 1 or more")
        names = np.asarray(list(histories))
        pairs = [(n, place[i]) for n, items in enumerate(histories.values()) for i in dict.fromkeys(items)]
        rows, cols = torch.tensor(pairs, dtype=torch.long).T
        n_items = len(self.items)
        given = Histories(Edges(rows, cols, torch.ones(len(rows)), (len(names), n_items))).to(self.model.device)
        left_out = by_user(rows, cols, len(names)) if exclude_seen else by_user(rows[:0], cols[:0], len(names))
        _, content = self.model.catalogue()
        for part in torch.arange(len(names)).split(max(_SCORES // n_items, 1)):
            scores = self.model.profiles(part.to(self.model.device), given) @ content.T
            scores[:, 0] = -torch.inf
            scores.view(-1)[cells(part, *left_out, n_items)[0].to(scores.device)] = -torch.inf
            yield self._listed(names[part.numpy()], scores, k)

    def _listed(self, names: np.ndarray, scores: Tensor, k: int) -> pd.DataFrame:
        """The best k finite scores of each row as a table."""
        best = torch.topk(scores, min(k, scores.shape[1] - 1), dim=1)
        values, items = best.values.cpu().numpy(), best.indices.cpu().numpy()
        row, place = np.nonzero(np.isfinite(values))  # fewer than k items may be left
        return pd.DataFrame(
            {"user": names[row], "rank": place + 1, "item": self.items[items[row, place]], "score": values[row, place]}
        )

    def _ids(self, users: Iterable[str] | None, k: int) -> Tensor:
        if k < 1:
            raise ConfigError(f"--top={k}: expected 1 or more")
        known, unknown = self.split_users(self.users[self.trained_users] if users is None else users)
        if unknown:
            raise DataError(f"{len(unknown)} users are unknown or had no training interaction ({listed(unknown)})")
        return torch.tensor([self._id_of[u] for u in known], dtype=torch.long, device=self.model.device)

    @torch.no_grad()
    def embeddings(self) -> dict[str, np.ndarray]:
        """Arrays by name: `users` and `items` (what scores are inner products of), `item_<modality>` (means of z^m),
        and `view_users_<modality>` and `view_items_<modality>` (users and items as that modality alone sees them, where the model has such
        views: their inner products are its score); one row an id, padding left out.

        Of a model of RecBole `users` and `items` alone.

        Raises:
            ConfigError: the model is one of RecBole's whose scores are no inner products of a user's and an item's vector.
        """
        if not isinstance(self.model, MultimodalRecommender):
            factors = inner_products(self.model, self.dataset.uid_field)
            if factors is None:
                raise ConfigError(
                    f"{self.result['model']}: its scores are no inner products of one vector a user and one an item, so there are no "
                    "embeddings to export; `recommend` works"
                )
            return {name: x[1:].float().cpu().numpy() for name, x in zip(("users", "items"), factors, strict=True)}
        emb, enc = self.model.evaluation_embeddings(), self.model.encode_items()
        tables: dict[str, Tensor] = {"users": emb.users, "items": emb.items}
        tables |= {f"item_{m}": mean for m, mean in enc.mean.items()}
        for m, (of_users, of_items) in emb.views.items():
            tables |= {f"view_users_{m}": of_users, f"view_items_{m}": of_items}
        return {name: table[1:].float().cpu().numpy() for name, table in tables.items()}


@process.as_found()
def load(folder: str | Path, data_path: str | Path | None = None) -> Trained:
    """The model of a complete run folder.

    Args:
        folder: a run folder (`runs/...`).
        data_path: where the data set's folder is now, if not where it was at training.

    Raises:
        DataError: the run is not complete, or its data set is gone or has changed.
        CheckpointError: best.pt is missing, damaged or would have to be unpickled.
    """
    folder = Path(folder)
    result = record.load_result(folder)
    if "imported" in result:
        raise DataError(f"{folder}: imported from {result['origin']}: its metrics are here, its model is not")
    if "host" in result:
        raise DataError(
            f"{folder}: of a model of {result['host']['root']} ('mmrec-mrdib host'): its metrics are here, its model is in that checkout's code"
        )
    config = _config(result, data_path)
    splits = prepare(config)
    fingerprint = splits.dataset.fingerprint(splits.parts)
    if fingerprint != result["data"]["fingerprint"]:
        raise DataError(
            f"{config['data_path']}: not the data that {folder} was trained on (fingerprint {fingerprint}, then "
            f"{result['data']['fingerprint']}); restore it, say where it is with --data_path, or train again"
        )
    generators = compat.other_generators()
    with torch.random.fork_rng():
        model = seeded_model(config, splits)  # some of RecBole's draw neighbours or fit as they are made
    compat.restore_other_generators(generators)
    state = record.load_checkpoint(folder / "best.pt")
    try:
        model.load_state_dict(state["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder / 'best.pt'}: belongs to another model ({str(error).splitlines()[0]})"
        ) from error
    return Trained(result, model, splits, Path(config["data_path"]))


def original_ids(tokens: Sequence[str] | np.ndarray, folder: Path, kind: str) -> np.ndarray:
    """The tokens; of a folder that `data prepare` made, what line n of its `users.txt` or `items.txt` says of token n."""
    own = np.asarray(tokens).astype(str)
    path = folder / f"{kind}.txt"
    if not (folder / PREPARED).is_file():
        return own
    try:
        lines = text.lines(path)
        return np.asarray([own[0], *(lines[int(token)] for token in own[1:])])
    except (DataError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: does not name the data's {kind} ({error}); line n must be the id of number n"
        ) from error


def _config(result: dict[str, Any], data_path: str | Path | None) -> Any:
    """The Config of a run, from its record."""
    values, name = result["config"], result["dataset"]
    then = Path(values["data_path"])
    where = {"data_path": str(data_path if data_path is not None else then.parent)}
    copied = name in paths.BUILTIN_DATASETS and then.parts[-3:] == ("recbole", "dataset_example", name)
    if data_path is None and (copied or not then.is_dir()):
        if name not in paths.BUILTIN_DATASETS:
            raise DataError(
                f"no data set '{name}' in {then.parent}, where this run was trained; say where it is now with --data_path=FOLDER "
                f"(data_path=FOLDER in Python), the folder that holds '{name}'"
            )
        where = {}  # maybe another installation's copy: this one's is known to be built in
    fresh = make_config(result["model"], name, result["seed"], values=where)
    leave, now = (*_DERIVED, *_ELSEWHERE), record.config_values(fresh)
    changed = {k: v for k, v in values.items() if k not in leave and k in now and v != now[k]}
    return make_config(result["model"], name, result["seed"], values=quoted(changed) | where)


# Writing.

FORMATS = ("csv", "jsonl", "parquet")


def write_recommendations(blocks: Iterable[pd.DataFrame], path: Path) -> int:
    """Write blocks as they come, by the file's ending: csv, jsonl (one user a line) or parquet. The file appears when it is
    complete. Returns the number of rows.

    Raises:
        ConfigError: another ending, or parquet without pyarrow.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"--output={path}: expected a name that ends in {', '.join('.' + f for f in FORMATS)}")
    temporary = path.with_name(f".{path.name}.tmp")
    rows = 0
    try:
        with ExitStack() as stack:
            write = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](temporary, stack)
            for block in blocks:
                write(block)
                rows += len(block)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows


_Write = Callable[[pd.DataFrame], None]


def _csv(path: Path, stack: ExitStack) -> _Write:
    file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
    csv.writer(file, lineterminator="\n").writerow(["user", "rank", "item", "score"])
    return lambda block: block.to_csv(file, header=False, index=False, lineterminator="\n")


def _jsonl(path: Path, stack: ExitStack) -> _Write:
    file: IO[str] = stack.enter_context(path.open("w", encoding="utf-8"))

    def write(block: pd.DataFrame) -> None:
        for user, rows in block.groupby("user", sort=False):
            line = {"user": user, "items": rows["item"].tolist(), "scores": rows["score"].astype(float).tolist()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


def _parquet(path: Path, stack: ExitStack) -> _Write:
    arrow = pyarrow()
    writer: Any = None

    def write(block: pd.DataFrame) -> None:
        nonlocal writer
        table = arrow.Table.from_pandas(block.astype({"user": str, "item": str}), preserve_index=False)
        if writer is None:
            opened: AbstractContextManager[Any] = arrow.parquet.ParquetWriter(path, table.schema)
            writer = stack.enter_context(opened)
        writer.write_table(table)

    return write


def write_embeddings(trained: Trained, path: Path) -> list[str]:
    """Write all embeddings with their ids: one .npz, or a folder of parquet files (columns id, vector) for any other name.

    Returns the names of the arrays. In the npz, `user_ids` and `item_ids` hold the original ids of the rows.
    """
    arrays = trained.embeddings()
    user_ids, item_ids = trained.users[1:], trained.items[1:]
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, user_ids=user_ids, item_ids=item_ids, **arrays)  # type: ignore[arg-type]
        paths.write_atomically(path, buffer.getbuffer())
        return list(arrays)
    if path.suffix:
        raise ConfigError(f"--output={path}: expected a name that ends in .npz, or a folder for parquet files")
    arrow = pyarrow()
    path.mkdir(parents=True, exist_ok=True)
    for name, table in arrays.items():
        ids = user_ids if "users" in name else item_ids
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(table.ravel()), table.shape[1])
        temporary = path / f".{name}.tmp"
        arrow.parquet.write_table(arrow.table({"id": arrow.array(ids.tolist()), "vector": vectors}), temporary)
        temporary.replace(path / f"{name}.parquet")
    return list(arrays)
