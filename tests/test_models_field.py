"""BM3, DRAGON, LGMRec, LayerGCN, SelfCF, ItemKNNCBF: contract, reference values, independent dense computations."""

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction

from mmrec_mrdib.testing.contract import ContractTests, build, gradients


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
    undisturbed: ClassVar = {"dropout": 0.0}


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
    target = model._target(torch.ones(100, 50, requires_grad=True))
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
