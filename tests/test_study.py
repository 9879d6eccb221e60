"""The study's command: all parts on a toy data set, what is partly there, and new users by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks import new_users, study
from mmrec_mrdib.data.sources import mmrec
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import figures, leaderboard, tables
from mmrec_mrdib.experiment.export import load
from mmrec_mrdib.experiment.run import make_config, prepare, train
from mmrec_mrdib.experiment.workers import _outcome, call
from mmrec_mrdib.testing.toy import write_mmrec


class InProcess:
    """A pool in this process."""

    def __init__(self, function, jobs, gpus=()):
        self.function, self.waiting = function, []

    def submit(self, key, payload):
        self.waiting.append((key, json.dumps(payload)))

    def next(self):
        key, payload = self.waiting.pop(0)
        return key, _outcome(call(self.function, payload))

    def close(self):
        self.waiting = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds data/toy, and a page with a place for each table."""
    out = tmp_path_factory.mktemp("study")
    write_mmrec(out / "data" / "toy", users=40, items=30, dims={"a": 12, "b": 8})
    marks = [f"<!-- table: {name} -->\n<!-- end table: {name} -->\n" for name in study.PARTS]
    (out / "page.md").write_text("\n".join(["before", *marks, "after"]))
    return out


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(study, "LocalPool", InProcess)
    monkeypatch.setattr(study, "CORRUPTIONS", dict(list(study.CORRUPTIONS.items())[:2]))
    monkeypatch.setattr(figures, "curves", lambda *given: b"")
    few = leaderboard.paired_bootstrap
    monkeypatch.setattr(leaderboard, "paired_bootstrap", lambda users, resamples: few(users, resamples=20))


def call_study(folder, *more):
    places = ["--data_path", str(folder / "data"), "--runs", str(folder / "runs"), "--output", str(folder / "out")]
    return study.main(["--quick", "--datasets", "toy", *places, "--docs", str(folder / "page.md"), *more])


def test_every_part_on_a_toy_set_and_again_without_training(folder, monkeypatch):
    both = ("main", "slices", "new")
    assert call_study(folder, "--parts", ",".join(both)) == 0
    assert call_study(folder, "--models", "LightGCN", "--parts", "components,corrupted,joint") == 0
    made = {name: json.loads((folder / "out" / f"{name}.json").read_text()) for name in study.PARTS}
    page = (folder / "page.md").read_text()
    assert page.startswith("before") and page.endswith("after")
    assert str(folder) not in page and "--data_path=DIR --runs=RUNS --output=OUT" in page
    for name, outcome in made.items():
        text = (folder / "out" / f"{name}.md").read_text()
        assert f"<!-- table: {name} -->\n{text}<!-- end table: {name} -->" in page
        boards = [outcome["board"]] if "board" in outcome else list(outcome["boards"].values())
        rows = [row for board in boards for row in board["rows"]]
        assert {row["backbone"] for row in rows} == ({"VBPR", "LightGCN"} if name in both else {"LightGCN"})
        assert {row["variant"] for row in rows} == set(study.PARTS[name].variants)
        assert all(row["status"] == "complete" for row in rows), name
    plain, ours = (
        next(r["mean"]["recall@5"] for r in made["main"]["board"]["rows"] if r["model"] == m)
        for m in ("VBPR", "VBPR+MRdIB")
    )
    line = next(line for line in page.splitlines() if line.startswith("| toy | VBPR | "))
    assert f"| {plain:.4f}, " in line and f"| {study.percent(ours / plain - 1)}, " in line
    assert len(made["corrupted"]["boards"]) == 2 and len(made["slices"]["slices"]) == 8
    assert {n["users"] for n in made["new"]["new_users"].values()} <= {
        3,
        4,
    }  # a tenth of 40, some of whose test items are in train, too
    cold = made["new"]["new_items"]
    assert len(cold) == 6 and all(len(by) == (model != "LightGCN on toy") for model, by in cold.items())
    assert "| toy | LightGCN | – | – | – |" in page and "| has no score for new items |" in page

    monkeypatch.setattr(leaderboard, "run", None)  # a call would fail
    board, other = folder / "out" / "main" / "leaderboard.json", folder / "other"
    places = ["--data_path", str(folder / "data"), "--runs", str(folder / "runs"), "--output", str(other)]
    assert study.main(["--boards", str(board), "--datasets", "toy", *places, "--parts", "slices"]) == 0
    text = [(out / "slices.md").read_text().split("\n", 1)[1] for out in (folder / "out", other)]
    assert text[0] == text[1] and json.loads((other / "slices.json").read_text())["slices"] == made["slices"]["slices"]

    monkeypatch.setattr(study, "measure", None)
    assert call_study(folder, "--no_training", "--parts", ",".join(both)) == 0
    again = {name: json.loads((folder / "out" / f"{name}.json").read_text()) for name in both}
    assert again == {name: made[name] for name in both}


def test_what_was_not_run_is_a_dash(folder, tmp_path):
    page = (folder / "page.md").read_bytes()
    (tmp_path / "page.md").write_bytes(page)
    (tmp_path / "data").symlink_to(folder / "data")
    assert call_study(tmp_path, "--no_training", "--parts", "main,joint") == 0
    text = (tmp_path / "out" / "main.md").read_text()
    assert "| toy | VBPR | – | – | – | – | – |" in text and "0 of 8 cells complete" in text
    assert "| toy | VBPR+MRdIB | – | – | – | – |" in (tmp_path / "out" / "joint.md").read_text()
    assert not (tmp_path / "runs").exists()


def test_gains_and_their_means_by_hand():
    def row(dataset, variant, mean, seeds=(1, 2)):
        model = f"A{tables.titled(variant)}" if variant != "plain" else "A"
        return {
            "dataset": dataset,
            "backbone": "A",
            "variant": variant,
            "model": model,
            "mean": mean,
            "seeds": list(seeds),
        }

    def compared(dataset, gain, significant):
        keys = {"dataset": dataset, "model": "A+MRdIB", "metric": "recall@20"}
        return keys | {"gain": gain, "significant": significant, "smallest": 0.034 if significant else None}

    board = {
        "metrics": ["recall@20"],
        "seeds": [1, 2],
        "rows": [
            row("baby", "plain", {"recall@20": 0.1}),
            row("baby", "mrdib", {"recall@20": 0.11}),
            row("citeulike-t", "plain", {"recall@20": 0.2}),
            row("citeulike-t", "mrdib", {"recall@20": 0.19}, seeds=(1,)),
            row("lfm2k", "plain", {"recall@20": 0.4}),
            row("lfm2k", "mrdib", {}, seeds=()),
        ],
        "comparisons": [compared("baby", 0.1, True), compared("citeulike-t", -0.05, False)],
    }
    assert study.gains({"": board}, smallest="mrdib") == [
        "| data set | backbone | plain | +MRdIB | smallest |",
        "|---|---|---|---|---|",
        "| baby | A | 0.1000 | **+10.0 %** | 3.4 % |",
        "| citeulike-t | A | 0.2000 | −5.0 % (1 of 2 seeds) | – |",
        "| lfm2k | A | 0.4000 | – | – |",
        "| mean, sparse sets |  |  | +2.5 % (of 2) |  |",
        "| mean, dense sets |  |  | – |  |",
    ]


def test_mistakes_show_before_anything_is_trained(folder, tmp_path):
    with pytest.raises(ConfigError, match="no data set 'other' in --data_path"):
        study.main(["--data_path", str(folder / "data"), "--datasets", "other"])
    with pytest.raises(ConfigError, match="no part mian"):
        study.main(["--parts", "mian"])
    (tmp_path / "page.md").write_text("<!-- table: main -->\n")
    with pytest.raises(ConfigError, match="end table: main"):
        study.main(["--quick", "--parts", "main", "--docs", str(tmp_path / "page.md")])


def test_new_users_by_hand(folder, tmp_path):
    """Held-out users are in no split of the reduced data, features stay with their items, and ranking is by the history alone."""
    whole_values = {"data_path": str(folder / "data"), "topk": [5, 20]}
    config = make_config("BPR", "toy", 1, values=whole_values)
    target = new_users.without(config, 0.1, tmp_path / "reduced")
    before = (target / "toy" / "toy.inter").read_bytes()
    assert new_users.without(config, 0.1, target) == target and (target / "toy" / "toy.inter").read_bytes() == before
    values = whole_values | {"data_path": str(target), "show_progress": False, "embedding_size": 8, "epochs": 1}
    trained = load(train("BPR+Content", "toy", 1, values=values, runs=tmp_path / "runs")["folder"])
    everyone = mmrec.read(folder / "data" / "toy" / "toy.inter")
    held = set(map(str, everyone["userID"])) - set(trained.users)
    assert len(held) == 4
    judged = new_users.judge(trained, prepare(config))

    place = {token: n for n, token in enumerate(trained.items)}
    _, content = trained.model.catalogue()
    train_items = trained.splits.parts[0].inter_feat[trained.dataset.iid_field]
    popularity = torch.bincount(train_items, minlength=len(trained.items)).double()
    popularity -= 1e-6 * torch.arange(len(popularity))  # of equally popular ones the smaller id
    recalls = {"histories": [], "popularity": []}
    for user in held:
        mine = everyone[everyone["userID"] == int(user)]
        history = {place[str(i)] for i in mine[mine["x_label"] == 0]["itemID"]}
        relevant = {
            place[str(i)] for i in mine[mine["x_label"] == 2]["itemID"]
        } - history  # a repeated pair counts once
        if not relevant:
            continue
        profile = []
        start = 0
        for m in ("a", "b"):
            width = trained.model.feature_dims[m]
            rows = content[sorted(history), start : start + width].sum(0)
            profile.append(rows / rows.norm())
            start += width
        scores = {"histories": content @ torch.cat(profile), "popularity": popularity.clone()}
        for name, score in scores.items():
            score[[0, *history]] = -torch.inf
            best = set(score.topk(5).indices.tolist())
            recalls[name].append(len(best & relevant) / len(relevant))
    for name, values in recalls.items():
        assert judged[name]["recall@5"] == pytest.approx(np.mean(values)), name
    assert judged["users"] == len(recalls["histories"]) and judged["unknown"] == 0


def test_new_users_of_a_few_ratings(toy, tmp_path, capsys):
    assert new_users._nth(torch.tensor([2, 0, 2, 2, 0, 5])).tolist() == [0, 0, 1, 2, 1, 0]
    values = ["--topk=[5,20]", "--valid_metric=Recall@5", "--embedding_size=8", "--epochs=1", "--stage_epochs=1"]
    command = ["--dataset", "toy", f"--data_path={toy}", "--runs", str(tmp_path), *values]
    assert new_users.main([*command, "--most", "2"]) == 0
    few = capsys.readouterr().out
    assert "4 users of toy that VBPR+MRdIB was not trained on" in few and "by 2 of their items 0." in few
    assert new_users.main([*command, "--most", "999"]) == 0
    told = capsys.readouterr().out.splitlines()[1].replace("by 999 of their items", "").split(",")
    assert told[0].split()[-1] == told[1].split()[-1]  # all that they have
    with pytest.raises(ConfigError, match="--most=0: expected 1 or more"):
        new_users.main([*command, "--most", "0"])


def test_boards_as_one_keep_the_row_of_most_seeds_and_say_what_is_incomplete(tmp_path):
    def board(variant, seeds, mean):
        row = {"dataset": "baby", "backbone": "A", "variant": variant, "model": f"A{variant}", "status": "complete"}
        compared = {"dataset": "baby", "model": f"A{variant}", "gain": mean}
        rival = compared | {"against": "content", "gain": 9}
        return {
            "metrics": ["recall@5", "ndcg@5"],
            "codes": [f"code {len(seeds)}"],
            "seeds": seeds,
            "rows": [{**row, "seeds": seeds, "mean": {"recall@5": mean, "ndcg@5": mean}}],
            "comparisons": [rival, compared],
        }

    boards = [board("+X", [1, 2], 0.1), board("+X", [1, 2, 3], 0.2), board("+Y", [1, 2], 0.3)]
    files = [tmp_path / f"{n}.json" for n in range(3)]
    for file, content in zip(files, boards, strict=True):
        file.write_text(json.dumps(content))
    given = study.Study(None, tmp_path, tmp_path, 1, True, "", boards=tuple(files), columns=("recall@5",))
    one = given.given()
    assert [(r["model"], r["mean"]["recall@5"], r["status"]) for r in one["rows"]] == [
        ("A+X", 0.2, "complete"), ("A+Y", 0.3, "incomplete"),
    ]  # fmt: skip
    assert [c["gain"] for c in one["comparisons"]] == [0.2, 0.3]
    assert one["seeds"] == [1, 2, 3] and one["codes"] == ["code 2", "code 3"] and one["metrics"] == ["recall@5"]
    with pytest.raises(ConfigError, match="--columns=map@5: not in every board; the first has recall@5, ndcg@5"):
        dataclasses.replace(given, columns=("recall@5", "map@5")).given()


def test_the_command_names_files_and_folders_once():
    told = study.command(["--boards", "/x/a.json", "/x/b.json", "--output", "/x/out", "--parts=main", "--jobs=2"])
    assert told == "python -m benchmarks.study --boards=FILE.json --output=OUT"
