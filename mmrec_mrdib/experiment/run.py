"""One run: data, model, training, one reading of the test split, and the record of it all."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrec_mrdib import registry
from mmrec_mrdib.config import Config
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.data.sampling import TrainBatches
from mmrec_mrdib.errors import CheckpointError, ConfigError
from mmrec_mrdib.evaluation import RankingSplit
from mmrec_mrdib.experiment import record
from mmrec_mrdib.paths import write_atomically
from mmrec_mrdib.schema import EvaluationSettings, TrainingSettings
from mmrec_mrdib.trainer import MRdIBTrainer

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was interrupted; says which epochs are safe."""


@dataclass(frozen=True)
class Splits:
    """A data set, ready to train and evaluate on."""

    dataset: MultimodalDataset
    parts: list[MultimodalDataset]
    train: Any
    valid: RankingSplit
    test: RankingSplit


def make_config(
    model: str,
    dataset: str,
    seed: int | None = None,
    config_files: Sequence[str | Path] = (),
    values: Mapping[str, Any] | None = None,
) -> Config:
    """The Config of 'VBPR' (plain), 'VBPR+MRdIB' or one of RecBole's general recommenders."""
    base, plugged = registry.split_variant(model)
    registry.model_class(base)  # an unknown name is told before anything else
    if plugged and not registry.is_multimodal(base):
        raise ConfigError(
            f"--model={model}: {registry.PLUGIN} wraps a multimodal model, one of {', '.join(registry.MODELS)}; "
            f"run {base} as a plain baseline with --baseline"
        )
    overrides = dict(values or {})
    if seed is not None:
        overrides["seed"] = seed
    name = registry.PLUGIN if plugged else base
    return Config(name, dataset, config_files, {"backbone": base} if plugged else None, overrides)


def display_name(config: Any) -> str:
    """'VBPR+MRdIB' or 'VBPR'."""
    return f"{config['backbone']}+{registry.PLUGIN}" if config["model"] == registry.PLUGIN else config["model"]


def prepare(config: Config, dataset: MultimodalDataset | None = None) -> Splits:
    """Splits of the data set, training batches and evaluation blocks, on the device of the run."""
    from recbole.data import create_samplers
    from recbole.data.utils import get_dataloader
    from recbole.utils import InputType

    dataset = dataset or MultimodalDataset(config)
    parts = dataset.build()
    device, seed = config["device"], config["seed"]
    negatives = config["train_neg_sample_args"]
    simple = {"distribution": "uniform", "sample_num": 1, "dynamic": False}
    if config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and all(negatives[k] == v for k, v in simple.items()):
        train: Any = TrainBatches(parts[0], config["train_batch_size"], seed, device, config["shuffle"])
    else:  # other ways of sampling are RecBole's
        sampler = create_samplers(config, dataset, parts)[0]
        train = get_dataloader(config, "train")(config, parts[0], sampler, shuffle=config["shuffle"])

    def pairs(part: MultimodalDataset) -> tuple[torch.Tensor, torch.Tensor]:
        return part.inter_feat[part.uid_field].to(device), part.inter_feat[part.iid_field].to(device)

    history = EvaluationSettings.from_config(config).eval_mask == "history"
    train_pairs, valid_pairs, test_pairs = (pairs(p) for p in parts)
    size = (dataset.user_num, dataset.item_num, config["eval_batch_size"])
    valid = RankingSplit("valid", *valid_pairs, [train_pairs], *size)
    test = RankingSplit("test", *test_pairs, [train_pairs, valid_pairs] if history else [train_pairs], *size)
    return Splits(dataset, parts, train, valid, test)


def train(
    model: str,
    dataset: str,
    seed: int | None = None,
    config_files: Sequence[str | Path] = (),
    values: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
) -> dict[str, Any]:
    """Train, select on valid, read test once, and record.

    Args:
        model: 'VBPR', 'VBPR+MRdIB', or a general recommender of RecBole such as 'BPR'.
        dataset: name of a data set.
        seed: overrides the seed of the configuration.
        config_files, values: parameters, see `Config`.
        runs: folder of the run folders.
        resume: go on from an interrupted run of the same configuration, or return its result when it is complete.

    Returns:
        The content of result.json, with the run folder under 'folder'.

    Raises:
        MRdIBError: something the caller can mend.
        Interrupted: Ctrl-C; the message says how much is saved.
    """
    return run(make_config(model, dataset, seed, config_files, values), Path(runs), resume)


def run(config: Config, runs: Path, resume: bool = False) -> dict[str, Any]:
    """`train` with a ready Config."""
    started = time.perf_counter()
    record.reset_peak_memory()
    splits = _seeded_splits(config)
    name, seed = display_name(config), config["seed"]
    fingerprint = splits.dataset.fingerprint(splits.parts)
    folder = record.run_folder(runs, name, config["dataset"], seed, record.run_hash(config, fingerprint))
    if resume and (folder / "result.json").is_file():
        logger.info("%s: complete already, its result is used", folder)
        return record.load_result(folder) | {"folder": str(folder)}
    model = _seeded_model(config, splits)  # before anything is written: a model may refuse the data
    if splits.dataset.cold is not None:
        _check_new_items(model)
    if not resume:
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config["checkpoint_dir"] = str(folder)
    with _log_file(folder / "log.txt"):
        logger.info("%s on %s, seed %d -> %s", name, config["dataset"], seed, folder)
        logger.info(
            "%d users, %d items, %d train, %d valid, %d test interactions; device %s, %d threads",
            splits.dataset.user_num - 1, splits.dataset.item_num - 1, *(len(p) for p in splits.parts),
            config["device"], torch.get_num_threads(),
        )  # fmt: skip
        trainer = MRdIBTrainer(config, model, folder)
        if resume:
            _resume(trainer, folder / "last.pt", splits.train)
        try:
            trainer.fit(splits.train, splits.valid)
        except KeyboardInterrupt as error:
            raise Interrupted(_saved(folder)) from error
        finally:
            trainer.tensorboard.close()
        result = _finish(config, splits, trainer, folder, fingerprint, started)
    return result | {"folder": str(folder)}


def best_on_valid(
    config: Config, folder: Path, on_evaluation: Callable[[int, float], None] | None = None
) -> MRdIBTrainer:
    """Train as `run` does and stop there: the test split is not read, nothing is recorded. For tuning.

    Args:
        folder: for the trainer's scratch files.
        on_evaluation: see `MRdIBTrainer`.
    """
    splits = _seeded_splits(config)
    model = _seeded_model(config, splits)
    config["checkpoint_dir"] = str(folder)
    trainer = MRdIBTrainer(config, model, folder)
    trainer.on_evaluation = on_evaluation
    try:
        trainer.fit(splits.train, splits.valid)
    finally:
        trainer.tensorboard.close()
    return trainer


def _seeded_splits(config: Config) -> Splits:
    from recbole.utils import init_seed

    if threads := TrainingSettings.from_config(config).threads:
        torch.set_num_threads(threads)
    init_seed(config["seed"], config["reproducibility"])
    return prepare(config)


def _seeded_model(config: Config, splits: Splits) -> Any:
    """A model as the seed initialises it, whatever loading the data has drawn."""
    from recbole.utils import init_seed

    init_seed(config["seed"], config["reproducibility"])
    return registry.model_class(config["model"])(config, splits.parts[0]).to(config["device"])


def _finish(
    config: Config, splits: Splits, trainer: MRdIBTrainer, folder: Path, fingerprint: str, started: float
) -> dict[str, Any]:
    trainer.load_best()
    test_started = time.perf_counter()
    ranking = trainer.rank(splits.test)
    test_seconds = time.perf_counter() - test_started
    epochs = trainer.history
    name = display_name(config)
    best = next(e for e in epochs if e["epoch"] == trainer.best_epoch)
    result = {
        "version": record.RESULT_VERSION,
        "model": name,
        "backbone": config["backbone"] or config["model"],
        "plugin": registry.PLUGIN if config["model"] == registry.PLUGIN else None,
        "dataset": config["dataset"],
        "modalities": list(splits.dataset.features),
        "seed": config["seed"],
        "best_epoch": trainer.best_epoch,
        "valid": best["valid"],
        "test": ranking.means,
        "eval_mask": config["eval_mask"],
        "seconds_per_epoch": statistics.median(e["seconds"] for e in epochs),
        "eval_seconds": test_seconds,
        "total_seconds": time.perf_counter() - started,
        "peak_memory_mb": record.peak_memory_mb(),
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "data": {
            "fingerprint": fingerprint,
            "users": splits.dataset.user_num - 1,
            "items": splits.dataset.item_num - 1,
            "interactions": [len(p) for p in splits.parts],
            "notes": splits.dataset.notes,
        },
        "versions": record.versions(),
        "config": record.config_values(config),
        "epochs": epochs,
    }
    if splits.dataset.cold is not None:
        users, items = (ids.to(config["device"]) for ids in splits.dataset.cold)
        cold = trainer.rank_new_items(users, items)
        result["cold"] = {"users": len(cold.users), "items": len(torch.unique(items)), **cold.means}
    tokens = splits.dataset.id2token(splits.dataset.uid_field, ranking.users)
    record.write_per_user(folder / "per_user.npz", tokens, ranking.per_user)
    best_state = {"model": name, "seed": config["seed"], "best_epoch": trainer.best_epoch}
    record.save_checkpoint(
        folder / "best.pt",
        best_state | {"config": record.config_values(config), "state_dict": trainer.model.state_dict()},
    )
    if importlib.util.find_spec("matplotlib") is not None:
        from mmrec_mrdib.experiment import figures

        title = f"{name} on {config['dataset']}, seed {config['seed']}"
        picture = figures.curves(title, epochs, trainer.best_epoch, trainer.valid_metric)
        write_atomically(folder / "curves.png", picture)
    else:
        logger.info("no curves.png: matplotlib is not installed (pip install 'mmrec-mrdib[plot]')")
    metrics = "  ".join(f"{k} {v:.4f}" for k, v in ranking.means.items())
    logger.info("best epoch %d; test: %s", trainer.best_epoch, metrics)
    record.write_json(folder / "result.json", result)  # last: its presence says that the run is complete
    (folder / "last.pt").unlink(missing_ok=True)
    return result


def _check_new_items(model: Any) -> None:
    """Before training: whether the model can rank items it was not trained on."""
    if not getattr(model, "modalities", ()):
        raise ConfigError(f"--cold_items: {type(model).__name__} knows no features, so it has no score for a new item")
    model.eval()
    with torch.no_grad():
        model.new_items(model.encode_items())
    model.train()


def _clear(folder: Path) -> None:
    """Remove what an earlier run of the same name wrote, the result first: it vouches for the rest."""
    for name in ("result.json", "last.pt", "best.pt", "per_user.npz", "curves.png", "log.txt"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _resume(trainer: MRdIBTrainer, checkpoint: Path, train_data: Any) -> None:
    if not checkpoint.is_file():
        logger.info("nothing to resume in %s: starting anew", checkpoint.parent)
        return
    if not hasattr(train_data, "sampler"):
        raise CheckpointError(f"{checkpoint}: this model's batches come from RecBole's loader and cannot be resumed")
    trainer.resume_checkpoint(checkpoint, train_data)
    logger.info("resumed after epoch %d", trainer.start_epoch - 1)


def _saved(folder: Path) -> str:
    checkpoint = folder / "last.pt"
    if not checkpoint.is_file():
        return "interrupted before the first epoch was saved; the same command starts anew"
    epoch = record.load_checkpoint(checkpoint)["epoch"]
    return f"interrupted; epochs 0 to {epoch} are saved in {checkpoint}"


class _log_file:
    """Everything logged within the block goes to the file as well."""

    def __init__(self, path: Path) -> None:
        self.handler = logging.FileHandler(path, encoding="utf-8")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def __enter__(self) -> None:
        root = logging.getLogger()
        self.level = logging.getLogger("mmrec_mrdib").level
        root.addHandler(self.handler)
        if logging.getLogger("mmrec_mrdib").getEffectiveLevel() > logging.INFO:
            logging.getLogger("mmrec_mrdib").setLevel(logging.INFO)

    def __exit__(self, *exc: object) -> None:
        logging.getLogger().removeHandler(self.handler)
        logging.getLogger("mmrec_mrdib").setLevel(self.level)
        self.handler.close()
