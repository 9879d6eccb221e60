"""DVIB, FETTLE and MDVT: each term by hand, where gradients go, when they are off, and what they refuse."""

import functools
import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch.distributions import Normal, kl_divergence

from mmrec_mrdib import registry, train
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import leaderboard
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.graphs import neighbours
from mmrec_mrdib.plugins.dvib import NoiseLevel, Normals, consistency, consistency_of_scores, kl
from mmrec_mrdib.plugins.fettle import audience, balanced, cross_entropy
from mmrec_mrdib.plugins.mdvt import extremes
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.testing.contract import DIMS, gradients
from mmrec_mrdib.testing.toy import write_mmrec

OFF = {
    "DVIB": {"noisy_weight": 0, "rate_weight": 0, "consistency": "none"},
    "FETTLE": {"instance_weight": 0, "cluster_weight": 0},
    "MDVT": {"virtual_weight": 0},
}
REFUSED = {
    "DVIB": {"LATTICE", "DAMRS", "LightGCN", "BPR", "LayerGCN", "SelfCF"},
    "FETTLE": {"PGL", "MENTOR", "DRAGON"},
    "MDVT": set(),
}
HOSTS = (*registry.MODELS, "LightGCN", "BPR", "LayerGCN", "SelfCF")
EVERYBODY = torch.arange(1, 41)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    write_mmrec(folder / "toy", users=40, items=30, dims=DIMS)
    return folder


@functools.cache
def splits_of(folder, modalities):
    return prepare(make_config("VBPR", "toy", 1, values=given(folder, modalities)))


def given(folder, modalities):
    return {"data_path": str(folder), "modalities": ",".join(list(DIMS)[:modalities]), "embedding_size": 8}


def made(model, folder, modalities=2, **values):
    """A model in training mode, and a batch."""
    splits = splits_of(folder, modalities)
    values = {k: v for k, v in (given(folder, modalities) | values).items() if v is not None}
    config = make_config(model, "toy", 1, values=values)
    torch.manual_seed(0)
    return model_class(config["model"])(config, splits.parts[0]).train(), next(iter(splits.train))


def own_features(model):
    """Modality -> features that may be changed: those of the data set are shared."""
    holder = model.backbone if model.featured else model
    for m in model.modalities:
        setattr(holder, f"features_{m}", holder.features(m).clone())
    return {m: model.features(m) for m in model.modalities}


def pairs(users, items, negatives):
    return Interaction(
        {name: torch.tensor(ids) for name, ids in (("user_id", users), ("item_id", items), ("neg_item_id", negatives))}
    )


# All three.


@pytest.mark.parametrize("host", HOSTS)
def test_weights_of_0_are_the_backbone(data, host):
    """Loss, gradients, ranking, and what is drawn at random after the model is made: bit for bit."""
    plain, batch = made(host, data)
    torch.manual_seed(3)
    loss, grads = gradients(plain, batch)
    drawn = torch.rand(1)
    plain.eval()
    users = Interaction({"user_id": EVERYBODY})
    scores = plain.full_sort_predict(users).view(40, -1)
    for plugin, off in OFF.items():
        if host in REFUSED[plugin]:
            with pytest.raises(ConfigError, match=rf"^{host}\+{plugin}: [^\n]+$"):
                made(f"{host}+{plugin}", data)
            continue
        model, _ = made(f"{host}+{plugin}", data, **off)
        torch.manual_seed(3)
        same, theirs = gradients(model, batch)
        assert same == loss and torch.equal(torch.rand(1), drawn), plugin
        assert {n.removeprefix("backbone.") for n in theirs} == set(grads), plugin
        assert all(torch.equal(theirs[f"backbone.{n}"], g) for n, g in grads.items()), plugin
        model.eval()
        assert torch.equal(model.full_sort_predict(users), scores), plugin


@pytest.mark.parametrize("host", ["FREEDOM", "BM3"])
def test_training_with_weights_of_0_is_the_backbones(data, host):
    """FREEDOM draws its edges anew each epoch, BM3 what it drops out in each step."""
    splits, states = splits_of(data, 2), []
    for name, values in {host: {}, **{f"{host}+{plugin}": off for plugin, off in OFF.items()}}.items():
        model, _ = made(name, data, **values)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        splits.train.generator.manual_seed(5)
        for epoch in range(2):
            model.before_epoch(epoch)
            for batch in splits.train:
                optimizer.zero_grad()
                model.calculate_loss(batch).backward()
                optimizer.step()
        states.append({k: v for k, v in model.state_dict().items() if name == host or k.startswith("backbone.")})
    for state in states[1:]:
        assert all(torch.equal(state[f"backbone.{k}"], v) for k, v in states[0].items())


@pytest.mark.parametrize(
    ("model", "term", "values"),
    [
        ("VBPR+DVIB (constant)", "consistency", {}),
        ("LightGCN+FETTLE", "instance", {"n_clusters": 16}),
        ("FREEDOM+MDVT (lazy)", "virtual", {"trigger": "static", "warm_up": 0}),
    ],
)
def test_runs_train_them_with_their_backbone(toy, model, term, values):
    values = {"epochs": 2, "train_batch_size": 64, "topk": [5], "valid_metric": "Recall@5"} | values
    result = train(model, "toy", 1, values=given(toy, 2) | values, runs=toy / "runs")
    first, second = (e["losses"] for e in result["epochs"])
    assert all(map(math.isfinite, (*first.values(), *second.values())))
    assert term in second and (term in first) == (term != "virtual")
    variant = registry.variant(model)
    assert (result["plugin"], result["preset"], result["backbone"]) == (variant.plugin, variant.preset, variant.base)


def test_boards_know_them(toy, tmp_path):
    kinds = ("plain", "dvib", "fettle", "mdvt", "dvib-js", "dvib-constant", "mdvt-lazy")
    spec = leaderboard.Spec(
        ("VBPR",), ("toy",), (1,), kinds, trials=1, weights="search", data_path=str(toy), runs=tmp_path / "runs"
    )
    cells = {c.variant: c for c in leaderboard.cells(spec)}
    assert tuple(cells) == kinds and cells["dvib"].model == "VBPR+DVIB"
    of_host = set(cells["plain"].space)
    assert set(cells["dvib"].space) - of_host == {"consistency_weight"}
    assert set(cells["dvib-constant"].space) - of_host == {"consistency_weight", "init_sigma"}
    assert set(cells["fettle"].space) - of_host == {"instance_weight", "cluster_weight"}
    assert set(cells["mdvt"].space) - of_host == {"virtual_weight", "virtual_k", "least_decline"}


@pytest.mark.parametrize(
    "model", ["VBPR+DVIB", "FREEDOM+DVIB", "GRCN+DVIB", "VBPR+FETTLE", "LightGCN+FETTLE", "VBPR+MDVT"]
)
@pytest.mark.parametrize("modalities", [1, 3])
def test_what_is_rare_gives_finite_losses(data, model, modalities):
    """One pair, of a user with one item that nobody else has and whose features are 0; whatever the number of modalities."""
    built, _ = made(model, data, modalities, **({"trigger": "static", "warm_up": 0} if "MDVT" in model else {}))
    with torch.no_grad():
        for features in own_features(built).values():
            features[7] = 0
    built.before_epoch(1)
    for batch in (pairs([4], [7], [9]), pairs([4, 4, 5], [7, 8, 7], [9, 7, 1])):
        built.zero_grad()
        step = built.step_loss(batch)
        step.total.backward()
        assert all(torch.isfinite(v) for v in (*step.parts.values(), *step.logs.values()))
        assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())
        own = {"DVIB": {"rate", "consistency"}, "FETTLE": {"instance", "cluster"}, "MDVT": {"virtual"}}
        assert own[model.partition("+")[2]] <= set(step.parts)


@pytest.mark.parametrize("model", ["VBPR+DVIB", "FREEDOM+DVIB", "MMGCN+DVIB", "GRCN+FETTLE", "BPR+FETTLE", "MGCN+MDVT"])
def test_mixed_precision_is_close(data, model):
    built, batch = made(model, data)
    if "MDVT" in model:
        built._begin(True)
    state, parts = {k: v.clone() for k, v in built.state_dict().items()}, []
    for enabled in (False, True):
        built.load_state_dict(state)  # the same random numbers
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            parts.append(built.step_loss(batch).parts)
        torch.stack(list(parts[-1].values())).sum().backward()
    for name, value in parts[1].items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(parts[0][name].item(), rel=0.05, abs=1e-3), name


@pytest.mark.parametrize("plugin", OFF)
def test_scores_are_the_backbones(data, plugin):
    """Neither the plug-in's parameters nor its random numbers are in them."""
    model, batch = made(f"VBPR+{plugin}", data)
    model.eval()
    users = Interaction({"user_id": EVERYBODY})
    scores = model.full_sort_predict(users)
    assert torch.equal(scores, model.backbone.full_sort_predict(users))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(1.0)
    model.train(), model.eval()
    assert torch.equal(model.full_sort_predict(users), scores)
    assert torch.equal(model.predict(batch), model.backbone.predict(batch))


def test_large_tables_are_read_as_a_step_reads_them(data):
    """By rows, or dense where a step has to do with all of them: RowAdam takes nothing else."""
    tables = {m: made(m, data)[0].row_tables() for m in ("VBPR", "VBPR+FETTLE", "VBPR+DVIB", "VBPR+MDVT")}
    assert [len(t) for t in tables.values()] == [2, 2, 0, 0]
    some = {"rate_items": "batch", "consistency": "none"}
    model, batch = made("VBPR+DVIB", data, **some)
    assert len(model.row_tables()) == 2 and model.items_to_encode(model.batch(batch)) is None  # a small catalogue
    few = model.batch(pairs([1, 2], [3, 4], [5, 6]))
    assert model.items_to_encode(few).tolist() == [3, 4, 5, 6] and model.users_to_read(few).tolist() == [1, 2]
    assert made("VBPR+DVIB", data)[0].items_to_encode(few) is None


def test_what_is_not_trained_on_pairs_is_told(data):
    with pytest.raises(ConfigError, match="NeuMF is not trained on pairs of items, as MDVT needs it to be"):
        made("NeuMF+MDVT", data, embedding_size=None)
    with pytest.raises(ConfigError, match=r"SGL\+FETTLE: needs users and items whose inner products are the scores"):
        made("SGL+FETTLE", data)


# DVIB.


def test_the_rate_by_hand(rng):
    zero = torch.zeros(1)
    assert kl(zero, torch.full((1, 1), 0.5), 0.5).item() == 0
    assert kl(zero, torch.full((1, 1), math.exp(-2)), 0.5).item() == pytest.approx(0.8435, abs=5e-5)
    x, sigma = (torch.from_numpy(rng.random((5, 3))) for _ in range(2))
    truth = kl_divergence(Normal(x, sigma), Normal(0.0, 0.5)).mean(1)
    torch.testing.assert_close(kl(x.square().mean(1), sigma, 0.5), truth)
    torch.testing.assert_close(kl((2 * x).square().mean(1), 2 * sigma, 1.0), truth)  # U2
    one = sigma[:, :1]
    torch.testing.assert_close(kl(x.square().mean(1), one, 0.5), kl(x.square().mean(1), one.expand(5, 3), 0.5))


def test_the_published_consistency_is_none():
    """Two columns by hand; and what it is with many: ln J - H(M) - |M|^2 + 1/J."""
    p, q = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])  # P = (3/4, 1/4), Q = (1/2, 1/2)
    m = torch.tensor([5 / 8, 3 / 8])
    second = torch.tensor([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))])  # - ln softmax(P)
    truth = (m * (m.log() + (second + math.log(2)) / 2)).sum()
    assert consistency(p, q, "ref").item() == pytest.approx(truth.item(), abs=1e-6)
    js = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)) + 0.5 * (0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3))
    assert consistency(p, q, "js").item() == pytest.approx(js, abs=1e-6)
    flat = torch.full((1, 9), 2.0)
    assert consistency(flat, flat, "ref").item() == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    x = torch.randn(4, 7050)
    assert consistency(x, x, "js").abs().max() < 1e-6
    shares = torch.softmax(x, 1)
    bend = math.log(7050) + (shares * shares.log()).sum(1) - shares.square().sum(1) + 1 / 7050
    torch.testing.assert_close(consistency(x, x, "ref"), bend, rtol=1e-3, atol=1e-4)
    assert consistency(x, x, "ref").mean().item() == pytest.approx(0.4996, abs=0.03)
    moved = x[:, torch.randperm(7050)]
    assert (consistency(x, moved, "ref") < consistency(x, x, "ref")).all()  # the more they disagree, the smaller
    assert (consistency(x, moved, "js") > 0.1).all()


@pytest.mark.parametrize("kind", ["ref", "js"])
def test_consistency_of_scores_is_that_of_their_rows(monkeypatch, kind):
    torch.manual_seed(1)
    tables = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 11, 5, 11)]
    weights = torch.rand(5, dtype=torch.float64)
    logits = tables[0] @ tables[1].T, tables[2] @ tables[3].T
    truth = (consistency(*logits, kind) * weights).sum()
    expected = torch.autograd.grad(truth, tables)
    for entries in (1 << 24, 45):  # as one block, and as three
        monkeypatch.setattr(neighbours, "BLOCK", entries)
        ours = consistency_of_scores(tuple(tables[:2]), tuple(tables[2:]), weights, kind)
        torch.testing.assert_close(ours, truth)
        for ours_grad, grad in zip(torch.autograd.grad(ours, tables), expected, strict=True):
            torch.testing.assert_close(ours_grad, grad)
            assert grad.abs().sum() > 0  # on either side


def test_sigma_at_the_start_and_at_rest():
    level = NoiseLevel(4, (3,), 1, 0.5, glorot=True)
    x = torch.randn(6, 4)
    assert not level.layers[1].bias.any() and not torch.equal(level(x)[0], level(x)[1])
    with torch.no_grad():
        level.layers[-1].weight.zero_()
    assert torch.equal(level(x), torch.full((6, 1), 0.5))
    kl(torch.zeros(6), level(x), 0.5).mean().backward()  # U4: at the prior's width the rate is at rest
    assert level.layers[-1].bias.grad.abs() < 1e-7
    torch.testing.assert_close(NoiseLevel(4, (), 1, 0.1, False).offset, math.log(1 / 9))
    one, many = NoiseLevel(4, (3,), 1, 0.2, False), NoiseLevel(4, (3,), 4, 0.2, False)  # U3
    with torch.no_grad():
        for net in (one, many):
            net.layers[-1].weight.zero_()
            net.layers[-1].bias.fill_(0.7)
    torch.testing.assert_close(one(x).expand(6, 4), many(x))


@pytest.mark.parametrize(
    ("host", "once"),
    [("VBPR", ()), ("FREEDOM", ("bpr",)), ("BM3", ("bootstrap", "norms")), ("GRCN", ()), ("MMGCN", ()), ("MGCN", ())],
)
def test_without_noise_what_is_doubled_is_twice_the_same(data, host, once):
    values = {"dropout": 0} if host == "BM3" else {}
    plain, batch = made(host, data, **values)
    parts = {k: v.item() for k, v in plain.step_loss(batch).parts.items()}
    still = {"sigma": "constant", "init_sigma": 0, "rate_weight": 0, "consistency_weight": 0}
    model, _ = made(f"{host}+DVIB", data, **values, **still)
    twice = {k: v.item() for k, v in model.step_loss(batch).parts.items()}
    doubled = {k: v for k, v in parts.items() if k not in once}
    assert doubled and twice == pytest.approx(parts | {f"noisy_{k}": v for k, v in doubled.items()}, rel=1e-5)


def test_vbpr_by_hand(data):
    model, batch = made("VBPR+DVIB", data, consistency_weight=0.3, rate_weight=0.02)
    host, c, w = model.backbone, 0.3, 0.02
    u, i, j = (batch[f] for f in ("user_id", "item_id", "neg_item_id"))
    z = sum(host.encoders[m](host.features(m)) for m in "ab")
    sigma = torch.sigmoid(
        model.levels["sum"].layers[2](
            torch.relu(model.levels["sum"].layers[1](torch.relu(model.levels["sum"].layers[0](z))))
        )
    )
    noisy = z + sigma * Normals(1)(z)
    assert sigma.shape == (model.n_items, 1)
    losses, logits = [], []
    for x in (z, noisy):
        items = torch.cat([host.items, x], 1)
        scores = host.users @ items.T
        logits.append(scores[u][:, 1:])
        losses.append(F.softplus(scores[u, j] - scores[u, i]).mean())
        losses.append(host.reg_weight / len(u) * sum(rows.norm() for rows in (host.users[u], items[i], items[j])))
    rate = kl_divergence(Normal(z, sigma), Normal(0.0, 0.5))[1:].mean()
    truth = (1 - c) * sum(losses) + c * consistency(*logits, "ref").mean() + w * rate
    step = model.step_loss(batch)
    torch.testing.assert_close(step.total, truth)
    assert step.logs["rate/sum"].item() == pytest.approx(rate.item(), rel=1e-5)
    assert step.logs["standard_rate/sum"].item() == pytest.approx(
        kl_divergence(Normal(z, sigma), Normal(0.0, 1.0))[1:].mean().item(), rel=1e-5
    )
    assert step.logs["sigma/sum"].item() == pytest.approx(sigma[1:].mean().item(), rel=1e-5)
    assert step.logs["rms/sum"].item() == pytest.approx(z[1:].square().mean().sqrt().item(), rel=1e-5)
    again = model.step_loss(batch).parts["noisy_bpr"]
    assert again.item() != step.parts["noisy_bpr"].item()  # drawn anew


@pytest.mark.parametrize("host", ["FREEDOM", "BM3"])
def test_dvib_where_z_is_not_in_the_score(data, host):
    values = {"dropout": 0} if host == "BM3" else {}
    model, batch = made(f"{host}+DVIB", data, consistency="js", **values)
    plain, c = model.backbone, model.settings.consistency_weight
    u, i, j = (batch[f] for f in ("user_id", "item_id", "neg_item_id"))
    draws = Normals(1)
    emb = plain.propagate(plain.encode_items())
    auxiliary, consistent, rates = [], [], []
    for m in "ab":
        z = plain.encoders[m](plain.features(m))
        sigma = model.levels[m](z)
        noisy = z + sigma * draws(z)
        rates.append(kl_divergence(Normal(z, sigma), Normal(0.0, 0.5))[1:].mean())
        if host == "FREEDOM":
            s = emb.users @ noisy.T
            auxiliary.append(plain.reg_weight * F.softplus(s[u, j] - s[u, i]).mean())
            consistent.append(consistency(z[1:], noisy[1:], "js").mean())
        else:
            a, b = plain.predictor(z)[i], plain.predictor(noisy)[i]
            cos = F.cosine_similarity(b, emb.extra["items"][i]).mean() + F.cosine_similarity(b, noisy[i]).mean()
            auxiliary.append(plain.settings.modality_weight * (2 - cos))
            consistent.append(consistency(a, b, "js").mean())
    parts = model.step_loss(batch).parts
    torch.testing.assert_close(parts["noisy_modalities"], (1 - c) * sum(auxiliary), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts["consistency"], c * sum(consistent), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(parts["rate"], 0.001 * sum(rates), rtol=1e-5, atol=1e-7)
    assert (model.levels["a"] is model.levels["b"]) == (host == "BM3")


def test_dvib_on_features_and_on_propagated_content(data):
    model, batch = made("MMGCN+DVIB", data, consistency="none", rate_weight=0.5)
    host, draws = model.backbone, Normals(1)
    assert [layer.weight.shape for layer in model.levels["a"].layers] == [(6, 12), (3, 6), (1, 3)]
    enc = host.encode_items()
    z, rates = {}, []
    for m in "ab":
        x = host.features(m)
        sigma = model.levels[m](x)
        z[m] = host.encoders[m](x + sigma * draws(x))
        rates.append(kl_divergence(Normal(x, sigma), Normal(0.0, 0.5))[1:].mean())
    enc = type(enc)(z, enc.mean)
    parts, truth = model.step_loss(batch).parts, host.loss_parts(enc, host.propagate(enc), host.batch(batch))
    torch.testing.assert_close(parts["noisy_bpr"], truth["bpr"])
    torch.testing.assert_close(parts["rate"], 0.5 * sum(rates))

    model, batch = made("GRCN+DVIB", data, consistency_on="z")
    host = model.backbone
    emb = host.propagate(host.encode_items())
    y = torch.cat([torch.cat([emb.views[m][side] for m in "ab"], 1) for side in (0, 1)])
    assert y.shape == (41 + 31, 16) and torch.equal(emb.items[:, 8:], y[41:])
    sigma = model.levels["content"](y)
    noisy = y + sigma * Normals(1)(y)
    u, i, j = (batch[f] for f in ("user_id", "item_id", "neg_item_id"))
    users, items = torch.cat([emb.users[:, :8], noisy[:41]], 1), torch.cat([emb.items[:, :8], noisy[41:]], 1)
    s = users @ items.T
    rows = torch.cat([torch.arange(1, 41), torch.arange(42, 72)])
    parts = model.step_loss(batch).parts
    torch.testing.assert_close(parts["noisy_bpr"], 0.9 * F.softplus(s[u, j] - s[u, i]).mean())
    torch.testing.assert_close(parts["rate"], 0.001 * kl_divergence(Normal(y, sigma), Normal(0.0, 0.5))[rows].mean())
    torch.testing.assert_close(parts["consistency"], 0.1 * consistency(y[rows], noisy[rows], "ref").mean())


@pytest.mark.parametrize("source", ["noisy_weight", "rate_weight"])
def test_the_noise_learns_from_the_loss_and_from_the_rate(data, source):
    model, batch = made("VBPR+DVIB", data, **(OFF["DVIB"] | {source: 1.0}))
    _, grads = gradients(model, batch)
    nets = [n for n, _ in model.named_parameters() if n.startswith("levels.")]
    assert len(nets) == 6 and all(grads[n].abs().sum() > 0 for n in nets)


def test_units_of_the_rate(data):
    """U1: the sum with w is the mean with w d; U5: all is the batch where that holds every item."""
    whole = pairs([1, 2, 3] * 10, list(range(1, 31)), list(range(1, 31)))
    at = {}
    for name, values in {
        "mean": {"rate_weight": 0.8},
        "sum": {"rate_weight": 0.1, "rate_reduce": "sum"},
        "batch": {"rate_weight": 0.8, "rate_items": "batch"},
    }.items():
        model, _ = made("FREEDOM+DVIB", data, **(OFF["DVIB"] | values))
        at[name] = gradients(model, whole)
    for name in ("sum", "batch"):
        assert at[name][0] == pytest.approx(at["mean"][0], rel=1e-6)
        for parameter, grad in at["mean"][1].items():
            torch.testing.assert_close(at[name][1][parameter], grad, rtol=1e-4, atol=1e-7)
    model, _ = made("FREEDOM+DVIB", data, **(OFF["DVIB"] | {"rate_weight": 1.0, "rate_items": "batch"}))
    z = {m: model.backbone.encoders[m](model.backbone.features(m)[[3, 4, 6]]) for m in "ab"}
    truth = sum(kl_divergence(Normal(x, model.levels[m](x)), Normal(0.0, 0.5)).mean() for m, x in z.items())
    torch.testing.assert_close(model.step_loss(pairs([1, 2], [3, 6], [4, 3])).parts["rate"], truth)


def test_joint_noise_is_that_of_its_parts(data):
    """U6: sigma on the sum is sigma / sqrt(M) on each part."""
    spreads = {}
    for site, sigma in (("sum", 0.4), ("z", 0.4 / math.sqrt(2))):
        model, batch = made("VBPR+DVIB", data, sigma="constant", init_sigma=sigma, site=site, rate_weight=0)
        enc, emb = model.forward_batch(model.batch(batch))
        clean = model._clean(enc, emb)
        moves = []
        for _ in range(40):
            noise = {s: model.sigma(s, x) * model.epsilon(x) for s, x in clean.items()}
            moves.append(model._noisy(enc, emb, noise)[1].items - emb.items)
        moves = torch.stack(moves)
        assert not moves[..., :8].any()  # the half of ids stays
        spreads[site] = moves[..., 8:].var().item()
    assert spreads == pytest.approx({"sum": 0.16, "z": 0.16}, rel=0.06)  # 10,000 numbers: a standard error of 1.4 %


def test_noise_goes_on_after_a_checkpoint(data):
    model, batch = made("VBPR+DVIB", data)
    model.step_loss(batch)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    following = model.step_loss(batch).total
    other, _ = made("VBPR+DVIB", data)
    assert not torch.equal(other.step_loss(batch).total, following)
    other.load_state_dict(state)
    assert torch.equal(other.step_loss(batch).total, following)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("MGCN+DVIB", {"site": "sum"}, "--site=sum: only VBPR"),
        ("VBPR+DVIB", {"site": "propagated"}, "--site=propagated: VBPR"),
        ("VBPR+DVIB", {"init_sigma": 1.5}, "0 < init_sigma < 1"),
        ("VBPR+DVIB", {"sigma": "constant", "init_sigma": 0}, "--rate_weight=0"),
        ("VBPR+DVIB", {"consistency_weight": 2}, "at most 1"),
        ("FREEDOM+DVIB", {"reg_weight": 0}, "no term of its loss reads"),
        ("VBPR+DVIB", {"training": "staged"}, "training='staged'"),
    ],
)
def test_what_dvib_refuses(data, model, values, message):
    with pytest.raises(ConfigError, match=message):
        made(model, data, **values)


# FETTLE.


def directions(model, enc, emb, batch):
    """Views -> (users, items) as FETTLE is told to see a backbone, rows = ids, at length 1."""
    tables = {
        "(ids)": (emb.extra.get("collaborative_users", emb.users), emb.extra.get("collaborative_items", emb.items))
    }
    tables |= {m: emb.views[m] for m in model.modalities}
    return {v: tuple(map(F.normalize, pair)) for v, pair in tables.items()}


def instances_by_hand(model, batch):
    """ILA and DT in loops over items and directions."""
    host = model.backbone
    enc = host.encode_items()
    emb = host.propagate(enc)
    views = directions(model, enc, emb, batch)
    users, positives = batch["user_id"].tolist(), batch["item_id"].tolist()
    ids = sorted(set(positives))
    tau = model.temperatures["instance"]
    served = {}
    for v, (of_users, of_items) in views.items():
        if v == "(ids)":
            of_users, of_items = F.normalize(emb.users), F.normalize(emb.items)
        for i in ids:
            who = [u for u, p in zip(users, positives, strict=True) if p == i]
            served[v, i] = torch.stack([of_users[u] @ of_items[i] for u in who]).mean().item()
    ila, dt, exclusive = 0, 0, True
    for x, y in permutations(views, 2):
        active = [i for i in ids if served[y, i] > served[x, i]]
        exclusive &= not any(served[x, i] > served[y, i] for i in active)
        gains = []
        for i in active:
            source = views[x][1][i]
            g = F.normalize(source + model.maps[f"{x}_to_{y}"].weight @ source, dim=0)
            logits = torch.stack([g @ views[y][1][j] for j in ids]) / tau
            ila -= torch.log_softmax(logits, 0)[ids.index(i)] / len(ids)
            who = [u for u, p in zip(users, positives, strict=True) if p == i]
            gains.append(torch.stack([views[y][0][u] @ g for u in who]).mean() - served[x, i])
        if gains:
            dt -= torch.stack(gains).mean() / (len(views) * (len(views) - 1))
    assert exclusive  # T1
    return ila, dt


@pytest.mark.parametrize("host", ["VBPR", "FREEDOM", "MGCN", "GRCN"])
def test_alignment_of_items_by_hand(data, host):
    model, batch = made(f"{host}+FETTLE", data, cluster_weight=0, instance_weight=1.0)
    step = model.step_loss(batch)
    ila, dt = instances_by_hand(model, batch)
    assert step.logs["ila"].item() == pytest.approx(ila.item(), rel=1e-4)
    assert step.logs["dt"].item() == pytest.approx(dt.item(), abs=1e-5)
    assert step.parts["instance"].item() == pytest.approx((ila + dt).item(), rel=1e-4)
    order = torch.randperm(len(batch))  # T5
    moved = Interaction({k: v[order] for k, v in batch.interaction.items()})
    assert model.step_loss(moved).logs["ila"].item() == pytest.approx(step.logs["ila"].item(), rel=1e-5)
    assert sum(v.item() for k, v in step.logs.items() if k.startswith("better/")) == pytest.approx(3 / 2, abs=0.1)


def test_targets_and_feedback_get_no_gradient(data):
    """T2, with all items served better by a: only the ids' view and its map move; their temperature learns from ILA."""
    model, _ = made("BPR+FETTLE", data, modalities=1)
    torch.manual_seed(2)
    ids, a, liked = (F.normalize(torch.randn(5, 8)).requires_grad_() for _ in range(3))
    served = [torch.zeros(5), torch.ones(5)]
    ila, dt = model._instances([liked.detach(), liked.detach()], [ids, a], served, {})
    (ila + dt).backward()
    assert a.grad is None and ids.grad.abs().sum() > 0
    assert model.maps["(ids)_to_a"].weight.grad.abs().sum() > 0 and model.maps["a_to_(ids)"].weight.grad is None
    assert model.temperatures["instance"].grad != 0
    assert not audience(liked, torch.tensor([0, 0, 1, 2, 2]), 3).requires_grad
    same = [torch.ones(5)] * 2
    assert [v.item() for v in model._instances([liked] * 2, [ids, a], same, {})] == [0, 0]  # nothing is better


def test_a_map_that_changes_nothing_serves_users_as_well_as_before(data):
    """T4."""
    model, batch = made("FREEDOM+FETTLE", data)
    with torch.no_grad():
        for mapping in model.maps.values():
            mapping.weight.zero_()
    assert model.step_loss(batch).logs["dt"].item() == pytest.approx(0, abs=1e-6)


def test_balanced_assignments():
    """T3; and two by two by hand: of the codes (c, 0), (0, 0) with e^(c / 0.05) = 2, three rounds."""
    torch.manual_seed(0)
    codes, ones = torch.rand(200, 8) * 0.4, torch.ones(200)
    q = balanced(codes, ones)
    torch.testing.assert_close(q.sum(1), ones)
    assert (q.sum(0) / 25).min() > 0.5 and (q.sum(0) / 25).max() < 1.6 and (q.sum(0) / 25 - 1).abs().max() > 1e-4
    by_hand = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    for _ in range(3):
        by_hand = by_hand / (by_hand.sum(0, keepdim=True) * 2)
        by_hand = by_hand / (by_hand.sum(1, keepdim=True) * 2)
    torch.testing.assert_close(balanced(torch.tensor([[0.05 * math.log(2), 0.0], [0.0, 0.0]]), ones[:2]), 2 * by_hand)
    counts = torch.tensor([3, 1, 2])
    torch.testing.assert_close(
        balanced(codes[:3], counts.float()).repeat_interleave(counts, 0),
        balanced(codes[:3].repeat_interleave(counts, 0), ones[:6]),
    )
    assert torch.isfinite(balanced(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), ones[:2])).all()


def test_alignment_of_clusters_by_hand(data):
    model, batch = made("VBPR+FETTLE", data, instance_weight=0, cluster_weight=1.0, n_clusters=7)
    parts = model.step_loss(batch).parts
    host = model.backbone
    enc = host.encode_items()
    views = directions(model, enc, host.propagate(enc), batch)
    users, items = views["(ids)"][0][batch["user_id"]], {v: pair[1][batch["item_id"]] for v, pair in views.items()}
    of_users, of_items = model.prototypes
    for rows in (of_users, of_items):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    kappa = model.temperatures["cluster"]

    def ce(x, y, prototypes):
        q = balanced(x @ prototypes.T, torch.ones(len(x)))
        return -(q * torch.log_softmax(y @ prototypes.T / kappa, 1)).sum(1).mean()

    assert len(set(batch["user_id"].tolist())) < len(users)  # some users have several pairs
    sides = ce(users, items["(ids)"], of_users) + ce(items["(ids)"], users, of_users)
    others = sum(ce(items[x], items[y], of_items) for x, y in permutations(items, 2))
    torch.testing.assert_close(parts["cluster"], sides / 2 + others / 6)


def test_cross_entropy_is_that_of_the_softmax():
    torch.manual_seed(0)
    x, prototypes, t = (v.requires_grad_() for v in (torch.randn(4, 3), torch.randn(5, 3), torch.tensor(0.5)))
    targets = torch.rand(4, 5)
    truth = -(targets * torch.log_softmax(x @ prototypes.T / t, 1)).sum()
    ours = cross_entropy(x, prototypes, targets, t)
    torch.testing.assert_close(ours, truth)
    for a, b in zip(*(torch.autograd.grad(v, (x, prototypes, t)) for v in (ours, truth)), strict=True):
        torch.testing.assert_close(a, b)


def test_prototypes_and_temperatures_stay_within_bounds(data):
    model, batch = made("VBPR+FETTLE", data, n_clusters=4)
    with torch.no_grad():
        model.prototypes[0].mul_(7)
        model.temperatures["instance"].fill_(-3)
        model.temperatures["cluster"].fill_(5)
    _, grads = gradients(model, batch)
    assert [model.temperatures[n].item() for n in ("instance", "cluster")] == pytest.approx([1e-3, 0.99])
    torch.testing.assert_close(model.prototypes[0].norm(dim=1), torch.ones(4))
    assert grads["temperatures.cluster"] != 0  # at its bound it can still come back


def test_models_of_ids_get_encoders_that_feed_the_alignment_alone(data):
    model, batch = made("LightGCN+FETTLE", data, n_clusters=4, instance_weight=1.0)
    plain, _ = made("LightGCN", data)
    _, grads = gradients(model, batch)
    _, theirs = gradients(plain, batch)
    assert {m: e.weight.shape for m, e in model.own_encoders.items()} == {"a": (8, 12), "b": (8, 8)}
    assert all(grads[f"own_encoders.{m}.weight"].abs().sum() > 0 for m in "ab")
    ids = "item_embedding.weight"
    assert not torch.allclose(grads[f"backbone.{ids}"], theirs[ids])  # through the graph
    torch.testing.assert_close(model._tables()[1], plain.forward()[1])


def test_views_of_another_width_are_refused(data):
    with pytest.raises(ConfigError, match=r"PGL\+FETTLE: .* that of a has 8 columns, the collaborative one 16"):
        made("PGL+FETTLE", data)
    assert made("PGL+FETTLE", data, 1)[0].maps["a_to_(ids)"].weight.shape == (8, 8)


# MDVT.


@pytest.mark.parametrize("block", [1 << 24, 100])
def test_extremes_are_those_of_all_cosines(monkeypatch, block):
    """T2, 50 x 40, as one block and as many."""
    monkeypatch.setattr(neighbours, "BLOCK", block)
    torch.manual_seed(0)
    users, items = torch.randn(51, 6), torch.randn(41, 6)
    items[0] = 100 * users.sum(0)  # the padding is nobody's
    cosines = F.normalize(users[1:]) @ F.normalize(items[1:]).T
    order = torch.argsort(cosines, 1) + 1
    nearest, farthest = extremes(users, items, 3)
    assert torch.equal(nearest, order.flip(1)[:, :3]) and torch.equal(farthest, order[:, :3])
    assert extremes(users, items, 99)[0].shape == (50, 40)


def begun(host, data, **values):
    model, batch = made(f"{host}+MDVT", data, trigger="static", warm_up=0, **values)
    model.before_epoch(1)
    return model, batch


@pytest.mark.parametrize("k", [1, 3])
def test_virtual_triplets_by_hand(data, k):
    s = 0.25
    model, batch = begun("VBPR", data, virtual_weight=s, virtual_k=k)
    plain, _ = made("VBPR", data)
    host = model.backbone
    emb = host.propagate(host.encode_items())
    losses = []
    for u in range(1, 41):
        cosines = F.cosine_similarity(emb.users[u : u + 1], emb.items[1:])
        order = torch.argsort(cosines) + 1
        scores = emb.items @ emb.users[u]
        margin = scores[order[-k:]].mean() - scores[order[:k]].mean()
        losses.append(-torch.log2(torch.sigmoid(margin)))
    virtual = torch.stack(losses).mean()
    step, own = model.step_loss(batch), plain.step_loss(batch)
    assert step.parts["virtual"].item() == pytest.approx(s * virtual.item(), rel=1e-5)
    for name, value in own.parts.items():
        torch.testing.assert_close(step.parts[name], (1 - s) * value)
    expected = torch.autograd.grad(s * virtual, [host.users, host.items, host.encoders["a"].weight])
    ours = torch.autograd.grad(step.parts["virtual"], [host.users, host.items, host.encoders["a"].weight])
    for a, b in zip(ours, expected, strict=True):  # users and items learn, which they are does not
        torch.testing.assert_close(a, b)
    assert not ours[0][0].any()  # the padding


def test_equal_scores_are_one_bit(data):
    model, _ = begun("BPR", data)
    assert model._virtual(torch.randn(9, 4), torch.ones(6, 4)).item() == pytest.approx(1.0)
    users, items = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    model._virtual(users, items).backward()
    assert users.grad[1:].abs().sum() > 0 and items.grad[1:].abs().sum() > 0
    assert not users.grad[0].any() and not items.grad[0].any()


def test_the_trigger_fires_at_the_first_slow_epoch_from_3_on(data):
    """T3, h = 0.1: the losses of epochs 0, 1, ..., and the first epoch with virtual triplets."""
    for losses, first in (
        ([10, 10, 10, 10, 10], 4),  # slow before, but looked at from epoch 3 on
        ([90, 70, 50, 30, 20, 19, 10], 6),  # (20 - 19) / 19 < 0.1
        ([90, 70, 50, 30, 30.1, 5, 1], 5),  # it rose, and is never off again
        ([-10, -30, -50, -90, -95, -99], 5),  # (95 - 90) / 95
        ([64, 32, 16, 8, 4, 2], None),
    ):
        model, _ = made("BPR+MDVT", data)
        at = []
        for epoch, loss in enumerate([*losses, 0]):
            model.before_epoch(epoch)
            if model.whole:
                at.append(epoch)
            model.sums[1] += loss
        assert at == ([] if first is None else list(range(first, len(losses) + 1)))
    static, _ = made("BPR+MDVT", data, trigger="static", warm_up=2)
    starts = []
    for epoch in range(5):
        static.before_epoch(epoch)
        starts.append(static.whole)
    assert starts == [False, False, False, True, True]


def test_epochs_are_summed_and_a_resumed_run_knows_them(data):
    model, batch = made("FREEDOM+MDVT", data)
    model.before_epoch(0)
    totals = [model.step_loss(batch).total.item() for _ in range(3)]
    assert set(model.step_loss(batch).parts) == {"bpr", "modalities"}  # before the trigger the backbone's alone
    totals.append(totals[-1])
    assert model.sums[1].item() == pytest.approx(sum(totals), rel=1e-6)
    model.before_epoch(1)
    assert model.sums.tolist() == [pytest.approx(sum(totals), rel=1e-6), 0]
    model._begin(True)
    model.sums[1] = 3.5
    other, _ = made("FREEDOM+MDVT", data)
    other.load_state_dict(model.state_dict())
    assert other.whole and torch.equal(other.sums, model.sums)
    other.eval()
    other.step_loss(batch)
    assert torch.equal(other.sums, model.sums)  # a look at the loss is no step


def test_lazy_triplets_are_found_once_an_epoch(data):
    model, batch = begun("VBPR", data, preset="lazy")
    eager, _ = begun("VBPR", data)
    assert torch.equal(model.step_loss(batch).total, eager.step_loss(batch).total)
    found = model._found
    for m in (model, eager):
        with torch.no_grad():
            m.backbone.users.neg_()
        m.step_loss(batch)
    assert model._found is found and not torch.equal(eager._found[0], found[0])
    model.before_epoch(2)
    model.step_loss(batch)
    assert torch.equal(model._found[0], eager._found[0])


def test_mdvt_reads_no_features(data):
    model, batch = begun("BPR", data)
    loss = model.step_loss(batch).total
    with torch.no_grad():
        for features in own_features(model).values():
            features.normal_()
    assert torch.equal(model.step_loss(batch).total, loss)
