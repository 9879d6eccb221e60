"""One run: data, model, training, one reading of the test split, and the record of it all."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrec_mrdib import distributed, general, process, registry
from mmrec_mrdib.config import Config, of_variant
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.data.sampling import PositiveBatches, TrainBatches
from mmrec_mrdib.distributed import ALONE, Ranks
from mmrec_mrdib.errors import ConfigError, NonFiniteLossError, OutOfMemoryError
from mmrec_mrdib.evaluation import PER_USER, NewItems, Popularity, Ranking, RankingSplit, rank, scores_in_memory
from mmrec_mrdib.experiment import record
from mmrec_mrdib.paths import write_atomically
from mmrec_mrdib.schema import EvaluationSettings, TrainingSettings
from mmrec_mrdib.trainer import MRdIBTrainer

logger = logging.getLogger(__name__)


def _tells_of_memory(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of a function of a Config: say what to lower where a GPU's memory is not enough."""

    @functools.wraps(function)
    def told(config: Config, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(config, *args, **kwargs)
        except RuntimeError as error:
            if not process.out_of_gpu_memory(error):
                raise
            sizes = " or ".join(f"--{k} (now {config[k]})" for k in ("train_batch_size", "eval_batch_size"))
            raise OutOfMemoryError(
                f"{display_name(config)} on {config['dataset']}: the GPU's memory is not enough; lower {sizes}, or --jobs where "
                f"several share it ({' '.join(str(error).splitlines()[0].split())})"
            ) from error

    return told


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
    """The Config of 'VBPR' (plain), 'VBPR+MRdIB', 'VBPR+MRdIB (paper)', 'VBPR+MRdIB+MG' or one of RecBole's general recommenders.

    Of several plug-ins those that train together with the backbone stand inside, in the order in which they are named, and those that are
    trained after it outside: 'VBPR+MRdIB+MG' is 'VBPR+MG+MRdIB', by whichever name.
    """
    variant = registry.variant(model)
    registry.model_class(variant.root)  # an unknown name is told before anything else
    overrides = dict(values or {})
    if seed is not None:
        overrides["seed"] = seed
    if len(variant.layers) > 1 and "preset" in overrides:
        raise ConfigError(
            f"--preset={overrides['preset']}: of which plug-in? Name it in the model, as in VBPR+MRdIB (paper)+MG"
        )
    config = of_variant(variant, dataset, config_files, overrides)
    if len(variant.layers) > 1:
        places = {c["model"]: c.model_class.place(c) for c in config.layers}
        ordered = sorted(variant.layers, key=lambda v: places[v.plugin])
        name = "".join([variant.root, *(registry.Variant("", v.plugin, v.preset).name for v in ordered)])
        if name != variant.name:
            return of_variant(registry.variant(name), dataset, config_files, overrides)
    return config


def variant_of(config: Any) -> registry.Variant:
    """The parts of the name of a configuration's model."""
    if config["model"] not in registry.PLUGINS:
        return registry.Variant(config["model"])
    return registry.Variant(config["backbone"], config["model"], config["preset"])


def display_name(config: Any) -> str:
    """'VBPR+MRdIB', 'VBPR+MRdIB (paper)' or 'VBPR'."""
    return variant_of(config).name


def prepare(config: Config, dataset: MultimodalDataset | None = None, ranks: Ranks = ALONE) -> Splits:
    """Splits of the data set, training batches and evaluation blocks, on the device of the run, for as many processes."""
    dataset = dataset or MultimodalDataset(config)
    parts = dataset.build()
    device = config["device"]

    def pairs(part: MultimodalDataset) -> tuple[torch.Tensor, torch.Tensor]:
        return part.inter_feat[part.uid_field].to(device), part.inter_feat[part.iid_field].to(device)

    history = EvaluationSettings.from_config(config).eval_mask == "history"
    train_pairs, valid_pairs, test_pairs = (pairs(p) for p in parts)
    scores = ranks.of_first({"": scores_in_memory(config["eval_batch_size"], device)})[""]  # alike on all
    size = (dataset.user_num, dataset.item_num, int(scores))
    masks = [train_pairs, valid_pairs] if history else [train_pairs]
    valid = RankingSplit("valid", *valid_pairs, [train_pairs], *size, ranks=ranks.size)
    test = RankingSplit("test", *test_pairs, masks, *size, ranks=ranks.size)
    return Splits(dataset, parts, _batches(config, dataset, parts), valid, test)


def _batches(config: Config, dataset: MultimodalDataset, parts: Sequence[MultimodalDataset]) -> Any:
    """Training batches of the form that the model asks for."""
    from recbole.data import create_samplers
    from recbole.data.dataloader import TrainDataLoader
    from recbole.utils import InputType, ModelType

    if config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return general.NoBatches(parts[0])
    loader = config.loader
    if loader is not TrainDataLoader:  # of users, for autoencoders: no negatives
        return loader(config, parts[0], None, shuffle=True)
    if config.positives_alone:
        return PositiveBatches(parts[0], *_batch_form(config))
    negatives = config["train_neg_sample_args"]
    simple = {"distribution": "uniform", "sample_num": 1, "dynamic": False}
    forms = {InputType.PAIRWISE: TrainBatches, InputType.POINTWISE: general.LabelledBatches}
    form = forms.get(config["MODEL_INPUT_TYPE"])
    if form is not None and all(negatives[k] == v for k, v in simple.items()):
        return form(parts[0], *_batch_form(config))
    sampler = create_samplers(config, dataset, list(parts))[0]  # other ways of sampling are RecBole's
    return loader(config, parts[0], sampler, shuffle=config["shuffle"])


def _batch_form(config: Config) -> tuple[int, int, torch.device, bool]:
    size = config["stage_batch_size" if is_staged(config) else "train_batch_size"]
    return size, config["seed"], config["device"], config["shuffle"]


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
        The content of result.json, with the run folder under 'folder'. Its 'state' is 'complete', or 'diverged at epoch n' where a loss became
        NaN after a good epoch: then metrics are that epoch's, and 'error' says which loss.

    Raises:
        MRdIBError: something the caller can mend.
        Interrupted: Ctrl-C; the message says how much is saved.
    """
    return run(make_config(model, dataset, seed, config_files, values), Path(runs), resume)


@process.as_found()
@_tells_of_memory
def run(config: Config, runs: Path, resume: bool = False, hosting: bool = False) -> dict[str, Any]:
    """`train` with a ready Config.

    Args:
        hosting: the run is to be the backbone of a variant, which may rank new items where the backbone cannot.
    """
    started = time.perf_counter()
    record.reset_peak_memory()
    ranks = distributed.join(config)
    splits = _seeded_splits(config, ranks)
    fingerprint = splits.dataset.fingerprint(splits.parts)
    folder = record.run_folder(
        runs, display_name(config), config["dataset"], config["seed"], record.run_hash(config, fingerprint)
    )
    ranks.check_same("parameters or data", folder.name)
    if resume and (found := _complete(folder, ranks)):
        return found
    model = seeded_model(config, splits)  # before anything is written: a model may refuse the data
    if splits.dataset.cold is not None and not hosting:
        _check_new_items(model)
    with _alone(folder) if ranks.first else contextlib.nullcontext():
        if resume and (found := _complete(folder, ranks)):  # by whom this one has waited for
            return found
        return _run(config, splits, model, folder, fingerprint, started, resume, ranks)


def _complete(folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The result of a run that is complete already."""
    if not ranks.says((folder / "result.json").is_file()):
        return None
    found = record.load_result(folder)
    logger.info("%s: complete already, its result is used", folder)
    if (codes := record.codes(found)) != [record.code()]:
        logger.warning(
            "%s: trained by other code (%s; this is %s); without --resume it is trained anew",
            folder, ", ".join(codes), record.code(),
        )  # fmt: skip
    return found | {"folder": str(folder)}


def _run(
    config: Config,
    splits: Splits,
    model: Any,
    folder: Path,
    fingerprint: str,
    started: float,
    resume: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    name, seed = display_name(config), config["seed"]
    backbone: dict[str, Any] | None = None
    if is_staged(config):
        backbone = run(config.host(), folder.parent, resume=True, hosting=True)
        _take_backbone(config, model, record.load_checkpoint(Path(backbone["folder"]) / "best.pt")["state_dict"])
    codes: list[str] = []
    if ranks.first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--runs={folder.parent}: no folder can be made there ({error.strerror})") from error
        if not resume:
            _clear(folder)
        codes = _codes(folder)
    ranks.says(True)  # the folder is as it should be
    with _log_file(folder / "log.txt") if ranks.first else contextlib.nullcontext():
        logger.info("%s on %s, seed %d -> %s", name, config["dataset"], seed, folder)
        logger.info("code %s", ", then ".join(codes))
        logger.info(
            "%d users, %d items, %d train, %d valid, %d test interactions; device %s, %d threads",
            splits.dataset.user_num - 1, splits.dataset.item_num - 1, *(len(p) for p in splits.parts),
            config["device"], torch.get_num_threads(),
        )  # fmt: skip
        if ranks.several:
            logger.info("%d processes share each batch and each evaluation", ranks.size)
        trainer = MRdIBTrainer(config, model, folder, ranks)
        trainer.popularity = popularity(config, splits, ranks)
        if resume:
            _resume(trainer, folder / "last.pt", splits.train)
        try:
            trainer.fit(splits.train, splits.valid)
        except KeyboardInterrupt as error:
            raise Interrupted(_saved(folder)) from error
        except NonFiniteLossError as error:
            if trainer.best_epoch < 0:  # nothing to keep
                raise
            trainer.diverged = error
            logger.warning("%s. Epoch %d, the best so far, is kept", error, trainer.best_epoch)
        finally:
            trainer.tensorboard.close()
        result = _finish(config, splits, trainer, folder, fingerprint, started, codes, backbone)
    return result | {"folder": str(folder)}


@process.as_found()
@_tells_of_memory
def best_on_valid(
    config: Config, folder: Path, on_evaluation: Callable[[int, float], None] | None = None
) -> MRdIBTrainer:
    """Train as `run` does and stop there: the test split is not read, nothing is recorded. For tuning.

    Args:
        folder: for the trainer's scratch files.
        on_evaluation: see `MRdIBTrainer`.
    """
    if process.several():
        raise ConfigError("a search trains each of its models by one process: start it without torchrun")
    splits = _seeded_splits(config)
    model = seeded_model(config, splits)
    if is_staged(config):
        host = best_on_valid(config.host(), folder / "backbone")
        host.load_best()
        _take_backbone(config, model, host.model.state_dict())
    trainer = MRdIBTrainer(config, model, folder)
    trainer.popularity = popularity(config, splits)
    trainer.on_evaluation = on_evaluation
    try:
        trainer.fit(splits.train, splits.valid)
    finally:
        trainer.tensorboard.close()
    return trainer


def is_staged(config: Config) -> bool:
    """Whether the model's backbone is trained first, by itself."""
    return config["model"] in registry.PLUGINS and registry.model_class(config["model"]).is_staged(config)


def _take_backbone(config: Config, model: Any, state: Mapping[str, Any]) -> None:
    """The trained backbone into a variant; what is drawn from here on does not depend on whether it was trained just now."""
    from recbole.utils import init_seed

    model.backbone.load_state_dict(state)
    model.freeze_backbone()
    init_seed(config["seed"], config["reproducibility"])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes that want the same run (two variants of one backbone): the second waits, and finds what the first one left."""
    locks = folder.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--runs={folder.parent}: no folder can be made there ({error.strerror})") from error
    with (locks / folder.name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def popularity(config: Config, splits: Splits, ranks: Ranks = ALONE) -> dict[str, float]:
    """The configured metrics on valid, as far as they are means over users, of ranking by popularity in training: the floor of any
    model that has learned something."""
    train, user_field = splits.parts[0], config["USER_ID_FIELD"]
    items = train.inter_feat[train.iid_field].to(config["device"])
    metrics = [m for m in map(str.lower, config["metrics"]) if m in PER_USER]
    scorer = Popularity(items, splits.dataset.item_num, user_field)
    return rank(scorer, splits.valid, metrics, list(config["topk"]), user_field, ranks=ranks).means


def build(config: Config) -> Any:
    """Data and model as `run` makes them, and no more: raises what would fail the run before its first step."""
    return seeded_model(config, _seeded_splits(config))


def _seeded_splits(config: Config, ranks: Ranks = ALONE) -> Splits:
    from recbole.utils import init_seed

    if threads := TrainingSettings.from_config(config).threads:
        torch.set_num_threads(threads)
    init_seed(config["seed"], config["reproducibility"])
    return prepare(config, ranks=ranks)


def seeded_model(config: Config, splits: Splits) -> Any:
    """A model as the seed initialises it, whatever loading the data has drawn."""
    from recbole.utils import init_seed

    init_seed(config["seed"], config["reproducibility"])
    return general.build(config, splits.parts[0])


def _finish(
    config: Config,
    splits: Splits,
    trainer: MRdIBTrainer,
    folder: Path,
    fingerprint: str,
    started: float,
    codes: list[str],
    backbone: Mapping[str, Any] | None,
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
        **_state(trainer, backbone),
        "model": name,
        "backbone": config["backbone"] or config["model"],
        "plugin": variant_of(config).plugin,
        "preset": variant_of(config).preset,
        "dataset": config["dataset"],
        "modalities": list(splits.dataset.features),
        "seed": config["seed"],
        "best_epoch": trainer.best_epoch,
        "valid": best["valid"],
        "popularity": trainer.popularity,  # on valid, too
        "test": ranking.means,
        "eval_mask": config["eval_mask"],
        "seconds_per_epoch": statistics.median(e["seconds"] for e in epochs),
        "eval_seconds": test_seconds,
        "total_seconds": time.perf_counter() - started,
        "peak_memory_mb": record.peak_memory_mb(),
        **record.hardware(config["device"]),
        "parameters": 0 if trainer.one_pass else sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "data": {
            "fingerprint": fingerprint,
            "splits": splits.dataset.split_fingerprint(splits.parts),
            "users": splits.dataset.user_num - 1,
            "items": splits.dataset.item_num - 1,
            "interactions": [len(p) for p in splits.parts],
            "notes": splits.dataset.notes,
        },
        "versions": record.versions(),
        "code": codes,
        "config": record.config_values(config),
        "epochs": epochs,
    }
    if (readout := getattr(trainer.model, "readout", None)) is not None:
        result["readout"] = readout()
    if backbone is not None:
        result["trained_backbone"] = {
            "folder": Path(backbone["folder"]).name, **{k: backbone[k] for k in ("total_seconds", "valid", "test", "best_epoch")}
        }  # fmt: skip
    if splits.dataset.cold is not None:
        with contextlib.suppress(ConfigError):  # the backbone of a variant need not rank them
            _check_new_items(trainer.model)
            users, items = (ids.to(config["device"]) for ids in splits.dataset.cold)
            cold = trainer.rank_new_items(users, items)
            result["cold"] = {"users": len(cold.users), "items": len(torch.unique(items)), **cold.means}
    if trainer.ranks.several:
        result["processes"] = trainer.ranks.size
    if trainer.ranks.first:
        _write(config, splits, trainer, folder, result, ranking)
    trainer.ranks.says(True)  # all is written
    return result


def _write(
    config: Config, splits: Splits, trainer: MRdIBTrainer, folder: Path, result: dict[str, Any], ranking: Ranking
) -> None:
    """All files of a complete run."""
    name, epochs = result["model"], result["epochs"]
    tokens = splits.dataset.id2token(splits.dataset.uid_field, ranking.users)
    record.write_per_user(folder / "per_user.npz", tokens, ranking.per_user)
    best_state = {"model": name, "seed": config["seed"], "best_epoch": trainer.best_epoch}
    record.save_checkpoint(
        folder / "best.pt",
        best_state | {"config": record.config_values(config), "state_dict": trainer.model.state_dict()},
    )
    if trainer.one_pass:
        pass  # no curve
    elif importlib.util.find_spec("matplotlib") is not None:
        from mmrec_mrdib.experiment import figures

        title = f"{name} on {config['dataset']}, seed {config['seed']}"
        picture = figures.curves(title, figures.progress(epochs, trainer.valid_metric), trainer.best_epoch)
        write_atomically(folder / "curves.png", picture)
    else:
        logger.info("no curves.png: matplotlib is not installed (pip install 'mmrec-mrdib[plot]')")
    metrics = "  ".join(f"{k} {v:.4f}" for k, v in ranking.means.items())
    logger.info("best epoch %d; test: %s", trainer.best_epoch, metrics)
    _against_popularity(trainer, result["valid"])
    record.write_json(folder / "result.json", result)  # last: its presence says that the run is complete
    for name in ("last.pt", "code.txt"):
        (folder / name).unlink(missing_ok=True)


def _state(trainer: MRdIBTrainer, backbone: Mapping[str, Any] | None) -> dict[str, str]:
    """The run's; where the backbone broke down, what was made of its best epoch is no outcome of this configuration either."""
    if backbone is not None and (why := record.diverged(backbone)) is not None:
        return {"state": backbone["state"], "error": f"the backbone {why}"}
    return record.state(trainer.diverged, len(trainer.history))


def _against_popularity(trainer: MRdIBTrainer, valid: Mapping[str, float]) -> None:
    """Warn of a model that ranks worse than popularity."""
    metric = trainer.valid_metric
    if metric in trainer.popularity and valid[metric] < trainer.popularity[metric]:
        logger.warning(
            "this model ranks worse than popularity on valid: %s %.4f against %.4f; usual causes: too few epochs "
            "(--epochs), a regulariser that shrinks everything to 0 (--reg_weight), a learning rate that is too small or too "
            "large (--learning_rate), or the scale of the features (--feature_norm)",
            metric, valid[metric], trainer.popularity[metric],
        )  # fmt: skip


def _codes(folder: Path) -> list[str]:
    """The code that began the run in the folder, those that went on, and this one; noted there for the next."""
    path = folder / "code.txt"
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() and (folder / "last.pt").is_file() else []
    codes = list(dict.fromkeys([*before, record.code()]))
    if len(codes) > 1:
        logger.warning("%s: goes on from what other code trained (%s)", folder, ", ".join(codes[:-1]))
    write_atomically(path, "\n".join(codes).encode())
    return codes


def _check_new_items(model: Any) -> None:
    """Before training: whether the model can rank items it was not trained on."""
    if not getattr(model, "modalities", ()):
        name = type(getattr(model, "core", model)).__name__
        raise ConfigError(
            f"--cold_items: {name} knows no features, so it has no score for a new item; {name}+MRdIB has"
        )
    if getattr(model, "readout", None) is not None and model.settings.readout == "late":
        return  # whatever the backbone, by what the content says
    model.eval()
    NewItems(model, torch.arange(1, 2, device=model.device))
    model.train()


def _clear(folder: Path) -> None:
    """Remove what an earlier run of the same name wrote, the result first: it vouches for the rest."""
    for name in ("result.json", "last.pt", "code.txt", "best.pt", "per_user.npz", "curves.png", "log.txt"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _resume(trainer: MRdIBTrainer, checkpoint: Path, train_data: Any) -> None:
    if not checkpoint.is_file():
        logger.info("nothing to resume in %s: starting anew", checkpoint.parent)
        return
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
