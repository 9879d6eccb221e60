"""The wrapper: a RecBole model class around any backbone, or around a general recommender without features.

A plug-in may replace the backbone's encoding stage, add losses to its step, and add columns to what scores are made of. What it does not
touch is the backbone's: with nothing added, loss, gradients and ranking are the backbone's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from recbole.utils import InputType
from torch import Tensor, nn

from mmrec_mrdib import general
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import score_all
from mmrec_mrdib.models.base import Batch, Embeddings, Encoded, MultimodalRecommender, StepLoss
from mmrec_mrdib.plugins.settings import PluginSettings as PluginSettings


class Plugin(MultimodalRecommender):
    """Wraps `config["backbone"]`; subclasses say what they add.

    Attributes:
        backbone: the wrapped model.
        multimodal: whether it keeps the contract of `models/base.py`; otherwise it is one of RecBole's general recommenders.
        featured: whether it reads features; otherwise the plug-in has those of the data set to itself.
        frozen: whether the backbone is trained already and only the plug-in's own parameters learn (`training: staged`).
        whole: whether its steps need all users and items of the backbone, whatever is in the batch.
    """

    settings_class: ClassVar[type[PluginSettings]] = PluginSettings
    settings: Any
    z_in_score = "yes"

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = self.settings_class.from_config(config)
        # First, so that a seed gives the backbone the parameters it has without the plug-in.
        self.backbone: Any = general.build(config, dataset, self.settings.backbone)
        self.multimodal = isinstance(self.backbone, MultimodalRecommender)
        self.featured = self.multimodal and bool(self.backbone.modalities)
        if self.featured:
            for m in self.modalities:  # the backbone holds them
                delattr(self, f"features_{m}")
        joint = self.settings.training == "joint"
        if joint and self.multimodal:
            self.input_type = self.backbone.input_type  # the batches are what the backbone is trained on, see `Config`
        elif joint and (general.fitted_in_one_pass(self.backbone) or self.backbone.input_type != InputType.PAIRWISE):
            ways = get_args(self.settings_class.model_fields["training"].annotation)
            otherwise = (
                "; choose --training=staged" if "staged" in ways else f", as {type(self).__name__} needs it to be"
            )
            raise ConfigError(f"--training=joint: {self.settings.backbone} is not trained on pairs of items{otherwise}")
        self.frozen = self.whole = False
        self._factors: Embeddings | Literal[False] | None = False  # not looked for yet
        self._tables: Callable[[], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def is_staged(cls, config: Any) -> bool:
        """Whether a backbone is to be trained before this plug-in is."""
        return cls.settings_class.from_config(config).training == "staged"

    def freeze_backbone(self) -> None:
        """The backbone is trained: from now on it only ranks."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def host_parts(self, interaction: Any) -> dict[str, Tensor]:
        """Named losses of a backbone that does not keep the contract."""
        losses = self.backbone.calculate_loss(interaction)
        losses = losses if isinstance(losses, tuple) else (losses,)
        return {f"loss_{n}" if len(losses) > 1 else "loss": loss.squeeze() for n, loss in enumerate(losses, 1)}

    def host_step(self, interaction: Any, batch: Batch) -> tuple[dict[str, Tensor], Encoded, Embeddings]:
        """The backbone's named losses and what they are made of; of a backbone that does not keep the contract, an empty `Encoded` and all
        users and items, once `find_tables` has found them."""
        if self.multimodal:
            enc, emb = self.forward_batch(batch)
            return dict(self.backbone.loss_parts(enc, emb, batch)), enc, emb
        assert self._tables is not None
        return self.host_parts(interaction), Encoded({}, {}), Embeddings(*self._tables())

    def find_tables(self) -> None:
        """For plug-ins that add losses of users and items.

        Raises:
            ConfigError: the backbone's scores are no inner products of users and items that a training step has.
        """
        if self.multimodal:
            found = type(self.backbone).score is MultimodalRecommender.score
        else:
            self.backbone.eval()
            self._tables = general.live_tables(self.backbone, self.USER_ID)
            self.backbone.train()
            found = self._tables is not None
        if not found:
            name = self.settings.backbone
            raise ConfigError(
                f"{name}+{type(self).__name__}: needs users and items whose inner products are the scores, and {name}'s steps have none"
            )

    def step_loss(self, interaction: Any) -> StepLoss:
        """Named losses of a batch: the backbone's own."""
        return super().step_loss(interaction) if self.multimodal else StepLoss(self.host_parts(interaction))

    def host_scores(self, users: Tensor) -> Tensor:
        """(B, I) the backbone's own scores of all items."""
        return score_all(self.backbone, users, self.USER_ID, self.n_items)

    def host_embeddings(self) -> Embeddings | None:
        """What the backbone's scores are inner products of, or None where they are not, or are not known to be."""
        if self.multimodal:
            usual = type(self.backbone).score is MultimodalRecommender.score
            return self.backbone.evaluation_embeddings() if usual else None
        if self._factors is False or self.training:
            found = general.inner_products(self.backbone, self.USER_ID)
            self._factors = None if found is None else Embeddings(*found)
        return self._factors

    def calculate_loss(self, interaction: Any) -> Tensor:
        """As of any model; RecBole's own Trainer knows no stages.

        Raises:
            ConfigError: `training: staged`, and the backbone is not trained yet.
        """
        if self.settings.training == "staged" and not self.frozen:
            raise ConfigError(
                f"--training=staged: {self.settings.backbone} is to be trained first, as mmrec_mrdib.train does; choose --training=joint"
            )
        return super().calculate_loss(interaction)

    # Everything else is the backbone's.

    def train(self, mode: bool = True) -> Plugin:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def drop_evaluation_cache(self) -> None:
        super().drop_evaluation_cache()
        self._factors = False

    def propagate(self, enc: Encoded) -> Embeddings:
        emb: Embeddings = self.backbone.propagate(enc)
        return emb

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = self.backbone.loss_parts(enc, emb, batch)
        return parts

    def encode_items(self, items: Tensor | None = None) -> Encoded:
        enc: Encoded = self.backbone.encode_items(items)
        return enc

    def features(self, modality: str) -> Tensor:
        x: Tensor = self.backbone.features(modality) if self.featured else super().features(modality)
        return x

    def new_scorer(self, features: Mapping[str, Tensor], items: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        if not self.featured:
            raise ConfigError(f"{self.settings.backbone} knows no features, so it has no score for a new item")
        scorer: Callable[[Tensor], Tensor] = self.backbone.new_scorer(features, items)
        return scorer

    def items_to_encode(self, batch: Batch) -> Tensor | None:
        items: Tensor | None = None if self.whole else self.backbone.items_to_encode(batch)
        return items

    def users_to_read(self, batch: Batch) -> Tensor | None:
        users: Tensor | None = None if self.whole else self.backbone.users_to_read(batch)
        return users

    def row_tables(self) -> list[nn.Parameter]:
        return [] if self.frozen or self.whole or not self.multimodal else self.backbone.row_tables()

    def before_epoch(self, epoch: int) -> None:
        if not self.frozen and hasattr(self.backbone, "before_epoch"):
            self.backbone.before_epoch(epoch)

    def predict(self, interaction: Any) -> Tensor:
        scores: Tensor = self.backbone.predict(interaction)
        return scores

    def full_sort_predict(self, interaction: Any) -> Tensor:
        return self.host_scores(interaction[self.USER_ID])

    def evaluation_embeddings(self) -> Embeddings:
        emb = self.host_embeddings()
        if emb is None:
            raise ConfigError(
                f"{self.settings.backbone}: its scores are no inner products of one vector a user and one an item"
            )
        return emb


@contextlib.contextmanager
def apart(config: Any) -> Iterator[None]:
    """Within the block random numbers begin at the configuration's seed; after it they go on as if nothing had been drawn. What a plug-in
    draws at its construction thus changes nothing of what its backbone draws while training."""
    device = torch.device(config["device"])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config["seed"])
        yield
