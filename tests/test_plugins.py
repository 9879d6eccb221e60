"""Plug-ins around any model: the content score and its readout by hand, and runs whose backbone is trained first."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction

from mmrec_mrdib import cli, load, load_checkpoint, paths, registry, train
from mmrec_mrdib.config import parse_value
from mmrec_mrdib.errors import ConfigError, NonFiniteLossError
from mmrec_mrdib.evaluation import rank, rank_ladder, score_all
from mmrec_mrdib.experiment import run as run_module
from mmrec_mrdib.experiment.run import host_config, make_config
from mmrec_mrdib.plugins.channel import explained
from mmrec_mrdib.schema import read_yaml
from mmrec_mrdib.testing.contract import build
from mmrec_mrdib.trainer import MRdIBTrainer

BACKBONES = ("VBPR", "LightGCN", "BPR", "NeuMF")  # inner products, known and unknown; a network of pairs
EVERYBODY = torch.arange(1, 41)


def made(model, folder, **values):
    """A model in evaluation mode; NeuMF's parameters are made large enough to tell its scores apart."""
    if model.startswith("NeuMF"):
        values = {"embedding_size": None, "mf_embedding_size": 8, "mlp_embedding_size": 8} | values
    built, splits = build(model, folder, **values)
    return built.eval(), splits


def scores_of(model, users=EVERYBODY):
    return score_all(model, users, model.USER_ID, model.n_items).detach()


def content_by_hand(model, standard):
    """(U, I) sum over the modalities of <p_u, zhat_i>, in loops over users. `standard`: z is the standardised features."""
    total = torch.zeros(model.n_users, model.n_items)
    for m in model.modalities:
        x = model.features(m)
        z = x.clone()
        z[1:] = (x[1:] - x[1:].mean(0)) / x[1:].std(0, correction=0)
        if not standard:
            z = model.own_encoders[m](x).detach()
        z[0] = 0
        zhat = F.normalize(z)
        for u in range(1, model.n_users):
            mine = model.histories.items[model.histories.indptr[u] : model.histories.indptr[u + 1]]
            total[u] += F.normalize(zhat[mine].sum(0), dim=0) @ zhat.T
    return total


@pytest.mark.parametrize("plugin", ["+MRdIB", "+Content"])
@pytest.mark.parametrize("base", BACKBONES)
def test_scores_are_the_backbones_and_w_times_the_contents(tmp_path, base, plugin):
    model, _ = made(base + plugin, tmp_path)
    plain, _ = made(base, tmp_path)
    plain.load_state_dict(model.backbone.state_dict())
    host = scores_of(plain)
    assert torch.equal(scores_of(model), host) and model.readout() is None  # before a weight is chosen
    model.choose(0, 3.0)
    assert torch.equal(scores_of(model), host) and model.readout() == {"rung": 0.0, "weight": 0.0}
    model.choose(4, 0.5)
    w = 0.5 * model.settings.readout_ladder[4]
    assert model.readout() == {"rung": 0.4, "weight": pytest.approx(w)} and w == pytest.approx(0.2)
    truth = host + w * content_by_hand(model, plugin == "+Content")[1:]
    torch.testing.assert_close(scores_of(model), truth, rtol=1e-5, atol=1e-6)
    items = EVERYBODY % 30 + 1
    pairs = Interaction({model.USER_ID: EVERYBODY, model.ITEM_ID: items})
    torch.testing.assert_close(
        model.predict(pairs).detach(), truth.gather(1, items[:, None]).squeeze(1), rtol=1e-5, atol=1e-6
    )
    if base == "VBPR":
        emb = model.evaluation_embeddings()
        torch.testing.assert_close((emb.users @ emb.items.T)[1:].detach(), truth, rtol=1e-5, atol=1e-6)
        for m, (of_users, of_items) in emb.views.items():
            assert of_users.shape[0] == model.n_users and of_items.shape[0] == model.n_items, m
        by_views = sum(u @ i.T for u, i in emb.views.values())
        torch.testing.assert_close(
            by_views.detach(), content_by_hand(model, plugin == "+Content"), rtol=1e-5, atol=1e-6
        )
    elif base == "NeuMF":
        with pytest.raises(ConfigError, match="no inner products"):
            model.evaluation_embeddings()


def test_new_weights_are_not_scored_with_an_earlier_content(tmp_path):
    model, _ = made("VBPR+MRdIB", tmp_path)
    model.choose(4, 1.0)
    before = scores_of(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model.own_encoders["a"].weight.mul_(-1).add_(0.1)
    model.train(), model.eval()
    after = scores_of(model)
    assert not torch.allclose(after, before)
    model.load_state_dict(state)
    assert torch.equal(scores_of(model), before)


# The ladder.


@pytest.mark.parametrize(("model", "judge"), [("VBPR+MRdIB", "recall@5"), ("NeuMF+Content", "ndcg@10")])
def test_the_ladder_is_the_ranking_at_each_of_its_weights(tmp_path, model, judge):
    model, splits = made(model, tmp_path)
    metrics, ks = ["recall", "ndcg"], [5, 10]
    unit = model.scale([b.users for b in splits.valid])
    some = splits.valid.users
    host, content = model.host_scores(some)[:, 1:], (model.profiles(some) @ model.catalogue()[1].T)[:, 1:]
    assert unit == pytest.approx((host.std(1).mean() / content.std(1).mean()).item(), rel=1e-5)
    at = {}
    for rung in model.rungs():
        model.choose(rung, unit)
        at[rung] = rank(model, splits.valid, metrics, ks, model.USER_ID).per_user
    assert len(at) == len(model.settings.readout_ladder)
    for bigger in (True, False):
        model.step.fill_(-1)
        found = rank_ladder(model, splits.valid, metrics, ks, model.USER_ID, judge, bigger)
        means = {rung: values[judge].mean() * (1 if bigger else -1) for rung, values in at.items()}
        best = min(rung for rung, value in means.items() if value == max(means.values()))
        assert int(model.step) == best and float(model.weight) == pytest.approx(
            model.settings.readout_ladder[best] * unit
        )
        assert all(np.array_equal(values, at[best][name]) for name, values in found.per_user.items())
    assert len({values[judge].mean() for values in at.values()}) > 1


def test_of_equally_good_weights_the_smallest_is_taken(tmp_path):
    """Content that says the same of all items moves nothing."""
    model, splits = made("VBPR+Content", tmp_path)
    model._content = (model.catalogue()[0], torch.ones_like(model.catalogue()[1]))
    model.profiles = lambda users: torch.ones(len(users), model.catalogue()[1].shape[1])
    model.scale = lambda users: 1.0
    rank_ladder(model, splits.valid, ["recall"], [5], model.USER_ID, "recall@5")
    assert int(model.step) == 0 and float(model.weight) == 0 and not model.reads_content


def test_later_validations_look_at_the_neighbours(tmp_path):
    model, _ = made("VBPR+MRdIB", tmp_path)
    assert model.rungs() == list(range(10))
    for at, near in ((0, [0, 1]), (4, [3, 4, 5]), (9, [8, 9])):
        model.choose(at, 1.0)
        assert model.rungs() == near
    off, _ = made("VBPR+MRdIB", tmp_path, readout="none")
    assert off.rungs() == [] and off.readout() is None


def test_a_ladder_of_nan_is_told(tmp_path):
    model, splits = made("VBPR+MRdIB", tmp_path)
    with torch.no_grad():
        model.backbone.users[5] = float("nan")
    with pytest.raises(NonFiniteLossError, match="scores items with NaN"):
        rank_ladder(model, splits.valid, ["recall"], [5], model.USER_ID, "recall@5")


@pytest.mark.parametrize("ladder", ["[0.2, 0.4]", "[]", "[0, 0.4, 0.2]", "[0, 0.2, 0.2]", "[0, -1]"])
def test_ladders_begin_with_0_and_ascend(tmp_path, ladder):
    with pytest.raises(ConfigError, match="readout_ladder"):
        build("VBPR+Content", tmp_path, readout_ladder=ladder)


# What a score is made of.


@pytest.mark.parametrize("model", ["VBPR+MRdIB", "NeuMF+Content"])
def test_an_explanation_sums_to_the_score(tmp_path, model):
    model, _ = made(model, tmp_path)
    model.choose(5, 2.0)
    scores = scores_of(model)
    for user, item in ((1, 3), (7, 30), (40, 1)):
        told = explained(model, user, item)
        assert told["score"] == pytest.approx(scores[user - 1, item].item(), rel=1e-5, abs=1e-6)
        assert told["score"] == pytest.approx(told["backbone"] + sum(told["modalities"].values()), abs=1e-6)
        parts = [part for _, part in told["history"]]
        assert sum(parts) == pytest.approx(sum(told["modalities"].values()), abs=1e-6)
        assert parts == sorted(parts, reverse=True)
        mine = model.histories.entries(torch.tensor([user]))[1]
        assert sorted(i for i, _ in told["history"]) == mine.tolist()
        best = told["history"][0]
        by_hand = 0
        for z in model.unit_rows().values():
            by_hand += float(model.weight * (z[best[0]] @ z[item]) / z[mine].sum(0).norm())
        assert best[1] == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("plugin", ["+Content", "+MRdIB"])
def test_a_control_changes_the_content_and_nothing_of_the_backbone(tmp_path, plugin):
    plain, _ = made(f"VBPR{plugin}", tmp_path)
    other, _ = made(f"VBPR{plugin} (shuffled)", tmp_path)
    assert all(torch.equal(p, other.backbone.state_dict()[n]) for n, p in plain.backbone.state_dict().items())
    assert torch.equal(scores_of(plain), scores_of(other))  # without a weight
    for m in "ab":
        assert torch.equal(other.backbone.features(m), plain.backbone.features(m))
        mine, theirs = (x.content_features()[m][1:] for x in (plain, other))
        assert not torch.equal(mine, theirs)
        assert torch.equal(mine.sort(0).values, theirs.sort(0).values)  # the same rows elsewhere
    plain.choose(4, 1.0), other.choose(4, 1.0)
    assert not torch.allclose(scores_of(plain), scores_of(other))


# Training jointly.


def test_joint_training_adds_to_the_backbones_loss(tmp_path):
    plain, splits = build("BPR", tmp_path)
    joint, _ = build("BPR+MRdIB (joint)", tmp_path)
    batch = next(iter(splits.train))
    parts = joint.train().step_loss(batch).parts
    assert set(parts) == {"loss", "synergistic"} and parts["loss"].item() == plain.calculate_loss(batch).item()
    joint.calculate_loss(batch).backward()
    plain.calculate_loss(batch).backward()
    for name, p in plain.named_parameters():
        assert torch.equal(joint.backbone.get_parameter(name).grad, p.grad)


def test_what_does_not_learn_from_pairs_is_not_trained_jointly(tmp_path):
    with pytest.raises(ConfigError, match=r"NeuMF is not trained on pairs.*--training=staged"):
        made("NeuMF+MRdIB (joint)", tmp_path)
    with pytest.raises(ConfigError, match=r"training='joint'"):
        build("VBPR+Content", tmp_path, training="joint")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoders": "backbone"}, "--training=staged, --encoders=own"),
        ({"training": "joint", "user_view": "backbone"}, "--encoders=own, --user_view=history"),
        ({"weighting": "auto"}, "--encoders=own, --weighting=fixed"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        build("VBPR+MRdIB", tmp_path, **values)


def test_a_model_without_features_has_no_encoders_to_take(tmp_path):
    with pytest.raises(ConfigError, match="BPR has no features; choose --encoders=own"):
        build("BPR+MRdIB (paper)", tmp_path)


# Names and parameters.


def test_names_of_variants():
    for name, parts in {
        "VBPR": ("VBPR", None, None),
        "VBPR+MRdIB": ("VBPR", "MRdIB", None),
        "VBPR+MRdIB (paper)": ("VBPR", "MRdIB", "paper"),
        "VBPR+mrdib-paper": ("VBPR", "MRdIB", "paper"),
        "BPR+Content (shuffled)": ("BPR", "Content", "shuffled"),
    }.items():
        assert registry.variant(name) == parts
        assert registry.variant(registry.variant(name).name) == parts
    assert registry.variant("VBPR+MRdIB (paper)").kind == "mrdib-paper"
    assert list(registry.kinds())[:2] == ["plain", "mrdib"]


def test_a_preset_is_a_layer_over_the_defaults(toy):
    given = {"data_path": str(toy)}
    own, paper = (read_yaml(paths.properties_dir() / f"plugin/{n}.yaml") for n in ("MRdIB", "MRdIB-paper"))
    by_name = make_config("VBPR+MRdIB (paper)", "toy", 1, values=given)
    by_value = make_config("VBPR+MRdIB", "toy", 1, values=given | {"preset": "paper"})
    for config in (by_name, by_value):
        assert {k: config[k] for k in own} == own | paper | {"preset": "paper"}
        assert run_module.display_name(config) == "VBPR+MRdIB (paper)"
    assert make_config("VBPR+MRdIB (paper)", "toy", 1, values=given | {"unique_weight": 0.5})["unique_weight"] == 0.5
    with pytest.raises(ConfigError, match=r"VBPR\+MRdIB \(paper\) names paper"):
        make_config("VBPR+MRdIB (paper)", "toy", 1, values=given | {"preset": "noise"})
    with pytest.raises(ConfigError, match=r"--preset=papr: MRdIB has .*paper"):
        make_config("VBPR+MRdIB", "toy", 1, values=given | {"preset": "papr"})


@pytest.mark.parametrize("plugin", registry.PLUGINS)
def test_every_preset_is_a_subset_of_its_plugins_parameters(plugin):
    own = read_yaml(paths.properties_dir() / f"plugin/{plugin}.yaml")
    for preset in registry.presets(plugin):
        assert set(read_yaml(paths.properties_dir() / f"plugin/{plugin}-{preset}.yaml")) <= set(own), preset


@pytest.mark.parametrize("plugin", registry.PLUGINS)
def test_the_backbones_configuration_is_what_is_given_but_for_the_plugins(toy, plugin):
    """All keys of the plug-in: none reaches the backbone, and none is a parameter of a model; all others do, unchanged."""
    own = read_yaml(paths.properties_dir() / f"plugin/{plugin}.yaml")
    for file in (paths.properties_dir() / "model").glob("*.yaml"):
        assert not set(own) & set(read_yaml(file)), file.name
    assert not set(own) & set(read_yaml(paths.properties_dir() / "overall.yaml"))
    others = {
        "data_path": str(toy), "learning_rate": 0.02, "reg_weight": 0.3, "topk": [5], "valid_metric": "Recall@5", "modalities": "a",
        "feature_norm": "l2", "user_inter_num_interval": "[0,inf)", "epochs": 3,
    }  # fmt: skip
    plain = make_config("VBPR", "toy", 4, values=others)
    host = host_config(
        make_config(f"VBPR+{plugin}", "toy", 4, values=others | {k: v for k, v in own.items() if v is not None})
    )
    assert run_module.record.run_hash(host, "") == run_module.record.run_hash(plain, "")
    assert host["seed"] == 4 and host["model"] == "VBPR" and host["feature_norm"] == "l2"


def test_quoted_values_are_parsed_to_the_same():
    values = {
        "a": "1e-3",
        "b": "none",
        "c": [1, "x"],
        "d": 0.5,
        "field_separator": "\t",
        "e": "[8,inf)",
        "f": None,
        "g": True,
    }
    assert {k: parse_value(k, v) for k, v in run_module.quoted(values).items()} == values


# Runs.

VALUES = {
    "epochs": 3, "topk": [5], "valid_metric": "Recall@5", "embedding_size": 8, "train_batch_size": 64, "modalities": "a,b",
    "learning_rate": 0.01, "checkpoint_interval": 0,
}  # fmt: skip
STAGE = {"stage_epochs": 3, "stage_batch_size": 64, "content_size": 8}


@pytest.fixture
def fit(toy, tmp_path):
    def call(model, runs="runs", resume=False, **values):
        values = VALUES | (STAGE if "+MRdIB" in model else {}) | {"data_path": str(toy), **values}
        values = {k: v for k, v in values.items() if v is not None}
        return train(model, "toy", 3, values=values, runs=tmp_path / runs, resume=resume)

    return call


@pytest.fixture
def trained(monkeypatch):
    """Names of the models whose training began, in order."""
    names = []
    stock = MRdIBTrainer.fit

    def spy(self, *args, **kwargs):
        names.append(run_module.display_name(self.config))
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(MRdIBTrainer, "fit", spy)
    return names


def outcome(result):
    epochs = [{k: v for k, v in e.items() if "seconds" not in k} for e in result["epochs"]]
    return result["test"], result["best_epoch"], result.get("readout"), epochs


def weights(result):
    return load_checkpoint(Path(result["folder"]) / "best.pt")["state_dict"]


def test_the_backbone_is_its_plain_run_in_whichever_order(fit, trained, tmp_path):
    variant = fit("VBPR+MRdIB")
    assert trained == ["VBPR", "VBPR+MRdIB"]
    plain = fit("VBPR", resume=True)  # is there
    content = fit("VBPR+Content")
    assert trained == ["VBPR", "VBPR+MRdIB", "VBPR+Content"]
    first = fit("VBPR", runs="other")
    again = fit("VBPR+MRdIB", runs="other")
    assert trained[3:] == ["VBPR", "VBPR+MRdIB"]
    assert outcome(first) == outcome(plain) and outcome(again) == outcome(variant)
    states = [weights(r) for r in (plain, variant, content, first, again)]
    for name, value in states[0].items():
        assert torch.equal(states[3][name], value)
        assert all(torch.equal(states[n][f"backbone.{name}"], value) for n in (1, 2, 4))
    assert all(torch.equal(states[1][k], v) for k, v in states[4].items())
    # the records
    names = sorted(p.name.rsplit("-", 1)[0] for p in (tmp_path / "runs").glob("[!.]*"))
    assert names == ["VBPR+Content-toy-3", "VBPR+MRdIB-toy-3", "VBPR-toy-3"]
    assert (
        (plain["plugin"], plain["preset"]) == (None, None)
        and "readout" not in plain
        and "trained_backbone" not in plain
    )
    read = json.loads((Path(variant["folder"]) / "result.json").read_text())
    assert (read["model"], read["backbone"], read["plugin"], read["preset"]) == ("VBPR+MRdIB", "VBPR", "MRdIB", None)
    assert read["trained_backbone"] == {"folder": Path(plain["folder"]).name} | {
        k: plain[k] for k in ("total_seconds", "valid", "test", "best_epoch")
    }
    assert set(read["epochs"][0]["losses"]) == {"synergistic"} and len(read["epochs"]) <= 3
    assert read["parameters"] == sum(v.numel() for k, v in states[1].items() if "weight" in k and "own_enc" in k) + sum(
        v.numel() for k, v in states[1].items() if k.endswith("bias") and not k.startswith("backbone")
    ) + sum(v.numel() for k, v in states[1].items() if k.startswith("stage.heads") and k.endswith("weight"))
    ladder = read["config"]["readout_ladder"]
    for result in (variant, content):
        state = weights(result)
        assert result["readout"]["rung"] == ladder[int(state["step"])]
        assert result["readout"]["weight"] == pytest.approx(float(state["weight"]))
        model = load(result["folder"])
        assert model.model.readout() == result["readout"]
        ranked = rank(model.model, model.splits.test, ["recall"], [5], "user_id").means
        assert ranked["recall@5"] == pytest.approx(result["test"]["recall@5"])
    assert len(content["epochs"]) == 1 and content["parameters"] == 0


def test_an_interrupted_second_stage_goes_on(fit, trained, monkeypatch):
    whole = fit("VBPR+MRdIB", runs="whole", stage_patience=5)
    epoch = MRdIBTrainer._train_epoch

    def interrupted(self, data, index, **kwargs):
        if index == 2 and getattr(self.model, "frozen", False):
            raise KeyboardInterrupt
        return epoch(self, data, index, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(run_module.Interrupted, match="epochs 0 to 1 are saved"):
        patch.setattr(MRdIBTrainer, "_train_epoch", interrupted)
        fit("VBPR+MRdIB", stage_patience=5)
    resumed = fit("VBPR+MRdIB", stage_patience=5, resume=True)
    assert outcome(resumed) == outcome(whole) and len(whole["epochs"]) == 3
    assert trained == ["VBPR", "VBPR+MRdIB"] * 2 + ["VBPR+MRdIB"]
    assert all(torch.equal(weights(resumed)[k], v) for k, v in weights(whole).items())


@pytest.mark.parametrize(
    "model", ["LightGCN+MRdIB", "BPR+MRdIB", "ItemKNN+MRdIB", "NeuMF+Content", "LightGCN+Content", "BPR+MRdIB (noise)"]
)
def test_plugins_run_on_models_without_features(fit, trained, model):
    base = registry.variant(model).base
    small = {
        "NeuMF": {"embedding_size": None, "mlp_embedding_size": 4, "mf_embedding_size": 4},
        "ItemKNN": {"embedding_size": None},
    }
    stage = {"stage_epochs": 1} if "MRdIB" in model else {}
    result = fit(model, epochs=1, **small.get(base, {}), **stage)
    assert trained == [base, model] and result["backbone"] == base and result["readout"] is not None
    assert 0 < result["test"]["recall@5"] < 1
    lists = load(result["folder"]).recommend(["5"], k=3)
    assert len(lists) == 3 and lists["score"].is_monotonic_decreasing


def test_what_is_made_of_a_backbone_that_broke_down_is_no_outcome(fit, monkeypatch, tmp_path):
    stock = MRdIBTrainer._train_epoch

    def breaks(self, data, index, **kwargs):
        if index == 2 and not getattr(self.model, "frozen", False):
            raise NonFiniteLossError("loss term bpr became NaN in epoch 2, batch 0")
        return stock(self, data, index, **kwargs)

    monkeypatch.setattr(MRdIBTrainer, "_train_epoch", breaks)
    result = fit("VBPR+Content")
    assert result["state"] == "diverged at epoch 2" and result["error"].startswith(
        "the backbone diverged at epoch 2 (loss term bpr"
    )


def test_a_preset_given_as_a_parameter_is_in_the_name(toy, tmp_path, capsys):
    arguments = [f"--{k}={v}" for k, v in (VALUES | {"data_path": toy, "epochs": 1, "preset": "paper"}).items()]
    command = ["train", "--model", "VBPR", "--dataset", "toy", "--compare", "--runs", str(tmp_path / "r"), "--quiet"]
    assert cli.main([*command, *arguments]) == 0
    assert "VBPR+MRdIB (paper)" in capsys.readouterr().out
    assert len(list((tmp_path / "r").glob("VBPR+MRdIB-paper-toy-*"))) == 1
