"""GRCN: the contract, reference values, and what is particular to it."""

import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib.testing.contract import ContractTests, gradients
from tests.test_models import Golden


class TestGRCN(ContractTests):
    model = "GRCN"


def close(ours, theirs, name):
    """Within 1e-4 of the largest entry; where the true value is 0, rounding is left."""
    theirs = theirs.to(ours.dtype)
    atol = max(1e-4 * float(theirs.abs().max()), 1e-7)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


class Reference(Golden):
    """A toy problem whose values are looked up under a variant's prefix ('offset:'), part by part."""

    def losses(self):
        """The named losses of the reference's batch, with gradients by our parameter name in `self.grads`."""
        u, i, j = (torch.from_numpy(b) for b in self.ref["batch"])
        batch = Interaction({"user_id": self.users[u], "item_id": self.items[i], "neg_item_id": self.items[j]})
        self.model.train()
        _, self.grads = gradients(self.model, batch)
        return {k: v.item() for k, v in self.model.step_loss(batch).parts.items()}

    def term(self, name):
        return float(self.ref[f"term:{name}"])

    def check_gradients(self, kind="grad"):
        for ours, (theirs, rows) in self.names.items():
            grad = self.grads[ours][slice(None) if rows is None else rows]
            close(grad, self.value(theirs, kind), ours)


def nodes(toy):
    """Rows of a table of users, then items."""
    return torch.cat([toy.users, toy.items + toy.model.n_users])


def grcn(golden, tmp_path, **values):
    toy = Reference(golden, tmp_path, "GRCN", reg_weight=0.01, reference_l2=True, **values)
    names = {"ids": ("id_gcn.id_embedding", nodes(toy)), "confidence": ("model_specific_conf", nodes(toy))}
    for m in ("image", "text"):
        names[f"preferences.{m}"] = (f"{m[0].replace('i', 'v')}_gcn.preference", toy.users)
        names |= {f"encoders.{m}.{part}": f"{m[0].replace('i', 'v')}_gcn.MLP.{part}" for part in ("weight", "bias")}
    toy.set(names)
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
