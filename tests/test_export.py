"""Recommendations and embeddings taken from a run folder."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from mmrec_mrdib import cli, load, train
from mmrec_mrdib.errors import CheckpointError, ConfigError, DataError
from mmrec_mrdib.experiment import export, record
from mmrec_mrdib.experiment.run import make_config

VALUES = {"epochs": 2, "topk": [5], "valid_metric": "Recall@5", "embedding_size": 8, "train_batch_size": 64}


@pytest.fixture
def fitted(toy, tmp_path):
    def call(model="VBPR+MRdIB (paper)", **values):
        values = VALUES | {"data_path": str(toy), "modalities": "a,b"} | values
        values = {k: v for k, v in values.items() if v is not None}
        return train(model, "toy", 3, values=values, runs=tmp_path / "runs")["folder"]

    return call


def history(toy):
    rows = [line.split("\t") for line in (toy / "toy" / "toy.inter").read_text().splitlines()[1:]]
    return {(user, item) for user, item, *_ in rows}, {(u, i) for u, i, _, label in rows if label == "0"}


@pytest.mark.parametrize("model", ["VBPR+MRdIB (paper)", "MGCN", "FREEDOM+MRdIB (paper)", "BPR"])
def test_lists_are_the_scores_sorted(fitted, toy, model):
    trained = load(fitted(model))
    seen, _ = history(toy)
    request = Interaction({"user_id": torch.arange(1, 41)})
    scores = trained.model.full_sort_predict(request).view(40, 31).detach()
    for exclude in (False, True):
        lists = trained.recommend(k=4, exclude_seen=exclude)
        assert lists.columns.tolist() == ["user", "rank", "item", "score"] and len(lists) == 160
        for row, (user, mine) in enumerate(lists.groupby("user", sort=False), 1):
            assert user == trained.users[row] and mine["rank"].tolist() == [1, 2, 3, 4]
            left = [i for i in range(1, 31) if not exclude or (user, trained.items[i]) not in seen]
            best = sorted(left, key=lambda i, row=row: -scores[row - 1, i])[:4]
            assert mine["item"].tolist() == trained.items[best].tolist()
            assert mine["score"].tolist() == pytest.approx(scores[row - 1, best].tolist(), abs=1e-6)


def test_the_weights_are_those_of_the_best_epoch(fitted):
    folder = fitted()
    trained = load(folder)
    state = torch.load(f"{folder}/best.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[n], p) for n, p in trained.model.state_dict().items())
    assert not trained.model.training and trained.result["model"] == "VBPR+MRdIB (paper)"


def test_in_blocks_and_with_fewer_items_than_asked_for(fitted, toy, monkeypatch):
    trained = load(fitted())
    whole = trained.recommend(k=100)
    seen, _ = history(toy)
    assert len(whole) == 40 * 30 - len(seen)  # everything that is left, and no padding
    assert "[PAD]" not in set(whole["item"])
    monkeypatch.setattr(export, "_SCORES", 31 * 7)
    pieces = list(trained.blocks(k=100))
    assert len(pieces) == 6
    pd.testing.assert_frame_equal(pd.concat(pieces, ignore_index=True), whole)


def test_original_ids_only_of_a_prepared_folder(fitted, toy):
    folder = fitted()
    (toy / "toy" / "users.txt").write_text("somebody else's list\n")
    assert load(folder).users[1] != "somebody else's list"
    (toy / "toy" / "items.txt").write_text("".join(f"item {n}\n" for n in range(30)))
    (toy / "toy" / "prepared.json").write_text("{}")
    with pytest.raises(DataError, match=r"users\.txt: does not name the data's users"):
        load(folder)
    (toy / "toy" / "users.txt").write_text("".join(f"user {n}\n" for n in range(40)))
    trained = load(folder)
    own = trained.dataset.field2id_token["user_id"]
    assert trained.users[1:].tolist() == [f"user {t}" for t in own[1:]]
    assert set(trained.recommend(["user 3"], 2)["item"]) <= {f"item {n}" for n in range(30)}


def test_unknown_users(fitted):
    trained = load(fitted())
    assert trained.split_users(["7", "nobody", "7", "[PAD]", 3]) == (["7", "3"], ["nobody", "[PAD]"])
    with pytest.raises(DataError, match=r"1 users are unknown.*nobody"):
        trained.recommend(["7", "nobody"])
    with pytest.raises(ConfigError, match="--top=0"):
        trained.recommend(["7"], k=0)


@pytest.mark.parametrize("model", ["VBPR+MRdIB (paper)", "MMGCN+MRdIB (paper)", "SOIL"])
def test_embeddings_make_the_scores(fitted, tmp_path, model):
    trained = load(fitted(model))
    names = export.write_embeddings(trained, tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert set(arrays) == {*names, "user_ids", "item_ids"} and {
        "item_a",
        "item_b",
        "view_users_a",
        "view_items_b",
    } <= set(names)
    scores = pd.DataFrame(arrays["users"] @ arrays["items"].T, arrays["user_ids"], arrays["item_ids"])
    for row in trained.recommend(["5", "9"], k=3).itertuples():
        assert scores.loc[row.user, row.item] == pytest.approx(row.score, abs=1e-5)
    assert len(arrays["item_a"]) == 30 and len(arrays["view_users_a"]) == 40


# as trained; after propagation; several layers' tables propagated
@pytest.mark.parametrize("model", ["BPR", "LightGCN", "DGCF"])
def test_embeddings_of_recboles_models_make_their_scores(fitted, model):
    trained = load(fitted(model, epochs=1))
    arrays = trained.embeddings()
    assert set(arrays) == {"users", "items"} and len(arrays["users"]) == 40 and len(arrays["items"]) == 30
    scores = pd.DataFrame(arrays["users"] @ arrays["items"].T, trained.users[1:], trained.items[1:])
    for row in trained.recommend(["5", "9"], k=3).itertuples():
        assert scores.loc[row.user, row.item] == pytest.approx(row.score, abs=1e-5)


# cosines of something else than its tables; a network over the whole history
@pytest.mark.parametrize(("model", "size"), [("SimpleX", 8), ("MultiDAE", None)])
def test_scores_that_are_no_inner_products_are_not_exported(fitted, model, size):
    with pytest.raises(ConfigError, match=f"{model}: its scores are no inner products"):
        load(fitted(model, epochs=1, embedding_size=size)).embeddings()


def test_what_cannot_be_loaded(fitted, toy, tmp_path):
    folder = fitted()
    with pytest.raises(DataError, match="no such result"):
        load(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (toy / "toy").rename(moved / "toy")
    with pytest.raises(DataError, match="no data set 'toy'"):
        load(folder)
    assert len(load(folder, moved).recommend(["1"], 3)) == 3
    lines = (moved / "toy" / "toy.inter").read_text().splitlines()
    (moved / "toy" / "toy.inter").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="not the data that"):
        load(folder, moved)
    (moved / "toy" / "toy.inter").write_text("\n".join(lines) + "\n")
    torch.save({"state_dict": {"users": torch.zeros(1)}}, f"{folder}/best.pt")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load(folder, moved)


def test_a_built_in_set_of_another_installation_is_this_ones(tmp_path):
    """That its features are derived is known of the own copy alone."""
    config = make_config("VBPR", "ml-100k", 1)
    other = tmp_path / "recbole" / "dataset_example" / "ml-100k"
    result = {
        "model": "VBPR",
        "dataset": "ml-100k",
        "seed": 1,
        "config": record.config_values(config) | {"data_path": str(other)},
    }
    for _ in ("gone", "there"):
        found = export._config(result, None)
        assert found["data_path"] == config["data_path"]
        other.mkdir(parents=True, exist_ok=True)


def test_parameters_of_the_run_are_those_of_the_model(fitted):
    trained = load(fitted("FREEDOM", modality_weights={"a": 0.25, "b": 0.75}, knn_k=4, edge_dropout=0.5))
    assert trained.model.edge_dropout == 0.5 and trained.model.modalities == ("a", "b")


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [(r["user"], r["item"], float(r["score"])) for r in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [(x["user"], i, s) for x in lines for i, s in zip(x["items"], x["scores"], strict=True)]
    return [(r.user, r.item, r.score) for r in pd.read_parquet(path).itertuples()]


@pytest.mark.parametrize("kind", export.FORMATS)
def test_recommend_command(fitted, toy, tmp_path, capsys, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    folder, out = fitted(), tmp_path / f"recs.{kind}"
    (tmp_path / "users.txt").write_bytes("\ufeff4\r\n\r\n12\r\nnobody\r\n".encode())
    arguments = ["recommend", folder, "--users", str(tmp_path / "users.txt"), "--top", "3", "--output", str(out)]
    assert cli.main(arguments) == 1  # seen items are left out, as in Python
    error = capsys.readouterr().err
    assert "1 users unknown" in error and "nobody" in error
    truth = load(folder).recommend(["4", "12"], 3)
    assert read(out) == [(r.user, r.item, pytest.approx(r.score)) for r in truth.itertuples()]
    assert cli.main(["recommend", folder, "--output", str(out)]) == 0
    assert not {(user, item) for user, item, _ in read(out)} & history(toy)[0]
    assert cli.main(["recommend", folder, "--no-exclude-seen", "--output", str(out)]) == 0
    assert len(read(out)) == 40 * 20 and {p.name for p in tmp_path.glob("*recs*")} == {out.name}


@pytest.mark.parametrize("kind", export.FORMATS)
def test_only_unknown_users_leave_an_empty_file(fitted, tmp_path, capsys, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    out = tmp_path / f"recs.{kind}"
    (tmp_path / "users.txt").write_text("nobody\n")
    assert cli.main(["recommend", fitted(), "--users", str(tmp_path / "users.txt"), "--output", str(out)]) == 1
    assert read(out) == []


def test_export_command(fitted, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    folder = fitted()
    assert cli.main(["export", folder, "--output", str(tmp_path / "e")]) == 0
    table = pd.read_parquet(tmp_path / "e" / "items.parquet")
    arrays = load(folder).embeddings()
    np.testing.assert_array_equal(np.stack(table["vector"]), arrays["items"])
    assert {p.stem for p in (tmp_path / "e").iterdir()} == set(arrays)


def test_mistakes(fitted, tmp_path, capsys):
    folder = fitted()
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    capsys.readouterr()  # of the training
    for arguments, message in (
        (["recommend", folder, "--output", str(tmp_path / "recs.xml")], "ends in .csv, .jsonl, .parquet"),
        (["recommend", folder, "--output", str(tmp_path / "no" / "r.csv")], "does not exist"),
        (["recommend", str(tmp_path / "no"), "--output", str(tmp_path / "r.csv")], "no such result"),
        (["recommend", folder, "--users", str(empty), "--output", str(tmp_path / "r.csv")], "no user ids"),
        (["recommend", folder, "--users", str(tmp_path / "x"), "--output", str(tmp_path / "r.csv")], "cannot be read"),
        (
            ["recommend", folder, "--exclude-seen", "--new-items", str(tmp_path), "--output", str(tmp_path / "r.csv")],
            "leave one",
        ),
        (["recommend", folder, "--top", "0", "--output", str(tmp_path / "r.csv")], "--top=0"),
        (["export", folder, "--output", str(tmp_path / "e.csv")], "ends in .npz"),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    assert not list(tmp_path.glob("*r.csv*")) and not (tmp_path / "no").exists()
