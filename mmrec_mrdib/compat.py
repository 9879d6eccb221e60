"""Every workaround that RecBole 1.2 needs on today's Python, NumPy, pandas and PyTorch, each with its reason.

`activate()` applies them once. They change RecBole's own modules only, never NumPy, pandas or PyTorch, and leave
RecBole's results as they were on the versions it was written for, unless a docstring says otherwise. tests/test_compat.py holds
one test for each; those of single models are in tests/test_general.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import random
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_active = False


def activate() -> None:
    """Apply all workarounds; calling it again does nothing."""
    global _active
    if _active:
        return
    _numpy_aliases()
    _config_leaves_numpy_alone()
    _pandas_copy_on_write()
    _token_sequences()
    _plain_checkpoints()
    _models_without_kmeans()
    _adjacency_from_dictionaries()
    _small_samples()
    _same_scores_twice()
    _one_pass()
    _active = True


class _Overlay(types.ModuleType):
    """A module seen through a few replaced names; everything else comes from the original."""

    def __init__(self, original: types.ModuleType, **names: Any) -> None:
        super().__init__(original.__name__)
        self.__dict__.update(names)
        self.__dict__["_original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


def _numpy_aliases() -> None:
    """`np.float` and `np.bool` left NumPy in 1.24; RecBole's metrics, Interaction and Dataset still use them."""
    import recbole.data.dataset.dataset
    import recbole.data.interaction
    import recbole.evaluator.metrics

    overlay = _Overlay(np, float=float, bool=np.bool_)
    for module in (recbole.evaluator.metrics, recbole.data.interaction, recbole.data.dataset.dataset):
        module.np = overlay


def _config_leaves_numpy_alone() -> None:
    """`Config.compatibility_settings` writes aliases into NumPy and reads `np.float_`, which NumPy 2 removed."""
    from recbole.config import Config

    Config.compatibility_settings = lambda self: None


def _pandas_copy_on_write() -> None:
    """Under pandas 3 `frame[column].fillna(..., inplace=True)` changes a copy: missing values would stay.

    RecBole does so in two places: `Dataset._fill_nan`, replaced here with the assignment it means, and
    `Dataset._load_feat`, whose token sequences are filled right after `read_csv` instead. The arrays behind a frame are
    read-only too: `_dataframe_to_interaction` would lay tensors over them, so its tensors are copied.
    """
    import pandas as pd
    import recbole.data.dataset.dataset as module
    from recbole.data.interaction import Interaction
    from recbole.utils import FeatureType

    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        frame = pd.read_csv(*args, **kwargs)
        for column in frame.columns:
            if str(column).endswith("_seq"):
                frame[column] = frame[column].fillna("")
        return frame

    def fill_nan(self: Any) -> None:
        for name in self.feat_name_list:
            feat = getattr(self, name)
            for field in feat:
                kind = self.field2type[field]
                if kind == FeatureType.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif kind == FeatureType.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
                else:
                    empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                    filled = [empty if isinstance(v, float) else v for v in feat[field]]
                    feat[field] = pd.Series(filled, index=feat.index, dtype=object)

    stock = module.Dataset._dataframe_to_interaction

    def to_interaction(self: Any, data: pd.DataFrame) -> Interaction:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            interaction = stock(self, data)
        return Interaction({name: column.clone() for name, column in interaction.interaction.items()})

    load_feat = module.Dataset._load_feat

    def quiet_load_feat(self: Any, *args: Any) -> Any:
        with warnings.catch_warnings():  # of the fillna that read_csv above has made superfluous
            warnings.simplefilter("ignore", getattr(pd.errors, "ChainedAssignmentError", FutureWarning))
            return load_feat(self, *args)

    module.Dataset._load_feat = quiet_load_feat
    module.pd = _Overlay(pd, read_csv=read_csv)
    module.Dataset._fill_nan = fill_nan
    module.Dataset._dataframe_to_interaction = to_interaction


def _token_sequences() -> None:
    """`Series.agg(len)` was once the length of each element and is that of the series now, which breaks RecBole's numbering
    of token sequences (`Dataset._remap`). Replaced by the same numbering: in order of first appearance, 0 is padding."""
    import pandas as pd
    from recbole.data.dataset.dataset import Dataset
    from recbole.utils import FeatureType

    def remap(self: Any, remap_list: list[tuple[pd.DataFrame, str, FeatureType]]) -> None:
        if not remap_list:
            return
        columns = []
        for feat, field, kind in remap_list:
            values = feat[field].to_numpy(dtype=object)
            columns.append(np.concatenate([*values, []]) if kind == FeatureType.TOKEN_SEQ else values)
        numbers, names = pd.factorize(np.concatenate([c.astype(object) for c in columns]))
        id_token = np.array(["[PAD]", *names])
        token_id = {token: number for number, token in enumerate(id_token)}
        parts = np.split(numbers + 1, np.cumsum([len(c) for c in columns])[:-1])
        for (feat, field, kind), part in zip(remap_list, parts, strict=True):
            self.field2id_token.setdefault(field, id_token)
            self.field2token_id.setdefault(field, token_id)
            if kind == FeatureType.TOKEN_SEQ:
                ends = np.cumsum([len(v) for v in feat[field]])[:-1]
                feat[field] = pd.Series(np.split(part, ends), index=feat.index, dtype=object)
            else:
                feat[field] = part

    Dataset._remap = remap


def _plain_checkpoints() -> None:
    """RecBole's checkpoints hold the Config object, which `torch.load` refuses since PyTorch 2.6 (weights_only).

    The stock Trainer is made to save the configuration as plain values; `evaluate` and `resume_checkpoint` then
    load its files as they are, and nothing is ever unpickled.
    """
    import torch
    from recbole.trainer import Trainer

    def save(self: Any, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        state = {
            "config": plain(self.config.final_config_dict),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, path)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    Trainer._save_checkpoint = save


def _models_without_kmeans() -> None:
    """One of RecBole's general recommenders (LDiffRec) imports kmeans_pytorch, which RecBole does not depend on; without
    it none of them can be imported. While they are, a stand-in is there, whose use names what to install."""
    if importlib.util.find_spec("kmeans_pytorch") is not None:
        return

    def kmeans(*args: Any, **kwargs: Any) -> None:
        raise ImportError("LDiffRec needs kmeans_pytorch: pip install kmeans_pytorch")

    stand_in = types.ModuleType("kmeans_pytorch")
    stand_in.__dict__["kmeans"] = kmeans
    sys.modules["kmeans_pytorch"] = stand_in
    try:
        import recbole.model.general_recommender  # noqa: F401
    finally:
        del sys.modules["kmeans_pytorch"]


def _adjacency_from_dictionaries() -> None:
    """NGCF, GCMC, NCL, SpectralCF and others fill their adjacency with `dok_matrix._update`, which SciPy 1.13 removed. Their modules
    see a CSR matrix under that name, with such a method; the products that follow are the same."""
    import recbole.model.general_recommender as package
    import scipy.sparse as sp

    class Filled(sp.csr_matrix):
        def _update(self, entries: dict[tuple[int, int], float]) -> None:
            places = np.fromiter(itertools.chain.from_iterable(entries), np.int64, 2 * len(entries)).reshape(-1, 2)
            values = np.fromiter(entries.values(), self.dtype, len(entries))
            made = sp.csr_matrix((values, (places[:, 0], places[:, 1])), shape=self.shape)
            self.indptr, self.indices, self.data = made.indptr, made.indices, made.data

    overlay = _Overlay(sp, dok_matrix=Filled)
    for module in vars(package).values():
        if isinstance(module, types.ModuleType) and getattr(module, "sp", None) is sp:
            module.__dict__["sp"] = overlay


def _small_samples() -> None:
    """DGCF draws as many users and items as a batch's share of the larger of both: more than there are of the other, when there
    are few batches. It draws all of them then."""
    import recbole.model.general_recommender.dgcf as module

    def sample(n_users: int, n_items: int, size: int) -> tuple[list[int], list[int]]:
        return random.sample(range(n_users), min(size, n_users)), random.sample(range(n_items), min(size, n_items))

    module.sample_cor_samples = sample


def _same_scores_twice() -> None:
    """ADMMSLIM adds noise to each score, so that a run would not recommend what it was judged by."""
    import recbole.model.general_recommender.admmslim as module

    module.add_noise = lambda scores, mag=0.0: scores


def _one_pass() -> None:
    """NCEPLRec is fitted when it is made, as RecBole's traditional models are, but not counted among them."""
    from recbole.model.general_recommender import NCEPLRec
    from recbole.utils import ModelType

    NCEPLRec.type = ModelType.TRADITIONAL


def drop_restored(model: Any) -> None:
    """Some of RecBole's models keep the tables of their last evaluation and drop them in the next training step only: other
    weights, loaded in between, would be scored with the old tables."""
    for module in model.modules():  # a wrapped one, too
        for name in getattr(module, "other_parameter_name", ()):
            if name.startswith("restore_") or name == "i_embedding":
                setattr(module, name, None)


def plain(value: Any) -> Any:
    """The value in terms of None, bool, int, float, str, list and dict; anything else as its text."""
    if isinstance(value, np.generic):  # before float: np.float64 is one, and would be pickled as NumPy's
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    return str(value)


def other_generators() -> dict[str, Any]:
    """State of Python's and NumPy's global generators, which RecBole's samplers and models draw from, as plain values."""
    _, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002
    _, keys, place, has_gauss, cached = legacy
    return {"python": [list(words), gauss], "numpy": [keys.tolist(), int(place), int(has_gauss), float(cached)]}


def restore_other_generators(state: dict[str, Any]) -> None:
    """Put `other_generators` back."""
    words, gauss = state["python"]
    random.setstate((3, tuple(words), gauss))
    keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.asarray(keys, dtype=np.uint32), place, has_gauss, cached))  # noqa: NPY002


@contextlib.contextmanager
def tensorboard_in(folder: Path | None) -> Iterator[None]:
    """RecBole's Trainer opens its TensorBoard writer in ./log_tensorboard; within this block it opens it in `folder`, or gets one
    that writes nothing (None)."""
    import recbole.trainer.trainer as module

    stock = module.get_tensorboard
    module.get_tensorboard = lambda logger: _NoWriter() if folder is None else _writer(folder)
    try:
        yield
    finally:
        module.get_tensorboard = stock


def _writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


class _NoWriter:
    """A TensorBoard writer for nothing."""

    def add_scalar(self, *args: Any) -> None: ...

    def close(self) -> None: ...
