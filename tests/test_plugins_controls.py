"""Mirror Gradient and the controls by hand, plug-ins around plug-ins, and what is off is the host."""

import copy
import json
from pathlib import Path

import pytest
import torch

from mmrec_mrdib import cli, load, load_checkpoint, registry, train
from mmrec_mrdib import trainer as trainer_module
from mmrec_mrdib.errors import ConfigError, ContractError, NonFiniteLossError
from mmrec_mrdib.experiment import leaderboard, tune
from mmrec_mrdib.experiment.run import Interrupted, display_name, make_config, prepare, seeded_model
from mmrec_mrdib.models.base import StepLoss
from mmrec_mrdib.mrdib.encoder import Gaussian
from mmrec_mrdib.optim import RowAdam
from mmrec_mrdib.plugins.base import JointSettings, Plugin
from mmrec_mrdib.testing.contract import OFF, assert_off, build
from mmrec_mrdib.trainer import MRdIBTrainer


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A folder for `build`, shared: its data are written once."""
    return tmp_path_factory.mktemp("toys")


@pytest.fixture(scope="module")
def made(toys):
    """Model and splits of a variant with two modalities; splits of the same data are read once."""
    splits = {}

    def make(model, modalities=2, **values):
        own = {k: v for k, v in values.items() if k in ("train_batch_size", "learner", "feature_control")}
        key = (modalities, json.dumps(own))
        built, splits[key] = build(model, toys, modalities, splits.get(key), **values)
        return built, splits[key]

    return make


def first_batch(splits):
    return next(iter(splits.train))


# What is off is the host.


@pytest.mark.parametrize("plugin", OFF)
@pytest.mark.parametrize("base", sorted(registry.BASELINES))
def test_a_plugin_that_is_off_is_a_plain_baseline(made, base, plugin):
    """Of backbones with features: `ContractTests`."""
    sizes = {"embedding_size": None} if base == "ItemKNNCBF" else {}
    plain, splits = made(base, **sizes)
    fitting = {"+MRdIB", "+Content"} | (set() if base == "ItemKNNCBF" else {"+MG", "+MRdIB (joint)"})
    if plugin not in fitting:
        with pytest.raises(ConfigError, match=r"no features|fitted in one pass|not trained on pairs"):
            made(base + plugin, **sizes, **OFF[plugin])
        return
    batch = {plain.USER_ID: torch.arange(1, 4), plain.ITEM_ID: torch.arange(3, 6)}
    variant, _ = made(base + plugin, **sizes, **OFF[plugin])
    assert_off(plain, batch if base == "ItemKNNCBF" else first_batch(splits), variant)


class Idle(Plugin):
    """Draws parameters and has no use for them."""

    class settings_class(JointSettings):
        pass

    needs_features = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.own = torch.nn.Linear(7, 3)
        torch.rand(5)


def run_outcome(folder):
    result = json.loads((Path(folder) / "result.json").read_text())
    epochs = [(e["losses"], e["valid"]) for e in result["epochs"]]
    state = load_checkpoint(Path(folder) / "best.pt")["state_dict"]
    return epochs, result["test"], {k.rpartition("backbone.")[2]: v for k, v in state.items()}


VALUES = {
    "epochs": 2, "topk": [5], "valid_metric": "Recall@5", "embedding_size": 8, "train_batch_size": 64, "modalities": "a,b",
    "learning_rate": 0.01, "checkpoint_interval": 0,
}  # fmt: skip


@pytest.fixture
def fit(toy, tmp_path):
    def call(model, runs="runs", resume=False, **values):
        values = {k: v for k, v in (VALUES | {"data_path": str(toy)} | values).items() if v is not None}
        return train(model, "toy", 3, values=values, runs=tmp_path / runs, resume=resume)

    return call


def test_a_training_with_what_is_off_is_the_hosts(fit, monkeypatch):
    """FREEDOM draws edges anew in each epoch."""
    monkeypatch.setitem(registry.PLUGINS, "Idle", f"{__name__}:Idle")
    epochs, test, state = run_outcome(fit("FREEDOM")["folder"])
    off = {"+Idle": {}, "+Noise+Dropout+L2+Unimodal": OFF["+Noise+Dropout+L2+Unimodal+MG"]}
    off["+MRdIB (paper)"] = OFF["+MRdIB (paper)"]
    for plugin, values in off.items():
        off_epochs, off_test, off_state = run_outcome(fit("FREEDOM" + plugin, **values)["folder"])
        assert (off_epochs, off_test) == (epochs, test), plugin
        assert all(torch.equal(off_state[k], v) for k, v in state.items()), plugin


# Mirror Gradient.


def started(toys, folder, model="VBPR+MG", **values):
    """A trainer before its first step, its splits, and the batches of the first epoch."""
    values = {k: v for k, v in (VALUES | {"data_path": str(toys)} | values).items() if v is not None}
    config = make_config(model, "toy", 1, values=values)
    batches = list(prepare(config).train)
    splits = prepare(config)
    return MRdIBTrainer(config, seeded_model(config, splits), folder), splits, batches


def core_of(trainer):
    return getattr(trainer.model, "core", trainer.model)


@pytest.fixture(scope="module", autouse=True)
def data(toys):
    build("VBPR", toys)


def gradient(model, batch):
    return torch.autograd.grad(model.calculate_loss(batch), list(model.parameters()))


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("scaler", [False, True])
def test_with_sgd_it_is_a_step_down_and_a_smaller_step_up(toys, tmp_path, clip, scaler):
    """Every third batch from the first, theta - eta a1 g(theta) + eta a2 g(theta'); only the second gradient is clipped."""
    values = {
        "learner": "sgd",
        "learning_rate": 0.5,
        "mirror_descent": 0.8,
        "mirror_ascent": 0.3,
        "enable_scaler": scaler,
    }
    trainer, splits, batches = started(toys, tmp_path, clip_grad_norm=clip and {"max_norm": clip}, **values)
    by_hand = copy.deepcopy(core_of(trainer)).train()
    trainer._train_epoch(splits.train, 0)
    for n, batch in enumerate(batches):
        for factor in (0.8, -0.3) if n % 3 == 0 else (1.0,):
            grads = [factor * g for g in gradient(by_hand, batch)]
            norm = torch.cat([g.flatten() for g in grads]).norm()
            if clip and factor in (1.0, -0.3):
                grads = [g * min(1.0, clip / norm) for g in grads]
            with torch.no_grad():
                for p, g in zip(by_hand.parameters(), grads, strict=True):
                    p -= 0.5 * g
    assert len(batches) >= 4  # the first and the fourth
    for p, truth in zip(core_of(trainer).parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, truth, rtol=1e-5, atol=1e-7)


def test_without_ascent_it_is_a_step_and_one_without_gradient(toys, tmp_path):
    """Under Adam the second is no standstill: the moments decay and go on pushing."""
    trainer, splits, batches = started(toys, tmp_path, mirror_ascent=0)
    by_hand = copy.deepcopy(core_of(trainer)).train()
    adam = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    trainer._train_epoch(splits.train, 0)
    for n, batch in enumerate(batches):
        for p, g in zip(by_hand.parameters(), gradient(by_hand, batch), strict=True):
            p.grad = g
        adam.step()
        if n % 3 == 0:
            for p in by_hand.parameters():
                p.grad.zero_()
            adam.step()
    for p, truth in zip(core_of(trainer).parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, truth, rtol=1e-5, atol=1e-6)
    assert int(trainer.optimizer.state[core_of(trainer).users]["step"]) == len(batches) + -(-len(batches) // 3)


def test_tables_that_are_updated_by_rows_count_two_steps(toys, tmp_path, monkeypatch):
    values = {"train_batch_size": 1, "mirror_ascent": 0.3, "learning_rate": 0.001}
    by_rows, _, batches = started(toys, tmp_path / "rows", **values)
    assert isinstance(by_rows.optimizer, RowAdam) and by_rows.optimizer.tables
    monkeypatch.setattr(trainer_module, "ROWS_PAY", 10**9)
    dense, _, _ = started(toys, tmp_path / "dense", **values)
    assert not isinstance(dense.optimizer, RowAdam)
    for trainer in (by_rows, dense):
        trainer._train_epoch(batches[:70], 0)
    table = by_rows.optimizer.tables[0]
    assert int(by_rows.optimizer.state[table]["step"]) == 70 + 24
    for p, truth in zip(by_rows.model.parameters(), dense.model.parameters(), strict=True):
        torch.testing.assert_close(p, truth, rtol=0, atol=1e-5)  # a hundredth of a step


@pytest.mark.parametrize("model", ["VBPR+MRdIB (paper)+MG", "VBPR+MG+MRdIB (paper)"])
def test_estimators_are_not_mirrored(toys, tmp_path, model):
    """After a mirrored batch theirs is what one plain step makes; the model's is not."""
    plain, splits, batches = started(toys, tmp_path / "plain", "VBPR+MRdIB (paper)", train_batch_size=512)
    mirrored, other, _ = started(toys, tmp_path / "mg", model, train_batch_size=512)
    start = [p.detach().clone() for p in plain.model.mi_parameters()]
    for trainer, data in ((plain, splits.train), (mirrored, other.train)):
        torch.manual_seed(4)  # MINE shuffles
        trainer._train_epoch(data, 0)
    assert len(batches) == 1
    pairs = list(zip(plain.model.mi_parameters(), mirrored.model.mi_parameters(), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, (b, _) in zip(start, pairs, strict=True))
    assert not torch.equal(core_of(plain).users, core_of(mirrored).users)
    assert plain.history[0]["losses"] == mirrored.history[0]["losses"]  # of the first pass


def test_nan_in_the_second_pass_ends_the_training(toys, tmp_path):
    trainer, splits, _ = started(toys, tmp_path)
    stock, calls = trainer.model.step_loss, []

    def odd(batch):
        calls.append(batch)
        return StepLoss({**stock(batch).parts, "odd": torch.tensor(float("nan") if len(calls) == 2 else 0.0)})

    trainer.model.step_loss = odd
    with pytest.raises(NonFiniteLossError, match=r"loss term odd became NaN or infinite in epoch 0, batch 0"):
        trainer._train_epoch(splits.train, 0)


@pytest.mark.parametrize("model", ["LightGCN", "BPR", "SelfCF", "NeuMF", "MultiVAE", "RecVAE", "FREEDOM", "SLMRec"])
def test_it_works_around_whatever_learns_in_steps(toys, tmp_path, model):
    """A period of many epochs mirrors the first batch alone: before it and where nothing is mirrored, it is the backbone's training."""
    small = {
        "NeuMF": {"embedding_size": None, "mlp_embedding_size": 4, "mf_embedding_size": 4},
        "MultiVAE": {"embedding_size": None}, "RecVAE": {"embedding_size": None},
    }.get(model, {})  # fmt: skip
    ends = []
    for n, (name, values) in enumerate(((model, {}), (model + "+MG", {}), (model + "+MG", {"mirror_ascent": 0.3}))):
        trainer, splits, _ = started(toys, tmp_path / str(n), name, **small, **values)
        steps = []
        stock = trainer.optimizer.step
        trainer.optimizer.step = lambda *a, steps=steps, stock=stock, **k: (steps.append(1), stock(*a, **k))[1]
        trainer._train_epoch(splits.train, 0)
        ends.append((len(steps), torch.cat([p.detach().flatten() for p in core_of(trainer).parameters()])))
    assert ends[1][0] == ends[0][0] + -(-ends[0][0] // 3)
    assert ends[1][1].isfinite().all()
    assert not torch.equal(ends[0][1], ends[1][1]) and not torch.equal(ends[1][1], ends[2][1])


def test_data_without_features_are_enough(tmp_path):
    from mmrec_mrdib.testing.toy import write_mmrec

    write_mmrec(tmp_path / "toy", users=40, items=30, dims={})
    trainer, splits, _ = started(tmp_path, tmp_path / "run", "LightGCN+MG", modalities=None)
    assert trainer._train_epoch(splits.train, 0) > 0 and trainer.rank(splits.test).means["recall@5"] >= 0


def test_on_ids_alone_features_change_nothing(toys, tmp_path):
    """Whatever it gains there is not information."""
    ends = []
    for n, control in enumerate((None, "shuffle")):
        trainer, splits, _ = started(toys, tmp_path / str(n), "LightGCN+MG", feature_control=control)
        trainer._train_epoch(splits.train, 0)
        ends.append(torch.cat([p.flatten() for p in core_of(trainer).parameters()]))
    assert torch.equal(*ends)


def test_recboles_own_trainer_is_told_of(made, caplog):
    model, splits = made("VBPR+MG")
    with caplog.at_level("WARNING"):
        for _ in range(2):
            model.calculate_loss(first_batch(splits))
    assert [r.message for r in caplog.records if "mmrec_mrdib.train" in r.message] == [
        "+MG changes the trainer's step, and RecBole's own Trainer takes plain ones: train with mmrec_mrdib.train"
    ]


# The controls.


def seeded(model, seed=3):
    """The plug-in's stream from a known place."""
    for plugin in model.plugins:
        plugin.draws.on(model.device).manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def test_noise_is_sigma_times_a_standard_normal(made):
    model, _ = made("VBPR+Noise", z_noise=0.3)
    for items in (None, torch.tensor([2, 5, 9])):
        generator = seeded(model.train())
        enc = model.encode_items(items)
        for m, z in enc.z.items():
            torch.testing.assert_close(z - enc.mean[m], 0.3 * torch.empty_like(z).normal_(generator=generator))
        assert enc.rate is None
    model.eval()
    enc = model.encode_items()
    assert all(torch.equal(z, enc.mean[m]) for m, z in enc.z.items())


def test_noise_is_the_stochastic_encoder_whose_sigma_is_constant(made):
    """MRdIB's stage with `sigma: constant` draws the same samples."""
    model, _ = made("VBPR+Noise", z_noise=0.3)
    log_var = 2 * torch.tensor(0.3).log().item()
    stage = Gaussian({"a": 8, "b": 8}, log_var, -20, 4, "constant", stream=lambda device: generator).train()
    generator = seeded(model.train())
    ours = model.encode_items().z
    theirs = stage(model.core.encoders, {m: model.features(m) for m in ("a", "b")}, None).z
    for m, z in ours.items():
        torch.testing.assert_close(z, theirs[m])


@pytest.mark.parametrize("partial", [False, True])
def test_relative_noise_is_in_units_of_mu_over_the_batchs_items(made, partial):
    model, splits = made("VBPR+Noise (relative)", z_noise=0.5)
    batch = model.train().batch(first_batch(splits)[:3])
    items = batch.items
    assert 0 not in items and len(items) < 8
    generator = seeded(model)
    enc = model.encode_items(items if partial else None)
    for m, z in enc.z.items():
        mu = model.core.encoders[m](model.features(m)).detach()[items]
        noise = 0.5 * mu.square().mean().sqrt() * torch.empty_like(z).normal_(generator=generator)
        torch.testing.assert_close(z - enc.mean[m], noise)
        assert torch.autograd.grad(z.sum(), model.core.encoders[m].bias)[0].eq(len(z)).all()  # sigma is a constant


def test_noise_is_in_the_loss_but_in_no_score(made):
    model, splits = made("VBPR+Noise", z_noise=0.5)
    plain, _ = made("VBPR")
    plain.load_state_dict(model.core.state_dict())
    batch = first_batch(splits)
    assert model.train().calculate_loss(batch) != model.calculate_loss(batch) != plain.train().calculate_loss(batch)
    model.eval(), plain.eval()
    assert torch.equal(model.full_sort_predict(batch), plain.full_sort_predict(batch))
    assert set(model.state_dict()) == {f"backbone.{k}" for k in plain.state_dict()}
    ours, theirs = model.evaluation_embeddings(), plain.evaluation_embeddings()
    assert torch.equal(ours.users, theirs.users) and torch.equal(ours.items, theirs.items)


def test_dropout_leaves_out_entries(made):
    model, _ = made("MGCN+Dropout", z_dropout=0.3)
    model.train()
    shares = []
    for _ in range(20):
        enc = model.encode_items()
        for m, z in enc.z.items():
            kept = z != 0
            torch.testing.assert_close(z[kept], enc.mean[m][kept] / 0.7)
            shares.append(1 - kept.float().mean())
    assert torch.stack(shares).mean().item() == pytest.approx(0.3, abs=0.015)
    model.eval()
    assert all(torch.equal(z, model.encode_items().mean[m]) for m, z in model.encode_items().z.items())


@pytest.mark.parametrize("items", [None, torch.arange(1, 31)])
def test_dropout_leaves_out_one_modality_of_an_item(made, items):
    model, _ = made("MGCN+Dropout (modality)", 3, z_dropout=0.4)
    model.train()
    lost_of = []
    for _ in range(60):
        enc = model.encode_items(items)
        changed = {m: (z != enc.mean[m]).any(1) for m, z in enc.z.items()}
        for m, rows in changed.items():
            mean = enc.mean[m][1:].mean(0) if items is None else enc.mean[m].mean(0)  # without the padding
            torch.testing.assert_close(enc.z[m][rows], mean.expand(int(rows.sum()), -1))
        lost = torch.stack(list(changed.values()))
        assert lost.sum(0).max() == 1
        lost_of.append(lost.float().mean(1))
    assert torch.stack(lost_of).mean(0).tolist() == pytest.approx([0.4 / 3] * 3, abs=0.03)
    with pytest.raises(ConfigError, match="needs two modalities"):
        made("VBPR+Dropout (modality)", 1)


@pytest.mark.parametrize("modalities", [1, 3])
def test_l2_is_the_part_of_the_rate_that_is_in_mu(made, modalities):
    """By hand, and by the gradient of MRdIB's rate, whose other part has none where sigma is constant."""
    weights = {"rate_weight": 0.3, "redundant_weight": 0, "unique_weight": 0, "sigma": "constant"}
    off = {"init_log_var": -40, "min_log_var": -40}
    mrdib, _ = made("VBPR+MRdIB (paper)", modalities, **weights, **off)
    model, splits = made("VBPR+L2", modalities, z_l2_weight=0.3)
    batch = first_batch(splits)[:20]
    step = model.train().step_loss(batch)
    items = torch.unique(torch.cat([batch["item_id"], batch["neg_item_id"]]))
    mu = {m: encoder(model.features(m))[items] for m, encoder in model.core.encoders.items()}
    truth = sum(0.5 * rows.square().sum(1).mean() for rows in mu.values())
    torch.testing.assert_close(step.parts["z_l2"], 0.3 * truth)
    torch.testing.assert_close(sum(step.logs.values()), truth)
    pulls = []
    for variant, part in ((model, step.parts["z_l2"]), (mrdib, mrdib.train().step_loss(batch).parts["rate"])):
        pulls.append(torch.autograd.grad(part, [p for e in variant.core.encoders.values() for p in e.parameters()]))
    for ours, theirs in zip(*pulls, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("base", ["VBPR", "BM3"])  # with views, and without
def test_unimodal_is_the_papers_unique_term_alone(made, base):
    silent = {"rate_weight": 0, "redundant_weight": 0, "sigma": "constant", "init_log_var": -40, "min_log_var": -40}
    mrdib, _ = made(f"{base}+MRdIB (paper)", unique_weight=0.2, **silent)
    model, splits = made(f"{base}+Unimodal", unimodal_weight=0.2)
    mrdib.core.load_state_dict(model.core.state_dict())
    assert set(model.own_views) == set(mrdib.own_views) and bool(len(model.own_views)) == (base == "BM3")
    mrdib.own_views.load_state_dict(model.own_views.state_dict())
    batch = first_batch(splits)
    steps = []
    for variant in (model, mrdib):
        torch.manual_seed(2)
        steps.append(variant.train().step_loss(batch).parts)
    ours, theirs = steps
    torch.testing.assert_close(ours["unimodal"], theirs["unique"])
    torch.testing.assert_close(sum(ours.values()), sum(theirs.values()))
    assert model.calculate_loss(batch).backward() is None and all(p.grad.any() for p in model.own_views.parameters())


@pytest.mark.parametrize(
    "plugin", ["Noise", "Noise (relative)", "Dropout", "Dropout (modality)", "L2", "Unimodal", "MG"]
)
@pytest.mark.parametrize("base", ["VBPR", "MGCN"])
def test_one_pair_and_features_of_zero_are_no_trouble(made, base, plugin):
    model, splits = made(f"{base}+{plugin}")
    for m in model.modalities:
        model.features(m)[5] = 0
    step = model.train().step_loss(first_batch(splits)[:1])
    assert all(value.isfinite() for value in (*step.parts.values(), *step.logs.values()))
    step.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_without_negatives_there_is_nothing_to_compare(made, monkeypatch):
    from recbole.utils import InputType

    monkeypatch.setattr(registry.model_class("VBPR"), "input_type", InputType.POINTWISE)
    with pytest.raises(ConfigError, match="Unimodal: compares with sampled negatives, and VBPR is trained without"):
        made("VBPR+Unimodal")


# Plug-ins around plug-ins.


def test_names_of_several():
    for name, layers in {
        "VBPR+MG+MRdIB": [("MG", None), ("MRdIB", None)],
        "VBPR+mrdib-paper+l2": [("MRdIB", "paper"), ("L2", None)],
        "VBPR+Noise (relative)+Dropout-modality+MG": [("Noise", "relative"), ("Dropout", "modality"), ("MG", None)],
    }.items():
        variant = registry.variant(name)
        assert [(v.plugin, v.preset) for v in variant.layers] == layers and variant.root == "VBPR"
        assert registry.variant(variant.name) == variant == registry.of_kind("VBPR", variant.kind)
    assert registry.variant("VBPR+MRdIB (paper)+MG") == ("VBPR+MRdIB (paper)", "MG", None)
    assert registry.variant("VBPR+MRdIB (paper)+MG").kind == "mrdib-paper+mg"
    for wrong, told in (
        ("VBPR+MG+MG", "MG is named twice"),
        ("VBPR+MG+Mg", "named twice"),
        ("VBPR+MG+Nose", "no such plug-in"),
    ):
        with pytest.raises(ConfigError, match=told):
            registry.variant(wrong)


def test_losses_add_up_and_stages_compose(made):
    model, splits = made("MGCN+Noise+L2+Unimodal+Dropout", z_noise=0)
    batch = first_batch(splits)
    torch.manual_seed(2)
    step = model.train().step_loss(batch)
    assert {"z_l2", "unimodal"} < set(step.parts)
    assert {name.partition("/")[0] for name in step.logs} == {"z_l2", "unimodal"}
    alone, _ = made("MGCN+L2")
    assert torch.equal(
        alone.train().step_loss(batch).parts["z_l2"], step.parts["z_l2"]
    )  # of mu, whatever is left out of z
    noisy, _ = made("MGCN+Noise+Dropout", z_noise=0.3, z_dropout=0.4)
    enc = noisy.train().encode_items()
    for m, z in enc.z.items():
        left = z != 0
        assert 0.3 < 1 - left.float().mean() < 0.5 and (0.6 * z - enc.mean[m])[left].std().item() == pytest.approx(
            0.3, abs=0.1
        )


class Two(Idle):
    """Two plug-ins' worth of faults."""

    def terms(self, enc, emb, batch, host):
        return StepLoss({next(iter(host)): torch.zeros(())})


class ByItself(Idle):
    def step_loss(self, interaction):
        return StepLoss({"own": self.own.weight.sum()})


class AsABackbone(Idle):
    def loss_parts(self, enc, emb, batch):
        return super().loss_parts(enc, emb, batch) | {"own": self.own.weight.sum()}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("VBPR+MRdIB (paper)+Noise", r"MRdIB and Noise both replace the encoding stage; leave one of them out"),
        ("VBPR+MRdIB+Content", r"MRdIB and Content both add a readout"),
        ("VBPR+MG+Mirror", r"MG and Mirror both change the trainer's step"),
        ("VBPR+ByItself+MRdIB (joint)", r"ByItself makes its steps by itself"),
        ("LightGCN+Noise", r"\+Noise: LightGCN has no features"),
        ("LightGCN+MG+L2", r"\+L2: LightGCN\+MG has no features"),
        ("Pop+MG", r"Pop is fitted in one pass, without steps: \+MG has no effect"),
    ],
)
def test_what_fights_over_a_seam_is_told(made, monkeypatch, model, told):
    for cls in (ByItself, Mirror):
        monkeypatch.setitem(registry.PLUGINS, cls.__name__, f"{__name__}:{cls.__name__}")
    with pytest.raises(ConfigError, match=told):
        made(model, embedding_size=None)


class Mirror(registry.model_class("MG")):
    """Another step."""


def test_losses_of_third_parties_are_not_lost(made, monkeypatch):
    for cls in (Two, ByItself, AsABackbone):
        monkeypatch.setitem(registry.PLUGINS, cls.__name__, f"{__name__}:{cls.__name__}")
    for name in ("VBPR+AsABackbone", "VBPR+AsABackbone+MG", "VBPR+L2+AsABackbone", "VBPR+AsABackbone+L2"):
        model, splits = made(name)
        assert "own" in model.train().step_loss(first_batch(splits)).parts, name
    model, splits = made("VBPR+ByItself+MG")  # stands outside
    assert [type(p).__name__ for p in model.plugins] == ["ByItself", "MG"]
    model, splits = made("VBPR+Two")
    with pytest.raises(ContractError, match="Two: a loss 'bpr' is there already"):
        model.step_loss(first_batch(splits))


def test_parameters_are_each_plugins_own(toys):
    given = {"data_path": str(toys)}
    config = make_config("VBPR+MRdIB (paper)+Content", "toy", 1, values=given | {"mi_hidden_size": 7})
    content, mrdib = config.layers
    assert (content["training"], content["readout"]) == ("staged", "late")
    assert (mrdib["training"], mrdib["readout"], mrdib["encoders"], mrdib["mi_hidden_size"]) == (
        "joint",
        "none",
        "backbone",
        7,
    )
    both = make_config("VBPR+MRdIB (paper)+Content", "toy", 1, values=given | {"content_control": "shuffle"})
    assert [c["content_control"] for c in both.layers] == ["shuffle"] * 2
    with pytest.raises(ConfigError, match=r"--preset=paper: of which plug-in\?"):
        make_config("VBPR+MRdIB+MG", "toy", 1, values=given | {"preset": "paper"})
    with pytest.raises(ConfigError, match="unknown parameter 'z_noise' for MRdIB"):
        make_config("VBPR+MG+MRdIB", "toy", 1, values=given | {"z_noise": 1})


def test_what_is_trained_after_its_backbone_stands_outside(toys):
    def name(model, **values):
        return display_name(make_config(model, "toy", 1, values={"data_path": str(toys)} | values))

    assert name("VBPR+MRdIB+MG") == name("VBPR+MG+MRdIB") == "VBPR+MG+MRdIB"
    assert name("VBPR+MRdIB+MG", training="joint") == "VBPR+MG+MRdIB"  # its readout is chosen outside
    assert name("VBPR+MRdIB (paper)+MG") == "VBPR+MRdIB (paper)+MG"
    assert name("VBPR+Content+L2+MG") == "VBPR+L2+MG+Content"


STAGE = {"stage_epochs": 1, "stage_batch_size": 64, "content_size": 8}


def test_a_backbone_is_trained_with_its_plugins_and_stays(fit, tmp_path, monkeypatch):
    taken = []
    stock = MRdIBTrainer._train_epoch

    def spy(self, *args, **kwargs):
        taken.append((display_name(self.config), type(self.model.trainer_step()).__name__))
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(MRdIBTrainer, "_train_epoch", spy)
    both = fit("VBPR+MRdIB+MG", mirror_ascent=0.3, **STAGE)
    assert taken == [("VBPR+MG", "MirrorStep")] * 2 + [("VBPR+MG+MRdIB", "Step")]
    host = fit("VBPR+MG", mirror_ascent=0.3, resume=True)
    content = fit("VBPR+MG+Content", mirror_ascent=0.3)
    assert len(taken) == 4  # the backbone was there; Content has no steps but one pass
    assert (both["model"], both["backbone"], both["plugin"]) == ("VBPR+MG+MRdIB", "VBPR+MG", "MRdIB")
    assert both["trained_backbone"]["folder"] == Path(host["folder"]).name
    folders = sorted(p.name.rsplit("-", 2)[0] for p in (tmp_path / "runs").glob("[!.]*"))
    assert folders == ["VBPR+MG+Content-toy", "VBPR+MG+MRdIB-toy", "VBPR+MG-toy"]
    state = load_checkpoint(Path(host["folder"]) / "best.pt")["state_dict"]
    for result in (both, content):
        theirs = load_checkpoint(Path(result["folder"]) / "best.pt")["state_dict"]
        assert all(torch.equal(theirs[f"backbone.{k}"], v) for k, v in state.items())
        assert len(load(result["folder"]).recommend(["5"], k=3)) == 3
    again = fit("VBPR+MG+MRdIB", mirror_ascent=0.3, resume=True, **STAGE)
    assert again["folder"] == both["folder"]


def test_an_interrupted_run_goes_on_with_the_same_noise(fit, monkeypatch):
    model = "VBPR+Noise+Dropout+MG"
    whole = fit(model, runs="whole", epochs=4)
    epoch = MRdIBTrainer._train_epoch

    def interrupted(self, data, index, **kwargs):
        if index == 2:
            raise KeyboardInterrupt
        return epoch(self, data, index, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(MRdIBTrainer, "_train_epoch", interrupted)
        fit(model, epochs=4)
    resumed = fit(model, epochs=4, resume=True)
    ours, theirs = run_outcome(resumed["folder"]), run_outcome(whole["folder"])
    assert ours[:2] == theirs[:2] and all(torch.equal(ours[2][k], v) for k, v in theirs[2].items())


# Boards and searches.


def test_spaces_of_several():
    space = tune.search_space("VBPR+Noise+MG")
    assert set(space) == {*tune.search_space("VBPR"), "z_noise", "mirror_ascent"}
    assert set(tune.search_space("VBPR+Noise+MG", "fixed")) == set(tune.search_space("VBPR"))
    auto = tune.search_space("VBPR+MRdIB (paper)+MG", "auto")
    assert set(auto) == {*tune.search_space("VBPR"), "mirror_ascent"}
    plain = tune.search_space("FREEDOM")
    twins = tune.search_space("FREEDOM+Unimodal")  # its own loss has the term
    assert twins["unimodal_weight"] == plain["reg_weight"] and twins["reg_weight"] == [0.0]


def test_boards_have_them_all(toys):
    variants = (
        "plain",
        "mrdib",
        "content",
        "noise",
        "mg",
        "dropout",
        "l2",
        "unimodal",
        "mrdib+mg",
        "noise-relative+mg",
    )
    spec = leaderboard.Spec(
        ("VBPR", "LightGCN", "Pop"), ("toy",), variants=variants, trials=2, weights="search", data_path=str(toys),
        values={"embedding_size": "8", "z_noise": "0.1", "mirror_ascent": "0.2"},
    )  # fmt: skip
    found = {cell.model: cell for cell in leaderboard.cells(spec)}
    assert {m for m in found if m.startswith("VBPR")} == {registry.of_kind("VBPR", v).name for v in variants}
    assert {m for m in found if m.startswith("LightGCN")} == {
        f"LightGCN{v}" for v in ("", "+MRdIB", "+Content", "+MG", "+MRdIB+MG")
    }
    assert {m for m in found if m.startswith("Pop")} == {"Pop", "Pop+MRdIB", "Pop+Content"}
    assert found["VBPR+MRdIB+MG"].host == (
        "VBPR+MG",
        {"data_path": str(toys), "embedding_size": "8", "mirror_ascent": "0.2"},
    )
    assert "z_noise" not in found["VBPR"].values and found["VBPR+Noise"].values["z_noise"] == "0.1"
    assert "z_noise" not in found["VBPR+Noise (relative)+MG"].space and "z_l2_weight" in found["VBPR+L2"].space
    assert found["VBPR+MRdIB+MG"].variant == "mrdib+mg" and found["VBPR+MRdIB+MG"].backbone == "VBPR"


@pytest.mark.parametrize("variants", ["plain,nose", "plain,mrdib+nose", "MRdIB", "plain,mg+mg"])
def test_variants_that_do_not_exist_are_told(variants, capsys):
    command = ["leaderboard", "--models", "VBPR", "--datasets", "ml-100k", "--variants", variants]
    assert cli.main(command) == 2
    assert ("MG is named twice" if "mg+mg" in variants else "mrdib+mg") in capsys.readouterr().err


def test_the_command_compares_with_the_plain_model(toys, tmp_path, capsys):
    arguments = [f"--{k}={v}" for k, v in (VALUES | {"data_path": toys, "epochs": 1}).items()]
    command = ["train", "--model", "VBPR+Noise+MG", "--dataset", "toy", "--compare", "--z_noise=0.2", "--quiet"]
    assert cli.main([*command, "--runs", str(tmp_path), *arguments]) == 0
    assert "VBPR+Noise+MG" in capsys.readouterr().out
    assert sorted(p.name.rsplit("-", 2)[0] for p in tmp_path.glob("[!.]*")) == ["VBPR+Noise+MG-toy", "VBPR-toy"]
