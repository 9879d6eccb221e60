"""RecBole's Dataset with named modalities, the MMRec layout and input that is checked."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmrec_mrdib import compat, paths
from mmrec_mrdib.data import builtin, corrupt, modality
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.errors import DataError, listed
from mmrec_mrdib.schema import DataSettings

compat.activate()

from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

logger = logging.getLogger(__name__)
SPLITS = mmrec.SPLITS


class MultimodalDataset(Dataset):
    """Interactions in RecBole's form plus one feature matrix a modality, aligned to RecBole's internal item ids.

    Two layouts, told apart by the header of `<name>.inter`:

    - MMRec: `userID itemID x_label`; the split is x_label's; row r of `<modality>_feat.npy` belongs to item id r.
    - RecBole: `user_id:token item_id:token ...`; the split is that of `eval_args` or `benchmark_filename`; row r of
      `<modality>_feat.npy` belongs to the id in line r of `<modality>_ids.txt`.

    `build()` gives train, valid and test as RecBole's does, without users who have no training item (in valid and test)
    and without repeated interactions; a random split draws from `split_seed` alone.

    Attributes:
        features: modality -> (n_items, D) float32, row 0 (padding) zero.
        missing: modality -> (n_items,) bool, True where the features are imputed.
        scalings: modality -> what its raw features went through.
        cold: (users, items) of the items that `cold_items` holds out, after `build()`; None without them.
        notes: what was dropped or repaired, by name: counts for the result file.

    Raises:
        DataError, ConfigError: see `data/modality.py` and `data/sources/mmrec.py`.
    """

    benchmark_filename_list: list[str] | None
    item_feat: Any

    def __init__(self, config: Any) -> None:
        self.settings = DataSettings.from_config(config)
        self.features: dict[str, Tensor] = {}
        self.missing: dict[str, Tensor] = {}
        self.scalings: dict[str, modality.Scaling] = {}
        self.cold: tuple[Tensor, Tensor] | None = None
        self.notes: dict[str, int] = {}
        self._files: list[modality.FeatureFile] = []
        super().__init__(config)
        self._align_features()

    # Seams of RecBole's constructor, in the order in which it calls them.

    def _load_data(self, token: str, dataset_path: str) -> None:
        self._folder = Path(dataset_path)
        if not self._folder.is_dir():
            raise DataError(f"{self._folder}: no such folder")
        try:
            super()._load_data(token, dataset_path)
        except (ValueError, UnicodeDecodeError) as error:  # RecBole's own complaints about atomic files
            raise DataError(f"{self._folder}: {error}") from error

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        path = Path(dataset_path) / f"{token}.inter"
        self._is_mmrec = self.benchmark_filename_list is None and path.is_file() and mmrec.is_mmrec(path)
        if self.benchmark_filename_list is None and not path.is_file():
            raise DataError(f"{path}: no such file; a data set named '{token}' needs it")
        if not self._is_mmrec:
            super()._load_inter_feat(token, dataset_path)
            return
        frame = mmrec.read(path)
        self._n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0
        # From here on it is a RecBole benchmark split: three parts, one after the other.
        self.benchmark_filename_list = list(SPLITS)
        self.file_size_list = np.bincount(frame["x_label"], minlength=3).tolist()
        columns = {self.uid_field: frame["userID"], self.iid_field: frame["itemID"]}
        self.inter_feat = pd.DataFrame({name: ids.astype(str).astype(object) for name, ids in columns.items()})
        for name in columns:
            self.field2source[name] = FeatureSource.INTERACTION
            self.field2type[name] = FeatureType.TOKEN
            self.field2seqlen[name] = 1

    def _remap_ID_all(self) -> None:
        """All filters are through, tokens are still text: the last place where interactions can be dropped."""
        self._drop_repeated()
        self._open_features()
        self._check_features()
        super()._remap_ID_all()

    def build(self) -> list[MultimodalDataset]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.split_seed)
            parts = super().build()
        if len(parts) != 3:
            raise DataError(f"{self.dataset_name}: {len(parts)} splits; expected train, valid and test")
        if self.settings.cold_items:
            self._hold_items_out(parts)
        train = parts[0]
        seen = torch.zeros(self.user_num, dtype=torch.bool)
        seen[train.inter_feat[self.uid_field]] = True
        for name, part in zip(SPLITS, parts, strict=True):
            keep = seen[part.inter_feat[self.uid_field]]
            dropped = int((~keep).sum())
            if dropped:
                self.notes[f"{name}_interactions_of_users_without_train_items"] = dropped
                cold = part.inter_feat[self.uid_field][~keep].unique().numel()
                logger.info("%s: %d users without training items dropped (%d interactions)", name, cold, dropped)
                part.inter_feat = part.inter_feat[keep]
            if len(part.inter_feat) == 0:
                raise DataError(
                    f"{self._folder}: the {name} split is empty; give it interactions (x_label "
                    f"{SPLITS.index(name)} in the MMRec layout, eval_args or benchmark_filename in RecBole's)"
                )
        return parts

    # Ours.

    def _hold_items_out(self, parts: list[MultimodalDataset]) -> None:
        """Take all interactions of a random share of the training's items out of every split; they go to `cold`."""
        trained = parts[0].inter_feat[self.iid_field].unique()  # sorted
        n = max(1, round(self.settings.cold_items * len(trained)))
        generator = torch.Generator().manual_seed(self.settings.split_seed)
        held = torch.zeros(self.item_num, dtype=torch.bool)
        held[trained[torch.randperm(len(trained), generator=generator)[:n]]] = True
        users, items = [], []
        for part in parts:
            out = held[part.inter_feat[self.iid_field]]
            users.append(part.inter_feat[self.uid_field][out])
            items.append(part.inter_feat[self.iid_field][out])
            part.inter_feat = part.inter_feat[~out]
        seen = torch.zeros(self.user_num, dtype=torch.bool)
        seen[parts[0].inter_feat[self.uid_field]] = True
        all_users, all_items = torch.cat(users), torch.cat(items)
        known = seen[all_users]  # of a user without training items nothing is known
        self.cold = (all_users[known], all_items[known])
        self.notes["cold_items"] = n
        self.notes["interactions_of_cold_items"] = len(all_users)
        logger.info("%d items held out entirely, with %d interactions", n, len(all_users))

    def _drop_repeated(self) -> None:
        pairs = self.inter_feat[[self.uid_field, self.iid_field]]
        self._keep_interactions(~pairs.duplicated(keep="first").to_numpy(), "repeated_interactions", "kept once")

    def _keep_interactions(self, keep: np.ndarray, note: str, what: str) -> None:
        if keep.all():
            return
        self.notes[note] = int((~keep).sum())
        logger.info("%d %s: %s", self.notes[note], note.replace("_", " "), what)
        if self.benchmark_filename_list is not None:
            ends = np.cumsum([0, *self.file_size_list])
            self.file_size_list = [int(keep[a:b].sum()) for a, b in itertools.pairwise(ends)]
        self.inter_feat = self.inter_feat[keep].reset_index(drop=True)

    def _open_features(self) -> None:
        folder = self._folder
        if builtin.is_builtin(folder, self.dataset_name):
            folder = builtin.modality_folder(folder, self.dataset_name)
        overrides = {name: (m.file, m.ids) for name, m in self.settings.modality_files.items()}
        found = modality.find(folder, overrides)
        names = modality.select(found, self.settings.modalities, folder)
        n_ids = self._n_ids if self._is_mmrec else None
        self._files = [modality.open_file(name, *found[name], n_ids) for name in names]

    def _check_features(self) -> None:
        tokens = {str(t) for t in self.inter_feat[self.iid_field].unique()}
        if self.item_feat is not None:
            tokens |= set(self.item_feat[self.iid_field].astype(str))
        lacking: set[str] = set()
        for file in self._files:
            without = sorted(tokens - file.row_of.keys(), key=_natural)
            if without and self.settings.missing == "error":
                raise DataError(
                    f"{file.path}: no {file.name} features for {len(without)} of {len(tokens)} items ({listed(without)}); "
                    "add their rows, or choose --missing=mean (the mean row stands in) or --missing=drop (without them)"
                )
            lacking.update(without)
        if lacking and self.settings.missing == "drop":
            keep = ~self.inter_feat[self.iid_field].astype(str).isin(lacking).to_numpy()
            self._keep_interactions(
                keep, "interactions_of_items_without_features", f"dropped with {len(lacking)} items"
            )
            self.notes["items_without_features"] = len(lacking)
            if self.item_feat is not None:
                known = ~self.item_feat[self.iid_field].astype(str).isin(lacking)
                self.item_feat = self.item_feat[known].reset_index(drop=True)

    def _align_features(self) -> None:
        tokens = [str(t) for t in self.field2id_token[self.iid_field]]
        for file in self._files:
            folder = paths.cache_dir() / "features" if self.settings.features_on_disk else None
            values, has, self.scalings[file.name] = modality.align(file, tokens, self.settings.feature_norm, folder)
            self.features[file.name] = torch.from_numpy(values)
            self.missing[file.name] = torch.from_numpy(~has)
            self.missing[file.name][0] = False
            imputed = int(self.missing[file.name].sum())
            if imputed:
                self.notes[f"items_with_mean_{file.name}"] = imputed
            logger.info(
                "modality %s: %d items x %d dims from %s, norm '%s'%s",
                file.name, len(tokens) - 1, values.shape[1], file.path.name, self.settings.feature_norm,
                f", {imputed} items without features got the mean row" if imputed else "",
            )  # fmt: skip
        self._files = []  # closes the memory maps
        self._corrupt_features()

    def _corrupt_features(self) -> None:
        settings, seed = self.settings, self.settings.split_seed
        values = {m: x.numpy() for m, x in self.features.items()}  # the same memory
        for m, kind in corrupt.controls_by_modality(settings.feature_control, list(values)).items():
            corrupt.control(values[m], kind, corrupt.generator(seed, "control", m))
            logger.info("modality %s: control '%s', its information is gone", m, kind)
        if settings.feature_noise is not None:
            for m, table in values.items():
                corrupt.add_noise(table, settings.feature_noise, corrupt.generator(seed, "noise", m))
            logger.info("Gaussian noise in all features, %g dB below the signal", settings.feature_noise)
        if settings.feature_dropout and values:
            for m, lost in corrupt.lose(values, settings.feature_dropout, corrupt.generator(seed, "lost")).items():
                self.missing[m] |= torch.from_numpy(lost)
                self.notes[f"items_that_lost_{m}"] = int(lost.sum())
                logger.info("modality %s: lost by %d items, the mean row stands in", m, lost.sum())

    def fingerprint(self, parts: Iterable[Dataset]) -> str:
        """Hash of all that a model sees of the data: the splits and the features (hex, 16 digits)."""
        digest = hashlib.blake2b(digest_size=8)
        for part in parts:
            pairs = torch.stack([part.inter_feat[self.uid_field], part.inter_feat[self.iid_field]])
            digest.update(str(tuple(pairs.shape)).encode() + pairs.numpy().tobytes())
        for name, values in self.features.items():
            digest.update(f"{name}{tuple(values.shape)}".encode())
            digest.update(values.numpy().data)
        return digest.hexdigest()


def _natural(token: str) -> tuple[int, str]:
    return (int(token) if token.isdigit() else -1, token)
