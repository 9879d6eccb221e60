"""The leaderboard's forms: terminal, Markdown, CSV, LaTeX, JSON and a page. Only a gain that is significant is bold, in all of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import record
from mmrec_mrdib.paths import write_atomically

if TYPE_CHECKING:
    from rich.console import Group

NEW = "new:"  # before a metric of the items that `cold_items` holds out; these are shown, not tested
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


def csv_cell(value: Any) -> Any:
    """A value as a CSV cell: lists and mappings as JSON, and text that a spreadsheet would execute as text (a quote before it)."""
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value)
    if isinstance(value, str) and value.startswith(_EXECUTED) and not _is_number(value):
        return f"'{value}"
    return value


def csv_text(cell: str) -> str:
    """The text of a cell that `csv_cell` wrote."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_EXECUTED) else cell


_EXECUTED = ("=", "+", "-", "@", "\t", "\r", "\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def _md(text: str) -> str:
    """Text for a cell of a Markdown table."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(re.sub(r"([`*])", r"\\\1", escaped).split())


def title(metric: str) -> str:
    """'Recall@20', 'NDCG@5', 'MAP@10'; 'new items: Recall@20'."""
    if metric.startswith(NEW):
        return f"new items: {title(metric.removeprefix(NEW))}"
    name, _, k = metric.partition("@")
    return f"{name.upper() if name in ('ndcg', 'map', 'mrr') else name.capitalize()}@{k}"


def _datasets(board: Board) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for dataset in dict.fromkeys(row["dataset"] for row in board["rows"]):
        yield dataset, [row for row in board["rows"] if row["dataset"] == dataset]


def _comparison(board: Board, row: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    keys = (row["dataset"], row["model"], metric)
    return next((c for c in board["comparisons"] if (c["dataset"], c["model"], c["metric"]) == keys), None)


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


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _smallest(board: Board, row: Mapping[str, Any]) -> str:
    """'2.1 % / 3.0 %': by metric, the smallest gain that would have been significant; or why none could be."""
    found = [c for m in board["metrics"] if (c := _comparison(board, row, m)) is not None]
    if row["variant"] in ("plain", "reported"):
        return ""
    if any(c["smallest"] is not None for c in found):
        return " / ".join("–" if c["smallest"] is None else _percent(c["smallest"]) for c in found)
    missing = dict.fromkeys(m for c in found for m in c["missing"])
    return f"none: {', '.join(missing)}" if missing else "none: nothing to compare with"


def _name(row: Mapping[str, Any]) -> str:
    return row["model"] if row["variant"] != "reported" else f"{row['model']} (reported: {row['source']})"


def _state(row: Mapping[str, Any]) -> str:
    seeds = len(row["seeds"])
    reasons = "; ".join(row["reasons"])
    if row["status"] == "reported":
        state = "reported"
    elif row["status"] == "complete":
        state = f"{seeds} seed{'s' if seeds != 1 else ''}"
    else:
        state = f"{row['status']}, {seeds} seeds: {reasons}" if seeds else f"failed: {reasons}"
    return "; ".join([state, *row["notes"]])


def _p(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "–"
    return "< 0.001" if test["p_holm"] < 0.001 else f"{test['p_holm']:.3f}"


def _effect(test: Mapping[str, Any] | None) -> str:
    return "–" if test is None or test["effect"] is None else f"{test['effect']:+.2f}"


NOTE = (
    "Test split, read once a run, at the epoch best on validation; mean ± standard deviation over seeds. Bold: a gain over the plain backbone "
    "that is significant: all seeds asked for are there, five or more, and both the paired bootstrap over users and the paired t-test over seeds have p < 0.05 "
    "after Holm's correction over the whole board. Smallest: the gain, by metric, from which this board would have called it significant."
)


def _budget(board: Board) -> str:
    made = f"Made by version {board['code']}"
    made += "." if board["codes"] in ([], [board["code"]]) else f"; runs are by {', '.join(board['codes'])}."
    if not board["trials"]:
        return f"No tuning: every model at its configured parameters. {made}"
    how = {
        "search": "weights of plug-ins that train together with their backbone are part of the variant's search",
        "auto": "weights of plug-ins that train together with their backbone set themselves",
        "fixed": "plug-ins' weights are fixed",
    }
    return (
        f"{board['trials']} trials of tuning on validation for each model and variant, with seed {board['tuning_seed']}, which is not tested"
        f"{'' if board['pruning'] == 'median' else ', none stopped early'}; {how[board['weights']]}. {made}"
    )


def markdown(board: Board) -> str:
    """Two tables a data set: values with gains, and the tests."""
    lines = [NOTE, "", _budget(board), ""]
    if board["command"]:
        fence = max(["```", *(f"{run}`" for run in re.findall("`+", board["command"]))], key=len)
        lines += [fence, board["command"], fence, ""]
    metrics = board["metrics"]
    for dataset, rows in _datasets(board):
        lines += [
            f"### {_md(dataset)}",
            "",
            f"| | {' | '.join(map(title, metrics))} | smallest | |",
            f"|---|{'---|' * (len(metrics) + 2)}",
        ]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric), _gain(board, row, metric)
                if gain is not None:
                    text += f" (**{gain[0]}**)" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            lines.append(
                f"| {_md(_name(row))} | {' | '.join(columns)} | {_smallest(board, row)} | {_md(_state(row))} |"
            )
        lines.append("")
    if board["comparisons"]:
        lines += [
            "### Tests",
            "",
            "p-values after Holm's correction; d: Cohen's d of the paired differences.",
            "",
            "| data set | model | metric | gain | smallest | users: bootstrap p | Wilcoxon p | d | seeds: t-test p | d | not significant for |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for c in board["comparisons"]:
            shown = "–" if c["gain"] is None else f"{c['gain']:+.1%}".replace("%", " %")
            if c["significant"] and c["difference"] > 0:
                shown = f"**{shown}**"
            lines.append(
                f"| {_md(c['dataset'])} | {_md(c['model'])} | {title(c['metric'])} | {shown} "
                f"| {'–' if c['smallest'] is None else _percent(c['smallest'])} | {_p(c['bootstrap'])} | {_p(c['wilcoxon'])} "
                f"| {_effect(c['bootstrap'])} | {_p(c['t'])} | {_effect(c['t'])} | {', '.join(c['missing'])} |"
            )
        lines.append("")
    tuned = [row for row in board["rows"] if row["tuned"]]
    if tuned:
        lines += [
            "### Tuned parameters",
            "",
            "| data set | model | trials (stopped early, failed) | best valid | parameters |",
            "|---|---|---|---|---|",
        ]
        for row in tuned:
            t = row["tuned"]
            params = ", ".join(
                _md(f"{k} {v if isinstance(v, int | float) else json.dumps(v)}") for k, v in t["params"].items()
            )
            lines.append(
                f"| {_md(row['dataset'])} | {_md(row['model'])} | {t['trials']} ({t['pruned']}, {t['failed']}) | {t['value']:.4f} | {params} |"
            )
        lines.append("")
    return "\n".join(lines)


def tidy(board: Board) -> str:
    """One row per model, data set, metric and seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["dataset", "model", "backbone", "variant", "metric", "seed", "value", "source", "folder", "code"])
    for row in board["rows"]:
        for metric, values in row["values"].items():
            for n, value in enumerate(values):
                seed = row["seeds"][n] if n < len(row["seeds"]) else ""
                folder = row["folders"][n] if n < len(row["folders"]) else ""
                named = [row[k] for k in ("dataset", "model", "backbone", "variant")]
                cells = [*named, metric, seed, value, row["source"], folder, ", ".join(row["code"])]
                writer.writerow(map(csv_cell, cells))
    return buffer.getvalue()


def latex(board: Board) -> str:
    """A booktabs table, ready for a paper: needs \\usepackage{booktabs}."""
    metrics = board["metrics"]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(NOTE)} {_tex(_budget(board))}}}",
        f"  \\begin{{tabular}}{{l{'l' * len(metrics)}l}}",
        "    \\toprule",
        f"    & {' & '.join(_tex(title(m)) for m in metrics)} & smallest \\\\",
    ]
    for dataset, rows in _datasets(board):
        lines += ["    \\midrule", f"    \\multicolumn{{{len(metrics) + 2}}}{{l}}{{\\emph{{{_tex(dataset)}}}}} \\\\"]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric, " $\\pm$ ").replace("–", "--"), _gain(board, row, metric)
                if gain is not None:
                    shown = _tex(gain[0]).replace(" \\%", "\\,\\%").replace("-", "$-$")
                    text += f" (\\textbf{{{shown}}})" if gain[1] else f" ({shown})"
                columns.append(text)
            smallest = _tex(_smallest(board, row)).replace(" \\%", "\\,\\%").replace("–", "--")
            notes = _tex("".join(f"; {note}" for note in row["notes"]))
            lines.append(f"    {_tex(_name(row))}{notes} & {' & '.join(columns)} & {smallest} \\\\")
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
        table.add_column("smallest", justify="right")
        table.add_column("")
        for row in rows:
            columns = []
            for metric in board["metrics"]:
                text, gain = _value(row, metric), _gain(board, row, metric)
                if gain is not None:
                    text += f" [bold]({gain[0]})[/bold]" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            table.add_row(
                escape(_name(row)), *columns, escape(_smallest(board, row)), escape(_state(row)),
                style="dim" if row["variant"] == "reported" else None,
            )  # fmt: skip
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
                else f"users: bootstrap p {_p(found['bootstrap'])}, Wilcoxon p {_p(found['wilcoxon'])}; seeds: t-test p {_p(found['t'])} (Holm)"
                + (f"; not significant for: {', '.join(found['missing'])}" if found["missing"] else ""),
            }
        rows.append(
            {**{k: row[k] for k in ("dataset", "model", "variant", "source", "status")}, "state": _state(row), "smallest": _smallest(board, row),
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
