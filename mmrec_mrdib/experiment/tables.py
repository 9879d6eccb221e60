"""The leaderboard's forms: terminal, Markdown, CSV, LaTeX, JSON and a page. Only a gain that is significant is bold, in all of them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import record
from mmrec_mrdib.paths import write_atomically

if TYPE_CHECKING:
    from rich.console import Group

Board = Mapping[str, Any]
NAMES = ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "leaderboard.json", "leaderboard.html")


def write(board: Board, folder: Path) -> list[Path]:
    """All forms into a folder. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "leaderboard.md": markdown(board),
        "leaderboard.csv": tidy(board),
        "leaderboard.tex": latex(board),
        "leaderboard.html": page(board, folder),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    record.write_json(folder / "leaderboard.json", board)
    return [folder / name for name in NAMES]


def title(metric: str) -> str:
    """'Recall@20', 'NDCG@5', 'MAP@10'."""
    name, _, k = metric.partition("@")
    return f"{name.upper() if name in ('ndcg', 'map', 'mrr') else name.capitalize()}@{k}"


def _datasets(board: Board) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for dataset in dict.fromkeys(row["dataset"] for row in board["rows"]):
        yield dataset, [row for row in board["rows"] if row["dataset"] == dataset]


def _comparison(board: Board, row: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    if row["variant"] != "mrdib":
        return None
    keys = (row["dataset"], row["backbone"], metric)
    return next((c for c in board["comparisons"] if (c["dataset"], c["backbone"], c["metric"]) == keys), None)


def _value(row: Mapping[str, Any], metric: str, plus_minus: str = " ± ") -> str:
    if metric not in row["mean"]:
        return "–"
    spread = f"{plus_minus}{row['std'][metric]:.4f}" if metric in row["std"] else ""
    return f"{row['mean'][metric]:.4f}{spread}"


def _gain(board: Board, row: Mapping[str, Any], metric: str) -> tuple[str, bool] | None:
    """('+2.1 %', whether it is a significant gain)."""
    found = _comparison(board, row, metric)
    if found is None or found["gain"] is None:
        return None
    return f"{found['gain']:+.1%}".replace("%", " %"), found["significant"] and found["gain"] > 0


def _name(row: Mapping[str, Any]) -> str:
    return row["model"] if row["variant"] != "reported" else f"{row['model']} (reported: {row['source']})"


def _state(row: Mapping[str, Any]) -> str:
    seeds = len(row["seeds"])
    if row["status"] == "reported":
        return "reported"
    if row["status"] == "complete":
        return f"{seeds} seed{'s' if seeds != 1 else ''}"
    reasons = "; ".join(row["reasons"])
    return f"{row['status']}, {seeds} seeds: {reasons}" if seeds else f"failed: {reasons}"


def _p(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "–"
    return "< 0.001" if test["p_holm"] < 0.001 else f"{test['p_holm']:.3f}"


def _effect(test: Mapping[str, Any] | None) -> str:
    return "–" if test is None or test["effect"] is None else f"{test['effect']:+.2f}"


NOTE = (
    "Test split, read once a run, at the epoch best on validation; mean ± standard deviation over seeds. Bold: a gain over the plain backbone "
    "that is significant (p < 0.05 after Holm's correction over the whole board) in the paired bootstrap over users and, with five seeds or more, in the "
    "paired t-test over seeds."
)


def _budget(board: Board) -> str:
    if not board["trials"]:
        return "No tuning: every model at its configured parameters."
    how = {
        "search": "MRdIB's weights are part of the variant's search",
        "auto": "MRdIB's weights set themselves",
        "fixed": "MRdIB's weights are fixed",
    }
    return f"{board['trials']} trials of tuning on validation for each model and variant; {how[board['weights']]}."


def markdown(board: Board) -> str:
    """Two tables a data set: values with gains, and the tests."""
    lines = [NOTE, "", _budget(board), ""]
    if board["command"]:
        lines += ["```", board["command"], "```", ""]
    metrics = board["metrics"]
    for dataset, rows in _datasets(board):
        lines += [
            f"### {dataset}",
            "",
            f"| | {' | '.join(map(title, metrics))} | |",
            f"|---|{'---|' * (len(metrics) + 1)}",
        ]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric), _gain(board, row, metric)
                if gain is not None:
                    text += f" (**{gain[0]}**)" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            lines.append(f"| {_name(row)} | {' | '.join(columns)} | {_state(row)} |")
        lines.append("")
    if board["comparisons"]:
        lines += [
            "### Tests",
            "",
            "p-values after Holm's correction; d: Cohen's d of the paired differences.",
            "",
            "| data set | backbone | metric | gain | users: bootstrap p | Wilcoxon p | d | seeds: t-test p | d |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for c in board["comparisons"]:
            shown = "–" if c["gain"] is None else f"{c['gain']:+.1%}".replace("%", " %")
            if c["significant"] and c["difference"] > 0:
                shown = f"**{shown}**"
            lines.append(
                f"| {c['dataset']} | {c['backbone']} | {title(c['metric'])} | {shown} | {_p(c['bootstrap'])} | {_p(c['wilcoxon'])} "
                f"| {_effect(c['bootstrap'])} | {_p(c['t'])} | {_effect(c['t'])} |"
            )
        lines.append("")
    tuned = [row for row in board["rows"] if row["tuned"]]
    if tuned:
        lines += [
            "### Tuned parameters",
            "",
            "| data set | model | trials (stopped early) | best valid | parameters |",
            "|---|---|---|---|---|",
        ]
        for row in tuned:
            t = row["tuned"]
            params = ", ".join(f"{k} {v}" for k, v in t["params"].items())
            lines.append(
                f"| {row['dataset']} | {row['model']} | {t['trials']} ({t['pruned']}) | {t['value']:.4f} | {params} |"
            )
        lines.append("")
    return "\n".join(lines)


def tidy(board: Board) -> str:
    """One row per model, data set, metric and seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "model", "backbone", "variant", "metric", "seed", "value", "source", "folder"])
    for row in board["rows"]:
        for metric, values in row["values"].items():
            for n, value in enumerate(values):
                seed = row["seeds"][n] if n < len(row["seeds"]) else ""
                folder = row["folders"][n] if n < len(row["folders"]) else ""
                writer.writerow(
                    [
                        *(row[k] for k in ("dataset", "model", "backbone", "variant")),
                        metric,
                        seed,
                        value,
                        row["source"],
                        folder,
                    ]
                )
    return buffer.getvalue()


def latex(board: Board) -> str:
    """A booktabs table, ready for a paper: needs \\usepackage{booktabs}."""
    metrics = board["metrics"]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(NOTE)} {_tex(_budget(board))}}}",
        f"  \\begin{{tabular}}{{l{'l' * len(metrics)}}}",
        "    \\toprule",
        f"    & {' & '.join(_tex(title(m)) for m in metrics)} \\\\",
    ]
    for dataset, rows in _datasets(board):
        lines += ["    \\midrule", f"    \\multicolumn{{{len(metrics) + 1}}}{{l}}{{\\emph{{{_tex(dataset)}}}}} \\\\"]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric, " $\\pm$ ").replace("–", "--"), _gain(board, row, metric)
                if gain is not None:
                    shown = _tex(gain[0]).replace(" \\%", "\\,\\%").replace("-", "$-$")
                    text += f" (\\textbf{{{shown}}})" if gain[1] else f" ({shown})"
                columns.append(text)
            lines.append(f"    {_tex(_name(row))} & {' & '.join(columns)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def _tex(text: str) -> str:
    special = {
        "\\": "\\textbackslash{}",
        "±": "$\\pm$",
        "<": "$<$",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
    }
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)


def terminal(board: Board) -> Group:
    """Tables for rich."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for dataset, rows in _datasets(board):
        table = Table(title=dataset, title_justify="left")
        table.add_column("model", no_wrap=True)
        for metric in board["metrics"]:
            table.add_column(title(metric), justify="right")
        table.add_column("")
        for row in rows:
            columns = []
            for metric in board["metrics"]:
                text, gain = _value(row, metric), _gain(board, row, metric)
                if gain is not None:
                    text += f" [bold]({gain[0]})[/bold]" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            table.add_row(
                escape(_name(row)), *columns, escape(_state(row)), style="dim" if row["variant"] == "reported" else None
            )
        tables.append(table)
    return Group(*tables)


def page(board: Board, folder: Path) -> str:
    """The page: a table to sort and filter, bars, links to the runs; everything inside.

    Args:
        folder: where the page will be: links to run folders are relative to it.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("the page needs Jinja2: pip install 'mmrec-mrdib[report]'") from error
    rows = []
    for row in board["rows"]:
        links = [Path(os.path.relpath(f, folder)).as_posix() for f in row["folders"]]
        cells = {}
        for metric in board["metrics"]:
            found = _comparison(board, row, metric)
            gain = _gain(board, row, metric)
            cells[metric] = {
                "mean": row["mean"].get(metric),
                "std": row["std"].get(metric),
                "gain": gain[0] if gain else None,
                "significant": bool(gain and gain[1]),
                "tests": ""
                if found is None
                else f"users: bootstrap p {_p(found['bootstrap'])}, Wilcoxon p {_p(found['wilcoxon'])}; seeds: t-test p {_p(found['t'])} (Holm)",
            }
        rows.append(
            {**{k: row[k] for k in ("dataset", "model", "variant", "source", "status")}, "state": _state(row),
             "runs": [{"seed": s, "href": h} for s, h in zip(row["seeds"], links, strict=False)], "cells": cells}
        )  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrec_mrdib.experiment"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("leaderboard.html").render(
        rows=rows,
        metrics=[{"key": m, "title": title(m)} for m in board["metrics"]],
        note=NOTE,
        budget=_budget(board),
        command=board["command"],
    )
