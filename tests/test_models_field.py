"""BM3, DRAGON, LGMRec, LayerGCN, SelfCF, ItemKNNCBF: contract, reference values, independent dense computations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from mmrec_mrdib import load, train
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.evaluation import rank
from mmrec_mrdib.experiment.report import measure
from mmrec_mrdib.graphs import Edges, Pruner, neighbours, shrunk_neighbours
from mmrec_mrdib.testing.contract import ContractTests, build, gradients
from mmrec_mrdib.testing.toy import write_mmrec

from .test_models import Golden


def dense(model, part):
    """Counts (U, I) of a training split and D^-1/2 A D^-1/2 of the (U + I) nodes, double."""
    taken = torch.zeros(model.n_users, model.n_items, dtype=torch.double)
    taken.index_put_((part["user_id"], part["item_id"]), torch.ones(len(part), dtype=torch.double), accumulate=True)
    a = torch.zeros(sum(taken.shape), sum(taken.shape), dtype=torch.double)
    a[: model.n_users, model.n_users :] = taken
    a = a + a.T
    scale = a.sum(1).clamp(min=1e-12).rsqrt() * (a.sum(1) > 0)
    return taken, scale[:, None] * a * scale


def doubles(model):
    """Parameters by name, double."""
    return {n: p.detach().double() for n, p in model.named_parameters()}


class TestBM3(ContractTests):
    model = "BM3"


def test_bm3_by_hand(tmp_path):
    model, splits = build("BM3", tmp_path, dropout=0.0, n_layers=2, reg_weight=0.3)
    p, batch = doubles(model), next(iter(splits.train))
    _, graph = dense(model, splits.parts[0].inter_feat)
    ids = torch.cat([p["users"], p["items"]])
    nodes = (ids + graph @ ids + graph @ graph @ ids) / 3
    u, i = nodes[: model.n_users], nodes[model.n_users :] + p["items"]
    q = lambda x: x @ p["predictor.weight"].T + p["predictor.bias"]  # noqa: E731
    cos = lambda a, b: (F.normalize(a) * F.normalize(b)).sum(1).mean()  # noqa: E731
    bu, bi = u[batch["user_id"]], i[batch["item_id"]]
    loss = 2 - cos(q(bu), bi) - cos(q(bi), bu)
    for m in ("a", "b"):
        x = model.features(m).double()[batch["item_id"]]
        z = x @ p[f"encoders.{m}.weight"].T + p[f"encoders.{m}.bias"]
        loss += 2.0 * (2 - cos(q(z), bi) - cos(q(z), z))
    loss += 0.3 * (u[1:].norm() + i[1:].norm()) / (model.n_items - 1)
    model.train()
    assert gradients(model, batch)[0] == pytest.approx(loss.item(), abs=1e-5)
    model.eval()
    users = torch.arange(model.n_users)
    scores = model.full_sort_predict(Interaction({"user_id": users})).double()
    torch.testing.assert_close(scores, q(u) @ q(i).T, rtol=0, atol=1e-5)


def test_bm3_modalities_send_no_gradient_to_the_tables(tmp_path):
    grads = {}
    for weight in (0.0, 2.0):
        model, splits = build("BM3", tmp_path, dropout=0.0, modality_weight=weight)
        model.train()
        grads[weight] = gradients(model, next(iter(splits.train)))[1]
    for name in ("users", "items"):
        torch.testing.assert_close(grads[0.0][name], grads[2.0][name], rtol=0, atol=0)
    assert "encoders.a.weight" not in grads[0.0]
    assert not torch.equal(grads[0.0]["predictor.weight"], grads[2.0]["predictor.weight"])


def test_bm3_drops_targets_out_and_reads_only_distinct_rows_of_large_tables(tmp_path):
    model, splits = build("BM3", tmp_path, dropout=0.5)
    target = model.target(torch.ones(3, 50, requires_grad=True), torch.tensor([0, 1] * 50))
    assert not target.requires_grad and set(target.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (target == 0).float().mean() < 0.55
    model, splits = build("BM3", tmp_path, dropout=0.0)
    small = Interaction({k: v[:4] for k, v in next(iter(splits.train)).interaction.items()})
    model.train()
    assert model.users_to_read(model.batch(small)) is not None and model.items_to_encode(model.batch(small)) is not None
    loss, grads = gradients(model, small)
    model.items_to_encode = model.users_to_read = lambda batch: None
    whole_loss, whole_grads = gradients(model, small)
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole_grads[name])


class TestDRAGON(ContractTests):
    model = "DRAGON"


def user_graph(taken, k):
    """Softmax of common counts over each user's k users with most of them, ties to the lower id, dense."""
    common = ((taken > 0).double() @ (taken > 0).double().T).fill_diagonal_(0)
    graph = torch.zeros_like(common)
    for user, row in enumerate(common):
        ids = torch.sort(row, descending=True, stable=True).indices[:k]
        ids = ids[row[ids] > 0]
        graph[user, ids] = torch.softmax(row[ids], 0)
    return graph


def neighbour_graph(x, k):
    """D^-1/2 K D^-1/2 of the mask of the k items of largest cosine to each, dense; row 0 is padding."""
    x = F.normalize(x.double())
    top = (x[1:] @ x[1:].T).topk(k, dim=1).indices + 1
    return torch.zeros(len(x), len(x), dtype=torch.double).index_put_(
        (torch.arange(1, len(x))[:, None].expand_as(top), top), torch.tensor(1 / k, dtype=torch.double)
    )


def test_dragon_by_hand(tmp_path):
    shares = {"a": 0.3, "b": 0.7}
    model, splits = build("DRAGON", tmp_path, n_neighbours=5, knn_k=4, modality_weights=shares, reg_weight=0.2)
    p, batch = doubles(model), next(iter(splits.train))
    taken, graph = dense(model, splits.parts[0].inter_feat)
    reps, rest, w = [], 0.0, p["fusion"]
    for m in shares:
        x = F.leaky_relu(model.features(m).double() @ p[f"encoders.{m}.0.weight"].T + p[f"encoders.{m}.0.bias"])
        z = x @ p[f"encoders.{m}.2.weight"].T + p[f"encoders.{m}.2.bias"]
        x = F.normalize(torch.cat([p[f"preferences.{m}"], z]))
        reps.append(x + graph @ x + graph @ graph @ x)
        rest += p[f"preferences.{m}"][batch["user_id"]].square().mean()
    users = torch.cat([w[:, n, None] * rep[: model.n_users] for n, rep in enumerate(reps)], 1)
    users = users + user_graph(taken, 5) @ users
    items = torch.cat([rep[model.n_users :] for rep in reps], 1)
    items = items + sum(share * neighbour_graph(model.features(m), 4) for m, share in shares.items()) @ items
    margin = (users[batch["user_id"]] * (items[batch["item_id"]] - items[batch["neg_item_id"]])).sum(1)
    loss = -torch.log2(torch.sigmoid(margin)).mean() + 0.2 * (rest + w[1:].square().mean())
    model.train()
    assert gradients(model, batch)[0] == pytest.approx(loss.item(), abs=1e-5)
    model.eval()
    scores = model.full_sort_predict(Interaction({"user_id": torch.arange(model.n_users)})).double()
    torch.testing.assert_close(scores, users @ items.T, rtol=0, atol=1e-5)


def injected(toy):
    """The user neighbours of a golden file (most users have a tie at the cut) as our user graph."""
    at, weight = toy.ref["in:uu_index"], torch.from_numpy(toy.ref["in:uu_weight"])
    rows = toy.users[torch.arange(40)].repeat_interleave(at.shape[1])
    n = toy.model.n_users
    toy.model.user_graph = Edges(rows, toy.users[torch.from_numpy(at).flatten()], weight.flatten(), (n, n)).matrix()


@pytest.mark.parametrize("aliased", [True, False])
def test_dualgnn_golden(golden, tmp_path, aliased):
    options = {"reference_fusion": aliased, "reference_item_weights": True, "n_neighbours": 5, "reg_weight": 0.01}
    toy = Golden(golden, tmp_path, "DualGNN", **options)
    injected(toy)
    names = {"fusion": ("weight_u", toy.users), "item_weights": ("weight_i", toy.items)}
    for m, short in (("image", "v"), ("text", "t")):
        names[f"preferences.{m}"] = (f"{short}_gcn.preference", toy.users)
        for ours, theirs in ((0, "MLP"), (2, "MLP_1")):
            for part in ("weight", "bias"):
                names[f"encoders.{m}.{ours}.{part}"] = f"{short}_gcn.{theirs}.{part}"
    toy.ref |= {k: v.squeeze(2) if k.endswith(("weight_u", "weight_i")) else v for k, v in toy.ref.items()}
    toy.set(names)
    if aliased:
        terms = toy.terms()
        assert terms["bpr"] == pytest.approx(float(toy.ref["term:bpr_log2"]), abs=1e-5)
        assert terms["l2"] == pytest.approx(0.01 * float(toy.ref["term:reg"]), abs=1e-5)
        toy.check()
    else:  # without public code's aliasing
        toy.ref |= {k: toy.ref[f"proper:{k}"] for k in ("loss", "scores")}
        toy.step()
        toy.check_scores()


class TestLGMRec(ContractTests):
    model = "LGMRec"


def test_lgmrec_by_hand(tmp_path, monkeypatch):
    values = {"n_hyper_layers": 2, "n_modality_layers": 1, "keep_rate": 1.0, "contrast_weight": 0.01, "reg_weight": 0.1}
    model, splits = build("LGMRec", tmp_path, **values)
    p, batch = doubles(model), next(iter(splits.train))
    taken, graph = dense(model, splits.parts[0].inter_feat)
    n_users, drawn = model.n_users, []

    def gumbel(logits):
        drawn.append(torch.rand(logits.shape))
        return drawn[-1]

    monkeypatch.setattr(model, "gumbel", gumbel)
    model.train()
    loss, _ = gradients(model, batch)
    assert [len(noise) for noise in drawn] == [model.n_items, n_users] * 2

    def forward(noise):
        ids = torch.cat([p["users"], p["items"]])
        c = (ids + graph @ ids + graph @ graph @ ids) / 3
        local, hyper = c, []
        for m in ("a", "b"):
            features = model.features(m).double()
            z = features @ p[f"encoders.{m}.weight"].T
            e = graph @ torch.cat([(taken @ z) / taken.sum(1, keepdim=True).clamp(min=1), z])
            local = local + F.normalize(e)
            logits = features @ p[f"hyperedges.{m}"]
            h_i = torch.softmax((logits + next(noise)) / 0.2, 1)
            h_u = torch.softmax((taken @ logits + next(noise)) / 0.2, 1)
            h_i[0] = 0  # padding
            y = h_i.T @ c[n_users:]
            y = h_i.T @ (h_i @ y)
            hyper.append(torch.cat([h_u @ y, h_i @ y]))
        return local + 0.3 * F.normalize(sum(hyper)), hyper

    def contrast(a, b, rows):
        cosines = F.normalize(a[rows]) @ F.normalize(b[1:]).T / 0.2
        return (torch.logsumexp(cosines, 1) - cosines[torch.arange(len(rows)), rows - 1]).sum()

    nodes, (one, other) = forward(iter(x.double() for x in drawn))
    u, i, j = batch["user_id"], batch["item_id"], batch["neg_item_id"]
    rows = [nodes[u], nodes[n_users:][i], nodes[n_users:][j]]
    truth = F.softplus(-(rows[0] * (rows[1] - rows[2])).sum(1)).mean()
    truth += 0.01 * contrast(one[:n_users], other[:n_users], u)
    truth += 0.01 * contrast(one[n_users:], other[n_users:], i)
    truth += 0.1 / len(u) * sum(x.norm() for x in rows)
    assert loss == pytest.approx(truth.item(), rel=1e-5)
    model.eval()
    scores = model.full_sort_predict(Interaction({"user_id": torch.arange(n_users)})).double()[:, 1:]
    nodes, _ = forward(iter([0.0] * 4))  # no noise where rankings are made
    torch.testing.assert_close(scores, nodes[:n_users] @ nodes[n_users + 1 :].T, rtol=0, atol=1e-5)
    assert len(drawn) == 4


def test_lgmrec_draws_incidences(tmp_path):
    model, _ = build("LGMRec", tmp_path)
    noise = model.gumbel(torch.empty(200, 500))
    assert noise.mean() == pytest.approx(0.5772, abs=0.02) and noise.var() == pytest.approx(1.6449, abs=0.05)
    model.train()
    dropped = model._incidence(torch.zeros(100, 4))
    assert 0.4 < (dropped == 0).float().mean() < 0.6
    assert dropped.mean() == pytest.approx(0.25, rel=0.2)
    scores = {}
    for when in ("training", "always"):
        model, _ = build("LGMRec", tmp_path, gumbel_noise=when)
        model.eval()
        scores[when] = model.evaluation_embeddings().users
        assert model.evaluation_embeddings().users is scores[when]  # once an evaluation
        model.eval()
        assert torch.equal(model.evaluation_embeddings().users, scores[when]) == (when == "training")


def baseline(golden, tmp_path, name, names, terms, **values):
    """A model of ids alone with the parameters of its golden file, after a look at each term of the loss."""
    toy = Golden(golden, tmp_path, name, **values)
    tables = {"users": toy.users, "items": toy.items}
    toy.set({ours: (theirs, tables[ours]) if ours in tables else theirs for ours, theirs in names.items()})
    found = toy.terms()
    assert set(found) == set(terms)
    for ours, (theirs, weight) in terms.items():
        assert found[ours] == pytest.approx(weight * float(toy.ref[f"term:{theirs}"]), rel=1e-6, abs=1e-5)
    return toy


def pairs_as_graph(toy, kept):
    """The symmetric graph of some (user, item) pairs by original ids."""
    users, items = toy.users[torch.from_numpy(kept[:, 0])], toy.items[torch.from_numpy(kept[:, 1])]
    edges = Edges(users, items, torch.ones(len(kept)), (toy.model.n_users, toy.model.n_items))
    return edges.normalised("both").both_ways().matrix()


def test_layergcn_golden(golden, tmp_path):
    names = {"users": "user_embeddings", "items": "item_embeddings"}
    terms = {"bpr": ("bpr_sum", 1), "l2": ("reg", 1e-3)}
    toy = baseline(golden, tmp_path, "LayerGCN", names, terms, edge_dropout=0.0)
    toy.check()
    toy.model.pruned = pairs_as_graph(toy, toy.ref["drop:in:kept_edges"])
    toy.ref["loss"] = toy.ref["drop:loss"]
    toy.step()
    toy.check_scores()  # on the whole graph as before


def test_layergcn_draws_the_edges_of_an_epoch_by_degree_and_uniformly_in_turns(tmp_path, monkeypatch):
    model, _ = build("LayerGCN", tmp_path, edge_dropout=0.8)
    draws = []
    monkeypatch.setattr(model.pruner, "draw", lambda share, uniform: draws.append((share, uniform)))
    for epoch in range(3):
        model.before_epoch(epoch)
    assert draws == [(1 - 0.8, False), (1 - 0.8, True), (1 - 0.8, False)]


@pytest.mark.parametrize("uniform", [False, True])
def test_pruner(uniform):
    items = torch.cat(
        [torch.zeros(20), torch.arange(1, 11)]
    ).long()  # twenty edges to one item, ten to items of their own
    edges = Edges(torch.arange(30), items, torch.ones(30), (30, 11))
    pruner, shares = Pruner(edges), []
    torch.manual_seed(0)
    for _ in range(200):
        graph = pruner.draw(0.2, uniform).csr().to_dense()
        found = graph[:30, 30:].nonzero()
        assert len(found) == 6 and torch.equal(graph, graph.T)
        popular = int((found[:, 1] == 0).sum())
        shares.append(popular / 6)
        torch.testing.assert_close(graph[:30, 30].max(), torch.tensor(popular**-0.5 if popular else 0.0))
    rng, p = np.random.default_rng(0), np.repeat([1 if uniform else 20**-0.5, 1], [20, 10])
    truth = [(rng.choice(30, 6, replace=False, p=p / p.sum()) < 20).mean() for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(np.mean(truth), abs=0.04)


def test_selfcf_golden(golden, tmp_path, monkeypatch):
    encoder = "online_encoder.embedding_dict"
    names = {"users": f"{encoder}.user_emb", "items": f"{encoder}.item_emb"}
    names |= {f"predictor.{part}": f"predictor.{part}" for part in ("weight", "bias")}
    terms = {"users": ("ui", 1), "items": ("iu", 1), "l2": ("reg", 0.01)}
    toy = baseline(
        golden, tmp_path, "SelfCF", names, terms, dropout=0.0, max_edge_dropout=0.0, reg_weight=0.01, n_layers=2
    )
    toy.check()
    model = toy.model
    keep = torch.zeros(model.n_users + model.n_items, model.n_users + model.n_items)
    nodes = torch.cat([toy.users, toy.items + model.n_users])
    keep[nodes[:, None], nodes] = torch.from_numpy(toy.ref["noisy:in:edge_keep"]).float()
    rows, cols = model.graph.csr().to_dense().nonzero(as_tuple=True)
    monkeypatch.setattr(model, "thinned", lambda: model.graph.reweighted(keep[rows, cols] / 0.7))
    masks = iter([torch.from_numpy(toy.ref[f"noisy:in:keep_{side}"]) for side in "ui"])
    monkeypatch.setattr(model, "target", lambda x, rows: x.detach()[rows] * next(masks) / 0.8)
    toy.ref["loss"] = toy.ref["noisy:loss"]
    toy.step()
    toy.check_scores()


def test_selfcf_thins_each_direction_of_an_edge_by_itself_and_keeps_the_mean(tmp_path):
    model, _ = build("SelfCF", tmp_path, max_edge_dropout=0.5)
    torch.manual_seed(0)
    graph, total, one_way, dropped = model.graph.csr().to_dense(), 0.0, 0, 0
    for _ in range(400):
        thin = model.thinned().csr().to_dense()
        total = total + thin
        one_way += int(((thin > 0) != (thin.T > 0)).sum())
        factors = (thin / graph)[thin > 0]
        torch.testing.assert_close(factors, factors[:1].expand_as(factors))
        assert 1 <= factors[0] <= 2
        dropped += len(model.graph) - len(factors)
    assert one_way > 0 and dropped / (400 * len(model.graph)) == pytest.approx(0.25, abs=0.02)
    assert (total / 400 / graph)[graph > 0].mean() == pytest.approx(1, abs=0.01)
    assert build("SelfCF", tmp_path, max_edge_dropout=0.0)[0].thinned().symmetric


def test_reweighted_matrix_multiplies_and_goes_back_as_its_dense_form():
    generator = torch.Generator().manual_seed(0)
    for square in (True, False):
        a = (torch.rand(6, 6 if square else 4, generator=generator) < 0.5).float()
        a = torch.maximum(a, a.T) if square else a
        matrix = Edges(*a.nonzero(as_tuple=True), torch.ones(int(a.sum())), a.shape).matrix()
        assert matrix.symmetric == square
        factors = torch.rand(len(matrix), generator=generator)
        b = a.masked_scatter(a > 0, factors)
        x = torch.randn(a.shape[1], 3, generator=generator, requires_grad=True)
        out = matrix.reweighted(factors)(x)
        torch.testing.assert_close(out, b @ x)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], 2 * b.T @ (b @ x))
        torch.testing.assert_close(matrix(x), a @ x)  # which stays as it was


@pytest.mark.parametrize("name", ["LayerGCN", "SelfCF"])
def test_baselines_without_features_keep_the_contract(tmp_path, name):
    model, splits = build(name, tmp_path, modalities=None)
    assert not model.modalities and not model.encoders
    batch = next(iter(splits.train))
    model.train()
    torch.manual_seed(0)
    _, grads = gradients(model, batch)
    assert all(grads[n].abs().sum() > 0 for n, _ in model.named_parameters())
    model.eval()
    scores = model.full_sort_predict(batch)
    pairs = scores.gather(1, batch[model.ITEM_ID][:, None]).squeeze(1)
    torch.testing.assert_close(model.predict(batch), pairs)
    emb = model.evaluation_embeddings()
    torch.testing.assert_close(emb.users[batch["user_id"]] @ emb.items.T, scores)
    plugged, _ = build(f"{name}+MRdIB", tmp_path)
    assert all(torch.equal(p, plugged.backbone.get_parameter(n)) for n, p in model.named_parameters())
    with pytest.raises(ConfigError, match="has no features"):
        build(f"{name}+MRdIB (paper)", tmp_path)


def test_baseline_without_features_from_data_to_embeddings(tmp_path):
    write_mmrec(tmp_path / "toy", users=40, items=30, dims={})
    values = {"data_path": str(tmp_path), "epochs": 2, "embedding_size": 8}
    result = train("SelfCF", "toy", 1, values=values, runs=tmp_path / "runs")
    assert result["modalities"] == [] and 0 < result["test"]["recall@20"] <= 1
    trained = load(result["folder"])
    tables = trained.embeddings()
    assert set(tables) == {"users", "items"} and tables["users"].shape == (40, 16)
    with pytest.raises(ConfigError, match="knows no features"):
        list(trained.new_blocks(tmp_path / "toy"))
    with pytest.raises(ConfigError, match="no modality representations"):
        measure(trained, tmp_path)


def test_itemknncbf_golden(golden, tmp_path):
    for k, shrink in ((10, 10), (10, 0), (5, 100)):
        folder = tmp_path / f"{k}-{shrink}"
        folder.mkdir()
        toy = Golden(golden, folder, "ItemKNNCBF", embedding_size=None, knn_k=k, shrink=float(shrink))
        toy.ref["scores"] = toy.ref[f"k{k}_s{shrink}:scores"]
        toy.check_scores()
        users, items = toy.users[[3, 5, 3]], toy.items[[7, 9, 8]]
        scores = toy.model.full_sort_predict(Interaction({"user_id": users}))  # a user twice
        assert torch.equal(scores[0], scores[2])
        pairs = toy.model.predict(Interaction({"user_id": users, "item_id": items}))
        torch.testing.assert_close(pairs, scores[torch.arange(3), items])
    assert [n for n, p in toy.model.named_parameters() if p.numel() > 1] == []
    assert toy.model.type == ModelType.TRADITIONAL


def test_items_without_features_are_nobodys_neighbours(monkeypatch):
    x = torch.tensor([[0.0, 0], [1, 0], [-1, 0.1], [0, 0], [-1, -0.1]])  # item 3 and the padding have none
    for block in (neighbours.BLOCK, 1):
        monkeypatch.setattr(neighbours, "BLOCK", block)
        graph = shrunk_neighbours(x, 3, 2.0).matrix().csr().to_dense()
        near = x @ x.T / (x.norm(dim=1)[:, None] * x.norm(dim=1) + 2)
        torch.testing.assert_close(graph, near)  # the three with features, even where the similarity is negative
        assert (graph[1] != 0).sum() == 3


def test_itemknncbf_is_ranked_as_soon_as_it_is_made(tmp_path):
    model, splits = build("ItemKNNCBF", tmp_path, embedding_size=None, knn_k=3)
    x, part = torch.cat(list(splits.dataset.features.values()), 1), splits.parts[0].inter_feat
    near = x @ x.T / (x.norm(dim=1)[:, None] * x.norm(dim=1) + 10)
    near = near * (near >= near.topk(3, dim=1).values[:, -1:])
    taken, _ = dense(model, part)
    scores = (taken @ near.double()).index_fill(1, torch.tensor(0), -torch.inf).masked_fill(taken > 0, -torch.inf)
    best = scores.topk(5).indices
    users, items = (splits.parts[1].inter_feat[f] for f in ("user_id", "item_id"))
    hits = (best[users] == items[:, None]).any(1).double().mean()  # one valid item a user
    assert rank(model, splits.valid, ["recall"], [5], "user_id").means["recall@5"] == pytest.approx(hits.item())


def test_itemknncbf_needs_features(tmp_path):
    write_mmrec(tmp_path / "toy", users=40, items=30, dims={})
    with pytest.raises(DataError, match="ItemKNNCBF needs item features"):
        build("ItemKNNCBF", tmp_path, modalities=0, embedding_size=None)


def test_mmgcn_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "MMGCN", reference_width=16, reg_weight=0.01)
    ref, model = toy.ref, toy.model
    for name in ("id_embedding", "v_gcn.preference", "t_gcn.preference"):  # tables that never train there
        ref |= {f"param:{name}": ref[f"fixed:{name}"], f"grad:{name}": ref[f"fixedgrad:{name}"]}
    ref |= {name: value.T for name, value in ref.items() if ".conv_embed_" in name}
    names = {"ids": ("id_embedding", torch.cat([toy.users, toy.items + model.n_users]))}
    names |= {f"encoders.image.{part}": f"v_gcn.MLP.{part}" for part in ("weight", "bias")}
    for m, short in (("image", "v_gcn"), ("text", "t_gcn")):
        names[f"preferences.{m}"] = (f"{short}.preference", toy.users)
        for n in (1, 2, 3):
            layer = f"layers.{m}.{n - 1}"
            names[f"{layer}.neighbours.weight"] = f"{short}.conv_embed_{n}.weight"
            for part in ("weight", "bias"):
                names[f"{layer}.own.{part}"] = f"{short}.linear_layer{n}.{part}"
                names[f"{layer}.combine.{part}"] = f"{short}.g_layer{n}.{part}"
    toy.set(names)
    terms = toy.terms()
    assert terms["bpr"] == pytest.approx(float(ref["term:bpr"]), abs=1e-5)
    assert terms["l2"] == pytest.approx(0.01 * float(ref["term:reg"]), abs=1e-7)
    toy.check()


@pytest.mark.parametrize(
    ("name", "user", "item", "values"),
    [
        ("BPR", "user_embedding.weight", "item_embedding.weight", {}),
        ("LightGCN", "embedding_dict.user_emb", "embedding_dict.item_emb", {"n_layers": 3, "require_pow": False}),
    ],
)
def test_golden_of_recboles_models(golden, tmp_path, name, user, item, values):
    toy = Golden(golden, tmp_path, name, reg_weight=0.1, **values)
    toy.set({"user_embedding.weight": (user, toy.users), "item_embedding.weight": (item, toy.items)})
    toy.check()
    whole, toy.model.reg_weight = toy.ref["loss"], 0.0
    toy.ref["loss"] = toy.ref["term:bpr"]
    toy.step()
    assert whole - toy.ref["loss"] == pytest.approx(0.1 * toy.ref["term:reg"], abs=1e-7)
