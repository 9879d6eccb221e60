"""Models around graphs of items: SMORE, LATTICE, PGL, GUME, MENTOR. The contract, reference values, dense formulas."""

import functools

import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.graphs import Edges
from mmrec_mrdib.testing.contract import ContractTests, build, gradients
from tests.test_models import Golden


class TestSMORE(ContractTests):
    model = "SMORE"


class TestLATTICE(ContractTests):
    model = "LATTICE"


class TestPGL(ContractTests):
    model = "PGL"


class TestGUME(ContractTests):
    model = "GUME"


class TestMENTOR(ContractTests):
    model = "MENTOR"


# Dense counterparts, (U, I) or square, padding included.


def taken(model, splits):
    out = torch.zeros(model.n_users, model.n_items)
    part = splits.parts[0].inter_feat
    out[part["user_id"], part["item_id"]] = 1
    return out


def square(block):
    n_users, n_items = block.shape
    top = torch.cat([torch.zeros(n_users, n_users), block], 1)
    return torch.cat([top, torch.cat([block.T, torch.zeros(n_items, n_items)], 1)])


def inverse_root(sums):
    return torch.where(sums > 0, sums, torch.inf).rsqrt()


def symmetric(a):
    """D^-1/2 A D^-1/2."""
    return inverse_root(a.sum(1))[:, None] * a * inverse_root(a.sum(0))


def cosines(x):
    unit = F.normalize(x)
    return unit @ unit.T


def nearest(x, k):
    """(I, I) mask of the k rows of largest cosine, without the padding row."""
    near = torch.zeros(len(x), len(x), dtype=torch.bool)
    near[1:, 1:] = near[1:, 1:].scatter(1, cosines(x)[1:, 1:].topk(k, 1).indices, True)
    return near


def weighted(x, k):
    """Cosines of the k nearest, by the row sums on both sides."""
    s = torch.where(nearest(x, k), cosines(x), 0).clamp(min=0)
    scale = inverse_root(s.sum(1))
    return scale[:, None] * s * scale


def light(graph, x, layers):
    return sum(torch.linalg.matrix_power(graph, n) @ x for n in range(layers + 1)) / (layers + 1)


def nce(a, b, t):
    """InfoNCE in nats with the rows of the batch as they are, repeats and all."""
    return F.cross_entropy(F.normalize(a) @ F.normalize(b).T / t, torch.arange(len(a)))


def same_as(model, batch, loss_of):
    """Loss and gradients of a step are those of loss_of(users, positive, negative)."""
    model.train()
    loss, grads = gradients(model, batch)
    model.zero_grad()
    truth = loss_of(batch["user_id"], batch["item_id"], batch["neg_item_id"])
    truth.backward()
    assert loss == pytest.approx(truth.item(), abs=1e-5)
    assert grads.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, grad in grads.items():
        expected = model.get_parameter(name).grad
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item(), msg=name)


def bpr_l2(users, items, batch, weight, size):
    u, i, j = users[batch[0]], items[batch[1]], items[batch[2]]
    squares = u.square().sum() + i.square().sum() + j.square().sum()
    return -F.logsigmoid((u * (i - j)).sum(1)).mean() + weight / 2 / size * squares


@pytest.mark.parametrize("modalities", [2, 3])
def test_smore_against_dense_formulas(tmp_path, modalities):
    values = {
        "n_layers": 3,
        "n_item_layers": 2,
        "knn_k": 6,
        "modality_knn_k": {"b": 4},
        "reg_weight": 0.1,
        "contrast_weight": 0.5,
    }
    model, splits = build("SMORE", tmp_path, modalities, trainable_features=True, train_batch_size=50, **values)
    block = symmetric(taken(model, splits))
    graphs = {m: weighted(model.features(m).detach(), 4 if m == "b" else 6) for m in model.modalities}
    graphs["*"] = functools.reduce(torch.maximum, graphs.values())
    spectra = {}

    def loss_of(u, i, j):
        content = light(square(block), torch.cat([model.users, model.items]), 3)
        for m in model.modalities:
            z = model.features(m) @ model.encoders[m].weight.T + model.encoders[m].bias
            spectra[m] = torch.fft.rfft(z, norm="ortho")
        spectra["*"] = functools.reduce(torch.mul, [spectra[m] for m in model.modalities])
        y = {}
        for v, graph in graphs.items():
            w = torch.complex(model.filters[v][:, 0], model.filters[v][:, 1])
            gate = torch.sigmoid(model.purifiers[v].gate(torch.fft.irfft(spectra[v] * w, n=8, norm="ortho")))
            h = graph @ (graph @ (model.items * gate))
            y[v] = torch.cat([block @ h, h])
        side = torch.sigmoid(model.preferences["*"](content)) * y["*"]
        for m in model.modalities:
            share = torch.softmax(model.queries[m](y["*"]), 1)
            side = side + torch.sigmoid(model.preferences[m](content)) * share * y[m]
        side = side / (modalities + 1)
        users, items = (content + side).split([model.n_users, model.n_items])
        positive = i + model.n_users
        contrast = nce(side[positive], content[positive], 0.2) + nce(side[u], content[u], 0.2)
        return bpr_l2(users, items, (u, i, j), 0.1, 50) + 0.5 * contrast

    same_as(model, next(iter(splits.train)), loss_of)


def test_smore_drops_gates_in_training_alone_and_knows_its_modalities(tmp_path):
    model, splits = build("SMORE", tmp_path, dropout=0.5)
    batch = next(iter(splits.train))
    model.train()
    assert model.calculate_loss(batch) != model.calculate_loss(batch)
    model.eval()
    assert torch.equal(model.full_sort_predict(batch), model.eval().full_sort_predict(batch))
    with pytest.raises(ConfigError, match=r"modality_knn_k.*a, b"):
        build("SMORE", tmp_path, modality_knn_k={"c": 3})


def dense_lattice(model, block, negative):
    """(users, items) of LATTICE with dense items x items."""
    n = model.n_users + model.n_items
    settings = model.settings
    a = square(block)
    loops = torch.eye(n)
    loops[0, 0] = loops[model.n_users, model.n_users] = 0
    a = (a + loops) / (a + loops).sum(1, keepdim=True).clamp(min=1)
    w = torch.softmax(model.modality_logits, 0)
    learnt, raw = 0, 0
    for share, m in zip(w, model.modalities, strict=True):
        z = model.features(m) @ model.encoders[m].weight.T + model.encoders[m].bias
        near = torch.where(nearest(z.detach(), settings.knn_k), cosines(z), 0)
        learnt = learnt + share * (near if negative else near.clamp(min=0))
        raw = raw + share * weighted(model.features(m).detach(), settings.knn_k)
    scale = torch.where(learnt.sum(1) > 0, learnt.sum(1), torch.inf).rsqrt()
    graph = 0.1 * scale[:, None] * learnt * scale + 0.9 * raw
    h = graph @ (graph @ model.items)
    users, items = light(a, torch.cat([model.users, model.items]), 2).split([model.n_users, model.n_items])
    return users, items + F.normalize(h)


@pytest.mark.parametrize(("modalities", "negative"), [(2, False), (3, True)])
def test_lattice_against_dense_formulas(tmp_path, modalities, negative):
    values = {"n_item_layers": 2, "knn_k": 14, "reg_weight": 0.1, "train_batch_size": 50, "feature_embedding_size": 6}
    model, splits = build(
        "LATTICE", tmp_path, modalities, reference_negative=negative, trainable_features=True, **values
    )
    with torch.no_grad():
        for encoder in model.encoders.values():
            encoder.bias.zero_()  # with the biases most cosines are positive
        model.modality_logits += torch.randn(modalities)
    block = taken(model, splits)
    batch = next(iter(splits.train))
    same_as(model, batch, lambda *ids: bpr_l2(*dense_lattice(model, block, negative), ids, 0.1, 50))
    learnt = model.learnt(model.encode_items(), model.shares())
    assert negative == bool((learnt.values < 0).any()) and not (learnt.rows == 0).any() and not (learnt.cols == 0).any()
    users, items = dense_lattice(model, block, negative)
    model.eval()
    scores = model.full_sort_predict(batch)
    torch.testing.assert_close(scores, (users[batch["user_id"]] @ items.T).detach(), rtol=1e-4, atol=1e-5)


def test_lattice_learns_its_graph_once_an_epoch(tmp_path):
    model, splits = build("LATTICE", tmp_path)
    batch = next(iter(splits.train))
    model.train()
    loss, first = gradients(model, batch)
    graph = model.kept
    later_loss, later = gradients(model, batch)
    assert later_loss == pytest.approx(loss, abs=1e-6) and model.kept is graph
    assert set(first) - set(later) == {n for n, _ in model.named_parameters() if n.startswith(("encoders", "modality"))}
    torch.testing.assert_close(later["items"], first["items"])
    model.train()  # the next epoch
    assert gradients(model, batch)[1].keys() == first.keys() and model.kept is not graph
    # of a large catalogue, later steps encode the batch's items alone
    small = Interaction({k: v[:4] for k, v in batch.interaction.items()})
    model.train()
    encoded, losses = [], []
    for _ in range(2):
        encoded.append(model.items_to_encode(model.batch(small)))
        losses.append(model.calculate_loss(small).item())
    assert encoded[0] is None and len(encoded[1]) < 9 and losses[1] == pytest.approx(losses[0], abs=1e-6)
    # with public code's zeros instead of nothing, momentum goes on
    model, _ = build("LATTICE", tmp_path, reference_momentum=True)
    model.train()
    gradients(model, batch)
    _, later = gradients(model, batch)
    assert later.keys() == first.keys() and not later["modality_logits"].any()
    torch.testing.assert_close(later["items"], first["items"])


@pytest.mark.parametrize("name", ["SMORE", "LATTICE", "PGL", "GUME"])
def test_features_train_only_when_asked_to(tmp_path, name):
    for asked in (False, True):
        model, _ = build(name, tmp_path, trainable_features=asked or None)  # none: the default
        assert ("features_a" in dict(model.named_parameters())) == asked


def golden_pgl(golden, tmp_path, **values):
    toy = Golden(golden, tmp_path, "PGL", trainable_features=True, **{"contrast_weight": 0.1, "dropout": 0.0, **values})
    names = {f"features_{m}": (f"{m}_embedding.weight", toy.items) for m in ("image", "text")}
    names |= {f"preferences.{m}": (f"user_{m}.weight", toy.users) for m in ("image", "text")}
    names |= {f"encoders.{m}.{part}": f"{m}_trs.{part}" for m in ("image", "text") for part in ("weight", "bias")}
    toy.set(names)
    return toy


def only(toy, pairs):
    """The reference's (E, 2) user-item edges as a graph of both ways."""
    users, items = torch.from_numpy(pairs).T
    edges = Edges(toy.users[users], toy.items[items], torch.ones(len(pairs)), (41, 31))
    return edges.normalised("both").both_ways().matrix()


def test_pgl_golden(golden, tmp_path):
    toy = golden_pgl(golden, tmp_path)
    toy.model.pruned = only(toy, toy.ref["in:kept_edges"])
    toy.check()
    parts = toy.terms()
    assert parts["bpr"] == pytest.approx(toy.ref["term:bpr"], abs=1e-5)
    assert parts["contrast"] == pytest.approx(0.1 * toy.ref["term:nce"], abs=1e-5)
    toy.model.pruned = None
    assert sum(toy.terms().values()) == pytest.approx(toy.ref["full:loss"], abs=1e-5)
    masks = iter(torch.from_numpy(toy.ref[f"noisy:in:keep_{n}"]) / 0.8 for n in ("u1", "u2", "p1", "p2"))
    toy.model.dropped = lambda rows: rows * next(masks)
    toy.model.pruned = only(toy, toy.ref["in:kept_edges"])
    parts = toy.terms()
    assert parts["contrast"] == pytest.approx(0.1 * toy.ref["noisy:term:nce"], abs=1e-5)
    assert sum(parts.values()) == pytest.approx(toy.ref["noisy:loss"], abs=1e-5)


def test_pgl_golden_global(golden, tmp_path):
    toy = golden_pgl(golden, tmp_path, principal_graph="global")
    nodes = torch.cat([toy.users, toy.items + 41])
    graph = toy.model.pruned.csr().to_dense()
    torch.testing.assert_close(graph[nodes][:, nodes], torch.from_numpy(toy.ref["global:graph"]), rtol=0, atol=1e-6)
    assert sum(toy.terms().values()) == pytest.approx(toy.ref["global:loss"], abs=1e-5)
    toy.check_scores()  # with all edges
    with pytest.raises(ConfigError, match=r"embedding_size=12.*multiple of 8"):
        build("PGL", tmp_path / "b", principal_graph="global", embedding_size=12)
    with pytest.raises(ConfigError, match="global graph of this data is empty"):
        build("PGL", tmp_path / "b", principal_graph="global", embedding_size=256)


def test_pgl_trains_on_a_drawn_part_of_the_edges(tmp_path):
    model, splits = build("PGL", tmp_path, dropout=0.5, contrast_weight=1.0)
    batch = next(iter(splits.train))
    model.train()
    model.before_epoch(0)
    first = model.pruned
    assert len(first) == 2 * int(0.3 * len(splits.parts[0]))
    model.before_epoch(1)
    assert not torch.equal(first.col, model.pruned.col)
    assert model.step_loss(batch).parts["contrast"] != model.step_loss(batch).parts["contrast"]
    a = model.pruned.csr().to_dense()
    degree = (a > 0).sum(1)
    row, col = a.nonzero(as_tuple=True)
    torch.testing.assert_close(a[row, col], 1 / torch.sqrt(degree[row] * degree[col]))
    emb = model.eval().evaluation_embeddings()
    parts = torch.stack([users @ items.T for users, items in emb.views.values()])
    torch.testing.assert_close(parts.sum(0), emb.users @ emb.items.T)


def test_gume_golden(golden, tmp_path):
    values = {
        "train_batch_size": 64,
        "reg_weight": 0.01,
        "contrast_weight": 0.1,
        "user_contrast_weight": 0.1,
        "user_temperature": 0.2,
    }
    toy = Golden(golden, tmp_path, "GUME", trainable_features=True, noise=0.0, **values)
    names = {"users": ("user_embedding.weight", toy.users), "items": ("item_id_embedding.weight", toy.items)}
    names |= {f"fuser.hidden.{part}": f"separate_coarse.0.{part}" for part in ("weight", "bias")}
    names["fuser.score.weight"] = "separate_coarse.2.weight"
    for m in ("image", "text"):
        names[f"extended.{m}"] = (f"extended_{m}_user.weight", toy.users)
        names[f"features_{m}"] = (f"{m}_embedding.weight", toy.items)
        for part in ("weight", "bias"):
            names[f"encoders.{m}.{part}"] = f"{m}_reduce_dim.{part}"
            names[f"purifiers.{m}.gate.{part}"] = f"{m}_trans_dim.0.{part}"
            names[f"preferences.{m}.{part}"] = f"{m}_behavior.0.{part}"
    toy.set(names)
    nodes = torch.cat([toy.users, toy.items + 41])
    graph = toy.model.graph.csr().to_dense()[nodes][:, nodes]
    torch.testing.assert_close(graph, torch.from_numpy(toy.ref["norm_adj"]), rtol=0, atol=1e-6)
    toy.check()
    parts, term = toy.terms(), {k: float(toy.ref[f"term:{k}"]) for k in ("bpr", "vt", "bm", "reg1", "reg2")}
    contrasts = sum(float(toy.ref[f"term:um_{n}"]) for n in ("c", "n1", "n2"))
    truth = {"bpr": term["bpr"], "l2": term["reg1"], "contrast": term["bm"], "moments": term["vt"]}
    truth |= {"extended_l2": term["reg2"], "user_contrast": 0.1 * contrasts}
    assert parts == pytest.approx(truth, abs=1e-5)
    noise = iter(torch.from_numpy(toy.ref["noisy:in:noise"]))
    toy.model.draw = lambda ids, width: torch.zeros(41, width).index_copy(0, toy.users, next(noise))[ids]
    toy.model.settings = toy.model.settings.model_copy(update={"noise": 0.1})
    noisy = toy.terms()
    assert noisy["user_contrast"] - parts["user_contrast"] == pytest.approx(
        0.1 * sum(float(toy.ref[f"noisy:term:um_{n}"]) - float(toy.ref[f"term:um_{n}"]) for n in ("n1", "n2")), abs=1e-5
    )
    assert sum(noisy.values()) == pytest.approx(float(toy.ref["noisy:loss"]), abs=1e-5)


def test_gume_extends_each_modality_over_the_joint_graph(tmp_path):
    model, splits = build("GUME", tmp_path, 3)
    near = torch.stack([nearest(model.features(m), 10) for m in model.modalities]).all(0).fill_diagonal_(False).float()
    assert near.any()
    a = square(taken(model, splits))
    a[model.n_users :, model.n_users :] = near
    scale = inverse_root(a.sum(1))
    a = scale[:, None] * a * scale
    torch.testing.assert_close(model.graph.csr().to_dense(), a)
    torch.testing.assert_close(model.user_item.csr().to_dense(), a[: model.n_users, model.n_users :])
    views = model.evaluation_embeddings().views
    truth = sum(light(a, torch.cat([model.extended[m], q]), 3) for m, (_, q) in views.items()) / 3
    torch.testing.assert_close(torch.cat(model.extend(views)), truth)
    model.train()
    batch = next(iter(splits.train))
    draws = {model.step_loss(batch).parts["user_contrast"].item() for _ in range(2)}
    assert len(draws) == 2


def test_mentor_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "MENTOR", reg_weight=0.01, contrast_weight=0.01)
    for kind in ("param", "grad"):
        toy.ref[f"{kind}:weight_u"] = toy.ref[f"{kind}:weight_u"].squeeze(2)
    encoders = {("guide.preferences", "guide.content"): "id_gcn"}
    for m, short in (("image", "v"), ("text", "t")):
        encoders[f"preferences.{m}", f"encoders.{m}"] = f"{short}_gcn"
        encoders |= {(f"noisy.{n}.{m}.preferences", f"noisy.{n}.{m}.content"): f"{short}_gcn_n{n + 1}" for n in (0, 1)}
    names = {"ids": ("id_feat", toy.items), "fusion": ("weight_u", toy.users)}
    for (preferences, content), theirs in encoders.items():
        names[preferences] = (f"{theirs}.preference", toy.users)
        for part in ("weight", "bias"):
            names |= {f"{content}.0.{part}": f"{theirs}.MLP.{part}", f"{content}.2.{part}": f"{theirs}.MLP_1.{part}"}
    toy.set(names)
    nodes, rho = torch.cat([toy.users, toy.items + 41]), []
    for hop in (1, 2):
        of_hop = [toy.value(f"noise_{m}_n{n}_{hop}", "in") for n in (1, 2) for m in "vt"]
        rho.append(torch.ones(72, 4, 8).index_copy(0, nodes, torch.stack(of_hop, 1)))
    draws = iter(rho * 2)
    toy.model.draw = lambda shape: next(draws)
    term = {k: float(toy.ref[f"term:{k}"]) for k in ("bpr_log2", "reg", "align", "mask_g", "mask_f")}
    toy.ref["loss"] = toy.ref["loss"] - term["mask_f"]  # a number without a gradient
    toy.check()
    truth = {"bpr": term["bpr_log2"], "l2": term["reg"], "align": term["align"], "contrast": term["mask_g"]}
    assert toy.terms() == pytest.approx(truth, abs=1e-5)


def test_mentor_contrasts_a_draw_of_users_and_items_against_all(tmp_path):
    model, _ = build("MENTOR", tmp_path, 3, contrast_anchors=7)
    assert torch.equal(model.anchors(8), torch.arange(1, 8))
    drawn = model.anchors(31)
    assert len(set(drawn.tolist())) == 7 and drawn.min() >= 1 and drawn.max() <= 30
    model.train()
    users, items = torch.randn(model.n_users, 6, 8), torch.randn(model.n_items, 6, 8)
    model.anchors = lambda n: torch.tensor([2, 5, 9])
    found = model.noisy_against_noisy(users, items)
    truth = 0
    for table, w in ((users, model.fusion), (items, torch.ones(model.n_items, 3))):
        a, b = ((w[:, :, None] * part).flatten(1)[1:] for part in table.split(3, 1))
        truth = (
            truth
            + F.cross_entropy(F.normalize(a) @ F.normalize(b).T / 0.2, torch.arange(len(a)), reduction="none")[
                [1, 4, 8]
            ].mean()
        )
    torch.testing.assert_close(found, truth)
    model, splits = build("MENTOR", tmp_path / "b", contrast_weight=0.0, align_weight=0.0)
    assert not any(n.startswith(("noisy", "guide", "ids")) for n, _ in model.named_parameters())
    assert set(model.step_loss(next(iter(splits.train))).parts) == {"bpr", "l2"}
