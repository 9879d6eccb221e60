"""Every model and plug-in on another device: a training step and a ranking, and what of them a GPU would wait for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from mmrec_mrdib import general, registry
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import scores_in_memory
from mmrec_mrdib.experiment import explain, export, record, slices
from mmrec_mrdib.experiment.run import is_staged, make_config, prepare, train
from mmrec_mrdib.models.vbpr import VBPR
from mmrec_mrdib.testing.elsewhere import Elsewhere, MixedDevicesError
from mmrec_mrdib.testing.toy import write_mmrec
from mmrec_mrdib.trainer import MRdIBTrainer

HOSTS = ("VBPR", "FREEDOM")
SETTINGS = {"topk": [5], "valid_metric": "Recall@5", "show_progress": False}
OURS = ("Pop", "Random", "ItemKNN", "EASE", "RecVAE", "NCL", "NGCF", "BPR")  # of `general`, and what many use
AUTOENCODERS = ("RecVAE",)  # their rows of users are RecBole's, which indexes by ids of the host
VARIANTS = [
    host + registry.Variant("", *parts).name
    for host in HOSTS
    for parts in registry.kinds().values()
    if parts[0] is not None
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    write_mmrec(folder / "toy", users=40, items=30, dims={"a": 12, "b": 8})
    return folder


@pytest.fixture(scope="module")
def splits() -> dict[Any, Any]:
    """Of each form of training batches, made once."""
    return {}


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as mode:
        yield mode


def trainer_of(name: str, data: Path, splits: dict[Any, Any], **values: Any) -> tuple[MRdIBTrainer, Any]:
    """A trainer, its backbone as it is after the first stage, and the data."""
    if "readout_ladder" in registry.variant(name).parameters:
        values = {"readout_ladder": [0, 1], **values}
    config = make_config(name, "toy", 1, values={"data_path": str(data), **SETTINGS, **values})
    form = (config.loader, config.positives_alone, config["MODEL_INPUT_TYPE"], config["MODEL_TYPE"], is_staged(config))
    sizes = (config["train_batch_size"], values.get("stage_batch_size"))
    key = (config["device"], config["feature_norm"], *sizes, *form)
    if key not in splits:
        splits[key] = prepare(config)
    init_seed(1, True)
    model = general.build(config, splits[key].parts[0])
    if is_staged(config):
        model.freeze_backbone()
    trainer = MRdIBTrainer(config, model, data / "run")
    trainer.tensorboard.close()
    return trainer, splits[key]


def step_and_rank(name: str, data: Path, splits: dict[Any, Any]) -> tuple[float, dict[str, float]]:
    """The loss of an epoch of one batch and what the ranking after it is worth."""
    trainer, parts = trainer_of(name, data, splits)
    parts.train.generator.manual_seed(1)
    loss = trainer._train_epoch(parts.train, 0)
    return loss, trainer._valid_epoch(parts.valid)[1]


def check(name: str, data: Path, splits: dict[Any, Any]) -> None:
    trainer, parts = trainer_of(name, data, splits)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert math.isfinite(trainer._train_epoch(parts.train, 0))
    if before and not trainer.one_pass:
        assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)
    assert {t.device for t in trainer.model.state_dict().values()} <= {Elsewhere.device}
    assert all(0 <= value <= 1 for value in trainer._valid_epoch(parts.valid)[1].values())


@pytest.mark.parametrize("model", [*registry.MODELS, *registry.BASELINES])
def test_backbones(model: str, data: Path, splits: dict[Any, Any], elsewhere: Elsewhere) -> None:
    for plugin in ("", "+MRdIB (paper)", "+MRdIB"):
        if model in registry.MODELS or not plugin:
            check(model + plugin, data, splits)


@pytest.mark.parametrize("name", VARIANTS)
def test_plugins(name: str, data: Path, splits: dict[Any, Any], elsewhere: Elsewhere) -> None:
    check(name, data, splits)


@pytest.mark.parametrize("name", OURS)
def test_general_recommenders(name: str, data: Path, splits: dict[Any, Any]) -> None:
    with Elsewhere(host_ids=name in AUTOENCODERS):
        check(name, data, splits)


# The guard itself.


class HostIds(VBPR):
    def propagate(self, enc: Any) -> Any:
        emb = super().propagate(enc)
        return type(emb)(emb.users[torch.arange(len(emb.users))], emb.items, emb.views, emb.extra)


class HostRange(VBPR):
    def full_sort_predict(self, interaction: Any) -> torch.Tensor:
        return super().full_sort_predict(interaction) + torch.arange(self.n_items)


@pytest.mark.parametrize(
    ("model", "step", "where"), [(HostIds, True, "index.Tensor"), (HostRange, False, "add.Tensor")]
)
def test_planted_mistakes_are_found(
    model: type, step: bool, where: str, data: Path, splits: dict[Any, Any], elsewhere: Elsewhere, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mmrec_mrdib.models.vbpr.VBPR", model)
    trainer, parts = trainer_of("VBPR", data, splits)
    assert type(trainer.model) is model
    with pytest.raises(MixedDevicesError, match=rf"aten\.{where} at .*: expected all tensors to be on one device"):
        (trainer._train_epoch(parts.train, 0) if step else trainer.rank(parts.valid))


def test_what_mixes_is_refused_and_what_does_not_passes(elsewhere: Elsewhere) -> None:
    there = torch.arange(12.0, device=elsewhere.device).view(4, 3)
    here, ids = torch.ones(4, 3), torch.tensor([1, 2])
    wrong = [
        lambda: there + here,
        lambda: there @ here.T,
        lambda: there.index_select(0, ids),
        lambda: torch.nn.functional.embedding(ids, there),
        lambda: here[ids.to(elsewhere.device)],
        lambda: torch.cat([there, here]),
        lambda: torch.stack([there.sum(), here.sum()]),
        lambda: there.add_(here),
        lambda: there.index_add_(0, ids, there[:2]),
        lambda: torch.rand(3, device=elsewhere.device, generator=torch.Generator()),
        lambda: torch.rand(3, generator=torch.Generator(elsewhere.device)),
        lambda: torch.sparse_coo_tensor(ids[None], there[0, :2]),
    ]
    for n, mistake in enumerate(wrong):
        with pytest.raises(MixedDevicesError):
            mistake()
            pytest.fail(f"mistake {n} passed")
    with pytest.raises(TypeError, match="convert lazy:0 device type tensor to numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).tolist()[1] == [6.0, 8.0, 10.0]  # a number of the host
    there[torch.tensor([1], device=elsewhere.device)] = 0.0
    assert there.cpu().sum() == 0 + 1 + 2 + sum(range(6, 12))
    assert torch.rand(2, device=elsewhere.device, generator=torch.Generator(elsewhere.device)).device == there.device
    with Elsewhere(host_ids=True):
        assert there[ids].device == there.device
        with pytest.raises(MixedDevicesError):
            there.index_select(0, ids)


def test_mistakes_of_a_backward_pass_are_found(elsewhere: Elsewhere) -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * torch.full((3,), 2.0)

    x = torch.zeros(3, device=elsewhere.device, requires_grad=True)
    with pytest.raises(MixedDevicesError, match=r"mul\.Tensor"):
        Scaled.apply(x).sum().backward()


@pytest.mark.parametrize("name", ["FREEDOM+MRdIB (paper)", "VBPR+MRdIB"])
def test_values_are_those_of_the_host(name: str, data: Path, splits: dict[Any, Any]) -> None:
    """What runs elsewhere is computed, and by the same kernels: losses, steps and rankings are equal."""
    host = step_and_rank(name, data, splits)
    with Elsewhere():
        assert step_and_rank(name, data, splits) == host


# What a GPU would wait for.


def test_waits_are_counted(elsewhere: Elsewhere) -> None:
    x = torch.arange(4.0, device=elsewhere.device)
    x.sum(), x[x.argsort()], torch.zeros(3), x.to(elsewhere.device), x.new_zeros(2)
    torch.repeat_interleave(x, x.long(), output_size=6)
    assert not elsewhere.waits
    x.sum().item(), bool((x > 0).all()), x.cpu(), torch.ones(2).to(elsewhere.device), x.nonzero(), x[x > 1], x.tolist()
    torch.repeat_interleave(x, x.long())
    kinds = [what.partition(":")[0] for what in elsewhere.waits.elements()]
    assert sorted(kinds) == sorted(
        ["local_scalar_dense"] * 2
        + ["to the host"] * 2
        + ["from the host", "nonzero", "rows by a mask", "repeat_interleave"]
    )


def waits_a_batch(name: str, data: Path, splits: dict[Any, Any]) -> dict[str, int]:
    """What an epoch waits for more, for each batch more that it has."""
    found = []
    for size in (2048, 100):  # one batch, and three
        with Elsewhere(host_ids=name in AUTOENCODERS) as elsewhere:
            sizes = {"stage_batch_size" if "MRdIB" in name and "(" not in name else "train_batch_size": size}
            trainer, parts = trainer_of(name, data, splits, **sizes)
            parts.train.generator.manual_seed(1)
            elsewhere.waits.clear()
            trainer._train_epoch(parts.train, 0)
            found.append(elsewhere.waits)
    more = {what: n - found[0][what] for what, n in found[1].items()}
    assert len(parts.train) == 3 and all(n % 2 == 0 and n >= 0 for n in more.values())
    return {what: n // 2 for what, n in more.items() if n}


# Calls that make the host wait, for each batch of a small data set; docs/gpu.md says which they are and why they stay.
WAITS = {
    "VBPR": 0,
    "MMGCN": 0,
    "FREEDOM": 0,
    "MGCN": 2,
    "LightGCN": 1,
    "VBPR+MG": 0,
    "VBPR+MRdIB (paper)": 1,
    "VBPR+MRdIB": 6,
}


@pytest.mark.parametrize("name", WAITS)
def test_no_batch_waits_but_for_what_is_listed(name: str, data: Path, splits: dict[Any, Any]) -> None:
    waits = waits_a_batch(name, data, splits)
    assert sum(waits.values()) == WAITS[name], waits


# Checkpoints that move.


@pytest.mark.parametrize("back", [False, True])
def test_a_training_goes_on_on_another_device(
    back: bool, data: Path, splits: dict[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Elsewhere(), contextlib.nullcontext()) if back else (contextlib.nullcontext(), Elsewhere())
    with first:
        trainer, parts = trainer_of("VBPR+Noise", data, splits)
        trainer._train_data = parts.train
        trainer._train_epoch(parts.train, 0)
        trainer.write_checkpoint(tmp_path / "last.pt")
        weights = {n: x.cpu().clone() for n, x in trainer.model.state_dict().items()}
        moments = [s["exp_avg"].cpu().clone() for s in trainer.optimizer.state.values()]
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {x.device.type for x in saved["state_dict"].values()} == {"cpu"}
    with second:
        trainer, parts = trainer_of("VBPR+Noise", data, splits)
        trainer.resume_checkpoint(tmp_path / "last.pt", parts.train)
        assert trainer.start_epoch == 1
        for name, x in trainer.model.state_dict().items():
            assert x.device == trainer.device and torch.equal(x.cpu(), weights[name])
        for s, moment in zip(trainer.optimizer.state.values(), moments, strict=True):
            assert s["exp_avg"].device == trainer.device and torch.equal(s["exp_avg"].cpu(), moment)
        assert math.isfinite(trainer._train_epoch(parts.train, 1))
    names = ("lazy", "cpu") if back else ("cpu", "lazy")
    assert f"trained on {names[0]}, goes on on {names[1]}" in caplog.text and "from epoch 1 on" in caplog.text


def test_random_states_of_cuda_are_left_behind(
    data: Path, splits: dict[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CUDA's generators have states of 16 bytes, which the CPU's refuse."""
    path = tmp_path / "last.pt"
    trainer, parts = trainer_of("VBPR+Noise", data, splits)
    trainer._train_data = parts.train
    trainer._train_epoch(parts.train, 0)
    trainer.write_checkpoint(path)
    trainer.resume_checkpoint(path, parts.train)
    assert not caplog.records  # the same device
    state = torch.load(path, weights_only=True)
    streams = [k for k in state["model_state"] if k.startswith("draws of ")]
    assert streams == ["draws of Noise"]
    of_cuda = torch.zeros(16, dtype=torch.uint8)
    del state["device"]  # as older checkpoints
    record.save_checkpoint(
        path, state | {"cuda_rng": of_cuda, "batch_rng": of_cuda, "model_state": dict.fromkeys(streams, of_cuda)}
    )
    losses = []
    for _ in range(2):  # the new streams are the same each time
        trainer.resume_checkpoint(path, parts.train)
        losses.append(trainer._train_epoch(parts.train, 1))
    assert losses[0] == losses[1] and "trained on cuda, goes on on cpu" in caplog.text


# Blocks by the memory that is free.


def test_blocks_of_the_evaluation_by_free_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert scores_in_memory(500, torch.device("cpu")) == 500 and not caplog.records
    assert scores_in_memory("auto", torch.device("cpu")) == 1 << 20
    for free, expected in ((1 << 20, 1 << 20), (1 << 30, 1 << 24), (80 << 30, 1 << 28)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free, 80 << 30))
        assert scores_in_memory("auto", torch.device("cuda", 0)) == expected
    assert "eval_batch_size=auto: 16777216 scores at a time (memory free on cuda:0: 1.0 GiB)" in caplog.text


def test_only_sizes_that_change_no_result_are_found_by_themselves(data: Path, splits: dict[Any, Any]) -> None:
    given, auto = (trainer_of("VBPR", data, {}, eval_batch_size=size) for size in (1 << 20, "auto"))
    assert given[0].rank(given[1].valid).means == auto[0].rank(auto[1].valid).means
    with pytest.raises(ConfigError, match="--train_batch_size=auto: the size of a batch changes what is learnt"):
        trainer_of("VBPR", data, splits, train_batch_size="auto")


# What is done with a run.


def test_a_whole_run_and_what_is_made_of_it(data: Path, tmp_path: Path) -> None:
    """Trained and ranked elsewhere, new items too; read there and, from the same files, on the host."""
    values = {**SETTINGS, "metrics": ["Recall", "GiniIndex"], "stage_epochs": 1, "epochs": 1, "cold_items": 0.1}
    with Elsewhere():
        result = train("VBPR+MRdIB", "toy", 1, values={"data_path": str(data), **values}, runs=tmp_path)
        assert result["state"] == "complete" and 0 <= result["cold"]["recall@5"] <= 1
        there = read(Path(result["folder"]))
    for mine, theirs in zip(there, read(Path(result["folder"])), strict=True):
        assert mine == theirs


def read(folder: Path) -> list[Any]:
    trained = export.load(folder)
    user, items = str(trained.users[trained.trained_users][0]), [str(i) for i in trained.items[1:3]]
    return [
        trained.recommend(k=3).to_dict(),
        [block.to_dict() for block in trained.history_blocks({"x": items}, 3)],
        explain.explain(trained, user),
        slices.by_popularity(trained, 5),
        slices.by_history(trained, 5),
    ]
