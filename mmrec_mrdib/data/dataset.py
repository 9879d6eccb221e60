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
from mmrec_mrdib.data import builtin, corrupt, filters, modality
from mmrec_mrdib.data.sources import atomic, mmrec
from mmrec_mrdib.errors import ConfigError, DataError, listed
from mmrec_mrdib.schema import DataSettings

compat.activate()

from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

logger = logging.getLogger(__name__)
SPLITS = mmrec.SPLITS


class MultimodalDataset(Dataset):
    """Interactions in RecBole's form plus one feature matrix a modality, aligned to RecBole's internal item ids.

    Two layouts, told apart by the header of `<name>.inter`:

    - MMRec: `userID itemID x_label`; the split is x_label's; row r of `<modality>_feat.npy` belongs to item id r. MRLib's `inter.csv`
      (`user_id,item_id,rating,label`) is the same, where there is no `<name>.inter`.
    - RecBole: `user_id:token item_id:token ...`; the split is that of `eval_args` or `benchmark_filename`; row r of
      `<modality>_feat.npy` belongs to the id in line r of `<modality>_ids.txt`. Read by `data/sources/atomic.py`, not by RecBole.

    RecBole's filters (`user_inter_num_interval`, `item_inter_num_interval`, `val_interval`, `filter_inter_by_user_or_item`, `rm_dup_inter`)
    work in both, whether the split is given or made; interactions are counted over all splits, each pair once.

    `build()` gives train, valid and test as RecBole's does, without users who have no training item (in valid and test)
    and without repeated interactions; a random split draws from `split_seed` alone.

    Attributes:
        features: modality -> (n_items, D) float32, row 0 (padding) zero.
        missing: modality -> (n_items,) bool, True where the features are imputed.
        scalings: modality -> what its raw features went through.
        cold: (users, items) of the items that `cold_items` holds out, after `build()`; None without them.
        notes: what was dropped or repaired, by name: counts for the result file.
        unread: files that look like features and are not read -> why, and how to mend it.

    Raises:
        DataError, ConfigError: see `data/modality.py`, `data/filters.py` and the readers in `data/sources`.
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
        self.unread: dict[str, str] = {}
        self._format = atomic.Format.of(config)
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
        path = mmrec.file_of(Path(dataset_path), token)
        encoding = self._format.encoding
        self._is_mmrec = self.benchmark_filename_list is None and path.is_file() and mmrec.is_mmrec(path, encoding)
        if self.benchmark_filename_list is None and not path.is_file():
            raise DataError(f"{path}: no such file, and no {mmrec.CSV}; a data set named '{token}' needs one of them")
        if not self._is_mmrec:
            super()._load_inter_feat(token, dataset_path)
            return
        frame = mmrec.read(path, self._wanted_values(), encoding)
        self._n_ids = int(frame["itemID"].max()) + 1 if len(frame) else 0
        # From here on it is a RecBole benchmark split: three parts, one after the other.
        self.benchmark_filename_list = list(SPLITS)
        self.file_size_list = np.bincount(frame["x_label"], minlength=3).tolist()
        columns = {self.uid_field: frame["userID"], self.iid_field: frame["itemID"]}
        self.inter_feat = pd.DataFrame({name: ids.astype(str).astype(object) for name, ids in columns.items()})
        for name in frame.columns[3:]:
            self.inter_feat[name] = frame[name]
        for name in self.inter_feat:
            kind = FeatureType.TOKEN if name in columns else FeatureType.FLOAT
            self.set_field_property(name, kind, FeatureSource.INTERACTION, 1)

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        load, unload = self._get_load_and_unload_col(source)
        if load == set():
            return None
        ids = {
            FeatureSource.INTERACTION: (self.uid_field, self.iid_field),
            FeatureSource.USER: (self.uid_field,),
            FeatureSource.ITEM: (self.iid_field,),
        }.get(source, ())  # type: ignore[call-overload]
        found = atomic.read_frame(Path(filepath), self._format, ids, load, unload)
        for field, kind in found.kinds.items():
            longest = 1 if not kind.endswith("seq") else max(map(len, found.frame[field]), default=0)
            if source == "link":  # RecBole's: its fields are those of other files
                continue
            self.set_field_property(field, FeatureType(kind), source, longest)
            if kind.startswith("float"):
                self.field2bucketnum[field] = 2
        for field in sorted((load or set()) - found.kinds.keys()):
            logger.warning("%s: no column '%s', which load_col names", filepath, field)
        return found.frame.reset_index(drop=True)

    def _data_processing(self) -> None:
        try:
            super()._data_processing()
        except ValueError as error:  # RecBole's own complaints about its parameters
            raise DataError(f"{self._folder}: {error}") from error

    def _remap_ID_all(self) -> None:
        """All filters are through, tokens are still text: the last place where interactions can be dropped."""
        if self.benchmark_filename_list is not None:
            self._warn_of_idle_parameters()
            self._data_filtering()  # RecBole calls it where it splits itself
        else:
            self._check_order()
        self._open_features()
        self._check_features()
        super()._remap_ID_all()

    def _wanted_values(self) -> dict[str, Any]:
        wanted = self.config["val_interval"] or {}
        if not isinstance(wanted, dict):
            raise ConfigError(f"--val_interval={wanted}: expected a mapping such as {{rating: '[3,inf)'}}")
        return wanted

    def _filter_by_field_value(self) -> None:
        for field, wanted in self._wanted_values().items():
            if field not in self.field2type:
                known = ", ".join(self.field2type)
                mend = "" if self._is_mmrec else f"; name it in load_col, as in {{inter: [{known}, {field}]}}"
                raise ConfigError(f"--val_interval: no column '{field}' among those loaded ({known}){mend}")
            kind = self.field2type[field]
            if kind not in (FeatureType.FLOAT, FeatureType.TOKEN):
                raise ConfigError(
                    f"--val_interval: column '{field}' holds sequences, which no interval can be held against"
                )
            for feat in self.field2feats(field):
                if kind == FeatureType.FLOAT:
                    keep = filters.Intervals(f"val_interval.{field}", wanted)(feat[field].to_numpy(dtype=np.float64))
                else:
                    keep = (
                        feat[field]
                        .isin([str(v) for v in (wanted if isinstance(wanted, list) else [wanted])])
                        .to_numpy()
                    )
                if feat is self.inter_feat:
                    self._note("interactions_outside_val_interval", int((~keep).sum()))
                feat.drop(feat.index[~keep], inplace=True)

    def _filter_inter_by_user_or_item(self) -> None:
        before = len(self.inter_feat)
        super()._filter_inter_by_user_or_item()
        lost = before - len(self.inter_feat)
        self._note("interactions_of_unlisted_users_or_items", lost)
        if lost:
            logger.info("%d interactions of users or items that the .user or .item file does not have: left out", lost)

    def _filter_by_inter_num(self) -> None:
        self._drop_repeated()
        fields = (self.uid_field, self.iid_field)
        keys = ("user_inter_num_interval", "item_inter_num_interval")
        limits = [None if self.config[k] is None else filters.Intervals(k, self.config[k]) for k in keys]
        numbered = [pd.factorize(self.inter_feat[f]) for f in fields]
        keep, gone = filters.by_number([n for n, _ in numbered], limits)
        self._note("interactions_outside_inter_num_interval", int((~keep).sum()))
        self.inter_feat = self.inter_feat[keep]
        for field, feat, (_, tokens), out, limit in zip(
            fields, (self.user_feat, self.item_feat), numbered, gone, limits, strict=True
        ):
            if feat is not None and limit is not None:
                drop = feat[field].isin(tokens[out])
                if not limit(np.zeros(1))[0]:
                    drop |= ~feat[field].isin(tokens)
                feat.drop(feat.index[drop], inplace=True)

    def _reset_index(self) -> None:
        if self.benchmark_filename_list is not None:  # rows still have their first numbers, which tell the split
            part = np.searchsorted(np.cumsum(self.file_size_list), self.inter_feat.index, side="right")
            self.inter_feat = self.inter_feat.iloc[np.argsort(part, kind="stable")]
            self.file_size_list = np.bincount(part, minlength=len(self.file_size_list)).tolist()
        if self.inter_feat.empty:
            what = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in self.notes.items())
            raise DataError(f"{self._folder}: no interactions are left ({what or 'there were none'})")
        self.inter_feat = self.inter_feat.reset_index(drop=True)
        super()._reset_index()

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Any:
        """Times keep their digits: RecBole's float32 has steps of 128 s today, so that their order would be lost."""
        field = self.time_field
        exact = field in data and self.field2type[field] == FeatureType.FLOAT
        if not exact or field in self.config["numerical_features"]:
            return super()._dataframe_to_interaction(data)
        times = data[field].to_numpy()
        interaction = super()._dataframe_to_interaction(data.assign(**{field: times.astype(np.float64)}))
        interaction[field] = torch.from_numpy(times.copy())
        return interaction

    def build(self) -> list[MultimodalDataset]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.split_seed)
            try:
                parts = super().build()
            except (ValueError, NotImplementedError) as error:  # RecBole's own complaints about eval_args
                raise ConfigError(f"--eval_args: {error}") from error
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

    def _warn_of_idle_parameters(self) -> None:
        """Of those that say how to split, where the split is given. No error: a board has one value for all its data sets."""
        given = getattr(self.config, "external_config_dict", {})
        idle = [k for k in ("split", "order", "group_by") if k in (given.get("eval_args") or {})]
        if idle:
            whose = "that of x_label" if self._is_mmrec else "that of benchmark_filename"
            logger.warning(
                "eval_args: %s without effect: the split of '%s' is %s", ", ".join(idle), self.dataset_name, whose
            )

    def _check_order(self) -> None:
        if self.config["eval_args"]["order"] != "TO":
            return
        field = self.time_field
        if field not in self.inter_feat:
            fields = f"[{self.uid_field}, {self.iid_field}, {field}]"
            raise ConfigError(
                f"--eval_args: order TO needs the column '{field}', which is not loaded: --load_col='{{inter: {fields}}}'"
            )
        without = int(self.inter_feat[field].isna().sum())
        if without:
            raise DataError(
                f"{self._folder}: {without} interactions have no {field}, which order TO needs; use order RO"
            )

    def _note(self, name: str, count: int) -> None:
        """Of interactions that a filter left out."""
        if count:
            self.notes[name] = self.notes.get(name, 0) + count

    def _drop_repeated(self) -> None:
        keep = ~self.inter_feat.duplicated([self.uid_field, self.iid_field], keep="first")
        if not keep.all():
            self.notes["repeated_interactions"] = int((~keep).sum())
            logger.info("%d repeated interactions: kept once", self.notes["repeated_interactions"])
            self.inter_feat = self.inter_feat[keep]

    def _open_features(self) -> None:
        folder = self._folder
        if builtin.is_builtin(folder, self.dataset_name):
            folder = builtin.modality_folder(folder, self.dataset_name)
        overrides = {name: (m.file, m.ids) for name, m in self.settings.modality_files.items()}
        found = modality.find(folder, overrides)
        self.unread = modality.unread(folder, found)
        for name, why in self.unread.items():
            logger.warning("%s: %s", folder / name, why)
        names = modality.select(found, self.settings.modalities, folder)
        n_ids = self._n_ids if self._is_mmrec else None
        self._files = [modality.open_file(name, *found[name], n_ids) for name in names]

    def _check_features(self) -> None:
        tokens = {str(t) for t in self.inter_feat[self.iid_field].unique()}
        if self.item_feat is not None:
            tokens |= set(self.item_feat[self.iid_field].astype(str))
        lacking: set[str] = set()
        for file in self._files:
            without, blank = file.without(tokens)
            if without and self.settings.missing == "error":
                raise DataError(
                    f"{file.path}: no {file.name} features for {len(without)} of {len(tokens)} items ({listed(without)}); "
                    "add their rows, or choose --missing=mean (the mean row stands in) or --missing=drop (without them)"
                )
            lacking.update(without, blank)
            if blank:
                self.notes[f"items_with_{file.name}_all_zero"] = len(blank)
                what = (
                    "left out"
                    if self.settings.missing == "drop"
                    else "the mean row stands in (--missing=drop: without them)"
                )
                logger.info(
                    "modality %s: the rows of %d of %d items are all 0 and count as missing: %s", file.name, len(blank), len(tokens), what
                )  # fmt: skip
        if lacking and self.settings.missing == "drop":
            keep = ~self.inter_feat[self.iid_field].astype(str).isin(lacking).to_numpy()
            self._drop_items(keep, len(lacking))
            if self.item_feat is not None:
                known = ~self.item_feat[self.iid_field].astype(str).isin(lacking)
                self.item_feat = self.item_feat[known].reset_index(drop=True)

    def _drop_items(self, keep: np.ndarray, items: int) -> None:
        name = "interactions_of_items_without_features"
        self.notes |= {name: int((~keep).sum()), "items_without_features": items}
        logger.info("%d interactions of %d items without features: dropped", self.notes[name], items)
        if self.benchmark_filename_list is not None:
            ends = np.cumsum([0, *self.file_size_list])
            self.file_size_list = [int(keep[a:b].sum()) for a, b in itertools.pairwise(ends)]
        self.inter_feat = self.inter_feat[keep].reset_index(drop=True)

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
            if kind == "shuffle":  # the rows that only stand in go along
                corrupt.control(self.missing[m].numpy(), kind, corrupt.generator(seed, "control", m))
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

    def split_fingerprint(self, parts: Iterable[Dataset]) -> str:
        """Hash of what is ranked and judged, the ids of users and items and their interactions in each split, in whatever layout or order
        they are stored, and whatever the features (hex, 16 digits). Two results with the same one can be compared."""
        fields = self.uid_field, self.iid_field
        pairs = ([part.inter_feat[f].numpy() - 1 for f in fields] for part in parts)  # without padding
        return filters.split_fingerprint([self.field2id_token[f][1:] for f in fields], ((u, i) for u, i in pairs))

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
