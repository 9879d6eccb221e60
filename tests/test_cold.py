"""Items without interactions: held out in training, and recommended from their features alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from mmrec_mrdib import cli, load, train
from mmrec_mrdib.data.dataset import MultimodalDataset
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.evaluation import NewItems
from mmrec_mrdib.experiment.run import make_config
from mmrec_mrdib.testing.contract import build

VALUES = {"epochs": 2, "topk": [5], "valid_metric": "Recall@5", "embedding_size": 8, "train_batch_size": 64}


def fitted(toy, tmp_path, model="VBPR+MRdIB (paper)", **values):
    values = VALUES | {"data_path": str(toy), "modalities": "a,b"} | values
    return train(model, "toy", 3, values=values, runs=tmp_path / "runs")


def test_held_out_items_are_nowhere_in_the_splits(toy):
    def parts(**values):
        data = MultimodalDataset(make_config("VBPR", "toy", values={"data_path": str(toy), **values}))
        return data, data.build()

    def pairs(part):
        return set(zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist(), strict=True))

    whole, before = parts()
    data, after = parts(cold_items=0.2)
    users, items = data.cold
    held = set(items.tolist())
    assert len(held) == 6 and data.notes["cold_items"] == 6
    for old, new in zip(before, after, strict=True):
        assert pairs(new) == {(u, i) for u, i in pairs(old) if i not in held}
    expected = {(u, i) for old in before for u, i in pairs(old) if i in held}
    assert set(zip(users.tolist(), items.tolist(), strict=True)) == expected
    assert data.fingerprint(after) != whole.fingerprint(before)
    again, _ = parts(cold_items=0.2, seed=99)
    assert torch.equal(again.cold[1], items)  # by split_seed alone


@pytest.mark.parametrize("model", ["VBPR", "VBPR+MRdIB (paper)", "FREEDOM", "FREEDOM+MRdIB (paper)"])
def test_cold_items_are_ranked_among_themselves(toy, tmp_path, model):
    result = fitted(toy, tmp_path, model, cold_items=0.2, topk=[2, 5])
    cold = result["cold"]
    assert cold["items"] == 6 and 0 < cold["recall@5"] <= 1 and cold["recall@2"] <= cold["recall@5"]
    trained = load(result["folder"])
    users, items = trained.dataset.cold
    model = getattr(trained.model, "backbone", trained.model)
    table, embedded = model.evaluation_embeddings().users, model.new_items(model.encode_items(torch.unique(items)))
    recalls = []
    for user in torch.unique(users):
        best = torch.unique(items)[(embedded @ table[user]).topk(2).indices]
        mine = items[users == user]
        recalls.append(torch.isin(mine, best).float().mean().item())
    assert cold["recall@2"] == pytest.approx(np.mean(recalls)) and cold["users"] == len(recalls)


def test_scores_of_new_items_by_hand(tmp_path):
    model, _ = build("VBPR", tmp_path)
    model.eval()
    items = torch.tensor([3, 7])
    scores = NewItems(model, items).full_sort_predict({"user_id": torch.tensor([1, 2])})
    enc = model.encode_items()
    theta = model.users[[1, 2], 8:]
    torch.testing.assert_close(scores[:, items], theta @ (enc.z["a"] + enc.z["b"])[items].T)
    assert scores[:, [0, 1, 2, 4]].isneginf().all()


@pytest.mark.parametrize("model", ["VBPR+MRdIB", "MGCN+Content", "LightGCN+MRdIB"])
def test_content_scores_new_items_whatever_the_backbone(toy, tmp_path, model):
    """The backbone's score where it has one, and w times the content's; one user's three scores by hand."""
    result = fitted(toy, tmp_path, model, cold_items=0.2, **({} if "Content" in model else {"stage_epochs": 1}))
    assert result["cold"]["items"] == 6 and 0 <= result["cold"]["recall@5"] <= 1
    trained = load(result["folder"]).model
    trained.choose(3, 2.0)
    items = torch.tensor([3, 7, 9])
    scores = NewItems(trained, items).full_sort_predict({"user_id": torch.tensor([5])})[0, items]
    z = {m: trained.content(trained.content_features())[m].detach() for m in "ab"}
    z = {m: x / x.norm(dim=1, keepdim=True) for m, x in z.items()}
    mine = trained.histories.entries(torch.tensor([5]))[1]
    assert not set(mine.tolist()) & set(load(result["folder"]).dataset.cold[1].tolist())
    content = sum(x[items] @ (x[mine].sum(0) / x[mine].sum(0).norm()) for x in z.values())
    host = 0
    if model == "VBPR+MRdIB":
        vbpr = trained.backbone
        host = (vbpr.users[5, 8:] @ sum(vbpr.encoders[m](vbpr.features(m)[items]) for m in "ab").T).detach()
        content = content * trained.settings.readout_ladder[3] * 2
    torch.testing.assert_close(scores.detach(), host + content)


@pytest.mark.parametrize("model", ["MMGCN", "DualGNN+MRdIB (paper)", "MGCN", "SOIL", "BPR", "LightGCN"])
def test_other_models_refuse_before_training(toy, tmp_path, model):
    with pytest.raises(ConfigError, match=r"new item|without interactions"):
        fitted(toy, tmp_path, model, cold_items=0.2)
    assert not (tmp_path / "runs").exists()


def new_items(folder, a, b, ids_b=None):
    folder.mkdir()
    ids = [f"n{n}" for n in range(len(a))]
    for m, x, names in (("a", a, ids), ("b", b, ids_b or ids)):
        np.save(folder / f"{m}_feat.npy", x)
        (folder / f"{m}_ids.txt").write_text("\n".join(names) + "\n")
    return folder


@pytest.mark.parametrize("model", ["VBPR+MRdIB (paper)", "FREEDOM"])
def test_a_copy_of_a_known_item_gets_its_modality_score(toy, tmp_path, model):
    raw = {m: np.load(toy / "toy" / f"{m}_feat.npy") for m in "ab"}
    raw["b"][1] = 0  # no picture: the mean row stands in, for the known item and for its copy
    np.save(toy / "toy" / "b_feat.npy", raw["b"])
    result = fitted(toy, tmp_path, model)
    folder = new_items(tmp_path / "new", raw["a"][[4, 9, 1]], raw["b"][[4, 9, 1]])
    out = tmp_path / "new.csv"
    assert (
        cli.main(["recommend", result["folder"], "--new-items", str(folder), "--top", "2", "--output", str(out)]) == 0
    )
    lists = pd.read_csv(out, dtype={"user": str})
    assert len(lists) == 80 and set(lists["item"]) <= {"n0", "n1", "n2"}
    trained = load(result["folder"])
    ids = torch.from_numpy(trained.dataset.token2id("item_id", ["4", "9", "1"]))
    with torch.no_grad():
        enc = trained.model.encode_items()
        z = enc.z["a"] + enc.z["b"]
        table = trained.model.evaluation_embeddings().users
        scores = (table[:, 8:] if model.startswith("VBPR") else table) @ z[ids].T  # scaled as in the training
    for row in lists.itertuples():
        user = trained.dataset.token2id("user_id", row.user)
        assert row.score == pytest.approx(scores[user, int(row.item[1])].item(), abs=1e-4)
    assert (lists.groupby("user")["score"].diff().dropna() <= 0).all()


def test_what_is_refused(toy, tmp_path, capsys):
    run = fitted(toy, tmp_path)["folder"]
    a, b = np.zeros((2, 12)), np.zeros((2, 8))
    good = new_items(tmp_path / "good", a, b)
    cases = {
        "no such folder": tmp_path / "nowhere",
        "12 columns; the model was trained with 8": new_items(tmp_path / "dims", a, a),
        "not the same items": new_items(tmp_path / "other", a, b, ["n0", "m1"]),
        "NaN": new_items(tmp_path / "nan", a * np.nan, b),
    }
    lone = new_items(tmp_path / "lone", a, b)
    (lone / "b_feat.npy").unlink()
    cases["no b_feat.npy"] = lone
    known = new_items(tmp_path / "known", a, b)
    for m in "ab":
        (known / f"{m}_ids.txt").write_text("n0\n7\n")
    cases["1 items are in the training data (7)"] = known
    capsys.readouterr()
    for message, folder in cases.items():
        assert cli.main(["recommend", run, "--new-items", str(folder), "--output", str(tmp_path / "x.csv")]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    other = fitted(toy, tmp_path, "MGCN")["folder"]
    capsys.readouterr()
    assert cli.main(["recommend", other, "--new-items", str(good), "--output", str(tmp_path / "x.csv")]) == 2
    assert "MGCN has no score for items without interactions" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
