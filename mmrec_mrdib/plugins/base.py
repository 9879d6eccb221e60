"""The wrapper: a RecBole model class around any backbone, or around a general recommender without features.

A plug-in may replace the backbone's encoding stage, add losses to its step, step otherwise, and add columns to what scores are made of. What
it does not touch is the backbone's: with nothing added, loss, gradients and ranking are the backbone's own, bit for bit, whatever the plug-in
draws at random. A plug-in may be around another one, MGCN+L2+MG: losses add up, and two that want the same seam are refused.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from recbole.utils import InputType
from torch import Tensor, nn

from mmrec_mrdib import general
from mmrec_mrdib.errors import ConfigError, ContractError
from mmrec_mrdib.evaluation import score_all
from mmrec_mrdib.models.base import (
    Batch,
    Deterministic,
    Embeddings,
    Encoded,
    EncodingStage,
    MultimodalRecommender,
    StepLoss,
)
from mmrec_mrdib.plugins.settings import JointSettings as JointSettings
from mmrec_mrdib.plugins.settings import PluginSettings as PluginSettings
from mmrec_mrdib.steps import Step

# What no two plug-ins of one model can do.
SEAMS = {
    "sampling": "replace the encoding stage",
    "readout": "add a readout to the scores",
    "step": "change the trainer's step",
}


class Draws:
    """A random stream of a plug-in's own: what it draws moves nothing that the backbone draws."""

    def __init__(self, seed: int, name: str) -> None:
        self.seed = seed << 32 | zlib.crc32(name.encode())
        self._generator: torch.Generator | None = None

    def on(self, device: torch.device) -> torch.Generator:
        """The stream, which is drawn from on one device."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    @property
    def begun(self) -> bool:
        """Whether anything was drawn."""
        return self._generator is not None

    @property
    def state(self) -> Tensor:
        """Where the stream is, for a checkpoint."""
        assert self._generator is not None
        return self._generator.get_state()

    def resume(self, state: Tensor | int, device: torch.device) -> None:
        """Go on from `state`, or with a new stream for each number."""
        if isinstance(state, int):
            self.on(device).manual_seed(self.seed ^ (state + 1) << 48)
        else:
            self.on(device).set_state(state.cpu())


class Plugin(MultimodalRecommender):
    """Wraps `config["backbone"]`; subclasses say what they add.

    Attributes:
        backbone: the wrapped model: a plain one, or one with plug-ins of its own.
        multimodal: whether the plain model inside keeps the contract of `models/base.py`; otherwise it is one of RecBole's general
            recommenders.
        featured: whether it reads features; otherwise the plug-in has those of the data set to itself.
        frozen: whether the backbone is trained already and only the plug-in's own parameters learn (`training: staged`).
        whole: whether its steps need all users and items of the backbone, whatever is in the batch.
        draws: where the plug-in's random numbers come from.
        drawn: state of PyTorch's generator when the backbone was made, whatever the plug-in has drawn for its parameters since.
    """

    settings_class: ClassVar[type[JointSettings]] = PluginSettings
    settings: Any
    z_in_score = "yes"
    any_batches: ClassVar[bool] = False
    """Whether it adds no losses, and so can be trained together with whatever learns in steps, from whatever batches."""
    without_features: ClassVar[str] = "leave it out, or choose a model that has"
    """What to do with a backbone that has no features, where `reads_encoders`."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = self.settings_class.from_config(config)
        self.draws = Draws(int(config["seed"]), type(self).__name__)
        # First, so that a seed gives the backbone the parameters it has without the plug-in.
        self.backbone: Any = _backbone(config, dataset, self.settings.backbone)
        self.drawn = torch.get_rng_state()
        self.multimodal = isinstance(self.core, MultimodalRecommender)
        self.featured = self.multimodal and bool(self.core.modalities)
        if self.featured:
            for m in self.modalities:  # the backbone holds them
                delattr(self, f"features_{m}")
            self.modalities, self.feature_dims = self.backbone.modalities, self.backbone.feature_dims
        elif self.reads_encoders(config):
            name = type(self).__name__
            raise ConfigError(f"+{name}: {self.settings.backbone} has no features; {self.without_features}")
        self.seams = self.claims(config)
        self._check_neighbours(config)
        if not self.is_staged(config):
            one_pass = general.fitted_in_one_pass(self.core)
            if not (self.multimodal or self.any_batches) and (
                one_pass or self.backbone.input_type != InputType.PAIRWISE
            ):
                if hasattr(self.settings, "training"):
                    otherwise = "; choose --training=staged"
                else:
                    otherwise = f", as {type(self).__name__} needs it to be"
                raise ConfigError(
                    f"--training=joint: {self.settings.backbone} is not trained on pairs of items{otherwise}"
                )
            if one_pass:
                raise ConfigError(
                    f"{self.settings.backbone} is fitted in one pass, without steps: +{type(self).__name__} has no effect"
                )
            self.input_type = self.backbone.input_type  # the batches are what the backbone is trained on, see `Config`
        self.frozen = self.whole = False
        self._factors: Embeddings | Literal[False] | None = False  # not looked for yet
        self._tables: Callable[[], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def is_staged(cls, config: Any) -> bool:
        """Whether a backbone is to be trained before this plug-in is."""
        return getattr(cls.settings_class.from_config(config), "training", "joint") == "staged"

    @classmethod
    def claims(cls, config: Any) -> frozenset[str]:
        """Those of `SEAMS` that the plug-in takes."""
        return frozenset()

    @classmethod
    def reads_encoders(cls, config: Any) -> bool:
        """Whether it acts on the backbone's own representations of features, and so needs a backbone that has any."""
        return False

    @classmethod
    def place(cls, config: Any) -> tuple[bool, bool, bool]:
        """Of several plug-ins those of a lower place stand inside: what trains with the backbone, then what makes steps by itself, then what
        reads the backbone."""
        return cls.is_staged(config), "readout" in cls.claims(config), cls._by_itself()

    @classmethod
    def _by_itself(cls) -> bool:
        return cls.step_loss is not Plugin.step_loss or cls.forward_batch is not Plugin.forward_batch

    @property
    def core(self) -> Any:
        """The plain model inside."""
        return self.backbone.core if isinstance(self.backbone, Plugin) else self.backbone

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """This plug-in and those inside, from here inwards."""
        return (self, *(self.backbone.plugins if isinstance(self.backbone, Plugin) else ()))

    def _check_neighbours(self, config: Any) -> None:
        self.placed = self.place(config)
        for other in self.plugins[1:]:
            mine, theirs = (type(p).__name__ for p in (self, other))
            for seam in SEAMS:
                if seam in self.seams & other.seams:
                    raise ConfigError(
                        f"{self.settings.backbone}+{mine}: {theirs} and {mine} both {SEAMS[seam]}; leave one of them out"
                    )
            if self.placed < other.placed:
                raise ConfigError(f"{self.settings.backbone}+{mine}: {theirs} must be named last, as it stands outside")
            if other._by_itself() and not self.placed[0]:
                raise ConfigError(
                    f"{self.settings.backbone}+{mine}: {theirs} makes its steps by itself; leave one of them out"
                )

    def replace_stage(self, stage: EncodingStage) -> None:
        """Make the backbone's representations by another stage."""
        if type(self.core.stage) is not Deterministic:
            raise ContractError(
                f"{type(self).__name__}: the backbone's encoding stage is replaced already; claim 'sampling'"
            )
        self.core.stage = stage

    def freeze_backbone(self) -> None:
        """The backbone is trained: from now on it only ranks."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def host_parts(self, interaction: Any) -> dict[str, Tensor]:
        """Named losses of a backbone that does not keep the contract."""
        losses = self.core.calculate_loss(interaction)
        losses = losses if isinstance(losses, tuple) else (losses,)
        return {f"loss_{n}" if len(losses) > 1 else "loss": loss.squeeze() for n, loss in enumerate(losses, 1)}

    def find_tables(self) -> None:
        """For plug-ins that read users and items: `tables` has them from here on.

        Raises:
            ConfigError: the backbone's scores are no inner products of users and items that a training step has.
        """
        if self.multimodal:
            found = type(self.core).score is MultimodalRecommender.score
        else:
            self.core.eval()
            self._tables = general.live_tables(self.core, self.USER_ID)
            self.core.train()
            found = self._tables is not None
        if not found:
            name = self.settings.backbone
            raise ConfigError(
                f"{name}+{type(self).__name__}: needs users and items whose inner products are the scores, and {name}'s steps have none"
            )

    def tables(self, emb: Embeddings | None) -> Embeddings:
        """Users and items of a step: of the backbone's pass; where it does not keep the contract all of them, as they are now."""
        if emb is not None:
            return emb
        assert self._tables is not None
        return Embeddings(*self._tables())

    def host_scores(self, users: Tensor) -> Tensor:
        """(B, I) the backbone's own scores of all items."""
        return score_all(self.backbone, users, self.USER_ID, self.n_items)

    def host_embeddings(self) -> Embeddings | None:
        """What the backbone's scores are inner products of, or None where they are not, or are not known to be."""
        if isinstance(self.backbone, Plugin):
            return None if self.backbone.host_embeddings() is None else self.backbone.evaluation_embeddings()
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
        if self.placed[0] and not self.frozen:
            raise ConfigError(
                f"--training=staged: {self.settings.backbone} is to be trained first, as mmrec_mrdib.train does; choose --training=joint"
            )
        return super().calculate_loss(interaction)

    # The step.

    def terms(self, enc: Encoded | None, emb: Embeddings | None, batch: Batch, host: Mapping[str, Tensor]) -> StepLoss:
        """What the plug-in adds to a step: named losses, weighted, and logs.

        Args:
            enc, emb: the backbone's pass over the batch; None where it is trained already or does not keep the contract.
            batch: the pairs.
            host: the losses of the backbone, and of plug-ins inside.
        """
        return StepLoss({})

    def losses(self, enc: Encoded, emb: Embeddings, batch: Batch) -> StepLoss:
        """The backbone's losses and the plug-in's, from one pass."""
        if type(self).loss_parts is not Plugin.loss_parts:  # written as a backbone writes it
            return StepLoss(self.loss_parts(enc, emb, batch))
        return self._losses(enc, emb, batch)

    def host_losses(self, enc: Encoded, emb: Embeddings, batch: Batch) -> StepLoss:
        """The losses of the backbone, and of plug-ins inside."""
        if isinstance(self.backbone, Plugin):
            return self.backbone.losses(enc, emb, batch)
        return StepLoss(self.backbone.loss_parts(enc, emb, batch))

    def _losses(self, enc: Encoded, emb: Embeddings, batch: Batch) -> StepLoss:
        host = self.host_losses(enc, emb, batch)
        return self._beside(host, self.terms(enc, emb, batch, host.parts))

    def loss_parts(self, enc: Encoded, emb: Embeddings, batch: Batch) -> dict[str, Tensor]:
        return dict(self._losses(enc, emb, batch).parts)

    def step_loss(self, interaction: Any) -> StepLoss:
        if self.multimodal and not self.frozen:
            batch = self.batch(interaction)
            return self.losses(*self.forward_batch(batch), batch)
        host = StepLoss({}) if self.frozen else self.host_step(interaction)
        if self.any_batches:
            return host
        return self._beside(host, self.terms(None, None, self.batch(interaction), host.parts))

    def host_step(self, interaction: Any) -> StepLoss:
        """The losses of a backbone that does not keep the contract, and of plug-ins inside."""
        if isinstance(self.backbone, Plugin):
            return self.backbone.step_loss(interaction)
        return StepLoss(self.host_parts(interaction))

    def _beside(self, host: StepLoss, own: StepLoss) -> StepLoss:
        if twice := host.parts.keys() & own.parts.keys():
            raise ContractError(f"{type(self).__name__}: a loss '{min(twice)}' is there already; name it otherwise")
        return StepLoss({**host.parts, **own.parts}, {**host.logs, **own.logs})

    def trainer_step(self) -> Step:
        """How the trainer steps on a batch, a new object for each epoch."""
        inside = isinstance(self.backbone, Plugin) and not self.frozen
        return self.backbone.trainer_step() if inside else Step()

    def batches(self, data: Any) -> Any:
        """The batches of an epoch."""
        own = not self.frozen and hasattr(self.backbone, "batches")
        return self.backbone.batches(data) if own else data

    def mi_parameters(self) -> list[nn.Parameter]:
        own = not self.frozen and self.multimodal
        return self.backbone.mi_parameters() if own else []

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

    def batch(self, interaction: Any) -> Batch:
        if self.frozen or not self.multimodal:
            return super().batch(interaction)
        batch: Batch = self.backbone.batch(interaction)
        return batch

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
    """Within the block random numbers begin at the configuration's seed; after it they go on as if nothing had been drawn."""
    device = torch.device(config["device"])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config["seed"])
        yield


def _backbone(config: Any, dataset: Any, name: str) -> Any:
    if "+" not in name:
        return general.build(config, dataset, name)
    if not hasattr(config, "host"):
        raise ConfigError(f"backbone={name}: several plug-ins need the Config of mmrec_mrdib.train, not RecBole's")
    return general.build(config.host(), dataset)
