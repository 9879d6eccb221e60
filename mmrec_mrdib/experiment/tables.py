"""The leaderboard's forms: terminal, Markdown, CSV, LaTeX, JSON and a page. Only a gain that is significant is bold, in all of them."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmrec_mrdib import registry
from mmrec_mrdib.errors import ConfigError
from mmrec_mrdib.experiment import record
from mmrec_mrdib.paths import write_atomically

if TYPE_CHECKING:
    from rich.console import Group

NEW = "new:"  # before a metric of the items that `cold_items` holds out; these are shown, not tested
Board = Mapping[str, Any]
PICTURES = ("gains.svg", "ranks.svg")


def write(board: Board, folder: Path) -> list[Path]:
    """All forms into a folder. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = pictures(board)
    texts = {
        "leaderboard.md": markdown(board, drawn),
        "leaderboard.csv": tidy(board),
        "comparisons.csv": tests(board),
        "leaderboard.tex": latex(board),
        "leaderboard.html": page(board, folder, drawn),
    }
    for name, data in {**{name: text.encode() for name, text in texts.items()}, **drawn}.items():
        write_atomically(folder / name, data)
    record.write_json(folder / "leaderboard.json", board)
    for name in PICTURES:
        if name not in drawn:  # of another board that was here
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in (*texts, "leaderboard.json", *drawn)]


def pictures(board: Board) -> dict[str, bytes]:
    """Of `PICTURES`, those that the board has numbers for.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from mmrec_mrdib.experiment import figures
    except ImportError as error:
        raise ConfigError(f"{error}; pictures need: pip install 'mmrec-mrdib[report]'") from error
    out = {}
    if _pictured(board):
        out["gains.svg"] = _picture_of_gains(board, board["metrics"])
    if board["ranks"]["metrics"]:
        panels = {}
        for metric, found in board["ranks"]["metrics"].items():
            ranks = {titled(v): rank for v, rank in found["ranks"].items()}
            cliques = [list(map(titled, group)) for group in found["cliques"]]
            panels[f"{title(metric)} (Friedman: p {_tail(found['f_p'])})"] = {
                **found,
                "ranks": ranks,
                "cliques": cliques,
            }
        out["ranks.svg"] = figures.ranks(panels)
    return out


def _pictured(board: Board) -> list[dict[str, Any]]:
    """The comparisons whose gains are drawn: with plain; on a board without plain rows, with the first rival."""
    found = [c for c in board["comparisons"] if c["gain"] is not None]
    first = next((name for name in board["against"] if any(c["against"] == name for c in found)), None)
    return [c for c in found if c["against"] == first]


def _picture_of_gains(board: Board, metrics: Collection[str]) -> bytes:
    from mmrec_mrdib.experiment import figures

    of_model = {row["model"]: row["variant"] for row in board["rows"] if row["variant"] != "reported"}
    panels: dict[str, dict[str, dict[str, dict[str, figures.Gain]]]] = {}
    drawn = [c for c in _pictured(board) if c["metric"] in metrics]
    for c in drawn:
        backbones = panels.setdefault(c["dataset"], {}).setdefault(title(c["metric"]), {})
        gain = figures.Gain(c["gain"], c["interval"], c["significant"])
        backbones.setdefault(c["backbone"], {})[titled(of_model[c["model"]])] = gain
    over = drawn[0]["against"]
    colours = {titled(v): colour for v, colour in _colours(board).items() if v not in (over, "reported")}
    return figures.gains(panels, colours, titled(over))


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


_PALETTE = (
    "#5b84b1",
    "#e08a3c",
    "#6aa84f",
    "#b06fb0",
    "#c0504d",
    "#3a9ca6",
    "#b59b2c",
    "#7f6a5a",
    "#d77fa1",
    "#4f6d3a",
)


def _colours(board: Board) -> dict[str, str]:
    """Variant -> its colour in bars and pictures; results of others are grey."""
    variants = dict.fromkeys(row["variant"] for row in board["rows"])
    colours = {v: _PALETTE[n % len(_PALETTE)] for n, v in enumerate(v for v in variants if v != "reported")}
    return {v: colours.get(v, "#c8c8c8") for v in variants}


def titled(variant: str) -> str:
    """'mrdib-unique' -> '+MRdIB (unique)', 'mrdib+mg' -> '+MRdIB+MG'; 'plain'; what another program has beside 'NAME', '+x', as it is."""
    if variant == "plain":
        return variant
    try:
        return registry.of_kind("", variant).name
    except ConfigError:
        return f"+{variant}"


def _datasets(board: Board) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for dataset in dict.fromkeys(row["dataset"] for row in board["rows"]):
        yield dataset, [row for row in board["rows"] if row["dataset"] == dataset]


def _comparison(board: Board, row: Mapping[str, Any], metric: str, against: str) -> dict[str, Any] | None:
    keys = (row["dataset"], row["model"], metric, against)
    return next(
        (c for c in board["comparisons"] if (c["dataset"], c["model"], c["metric"], c["against"]) == keys), None
    )


def _value(row: Mapping[str, Any], metric: str, plus_minus: str = " ± ") -> str:
    if metric not in row["mean"]:
        return "–"
    spread = f"{plus_minus}{row['std'][metric]:.4f}" if metric in row["std"] else ""
    return f"{row['mean'][metric]:.4f}{spread}"


def _gain(board: Board, row: Mapping[str, Any], metric: str, against: str) -> tuple[str, bool] | None:
    """('+2.1 %', whether it is a significant gain)."""
    found = _comparison(board, row, metric, against)
    return None if found is None or found["gain"] is None else (_signed(found["gain"]), _is_bold(found))


def _is_bold(comparison: Mapping[str, Any]) -> bool:
    return bool(comparison["significant"] and comparison["difference"] > 0)


def _signed(share: float) -> str:
    return f"{share:+.1%}".replace("%", " %")


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _over(board: Board, row: Mapping[str, Any], rival: str, bold: str) -> list[str]:
    """['+2.1 %', '**+3.0 %**']: by tested metric, the gain over a rival, as `bold` makes them bold; '–' where there is none; [] without any."""
    gains = [_gain(board, row, m, rival) for m in board["metrics"] if not m.startswith(NEW)]
    return ["–" if g is None else bold.format(g[0]) if g[1] else g[0] for g in gains] if any(gains) else []


def _smallest(board: Board, row: Mapping[str, Any], against: str) -> str:
    """'2.1 % / 3.0 %': by metric, the smallest gain that would have been significant; or why none could be."""
    compared = board["against"]
    if row["variant"] in (*compared[: compared.index(against) + 1], "reported"):
        return ""
    found = [c for m in board["metrics"] if (c := _comparison(board, row, m, against)) is not None]
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
    return _tail(test["p_holm"])


def _effect(test: Mapping[str, Any] | None) -> str:
    return "–" if test is None or test["effect"] is None else f"{test['effect']:+.2f}"


def _note(board: Board) -> str:
    first, *rivals = ("the plain backbone" if name == "plain" else titled(name) for name in board["against"])
    more = f"; gains over {' and over '.join(rivals)} stand apart" if rivals else ""
    return (
        f"Test split, read once a run, at the epoch best on validation; mean ± standard deviation over seeds. In brackets the gain over {first}{more}. "
        "Bold: a gain that is significant: all seeds asked for are there, five or more, and both the paired bootstrap over users and the paired t-test over "
        "seeds have p < 0.05 after Holm's correction over the whole board. Smallest: the gain, by metric, from which this board would have called it significant."
    )


NOTE_OF_GAINS = (
    "Filled: significant, as bold is. The line is the gain's own 95 % interval, uncorrected: the wider of Student's t over seeds and the normal "
    "interval over users; without five seeds there is none. Where the lines would leave no room for the dots, they are cut."
)


def _note_of_ranks(board: Board) -> str:
    """What the diagram of ranks is made of, or why there is none."""
    ranks = board["ranks"]
    without = "; ".join(f"{b} on {d}: no {', '.join(m)}" for d, b, m in (o.values() for o in ranks["left_out"]))
    left = f" {len(ranks['left_out'])} left out ({without})." if without else ""
    if ranks["undrawn"]:
        return f"No diagram of ranks: {ranks['undrawn']}.{left}"
    return (
        f"Mean ranks of {len(ranks['variants'])} variants over {len(ranks['blocks'])} pairs of a backbone and a data set, by means over seeds; 1 is the best.{left} "
        "Variants that a bar joins are not told apart: by Nemenyi's critical difference (CD) at 0.05, or because Friedman's test (Iman and Davenport's F) "
        "sees no difference at all. With few pairs it sees little."
    )


def _figures_of_ranks(found: Mapping[str, Any]) -> str:
    f = "∞" if found["f"] is None else f"{found['f']:.2f}"
    return f"χ² {found['chi2']:.2f} (p {_tail(found['chi2_p'])}), F {f} (p {_tail(found['f_p'])}), CD {found['critical_difference']:.2f}"


def _tail(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


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


def markdown(board: Board, drawn: Collection[str] = ()) -> str:
    """A table of values and gains for each data set, the tests, ranks and tuned parameters.

    Args:
        drawn: which of `PICTURES` stand beside the file.
    """
    lines = [_note(board), "", _budget(board), ""]
    if board["command"]:
        fence = max(["```", *(f"{run}`" for run in re.findall("`+", board["command"]))], key=len)
        lines += [fence, board["command"], fence, ""]
    metrics, (first, *rivals) = board["metrics"], board["against"]
    head = [*map(title, metrics), "smallest", *(h for r in rivals for h in (f"over {titled(r)}", "smallest"))]
    for dataset, rows in _datasets(board):
        lines += [f"### {_md(dataset)}", "", f"| | {' | '.join(head)} | |", f"|---|{'---|' * (len(head) + 1)}"]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric), _gain(board, row, metric, first)
                if gain is not None:
                    text += f" (**{gain[0]}**)" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            columns.append(_smallest(board, row, first))
            for rival in rivals:
                columns += [" / ".join(_over(board, row, rival, "**{}**")), _smallest(board, row, rival)]
            lines.append(f"| {_md(_name(row))} | {' | '.join(columns)} | {_md(_state(row))} |")
        lines.append("")
    if "gains.svg" in drawn:
        lines += ["### Gains", "", "![Gains with intervals](gains.svg)", "", NOTE_OF_GAINS, ""]
    lines += ["### Ranks", "", _note_of_ranks(board), ""]
    if "ranks.svg" in drawn:
        lines += ["![Mean ranks and critical differences](ranks.svg)", ""]
    if found := board["ranks"]["metrics"]:
        variants = board["ranks"]["variants"]
        lines += [f"| | {' | '.join(map(titled, variants))} | |", f"|---|{'---|' * (len(variants) + 1)}"]
        for metric, one in found.items():
            shown = " | ".join(f"{one['ranks'][v]:.2f}" for v in variants)
            lines.append(f"| {title(metric)} | {shown} | {_figures_of_ranks(one)} |")
        lines.append("")
    if board["comparisons"]:
        lines += [
            "### Tests",
            "",
            "p-values after Holm's correction; d: Cohen's d of the paired differences.",
            "",
            "| data set | model | against | metric | gain | smallest | users: bootstrap p | Wilcoxon p | d | seeds: t-test p | d | not significant for |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for c in board["comparisons"]:
            shown = "–" if c["gain"] is None else _signed(c["gain"])
            if _is_bold(c):
                shown = f"**{shown}**"
            lines.append(
                f"| {_md(c['dataset'])} | {_md(c['model'])} | {titled(c['against'])} | {title(c['metric'])} | {shown} "
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


def tests(board: Board) -> str:
    """One row per comparison."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    named = ["dataset", "backbone", "model", "against", "metric", "difference", "gain"]
    kinds = ("bootstrap", "wilcoxon", "t")
    columns = [f"{kind}_{what}" for kind in kinds for what in ("p", "p_holm", "effect")]
    writer.writerow([*named, "interval_low", "interval_high", "smallest", *columns, "significant", "seeds", "missing"])
    for c in board["comparisons"]:
        outcomes = [c[kind][what] if c[kind] else None for kind in kinds for what in ("p", "p_holm", "effect")]
        told = [c["significant"], len(c["seeds"]), "; ".join(c["missing"])]
        cells = [*(c[k] for k in named), *(c["interval"] or (None, None)), c["smallest"], *outcomes, *told]
        writer.writerow(map(csv_cell, cells))
    return buffer.getvalue()


def latex(board: Board) -> str:
    """A booktabs table, ready for a paper: needs \\usepackage{booktabs}."""
    metrics, (first, *rivals) = board["metrics"], board["against"]
    head = [*map(title, metrics), "smallest", *(h for r in rivals for h in (f"over {titled(r)}", "smallest"))]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_tex(_note(board))} {_tex(_budget(board))}}}",
        f"  \\begin{{tabular}}{{l{'l' * len(head)}}}",
        "    \\toprule",
        f"    & {' & '.join(map(_tex, head))} \\\\",
    ]
    for dataset, rows in _datasets(board):
        lines += ["    \\midrule", f"    \\multicolumn{{{len(head) + 1}}}{{l}}{{\\emph{{{_tex(dataset)}}}}} \\\\"]
        for row in rows:
            columns = []
            for metric in metrics:
                text, gain = _value(row, metric, " $\\pm$ ").replace("–", "--"), _gain(board, row, metric, first)
                if gain is not None:
                    text += f" (\\textbf{{{_tex_share(gain[0])}}})" if gain[1] else f" ({_tex_share(gain[0])})"
                columns.append(text)
            columns.append(_tex_share(_smallest(board, row, first)))
            for rival in rivals:
                gains = _over(board, row, rival, "**{}")
                over = [f"\\textbf{{{_tex_share(g[2:])}}}" if g.startswith("**") else _tex_share(g) for g in gains]
                columns += [" / ".join(over), _tex_share(_smallest(board, row, rival))]
            notes = _tex("".join(f"; {note}" for note in row["notes"]))
            lines.append(f"    {_tex(_name(row))}{notes} & {' & '.join(columns)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def _tex_share(text: str) -> str:
    """Of '-2.1 %' and of what stands where there is no such number."""
    out = _tex(text).replace(" \\%", "\\,\\%").replace("–", "--")
    return re.sub(r"^-(?=\d)", "$-$", out)


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

    tables, (first, *rivals) = [], board["against"]
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
                text, gain = _value(row, metric), _gain(board, row, metric, first)
                if gain is not None:
                    text += f" [bold]({gain[0]})[/bold]" if gain[1] else f" ({gain[0]})"
                columns.append(text)
            table.add_row(
                escape(_name(row)), *columns, escape(_smallest(board, row, first)), escape(_state(row)),
                style="dim" if row["variant"] == "reported" else None,
            )  # fmt: skip
        tables.append(table)
        for rival in rivals:
            table = Table(title=escape(f"{dataset}: gains over {titled(rival)}"), title_justify="left")
            table.add_column("model", no_wrap=True)
            for heading in (*(title(m) for m in board["metrics"] if not m.startswith(NEW)), "smallest"):
                table.add_column(heading, justify="right")
            for row in rows:
                gains = _over(board, row, rival, "[bold]{}[/bold]")
                if any(gains):
                    table.add_row(escape(_name(row)), *gains, escape(_smallest(board, row, rival)))
            tables.append(table)
    return Group(*tables)


def page(board: Board, folder: Path, drawn: Mapping[str, bytes] = MappingProxyType({})) -> str:
    """The page: a table to sort and filter, bars, pictures, links to the runs; everything inside.

    Args:
        folder: where the page will be: links to run folders are relative to it.
        drawn: see `pictures`.

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
        cells = {
            metric: {
                "mean": row["mean"].get(metric),
                "std": row["std"].get(metric),
                "gains": [_gain_cell(_comparison(board, row, metric, against)) for against in board["against"]],
            }
            for metric in board["metrics"]
        }
        rows.append(
            {**{k: row[k] for k in ("dataset", "model", "variant", "source", "status")}, "state": _state(row),
             "smallest": [_smallest(board, row, against) for against in board["against"]],
             "runs": [{"seed": s, "href": h} for s, h in zip(row["seeds"], links, strict=False)], "cells": cells}
        )  # fmt: skip
    shown = {name.removesuffix(".svg"): [data] for name, data in drawn.items()}
    tested = list(dict.fromkeys(c["metric"] for c in _pictured(board)))
    if "gains" in shown and len(tested) > 1:  # one a metric: a page as narrow as one shows them below each other
        shown["gains"] = [_picture_of_gains(board, [metric]) for metric in tested]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmrec_mrdib.experiment"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("leaderboard.html").render(
        rows=rows,
        metrics=[{"key": m, "title": title(m)} for m in board["metrics"]],
        rivals=[titled(rival) for rival in board["against"][1:]],
        note=_note(board),
        budget=_budget(board),
        command=board["command"],
        colours=_colours(board),
        pictures={
            name: [f"data:image/svg+xml;base64,{base64.b64encode(d).decode()}" for d in data]
            for name, data in shown.items()
        },
        note_of_gains=NOTE_OF_GAINS,
        note_of_ranks=_note_of_ranks(board),
        ranks={title(m): _figures_of_ranks(found) for m, found in board["ranks"]["metrics"].items()},
    )


def _gain_cell(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of the page: a gain, and what shows when the pointer rests on it."""
    if found is None:
        return {"value": None, "text": "", "bold": False, "tests": ""}
    told = [f"users: bootstrap p {_p(found['bootstrap'])}, Wilcoxon p {_p(found['wilcoxon'])}"]
    told.append(f"seeds: t-test p {_p(found['t'])} (Holm)")
    if found["interval"]:
        told.append(f"95 % interval {' to '.join(map(_signed, found['interval']))}")
    if found["missing"]:
        told.append(f"not significant for: {', '.join(found['missing'])}")
    gain = found["gain"]
    text = "" if gain is None else _signed(gain)
    return {"value": gain, "text": text, "bold": _is_bold(found), "tests": "; ".join(told)}
