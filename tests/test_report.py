"""`mmrec-mrdib report`, on runs of a small data set, and its page in a browser."""

import itertools
import json
import re
import shutil
import subprocess

import pytest
import torch

from mmrec_mrdib.cli import main
from mmrec_mrdib.evaluation import Unimodal
from mmrec_mrdib.experiment import figures, report
from mmrec_mrdib.experiment.export import load
from mmrec_mrdib.experiment.run import train
from mmrec_mrdib.testing.toy import write_mmrec

PICTURES = 21  # of the page below


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
    assert text.count("data:image/png;base64,") == 2  # a plane for each run
    # Panels of the two runs' curves; slices, ranking, rates; by three measures, by three pairs of modalities.
    assert text.count("data:image/svg+xml;base64,") == 2 + 6 + 2 + 2 + 1 + 3 + 3 == PICTURES - 2


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
    assert "What the representations hold" in done.stdout and done.stdout.count("<img") == PICTURES
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


class Kept(Exception):
    """A figure, in place of its bytes."""


@pytest.fixture
def drawn(monkeypatch):
    """What a function of `figures` draws, laid out."""

    def keep(figure, form):
        figure.draw_without_rendering()  # that of a canvas without pyplot draws nothing
        raise Kept(figure)

    monkeypatch.setattr(figures, "_bytes", keep)

    def draw(function, *given):
        with pytest.raises(Kept) as kept:
            function(*given)
        return kept.value.args[0]

    return draw


RUNS = {"VBPR": 0.2, "VBPR+MRdIB": 0.9, "VBPR+MRdIB (paper)": 0.5, "FREEDOM+Content, seed 12": 0.4}


def test_legends_cover_nothing_and_bars_begin_at_0(drawn):
    for names in (RUNS, {f"m{n}": n + 1.0 for n in range(7)}):
        figure = drawn(figures.bars, {"a title": {"more than 10": names, "x": names, "y": names}}, "share")
        (axis,) = figure.axes
        legend, inside = axis.get_legend().get_window_extent(), axis.get_window_extent()
        assert legend.y0 >= inside.y1 and axis.title.get_window_extent().y0 >= legend.y1 and axis.get_ylim()[0] == 0
        assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1  # nor is it cut
        told = [text.get_text() for text in axis.get_legend().get_texts()]
        assert sorted(told) == sorted(names) and told[0] == next(iter(names))
        ticks = [text.get_window_extent() for text in axis.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(ticks))


def test_small_differences_are_numbers_or_dots_and_lines_have_an_axis_of_their_own(drawn):
    close = {f"run {n}": {"all": 0.300 + 0.001 * n} for n in range(9)}
    groups = {"all": {name: v["all"] for name, v in close.items()}}
    (axis,) = drawn(figures.bars, {"many": groups}, "valid").axes
    assert not axis.patches and len(axis.lines) == 9 and axis.get_ylim()[0] > 0.29 and axis.get_ylim()[1] < 0.32
    assert axis.get_ylabel() == "valid (axis not from 0)"
    few = {"all": {"a": 0.3012, "b": 0.3, "none": None}}
    (axis,) = drawn(figures.bars, {"few": few}, "valid").axes
    assert axis.get_ylim()[0] == 0 and [t.get_text() for t in axis.texts] == ["0.301", "0.3", ""]
    apart = {"all": {f"run {n}": 0.1 * n for n in range(9)}}
    (axis,) = drawn(figures.bars, {"apart": apart}, "valid").axes
    assert len(axis.patches) == 9 and axis.get_ylim()[0] == 0
    below = {"x": {f"run {n}": n - 5.0 for n in range(9)}}
    (axis,) = drawn(figures.bars, {"below": below}, "nats").axes
    assert axis.get_ylim()[0] < -5 and axis.get_ylim()[1] > 3


def test_progress_by_hand(drawn):
    epochs = [
        {"epoch": 0, "valid": {"recall@20": 0.30}, "losses": {"bpr": 0.8, "mi": -4.0, "off": 0.0}, "logs": {"rate/a": 9.0}},
        {"epoch": 1, "losses": {"bpr": 0.4, "mi": 2.0, "off": 0.0}, "logs": {"rate/a": 8.9}},
        {"epoch": 2, "valid": {"recall@20": 0.31}, "losses": {"bpr": 0.2, "mi": 1.0, "off": 0.0}, "logs": {"rate/a": 8.8}},
    ]  # fmt: skip
    panels = figures.progress(epochs, "recall@20")
    x = [0, 1, 2]
    assert panels == {
        "valid recall@20": {"": ([0, 2], [0.30, 0.31])},
        "loss terms, weighted (1: the largest)": {
            "bpr (0.8)": (x, [1, 0.5, 0.25]), "mi (4)": (x, [-1, 0.5, 0.25]), "off (0)": (x, [0, 0, 0]),
        },
        "rate by modality (nats)": {"a": (x, [9.0, 8.9, 8.8])},
    }  # fmt: skip
    valid, _, rate = drawn(figures.curves, "title", panels, 2).axes
    assert valid.get_ylim()[0] > 0.29 and rate.get_ylim()[0] > 8.7
    assert [t.get_text() for t in valid.get_legend().get_texts()] == ["kept: epoch 2"]
    assert all(t.is_integer() for t in valid.get_xticks())


def test_parts_of_a_bar_follow_each_other(drawn):
    (axis,) = drawn(
        figures.stacks, {"a-b": {"VBPR": {"in both": 0.1, "only a": 0.3}, "other": {"only a": 0.2}}}, "bits"
    ).axes
    assert [p.get_x() for p in axis.patches] == pytest.approx([0, 0, 0.1, 0])
    assert [p.get_width() for p in axis.patches] == pytest.approx([0.1, 0, 0.3, 0.2])
    assert axis.get_xlim()[0] == 0 and axis.get_xlim()[1] > 0.4 and axis.yaxis_inverted()


def test_gains_are_dots_with_their_intervals(drawn):
    Gain = figures.Gain
    found = {"VBPR": {"+MRdIB": Gain(0.05, (0.02, 0.08), True), "+Content": Gain(-0.01, (-9.0, 9.0), False)},
             "BPR": {"+Content": Gain(0.02, None, False)}}  # fmt: skip
    colours = {"+MRdIB": "#ff0000", "+Content": "#00ff00"}
    figure = drawn(figures.gains, {"baby": {"Recall@20": found, "NDCG@20": {}}}, colours, "plain")
    axis, empty = figure.axes
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [(d.get_xdata()[0], d.get_ydata()[0]) for d in dots] == [(0.05, 0), (-0.01, 1), (0.02, 4)]
    assert [d.get_markerfacecolor() for d in dots] == ["#ff0000", "white", "white"]
    lines = [line for line in axis.lines if line.get_marker() == "None" and line.get_color() in colours.values()]
    assert [tuple(line.get_xdata()) for line in lines] == [(0.02, 0.08), (-9.0, 9.0)]
    low, high = axis.get_xlim()
    assert -0.2 < low < -0.01 and 0.08 < high < 0.2  # the long one is cut, dots are not pressed together
    assert [t.get_text() for t in axis.get_yticklabels()] == ["VBPR", "BPR"] and axis.yaxis_inverted()
    assert "+5 %" in [t.get_text() for t in axis.get_xticklabels()] and axis.get_title() == "baby: Recall@20"
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == list(colours)
    assert legend.get_window_extent().y0 > axis.title.get_window_extent().y1 and {
        t.get_text() for t in empty.get_yticklabels()
    } == {""}


def test_a_diagram_of_ranks_joins_what_is_not_told_apart(drawn):
    ranks = {"plain": 3.2, "+MRdIB": 1.4, "+Content": 2.0, "+MRdIB (shuffled features)": 3.4}
    found = {
        "ranks": ranks,
        "critical_difference": 1.3,
        "cliques": [["+MRdIB", "+Content"], ["+Content", "plain", "+MRdIB (shuffled features)"]],
    }
    figure = drawn(figures.ranks, {"Recall@20": found})
    (axis,) = figure.axes
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 3]
    assert [(min(x) + 0.03, max(x) - 0.03) for x in bars] == [pytest.approx((1.4, 2.0)), pytest.approx((2.0, 3.4))]
    told = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert "CD 1.30" in told and {"+MRdIB  1.40", "+Content  2.00", "3.20  plain"} <= set(told)
    boxes = list(told.values())
    assert all(min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
