"""Every backbone keeps the contract; VBPR reproduces reference values."""

import json

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib.evaluation import RankingSplit, rank
from mmrec_mrdib.experiment.run import make_config, prepare
from mmrec_mrdib.models.vbpr import VBPR
from mmrec_mrdib.testing.contract import ContractTests, build, gradients


class TestVBPR(ContractTests):
    model = "VBPR"


def golden_vbpr(golden, tmp_path):
    toy, ref = np.load(golden / "toy.npz"), np.load(golden / "VBPR.npz")
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = "\n".join("\t".join(map(str, r)) for r in toy["inter"])
    (folder / "toy.inter").write_text(f"userID\titemID\tx_label\n{rows}\n")
    for m in ("image", "text"):
        np.save(folder / f"{m}_feat.npy", toy[m])
    values = {"data_path": str(tmp_path), "modalities": "text,image", "feature_norm": "none"}
    config = make_config("VBPR", "toy", 1, values=values | {"embedding_size": 8, "reg_weight": 0.1})
    splits = prepare(config)
    data = splits.dataset
    users = torch.from_numpy(data.token2id("user_id", [str(u) for u in range(40)]))
    items = torch.from_numpy(data.token2id("item_id", [str(i) for i in range(30)]))
    return VBPR(config, splits.parts[0]), splits, ref, users, items


def test_vbpr_golden(golden, tmp_path):
    model, _, ref, users, items = golden_vbpr(golden, tmp_path)
    weight = torch.from_numpy(ref["param:item_linear.weight"])
    with torch.no_grad():
        model.users[users] = torch.from_numpy(ref["param:u_embedding"])
        model.items[items] = torch.from_numpy(ref["param:i_embedding"])
        model.encoders["text"].weight.copy_(weight[:, :8])
        model.encoders["image"].weight.copy_(weight[:, 8:])
        model.encoders["text"].bias.copy_(torch.from_numpy(ref["param:item_linear.bias"]))
        model.encoders["image"].bias.zero_()
    u, i, j = (torch.from_numpy(b) for b in ref["batch"])
    batch = Interaction({"user_id": users[u], "item_id": items[i], "neg_item_id": items[j]})
    model.train()
    loss, grads = gradients(model, batch)
    assert loss == pytest.approx(float(ref["loss"]), abs=1e-5)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(grads["users"][users], torch.from_numpy(ref["grad:u_embedding"]), **close)
    torch.testing.assert_close(grads["items"][items], torch.from_numpy(ref["grad:i_embedding"]), **close)
    joint = torch.cat([grads["encoders.text.weight"], grads["encoders.image.weight"]], 1)
    torch.testing.assert_close(joint, torch.from_numpy(ref["grad:item_linear.weight"]), **close)
    torch.testing.assert_close(grads["encoders.text.bias"], torch.from_numpy(ref["grad:item_linear.bias"]), **close)
    model.eval()
    scores = model.full_sort_predict(Interaction({"user_id": users}))[:, items]
    torch.testing.assert_close(scores.detach(), torch.from_numpy(ref["scores"]), rtol=0, atol=1e-4)


def test_metrics_golden(golden):
    spec = json.loads((golden / "metrics.json").read_text())
    scores = torch.from_numpy(np.load(golden / "metrics_scores.npy")).float()
    inter = torch.from_numpy(np.load(golden / "toy.npz")["inter"])
    train, rest = inter[inter[:, 2] == 0], inter[inter[:, 2] > 0]

    class Scores:
        """Ids moved up by one: 0 is padding here."""

        def full_sort_predict(self, interaction):
            return torch.nn.functional.pad(scores[interaction["user_id"] - 1], (1, 0))

    shifted = [(part[:, 0] + 1, part[:, 1] + 1) for part in (rest, train)]
    for memory in (10**6, 31 * 7):  # in one block, and in blocks of seven users
        split = RankingSplit("test", *shifted[0], [shifted[1]], 41, 31, memory)
        means = rank(Scores(), split, ["recall", "ndcg", "precision", "map"], [5, 10, 20], "user_id").means
        assert {k: round(v, 4) for k, v in means.items()} == spec["metrics"]


def test_vbpr_encodes_only_the_distinct_items_of_a_small_batch(tmp_path):
    model, splits = build("VBPR", tmp_path)
    model.train()
    full = next(iter(splits.train))
    small = Interaction({k: v[:4] for k, v in full.interaction.items()})
    batch = model.batch(small)
    assert model.items_to_encode(batch) is not None and model.items_to_encode(model.batch(full)) is None
    loss, grads = gradients(model, small)
    model.items_to_encode = lambda batch: None
    whole_loss, whole_grads = gradients(model, small)
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, whole_grads[name])
