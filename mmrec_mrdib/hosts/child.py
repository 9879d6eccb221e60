"""The process of a host: `python -m mmrec_mrdib.hosts.child TASK.json TOLD.json`. A checkout's own loader, model, trainer and evaluator run in
it; what they score is evaluated by ours, and recorded as our runs are.

The best epoch is the one of the host's own early stopping. What it then leaves is kept aside, and evaluated once at the end.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import os
import re
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrec_mrdib import registry
from mmrec_mrdib.data.filters import split_fingerprint
from mmrec_mrdib.errors import ConfigError, ContractError, DataError, MRdIBError, NonFiniteLossError
from mmrec_mrdib.evaluation import PER_USER, Popularity, Ranking, RankingSplit, rank
from mmrec_mrdib.hosts import repairs
from mmrec_mrdib.hosts.attach import Attached, attach
from mmrec_mrdib.hosts.suite import FAILED, Task
from mmrec_mrdib.schema import read_yaml

logger = logging.getLogger("mmrec_mrdib.hosts.child")
_SCORES = 1 << 24  # at a time: many hosts do all of their forward pass for each block of users
_MODALITIES = {"vision_feature_file": "image", "text_feature_file": "text", "audio_feature_file": "audio"}
_LR = 1e-3  # of the plug-in's own parameters, where the host's rate is not known


def main(arguments: list[str]) -> int:
    task = Task(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    told = Path(arguments[1])
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("mmrec_mrdib").setLevel(logging.WARNING if task.quiet else logging.INFO)
    torch.set_num_threads(task.threads)
    outcome: dict[str, Any]
    try:
        outcome = {"folders": [str(folder) for folder in Suite(task).run()]}
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        if not isinstance(error, MRdIBError):
            traceback.print_exc()
        outcome = {"error": _in_one_line(error, Path(task.code))}
    told.write_text(json.dumps(outcome), encoding="utf-8")
    return FAILED if "error" in outcome else 0


def _in_one_line(error: BaseException, code: Path) -> str:
    """What went wrong in code that is not ours, where, and what may mend it."""
    if isinstance(error, MRdIBError):
        return str(error)
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(code)]
    where = f" ({Path(frames[-1].filename).relative_to(code)}, line {frames[-1].lineno})" if frames else ""
    mend = (
        "its own code stops there; run it by itself to see whether that is so without us, too"
        if frames
        else "that is a fault of mmrec-mrdib: the lines above say where"
    )
    if isinstance(error, ModuleNotFoundError) and error.name:
        mend = f"it needs {error.name}: pip install {error.name.partition('.')[0].replace('_', '-')}"
    elif isinstance(error, FileNotFoundError):
        mend = "put that file there, or say where the data are: --data_path=FOLDER"
    elif isinstance(error, SystemExit):
        mend = "its code ended the process"
    return f"{text}{where}; {mend}"


@dataclass
class Trained:
    """A host at its best epoch, and how it got there."""

    model: Any
    plug: Attached | None
    epochs: list[dict[str, Any]]
    best_epoch: int
    diverged: NonFiniteLossError | None
    theirs: dict[str, Any]
    """The host's own valid and test results at that epoch."""
    seconds: float


@dataclass
class _Best:
    score: float = -math.inf
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)
    tables: list[tuple[nn.Module, str, Tensor]] = field(default_factory=list)


class Suite:
    """A checkout at work on one model and data set."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.started = time.perf_counter()
        repairs.apply(Path(task.code), task.trust)
        os.chdir(task.code)  # where such a suite looks for its configs and its data
        sys.path.insert(0, task.code)
        self.config = self._theirs("utils.configurator", "Config")(
            task.model, task.dataset, {"gpu_id": 0, **task.values}
        )
        self._one_value_each()
        metrics, ks = self.config["metrics"], self.config["topk"]
        self.metrics = [m.lower() for m in metrics if m.lower() in PER_USER]
        self.ks = [int(k) for k in (ks if isinstance(ks, list) else [ks])]
        self.valid_metric = str(self.config["valid_metric"]).lower()
        if self.valid_metric not in {f"{m}@{k}" for m in self.metrics for k in self.ks}:
            raise ConfigError(
                f"--valid_metric={self.config['valid_metric']}: expected one of {self.metrics} at one of {self.ks}"
            )
        self._load()

    def _theirs(self, module: str, name: str) -> Any:
        """Something of the checkout's code."""
        found = getattr(importlib.import_module(module), name, None)
        if found is None:
            raise ContractError(f"{module.replace('.', '/')}.py has no {name}: not MMRec's interface")
        return found

    def _one_value_each(self) -> None:
        """Of what the suite would search, one value is run: that given, or the first."""
        for name in self.config["hyper_parameters"] or ():
            values = self.config[name]
            if name == "seed" or not isinstance(values, list):
                continue
            if len(values) > 1:
                logger.warning("%s: %s, the first of %s; others by --%s=VALUE", name, values[0], values, name)
            self.config[name] = values[0] if values else None

    def _load(self) -> None:
        task, config = self.task, self.config
        dataset = self._theirs("utils.dataset", "RecDataset")(config)
        self.parts = dataset.split()
        train_loader, eval_loader = (self._theirs("utils.dataloader", f"{n}DataLoader") for n in ("Train", "Eval"))
        self._seed(task.seeds[0])
        self.train_data = train_loader(config, self.parts[0], batch_size=config["train_batch_size"], shuffle=True)
        self.valid_data, self.test_data = (
            eval_loader(config, part, additional_dataset=self.parts[0], batch_size=config["eval_batch_size"])
            for part in self.parts[1:]
        )
        counts = {int(p.get_user_num()) for p in self.parts}, {int(p.get_item_num()) for p in self.parts}
        self.n_users, self.n_items = (max(c) for c in counts)
        self.device = torch.device(config["device"])
        self.pairs = [self._pairs(part) for part in self.parts]
        masks = [self.pairs[0]]
        size = (self.n_users, self.n_items, _SCORES)
        self.valid, self.test = (
            RankingSplit(name, *pairs, masks, *size, padded=False)
            for name, pairs in zip(("valid", "test"), self.pairs[1:], strict=True)
        )
        self.features = self._features(Path(getattr(dataset, "dataset_path", Path(config["data_path"]) / task.dataset)))
        self.whole = dataset.df

    def _seed(self, seed: int) -> None:
        self._theirs("utils.utils", "init_seed")(seed)

    def _pairs(self, part: Any) -> tuple[Tensor, Tensor]:
        """(users, items) of a split, as the host has it."""
        columns = (
            part.df[c].to_numpy(dtype=np.int64, copy=True)
            for c in (self.config["USER_ID_FIELD"], self.config["ITEM_ID_FIELD"])
        )
        users, items = (torch.from_numpy(c).to(self.device) for c in columns)
        return users, items

    def _features(self, folder: Path) -> dict[str, Tensor]:
        """Modality -> (I, D): the files that the configuration names, and any other <modality>_feat.npy of the data set."""
        files = {folder / f"{self.config[key]}": m for key, m in _MODALITIES.items() if self.config[key]}
        for file in sorted(folder.glob("*_feat.npy")):
            files.setdefault(file, file.stem.removesuffix("_feat"))
        out: dict[str, Tensor] = {}
        for file, m in files.items():
            if not file.is_file() or m in out:
                continue
            table = np.load(file)
            if table.ndim != 2 or len(table) < self.n_items:
                raise DataError(f"{file}: {table.shape}; expected a row for each of {self.n_items} items")
            out[m] = torch.from_numpy(np.ascontiguousarray(table[: self.n_items], dtype=np.float32))
        if not out:
            raise DataError(f"{folder}: no features (*_feat.npy), which every plug-in reads")
        return out

    # Training.

    def run(self) -> list[Path]:
        """All seeds and variants; a host that is trained plain is trained once a seed."""
        folders = []
        for seed in self.task.seeds:
            plain: Trained | None = None
            for kind in self.task.variants:
                started = time.perf_counter()
                plugin, preset = registry.kinds()[kind]
                if preset is not None and plugin == "MRdIB" and _is_joint(preset):
                    trained = self._train(seed, kind, preset)
                else:
                    trained = plain = plain or self._train(seed, "plain", None)
                folders.append(self._finish(seed, kind, trained, started))
        return folders

    def _train(self, seed: int, kind: str, preset: str | None) -> Trained:
        task, config = self.task, self.config
        started = time.perf_counter()
        logger.info("%s on %s, seed %d: %s", task.model, task.dataset, seed, kind)
        config["seed"] = seed
        self._seed(seed)
        self.train_data.pretrain_setup()
        model = self._theirs("utils.utils", "get_model")(task.model)(config, self.train_data).to(self.device)
        self._freeze(model)
        plug = self._attach(model, preset, seed) if preset else None
        trainer = self._theirs("utils.utils", "get_trainer")()(config, model)
        best, epochs = _Best(), list[dict[str, Any]]()
        diverged = self._watch(trainer, model, best, epochs)
        if plug is not None:
            _train_along(trainer, model, plug)
        trainer.fit(self.train_data, valid_data=self.valid_data, test_data=self.test_data, saved=False)
        if best.epoch < 0:
            raise (
                diverged[0]
                if diverged
                else ConfigError("no epoch was evaluated: is epochs 0, or valid_metric never computed?")
            )
        self._restore(model, best)
        theirs = {
            split: dict(getattr(trainer, name, None) or {})
            for split, name in (("valid", "best_valid_result"), ("test", "best_test_upon_valid"))
        }
        return Trained(
            model, plug, epochs, best.epoch, diverged[0] if diverged else None, theirs, time.perf_counter() - started
        )

    def _freeze(self, model: nn.Module) -> None:
        """Where projections take part in the comparison, raw features stay: of trainable ones I(X; Z) has no meaning."""
        if "mrdib-paper" not in self.task.variants:
            return
        named = dict(model.named_parameters())
        for name in self.task.table["freeze"]:
            if name in named:
                named[name].requires_grad_(False)
                logger.info("%s stays as it is, in all variants", name)

    def _attach(self, model: nn.Module, preset: str, seed: int) -> Attached:
        known = self.task.table
        common: dict[str, Any] = {
            "features": self.features, "interaction": self._asked, "shape": (self.n_users, self.n_items), "seed": seed, **self.task.plugin,
        }  # fmt: skip
        if preset != "paper":
            return attach(model, train=self.pairs[0], preset=preset, **common)
        projections = {m: path for m, path in known["projections"].items() if m in self.features}
        if not projections:
            raise ConfigError(
                f"projections are known of {', '.join(known['projections'])}, features are there of {', '.join(self.features)}"
            )
        view = known["user_view"]
        if isinstance(view, dict):
            view = {m: path for m, path in view.items() if m in projections}
        return attach(model, projections, self.pairs[0], user_view=view, preset=preset, **common)

    def _asked(self, users: Tensor) -> list[Tensor]:
        """What full_sort_predict takes: users, and the places that are masked for them, which are none of its business."""
        return [users, torch.zeros((2, 0), dtype=torch.long, device=users.device)]

    def _watch(
        self, trainer: Any, model: nn.Module, best: _Best, epochs: list[dict[str, Any]]
    ) -> list[NonFiniteLossError]:
        """Note each epoch, and keep what the best of them leaves; the list gets the loss that ends training, if one does."""
        train_epoch, valid_epoch = trainer._train_epoch, trainer._valid_epoch
        diverged: list[NonFiniteLossError] = []

        def watched_train(train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            out = train_epoch(train_data, epoch_idx, *args, **kwargs)
            total, batches = out
            if isinstance(total, Tensor):
                diverged.append(NonFiniteLossError(f"a loss became NaN in epoch {epoch_idx}; lower --learning_rate"))
                return out
            sums = total if isinstance(total, tuple) else (total,)
            n = max(len(batches), 1)
            losses = {f"loss_{k}" if len(sums) > 1 else "loss": float(x) / n for k, x in enumerate(sums, 1)}
            epochs.append({"epoch": epoch_idx, "seconds": time.perf_counter() - started, "losses": losses, "logs": {}})
            return out

        def watched_valid(data: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._recompute(model)
            score, result = valid_epoch(data, *args, **kwargs)
            if data is self.valid_data:
                epochs[-1] |= {
                    "valid": {k: float(v) for k, v in result.items()},
                    "eval_seconds": time.perf_counter() - started,
                }
                logger.info("epoch %3d  %s  valid %s %.4f%s", epochs[-1]["epoch"], "  ".join(f"{k} {v:.4f}" for k, v in epochs[-1]["losses"].items()),
                            self.valid_metric, score, " *" if score > best.score else "")  # fmt: skip
                if score > best.score:
                    best.score, best.epoch = float(score), epochs[-1]["epoch"]
                    best.state = {k: v.detach().clone() for k, v in model.state_dict().items()}
                    best.tables = [
                        (module, name, value) for module in model.modules() for name, value in vars(module).items()
                        if isinstance(value, Tensor)
                    ]  # fmt: skip
            return score, result

        trainer._train_epoch, trainer._valid_epoch = watched_train, watched_valid
        return diverged

    def _recompute(self, model: Any) -> None:
        """Tables that the last training batch left, made anew in evaluation mode, of the plain host, too."""
        spec = self.task.table["recompute"]
        if spec is None:
            return
        found = re.fullmatch(r"(\w+)\((batch)?\)", spec)
        name, asks = found.groups() if found else ("", None)
        if not callable(getattr(model, name, None)):
            raise ConfigError(
                f"recompute: {spec}: expected a method of {type(model).__name__}, as in forward() or forward(batch)"
            )
        model.eval()
        with torch.no_grad():
            batch = torch.stack([self.pairs[0][0][:2], self.pairs[0][1][:2], self.pairs[0][1][:2]])
            getattr(model, name)(*([batch.clone()] if asks else []))

    def _restore(self, model: nn.Module, best: _Best) -> None:
        model.load_state_dict(best.state)
        for module, name, value in best.tables:
            vars(module)[name] = value
        model.eval()
        self._recompute(model)

    # What comes of it.

    def _finish(self, seed: int, kind: str, trained: Trained, started: float) -> Path:
        from mmrec_mrdib.experiment import record

        plugin, preset = registry.kinds()[kind]
        model, plug = trained.model, trained.plug
        own = plugin is not None and plug is None
        if own:
            plug = self._beside(model, str(plugin), preset, seed)
        elif plug is not None and plug.settings.readout == "late":
            plug.select(*self.pairs[1], self.valid_metric)
        scorer = _Scorer(model, plug, self)
        valid, test_started = self._rank(scorer, self.valid), time.perf_counter()
        test = self._rank(scorer, self.test)
        test_seconds = time.perf_counter() - test_started
        if kind == "plain" or (plug is not None and not own and plug.settings.readout == "none"):
            self._compare(trained, valid)
        name = registry.Variant(self.task.model, plugin, preset).name
        config = self._settings(plug)
        fingerprint = self._fingerprint()
        digest = hashlib.blake2b(
            json.dumps([config, self.task.suite, kind, fingerprint], sort_keys=True, default=str).encode(),
            digest_size=4,
        ).hexdigest()
        folder = record.run_folder(Path(self.task.runs), name, self.task.dataset, seed, digest)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        result = {
            "version": record.RESULT_VERSION,
            **record.state(trained.diverged, len(trained.epochs)),
            "model": name,
            "backbone": self.task.model,
            "plugin": plugin,
            "preset": preset,
            "origin": self.task.suite,
            "dataset": self.task.dataset,
            "modalities": list(self.features),
            "seed": seed,
            "best_epoch": trained.best_epoch,
            "valid": valid.means,
            "popularity": self._popularity(),
            "test": test.means,
            "eval_mask": "train",
            "seconds_per_epoch": statistics.median(e["seconds"] for e in trained.epochs),
            "eval_seconds": test_seconds,
            "total_seconds": trained.seconds + time.perf_counter() - started,
            "peak_memory_mb": record.peak_memory_mb(),
            "parameters": sum(p.numel() for m in (model, *([plug] if plug is not None else [])) for p in m.parameters() if p.requires_grad),
            "data": {
                "fingerprint": fingerprint, "splits": self._splits(), "users": self.n_users, "items": self.n_items,
                "interactions": [len(u) for u, _ in self.pairs], "notes": {},
            },
            "versions": record.versions(),
            "code": [record.code()],
            "config": config,
            "epochs": trained.epochs,
            "host": {
                "root": self.task.root, "commit": _commit(Path(self.task.root)), "its_own": trained.theirs, "repairs": list(repairs.USED),
                "known": self.task.table,
            },
        }  # fmt: skip
        if plug is not None:
            result["readout"] = plug.readout()
        record.write_per_user(folder / "per_user.npz", test.users.astype(str), test.per_user)
        self._pictures(folder, name, seed, trained)
        record.write_json(folder / "result.json", result)
        logger.info("%s, seed %d: test %s", name, seed, "  ".join(f"{k} {v:.4f}" for k, v in test.means.items()))
        if own and plug is not None:
            plug.remove()
        return folder

    def _beside(self, model: nn.Module, plugin: str, preset: str | None, seed: int) -> Attached:
        """The plug-in beside a host that is trained already: encoders of its own, or raw features, and the readout."""
        values = {
            k: v
            for k, v in self.task.plugin.items()
            if plugin == "MRdIB" or k.startswith(("readout", "content_control", "split_seed"))
        }
        if plugin == "Content" and preset == "shuffled":
            values["content_control"] = "shuffle"
        elif preset is not None:
            values["preset"] = preset
        plug = attach(
            model, train=self.pairs[0], features=self.features, interaction=self._asked, shape=(self.n_users, self.n_items), seed=seed,
            raw=plugin == "Content", **values,
        )  # fmt: skip
        plug.fit(*self.pairs[1], self.valid_metric)
        return plug

    def _rank(self, scorer: _Scorer, split: RankingSplit) -> Ranking:
        return rank(scorer, split, self.metrics, self.ks, "users")

    def _popularity(self) -> dict[str, float]:
        scorer = Popularity(self.pairs[0][1], self.n_items, "users")
        return rank(scorer, self.valid, self.metrics, self.ks, "users").means

    def _compare(self, trained: Trained, valid: Ranking) -> None:
        """Our evaluation of its scores against its own, at the same epoch: they differ where something of the model is neither in its state
        dict nor an attribute, or where it draws at random in evaluation."""
        theirs, ours = trained.theirs["valid"].get(self.valid_metric), valid.means[self.valid_metric]
        if theirs is not None and abs(theirs - ours) > 1e-3 + 5e-5:
            logger.warning(
                "valid %s at epoch %d: %.4f by the host's evaluator, %.4f by ours; its scores are not the same when asked again", self.valid_metric,
                trained.best_epoch, theirs, ours,
            )  # fmt: skip

    def _settings(self, plug: Attached | None) -> dict[str, Any]:
        from mmrec_mrdib.compat import plain

        config = {
            k: plain(v)
            for k, v in sorted(self.config.final_config_dict.items())
            if k not in ("seed", "device", "data_path")
        }
        config |= {"topk": self.ks, "metrics": self.metrics, "valid_metric": self.valid_metric}
        if plug is not None:
            config |= {
                f"mrdib.{k}": plain(v)
                for k, v in plug.settings.model_dump().items()
                if k not in ("backbone", "training")
            }
        return config

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for users, items in self.pairs:
            digest.update(torch.sort(users * self.n_items + items)[0].cpu().numpy().tobytes())
        for m, x in self.features.items():
            digest.update(m.encode() + x.numpy().tobytes())
        return digest.hexdigest()

    def _splits(self) -> str:
        """The one of a MultimodalDataset of the same files."""
        fields = self.config["USER_ID_FIELD"], self.config["ITEM_ID_FIELD"]
        ids = [np.unique(self.whole[f].to_numpy(dtype=np.int64)) for f in fields]
        pairs = ([np.searchsorted(known, x.cpu().numpy()) for known, x in zip(ids, p, strict=True)] for p in self.pairs)
        return split_fingerprint(ids, ((u, i) for u, i in pairs))

    def _pictures(self, folder: Path, name: str, seed: int, trained: Trained) -> None:
        if importlib.util.find_spec("matplotlib") is None or "matplotlib" in " ".join(repairs.USED):
            return
        from mmrec_mrdib.experiment import figures
        from mmrec_mrdib.paths import write_atomically

        title = f"{name} on {self.task.dataset}, seed {seed} ({self.task.suite})"
        write_atomically(
            folder / "curves.png",
            figures.curves(title, figures.progress(trained.epochs, self.valid_metric), trained.best_epoch),
        )


class _Scorer:
    """A host, with or without a plug-in, as `rank` takes it."""

    def __init__(self, model: Any, plug: Attached | None, suite: Suite) -> None:
        self.model, self.plug, self.suite = model, plug, suite

    def full_sort_predict(self, interaction: Any) -> Tensor:
        users = interaction["users"]
        if self.plug is not None:
            return self.plug.scores(users)
        scores = self.model.full_sort_predict(self.suite._asked(users))
        if not isinstance(scores, Tensor) or scores.numel() != len(users) * self.suite.n_items:
            raise ContractError(
                f"{type(self.model).__name__}.full_sort_predict gives {tuple(np.shape(scores))} for {len(users)} users and {self.suite.n_items} items"
            )
        return scores.detach().float().clone()


def _is_joint(preset: str) -> bool:
    """Whether it trains together with its host."""
    return read_yaml(registry.property_file("plugin", "MRdIB", f"MRdIB-{preset}")).get("training") == "joint"


def _train_along(trainer: Any, model: Any, plug: Attached) -> None:
    """Losses of the plug-in beside the host's, from the batch as it was before the host sees it; an optimizer of its own, which steps with
    the host's: decay and clipping of the host's are not its business."""
    stock, train_epoch = model.calculate_loss, trainer._train_epoch

    def with_plug(interaction: Any, *args: Any, **kwargs: Any) -> Any:
        batch = [row.clone() for row in interaction]
        losses = stock(interaction, *args, **kwargs)
        extra = plug.loss(*batch[:3], host_loss=losses)
        return (*losses, extra) if isinstance(losses, tuple) else losses + extra

    object.__setattr__(model, "calculate_loss", with_plug)
    optimizer = torch.optim.Adam(plug.parameters(), getattr(trainer, "learning_rate", None) or _LR)

    def step(*args: Any) -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    trainer.optimizer.register_step_post_hook(step)

    def begin(*args: Any, **kwargs: Any) -> Any:
        plug.begin_epoch()
        return train_epoch(*args, **kwargs)

    trainer._train_epoch = begin


def _commit(root: Path) -> str:
    """The checkout's, read off its .git without running anything of it; '' where there is none."""
    head = root / ".git" / "HEAD"
    if not head.is_file():
        return ""
    text = head.read_text(encoding="utf-8").strip()
    ref = root / ".git" / text.removeprefix("ref: ")
    return ref.read_text(encoding="utf-8").strip() if text.startswith("ref: ") and ref.is_file() else text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
