"""Pictures of runs and boards: bytes of PNG or SVG files. Lengths begin at 0; positions have an axis of their own. Needs matplotlib (extras `plot` and `report`)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure  # without pyplot: the backend is the caller's, a notebook's for example

_TITLES = {
    "rate": "rate by modality (nats)",
    "mi": "mutual information (nats)",
    "unique": "unimodal predictions (nats)",
    "alpha": "weights",
}
_PANEL = (4.2, 3.4)  # inches


class Gain(NamedTuple):
    """
    Attributes:
        share: 0.02 is a gain of 2 %.
        interval: its ends, or None.
        significant: whether the dot is filled.
    """

    share: float
    interval: Sequence[float] | None
    significant: bool


Curves = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # line -> epochs, values


def progress(epochs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Curves]:
    """Panel -> lines: the valid metric, every loss term as a share of its largest value (told in its name), and what else was logged."""
    x = [e["epoch"] for e in epochs]
    judged = [e for e in epochs if "valid" in e]  # with eval_step > 1 not every epoch is
    out: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        f"valid {metric}": {"": ([e["epoch"] for e in judged], [e["valid"][metric] for e in judged])}
    }
    for name in epochs[0]["losses"]:
        values = [e["losses"][name] for e in epochs]
        largest = max((abs(v) for v in values if np.isfinite(v)), default=0.0)
        shares = [v / largest if largest else 0.0 for v in values]
        out.setdefault("loss terms, weighted (1: the largest)", {})[f"{name} ({largest:.3g})"] = (x, shares)
    for name in epochs[0]["logs"]:
        head, _, tail = name.partition("/")
        out.setdefault(_TITLES.get(head, head), {})[tail] = (x, [e["logs"][name] for e in epochs])
    return dict(out)


def curves(title: str, panels: Mapping[str, Curves], best_epoch: int, form: str = "png") -> bytes:
    """The panels of `progress`, and the epoch that was kept."""
    figure, axes = _panels(len(panels))
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        for label, (x, values) in lines.items():
            axis.plot(x, values, label=label, marker="." if len(x) < 20 else None)
        axis.axvline(
            best_epoch,
            color="0.6",
            linestyle="--",
            linewidth=1,
            label=f"kept: epoch {best_epoch}" if name.startswith("valid ") else "",
        )
        if name == _TITLES["alpha"]:
            axis.set_yscale("log")
        else:
            axis.ticklabel_format(axis="y", useOffset=False)
        _titled(axis, name)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return _bytes(figure, form)


def bars(panels: Mapping[str, Mapping[str, Mapping[str, float | None]]], ylabel: str, form: str = "png") -> bytes:
    """Grouped bars. Bars begin at 0: few have their numbers above them, and where many are close to each other dots stand in their place.

    Args:
        panels: title of a panel -> group (x axis) -> bar within the group -> height, None where there is none.
    """
    figure, axes = _panels(len(panels))
    for axis, (title, groups) in zip(axes, panels.items(), strict=False):
        names = list(dict.fromkeys(bar for group in groups.values() for bar in group))
        width = min(0.8 / len(names), 0.3)
        table = np.array([[group.get(name) for group in groups.values()] for name in names], dtype=float)  # None: NaN
        few = table.size <= _FEW
        dots = not few and _are_close(table)
        for n, (name, heights) in enumerate(zip(names, table, strict=True)):
            x = np.arange(len(groups)) + (n - (len(names) - 1) / 2) * width
            if dots:
                axis.plot(x, heights, "o", label=name)
            else:
                drawn = axis.bar(x, heights, width, label=name)
                if few:
                    axis.bar_label(drawn, fmt="%.3g", fontsize="x-small", padding=1)
        if not dots and (table < 0).any():
            axis.axhline(0, color="0.4", linewidth=1)
        _group_axis(axis, title, list(groups))
        axis.set_ylabel(f"{ylabel} (axis not from 0)" if dots else ylabel)
    return _bytes(figure, form)


_FEW = 8  # bars that have room for their numbers


def _are_close(heights: np.ndarray) -> bool:
    """Whether all heights, two or more, lie within a quarter of the largest, and differ."""
    known = heights[~np.isnan(heights)]
    return len(known) > 1 and bool(known.max() > known.min() > 0.75 * known.max())


def stacks(panels: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str, form: str = "png") -> bytes:
    """Bars to the right, the parts of each after one another.

    Args:
        panels: title of a panel -> bar -> part -> length.
    """
    figure, axes = _panels(len(panels))
    for axis, (title, groups) in zip(axes, panels.items(), strict=False):
        names = list(dict.fromkeys(part for group in groups.values() for part in group))
        before = np.zeros(len(groups))
        for name in names:
            lengths = np.array([group.get(name, 0.0) for group in groups.values()])
            axis.barh(np.arange(len(groups)), lengths, 0.6, left=before, label=name)
            before += lengths
        axis.set_yticks(np.arange(len(groups)), [_wrapped(name, 16) for name in groups], fontsize="small")
        axis.set_ylim(max(len(groups), 3) - 0.4, -0.6)
        axis.set_xlim(0, 1.05 * max(before.max(), 1e-9))
        axis.locator_params(axis="x", nbins=5)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.set_xlabel(xlabel)
        _titled(axis, title)
    return _bytes(figure, form)


def history(title: str, scores: Sequence[tuple[int, float, bool]], bigger: bool) -> bytes:
    """A search: the score of each trial and the best so far.

    Args:
        scores: (number, score, whether it ran to its end) of each trial.
        bigger: whether larger scores are better.
    """
    figure, (axis, *_) = _panels(1)
    for done, label, colour in ((True, "complete", "tab:blue"), (False, "stopped early", "0.7")):
        chosen = [(n, score) for n, score, whole in scores if whole == done]
        if chosen:
            axis.scatter(*zip(*chosen, strict=True), label=label, color=colour, s=16)
    whole = [(n, score) for n, score, done in scores if done]
    best = (np.maximum if bigger else np.minimum).accumulate([score for _, score in whole])
    axis.step([n for n, _ in whole], best, where="post", label="best so far", color="tab:orange")
    _titled(axis, title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("trial")
    axis.set_ylabel("valid score")
    axis.grid(alpha=0.3)
    return _bytes(figure, "png")


def points(panels: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """Scatter plots: title of a panel -> name -> (N, 2) points."""
    figure, axes = _panels(len(panels))
    for axis, (title, groups) in zip(axes, panels.items(), strict=False):
        for name, xy in groups.items():
            axis.scatter(xy[:, 0], xy[:, 1], s=3, alpha=0.6, label=name, linewidths=0)
        _titled(axis, title, markerscale=3)
        axis.set_xticks([])
        axis.set_yticks([])
    return _bytes(figure, "png")


def gains(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Gain]]]], colours: Mapping[str, str], over: str
) -> bytes:
    """Dots with intervals: a row of panels for each data set, a panel for each metric.

    Args:
        panels: data set -> metric -> backbone -> variant -> its gain.
        colours: of the variants, in the order in which they stand.
        over: what they are gains over.
    """
    metrics = list(dict.fromkeys(m for of_set in panels.values() for m in of_set))
    backbones = {d: list(dict.fromkeys(b for found in of_set.values() for b in found)) for d, of_set in panels.items()}
    line, step = 0.19, len(colours) + 1  # inches between dots; dots and a gap for each backbone
    heights = [line * step * len(names) + 0.75 for names in backbones.values()]
    columns = min(len(colours), 1 + 2 * len(metrics))
    legend = 0.25 * -(-len(colours) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * len(metrics), sum(heights) + 0.25 + legend), layout="constrained")
    axes = figure.subplots(len(panels), len(metrics), squeeze=False, height_ratios=heights)
    for row, (dataset, of_set) in zip(axes, panels.items(), strict=True):
        names = backbones[dataset]
        for axis, metric in zip(row, metrics, strict=True):
            shown = [
                (n * step + k, variant, gain)
                for n, backbone in enumerate(names)
                for k, variant in enumerate(colours)
                if (gain := of_set.get(metric, {}).get(backbone, {}).get(variant))
            ]
            for y, variant, gain in shown:
                if gain.interval is not None:
                    axis.plot(gain.interval, [y, y], color=colours[variant], linewidth=1.6, solid_capstyle="butt")
                face = colours[variant] if gain.significant else "white"
                axis.plot(gain.share, y, "o", markersize=5, color=colours[variant], markerfacecolor=face)
            axis.axvline(0, color="0.4", linewidth=1, zorder=0)
            axis.set_xlim(_room([gain for _, _, gain in shown]))
            axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:+.4g} %" if share else "0")
            axis.locator_params(axis="x", nbins=6)
            axis.set_ylim(step * len(names) - 1, -1)
            middles = [n * step + (len(colours) - 1) / 2 for n in range(len(names))]
            axis.set_yticks(middles, names if axis is row[0] else [""] * len(names))
            axis.tick_params(axis="y", length=0)
            for n in range(1, len(names)):
                axis.axhline(n * step - 1, color="0.85", linewidth=0.8)
            axis.grid(axis="x", alpha=0.3)
            axis.set_title(f"{dataset}: {metric}", fontsize="medium")
    dots = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours.values()]
    figure.legend(dots, colours, loc="outside upper center", ncols=columns, frameon=False)
    figure.supxlabel(f"gain over {over}", fontsize="medium")
    return _bytes(figure, "svg")


def _room(shown: Sequence[Gain]) -> tuple[float, float]:
    """Limits of an axis with 0, all dots, and intervals as far as they leave the dots a quarter of it."""
    dots = [0.0, *(gain.share for gain in shown)]
    ends = [end for gain in shown for end in gain.interval or ()]
    low, high = min(dots), max(dots)
    width = max(high - low, 0.01)
    low, high = max(low - 1.5 * width, min([low, *ends])), min(high + 1.5 * width, max([high, *ends]))
    return low - 0.06 * max(high - low, width), high + 0.06 * max(high - low, width)


def ranks(panels: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Critical-difference diagrams (Demsar, 2006): mean ranks on an axis, the best at the left, a bar through those that are not told apart.

    Args:
        panels: title -> what `mean_ranks` found by a metric, with names in place of variants.
    """
    k = max(len(found["ranks"]) for found in panels.values())
    most = max(len(found["cliques"]) for found in panels.values())
    heights = [1.0 + 0.14 * len(found["cliques"]) + 0.22 * -(-k // 2) for found in panels.values()]
    figure = Figure(figsize=(5.8, sum(heights) + 0.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights).ravel()
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        axis.set_axis_off()
        axis.set_title(title, fontsize="medium", loc="left")
        best_first = sorted(found["ranks"].items(), key=lambda item: item[1])
        end, low = max(k, 1 + found["critical_difference"]), 0.35 + 0.3 * most
        axis.set_xlim(1 - 0.02 * k, end + 0.02 * k)
        axis.set_ylim(-low - 0.5 * (-(-k // 2)), 1.6)
        axis.plot([1, k], [0, 0], color="black", linewidth=1)
        for rank in range(1, k + 1):
            axis.plot([rank, rank], [0, 0.15], color="black", linewidth=1)
            axis.text(rank, 0.22, str(rank), ha="center", va="bottom", fontsize="small")
        axis.plot([1, 1 + found["critical_difference"]], [1.0, 1.0], "|-", color="black", linewidth=1.2)
        axis.text(
            1 + found["critical_difference"] / 2, 1.08, f"CD {found['critical_difference']:.2f}",
            ha="center", va="bottom", fontsize="small",
        )  # fmt: skip
        for n, (name, rank) in enumerate(best_first):
            left = n < -(-k // 2)
            y = -low - 0.5 * (n if left else k - 1 - n)
            edge, side = (1.0, "right") if left else (float(k), "left")
            axis.plot([rank, rank, edge], [0, y, y], color="0.35", linewidth=0.9)
            axis.annotate(
                f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}", (edge, y), (-4 if left else 4, 0),
                textcoords="offset points", ha=side, va="center", fontsize="small",
            )  # fmt: skip
        for n, group in enumerate(found["cliques"]):
            ends = [found["ranks"][name] for name in group]
            axis.plot([min(ends) - 0.03, max(ends) + 0.03], [-0.25 - 0.3 * n] * 2, color="tab:red", linewidth=3)
    return _bytes(figure, "svg")


def _panels(n: int, columns: int = 3) -> tuple[Any, np.ndarray]:
    """A figure of n panels, at most `columns` in a row; those left over are empty."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel()[n:]:
        axis.set_axis_off()
    return figure, axes.ravel()


def _group_axis(axis: Any, title: str, names: Sequence[str]) -> None:
    _titled(axis, title)
    if axis.patches:
        _from_zero(axis)
    room = 40 // len(names)  # characters below each group
    texts = [_wrapped(name, max(room, 6)) for name in names]
    long = max(len(line) for text in texts for line in text.split("\n")) > max(room, 6)
    axis.set_xticks(
        np.arange(len(names)), texts, fontsize="small", rotation=20 if long else 0, ha="right" if long else "center"
    )
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _titled(axis: Any, title: str, **legend: Any) -> None:
    """A title, and between it and the axes a legend, where it covers nothing."""
    handles, labels = axis.get_legend_handles_labels()
    title = _wrapped(title, 52)
    columns = max(1, min(len(labels), 58 // (max(map(len, labels), default=0) + 6)))
    rows = -(-len(labels) // columns)
    axis.set_title(title, pad=6 + 13 * rows, fontsize="medium")  # points
    if labels:
        # matplotlib fills column by column; names read row by row, in rows of equal length.
        columns = -(-len(labels) // rows)
        order = [n for column in range(columns) for n in range(column, len(labels), columns)]
        axis.legend(
            [handles[n] for n in order], [labels[n] for n in order],
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, fontsize="small", frameon=False,
            borderpad=0.1, labelspacing=0.2, columnspacing=1.2, handlelength=1.4, **legend,
        )  # fmt: skip


def _from_zero(axis: Any) -> None:
    """The y axis includes 0: heights are in proportion. Room for numbers above."""
    low, high = min(axis.dataLim.y0, 0.0), max(axis.dataLim.y1, 0.0)
    room = 0.1 * (high - low)
    axis.set_ylim(low - room if low else 0, high + room if high else 0)


def _bytes(figure: Any, form: str) -> bytes:
    """The same figure is the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "mmrec-mrdib"}):
        figure.savefig(buffer, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
