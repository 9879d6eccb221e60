"""The leaderboard: cells, resumption, failures, budgets, statistics and its forms."""

import contextlib
import copy
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from scipy import stats

from mmrec_mrdib import registry
from mmrec_mrdib.cli import main
from mmrec_mrdib.cli.leaderboard import BOARD_BASELINES
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment import leaderboard, record, tables, tune
from mmrec_mrdib.experiment.leaderboard import Cell, Spec, board, cells, compare, decide, execute, import_reported
from mmrec_mrdib.experiment.ranks import mean_ranks
from mmrec_mrdib.experiment.run import display_name
from mmrec_mrdib.experiment.workers import Failure, LocalPool, RayPool, _outcome, call
from mmrec_mrdib.significance import holm
from mmrec_mrdib.testing.toy import write_mmrec
from tests.conftest import ROOT

VALUES = {"epochs": 2, "embedding_size": 8, "show_progress": False}


class InProcess:
    """A pool in this process: fast, and open to monkeypatching."""

    def __init__(self):
        self.waiting, self.seen, self.seeds = [], [], {}

    def submit(self, key, payload):
        self.waiting.append((key, json.dumps(payload)))

    def next(self):
        key, payload = self.waiting.pop(0)
        self.seen.append(key)
        self.seeds[key] = json.loads(payload)["seed"]
        return key, _outcome(call(leaderboard.WORK, payload))

    def close(self):
        self.waiting = []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for n, name in enumerate(("toy", "tiny")):
        write_mmrec(folder / name, users=40 - 10 * n, items=30, dims={"a": 12, "b": 8}, seed=n)
    return folder


def spec(data, runs, **more):
    given = {
        "models": ("VBPR", "BPR"),
        "datasets": ("toy", "tiny"),
        "seeds": (1, 2),
        "variants": ("plain", "mrdib-paper"),
        "values": VALUES,
        "data_path": str(data),
        "runs": runs,
    }
    return Spec(**{**given, **more})


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """A board of five seeds."""
    values = VALUES | {"epochs": 5, "learning_rate": 0.05}  # enough for the variant to differ
    chosen = spec(data, tmp_path_factory.mktemp("runs"), seeds=(1, 2, 3, 4, 5), values=values)
    done = execute(chosen, InProcess())
    return board(chosen, done, "the command"), chosen, done


def test_cells_are_models_by_variants_by_data_sets(data, tmp_path):
    names = [(c.dataset, c.model) for c in cells(spec(data, tmp_path))]
    assert names == [(d, m) for d in ("toy", "tiny") for m in ("VBPR", "VBPR+MRdIB (paper)", "BPR")]
    plain_only = spec(data, tmp_path, variants=("plain",), datasets=("toy",))
    assert [c.model for c in cells(plain_only)] == ["VBPR", "BPR"]


def test_parameters_go_where_they_belong(data, tmp_path):
    chosen = spec(
        data,
        tmp_path,
        models=("VBPR",),
        weights="auto",
        values=VALUES | {"unique_weight": 0.2},
        dataset_values={"tiny": {"modalities": "a"}},
    )
    by_name = {(c.dataset, c.variant): c.values for c in cells(chosen)}
    assert (
        by_name["toy", "mrdib-paper"]["unique_weight"] == 0.2 and by_name["toy", "mrdib-paper"]["weighting"] == "auto"
    )
    assert "unique_weight" not in by_name["toy", "plain"] and "weighting" not in by_name["toy", "plain"]
    assert by_name["tiny", "plain"]["modalities"] == "a" and "modalities" not in by_name["toy", "plain"]
    assert (
        "data_path" not in next(cells(spec(data, tmp_path, datasets=("ml-100k",), models=("BPR",), values={}))).values
    )


def test_a_second_call_trains_nothing_and_gives_the_same_board(built):
    first, chosen, _ = built
    told = []
    again = board(chosen, execute(chosen, InProcess(), told.append), "the command")
    assert again == first
    assert len(told) == 30 and all("(was there)" in line for line in told)


def test_changed_parameters_are_other_runs(data, tmp_path):
    chosen = spec(data, tmp_path, models=("BPR",), datasets=("toy",), seeds=(1,))
    execute(chosen, InProcess())
    told = []
    execute(
        spec(data, tmp_path, models=("BPR",), datasets=("toy",), seeds=(1,), values=VALUES | {"epochs": 3}),
        InProcess(),
        told.append,
    )
    assert "(was there)" not in told[0] and len(list(tmp_path.glob("BPR-toy-1-*"))) == 2


def test_a_failure_is_shown_with_its_reason_and_tried_again(data, tmp_path, monkeypatch):
    chosen = spec(data, tmp_path, models=("VBPR",), datasets=("toy",), seeds=(1, 2))
    real = leaderboard.run

    def sometimes(config, runs, resume):
        if config["seed"] == 2 and config["model"] == "MRdIB":
            raise DataError("no luck today")
        return real(config, runs, resume)

    monkeypatch.setattr(leaderboard, "run", sometimes)
    done = execute(chosen, InProcess())
    built = board(chosen, done)
    row = next(r for r in built["rows"] if r["variant"] == "mrdib-paper")
    assert row["status"] == "incomplete" and row["reasons"] == ["seed 2: no luck today"] and row["seeds"] == [1]
    assert built["comparisons"][0]["seeds"] == [1]  # compared on what both have
    assert built["comparisons"][0]["missing"] == ["1 of 2 seeds", "fewer than 5 seeds"]
    assert "none: 1 of 2 seeds, fewer than 5 seeds" in tables.markdown(built)
    assert "no luck today" in tables.markdown(built) and "no luck today" in tables.page(built, tmp_path)
    monkeypatch.setattr(leaderboard, "run", real)
    pool = InProcess()
    told = []
    assert board(chosen, execute(chosen, pool, told.append))["rows"][1]["status"] == "complete"
    assert sum("(was there)" in line for line in told) == 3


def test_numbers_are_those_of_the_runs(built):
    content, _, done = built
    cell = next(c for c in done if c.model == "VBPR+MRdIB (paper)" and c.dataset == "toy")
    row = next(r for r in content["rows"] if (r["model"], r["dataset"]) == ("VBPR+MRdIB (paper)", "toy"))
    values = [json.loads((Path(f) / "result.json").read_text())["test"]["recall@20"] for f in row["folders"]]
    assert row["values"]["recall@20"] == values and row["seeds"] == [1, 2, 3, 4, 5]
    assert row["mean"]["recall@20"] == pytest.approx(np.mean(values)) and row["std"]["recall@20"] == pytest.approx(
        np.std(values, ddof=1)
    )

    plain = next(c for c in done if c.model == "VBPR" and c.dataset == "toy")
    comparison = next(c for c in content["comparisons"] if (c["dataset"], c["metric"]) == ("toy", "recall@20"))
    before = [plain.results[s]["test"]["recall@20"] for s in (1, 2, 3, 4, 5)]
    assert comparison["gain"] == pytest.approx(np.mean(values) / np.mean(before) - 1)
    assert comparison["t"]["p"] == pytest.approx(stats.ttest_rel(values, before).pvalue)

    def users(results):
        tables_ = [np.load(Path(r["folder"]) / "per_user.npz") for r in results.values()]
        return np.mean([t["values"][:, list(t["metrics"]).index("recall@20")] for t in tables_], axis=0)

    difference = (users(cell.results) - users(plain.results)).round(12)
    assert comparison["wilcoxon"]["p"] == pytest.approx(stats.wilcoxon(difference, zero_method="pratt").pvalue)
    assert comparison["bootstrap"]["n"] == len(difference)


def test_p_values_are_adjusted_over_the_whole_board(built):
    content = built[0]
    for test in ("bootstrap", "t"):
        raw = sorted(c[test]["p"] for c in content["comparisons"])
        adjusted = sorted(c[test]["p_holm"] for c in content["comparisons"])
        assert len(raw) == 4 and adjusted[0] == pytest.approx(min(1, 4 * raw[0]))
        assert all(a >= p for a, p in zip(adjusted, raw, strict=True))


def test_few_seeds_give_no_t_test(data, tmp_path):
    chosen = spec(data, tmp_path, models=("VBPR",), datasets=("toy",), seeds=(1, 2))
    assert all(c["t"] is None for c in board(chosen, execute(chosen, InProcess()))["comparisons"])


def fake(significant, gain):
    test = {"p": 0.01, "p_holm": 0.02 if significant else 0.2, "effect": 0.1, "n": 10}
    row = {"source": "measured", "dataset": "d_1", "backbone": "VBPR", "status": "complete", "reasons": [], "seeds": [1, 2],
           "folders": ["runs/a", "runs/b"], "values": {"recall@20": [0.1, 0.2]}, "std": {"recall@20": 0.07}, "tuned": None,
           "seconds_per_epoch": 1.0, "notes": [], "code": ["0.1.0 abc"]}  # fmt: skip
    return {
        "version": 2, "command": "", "metrics": ["recall@20"], "seeds": [1, 2], "trials": 0, "weights": "fixed", "code": "0.1.0 abc",
        "codes": ["0.1.0 abc"], "pruning": "median", "tuning_seed": None, "against": ["plain"],
        "ranks": mean_ranks([], ("plain", "mrdib"), ("recall@20",)),
        "rows": [row | {"model": "VBPR", "variant": "plain", "mean": {"recall@20": 0.15}},
                 row | {"model": "VBPR+MRdIB", "variant": "mrdib", "mean": {"recall@20": 0.15 * (1 + gain)}}],
        "comparisons": [{"dataset": "d_1", "backbone": "VBPR", "model": "VBPR+MRdIB", "metric": "recall@20", "seeds": [1, 2], "difference": 0.15 * gain,
                         "gain": gain, "against": "plain", "interval": None, "bootstrap": test, "wilcoxon": test, "t": test, "significant": significant, "smallest": 0.034,
                         "missing": [] if significant else ["p 0.2 over users"]}],
    }  # fmt: skip


@pytest.mark.parametrize(("significant", "gain", "bold"), [(True, 0.1, True), (False, 0.1, False), (True, -0.1, False)])
def test_only_a_significant_gain_is_bold(tmp_path, significant, gain, bold):
    content = fake(significant, gain)
    text = f"{gain:+.1%}".replace("%", " %")
    assert (f"**{text}**" in tables.markdown(content)) == bold and text in tables.markdown(content)
    assert ("\\textbf{" in tables.latex(content)) == bold
    assert (f"<b>{text}</b>" in tables.page(content, tmp_path)) == bold
    for shown in (
        tables.markdown(content),
        tables.page(content, tmp_path),
        tables.latex(content).replace("\\,\\%", " %"),
    ):
        assert "3.4 %" in shown  # the smallest gain that would have been bold
    assert ("p 0.2 over users" in tables.markdown(content)) != significant


@pytest.mark.parametrize(
    ("variant", "model", "name"),
    [
        ("mrdib-paper", "VBPR+MRdIB (paper)", "+MRdIB (paper)"),
        ("mrdib+mg", "VBPR+MRdIB+MG", "+MRdIB+MG"),
        ("mg+mrdib-paper", "VBPR+MG+MRdIB (paper)", "+MG+MRdIB (paper)"),
        ("x", "Theirs+X", "+x"),  # another program's
    ],
)
def test_every_form_names_variants_of_several_plug_ins_and_of_others(tmp_path, variant, model, name):
    content = fake(True, 0.1)
    content["rows"][1] |= {"variant": variant, "model": model}
    content["comparisons"][0]["model"] = model
    assert tables.titled(variant) == name
    tables.write(content, tmp_path)
    assert name in (tmp_path / "gains.svg").read_text() and model in (tmp_path / "leaderboard.html").read_text()


def side(rng, gain=0.0, seeds=5, users=150, sd=0.01):
    """(S, N) metrics of a plain model and of one that is better by `gain`."""
    before = 0.2 + sd * rng.standard_normal((seeds, 1)) + 0.1 * rng.standard_normal((seeds, users))
    return before, before + gain + 0.3 * sd * rng.standard_normal((seeds, 1)) + 0.02 * rng.standard_normal(
        (seeds, users)
    )


def compared(before, after, asked=5):
    return compare(before.mean(1), after.mean(1), (after - before).mean(0), asked)


def test_significant_needs_all_seeds_five_and_both_tests(rng):
    before, after = side(rng, gain=0.03)
    (sure,) = decide([compared(before, after)], 1)
    assert sure["significant"] and sure["missing"] == []
    (short,) = decide([compared(before[:4], after[:4], 4)], 1)
    assert not short["significant"] and short["missing"] == ["fewer than 5 seeds"] and short["smallest"] is None
    (lost,) = decide([compared(before, after, 6)], 1)  # the sixth seed failed
    assert not lost["significant"] and lost["missing"] == ["5 of 6 seeds"] and lost["t"]["p_holm"] < 0.05
    seeds_differ = after + 0.05 * np.array([[1], [-1], [1], [-1], [0]])
    (users_only,) = decide([compared(before, seeds_differ)], 1)
    assert users_only["bootstrap"]["p_holm"] < 0.05 and not users_only["significant"]
    assert users_only["missing"] == [f"p {users_only['t']['p']:.2g} over seeds"]


def test_a_comparison_that_failed_makes_no_other_one_significant(rng):
    found = [compared(*side(rng, gain)) for gain in (0.006, 0.0, 0.0)]
    together = decide(found, 3)[0]["t"]["p_holm"]
    alone = decide(found[:1], 3)[0]["t"]["p_holm"]
    assert alone == pytest.approx(3 * found[0].entry["t"]["p"]) and alone >= together


def test_the_smallest_gain_is_where_significance_begins(rng):
    """The other comparisons stay; one is moved to just above and just below what the board says."""
    for n in range(3):
        sides = [side(rng, gain) for gain in (0.02, 0.0, 0.004)]
        entries = decide([compared(*s) for s in sides], 3)
        before, after = sides[n]
        for factor, wanted in ((1.06, True), (0.94, False)):
            shift = factor * entries[n]["smallest"] * before.mean() - (after - before).mean()
            moved = [*sides[:n], (before, after + shift), *sides[n + 1 :]]
            assert decide([compared(*s) for s in moved], 3)[n]["significant"] == wanted


RIVALS = ("plain", "content", "mrdib", "mrdib-paper")
MEANS = {"plain": 0.2, "content": 0.23, "mrdib": 0.26, "mrdib-paper": 0.2}


@pytest.fixture(scope="module")
def rivals(tmp_path_factory):
    """Cells whose runs were never trained: VBPR and FREEDOM on two data sets, per-user metrics as `MEANS` say; FREEDOM has no paper form on d2."""
    folder, rng, done = tmp_path_factory.mktemp("rivals"), np.random.default_rng(3), []
    for dataset in ("d1", "d2"):
        for backbone in ("VBPR", "FREEDOM"):
            worth, luck = 0.1 * rng.standard_normal(60), 0.004 * rng.standard_normal(5)
            for variant, mean in MEANS.items():
                if (dataset, backbone, variant) == ("d2", "FREEDOM", "mrdib-paper"):
                    continue
                cell = Cell(registry.Variant(backbone, *registry.kinds()[variant]).name, dataset, {})
                for seed in range(1, 6):
                    run = folder / f"{cell.model}-{dataset}-{seed}"
                    run.mkdir()
                    users = mean + worth + luck[seed - 1] + 0.02 * rng.standard_normal(60)
                    np.savez(
                        run / "per_user.npz",
                        users=np.arange(60),
                        metrics=np.array(["recall@20"]),
                        values=users[:, None],
                    )
                    cell.results[seed] = {
                        "folder": str(run),
                        "test": {"recall@20": users.mean()},
                        "seconds_per_epoch": 1.0,
                        "code": [record.code()],
                    }
                done.append(cell)
    return Spec(("VBPR", "FREEDOM"), ("d1", "d2"), variants=RIVALS, metrics=("recall@20",), runs=folder), done


def test_against_a_rival_each_pair_is_tested_once_and_corrected_with_the_others(rivals):
    spec, done = rivals
    content = board(dataclasses.replace(spec, against=("plain", "content", "mrdib")), done)
    pairs = [(c["dataset"], c["model"], c["against"]) for c in content["comparisons"]]
    assert [p[1:] for p in pairs if p[0] == "d1" and p[1].startswith("VBPR")] == [
        ("VBPR+Content", "plain"), ("VBPR+MRdIB", "plain"), ("VBPR+MRdIB (paper)", "plain"), ("VBPR+MRdIB", "content"),
        ("VBPR+MRdIB (paper)", "content"), ("VBPR+MRdIB (paper)", "mrdib"),
    ]  # fmt: skip
    assert len(pairs) == 6 + 6 + 6 + 3 and content["against"] == ["plain", "content", "mrdib"]
    runs = {(c.dataset, c.model): np.array([r["test"]["recall@20"] for r in c.results.values()]) for c in done}
    for c in content["comparisons"]:
        before = runs[
            c["dataset"], c["backbone"] if c["against"] == "plain" else f"{c['backbone']}{tables.titled(c['against'])}"
        ]
        after = runs[c["dataset"], c["model"]]
        assert c["gain"] == pytest.approx(after.mean() / before.mean() - 1)
        assert c["t"]["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue)
    raw = [c["t"]["p"] for c in content["comparisons"]]
    assert [c["t"]["p_holm"] for c in content["comparisons"]] == pytest.approx(holm(raw))
    alone = board(spec, done)["comparisons"]
    first = content["comparisons"][: len(alone)]
    assert [c["gain"] for c in alone] == [c["gain"] for c in first]  # as without rivals, among more tests
    adjusted = [(a["t"]["p_holm"], b["t"]["p_holm"]) for a, b in zip(alone, first, strict=True)]
    assert all(a <= b for a, b in adjusted) and any(a < b for a, b in adjusted)
    by_name = {(d, m, a): c for (d, m, a), c in zip(pairs, content["comparisons"], strict=True)}
    assert by_name["d1", "VBPR+MRdIB", "content"]["significant"]
    assert by_name["d1", "VBPR+MRdIB (paper)", "content"]["significant"]  # a loss


def test_an_interval_is_the_wider_one_of_seeds_and_users(rng):
    before, after = side(rng, gain=0.01)
    seeds = after.mean(1) - before.mean(1)
    ends = compared(before, after).entry["interval"]
    over_seeds = stats.t.interval(0.95, 4, seeds.mean(), stats.sem(seeds))
    assert ends == pytest.approx(np.array(over_seeds) / before.mean())
    steady = before + 0.01 + rng.choice([-0.2, 0.2], before.shape[1])  # users differ, seeds do not
    users = (steady - before)[0]
    over_users = stats.norm.interval(0.95, users.mean(), users.std() / len(users) ** 0.5)
    assert compared(before, steady).entry["interval"] == pytest.approx(np.array(over_users) / before.mean())
    assert compared(before[:4], after[:4], 4).entry["interval"] is None


def test_gains_over_a_rival_are_in_every_form(rivals, tmp_path):
    spec, done = rivals
    content = board(dataclasses.replace(spec, against=("plain", "content")), done, "the command")
    (c,) = (
        c for c in content["comparisons"] if (c["dataset"], c["model"], c["against"]) == ("d2", "VBPR+MRdIB", "content")
    )
    gain, smallest = f"{c['gain']:+.1%}".replace("%", " %"), f"{c['smallest']:.1%}".replace("%", " %")
    written = {path.name: path.read_text() for path in tables.write(content, tmp_path)}
    assert set(written) == {p.name for p in tmp_path.iterdir()}
    lines = written["leaderboard.md"].splitlines()
    assert lines.count("| | Recall@20 | smallest | over +Content | smallest | |") == 2
    row = next(line for line in lines[lines.index("### d2") :] if line.startswith("| VBPR+MRdIB |"))
    assert row.endswith(f" | **{gain}** | {smallest} | 5 seeds |")
    assert f"| d2 | VBPR+MRdIB | +Content | Recall@20 | **{gain}** | {smallest} | " in written["leaderboard.md"]
    tex = written["leaderboard.tex"]
    assert (
        f"& \\textbf{{{gain.replace(' %', chr(92) + ',' + chr(92) + '%')}}} & " in tex
        and "begin{tabular}{lllll}" in tex
    )
    assert tex.count("{") == tex.count("}")
    page = written["leaderboard.html"]
    assert (
        f"<b>{gain}</b>" in page
        and "<button>over +Content</button>" in page
        and page.count("data:image/svg+xml;base64,") == 2
    )
    assert "column = 2 + 3 * Number" in page  # of the bars: value, gain and the one over the rival for each metric
    lines_of_table = page.partition("<thead>")[2].partition("</tbody>")[0].split("<tr")[1:]
    assert {line.count("<th") + line.count("<td") for line in lines_of_table} == {2 + 3 + 2 + 2}
    table = list(csv.DictReader(io.StringIO(written["comparisons.csv"])))
    found = next(t for t in table if (t["dataset"], t["model"], t["against"]) == ("d2", "VBPR+MRdIB", "content"))
    assert (
        len(table) == len(content["comparisons"])
        and float(found["gain"]) == c["gain"]
        and found["significant"] == "True"
    )
    assert float(found["interval_low"]) == c["interval"][0] and float(found["t_p_holm"]) == c["t"]["p_holm"]
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(tables.terminal(content))
    shown = console.file.getvalue()
    assert "d2: gains over +Content" in shown and gain in shown.partition("d2: gains over +Content")[2]
    only = dataclasses.replace(spec, variants=RIVALS[1:], against=("plain", "content"))
    assert "gains.svg" in tables.pictures(board(only, [cell for cell in done if cell.variant != "plain"]))
    few = dataclasses.replace(spec, variants=("plain", "content"))
    two = board(few, [cell for cell in done if cell.variant in few.variants])
    again = {path.name for path in tables.write(two, tmp_path)}
    assert set(written) - again == {"ranks.svg"} and not (tmp_path / "ranks.svg").exists()  # not that of another board
    assert "No diagram of ranks: ranks need three variants or more, this board has 2." in tables.markdown(two)


def test_ranks_are_over_complete_pairs_of_backbone_and_data_set(rivals):
    spec, done = rivals
    content = board(spec, done)
    found = content["ranks"]
    assert found["blocks"] == [["d1", "VBPR"], ["d1", "FREEDOM"], ["d2", "VBPR"]]
    assert found["left_out"] == [{"dataset": "d2", "backbone": "FREEDOM", "missing": ["mrdib-paper"]}]
    means = {(r["dataset"], r["backbone"], r["variant"]): r["mean"]["recall@20"] for r in content["rows"]}
    values = np.array([[means[d, b, v] for v in RIVALS] for d, b in found["blocks"]])
    one = found["metrics"]["recall@20"]
    assert list(one["ranks"].values()) == pytest.approx(stats.rankdata(-values, axis=1).mean(0))
    assert one["ranks"]["mrdib"] == 1 and one["ranks"]["content"] == 2
    assert one["chi2"] == pytest.approx(stats.friedmanchisquare(*values.T).statistic)
    assert one["critical_difference"] == pytest.approx(2.569 * (4 * 5 / 18) ** 0.5, abs=1e-3)
    assert one["f_p"] < 0.05
    for a, b in itertools.combinations(RIVALS, 2):
        apart = abs(one["ranks"][a] - one["ranks"][b]) >= one["critical_difference"]
        assert apart != any({a, b} <= set(group) for group in one["cliques"])
    text = tables.markdown(content)
    assert "over 3 pairs of a backbone and a data set" in text and "1 left out (FREEDOM on d2: no mrdib-paper)" in text
    cut = [c for c in done if c.dataset == "d1" and c.backbone == "VBPR"]
    assert board(spec, cut)["ranks"]["undrawn"].endswith("this board has 1 of 1")
    short = copy.copy(done[0])
    short.results = {s: r for s, r in short.results.items() if s != 5}
    assert len(board(spec, [short, *done[1:]])["ranks"]["blocks"]) == 2  # a block needs all seeds


def test_latex_escapes_and_is_balanced():
    text = tables.latex(fake(True, 0.1))
    assert "d\\_1" in text and text.count("{") == text.count("}")
    assert re.search(r"VBPR\+MRdIB & 0\.1650 \$\\pm\$ 0\.0700 \(\\textbf\{\+10\.0\\,\\%\}\) & 3\.4\\,\\% \\\\", text)


def test_tidy_csv_has_one_row_per_value(built):
    content = built[0]
    rows = list(csv.DictReader(io.StringIO(tables.tidy(content))))
    assert len(rows) == 6 * 2 * 5
    first = rows[0]
    assert first["dataset"] == "toy" and float(first["value"]) == content["rows"][0]["values"][first["metric"]][0]
    assert (Path(first["folder"]) / "result.json").is_file()


def test_reported_results_stand_apart(data, tmp_path):
    foreign = tmp_path / "paper.csv"
    foreign.write_text(
        "model,dataset,metric,value,std\nVBPR,toy,Recall@20,0.9,0.01\nOther,toy,recall@20,0.8,\nOther,elsewhere,recall@20,0.7,\n"
    )
    runs = tmp_path / "runs"
    assert import_reported(foreign, runs, "A paper, table 1") == 3
    assert import_reported(foreign, runs, "A paper, table 1") == 3  # again: replaced, not doubled
    chosen = spec(data, runs, models=("VBPR",), datasets=("toy",), seeds=(1,))
    content = board(chosen, execute(chosen, InProcess()))
    reported = [r for r in content["rows"] if r["variant"] == "reported"]
    assert [(r["model"], r["mean"]["recall@20"], r["source"]) for r in reported] == [
        ("VBPR", 0.9, "A paper, table 1"), ("Other", 0.8, "A paper, table 1"),
    ]  # fmt: skip
    assert {c["backbone"] for c in content["comparisons"]} == {"VBPR"} and content["comparisons"][0]["gain"] < 1
    assert "reported: A paper, table 1" in tables.markdown(content)
    assert [r["source"] for r in csv.DictReader(io.StringIO(tables.tidy(content)))].count("A paper, table 1") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,dataset,value\nVBPR,toy,1\n", "no column metric"),
        ("model,dataset,metric,value\nVBPR,toy,recall@20,much\n", "line 2.*not a number"),
        ("model,dataset,metric,value\nVBPR,toy,recall@20,nan\n", "not a number"),
        ("model,dataset,metric,value\nVBPR,toy,recall,0.1\n", "recall@20"),
    ],
)
def test_wrong_foreign_results_are_refused(tmp_path, text, message):
    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        import_reported(file, tmp_path / "runs", "somewhere")
    file.write_text("model,dataset,metric,value\nVBPR,toy,recall@20,0.1\n")
    with pytest.raises(DataError, match="from where"):
        import_reported(file, tmp_path / "runs", None)
    assert not (tmp_path / "runs").exists()


def test_plain_and_variant_are_tuned_with_the_same_number_of_trials(data, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    chosen = spec(
        data, tmp_path, models=("VBPR",), datasets=("toy",), seeds=(1, 2), trials=3, weights="search", values=VALUES
    )
    done = execute(chosen, InProcess())
    assert [c.tuned["trials"] for c in done] == [3, 3]
    assert "unique_weight" in done[1].tuned["params"] and "unique_weight" not in done[0].tuned["params"]
    for cell in done:
        for result in cell.results.values():
            assert all(result["config"][k] == v for k, v in cell.tuned["params"].items())
    pool = InProcess()
    told = []
    again = execute(chosen, pool, told.append)
    assert [c.tuned for c in again] == [c.tuned for c in done] and sum("(was there)" in t for t in told) == 4
    assert {s for key, s in pool.seeds.items() if "tuning" in key} == {0}  # none of those that are tested
    assert "with seed 0, which is not tested" in tables.markdown(board(chosen, again))


def test_the_seed_that_tunes_is_not_tested(data, tmp_path):
    assert spec(data, tmp_path, seeds=(0, 4)).seed_of_tuning == 5
    assert spec(data, tmp_path, seeds=(1, 2), tuning_seed=7).seed_of_tuning == 7
    with pytest.raises(ConfigError, match="one of the seeds that are tested"):
        list(cells(spec(data, tmp_path, seeds=(1, 2), trials=2, tuning_seed=2)))


def test_given_parameters_leave_each_cells_space(data, tmp_path):
    chosen = spec(data, tmp_path, models=("VBPR",), trials=2, weights="search", values=VALUES | {"unique_weight": 0.1},
                  dataset_values={"tiny": {"learning_rate": 0.1}})  # fmt: skip
    left = {(c.dataset, c.variant): set(c.space) for c in cells(chosen)}
    assert left["toy", "plain"] == {"reg_weight", "learning_rate"} and left["tiny", "plain"] == {"reg_weight"}
    assert left["tiny", "mrdib-paper"] == {"reg_weight", "rate_weight", "redundant_weight"}
    more = {"dataset_values": {"tiny": {"learning_rate": 0.1, "reg_weight": 0.5}}}
    with pytest.raises(ConfigError, match=r"VBPR on tiny: nothing is left.*reg_weight"):
        list(cells(spec(data, tmp_path, models=("VBPR",), trials=2, **more)))


def test_a_model_without_a_search_space_is_an_untuned_row(data, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="optuna is not installed")
    monkeypatch.setattr(tune, "has_space", lambda model: model != "BPR")
    chosen = spec(data, tmp_path, variants=("plain",), datasets=("tiny",), seeds=(1,), trials=1)
    told = []
    content = board(chosen, execute(chosen, InProcess(), told.append))
    assert len(told) == 3 and "3 of 3" in told[-1]
    assert [bool(r["tuned"]) for r in content["rows"]] == [True, False]
    assert [r["notes"] for r in content["rows"]] == [[], ["not tuned: no search space"]]
    assert "1 seed; not tuned: no search space" in tables.markdown(content)


def test_results_of_other_code_are_told_and_fresh_trains_anew(data, tmp_path):
    chosen = spec(data, tmp_path, models=("BPR",), datasets=("toy", "tiny"), seeds=(1,))
    content = board(chosen, execute(chosen, InProcess()))
    assert [r["notes"] for r in content["rows"]] == [[], []] and content["codes"] == [record.code()]
    file = Path(content["rows"][1]["folders"][0]) / "result.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, "code": ["0.0.9 1234567"]}))
    told = []
    content = board(chosen, execute(chosen, InProcess(), told.append))
    assert "other code" not in told[0] and "(was there); by other code: 0.0.9 1234567" in told[1]
    assert [r["notes"] for r in content["rows"]] == [[f"code {record.code()}"], ["code 0.0.9 1234567"]]
    for text in (tables.markdown(content), tables.page(content, tmp_path), tables.latex(content), tables.tidy(content)):
        assert text.count("0.0.9 1234567") >= 1
    fresh = spec(data, tmp_path, models=("BPR",), datasets=("toy", "tiny"), seeds=(1,), fresh=True)
    again = board(fresh, execute(fresh, InProcess(), told.append))
    assert not any("(was there)" in line for line in told[2:]) and again["codes"] == [record.code()]


def test_text_of_others_breaks_no_table_and_is_not_executed(data, tmp_path):
    """As a spreadsheet or a Markdown viewer would see it; imported again it is the same."""
    name, source = '=HYPERLINK("http://x")', "a | b\n<img>, `c`"
    foreign = tmp_path / "paper.csv"
    with foreign.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["model", "dataset", "metric", "value", "source"], [name, "toy", "recall@20", "-0.5", source]]
        )
    assert import_reported(foreign, tmp_path, None) == import_reported(foreign, tmp_path, None) == 1
    (kept,) = csv.DictReader(io.StringIO((tmp_path / leaderboard.REPORTED).read_text()))
    assert kept["model"] == f"'{name}" and kept["value"] == "-0.5"
    rows = leaderboard._reported_rows(spec(data, tmp_path))
    assert [r["model"] for r in rows] == [name]
    content = fake(True, 0.1) | {"rows": rows}
    (line,) = csv.DictReader(io.StringIO(tables.tidy(content)))
    assert line["model"] == f"'{name}" and line["value"] == "-0.5"
    table = [t for t in tables.markdown(content).splitlines() if t.startswith("| =HYPERLINK")]
    assert len(table) == 1 and table[0].replace("\\|", "").count("|") == 5 and "<img>" not in table[0]


def test_cells_that_a_spreadsheet_would_execute():
    for text in ("=1+1", "+A1", "-A1", "@x", "\tx", "\rx", "\nx", "- 5"):
        assert tables.csv_cell(text) == f"'{text}" and tables.csv_text(f"'{text}") == text
    for value in (-0.5, -3, "-0.5", "+1e-3", "a=b", "'quoted'", "", None):
        assert tables.csv_cell(value) == value
    assert tables.csv_cell([1, "a"]) == '[1, "a"]' and tables.csv_text("'quoted'") == "'quoted'"


def test_a_failed_search_fails_its_cell_alone(data, tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="optuna is not installed")
    from mmrec_mrdib.experiment import tune

    real = tune.tune
    monkeypatch.setattr(tune, "tune", lambda model, *a, **k: real(model, *a, **k) if "+" in model else 1 / 0)
    chosen = spec(data, tmp_path, models=("VBPR",), datasets=("toy",), seeds=(1,), trials=2, weights="auto")
    plain, variant = execute(chosen, InProcess())
    assert isinstance(plain.failures["tuning"], Failure) and not plain.results
    assert variant.results and variant.tuned["trials"] == 2
    assert tables.markdown(board(chosen, [plain, variant])).count("failed: tuning: ZeroDivisionError") == 1


def arguments(data, tmp_path, *more):
    return ["leaderboard", "--models", "VBPR", "--datasets", "toy", "--data_path", str(data), "--seeds", "2", "--embedding_size=8",
            "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out"), *more]  # fmt: skip


def test_the_command(data, tmp_path, capsys):
    assert main(arguments(data, tmp_path, "--epochs=2", "--jobs", "2", "--toy.modalities=a")) == 0
    out = capsys.readouterr()
    assert "VBPR+MRdIB" in out.out and "4 of 4" in out.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        ["comparisons.csv", "gains.svg", *(f"leaderboard.{form}" for form in ("csv", "html", "json", "md", "tex"))]
    )
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert content["command"].startswith("mmrec-mrdib leaderboard --models VBPR")
    assert json.loads((Path(content["rows"][0]["folders"][0]) / "result.json").read_text())["modalities"] == ["a"]


def test_the_whole_field_for_one_epoch(data, tmp_path, capsys):
    given = arguments(data, tmp_path, "--variants", "plain", "--seeds", "1", "--epochs=1", "--embedding_size=8")
    given[given.index("--models") + 1] = "all"
    assert main(given) == 0
    rows = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {*registry.MODELS, *BOARD_BASELINES}
    assert {row["status"] for row in rows} == {"complete"}
    assert all(0 <= value <= 1 for row in rows for value in row["mean"].values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--models", "VBRP"], "unknown model"),
        (["--seeds", "x"], "--seeds"),
        (["--columns", "recall@21"], "recall@21"),
        (["--variants", "best"], "--variants"),
        (["--weights", "search"], "--tune"),
        (["--nonsense=1"], "nonsense"),
        (["--datasets", "nowhere"], "nowhere"),
        (["--jobs", "0"], "--jobs"),
        (["--tuning_seed", "7"], "--tune=N"),
        (["--against", "contnt"], "--against=contnt: not among --variants=plain,mrdib"),
        (["--against", "content"], "--against=content: not among --variants=plain,mrdib"),
        (["--against", "mrdib"], "--against=mrdib: no model here has that variant and one to compare with it"),
        (["--against", "plain"], "--against=plain"),
    ],
)
def test_mistakes_show_before_anything_is_trained(data, tmp_path, capsys, more, message):
    given = arguments(data, tmp_path)
    if more[0] in given:
        given[given.index(more[0]) + 1] = more[1]
    else:
        given += more
    assert main(given) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_killed_in_the_middle_nothing_is_lost(data, tmp_path, monkeypatch):
    """kill -9 of the command; the board in the end is that of an undisturbed one."""
    given = arguments(data, tmp_path, "--epochs=40", "--stopping_step=40", "--checkpoint_interval=0.2", "--jobs", "1")
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "mmrec_mrdib", *given], cwd=ROOT, **quiet)
    runs = tmp_path / "runs"
    for _ in range(1200):  # until something is being trained, or a minute
        if list(runs.glob("*/last.pt")) or process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.3)  # its worker ends
    complete = {p.parent.name: p.stat().st_mtime_ns for p in runs.glob("*/result.json")}
    monkeypatch.setattr(
        "mmrec_mrdib.experiment.workers.LocalPool", lambda work, jobs, gpus: InProcess()
    )  # seconds less
    assert main(given) == 0
    assert {
        n: t for n, t in ((p.parent.name, p.stat().st_mtime_ns) for p in runs.glob("*/result.json")) if n in complete
    } == complete
    assert len(list(runs.glob("*/result.json"))) == 4 == len([p for p in runs.glob("VBPR*") if p.is_dir()])
    disturbed = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    undisturbed = spec(data, tmp_path / "other", models=("VBPR",), datasets=("toy",), seeds=(1, 2), variants=("plain", "mrdib"),
                       values={"epochs": 40, "stopping_step": 40, "embedding_size": 8})  # fmt: skip
    expected = board(undisturbed, execute(undisturbed, InProcess()))
    assert [r["values"] for r in disturbed["rows"]] == [r["values"] for r in expected["rows"]]


def test_a_killed_worker_is_a_failed_run_and_the_others_go_on(data, tmp_path):
    long = VALUES | {"epochs": 100_000, "stopping_step": 100_000}
    chosen = spec(
        data,
        tmp_path / "runs",
        models=("BPR",),
        datasets=("toy", "tiny"),
        seeds=(1,),
        values=VALUES,
        dataset_values={"toy": long},
    )
    pool = LocalPool(leaderboard.WORK, 1)

    def shoot():
        while not list((tmp_path / "runs").glob("BPR-toy-1-*/last.pt")):
            time.sleep(0.05)
        pool.busy[0].process.kill()

    threading.Thread(target=shoot, daemon=True).start()
    killed, other = execute(chosen, pool)
    assert "SIGKILL" in killed.failures["seed 1"].reason and not killed.results
    assert list(other.results) == [1]


def test_a_ray_cluster_runs_the_same_cells_and_survives_a_killed_worker(data, tmp_path, ray_cluster):
    long = VALUES | {"epochs": 300, "stopping_step": 300, "checkpoint_interval": 0}
    more = {"models": ("BPR",), "datasets": ("toy", "tiny"), "seeds": (1,), "dataset_values": {"toy": long}}
    chosen = spec(data, tmp_path / "runs", **more)
    killed = []

    def shoot():
        while not list((tmp_path / "runs").glob("BPR-toy-1-*/last.pt")):
            time.sleep(0.05)
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cmdline").read_bytes().startswith(b"ray::call"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)

    threading.Thread(target=shoot, daemon=True).start()
    done = execute(chosen, RayPool(leaderboard.WORK, ray_cluster))
    assert killed and not any(cell.failures for cell in done)
    log = (Path(done[0].results[1]["folder"]) / "log.txt").read_text()
    assert "resumed after epoch" in log
    expected = execute(spec(data, tmp_path / "other", **more), InProcess())
    assert [c.results[1]["test"] for c in done] == [c.results[1]["test"] for c in expected]


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(built, browser, tmp_path):
    content = built[0]
    foreign = {**content["rows"][0], "variant": "reported", "model": "Paper", "source": "a <b>paper</b>", "status": "reported", "folders": [], "seeds": [],
               "mean": {"recall@20": 0.99}, "std": {}}  # fmt: skip
    tables.write({**content, "rows": [*content["rows"], foreign]}, tmp_path)
    browser.get_log("performance")
    browser.get((tmp_path / "leaderboard.html").as_uri())

    def column(n):
        script = "return [...document.querySelectorAll('#board tbody tr')].filter(r => !r.hidden).map(r => r.cells[arguments[0]].textContent.trim())"
        return browser.execute_script(script, n)

    def click(n):
        browser.execute_script(
            "document.querySelectorAll('#board thead th')[arguments[0]].querySelector('button').click()", n
        )

    assert len(column(0)) == 7 and "Paper (reported: a <b>paper</b>)" in column(1)  # escaped
    click(2)  # best first
    values = [float(v.split(" ")[0]) for v in column(2)]
    assert values == sorted(values, reverse=True) and values[0] == 0.99
    click(2)
    assert [float(v.split(" ")[0]) for v in column(2)] == values[::-1]
    click(1)
    assert column(1) == sorted(column(1), key=str.lower)
    browser.execute_script(
        "const s = document.getElementById('variant'); s.value = 'mrdib-paper'; s.dispatchEvent(new Event('input'))"
    )
    assert column(1) == ["VBPR+MRdIB (paper)"] * 2
    box = browser.find_element("id", "search")
    box.send_keys("tiny vbpr")
    assert column(0) == ["tiny"]
    assert browser.find_element("id", "count").text == "1 of 7 rows"
    assert len(browser.find_elements("css selector", "#bars svg rect")) == 1
    links = browser.execute_script(
        "return [...document.querySelectorAll('#board tbody tr:not([hidden]) a')].map(a => a.href)"
    )
    assert len(links) == 5 and all(Path(unquote(link.removeprefix("file://"))).is_file() for link in links)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    requests = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    assert [url for url in requests if not url.startswith(("file://", "data:"))] == []


def test_two_machines_share_a_search_through_postgresql(data, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    with postgres(found[-1], tmp_path) as url:
        script = (
            "import sys; from tests.test_leaderboard import shared_search\n"
            "print(shared_search(sys.argv[1], sys.argv[2], sys.argv[3]).trials)"
        )
        sides = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(data), str(tmp_path / name), url],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for name in ("one", "two")
        ]
        outputs = [p.communicate(timeout=120)[0] for p in sides]
        assert [o.strip() for o in outputs] == ["6", "6"]
        import optuna

        (study,) = optuna.get_all_study_summaries(url)
        assert study.study_name.startswith("VBPR-toy-")
        trials = optuna.load_study(study_name=study.study_name, storage=url).trials
        processes = {
            t.user_attrs["process"].split(":")[1]
            for t in trials
            if not {"duplicate_of", "surplus"} & t.user_attrs.keys()
        }
        assert len(processes) == 2 and not list(tmp_path.glob("*/optuna.db"))


def shared_search(data, runs, url):
    from mmrec_mrdib.experiment import tune

    space = {"learning_rate": [0.001, 0.01, 0.1], "reg_weight": [0.0, 0.1, 1.0]}
    values = VALUES | {"data_path": data, "epochs": 30, "stopping_step": 30}
    return tune.tune("VBPR", "toy", 6, values, storage=url, runs=Path(runs), space=space)


class postgres:
    """A PostgreSQL server of its own on loopback, as a user that is not root."""

    def __init__(self, programs, folder):
        self.programs, self.folder = programs, Path(folder) / "pg"

    def command(self, *words):
        given = [str(self.programs / words[0]), *map(str, words[1:])]
        return given if os.getuid() else ["runuser", "-u", "postgres", "--", *given]

    def __enter__(self):
        import socket
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        if not os.getuid():
            shutil.chown(self.folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        quiet = {"check": True, "capture_output": True, "cwd": "/"}
        subprocess.run(self.command("initdb", "-D", self.folder / "data", "-A", "trust", "-U", "me"), **quiet)
        options = f"-h 127.0.0.1 -p {port} -k {self.folder}"
        subprocess.run(
            self.command("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", "-o", options, "start"),
            **quiet,
        )
        return f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"

    def __exit__(self, *exc):
        subprocess.run(
            self.command("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop"),
            check=False,
            capture_output=True,
            cwd="/",
        )
        shutil.rmtree(self.folder, ignore_errors=True)


def test_metrics_that_are_not_computed_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="recall@7"):
        list(cells(spec(data, tmp_path, metrics=("recall@7",))))


def test_every_plugin_beside_its_backbone(data, tmp_path):
    """One parameter each for MRdIB, for its published form's search and for a model; a staged variant is tuned as its backbone, with the
    backbone's own trials."""
    pytest.importorskip("optuna", reason="optuna is not installed")
    variants = ("plain", "mrdib", "mrdib-paper", "content")
    values = VALUES | {"epochs": 1, "stage_epochs": 1, "content_size": 4, "readout_ladder": [0.0, 0.5]}
    chosen = spec(
        data, tmp_path, datasets=("tiny",), seeds=(1,), variants=variants, trials=1, weights="search", values=values
    )
    found = {c.model: c for c in cells(chosen)}
    names = ["VBPR", "VBPR+MRdIB", "VBPR+MRdIB (paper)", "VBPR+Content", "BPR", "BPR+MRdIB", "BPR+Content"]
    assert list(found) == names  # BPR has no encoders to make stochastic
    plugins = {"stage_epochs", "content_size", "readout_ladder"}
    for name, own in (("VBPR", set()), ("VBPR+MRdIB", plugins), ("BPR+Content", {"readout_ladder"})):
        assert set(found[name].values) & plugins == own, name
    assert found["VBPR+MRdIB"].host == ("VBPR", found["VBPR"].values) and found["VBPR+MRdIB (paper)"].host is None
    assert found["VBPR+MRdIB"].space == found["VBPR"].space == found["VBPR+Content"].space
    assert set(found["VBPR+MRdIB (paper)"].space) > set(found["VBPR"].space)

    studies, told = [], []
    with pytest.MonkeyPatch.context() as patch:
        real = tune.best_on_valid
        patch.setattr(
            tune, "best_on_valid", lambda config, *a: studies.append(display_name(config)) or real(config, *a)
        )
        done = execute(chosen, InProcess(), told.append)
    by_name = {c.model: c for c in done}
    assert sorted(studies) == ["BPR", "VBPR", "VBPR+MRdIB (paper)"]
    for base, others in (("VBPR", ("MRdIB", "Content")), ("BPR", ("MRdIB", "Content"))):
        for other in others:
            cell = by_name[f"{base}+{other}"]
            assert (
                cell.tuned["study"] == by_name[base].tuned["study"]
                and cell.tuned["params"] == by_name[base].tuned["params"]
            )
            for seed, result in cell.results.items():  # around the very run of the plain row
                plain = Path(by_name[base].results[seed]["folder"]).name
                assert result["trained_backbone"]["folder"] == plain
                assert all(result["config"][k] == v for k, v in cell.tuned["params"].items())
    content = board(chosen, done)
    assert [r["model"] for r in content["rows"]] == names and {r["status"] for r in content["rows"]} == {"complete"}
    assert [r["variant"] for r in content["rows"]] == [*variants, "plain", "mrdib", "content"]
    compared = [(c["model"], c["metric"]) for c in content["comparisons"]]
    assert compared == [(m, metric) for m in names if "+" in m for metric in chosen.metrics]
    for entry in content["comparisons"]:
        means = {
            c: np.mean([r["test"][entry["metric"]] for r in by_name[c].results.values()])
            for c in (entry["model"], entry["backbone"])
        }
        assert entry["difference"] == pytest.approx(means[entry["model"]] - means[entry["backbone"]])
    notes = {r["model"]: r["notes"] for r in content["rows"]}
    assert (
        notes["VBPR+Content"] == ["tuned as its plain backbone, nothing of its own"]
        and notes["VBPR+MRdIB (paper)"] == []
    )
    text = tables.markdown(content)
    assert all(f"| {name} |" in text for name in names)
    once = len(list(tmp_path.glob("[!.]*/result.json")))
    assert once == len(names)  # no backbone was trained for a variant alone


def test_unknown_variants_are_told(data, tmp_path, capsys):
    assert main(arguments(data, tmp_path, "--variants", "plain,mrdib-papr")) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "--variants=plain,mrdib-papr: expected some of plain, mrdib, " in error
    assert "mrdib-paper" in error and "content" in error
