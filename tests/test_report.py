"""`mmrec-mrdib report`, on runs of a small data set, and its page in a browser."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from matplotlib.figure import Figure

from mmrec_mrdib.cli import main
from mmrec_mrdib.evaluation import Unimodal
from mmrec_mrdib.experiment import figures, report
from mmrec_mrdib.experiment.export import load
from mmrec_mrdib.experiment.run import train
from mmrec_mrdib.testing.toy import write_mmrec


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_mmrec(folder / "toy", users=60, items=50, dims={"a": 12, "b": 8, "c-d": 5})
    values = {"data_path": str(folder), "epochs": 2, "embedding_size": 8, "show_progress": False, "weighting": "auto"}
    plain = {k: v for k, v in values.items() if k != "weighting"}
    return [
        train("VBPR+MRdIB (paper)", "toy", 1, values=values, runs=folder / "runs")["folder"],
        train("VBPR", "toy", 1, values=plain, runs=folder / "runs")["folder"],
        train("BPR", "toy", 1, values={k: v for k, v in plain.items() if k != "modalities"}, runs=folder / "runs")[
            "folder"
        ],
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "out.html"
    assert main(["report", *runs[:2], "--output", str(path)]) == 0
    return path


def test_the_json_has_every_figure(page):
    found = json.loads(page.with_suffix(".json").read_text())
    plain, variant = found["runs"]  # plain first, whatever the order given
    assert [r["label"] for r in (plain, variant)] == ["VBPR", "VBPR+MRdIB (paper)"]
    pairs = {"a-b", "a-c-d", "b-c-d"}
    for run in (plain, variant):
        assert set(run["ranking"]) == {"all", "a", "b", "c-d"}
        assert set(run["redundancy"]) == set(run["decomposition"]) == pairs
        assert run["slices"]["k"] == 20 and set(run["slices"]) == {"k", "popularity", "history"} and run["why"] == []
        assert run["decomposition"]["a-c-d"]["b"] == "c-d"
        assert all(len(xy) == 50 and len(xy[0]) == 2 for xy in run["tsne"].values())
        for atoms in run["decomposition"].values():
            parts = sum(atoms[k] for k in ("redundant", "unique_a", "unique_b", "synergistic"))
            assert parts == pytest.approx(atoms["total"]) and 0 <= atoms["total"] <= 1
    assert not plain["rates"] and set(variant["rates"]) == {"a", "b", "c-d"}
    assert variant["trained_against"] == "mine" and plain["trained_against"] is None
    assert {"alpha/rate", "alpha/unique"} <= set(variant["epochs"][0]["logs"])


def test_fused_ranking_is_the_recorded_one(page):
    for run in json.loads(page.with_suffix(".json").read_text())["runs"]:
        assert run["ranking"]["all"]["recall@20"] == pytest.approx(run["valid"]["recall@20"])


def test_the_same_seed_gives_the_same_figures(runs, page, tmp_path):
    assert main(["report", *runs[:2], "--output", str(tmp_path / "again.html"), "--no-tsne"]) == 0
    first, again = (json.loads(p.read_text()) for p in (page.with_suffix(".json"), tmp_path / "again.json"))
    for run in first["runs"]:
        del run["tsne"]
    assert again == first
    assert "plane" not in (tmp_path / "again.html").read_text()


def test_a_unimodal_score_is_the_inner_product(runs):
    trained = load(runs[0])
    model = trained.model
    of_users, of_items = model.evaluation_embeddings().views["b"]
    view = Unimodal(model, of_users, of_items)
    users = torch.tensor([3, 1])
    expected = of_users[users] @ of_items.T
    torch.testing.assert_close(view.full_sort_predict({model.USER_ID: users}), expected)


def test_negatives_are_nobodys_items(runs):
    from mmrec_mrdib.experiment.report import _pairs

    trained = load(runs[0])
    users, items, relevant = _pairs(trained, 0)
    seen = {
        (u, i)
        for part in trained.splits.parts
        for u, i in zip(part.inter_feat["user_id"].tolist(), part.inter_feat["item_id"].tolist(), strict=True)
    }
    assert relevant.sum() * 2 == len(users)
    assert all(((u, i) in seen) == y for u, i, y in zip(users.tolist(), items.tolist(), relevant.tolist(), strict=True))


def test_mistakes_are_told_in_one_line(runs, tmp_path, capsys):
    cases = [
        ([runs[2], "--output", str(tmp_path / "x.html")], "no modality representations"),
        ([runs[0], "--output", str(tmp_path / "x.pdf")], r"\.html"),
        ([runs[0], "--output", str(tmp_path / "none" / "x.html")], "no such folder"),
        ([runs[0], runs[0], "--output", str(tmp_path / "x.html")], "twice"),
        ([str(tmp_path), "--output", str(tmp_path / "x.html")], "not complete"),
    ]
    for arguments, message in cases:
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and re.search(message, error)
    assert not list(tmp_path.iterdir())


def test_the_page_is_self_contained(page):
    text = page.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text) and "url(" not in text and "<script" not in text
    assert text.count("data:image/png;base64,") == 8  # two runs' curves and six figures


def test_the_page_in_a_browser(page, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--log-net-log={log}", "--virtual-time-budget=3000",
         "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "What the representations hold" in done.stdout and done.stdout.count("<img") == 8
    assert "CONSOLE" not in done.stderr


def test_one_modality_has_no_pairs(runs, tmp_path):
    root = str(load(runs[0]).result["config"]["data_path"]).rsplit("/", 1)[0]
    values = {"data_path": root, "epochs": 1, "embedding_size": 8, "show_progress": False, "modalities": "a"}
    folder = train("FREEDOM+MRdIB (paper)", "toy", 1, values=values, runs=tmp_path / "runs")["folder"]
    assert main(["report", folder, "--output", str(tmp_path / "one.html")]) == 0
    found = json.loads((tmp_path / "one.json").read_text())["runs"][0]
    assert found["redundancy"] == found["decomposition"] == {} and set(found["ranking"]) == {"all", "a"}
    text = (tmp_path / "one.html").read_text()
    assert "<h2>Redundancy" not in text and "<h2>Rate" in text


def test_what_a_readout_reads_is_what_is_measured(runs, tmp_path):
    """+Content on features of unequal width: directions of raw rows, histories for users, and scores taken apart."""
    root = str(load(runs[0]).result["config"]["data_path"]).rsplit("/", 1)[0]
    values = {"data_path": root, "epochs": 1, "embedding_size": 8, "show_progress": False, "modalities": "a,b"}
    values |= {"readout_ladder": [0, 1]}
    trained = load(train("VBPR+Content", "toy", 1, values=values, runs=tmp_path / "runs")["folder"])
    model = trained.model
    model.choose(1, 2.0)  # whatever validation chose
    views = report._views(model, tmp_path)
    z = report._representations(model, views)
    rows = model.features("a")[1:]
    standard = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(z["a"][1:], torch.nn.functional.normalize(standard), atol=1e-5, rtol=0)
    assert z["a"].shape[1] == 12 and z["b"].shape[1] == 8
    own = model.histories.entries(torch.tensor([3]))[1]
    torch.testing.assert_close(views["b"][0][3], torch.nn.functional.normalize(z["b"][own].sum(0), dim=0))
    why = report._why(trained, 0)
    assert len(why) == 4 and why == report._why(trained, 0)
    for entry in why:
        best = trained.recommend([entry["user"]], 1).iloc[0]
        assert entry["item"] == best["item"] and entry["score"] == pytest.approx(best["score"], abs=1e-5)
        assert entry["backbone"] + sum(entry["modalities"].values()) == pytest.approx(entry["score"])
        assert [part for _, part in entry["history"]] == sorted((p for _, p in entry["history"]), reverse=True)
    model.choose(0, 2.0)
    assert report._why(trained, 0) == [] and set(report._views(model, tmp_path)) == {"a", "b"}


def test_legends_cover_nothing_and_axes_begin_at_0():
    figure = Figure()
    axis = figure.subplots()
    axis.bar([0, 1], [0.9, 1.0], label="a rather long name of a run")
    axis.bar([2], [0.95], label="another")
    figures._group_axis(axis, "title", ["x", "y", "z"])
    figure.canvas.draw()
    legend, inside = axis.get_legend().get_window_extent(), axis.get_window_extent()
    title = axis.title.get_window_extent()
    assert legend.y0 >= inside.y1 and title.y0 >= legend.y1 and axis.get_ylim()[0] == 0
    other = Figure().subplots()
    other.plot([0, 1], [0.3, 0.31], label="x")
    figures._from_zero(other)
    assert other.get_ylim()[0] == 0 and other.get_ylim()[1] > 0.31
