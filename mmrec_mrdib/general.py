"""RecBole's general recommenders: how those run that our trainer cannot take as they are, and which are refused.

Most of RecBole's classes train as they stand; faults of single lines are repaired in `compat.py`. Here are

- Pop, Random, ItemKNN and EASE anew, because RecBole's give other numbers than their names say, or need far more memory;
- RecVAE and NCL with the part of their training that RecBole keeps in trainers of their own, and NGCF judged without dropout;
- labelled batches for pointwise losses, and what stands for batches where there is nothing to train;
- `build`, which refuses in one line what cannot run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from mmrec_mrdib import compat, process, registry
from mmrec_mrdib.data.sampling import TrainBatches
from mmrec_mrdib.errors import ConfigError, MRdIBError
from mmrec_mrdib.evaluation import score_all

compat.activate()

from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender.ncl import NCL as RecBoleNCL
from recbole.model.general_recommender.ngcf import NGCF as RecBoleNGCF
from recbole.model.general_recommender.recvae import RecVAE as RecBoleRecVAE
from recbole.utils import InputType, ModelType

_SAMPLE = 256  # users whose scores must be inner products before tables are believed to be what they are made of
# What RecBole's models call the tables that they score with: after propagation (LightGCN, NGCF, DGCF, SGL, ...), or as trained (BPR, ...).
_TABLES = (("restore_user_e", "restore_item_e"), ("user_embedding", "item_embedding"))
_BLOCK = 1 << 22  # similarities in memory at a time
_LLOYD = 25  # iterations of k-means
# What training changes in RecBole's models besides their state_dict: annealing steps, loss histories, prototypes.
_STATE = (
    "update",
    "update_count",
    "update_count_vae",
    "Lt_history",
    "Lt_count",
    "random_pr",
    "random_list",
    "user_centroids",
    "user_2cluster",
    "item_centroids",
    "item_2cluster",
)
# Bytes at the peak of models that hold dense matrices whatever the data, from (users, items).
_DENSE: dict[str, Callable[[int, int], int]] = {
    "EASE": lambda users, items: 16 * items * items,
    "ADMMSLIM": lambda users, items: 50 * items * items + 8 * users * items,
    "NNCF": lambda users, items: users * items,
}


class OnePass(GeneralRecommender):
    """A model that is fitted when it is made, from the training split alone; subclasses define `scores`."""

    type = ModelType.TRADITIONAL
    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.unused = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainer makes an optimiser

    def scores(self, users: Tensor) -> Tensor:
        """(B, I) for users (B,)."""
        raise NotImplementedError

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.scores(interaction[self.USER_ID]).reshape(-1)

    def predict(self, interaction: Any) -> Tensor:
        return self.scores(interaction[self.USER_ID]).gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)

    def calculate_loss(self, interaction: Any) -> Tensor:
        return self.unused.sum()


class Neighbours(OnePass):
    """Score of u, j: the sum of S_ij over the items i of u. Subclasses make S, `similarity`, sparse (I, I)."""

    similarity: Any

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.history = dataset.inter_matrix(form="csr").astype(np.float32)

    def scores(self, users: Tensor) -> Tensor:
        found = self.history[users.cpu().numpy()] @ self.similarity
        return torch.from_numpy(found.toarray()).to(users.device)


class Pop(OnePass):
    """Score of an item: its share of the most popular item's training interactions.

    RecBole's counts the batches that hold an item, drawn negatives included, and not its interactions.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items).double()
        self.register_buffer("popularity", counts / counts.max(), persistent=False)

    def scores(self, users: Tensor) -> Tensor:
        return self.popularity.repeat(len(users), 1)


class Random(OnePass):
    """Score of a user and an item: a hash of both and the seed (splitmix64), uniform in [0, 1).

    RecBole's gives all users of a block the same list, another one at each call, so that a run's recommendations are not
    those that it was judged by.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.seed = int(config["seed"])

    def scores(self, users: Tensor) -> Tensor:
        items = torch.arange(self.n_items, device=users.device)
        bits = (self.seed * 1_000_003 + users[:, None]) * -7046029254386353131 + items * -4417276706812531889
        for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
            bits = (bits ^ _shifted(bits, shift)) * factor
        return _shifted(bits ^ _shifted(bits, 31), 11).double() / (1 << 53)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shift right without the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


class ItemKNN(Neighbours):
    """Score of u, i: the sum of cosine similarities of i's `k` nearest items to those that u has (Aiolli, RecSys 2013).

    `shrink` is added to the product of the norms, as in RecBole's class. That one loops over items and keeps all users' scores; here
    only the I x k similarities are kept, made in blocks.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        k, shrink = config["k"], config["shrink"]
        if k < 1 or shrink < 0:
            raise ConfigError(f"--k={k} --shrink={shrink}: expected k of 1 or more and shrink of 0 or more")
        self.similarity = _nearest(self.history, min(k, self.n_items), shrink)


class EASE(OnePass):
    """Score of u, i: the row of u times the column of i of B, B = -P / diag(P) off the diagonal, P = (X'X + reg_weight)^-1 (Steck, WWW
    2019, eq. 8). By Cholesky and in place: two I x I matrices of float32 at the peak, where RecBole's takes nine.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if config["reg_weight"] <= 0:
            raise ConfigError(f"--reg_weight={config['reg_weight']}: expected a number above 0")
        self.history = dataset.inter_matrix(form="csr").astype(np.float32)
        gram = torch.from_numpy((self.history.T @ self.history).toarray())
        gram.diagonal().add_(config["reg_weight"])
        weights = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram))
        weights /= -weights.diagonal().clone()
        self.weights = weights.fill_diagonal_(0).numpy()

    def scores(self, users: Tensor) -> Tensor:
        return torch.from_numpy(self.history[users.cpu().numpy()] @ self.weights).to(users.device)


def _nearest(history: Any, k: int, shrink: float) -> Any:
    """(I, I) sparse cosine similarities; column i holds the k largest of item i that are not zero."""
    norms = np.sqrt(np.asarray(history.power(2).sum(axis=0)).ravel())
    users_of = history.T.tocsr()
    columns, n_items = history.tocsc(), history.shape[1]
    width, parts = max(_BLOCK // n_items, 1), []
    for start in range(0, n_items, width):
        block = columns[:, start : start + width]
        similarity = (users_of @ block).toarray()
        size = similarity.shape[1]
        similarity[np.arange(start, start + size), np.arange(size)] = 0.0
        similarity /= norms[:, None] * norms[start : start + size] + shrink + 1e-6
        rows = np.argpartition(-similarity, k - 1, axis=0)[:k]
        found = np.take_along_axis(similarity, rows, axis=0)
        at = np.broadcast_to(np.arange(size), rows.shape)
        kept = found != 0.0
        parts.append(sp.csc_matrix((found[kept], (rows[kept], at[kept])), shape=(n_items, size)))
    return sp.hstack(parts, format="csr")


class RecVAE(RecBoleRecVAE):
    """RecBole's RecVAE with the alternation of its trainer (Shenbin et al., WSDM 2020, section 3.4): in an epoch the encoder learns
    for `n_enc_epochs` passes from corrupted input, the prior takes the encoder over, and the decoder learns for `n_dec_epochs`."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.passes = config["n_enc_epochs"], config["n_dec_epochs"]
        self.encoder_learns = True

    def batches(self, data: Any) -> Iterator[Any]:
        """The batches of an epoch. The optimiser leaves alone what has no gradient."""
        encoder, decoder = self.passes
        try:
            self._turn(True)
            for _ in range(encoder):
                yield from data
            self.update_prior()
            self._turn(False)
            for _ in range(decoder):
                yield from data
        finally:
            self.encoder.requires_grad_(True)
            self.decoder.requires_grad_(True)

    def _turn(self, encoder_learns: bool) -> None:
        self.encoder_learns = encoder_learns
        self.encoder.requires_grad_(encoder_learns)
        self.decoder.requires_grad_(not encoder_learns)

    def calculate_loss(self, interaction: Any) -> Tensor:
        return super().calculate_loss(interaction, encoder_flag=self.encoder_learns)


class NCL(RecBoleNCL):
    """RecBole's NCL with the steps of its trainer (Lin et al., WWW 2022, section 3.3): prototypes are found anew every `m_step`
    epochs, and their loss counts from epoch `warm_up_step` on. The k-means is ours: RecBole's needs faiss on a GPU."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.m_step, self.warm_up = config["m_step"], config["warm_up_step"]
        self.epoch = 0

    def before_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if epoch % self.m_step == 0 or self.user_centroids is None:
            self.e_step()

    def run_kmeans(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        points = torch.from_numpy(x).to(self.device)
        centroids, cluster = kmeans(points, min(self.k, len(points)))
        return torch.nn.functional.normalize(centroids, dim=1), cluster

    def calculate_loss(self, interaction: Any) -> Any:
        losses = super().calculate_loss(interaction)
        return losses[:-1] if self.epoch < self.warm_up else losses


class NGCF(RecBoleNGCF):
    """RecBole's NGCF, whose forward pass makes its dropout layer anew and so drops messages when it is judged, too."""

    message_dropout: float

    def forward(self) -> Any:
        dropout = self.message_dropout
        try:
            self.message_dropout = dropout if self.training else 0.0
            return super().forward()
        finally:
            self.message_dropout = dropout


def kmeans(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k random points: centroids (k, D) and each point's cluster (N,). An empty cluster stays where it is."""
    centroids = points[torch.randperm(len(points), device=points.device)[:k]]
    for _ in range(_LLOYD):
        cluster = _closest(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, cluster, points)
        sizes = torch.bincount(cluster, minlength=k)[:, None]
        moved = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids, _closest(points, centroids)


def _closest(points: Tensor, centroids: Tensor) -> Tensor:
    parts = points.split(max(_BLOCK // len(centroids), 1))
    return torch.cat([torch.cdist(part, centroids).argmin(1) for part in parts])


class LabelledBatches(TrainBatches):
    """`TrainBatches` for pointwise losses: a batch's positives with label 1, then a negative of each with label 0."""

    def __iter__(self) -> Iterator[Interaction]:
        label = self.dataset.config["LABEL_FIELD"]
        for batch in super().__iter__():
            users, items, negatives = (batch[f] for f in (self.user_field, self.item_field, self.negative_field))
            labels = torch.cat([torch.ones_like(users), torch.zeros_like(users)]).float()
            yield Interaction(
                {
                    self.user_field: torch.cat([users, users]),
                    self.item_field: torch.cat([items, negatives]),
                    label: labels,
                }
            )


class NoBatches:
    """Stands for the training batches of a model of one pass."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def get_model(self, model: Any) -> None:
        """RecBole's trainer asks this of loaders with dynamic negatives."""


def inner_products(model: Any, user_field: str) -> tuple[Tensor, Tensor] | None:
    """(U, d) and (I, d) tables of a model of RecBole whose scores are their inner products, by the names that its models give such
    tables; believed where its scores agree. None: it has none."""
    shape = (model.n_users, model.n_items)
    sample = torch.arange(1, min(shape[0], 1 + _SAMPLE), device=model.device)
    scores = score_all(
        model, sample, user_field, shape[1]
    )  # fills the tables of models that keep what they have propagated
    for pair in _TABLES:
        users, items = (getattr(table, "weight", table) for table in (getattr(model, name, None) for name in pair))
        if not (isinstance(users, Tensor) and isinstance(items, Tensor)) or (len(users), len(items)) != shape:
            continue
        if users.shape[1] == items.shape[1] and torch.allclose(users[sample] @ items.T, scores, rtol=1e-4, atol=1e-5):
            return users.detach(), items.detach()
    return None


def live_tables(model: Any, user_field: str) -> Callable[[], tuple[Tensor, Tensor]] | None:
    """Makes the tables that `inner_products` finds, with gradients: by the model's forward pass, or as they are trained. None: neither
    gives them."""
    found = inner_products(model, user_field)
    compat.drop_restored(model)  # scores of the weights as they are now
    if found is None:
        return None
    ways: tuple[Callable[[], tuple[Tensor, Tensor]], ...] = (
        lambda: model.forward()[:2],
        lambda: (model.user_embedding.weight, model.item_embedding.weight),
    )
    for make in ways:
        with contextlib.suppress(TypeError, AttributeError), torch.no_grad():
            tables = make()
            if all(t.shape == f.shape and torch.allclose(t, f) for t, f in zip(tables, found, strict=True)):
                return make
    return None


def fitted_in_one_pass(model: Any) -> bool:
    """Whether nothing is left to train once the model (or model class) is made."""
    return getattr(model, "type", None) == ModelType.TRADITIONAL


def training_state(model: Any) -> dict[str, Any]:
    """What the training of RecBole's models, also wrapped ones, and of plug-ins changes besides their state_dict: tensors and plain values,
    for a checkpoint."""
    core = getattr(model, "core", model)
    found = {name: vars(core)[name] for name in _STATE if name in vars(core)}
    streams = {f"draws of {type(p).__name__}": p.draws.state for p in getattr(model, "plugins", ()) if p.draws.begun}
    return streams | {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in found.items()
        if isinstance(value, Tensor | np.ndarray | int | None)
    }


def restore_training_state(model: Any, state: dict[str, Any], anew: int | None = None) -> None:
    """Put `training_state` back.

    Args:
        anew: the epoch from which plug-ins draw from new streams: the state is that of another kind of device. None: theirs go on.
    """
    state = dict(state)
    for plugin in getattr(model, "plugins", ()):
        if (stream := state.pop(f"draws of {type(plugin).__name__}", None)) is not None:
            plugin.draws.resume(stream if anew is None else anew, model.device)
    model = getattr(model, "core", model)
    for name, value in state.items():
        if isinstance(vars(model)[name], np.ndarray):
            value = value.cpu().numpy()
        setattr(model, name, value.to(model.device) if isinstance(value, Tensor) else value)


def build(config: Any, dataset: Any, name: str | None = None) -> Any:
    """The model of a configuration (or another of that name, with the same parameters), made from the training split, on the device of the run.

    Attribute `fit_seconds` of the result is the time that took.

    Raises:
        ConfigError: it does not fit into memory, needs a package that is not installed, or RecBole's class refuses its parameters.
    """
    name = name or config["model"]
    model_class = registry.model_class(name)
    if name in registry.MODELS:
        return model_class(config, dataset).to(config["device"])
    if name in registry.PLUGINS:
        plugged = model_class(config, dataset)
        torch.set_rng_state(plugged.drawn)  # from here on is drawn what the backbone by itself would draw
        return plugged.to(config["device"])
    _check(name, config, dataset)
    started = time.perf_counter()
    try:
        model = model_class(config, dataset).to(config["device"])
    except MRdIBError:
        raise
    except Exception as error:
        if process.out_of_gpu_memory(error):
            raise
        reason = " ".join(str(error).split()) or "its parameters do not fit together"
        raise ConfigError(f"{name} cannot be made: {type(error).__name__}: {reason}") from error
    model.fit_seconds = time.perf_counter() - started
    return model


def _check(name: str, config: Any, dataset: Any) -> None:
    users, items = dataset.user_num, dataset.item_num
    if name in _DENSE:
        needed, free = _DENSE[name](users, items), process.available_memory()
        if free is not None and needed > free:
            raise ConfigError(
                f"{name} needs about {needed / 2**30:.1f} GiB of memory for dense matrices over {items - 1} items, and "
                f"{free / 2**30:.1f} GiB are free; use ItemKNN, whose similarities are sparse, or fewer items"
            )
    if name == "LDiffRec" and config["n_cate"] > 1:
        _needs("kmeans_pytorch", "--n_cate above 1 needs", "--n_cate=1")
    if name == "NNCF" and config["neigh_info_method"] == "louvain":
        _needs("community", "--neigh_info_method=louvain needs", "random or knn", "python-louvain")


def _needs(module: str, what: str, otherwise: str, package: str | None = None) -> None:
    if importlib.util.find_spec(module) is None:
        package = package or module
        raise ConfigError(f"{what} {package}, which is not installed: pip install {package}, or use {otherwise}")
