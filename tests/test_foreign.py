"""Scores and lists of other programs: their forms, their evaluation, what is refused or counted, boards, and the way back."""

import csv
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mmrec_mrdib import cli, load, train
from mmrec_mrdib.data.sources import scores
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment import leaderboard, record
from mmrec_mrdib.experiment.foreign import (
    Claim,
    Split,
    check_split,
    evaluate,
    foreign_cells,
    import_folder,
    import_scores,
)
from mmrec_mrdib.testing.toy import write_mmrec
from tests.conftest import ROOT
from tests.test_leaderboard import InProcess

# Three users, six items: train, valid, test of each.
PAIRS = {"0": ("01", "2", "4"), "1": ("12", "0", "45"), "2": ("23", "4", "5")}
LISTS = {"0": "423", "1": "35", "2": "01"}  # best first; hits: 4 at the first place; 5 at the second; none
SCORES = {(u, i): 0.9 - 0.1 * n for u, items in LISTS.items() for n, i in enumerate(items)}
RECALL = (1 + 1 / 2 + 0) / 3  # at 2
NDCG = (1 + (1 / math.log2(3)) / (1 + 1 / math.log2(3)) + 0) / 3
VALUES = {"topk": [2, 6], "metrics": ["Recall", "NDCG"]}
CLAIM = Claim("Theirs", "a toolkit 1.0", 1)


def write(folder, name="tiny", lines=None):
    (folder / name).mkdir(parents=True)
    rows = [(u, i, x) for u, parts in PAIRS.items() for x, items in enumerate(parts) for i in items]
    text = "".join(f"{u}\t{i}\t{x}\n" for u, i, x in (rows if lines is None else lines(rows)))
    (folder / name / f"{name}.inter").write_text("userID\titemID\tx_label\n" + text)
    np.save(folder / name / "a_feat.npy", np.random.default_rng(0).random((6, 3)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def split(data):
    return Split("tiny", VALUES | {"data_path": str(data)})


def long(path, rows, columns=("user", "item", "score"), separator=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([columns, *rows])
    return path


def pairs(path, more=(), without=()):
    """A csv of SCORES with other rows."""
    return long(path, [(u, i, s) for (u, i), s in SCORES.items() if (u, i) not in without] + list(more))


def dense(**more):
    matrix = np.full((3, 6), -np.inf)
    for (u, i), s in SCORES.items():
        matrix[int(u), 5 - int(i)] = s
    return {"users": np.arange(3), "items": np.arange(6)[::-1], "scores": matrix} | more


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def _columns():
    users, items = zip(*SCORES, strict=True)
    return {"user": list(users), "item": list(items), "score": list(SCORES.values())}


PADDED = [list(items.ljust(3)) for items in LISTS.values()]
FORMS = {
    "pairs.csv": lambda p: pairs(p),
    "ranks.tsv": lambda p: long(p, [(u, i, n) for u, x in LISTS.items() for n, i in enumerate(x)], ("user_id", "itemID", "rank"), "\t"),
    # the scores are distances: the ranks decide
    "both.csv": lambda p: long(p, [(n, i, n, u) for u, x in LISTS.items() for n, i in enumerate(x)], ("score", "item", "rank", "uid:token")),
    "lists.csv": lambda p: long(p, [(u, " ".join(x)) for u, x in LISTS.items()], ("user", "items")),
    "topk.csv": lambda p: long(p, [(u, x[1], x[0]) for u, x in LISTS.items()], ("id", "top_1", "top_0"), "\t"),
    "lists.jsonl": lambda p: p.write_text("".join(json.dumps({"user": int(u), "items": list(x)}) + "\n" for u, x in LISTS.items())),
    "pairs.parquet": lambda p: pd.DataFrame(_columns()).to_parquet(p),
    "lists.parquet": lambda p: pd.DataFrame({"user": [0, 1, 2], "items": [[int(i) for i in x] for x in LISTS.values()]}).to_parquet(p),
    "pairs.npz": lambda p: npz(p, **{f"{k}s": v for k, v in _columns().items()}),
    "ranks.npz": lambda p: npz(p, users=_columns()["user"], items=_columns()["item"], ranks=-np.array(_columns()["score"])),
    "lists.npz": lambda p: npz(p, users=np.arange(3), items=np.where(np.array(PADDED) == " ", "-1", PADDED).astype(int)),
    "dense.npz": lambda p: npz(p, **dense()),
    "half.npz": lambda p: npz(p, **dense(scores=dense()["scores"].astype(np.float16))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_values_computed_by_hand(split, tmp_path, form):
    if form.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    FORMS[form](tmp_path / form)
    ranking, counts = evaluate(tmp_path / form, split)
    assert ranking.means["recall@2"] == pytest.approx(RECALL, abs=1e-15)
    assert ranking.means["ndcg@2"] == pytest.approx(NDCG, abs=1e-15)
    # Six places take in every item: those that a list does not have are no hits all the same.
    assert ranking.means["recall@6"] == pytest.approx(RECALL, abs=1e-15)
    assert split.names["numbers"][0][ranking.users].tolist() == ["0", "1", "2"]
    assert counts["users_with_fewer_than_6_items"] == 3 and counts["users_with_fewer_than_2_items"] == 0
    assert counts["users_ranked_against_scores"] == (3 if form == "both.csv" else 0)


def test_what_is_counted(split, tmp_path):
    file = pairs(tmp_path / "a.csv", [("0", "1", 5.0), ("1", "2", 0.05), ("0", "5", 0.7)], [("2", "1"), ("2", "0")])
    with pytest.raises(DataError, match=r"1 of 3 test users are not there \(2\).*--absent=zero"):
        evaluate(file, split)
    ranking, counts = evaluate(file, split, absent="zero")
    assert ranking.per_user["recall@2"].tolist() == [1, 0.5, 0]  # training items left their places to the others
    assert counts == {
        "users": 3,
        "users_without_list": 1,
        "users_not_evaluated": 0,
        "users_ranked_against_scores": 0,
        "items_without_scores": 0,
        "items_of_training_dropped": 2,
        "users_with_ties": 1,  # items 3 and 5 of user 0
        "users_with_fewer_than_2_items": 1,
        "users_with_fewer_than_6_items": 2,  # user 0 has all four that are left to rank
    }


def test_valid_items_are_left_out_at_test_where_the_mask_says_so(data, tmp_path):
    file = pairs(tmp_path / "a.csv", [("1", "0", 5.0)])
    for mask, expected in (("train", 0), ("history", 0.5)):
        ranking, counts = evaluate(file, Split("tiny", VALUES | {"data_path": str(data), "eval_mask": mask}))
        # before: 0 and 3; after: 3 and 5, and of user 0 item 2 goes, too
        assert ranking.per_user["recall@2"][1] == expected
        assert counts["items_of_training_dropped"] == (0 if mask == "train" else 2)


def test_users_who_are_not_evaluated_are_ignored(tmp_path):
    write(tmp_path, lines=lambda rows: [r for r in rows if r[0] != "2" or r[2] != 2])
    split = Split("tiny", VALUES | {"data_path": str(tmp_path)})
    ranking, counts = evaluate(pairs(tmp_path / "a.csv"), split)
    assert counts["users_not_evaluated"] == 1 and ranking.means["recall@2"] == 0.75


BROKEN = {
    "unknown items": (lambda p: pairs(p, [("0", "6", 1), ("1", "B00", 1)]), r"2 items are not in tiny \(6, B00\)"),
    "unknown users": (lambda p: pairs(p, [("7", "1", 1)]), r"1 users are not in tiny \(7\)"),
    "padding is no id": (lambda p: pairs(p, [("[PAD]", "1", 1)]), r"1 users are not in tiny \(\[PAD\]\)"),
    "twice": (lambda p: pairs(p, [("1", "5", 0.1)]), r"1 pairs stand there twice \(user 1, item 5"),
    "NaN": (lambda p: pairs(p, [("1", "4", "nan")]), "line 9: score 'nan' is not a number"),
    "infinite": (lambda p: pairs(p, [("1", "4", "inf")]), "line 9: score 'inf' is not a number"),
    "no number": (lambda p: pairs(p, [("1", "4", "x")]), "line 9: score 'x' is not a number"),
    "no user": (lambda p: pairs(p, [("", "4", "1")]), "line 9, column user: no user"),
    "ragged": (lambda p: pairs(p, [("1", "4")]), "line 9: 2 cells, the header has 3"),
    "no score": (lambda p: long(p, [("0", "4")], ("user", "item")), "no column score or rank"),
    "a rating is no score": (lambda p: long(p, [("0", "4", 5)], ("user", "item", "rating")), "no column score or rank"),
    "no header": (lambda p: long(p, [("1", "4", 1)], ("0", "4", "1")), "no column of the user"),
    "two users": (lambda p: long(p, [(1, 1, 4, 1)], ("user", "uid", "item", "score")), "could all be the user"),
    "no rows": (lambda p: long(p, []), "3 of 3 test users are not there"),
    "a user twice": (lambda p: long(p, [("0", "4 2"), ("0", "3")], ("user", "items")), "user 0 has two lists"),
    "an item twice": (lambda p: long(p, [("0", "4 4")], ("user", "items")), r"twice \(user 0, item 4"),
    "no file": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tables_are_refused(split, tmp_path, case):
    make, message = BROKEN[case]
    make(tmp_path / "a.csv")
    with pytest.raises(DataError, match=message):
        evaluate(tmp_path / "a.csv", split)


BROKEN_ARRAYS = {
    "nan": (lambda: dense(scores=np.where(dense()["scores"] > 0.85, np.nan, 0)), r"3 scores are NaN .*user 0, item 4"),
    "infinite": (lambda: dense(scores=np.where(dense()["scores"] > 0.85, np.inf, 0)), "3 scores are NaN or infinite"),
    "unknown": (lambda: dense(items=np.arange(1, 7)), r"1 items are not in tiny \(6\)"),
    "a user twice": (lambda: dense(users=np.array([0, 1, 1])), "user 1 has two rows"),
    "an item twice": (lambda: dense(items=np.array([0, 1, 2, 3, 4, 4])), "item 4 has two columns"),
    "shapes": (lambda: dense(items=np.arange(4)), r"shapes fit none of the forms \(user \(3,\)"),
    "embeddings": (lambda: dense(users=np.zeros((3, 2))), r"expected arrays users \(U,\)"),
    "text": (lambda: dense(scores=dense()["scores"].astype(str)), "scores of type <U"),
    "none": (lambda: {"x": np.zeros(2)}, "found none of them"),
    "pairs with NaN": (lambda: {"users": [0], "items": [1], "scores": [np.nan]}, "NaN or infinite"),
    "pickled": (lambda: dense(users=np.array(["0", "1", None], dtype=object)), "pickled objects, which are never loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_ARRAYS)
def test_broken_arrays_are_refused(split, tmp_path, case):
    make, message = BROKEN_ARRAYS[case]
    with pytest.raises(DataError, match=message):
        evaluate(npz(tmp_path / "a.npz", **make()), split)


@pytest.mark.parametrize("line", ["{", "[]", '{"user": 1}', '{"user": null, "items": [1]}', '{"user": 1, "items": [1.5]}',
                                  '{"user": 1, "items": [1], "scores": [1, 2]}', '{"user": 1, "items": "12"}'])  # fmt: skip
def test_broken_json_lines_are_refused(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"user": 0, "items": [4]}\n' + line + "\n")
    with pytest.raises(DataError, match=r'line 2: expected \{"user": ID'):
        scores.read(tmp_path / "a.jsonl")


def test_seen_items_may_be_anything_in_a_matrix(split, tmp_path):
    matrix = dense()["scores"]
    matrix[0, 5 - 0] = np.nan  # how some programs mark what a user has
    ranking, _ = evaluate(npz(tmp_path / "a.npz", **dense(scores=matrix)), split)
    assert ranking.means["recall@2"] == pytest.approx(RECALL, abs=1e-15)


def test_items_of_the_data_that_a_matrix_does_not_have_are_counted_and_no_hits(split, tmp_path):
    given = dense(items=np.arange(6)[::-1][1:], scores=dense()["scores"][:, 1:])  # without item 5, the hit of user 1
    ranking, counts = evaluate(npz(tmp_path / "a.npz", **given), split)
    assert ranking.per_user["recall@6"].tolist() == [1, 0, 0] and counts["items_without_scores"] == 1


def test_users_whom_a_matrix_does_not_have_get_no_hits(split, tmp_path):
    given = dense(users=np.array([1, 0]), scores=dense()["scores"][[1, 0]])
    given["scores"][0, 5 - 5] = 2.0  # user 1: now 5 comes first; user 2, who is not there, must not have it
    ranking, counts = evaluate(npz(tmp_path / "a.npz", **given), split, absent="zero")
    assert ranking.per_user["recall@2"].tolist() == [1, 0.5, 0] and counts["users_without_list"] == 1


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A data set of 40 users and 30 items, and its split."""
    folder = tmp_path_factory.mktemp("wide")
    write_mmrec(folder / "toy", users=40, items=30, dims={"a": 12, "b": 8}, seed=0)
    return folder, Split("toy", {"data_path": str(folder), "topk": [5]})


@pytest.fixture(scope="module")
def ours(wide, tmp_path_factory):
    """A run of ours on the data of `wide`."""
    values = {"data_path": str(wide[0]), "topk": [5], "valid_metric": "Recall@5", "epochs": 1, "embedding_size": 8}
    return Path(train("VBPR", "toy", 3, values=values, runs=tmp_path_factory.mktemp("ours"))["folder"])


def interactions(folder, name="toy"):
    """Of the toy data, each pair where it first stands, train before valid before test."""
    frame = pd.read_csv(folder / name / f"{name}.inter", sep="\t").sort_values("x_label", kind="stable")
    return frame.drop_duplicates(["userID", "itemID"])


def test_lists_ranked_among_a_sample_are_refused(wide, tmp_path, rng):
    folder, split = wide
    frame = interactions(folder)
    test = frame[frame["x_label"] == 2]
    rows = [(u, i, rng.random()) for u, i in zip(test["userID"], test["itemID"], strict=True)]
    have = {(u, i) for u, i, _ in rows}
    rows += [(u, i, rng.random()) for u in range(40) for i in range(0, 30, 5) if (u, i) not in have]
    with pytest.raises(DataError, match="ranked among a sample of the items"):
        evaluate(long(tmp_path / "a.csv", rows), split)
    evaluate(long(tmp_path / "b.csv", rows[1:]), split)  # one is missing: they may be honest lists


def test_lists_that_leave_out_what_they_are_judged_by_are_refused(wide, ours, tmp_path):
    file = str(tmp_path / "a.csv")
    assert cli.main(["recommend", str(ours), "--top", "15", "--output", file]) == 0  # without the items of any split
    with pytest.raises(DataError, match=r"none of the 38 test interactions is listed, where .* about \d\d"):
        evaluate(Path(file), wide[1])


def test_equal_scores_are_ranked_as_those_of_our_models(wide, tmp_path):
    """All scores equal: whatever `torch.topk` takes, and 'recall' is that of the evaluator on the same matrix."""
    from mmrec_mrdib.evaluation import rank

    class Flat:
        def full_sort_predict(self, interaction):
            import torch

            return torch.zeros(len(interaction["user_id"]), 31, dtype=torch.float64)

    _, split = wide
    arrays = {"users": np.arange(40), "items": np.arange(30), "scores": np.zeros((40, 30))}
    ranking, counts = evaluate(npz(tmp_path / "a.npz", **arrays), split)
    ours = rank(Flat(), split.splits.test, ["recall"], [5], "user_id")
    assert ranking.per_user["recall@5"].tolist() == ours.per_user["recall@5"].tolist()
    assert counts["users_with_ties"] == counts["users"]


# Run folders and boards.


def test_a_run_folder_as_ours_have_them(split, tmp_path):
    file, valid = pairs(tmp_path / "test.csv"), long(tmp_path / "valid.csv", [(u, p[1], 1) for u, p in PAIRS.items()])
    done = import_scores(file, split, CLAIM, tmp_path / "runs", valid)
    result = record.load_result(done.folder)
    assert result["test"]["recall@2"] == pytest.approx(RECALL) and result["valid"]["recall@2"] == 1
    assert (result["model"], result["origin"], result["seed"]) == ("Theirs", "a toolkit 1.0", 1)
    assert result["imported"]["split"] == "their claim" and result["imported"]["test"]["users"] == 3
    with np.load(done.folder / "per_user.npz", allow_pickle=False) as arrays:
        assert arrays["users"].tolist() == ["0", "1", "2"]
        assert arrays["values"][:, arrays["metrics"].tolist().index("recall@2")].tolist() == [1, 0.5, 0]
    again = import_scores(file, split, CLAIM, tmp_path / "runs")
    assert again.folder == done.folder and "is replaced" in again.told[-1] and again.result["valid"] == {}
    import_scores(file, split, Claim("Theirs", "another", 1), tmp_path / "runs")
    assert len(list((tmp_path / "runs" / "imported").iterdir())) == 2  # and nothing temporary
    with pytest.raises(DataError, match=r"imported from a toolkit 1\.0"):
        load(done.folder)


def test_nothing_is_written_where_something_is_wrong(split, tmp_path):
    file = pairs(tmp_path / "test.csv", [("1", "5", 1)])
    for valid in (None, file):
        with pytest.raises(DataError):
            import_scores(pairs(tmp_path / "good.csv") if valid else file, split, CLAIM, tmp_path / "runs", valid)
    assert not (tmp_path / "runs").exists()


def foreign(wide, runs, seeds=(1, 2, 3, 4, 5), name="Theirs", gain=0.0, data=None):
    """Imports random scores of each seed; those of test items are larger by `gain`. Returns recall@5 by (seed, user), counted here."""
    folder, split = wide
    frame = interactions(folder)
    parts = [set(zip(p["userID"], p["itemID"], strict=True)) for _, p in frame.groupby("x_label")]
    recalls = []
    for seed in seeds:
        matrix = np.random.default_rng(seed).random((40, 30))
        for u, i in parts[2]:
            matrix[u, i] += gain + 0.02 * seed * (gain > 0)
        file = npz(runs.parent / "scores.npz", users=np.arange(40), items=np.arange(30), scores=matrix)
        import_scores(file, data or split, Claim(name, "a toolkit", seed), runs)
        users = []
        for u in range(40):
            relevant = {i for v, i in parts[2] if v == u}
            left = [i for i in range(30) if (u, i) not in parts[0]]
            best = sorted(left, key=lambda i, u=u, m=matrix: -m[u, i])[:5]
            users += [len(relevant & set(best)) / len(relevant)] if relevant else []
        recalls.append(users)
    return np.array(recalls)


def spec(wide, runs, **more):
    values = {"data_path": str(wide[0]), "topk": [5], "valid_metric": "Recall@5"}
    given = {
        "models": ("Pop",),
        "datasets": ("toy",),
        "variants": ("plain",),
        "metrics": ("recall@5",),
        "values": values,
    }
    return leaderboard.Spec(**given | {"runs": runs} | more)


def test_boards_have_them_as_measured_with_the_tests_of_ours(wide, tmp_path):
    runs = tmp_path / "runs"
    plain = foreign(wide, runs)
    better = foreign(wide, runs, name="Theirs+X", gain=0.3)
    cells, told = foreign_cells(spec(wide, runs))
    assert told == []
    content = leaderboard.board(spec(wide, runs), cells)
    rows = {row["model"]: row for row in content["rows"]}
    assert set(rows) == {"Theirs [a toolkit]", "Theirs+X [a toolkit]"}
    row = rows["Theirs [a toolkit]"]
    assert row["source"] == "measured" and row["status"] == "complete" and row["seeds"] == [1, 2, 3, 4, 5]
    assert row["values"]["recall@5"] == pytest.approx(plain.mean(1).tolist())
    assert "that it was trained on this split is their claim" in row["notes"]
    (one,) = content["comparisons"]
    assert one["model"] == "Theirs+X [a toolkit]" and one["seeds"] == [1, 2, 3, 4, 5]
    assert one["gain"] == pytest.approx(better.mean() / plain.mean() - 1)
    assert one["t"]["p"] == pytest.approx(stats.ttest_rel(better.mean(1), plain.mean(1)).pvalue)
    users = (better - plain).mean(0).round(12)
    assert one["wilcoxon"]["p"] == pytest.approx(stats.wilcoxon(users, zero_method="pratt").pvalue)
    assert one["significant"]


def test_what_a_board_leaves_out_and_says_so(wide, tmp_path):
    runs = tmp_path / "runs"
    foreign(wide, runs, seeds=(1, 7))
    cells, told = foreign_cells(spec(wide, runs, seeds=(1, 2)))
    assert [list(c.results) for c in cells] == [[1]] and len(told) == 1 and "seed 7 is none of the board's" in told[0]
    (row,) = leaderboard.board(spec(wide, runs, seeds=(1, 2)), cells)["rows"]
    assert row["status"] == "incomplete" and row["reasons"] == ["seed 2: not imported"]
    values = spec(wide, runs).values
    for more, why in (
        ({"metrics": ("recall@5", "recall@7"), "values": values | {"topk": [5, 7]}}, "without recall@7"),
        ({"values": values | {"eval_mask": "history"}}, "evaluated with eval_mask train, this board with history"),
        ({"values": values | {"cold_items": 0.2}}, "of another split of toy"),
    ):
        cells, told = foreign_cells(spec(wide, runs, seeds=(1, 7), **more))
        assert cells == [] and len(told) == 2 and why in told[0]


def test_the_fingerprint_of_a_split(data, split, tmp_path):
    def of(folder, **more):
        return Split("tiny", VALUES | {"data_path": str(folder), **more}).fingerprint

    assert of(data, modalities="a", feature_norm="l2") == split.fingerprint
    write(tmp_path / "order", lines=lambda rows: rows[::-1])
    assert of(tmp_path / "order") == split.fingerprint
    changes = {
        "label": lambda r: (*r[:2], 1) if r == ("1", "5", 2) else r,
        "item": lambda r: ("1", "3", 2) if r == ("1", "5", 2) else r,
    }
    for name, change in changes.items():
        write(tmp_path / name, lines=lambda rows, change=change: [change(r) for r in rows])
        assert of(tmp_path / name) != split.fingerprint


# The way back.


def per_user(folder):
    with np.load(folder / "per_user.npz", allow_pickle=False) as file:
        return {name: file[name].tolist() for name in ("users", "metrics", "values")}


@pytest.mark.parametrize(("kind", "top"), [("csv", "5"), ("jsonl", "30"), ("parquet", "30")])
def test_exported_lists_give_exactly_the_metrics_of_the_run(wide, ours, tmp_path, capsys, kind, top):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra 'parquet')")
    files = {part: tmp_path / f"{part}.{kind}" for part in ("test", "valid")}
    for part, file in files.items():
        assert cli.main(["export", str(ours), "--lists", part, "--top", top, "--output", str(file)]) == 0
    arguments = ["leaderboard", "import-run", str(files["test"]), "--valid", str(files["valid"]), "--dataset", "toy", "--name", "VBPR",
                 "--origin", "elsewhere", "--data_path", str(wide[0]), "--topk=5", "--seed", "3", "--runs", str(tmp_path)]  # fmt: skip
    assert cli.main(arguments) == 0
    (folder,) = (tmp_path / "imported").iterdir()
    assert f"written: {folder}" in capsys.readouterr().out
    theirs, result = record.load_result(folder), record.load_result(ours)
    assert theirs["test"] == result["test"] and theirs["valid"] == result["valid"]
    assert per_user(folder) == per_user(ours) and theirs["data"]["splits"] == result["data"]["splits"]


def test_a_run_folder_from_elsewhere(wide, ours, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ours, copy)
    table = per_user(ours)
    order = np.arange(len(table["users"]))[::-1]  # another program's order
    record.write_per_user(copy / "per_user.npz", np.array(table["users"])[order], dict(zip(table["metrics"], np.array(table["values"])[order].T, strict=True)))  # fmt: skip
    arguments = ["leaderboard", "import-run", str(copy), "--data_path", str(wide[0]), "--origin", "the other machine", "--runs", str(tmp_path)]  # fmt: skip
    assert cli.main(arguments) == 0
    (folder,) = (tmp_path / "imported").iterdir()
    assert per_user(folder) == table
    result = record.load_result(folder)
    assert (result["model"], result["seed"], result["origin"]) == ("VBPR", 3, "the other machine")
    assert result["imported"]["config"]["embedding_size"] == 8 and result["best_epoch"] == 0
    again = import_folder(folder, wide[1], Claim("VBPR", "a third", 3), tmp_path / "again").result["imported"]
    assert again == result["imported"] | {"folder": str(folder)}
    (cell,), _ = foreign_cells(spec(wide, tmp_path, seeds=(3,)))
    assert cell.results[3]["test"] == record.load_result(ours)["test"] and cell.model == "VBPR [the other machine]"


def test_run_folders_that_do_not_fit_are_refused(wide, ours, split, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ours, copy)
    with pytest.raises(DataError, match=r"of another split \(.*\) than tiny"):
        import_folder(copy, split, CLAIM, tmp_path / "runs")
    table = per_user(ours)
    columns = dict(zip(table["metrics"], np.array(table["values"]).T, strict=True))
    record.write_per_user(
        copy / "per_user.npz", np.array(table["users"]), columns | {"recall@5": columns["recall@5"] + 0.01}
    )
    with pytest.raises(DataError, match=r"the mean of recall@5 is not what result.json says"):
        import_folder(copy, wide[1], CLAIM, tmp_path / "runs")
    record.write_per_user(copy / "per_user.npz", np.array(table["users"])[1:], {m: c[1:] for m, c in columns.items()})
    with pytest.raises(DataError, match="not the 38 test users of toy"):
        import_folder(copy, wide[1], CLAIM, tmp_path / "runs")
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"state": "diverged at epoch 3", "error": "NaN"}))
    with pytest.raises(DataError, match="diverged at epoch 3"):
        import_folder(copy, wide[1], CLAIM, tmp_path / "runs")
    del result["data"]["splits"]
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="does not say which split"):
        import_folder(copy, wide[1], CLAIM, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_their_split_is_held_against_ours(data, split, tmp_path, capsys):
    check_split(data / "tiny" / "tiny.inter", split)  # MMRec's own file
    assert cli.main(["data", "export", "tiny", "--data_path", str(data), "--output", str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "interactions.csv"
    done = import_scores(pairs(tmp_path / "a.csv"), split, CLAIM, tmp_path / "runs", their_split=file)
    assert done.result["imported"]["split"] == "checked"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join([*lines, "9,9,valid", lines[-1]]) + "\n"
    )  # a user without training items, and a line twice
    check_split(file, split)
    file.write_text("\n".join(lines).replace("1,5,test", "1,5,train"))
    with pytest.raises(DataError, match="in train 1 interactions of theirs are not ours, and 0 of ours are not theirs"):
        check_split(file, split)
    file.write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="in test 0 interactions of theirs are not ours, and 1 of ours are not theirs"):
        check_split(file, split)
    file.write_text("user,item,split\n0,1,dev\n")
    with pytest.raises(DataError, match="line 2: 'dev' is no split"):
        check_split(file, split)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """PAIRS as `data prepare` leaves them: numbers in the .inter, original ids (u0, B0, ...) beside it; item B1 has no features."""
    folder = tmp_path_factory.mktemp("prepared")
    write(folder)
    (folder / "tiny" / "users.txt").write_text("".join(f"u{n}\n" for n in range(3)))
    (folder / "tiny" / "items.txt").write_text("".join(f"B{n}\n" for n in range(6)))
    (folder / "tiny" / "prepared.json").write_text("{}")
    np.save(folder / "tiny" / "a_feat.npy", np.arange(15.0).reshape(5, 3) + 1)
    (folder / "tiny" / "a_ids.txt").write_text("0\n2\n3\n4\n5\n")
    return folder


def test_original_ids_and_numbers(prepared, tmp_path):
    values = VALUES | {"data_path": str(prepared), "missing": "mean"}
    named = long(tmp_path / "names.csv", [(f"u{u}", f"B{i}", s) for (u, i), s in SCORES.items()])
    numbers = pairs(tmp_path / "numbers.csv")
    for file, ids, other in ((named, "original", "numbers"), (numbers, "numbers", "original")):
        assert evaluate(file, Split("tiny", values, ids=ids))[0].means["recall@2"] == pytest.approx(RECALL)
        with pytest.raises(DataError, match=f"say --ids={ids}"):
            evaluate(file, Split("tiny", values, ids=other))
    done = import_scores(named, Split("tiny", values), CLAIM, tmp_path)
    assert per_user(done.folder)["users"] == ["0", "1", "2"]  # as those of our runs


def test_data_for_other_programs(prepared, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["data", "export", "tiny", "--data_path", str(prepared), "--missing=mean", "--output", str(out)]
    assert cli.main(arguments) == 0
    assert "6 train, 3 valid, 4 test interactions" in capsys.readouterr().out
    frame = pd.read_csv(out / "interactions.csv")
    expected = {(f"u{u}", f"B{i}", s) for u, p in PAIRS.items() for s, items in zip(("train", "valid", "test"), p, strict=True) for i in items}  # fmt: skip
    assert set(frame.itertuples(index=False, name=None)) == expected and len(frame) == 13
    ids = (out / "a_ids.txt").read_text().split()
    rows = dict(zip(ids, np.load(out / "a_feat.npy").tolist(), strict=True))
    assert rows["B2"] == [4, 5, 6] and "B1" not in rows and len(rows) == 5  # raw, and by id
    assert cli.main(arguments) == 2 and "exists already" in capsys.readouterr().err


def test_mistakes_on_the_command_line(data, ours, tmp_path, capsys):
    file, runs = pairs(tmp_path / "a.csv"), tmp_path / "runs"
    given = ["--dataset", "tiny", "--data_path", str(data), "--name", "X", "--origin", "Y", "--runs", str(runs)]
    for arguments, message in (
        ([str(file), *given[4:]], "--dataset: is needed"),
        ([str(file), *given[:6]], "--origin: is needed"),
        ([str(file), *given, "--name", " "], "--name=' ': expected a line of text"),
        ([str(file), *given, "--origin", "a\nb"], "--origin='a\\nb': expected a line of text"),
        ([str(file), *given, "--seed", "-1"], "--seed=-1"),
        ([str(file), *given, "--metrics=GiniIndex"], "results are kept for each user"),
        ([str(file), *given, "--learning_rat=1"], "learning_rat"),
        ([str(file), *given, "--learning_rate=1"], "--learning_rate: is no parameter of the data or the evaluation"),
        ([str(file), *given, "--device=cpu"], "--device: is no parameter"),
        ([str(tmp_path), *given], "a folder; expected a file, or the folder of a run"),
        ([str(ours), *given[2:4], "--origin", "Y", "--valid", str(file)], "--valid: "),
        ([str(file), *given, "--valid", str(tmp_path / "no.csv")], "no such file"),
    ):
        assert cli.main(["leaderboard", "import-run", *arguments]) == 2, message
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    assert not runs.exists()
    assert cli.main(["export", str(ours), "--top", "5", "--output", str(tmp_path / "e.npz")]) == 2
    with pytest.raises(ConfigError, match="--top=0"):
        next(load(ours).evaluation_blocks(k=0))


# docs/suites.md.


class FakeCornac:
    """As much of Cornac as docs/suites.md calls, with its signatures; its VBPR knows the first feature of each item and nothing else."""

    def __init__(self):
        def modality(features=None, ids=None, normalized=False):
            return SimpleNamespace(features=features, ids=ids, normalized=normalized)

        def from_splits(train_data, test_data, val_data=None, exclude_unknowns=False, **modalities):
            users, items = (list(dict.fromkeys(row[n] for row in train_data)) for n in (0, 1))
            self.train_set = SimpleNamespace(user_ids=users, item_ids=items)
            self.parts, self.modalities = {"train": train_data, "valid": val_data, "test": test_data}, modalities
            return self

        class VBPR:
            def __init__(model, k, k2, n_epochs, seed):
                model.seed = seed

            def score(model, user):
                image = self.modalities["item_image"]
                rows = dict(zip(image.ids, image.features, strict=True))
                return np.array([rows[i][0] for i in self.train_set.item_ids])

        rng = np.random.default_rng(0)
        clothing = SimpleNamespace(
            load_feedback=lambda: [(f"u{u}", f"i{(u + i) % 15}", 5.0) for u in range(20) for i in range(8)],
            load_visual_feature=lambda: (rng.random((15, 4)), [f"i{i}" for i in range(15)]),
        )
        self.modules = {
            "cornac": SimpleNamespace(
                data=SimpleNamespace(ImageModality=modality),
                eval_methods=SimpleNamespace(BaseMethod=SimpleNamespace(from_splits=from_splits)),
                models=SimpleNamespace(VBPR=VBPR),
                metrics=SimpleNamespace(Recall=lambda k: k),
                Experiment=lambda method, models, metrics: SimpleNamespace(run=lambda: None),
            ),
            "cornac.datasets": SimpleNamespace(amazon_clothing=clothing),
        }


def test_the_page_of_other_toolkits_does_what_it_says(tmp_path, monkeypatch, capsys):
    write_mmrec(tmp_path / "datasets" / "baby", users=40, items=30, dims={"image": 4}, seed=0)
    np.save(tmp_path / "datasets" / "baby" / "image_feat.npy", features := np.random.default_rng(1).random((30, 4)))
    monkeypatch.chdir(tmp_path)
    fake = FakeCornac()
    for name, module in fake.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("mmrec_mrdib.experiment.workers.LocalPool", lambda work, jobs, gpus: InProcess())
    np.savez("scores-1.npz", users=np.arange(40), items=np.arange(30), scores=np.random.default_rng(2).random((40, 30)))
    train("VBPR", "baby", 1, values={"data_path": "datasets", "epochs": 1, "embedding_size": 8})
    page = (ROOT / "docs" / "suites.md").read_text()
    ours = "## Results of other toolkits" + page.split("## Results of other toolkits")[1]
    blocks = re.findall(r"^ *```(python)?\n(.*?)^ *```", ours, re.DOTALL | re.MULTILINE)
    commands = []
    for language, block in blocks:
        if language:
            exec(compile(block, "docs/suites.md", "exec"), {})
            continue
        for line in block.replace("\\\n", " ").splitlines():
            _, *arguments = shlex.split(line)
            arguments = [name for a in arguments for name in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
            assert cli.main(arguments) == 0, (line, capsys.readouterr())
            commands.append(arguments[:2])
    assert commands == [
        *(["data", "export"], ["leaderboard", "import-run"], ["leaderboard", "--models"]),
        *(["export", *commands[3][1:]], ["leaderboard", "import-run"], ["data", "prepare"]),
    ]
    frame = interactions(Path("datasets"), "baby")
    for n, name in enumerate(("train", "valid", "test")):
        theirs = frame[frame["x_label"] == n]
        expected = {(str(u), str(i), 1.0) for u, i in zip(theirs["userID"], theirs["itemID"], strict=True)}
        assert set(fake.parts[name]) == expected and len(fake.parts[name]) == len(expected)
    result = record.load_result(next(Path("runs/imported").glob("VBPR-*")))
    best = np.argsort(-features[:, 0])
    seen = frame[frame["x_label"] == 0].groupby("userID")["itemID"].agg(set)
    hits = [
        int(row.itemID in [i for i in best if i not in seen[row.userID]][:5])
        for row in frame[frame["x_label"] == 2].itertuples()
    ]
    assert result["test"]["recall@5"] == pytest.approx(np.mean(hits)) and result["imported"]["split"] == "checked"
    board = Path("leaderboard/leaderboard.md").read_text()
    assert "MyModel [my toolkit 2.1]" in board and "their claim" not in board
