"""Every backbone keeps the contract; reference values; what is particular to a model."""

import json

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib import evaluation
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import RankingSplit, rank
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.graphs import knn
from mmrec_mrdib.models.freedom import modality_weights
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.testing.contract import ContractTests, build, gradients


class TestVBPR(ContractTests):
    model = "VBPR"


class TestMMGCN(ContractTests):
    model = "MMGCN"


class TestDualGNN(ContractTests):
    model = "DualGNN"


class TestFREEDOM(ContractTests):
    model = "FREEDOM"


class TestMGCN(ContractTests):
    model = "MGCN"


class TestSOIL(ContractTests):
    model = "SOIL"
    at_least = 2


class Golden:
    """The toy problem of the reference values, and a model of ours on it.

    Parameters, gradients and scores are given by original ids; ours are RecBole's, with padding at 0.
    """

    def __init__(self, folder, tmp_path, name, modalities="image,text", **values):
        toy, self.ref = np.load(folder / "toy.npz"), dict(np.load(folder / f"{name}.npz"))
        (tmp_path / "toy").mkdir()
        rows = "\n".join("\t".join(map(str, r)) for r in toy["inter"])
        (tmp_path / "toy" / "toy.inter").write_text(f"userID\titemID\tx_label\n{rows}\n")
        for m in ("image", "text"):
            np.save(tmp_path / "toy" / f"{m}_feat.npy", toy[m])
        values = {
            "data_path": str(tmp_path),
            "modalities": modalities,
            "feature_norm": "none",
            "embedding_size": 8,
        } | values
        config = make_config(name, "toy", 1, values={k: v for k, v in values.items() if v is not None})
        splits = prepare(config)
        self.users = torch.from_numpy(splits.dataset.token2id("user_id", [str(u) for u in range(40)]))
        self.items = torch.from_numpy(splits.dataset.token2id("item_id", [str(i) for i in range(30)]))
        self.model = model_class(name)(config, splits.parts[0])

    def value(self, name, kind="param"):
        return torch.from_numpy(self.ref[f"{kind}:{name}"])

    def set(self, names):
        """Our parameter -> the reference's; a pair (name, rows) sets these rows."""
        self.names = {ours: theirs if isinstance(theirs, tuple) else (theirs, None) for ours, theirs in names.items()}
        assert set(self.names) == {n for n, _ in self.model.named_parameters()}
        with torch.no_grad():
            for ours, (theirs, rows) in self.names.items():
                self.model.get_parameter(ours)[slice(None) if rows is None else rows] = self.value(theirs)

    def batch(self):
        u, i, j = (torch.from_numpy(b) for b in self.ref["batch"])
        return Interaction({"user_id": self.users[u], "item_id": self.items[i], "neg_item_id": self.items[j]})

    def terms(self):
        """Each part of the loss of the batch, as a number."""
        self.model.train()
        return {k: v.item() for k, v in self.model.step_loss(self.batch()).parts.items()}

    def step(self):
        self.model.train()
        loss, grads = gradients(self.model, self.batch())
        assert loss == pytest.approx(float(self.ref["loss"]), abs=1e-5)
        return grads

    def check(self):
        grads = self.step()
        for ours, (theirs, rows) in self.names.items():
            grad = grads[ours][slice(None) if rows is None else rows]
            torch.testing.assert_close(
                grad, self.value(theirs, "grad"), rtol=1e-4, atol=1e-5, msg=lambda m, n=ours: f"{n}: {m}"
            )
        self.check_scores()

    def check_scores(self):
        self.model.eval()
        scores = self.model.full_sort_predict(Interaction({"user_id": self.users})).view(len(self.users), -1)
        scores = scores[:, self.items]
        torch.testing.assert_close(scores.detach(), torch.from_numpy(self.ref["scores"]), rtol=0, atol=1e-4)


def test_vbpr_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "VBPR", "text,image", reg_weight=0.1)
    model, weight = toy.model, toy.value("item_linear.weight")
    with torch.no_grad():
        model.users[toy.users] = toy.value("u_embedding")
        model.items[toy.items] = toy.value("i_embedding")
        model.encoders["text"].weight.copy_(weight[:, :8])
        model.encoders["image"].weight.copy_(weight[:, 8:])
        model.encoders["text"].bias.copy_(toy.value("item_linear.bias"))
        model.encoders["image"].bias.zero_()
    grads = toy.step()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(grads["users"][toy.users], toy.value("u_embedding", "grad"), **close)
    torch.testing.assert_close(grads["items"][toy.items], toy.value("i_embedding", "grad"), **close)
    joint = torch.cat([grads["encoders.text.weight"], grads["encoders.image.weight"]], 1)
    torch.testing.assert_close(joint, toy.value("item_linear.weight", "grad"), **close)
    torch.testing.assert_close(grads["encoders.text.bias"], toy.value("item_linear.bias", "grad"), **close)
    toy.check_scores()


def tables(toy, trainable_features=False):
    """What FREEDOM, MGCN and SOIL have in common: our parameter -> the reference's."""
    names = {"users": ("user_embedding.weight", toy.users), "items": ("item_id_embedding.weight", toy.items)}
    for m in ("image", "text"):
        names[f"encoders.{m}.weight"] = f"{m}_trs.weight"
        names[f"encoders.{m}.bias"] = f"{m}_trs.bias"
        if trainable_features:
            names[f"features_{m}"] = (f"{m}_embedding.weight", toy.items)
    return names


def gated(names, gates, fuser):
    """The purifiers and the fuser of MGCN and SOIL."""
    for m, gate in gates.items():
        for part in ("weight", "bias"):
            names[f"purifiers.{m}.gate.{part}"] = f"{gate}.0.{part}"
    names |= {f"fuser.hidden.{part}": f"{fuser}.0.{part}" for part in ("weight", "bias")}
    return names | {"fuser.score.weight": f"{fuser}.2.weight"}


def test_freedom_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "FREEDOM", edge_dropout=0.0, reg_weight=0.01, trainable_features=True)
    assert len(toy.model.item_graph) > 300  # text 0.9 and image 0.1, the default
    toy.set(tables(toy, trainable_features=True))
    toy.check()


def test_mgcn_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "MGCN", train_batch_size=64, trainable_features=True)
    names = gated(tables(toy, trainable_features=True), {"image": "gate_v", "text": "gate_t"}, "query_common")
    for m in ("image", "text"):
        names |= {f"preferences.{m}.{part}": f"gate_{m}_prefer.0.{part}" for part in ("weight", "bias")}
    toy.set(names)
    toy.check()


def test_soil_golden(golden, tmp_path):
    toy = Golden(golden, tmp_path, "SOIL", cross_weight=0.02, reference_block=True)
    toy.set(gated(tables(toy), {"image": "map_v", "text": "map_t"}, "attention"))
    toy.check()


def test_soil_block_by_column_sums_is_the_default_and_another_one(golden, tmp_path):
    toy = Golden(golden, tmp_path, "SOIL", cross_weight=0.02)
    toy.set(gated(tables(toy), {"image": "map_v", "text": "map_t"}, "attention"))
    square, block = toy.model.graph.csr().to_dense(), toy.model.user_item.csr().to_dense()
    torch.testing.assert_close(block, square[: block.shape[0], block.shape[0] :])
    with pytest.raises(AssertionError):
        toy.check_scores()


def test_metrics_golden(golden, monkeypatch):
    spec = json.loads((golden / "metrics.json").read_text())
    scores = torch.from_numpy(np.load(golden / "metrics_scores.npy")).float()
    inter = torch.from_numpy(np.load(golden / "toy.npz")["inter"])
    train, rest = inter[inter[:, 2] == 0], inter[inter[:, 2] > 0]

    class Scores:
        """Ids moved up by one: 0 is padding here."""

        def full_sort_predict(self, interaction):
            return torch.nn.functional.pad(scores[interaction["user_id"] - 1], (1, 0))

    shifted = [(part[:, 0] + 1, part[:, 1] + 1) for part in (rest, train)]
    # in one block, in blocks of seven users, and in blocks of the smallest size
    for memory, least, blocks in ((10**6, 32, 1), (31 * 7, 1, 6), (31, 32, 2)):
        monkeypatch.setattr(evaluation, "MIN_USERS", least)
        split = RankingSplit("test", *shifted[0], [shifted[1]], 41, 31, memory)
        means = rank(Scores(), split, ["recall", "ndcg", "precision", "map"], [5, 10, 20], "user_id").means
        assert {k: round(v, 4) for k, v in means.items()} == spec["metrics"]
        assert len(split) == blocks


def test_vbpr_encodes_only_the_distinct_items_of_a_small_batch(tmp_path):
    model, splits = build("VBPR", tmp_path)
    model.train()
    full = next(iter(splits.train))
    small = Interaction({k: v[:4] for k, v in full.interaction.items()})
    batch = model.batch(small)
    assert model.items_to_encode(batch) is not None and model.items_to_encode(model.batch(full)) is None
    loss, grads = gradients(model, small)
    model.items_to_encode = model.users_to_read = lambda batch: None
    whole_loss, whole_grads = gradients(model, small)
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole_grads[name])


def test_gathered_rows_are_shared_between_losses(tmp_path):
    model, splits = build("VBPR", tmp_path)
    batch = model.batch(next(iter(splits.train)))
    enc, table, other = model.encode_items(), torch.randn(model.n_items, 2), torch.randn(model.n_users, 2)
    positive, negative = batch.items_of(table, enc)
    assert torch.equal(positive, table[batch.positive]) and torch.equal(negative, table[batch.negative])
    assert batch.items_of(table, enc)[0] is positive and batch.items_of(table.clone(), enc)[0] is not positive
    assert torch.equal(batch.users_of(other, enc), other[batch.users])


def test_freedom_trains_on_a_pruned_graph_and_evaluates_on_the_whole(tmp_path):
    model, splits = build("FREEDOM", tmp_path, edge_dropout=0.75)
    n_edges = len(splits.parts[0])
    model.train()
    model.before_epoch(0)
    first = model.pruned
    assert len(first) == 2 * int(0.25 * n_edges)
    model.before_epoch(1)
    assert not torch.equal(first.col, model.pruned.col)
    embeddings = {}
    for mode in (True, False):
        model.train(mode)
        embeddings[mode] = model.evaluation_embeddings().users
        graph = model.pruned if mode else model.graph
        nodes = torch.cat([model.users, model.items])
        truth = (nodes + graph(nodes) + graph(graph(nodes)))[: model.n_users] / 3
        torch.testing.assert_close(embeddings[mode], truth)
    # the pruned graph is normalised by its own degrees
    a = first.csr().to_dense()
    degree = (a > 0).sum(1)
    row, col = a.nonzero(as_tuple=True)
    torch.testing.assert_close(a[row, col], 1 / torch.sqrt(degree[row] * degree[col]))


def test_freedom_shares_of_the_modalities(tmp_path):
    assert modality_weights(None, ("image", "text")) == pytest.approx({"image": 0.1, "text": 0.9})
    assert modality_weights(None, ("a", "text", "b")) == pytest.approx({"a": 0.05, "text": 0.9, "b": 0.05})
    assert modality_weights(None, ("a", "b")) == {"a": 0.5, "b": 0.5} and modality_weights(None, ("text",)) == {
        "text": 1.0
    }
    model, _ = build("FREEDOM", tmp_path, modality_weights={"a": 0.25, "b": 0.75}, knn_k=4)
    whole = model.item_graph.csr().to_dense()
    parts = [
        knn(model.features(m), 4, False).normalised("rows").scaled(w).matrix() for m, w in (("a", 0.25), ("b", 0.75))
    ]
    torch.testing.assert_close(whole, parts[0].csr().to_dense() + parts[1].csr().to_dense())
    for wrong in ({"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": -1.0, "b": 2.0}, {"a": 0.5, "c": 0.5}):
        with pytest.raises(ConfigError, match=r"modality_weights.*summing to 1"):
            build("FREEDOM", tmp_path, modality_weights=wrong)


def test_dualgnn_listens_to_users_with_common_items(tmp_path):
    model, splits = build("DualGNN", tmp_path, n_neighbours=3)
    part = splits.parts[0].inter_feat
    taken = torch.zeros(model.n_users, model.n_items)
    taken[part["user_id"], part["item_id"]] = 1
    common = (taken @ taken.T).fill_diagonal_(0)
    weights = model.user_graph.csr().to_dense()
    assert not weights[0].any()
    for user in range(1, model.n_users):
        ids = weights[user].nonzero().flatten()
        assert len(ids) == 3 and common[user, ids].min() >= common[user].topk(3).values.min()
        torch.testing.assert_close(weights[user, ids], torch.softmax(common[user, ids], 0))
    emb = model.evaluation_embeddings()
    fused = sum(model.fusion[:, n, None] * view for n, (view, _) in enumerate(emb.views.values()))
    torch.testing.assert_close(emb.users, fused + weights @ fused)


def test_mmgcn_layer_by_hand(tmp_path):
    model, splits = build("MMGCN", tmp_path, 1, n_layers=1)
    part = splits.parts[0].inter_feat
    n = model.n_users + model.n_items
    a = torch.zeros(n, n)
    a[part["user_id"], part["item_id"] + model.n_users] = 1
    a = a + a.T
    mean = a / a.sum(1, keepdim=True).clamp(min=1)
    (layer,), lrelu = model.layers["a"], torch.nn.functional.leaky_relu
    x = torch.nn.functional.normalize(torch.cat([model.preferences["a"], model.encoders["a"](model.features("a"))]))
    h = lrelu(mean @ (x @ layer.neighbours.weight.T))
    own = lrelu(layer.own(x)) + model.ids
    truth = lrelu(layer.combine(torch.cat([h, own], 1)))
    emb = model.evaluation_embeddings()
    torch.testing.assert_close(torch.cat([emb.users, emb.items]), truth)


@pytest.mark.parametrize("name", ["FREEDOM", "MGCN", "SOIL"])
def test_features_train_only_when_asked_to(tmp_path, name):
    for asked in (False, True):
        model, splits = build(name, tmp_path, trainable_features=asked)
        model.train()
        _, grads = gradients(model, next(iter(splits.train)))
        assert ("features_a" in grads) == asked
    plugged, splits = build(f"{name}+MRdIB (paper)", tmp_path, trainable_features=True)
    assert "backbone.features_a" in dict(plugged.named_parameters())
    before = splits.dataset.features["a"].clone()
    with torch.no_grad():
        plugged.backbone.features_a.add_(1)
    assert torch.equal(splits.dataset.features["a"], before)  # a copy of its own


def test_lightgcn_is_recboles_on_a_dense_graph(tmp_path):
    model, splits = build("LightGCN", tmp_path, modalities=2)
    part = splits.parts[0].inter_feat
    a = torch.zeros(model.n_users, model.n_items)
    a[part["user_id"], part["item_id"]] = 1
    scale = lambda sums: torch.where(sums > 0, sums, torch.inf).rsqrt()  # noqa: E731
    r = scale(a.sum(1))[:, None] * a * scale(a.sum(0))
    u, i = model.user_embedding.weight, model.item_embedding.weight
    users, items = model.forward()
    torch.testing.assert_close(users, (u + r @ i + r @ (r.T @ u)) / 3)
    torch.testing.assert_close(items, (i + r.T @ u + r.T @ (r @ i)) / 3)
