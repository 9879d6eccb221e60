"""RecBole's Trainer with named losses, full ranking in blocks, exact resumption and plain checkpoints.

`fit` is RecBole's own; this class fills its seams.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_
from tqdm import tqdm

from mmrec_mrdib import compat, general
from mmrec_mrdib.distributed import ALONE, Ranks
from mmrec_mrdib.errors import CheckpointError, NonFiniteLossError, listed
from mmrec_mrdib.evaluation import PER_USER, NewItems, Ranking, RankingSplit, rank, rank_ladder, scores_in_memory
from mmrec_mrdib.optim import RowAdam
from mmrec_mrdib.schema import TrainingSettings
from mmrec_mrdib.steps import Losses, Step

compat.activate()

from recbole.trainer import Trainer

logger = logging.getLogger(__name__)
CHECKPOINT_VERSION = 2
ROWS_PAY = 32  # rows of a table for each pair of a batch, from which on it is updated by rows (docs/performance.md)
HEAD_START = 4  # times stopping_step: evaluations in which a run may still rank worse than popularity
_BAR_SECONDS = 0.25  # how often the progress bar reads the losses off the device


class MRdIBTrainer(Trainer):
    """Trains any model that keeps the contract, and RecBole's general recommenders.

    Args:
        config: our Config (or RecBole's with the same keys).
        model: the model.
        folder: the run folder: TensorBoard files and `last.pt` go there.
        ranks: processes that train this model together; the first of them writes.

    Attributes:
        on_evaluation: called with (epoch, valid score) after each evaluation; an exception of it ends the training.
        history: one dict an epoch: 'epoch', 'seconds', 'losses' (mean a batch of each part), 'logs', 'valid', 'eval_seconds'.
        best_epoch: epoch with the best valid metric so far, or -1.
        diverged: what ended the training after its best epoch, or None; set by who called `fit`.
        popularity: valid metrics of ranking by popularity, set before `fit` by who knows them; see `_has_begun`.
    """

    best_valid_score: float  # RecBole's
    stopping_step: int

    def __init__(self, config: Any, model: Any, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder, self.ranks = Path(folder), ranks
        config["checkpoint_dir"] = str(folder)  # RecBole's Trainer makes it, and would make ./saved
        self.one_pass = general.fitted_in_one_pass(model)
        if ranks.several:
            model.summed = ranks.summed
            config["log_wandb"] = config["log_wandb"] and ranks.first
        with compat.tensorboard_in(None if self.one_pass or not ranks.first else self.folder / "tensorboard"):
            super().__init__(config, model)
        self.stopping_step -= 1  # RecBole's fit stops *after* as many evaluations in vain; here they are what stops it
        if self.one_pass:  # judged once
            self.epochs = self.eval_step = 1
        elif getattr(model, "frozen", False):  # only the plug-in's own parameters learn
            stage = model.settings
            self.epochs, self.learning_rate = stage.stage_epochs, stage.stage_learning_rate
            self.stopping_step, self.eval_step = stage.stage_patience - 1, 1
        self.settings = TrainingSettings.from_config(config)
        self.on_evaluation: Callable[[int, float], None] | None = None
        self.history: list[dict[str, Any]] = []
        self.best_epoch = -1
        self.diverged: NonFiniteLossError | None = None
        self.popularity: Mapping[str, float] = {}
        self.show_bar = bool(config["show_progress"]) and sys.stderr.isatty() and ranks.first
        self._best_state: dict[str, Tensor] | None = None
        self._last_written = -math.inf
        self._interrupted: Callable[[], bool] = lambda: False
        self._train_data: Any = None
        self._ks = list(config["topk"])
        names = [m.lower() for m in config["metrics"]]
        self._metrics = [m for m in names if m in PER_USER]
        self._recbole_metrics = {m: self.evaluator.metric_class[m] for m in names if m not in PER_USER}

    # Seams of RecBole's constructor and fit.

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Estimators of mutual information get a group without weight decay: it would loosen their bounds."""
        estimators = self._estimator_parameters()
        apart = {id(p) for p in estimators}
        own = [p for p in self.model.parameters() if id(p) not in apart]
        groups: list[dict[str, Any]] = [{"params": own}]
        if estimators:
            groups.append({"params": estimators, "weight_decay": 0.0})
        optimizer = super()._build_optimizer(params=groups, **kwargs)
        if type(optimizer) is torch.optim.Adam:
            if tables := self._row_tables():
                optimizer = RowAdam(optimizer.param_groups, tables)
            for group in optimizer.param_groups:  # one kernel for all other parameters; the same update
                group["fused"] = True
        return optimizer

    def _row_tables(self) -> list[torch.nn.Parameter]:
        """Tables that are better updated by rows: large ones, unless each step has to do with all rows anyway."""
        least = ROWS_PAY * self.config["train_batch_size"]
        whole = self.config["weight_decay"] or self.config["clip_grad_norm"] or self.config["enable_scaler"]
        get: Callable[[], list[torch.nn.Parameter]] | None = getattr(self.model, "row_tables", None)
        return [] if whole or get is None else [t for t in get() if len(t) > least]

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = False, **kwargs: Any) -> Any:
        """RecBole's fit. Returns the best valid score and the best valid result."""
        self._train_data = train_data
        self._check_ranks()
        if self.cur_step > self.stopping_step or self.start_epoch >= self.epochs:  # resumed at its end
            self.eval_collector.data_collect(train_data)  # what RecBole's metrics need to know of the training
            return self.best_valid_score, self.best_valid_result
        with _between_batches() as self._interrupted:
            return super().fit(train_data, valid_data, verbose=verbose, callback_fn=self._after_epoch, **kwargs)

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float:
        """One epoch. Losses are summed on the device and read once, so that no batch waits for them."""
        if self.one_pass:
            self.history.append(
                {"epoch": 0, "seconds": getattr(self.model, "fit_seconds", 0.0), "losses": {}, "logs": {}}
            )
            return 0.0
        started = time.perf_counter()
        self.model.train()
        if hasattr(self.model, "before_epoch"):
            self.model.before_epoch(epoch_idx)
        decay, period = self.settings.learning_rate_scheduler
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * decay ** (epoch_idx / period)
        meter = _Meter()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        # The first group: estimators of mutual information are not clipped with the model.
        own, *apart = (group["params"] for group in self.optimizer.param_groups)
        clipped = own if self.clip_grad_norm else []
        step: Step = getattr(self.model, "trainer_step", Step)()

        def closure(factor: float = 1.0) -> Losses:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                parts, logs = self._step(batch)
                if self.ranks.several:
                    parts, logs = ({name: value * weight for name, value in x.items()} for x in (parts, logs))
                total = torch.stack(list(parts.values())).sum()
            scaler.scale(total if factor == 1 else factor * total).backward()
            self.ranks.add_up_gradients(self.optimizer)
            return parts, logs

        def advance(clip: bool = True, estimators: bool = True) -> None:
            if not estimators:
                for parameter in (p for group in apart for p in group):
                    parameter.grad = None
            if clipped and clip:
                scaler.unscale_(self.optimizer)
                clip_grad_norm_(clipped, **self.clip_grad_norm)
            scaler.step(self.optimizer)
            scaler.update()

        batches = self.model.batches(train_data) if hasattr(self.model, "batches") else train_data
        bar = tqdm(batches, desc=f"epoch {epoch_idx}", leave=False, disable=not self.show_bar, dynamic_ncols=True)
        shown = started
        for interaction in bar:
            if self._interrupted():
                raise KeyboardInterrupt
            batch, weight = self.ranks.share(interaction.to(self.device))
            meter.add(*step.run(closure, advance))
            if self.show_bar and time.perf_counter() - shown > _BAR_SECONDS:
                shown = time.perf_counter()
                bar.set_postfix({k: f"{v:.4g}" for k, v in meter.means().items()})
        if isinstance(self.optimizer, RowAdam):
            self.optimizer.flush()
        self._check_ranks()
        meter.add_up(self.ranks)
        meter.check(epoch_idx)
        self._check_parameters(epoch_idx)
        means = meter.means()
        losses = {k: means[k] for k in meter.parts}
        record = {
            "epoch": epoch_idx,
            "seconds": time.perf_counter() - started,
            "losses": losses,
            "logs": {k: means[k] for k in means if k not in meter.parts},
        }
        self.history.append(record)
        return sum(losses.values())

    def _valid_epoch(self, valid_data: RankingSplit, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        result = self.ranks.of_first(self._judge(valid_data).means)
        self.history[-1] |= {"valid": result, "eval_seconds": time.perf_counter() - started}
        score = result[self.valid_metric]
        if score == self.best_valid_score:
            # RecBole takes a tie for an improvement and would go on forever on a plateau. Only better counts.
            score = math.nextafter(score, -math.inf if self.valid_metric_bigger else math.inf)
        if not self._has_begun():
            self.cur_step = -1  # RecBole adds 1 where this evaluation is no improvement
        return score, result

    def _has_begun(self) -> bool:
        """Whether evaluations without improvement count. Early stopping must not end a run that has learned nothing yet: until its best
        ranking is better than popularity's none counts, for HEAD_START x stopping_step evaluations at most."""
        if self.best_valid_score > self.popularity.get(self.valid_metric, -math.inf):
            return True
        return sum("valid" in e for e in self.history) > HEAD_START * (self.stopping_step + 1)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Called by fit at each improvement: keep the weights in memory; `write_checkpoint` puts them on disk."""
        self.best_epoch = epoch
        self._best_state = {k: v.detach().to("cpu", copy=True) for k, v in self.model.state_dict().items()}

    def _add_train_loss_to_tensorboard(self, epoch_idx: int, losses: Any, tag: str = "Loss/Train") -> None:
        record = self.history[-1]
        for name, value in record["losses"].items():
            self.tensorboard.add_scalar(f"loss/{name}", value, epoch_idx)
        for name, value in record["logs"].items():
            self.tensorboard.add_scalar(name, value, epoch_idx)

    def _add_hparam_to_tensorboard(self, best_valid_result: Any) -> None:
        """The run folder's result.json has all parameters; TensorBoard would make a second run of them."""

    def _after_epoch(self, epoch: int, valid_score: float) -> None:
        record = self.history[-1]
        for name, value in record["valid"].items():
            self.tensorboard.add_scalar(f"valid/{name}", value, epoch)
        if self.one_pass:
            logger.info("fitted in one pass  %.2fs + %.2fs  valid %s %.4f", record["seconds"], record["eval_seconds"],
                        self.valid_metric, record["valid"][self.valid_metric])  # fmt: skip
        else:
            self._log_epoch(epoch, record)
            if time.monotonic() - self._last_written >= self.settings.checkpoint_interval:
                self.write_checkpoint(self.folder / "last.pt")
        if self.on_evaluation is not None:
            self.on_evaluation(epoch, valid_score)

    def _log_epoch(self, epoch: int, record: dict[str, Any]) -> None:
        losses = "  ".join(f"{k} {v:.4f}" for k, v in (record["losses"] | record["logs"]).items())
        logger.info(
            "epoch %3d  %.2fs + %.2fs  %s  valid %s %.4f%s", epoch, record["seconds"], record["eval_seconds"], losses,
            self.valid_metric, record["valid"][self.valid_metric], " *" if epoch == self.best_epoch else "",
        )  # fmt: skip

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: Any = None,
        show_progress: bool = False,
    ) -> dict[str, float]:
        """Mean metrics of a split, with the best weights of this training unless told otherwise."""
        if load_best_model:
            self.load_best() if model_file is None else self._load_weights(model_file)
        return self.rank(eval_data).means

    # Ours.

    def rank(self, split: RankingSplit) -> Ranking:
        """Full ranking of a split with the current weights."""
        self.model.eval()
        data = self.eval_collector.get_data_struct() if self._recbole_metrics else None
        return rank(
            self.model,
            split,
            self._metrics,
            self._ks,
            self.config["USER_ID_FIELD"],
            self._recbole_metrics,
            data,
            self.ranks,
        )

    def rank_new_items(self, users: Tensor, items: Tensor) -> Ranking:
        """Full ranking among held-out items only, with the current weights; (users, items) are their interactions."""
        self.model.eval()
        ids = torch.unique(items)
        in_memory = scores_in_memory(self.config["eval_batch_size"], self.device)
        size = (self.model.n_users, self.model.n_items, in_memory)
        split = RankingSplit("cold", users, items, [], *size)
        return rank(NewItems(self.model, ids), split, self._metrics, self._ks, self.config["USER_ID_FIELD"])

    def _judge(self, split: RankingSplit) -> Ranking:
        """The ranking of the validation split; a model with a readout takes its weight here, from the best rung of its ladder."""
        if getattr(self.model, "rungs", None) is None or not self.model.rungs():
            return self.rank(split)
        self.model.eval()
        user_field = self.config["USER_ID_FIELD"]
        ranking = rank_ladder(
            self.model, split, self._metrics, self._ks, user_field, self.valid_metric, self.valid_metric_bigger
        )
        return self.rank(split) if self._recbole_metrics else ranking

    def load_best(self) -> None:
        """Put the weights of the best epoch into the model."""
        if self._best_state is not None:
            self.model.load_state_dict(self._best_state)
            compat.drop_restored(self.model)

    def write_checkpoint(self, path: Path) -> None:
        """All that is needed to go on as if never interrupted: tensors and plain values only."""
        if not self.ranks.first:
            return
        from mmrec_mrdib.experiment.record import save_checkpoint

        generator = getattr(self._train_data, "generator", None)
        state = {
            "version": CHECKPOINT_VERSION,
            "device": self.device.type,
            "epoch": self.history[-1]["epoch"],
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": compat.plain(self.best_valid_result),
            "best_epoch": self.best_epoch,
            "best_state": self._best_state,
            "history": compat.plain(self.history),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model_state": general.training_state(self.model),
            "torch_rng": torch.get_rng_state(),
            "other_rng": compat.other_generators(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "batch_rng": generator.get_state() if generator is not None else None,
        }
        save_checkpoint(path, state)
        self._last_written = time.monotonic()

    def resume_checkpoint(self, resume_file: Any, train_data: Any = None) -> None:
        """Go on from `write_checkpoint`'s file; with `train_data`, its random stream goes on too."""
        from mmrec_mrdib.experiment.record import load_checkpoint

        state = load_checkpoint(Path(resume_file))
        if state.get("version") != CHECKPOINT_VERSION or "optimizer" not in state:
            raise CheckpointError(f"{resume_file}: not a checkpoint to resume from; delete it and start anew")
        try:
            self.model.load_state_dict(state["state_dict"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{resume_file}: belongs to another model ({str(error).splitlines()[0]})") from error
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"]
        self.best_epoch = state["best_epoch"]
        self._best_state = state["best_state"]
        self.history = state["history"]
        trained_on = state.get("device") or ("cpu" if state["cuda_rng"] is None else "cuda")
        moved = self.device.type != trained_on
        general.restore_training_state(self.model, state["model_state"], self.start_epoch if moved else None)
        compat.restore_other_generators(state["other_rng"])
        torch.set_rng_state(state["torch_rng"].cpu())
        if moved:
            logger.warning(
                "%s: trained on %s, goes on on %s: weights, moments of the optimiser and history are the same; random numbers are drawn on the "
                "device, and cannot go on there: batches, negatives and noise from epoch %d on are others than without the move, and "
                "so is the result, as with another seed",
                resume_file, trained_on, self.device.type, self.start_epoch,
            )  # fmt: skip
        elif state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        if state["batch_rng"] is not None and train_data is not None:
            if moved:
                train_data.generator.manual_seed(int(self.config["seed"]) << 32 | self.start_epoch)
            else:
                train_data.generator.set_state(state["batch_rng"].cpu())

    def _load_weights(self, path: Any) -> None:
        from mmrec_mrdib.experiment.record import load_checkpoint

        self.model.load_state_dict(load_checkpoint(Path(path))["state_dict"])
        compat.drop_restored(self.model)

    def _check_ranks(self) -> None:
        """Several processes: that they are where they should be, the same; and the last bits of the first for all (`Ranks.align`)."""
        if not self.ranks.several:
            return
        streams = [torch.get_rng_state(), self._train_data.generator.get_state().cpu()]
        if self.device.type == "cuda":
            streams.append(torch.cuda.get_rng_state(self.device))
        self.ranks.check_same("random streams", self.start_epoch, self.cur_step, len(self.history), *streams)
        moments = (
            (f"{k} of the optimiser", x)
            for state in self.optimizer.state.values()
            for k, x in state.items()
            if isinstance(x, Tensor)
        )
        self.ranks.align((*self.model.state_dict().items(), *moments))

    def _step(self, interaction: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Named losses and logs of a batch; RecBole's models return one loss or a tuple."""
        if hasattr(self.model, "step_loss"):
            step = self.model.step_loss(interaction)
            return step.parts, step.logs
        losses = self.model.calculate_loss(interaction)
        if isinstance(losses, tuple):
            return {f"loss_{n}": loss.squeeze() for n, loss in enumerate(losses, 1)}, {}
        return {"loss": losses.squeeze()}, {}

    def _check_parameters(self, epoch: int) -> None:
        """The last step of an epoch may be the one that diverges: its loss was finite, and what it left would be ranked."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            return
        finite = torch.stack([torch.isfinite(p.detach()).all() for _, p in named]).tolist()
        broken = [name for (name, _), good in zip(named, finite, strict=True) if not good]
        if broken:
            raise NonFiniteLossError(
                f"{listed(broken, 3)} became NaN or infinite in the last batches of epoch {epoch}; lower --learning_rate, or "
                "check the scale of the features (--feature_norm=standard)"
            )

    def _estimator_parameters(self) -> list[torch.nn.Parameter]:
        get: Callable[[], list[torch.nn.Parameter]] | None = getattr(self.model, "mi_parameters", None)
        return get() if get is not None else []


@contextlib.contextmanager
def _between_batches() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only takes effect where the yielded function is asked; a second Ctrl-C does so at once.

    An exception in the middle of a library's lock leaves that lock taken: TensorBoard's writer would never close.
    """
    asked = False

    def remember(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # not ours to change
        yield lambda: False
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:  # after the last batch
        raise KeyboardInterrupt


class _Meter:
    """Sums of named scalars, kept on the device, and how many batches each stayed finite from the start."""

    def __init__(self) -> None:
        self.parts: tuple[str, ...] = ()
        self.names: list[str] = []
        self.batches = 0

    def add(self, first: Losses, *later: Losses) -> None:
        """Of a batch: what its first pass lost counts; a later pass need only be finite."""
        parts, logs = first
        values = torch.stack([v.detach() for v in (*parts.values(), *logs.values())])
        if not self.batches:
            self.parts, self.names = tuple(parts), [*parts, *logs]
            self.sums = torch.zeros_like(values)
            self.finite = torch.zeros_like(values)
        self.sums += values
        good = torch.isfinite(values)
        for again, _ in later:
            good[: len(again)] &= torch.isfinite(torch.stack([v.detach() for v in again.values()]))
        self.finite += good & (self.finite == self.batches)
        self.batches += 1

    def add_up(self, ranks: Ranks) -> None:
        """Of the shares that several processes had of each batch."""
        if self.batches:
            ranks.total(self.sums)
            ranks.total(self.finite, "MIN")

    def means(self) -> dict[str, float]:
        return dict(zip(self.names, (self.sums / self.batches).tolist(), strict=True)) if self.batches else {}

    def check(self, epoch: int) -> None:
        if not self.batches or bool((self.finite == self.batches).all()):
            return
        first = int(self.finite.min())
        terms = [n for n, count in zip(self.names, self.finite.tolist(), strict=True) if count == first]
        raise NonFiniteLossError(
            f"loss term {', '.join(terms)} became NaN or infinite in epoch {epoch}, batch {first}; "
            "lower --learning_rate or the term's weight, or check the scale of the features (--feature_norm=standard)"
        )
