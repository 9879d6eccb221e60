"""The contract between a multimodal recommender and what may replace its encoding stage.

A model never builds its modality representations by itself; it asks for them:

    features X^m -> encoder_m -> stage -> z^m -> propagate (graphs, fusion) -> s(u, i) -> the model's own losses

The stage is deterministic by default. MRdIB replaces that one object by a Gaussian one and adds objectives; no model
knows of it. Shapes: B batch, U users, I items (both with the padding id 0), R encoded items, M modalities, D features, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmrec_mrdib import compat
from mmrec_mrdib.encoded import Batch as Batch
from mmrec_mrdib.encoded import Deterministic as Deterministic
from mmrec_mrdib.encoded import Embeddings as Embeddings
from mmrec_mrdib.encoded import Encoded as Encoded
from mmrec_mrdib.encoded import EncodingStage as EncodingStage
from mmrec_mrdib.encoded import StepLoss as StepLoss
from mmrec_mrdib.errors import ConfigError, ContractError, DataError
from mmrec_mrdib.graphs import Edges, gather_rows

compat.activate()

from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType


def is_large(n: int, batch_size: int) -> bool:
    """Whether a step should find and read a batch's distinct rows of a table of n users or items. Of a small table nearly all are in
    a batch: finding them would cost more than it saves."""
    return n > 2 * batch_size


def drop_out(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """x with a share p of its entries, drawn anew, set to 0 and the others divided by 1 - p; on a CPU in a third of `F.dropout`'s time."""
    return x * ((torch.empty_like(x).uniform_(generator=generator) >= p) / (1 - p)) if p else x


class MultimodalRecommender(GeneralRecommender, ABC):
    """Base of all backbones, on RecBole's GeneralRecommender. A model

    1. fills `encoders` (modality -> module, (R, D_m) -> (R, d)) and its own parameters in `__init__`;
    2. writes `propagate`: representations to embeddings;
    3. writes `loss_parts`: named scalars, weighted as the model defines;
    4. may override `items_to_encode` and `users_to_read` where a step needs only some items or users (and then list its tables as
       `row_tables`), `before_epoch` (e.g. edge dropout), and `new_items` where items without interactions can be scored.

    Everything that RecBole asks for (`calculate_loss`, `predict`, `full_sort_predict`) is here.
    """

    n_users: int  # RecBole's, as these two
    n_items: int
    device: Any
    input_type: InputType = InputType.PAIRWISE
    """POINTWISE: the model is trained on positives alone, and `Batch.negative` is None."""
    z_in_score: ClassVar[Literal["yes", "as a gate", "through the graph", "no"]]
    """How z^m reaches the score s(u, i). Where it does not, whatever is added to z can only regularise."""
    summed: Callable[[Tensor], Tensor] | None = None
    """Sum of a tensor over the processes that share a batch (`distributed.Ranks`), set by the trainer where there are several."""
    needs_features: ClassVar[bool] = True
    """False for a plain baseline of ids alone: it has no modality, no encoder and an empty `Encoded`, and keeps the rest of the contract."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        features = getattr(dataset, "features", None) if self.needs_features else {}
        if features is None:
            raise ContractError(f"{type(self).__name__} needs a MultimodalDataset, found {type(dataset).__name__}")
        if self.needs_features and not features:
            raise DataError(
                f"{type(self).__name__} needs item features, but '{config['dataset']}' has none; "
                "expected <modality>_feat.npy in its folder"
                + "".join(f"; {name}: {why}" for name, why in getattr(dataset, "unread", {}).items())
            )
        self._imputed: dict[str, Tensor] = getattr(dataset, "missing", {})
        self.modalities: tuple[str, ...] = tuple(features)
        self.feature_dims = {m: x.shape[1] for m, x in features.items()}
        for m, x in features.items():
            # Not a parameter: were features trainable, I(X; Z) would lose its meaning. Not in checkpoints either.
            self.register_buffer(f"features_{m}", x, persistent=False)
        self.encoders = nn.ModuleDict()
        self.stage: EncodingStage = Deterministic()
        self._evaluation: Embeddings | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: module.drop_evaluation_cache())

    # What a model writes.

    @abstractmethod
    def propagate(self, enc: Encoded) -> Embeddings:
        """Users and items from the modality representations."""

    @abstractmethod
    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """The model's own loss as named scalars; their sum is minimised."""

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        """Sorted ids of the items that a step must encode, or None: all (graph models need all)."""
        return None

    def users_to_read(self, batch: Batch) -> Tensor | None:
        """Sorted ids of the users that a step needs, or None: all (graph models need all)."""
        return None

    def only_distinct(self, batch: Batch) -> Tensor | None:
        """`items_to_encode` of a model whose step needs the batch's items alone."""
        return batch.items if is_large(self.n_items, len(batch.users)) else None

    def only_distinct_users(self, batch: Batch) -> Tensor | None:
        """`users_to_read` of a model whose step needs the batch's users alone."""
        return batch.distinct_users if is_large(self.n_users, len(batch.users)) else None

    def row_tables(self) -> list[nn.Parameter]:
        """Tables of users or items that a training step reads by `optim.rows` alone where they are large (see `is_large`), so
        that the trainer may update just these rows (see `optim.RowAdam`)."""
        return []

    def new_items(self, enc: Encoded) -> Tensor:
        """(R, d') embeddings of items that were never trained on, from their modality representations alone.

        Raises:
            ConfigError: the model is not defined for such items.
        """
        raise ConfigError(
            f"{type(self).__name__} has no score for items without interactions: its items are made of more than their "
            "modality representations; VBPR and FREEDOM have one"
        )

    def new_scorer(self, features: Mapping[str, Tensor], items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """Users (B,) -> (B, R) scores of items that were never trained on, in evaluation mode.

        Args:
            features: modality -> (R, D_m) of these items.
            items: their ids (R,), where they are of the catalogue and were held out.

        Raises:
            ConfigError: the model is not defined for such items.
        """
        rows = self.new_items(self.stage(self.encoders, features, None))
        table = self.evaluation_embeddings().users
        return lambda users: self.score(table[users], rows)

    def before_epoch(self, epoch: int) -> None:
        """Called by the trainer before each training epoch."""

    # Templates.

    def features(self, modality: str) -> Tensor:
        """(I, D_m) raw features, row 0 zero."""
        return getattr(self, f"features_{modality}")

    def known_features(self, modality: str) -> Tensor:
        """(I, D_m) features for graphs of items: zero for items without features, so that they get no neighbours: the row that stands in
        for them is the same for all, and would join them to each other."""
        x, imputed = self.features(modality), self._imputed.get(modality)
        return x if imputed is None or not imputed.any() else x.masked_fill(imputed[:, None].to(x.device), 0.0)

    def train_features(self) -> None:
        """Make the raw features parameters, as the public code of some models does: an option, never the default."""
        for m in self.modalities:
            x = self.features(m)
            delattr(self, f"features_{m}")
            self.register_parameter(f"features_{m}", nn.Parameter(x.clone()))

    @staticmethod
    def interactions(dataset: Any) -> Edges:
        """(U, I), ones: the interactions of the training split that a model is given."""
        users, items = dataset.inter_feat[dataset.uid_field], dataset.inter_feat[dataset.iid_field]
        return Edges(users, items, torch.ones(len(users)), (dataset.user_num, dataset.item_num))

    def encode_items(self, items: Tensor | None = None) -> Encoded:
        """Representations of the given items (sorted ids), or of all."""
        features = {
            m: self.features(m) if items is None else gather_rows(self.features(m), items) for m in self.encoders
        }
        return self.stage(self.encoders, features, items)

    def batch(self, interaction: Any) -> Batch:
        """RecBole's interaction as a Batch."""
        negative = interaction[self.NEG_ITEM_ID] if self.input_type == InputType.PAIRWISE else None
        return Batch(interaction[self.USER_ID], interaction[self.ITEM_ID], negative, self.n_items)

    def forward_batch(self, batch: Batch) -> tuple[Encoded, Embeddings]:
        """One pass: encode once, propagate once."""
        enc = replace(self.encode_items(self.items_to_encode(batch)), users=self.users_to_read(batch))
        return enc, self.propagate(enc)

    def step_loss(self, interaction: Any) -> StepLoss:
        """Named losses of a batch."""
        batch = self.batch(interaction)
        enc, emb = self.forward_batch(batch)
        return StepLoss(self.loss_parts(enc, emb, batch))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """The sum that RecBole's stock Trainer minimises, ()."""
        return self.step_loss(interaction).total

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Scores of all pairs of (B, d') user rows and (I, d') item rows, (B, I)."""
        return users @ items.T

    def evaluation_embeddings(self) -> Embeddings:
        """All users and items in evaluation mode; computed once an evaluation, dropped by train() and eval()."""
        if self.training:
            return self.propagate(self.encode_items())
        if self._evaluation is None:
            with torch.no_grad():
                self._evaluation = self.propagate(self.encode_items())
        return self._evaluation

    def predict(self, interaction: Any) -> Tensor:
        """(B,) scores of the pairs."""
        emb = self.evaluation_embeddings()
        return (emb.users[interaction[self.USER_ID]] * emb.items[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """(B, I) scores of all items for each user."""
        emb = self.evaluation_embeddings()
        return self.score(emb.users[interaction[self.USER_ID]], emb.items)

    def drop_evaluation_cache(self) -> None:
        self._evaluation = None

    def train(self, mode: bool = True) -> MultimodalRecommender:
        self.drop_evaluation_cache()
        return super().train(mode)

    def mi_parameters(self) -> list[nn.Parameter]:
        """Parameters of mutual-information estimators: a group of their own, without weight decay or clipping."""
        return []
