"""GRCN, SLMRec: the contract, reference values, and what is particular to each."""

import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib.testing.contract import ContractTests, build, gradients
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
