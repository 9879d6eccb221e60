"""GRCN, SLMRec, DA-MRS, MMGCF, MVGAE: the contract, reference values, and what is particular to each."""

import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib.errors import DataError
from mmrec_mrdib.graphs import Edges, sparse
from mmrec_mrdib.models import damrs as damrs_module
from mmrec_mrdib.models import mvgae as mvgae_module
from mmrec_mrdib.testing.contract import ContractTests, build, gradients
from mmrec_mrdib.testing.toy import write_mmrec
from tests.test_models import Golden

SHORT = {"image": "v", "text": "t"}  # the reference's names


class TestGRCN(ContractTests):
    model = "GRCN"


def close(ours, theirs, name):
    """Within 1e-4 of the largest entry; where the true value is 0, rounding is left."""
    theirs = theirs.to(ours.dtype)
    atol = max(1e-4 * float(theirs.abs().max()), 1e-7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


class Reference(Golden):
    """The toy problem, with losses part by part and values under a variant's name ('offset:grad:...')."""

    @property
    def interaction(self):
        u, i, j = (torch.from_numpy(b) for b in self.ref["batch"])
        return Interaction({"user_id": self.users[u], "item_id": self.items[i], "neg_item_id": self.items[j]})

    def losses(self):
        """The named losses of the reference's batch; gradients by our parameter name go to `self.grads`."""
        self.model.train()
        _, self.grads = gradients(self.model, self.interaction)
        return {k: v.item() for k, v in self.model.step_loss(self.interaction).parts.items()}

    def term(self, name):
        return float(self.ref[f"term:{name}"])

    def check_gradients(self, kind="grad"):
        for ours, (theirs, rows) in self.names.items():
            grad = self.grads[ours][slice(None) if rows is None else rows]
            close(grad, self.value(theirs, kind), ours)

    def check_scores(self, name="scores"):
        self.model.eval()
        scores = self.model.full_sort_predict(Interaction({"user_id": self.users}))[:, self.items]
        torch.testing.assert_close(scores.detach(), torch.from_numpy(self.ref[name]), rtol=0, atol=1e-4)


def layer_names(layers):
    """Weights and biases of linear layers: our parameter -> the reference's."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")}


def nodes(toy):
    """Rows of a table of users, then items."""
    return torch.cat([toy.users, toy.items + toy.model.n_users])


def grcn(golden, tmp_path, **values):
    toy = Reference(golden, tmp_path, "GRCN", reg_weight=0.01, reference_l2=True, **values)
    names = {"ids": ("id_gcn.id_embedding", nodes(toy)), "confidence": ("model_specific_conf", nodes(toy))}
    names |= {f"preferences.{m}": (f"{theirs}_gcn.preference", toy.users) for m, theirs in SHORT.items()}
    toy.set(names | layer_names({f"encoders.{m}": f"{theirs}_gcn.MLP" for m, theirs in SHORT.items()}))
    return toy


def test_grcn_golden(golden, tmp_path):
    toy = grcn(golden, tmp_path, reference_routing=True)
    parts = toy.losses()
    assert sum(parts.values()) == pytest.approx(float(toy.ref["loss"]), abs=1e-6)
    assert parts["bpr"] == pytest.approx(toy.term("bpr"), abs=1e-6)
    l2 = toy.term("reg_id_and_image_table") + toy.term("reg_preference_batch")
    assert parts["l2"] == pytest.approx(0.01 * l2, abs=1e-6)
    toy.check_gradients()
    toy.check_scores()
    emb = toy.model.evaluation_embeddings()
    out = torch.cat([emb.users[toy.users], emb.items[toy.items]])
    torch.testing.assert_close(out.detach(), torch.from_numpy(toy.ref["out"]), rtol=0, atol=1e-5)


def test_grcn_with_the_papers_routing(golden, tmp_path):
    toy = grcn(golden, tmp_path)
    assert sum(toy.losses().values()) == pytest.approx(0.46742, abs=1e-5)


class TestSLMRec(ContractTests):
    model = "SLMRec"


def test_slmrec_golden(golden, tmp_path):
    toy = Reference(golden, tmp_path, "SLMRec", ssl_temperature=0.5, ssl_weight=0.1)
    names = {"users": ("embedding_user.weight", toy.users), "items": ("embedding_item.weight", toy.items)}
    layers = {
        "encoders.image": "v_dense",
        "encoders.text": "t_dense",
        "fuse_users": "embedding_user_after_GCN",
        "fuse_items": "embedding_item_after_GCN",
        "start": "g_i_iv",
        "matches.image": "g_v_iv",
        "matches.text": "g_t_ivat",
        "hops.0": "g_iv_iva",
        "hops.1": "g_iva_ivat",
    }
    toy.set(names | layer_names(layers))
    parts = toy.losses()
    assert parts["main"] == pytest.approx(toy.term("main"), abs=5e-6)
    assert parts["ssl"] == pytest.approx(0.1 * toy.term("ssl"), abs=2e-6)
    batch = toy.model.batch(toy.interaction)
    chain = toy.model.chain(toy.model.forward_batch(batch)[1], batch)
    for loss, name in zip(chain, ("fac_v", "fac_t"), strict=True):
        assert loss.item() == pytest.approx(toy.term(name), abs=1e-5)
    toy.check_gradients()
    toy.check_scores("scores_raw")


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_slmrec_channels_by_hand(tmp_path, layers):
    model, splits = build("SLMRec", tmp_path, 3, n_layers=layers)
    enc = model.encode_items()
    emb = model.propagate(enc)
    a = torch.zeros(model.n_users + model.n_items, model.n_users + model.n_items)
    block = model.block.csr().to_dense()
    a[: model.n_users, model.n_users :], a[model.n_users :, : model.n_users] = block, block.T
    channels = []
    for items in (model.items, *enc.z.values()):
        x = torch.cat([model.users, items])
        channels.append(sum(torch.linalg.matrix_power(a, n) @ x for n in range(layers + 1)) / (layers + 1))
    torch.testing.assert_close(emb.users, model.fuse_users(torch.cat(channels, 1)[: model.n_users]))
    for m, channel in zip(enc.z, channels[1:], strict=True):
        torch.testing.assert_close(torch.cat(emb.views[m]), channel)
    torch.testing.assert_close(model.features("a").norm(dim=1)[1:], torch.ones(model.n_items - 1))
    # the chain with three modalities: a hop between two comparisons, the last in half the width
    batch = model.batch(next(iter(splits.train)))
    ids = batch.positive
    y = [c[model.n_users :][ids] for c in channels]
    first = model.start(y[0])
    second = model.hops[0](first)
    third = model.hops[1](second)
    losses = []
    for side, name, of_modality in zip((first, second, third), "abc", y[1:], strict=True):
        logits = side @ model.matches[name](of_modality).T / 0.2
        losses.append(torch.nn.functional.cross_entropy(logits, torch.arange(len(ids))))
    assert third.shape[1] == 4
    torch.testing.assert_close(model.chain(emb, batch), losses)


class TestDAMRS(ContractTests):
    model = "DAMRS"
    idle = ("encoders.",)


def by_item(toy, matrix):
    """A (30, 30) matrix by original ids in our order, with the padding's row and column."""
    out = torch.zeros(31, 31)
    out[toy.items[:, None], toy.items] = torch.as_tensor(matrix)
    return out


def damrs(golden, tmp_path, **values):
    toy = Reference(golden, tmp_path, "DAMRS", **values)
    # two of equal counts may come in any order: the reference's
    rows, cols, _ = torch.from_numpy(toy.ref["in:behaviour_edges"]).T
    own = torch.arange(30)
    edges = Edges(toy.items[torch.cat([rows, own])], toy.items[torch.cat([cols, own])], torch.ones(90), (31, 31))
    toy.model.item_graphs[2] = edges.normalised("rows").matrix()
    names = {"users": ("user_embedding.weight", toy.users), "items": ("item_id_embedding.weight", toy.items)}
    toy.set(names | layer_names({"encoders.image": "image_trs", "encoders.text": "text_trs"}))
    toy.names = {n: at for n, at in toy.names.items() if n in names}
    return toy


def test_damrs_golden(golden, tmp_path):
    toy = damrs(golden, tmp_path, knn_k=4, discrimination_weight=0.1)
    for graph, name in zip(toy.model.item_graphs, ("K_v", "K_t", "in:K_s"), strict=True):
        torch.testing.assert_close(graph.csr().to_dense(), by_item(toy, toy.ref[name]))
    parts = toy.losses()
    assert parts["bpr"] == pytest.approx(toy.term("bpr_weighted"), abs=1e-6)
    assert parts["align"] == pytest.approx(toy.term("kl"), abs=1e-6)
    assert parts["discriminate"] == pytest.approx(0.1 * toy.term("nd"), abs=1e-6)
    batch = toy.model.batch(toy.interaction)
    emb = toy.model.forward_batch(batch)[1]
    h = torch.nn.functional.normalize(emb.extra["h"], dim=-1)
    for value, name in zip(damrs_module.discrimination(h, batch.items), "vts", strict=True):
        assert value.item() == pytest.approx(toy.term(f"nd_{name}"), abs=5e-6)
    for ours, name in zip(damrs_module.weights(emb.users, h, batch), ("w_pos", "w_neg"), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(toy.ref[f"term:{name}"]).float(), rtol=0, atol=1e-6)
    toy.check_gradients()
    toy.check_scores()
    assert not any(n.startswith("encoders") for n in toy.grads)


def test_damrs_golden_with_other_settings(golden, tmp_path):
    settings = {"knn_k": 10, "n_item_layers": 2, "n_layers": 3, "alignment_weight": 0.5, "discrimination_weight": 1.0}
    toy = damrs(golden, tmp_path, **settings)
    assert sum(toy.losses().values()) == pytest.approx(float(toy.ref["k10:loss"]), abs=1e-5)
    toy.check_scores("k10:scores")


def test_damrs_discrimination_is_its_formula_in_any_blocks(monkeypatch):
    torch.manual_seed(0)
    h = torch.nn.functional.normalize(torch.randn(3, 31, 6, dtype=torch.double), dim=-1)
    h[:, 0] = 0
    ids = torch.tensor([1, 4, 5, 9, 30])
    monkeypatch.setattr(damrs_module, "BLOCK", 2 * 31)
    ours, truth = h.clone().requires_grad_(), h.clone().requires_grad_()
    values = damrs_module.discrimination(ours, ids)
    cos = truth[:, ids] @ truth[:, 1:].transpose(1, 2)
    shares = torch.softmax(cos, -1)
    dense = []
    for c, q in zip(cos, shares, strict=True):
        e = torch.exp(c / 0.2)
        near = torch.zeros_like(e).scatter(1, (shares.sum(0) + q).topk(10).indices, 1)
        others = torch.zeros_like(e).scatter(1, q.masked_fill(near > 0, -1).topk(10).indices, 1)
        j, o, rest = (e * near).sum(1), (e * others).sum(1), (e * (1 - near)).sum(1)
        dense.append((-torch.log(j / (j + rest) + 1e-9) - torch.log(o / rest + 1e-9)).mean())
    torch.testing.assert_close(values, torch.stack(dense))
    factors = torch.tensor([0.3, 1.0, -2.0], dtype=torch.double)
    (values * factors).sum().backward(), (torch.stack(dense) * factors).sum().backward()
    torch.testing.assert_close(ours.grad, truth.grad)


def test_damrs_needs_two_lists_of_neighbours(tmp_path):
    write_mmrec(tmp_path / "toy", users=20, items=19, dims={"a": 3})
    with pytest.raises(DataError, match="needs 20 items or more, found 19"):
        build("DAMRS", tmp_path, 1)


class TestMMGCF(ContractTests):
    model = "MMGCF"


def mmgcf(golden, tmp_path, fusion, weighting, **values):
    values = {"reg_weight": 0.1, "edge_dropout": 0.0, "fusion": fusion, "fusion_weighting": weighting} | values
    toy = Reference(golden, tmp_path, "MMGCF", **values)
    names = {"users": ("user_embedding.weight", toy.users), "items": ("item_id_embedding.weight", toy.items)}
    layers = {"encoders.image": "image_trs", "encoders.text": "text_trs"}
    if weighting == "alpha":
        names["alpha"] = ("mm_alpha", ())
    if fusion == "concat":
        layers["join"] = "id_mm_concat_layer" if weighting == "equal" else "all_concat_layer"
    if fusion == "concat" and weighting == "equal":
        layers["join_modalities"] = "mm_concat_layer"
    toy.set(names | layer_names(layers))
    return toy


def test_mmgcf_golden(golden, tmp_path):
    toy = mmgcf(golden, tmp_path, "concat", "alpha")
    parts = toy.losses()
    assert parts["bpr"] == pytest.approx(toy.term("bpr"), abs=1e-6)
    assert parts["l2"] == pytest.approx(0.1 * toy.term("reg"), abs=1e-6)
    toy.check_gradients()
    toy.check_scores()


@pytest.mark.parametrize("fusion", ["mean", "sum", "concat"])
@pytest.mark.parametrize("weighting", ["equal", "alpha", "normalized"])
def test_mmgcf_fusions(golden, tmp_path, fusion, weighting):
    toy = mmgcf(golden, tmp_path, fusion, weighting)
    assert sum(toy.losses().values()) == pytest.approx(float(toy.ref[f"{fusion}.{weighting}:loss"]), abs=1e-6)
    toy.check_scores(f"{fusion}.{weighting}:scores")
    for m, pair in toy.model.evaluation_embeddings().views.items():
        assert fusion != "concat" and pair[1].shape == (31, 8), m


def test_mmgcf_trains_on_a_pruned_graph(golden, tmp_path, monkeypatch):
    toy = mmgcf(golden, tmp_path, "sum", "equal", edge_dropout=0.5)
    model, (u, i) = toy.model, torch.from_numpy(toy.ref["drop:in:kept_edges"]).T
    whole = model.graph.csr().to_dense()[: model.n_users, model.n_users :] > 0
    kept = torch.zeros_like(whole)
    kept[toy.users[u], toy.items[i]] = True
    which = kept[model.pruner.users, model.pruner.items].nonzero().flatten()
    asked = []
    monkeypatch.setattr(sparse, "sample_edges", lambda weights, n: asked.append(n) or which)
    model.before_epoch(0)
    assert asked == [127] == [len(which)] and whole.sum() == 255
    assert sum(toy.losses().values()) == pytest.approx(float(toy.ref["drop:loss"]), abs=1e-6)
    toy.check_scores("sum.equal:scores")


class TestMVGAE(ContractTests):
    model = "MVGAE"


class MVGAEReference(Reference):
    """Its tables are untrained, its convolutions' weights in x out, its loss is taken with item ids that have their offset."""

    def value(self, name, kind="param"):
        if name.endswith((".preference", "collaborative")):
            kind = kind.replace("param", "fixed").replace("grad", "fixedgrad")
        value = super().value(name, kind)
        return value.T if "conv_embed" in name and value.dim() == 2 else value


def mvgae(golden, tmp_path, **values):
    values = {"hidden_size": 16, "dropout": 0, "noise_scale": 0, "kl_weight": 0.1, "reference_margin": True} | values
    toy = MVGAEReference(golden, tmp_path, "MVGAE", **values)
    names, layers = {"items": ("collaborative", toy.items)}, {"embed": "c_gcn.MLP"}
    layers |= {f"encoders.{m}": f"{theirs}_gcn.MLP" for m, theirs in SHORT.items()}
    for n, theirs in enumerate("vtc"):
        names[f"channels.{n}.preference"] = (f"{theirs}_gcn.preference", toy.users)
        layers |= {f"channels.{n}.conv": f"{theirs}_gcn.conv_embed_1", f"channels.{n}.dense": f"{theirs}_gcn.g_layer1"}
        for head, number in (("mean", 4), ("log_var", 5)):
            parts = {"conv": "conv_embed_", "dense": "g_layer", "skip": "linear_layer"}
            layers |= {f"channels.{n}.{head}.{a}": f"{theirs}_gcn.{b}{number}" for a, b in parts.items()}
    toy.set(names | layer_names(layers))
    return toy


def test_mvgae_golden(golden, tmp_path):
    toy = mvgae(golden, tmp_path)
    parts = toy.losses()
    assert sum(parts.values()) == pytest.approx(float(toy.ref["offset:loss"]), rel=1e-6)
    batch = toy.model.batch(toy.interaction)
    enc, emb = toy.model.forward_batch(batch)
    kl = 0.1 * toy.model.rates(emb)
    assert kl[0].item() == pytest.approx(0.1 * float(toy.ref["offset:term:kl_fused"]), rel=1e-6)
    pairs = {"fused": (emb.users, emb.items), "v": emb.views["image"], "t": emb.views["text"]}
    pairs["c"] = emb.extra["id_users"], emb.extra["id_items"]
    for (name, pair), rate in zip(pairs.items(), kl, strict=True):
        term = toy.model.reconstruction(*pair, batch, enc) + rate
        assert term.item() == pytest.approx(float(toy.ref[f"offset:term:{name}"]), rel=1e-6)
    for ours, n in (("mean", "mu"), ("log_var", "logvar")):
        for row, theirs in ((0, n), (1, f"v_{n}")):
            close(emb.extra[ours][row][nodes(toy)].detach(), torch.from_numpy(toy.ref[theirs]), theirs)
    toy.check_gradients("offset:grad")
    toy.check_scores()


def test_mvgae_noise(golden, tmp_path, monkeypatch):
    toy = mvgae(golden, tmp_path, noise_scale=0.1)
    noise = torch.zeros(4, toy.model.n_users + toy.model.n_items, 8)
    noise[:, nodes(toy)] = torch.from_numpy(toy.ref["noisy:in:eps"])
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    assert sum(toy.losses().values()) == pytest.approx(float(toy.ref["noisy:offset:loss"]), rel=1e-6)
    toy.check_scores()  # without noise


def test_mvgae_pairs_are_judged_by_their_own_negative(tmp_path):
    model, splits = build("MVGAE", tmp_path)
    batch = model.batch(next(iter(splits.train)))
    enc, emb = model.forward_batch(batch)
    scores = emb.users @ emb.items.T
    margins = scores[batch.users, batch.positive] - scores[batch.users, batch.negative]
    loss = model.reconstruction(emb.users, emb.items, batch, enc)
    torch.testing.assert_close(loss, -torch.log2(torch.sigmoid(margins)).sum())
    top = scores[batch.users][:, batch.negative].max(1).values
    torch.testing.assert_close(mvgae_module.highest(emb.users[batch.users], emb.items, batch), top)
