"""The sweep's plots: the metric over the searched settings, over epochs and over time.

All take the summary that the sweep writes. Stopped trials are hollow or faint, the winner is ringed or bold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator, PercentFormatter

from ensemble_kd.report.pieces import plain
from ensemble_kd.report.plots import COLOURS, INK, STYLE, frame, plain_text, svg
from ensemble_kd.report.sweep import (
    Dimension,
    best_first,
    best_so_far,
    dimensions,
    label,
    lower_is_better,
    metric_text,
    searched,
)
from ensemble_kd.report.sweep_axes import (
    Scale,
    colour_bar,
    legend,
    metric_name,
    points,
    round_numbers,
    scale_of,
    setting_axis,
    tick_text,
    value_axis,
)

MOST_CELLS = 14
"""Distinct values per axis up to which two settings are drawn as a table of cells."""
MOST_BARS = 20
Curve = tuple[dict[str, Any], list[tuple[float, float]]]
"""A trial, and its metric at its epochs."""


# ------------------------------------------------------------------------------------- over the settings


def heat_map(summary: dict[str, Any]) -> str:
    """The metric over temperature and alpha, or over the only two numbers searched; empty without such."""
    summary = plain(summary)
    scale, pair = scale_of(summary), _pair(dimensions(summary))
    if scale is None or pair is None:
        return ""
    trials = [t for t in searched(best_first(summary)) if all(d.path in t["parameters"] for d in pair)]
    if not trials:
        return ""
    distinct = [sorted({t["parameters"][d.path] for t in trials}) for d in pair]
    filled = {tuple(t["parameters"][d.path] for d in pair) for t in trials}
    with matplotlib.rc_context(STYLE):
        cells = len(distinct[0]) * len(distinct[1])
        if all(2 <= len(values) <= MOST_CELLS for values in distinct) and 2 * len(filled) >= cells:
            figure = _cells(pair, distinct, trials, scale, summary)
        else:
            figure = _scattered(pair, trials, scale, summary)
        return svg(figure, "The metric over two of the searched settings")


def _pair(found: list[Dimension]) -> tuple[Dimension, Dimension] | None:
    numbers = [dimension for dimension in found if not dimension.categories]
    named = {dimension.name: dimension for dimension in numbers}
    if {"temperature", "alpha"} <= set(named):
        return named["temperature"], named["alpha"]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _cells(
    pair: tuple[Dimension, Dimension],
    distinct: list[list[Any]],
    trials: list[dict[str, Any]],
    scale: Scale,
    summary: dict[str, Any],
) -> Figure:
    """One cell per combination, with the best of its trials; trials come best first."""
    width, height = len(distinct[0]), len(distinct[1])
    figure = Figure(
        figsize=(max(4.4, 2.0 + 0.78 * width), max(3.0, 1.3 + 0.5 * height)), layout="constrained"
    )
    axes = figure.add_subplot()
    seen: set[tuple[int, int]] = set()
    for trial in trials:
        column, row = (
            values.index(trial["parameters"][d.path]) for d, values in zip(pair, distinct, strict=True)
        )
        if (column, row) in seen:
            continue
        seen.add((column, row))
        value = trial.get("value")
        box = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, linewidth=0)
        ink, text = INK, "failed" if trial["state"] == "failed" else "–"
        if value is None:
            box.set(facecolor="none", edgecolor=INK, linewidth=0.5, alpha=0.4)
        elif trial["state"] == "finished":
            box.set(facecolor=scale.colour(value))
            ink = "#ffffff" if scale.goodness(value) < 0.6 else "#101318"
        else:  # hollow: its value is of an earlier epoch
            box.set(facecolor="none", edgecolor=scale.colour(value), linewidth=1.6)
        if value is not None:
            text = metric_text(value, summary["metric"]).rstrip("%")
        if trial["name"] == summary.get("winner"):
            box.set(edgecolor=INK, linewidth=2.2)
        axes.add_patch(box)
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9 if width <= 10 else 7)
    for axis, values, size in ((axes.xaxis, distinct[0], width), (axes.yaxis, distinct[1], height)):
        axis.set_ticks(range(size), [label(value) for value in values])
    axes.set(xlim=(-0.55, width - 0.45), ylim=(-0.55, height - 0.45))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel=plain_text(pair[0].name), ylabel=plain_text(pair[1].name))
    colour_bar(figure, axes, scale, summary)
    return figure


def _scattered(
    pair: tuple[Dimension, Dimension], trials: list[dict[str, Any]], scale: Scale, summary: dict[str, Any]
) -> Figure:
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    setting_axis(axes, "x", pair[0])
    setting_axis(axes, "y", pair[1])
    places = {t["name"]: (t["parameters"][pair[0].path], t["parameters"][pair[1].path]) for t in trials}
    points(axes, places, trials, scale, summary)
    frame(axes, "", plain_text(pair[0].name), grid="both")
    axes.set_ylabel(plain_text(pair[1].name))
    colour_bar(figure, axes, scale, summary)
    return figure


def value_plot(summary: dict[str, Any]) -> str:
    """The metric against the one searched setting, with standard errors; empty where there are several."""
    summary = plain(summary)
    scale, found = scale_of(summary), dimensions(summary)
    if scale is None or len(found) != 1:
        return ""
    (dimension,) = found
    trials = [t for t in searched(best_first(summary)) if dimension.path in t["parameters"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.8), layout="constrained")
        axes = figure.add_subplot()
        places, shown = {}, value_axis(axes, scale, summary)
        for trial in trials:
            value, x = trial.get("value"), dimension.position(trial["parameters"][dimension.path])
            places[trial["name"]] = (x, shown(value))
            if value is not None and trial.get("standard_error") is not None:
                axes.errorbar(
                    x, value, trial["standard_error"], color=scale.colour(value), linewidth=1.1, capsize=2
                )
        setting_axis(axes, "x", dimension)
        points(axes, places, trials, scale, summary)
        frame(axes, "", plain_text(dimension.name))
        return svg(figure, "The metric against the searched setting")


def importance_bars(summary: dict[str, Any]) -> str:
    """What share of the metric's variation each setting explains; empty where that is not known."""
    known = {k: v for k, v in plain(summary.get("importances") or {}).items() if v is not None}
    if not known:
        return ""
    names = {dimension.path: dimension.name for dimension in dimensions(summary)}
    ordered = sorted(known.items(), key=lambda item: -item[1])[:MOST_BARS]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 0.8 + 0.32 * len(ordered)), layout="constrained")
        axes = figure.add_subplot()
        rows = range(len(ordered))
        axes.barh(rows, [value for _, value in ordered], height=0.62, color=COLOURS["distilled"])
        for row, (_, value) in zip(rows, ordered, strict=True):
            text = f"{100 * value:.0f}%"
            axes.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(rows, [plain_text(names.get(path, path)) for path, _ in ordered])
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max([value for _, value in ordered] + [1e-9]))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        frame(axes, "", "importance", grid="x")
        return svg(figure, "Importance of each searched setting")


# -------------------------------------------------------------------------------- over epochs and time


def sweep_curves(summary: dict[str, Any]) -> str:
    """The metric of every trial against the epoch; empty where no trial has a history."""
    summary = plain(summary)
    metric = summary["metric"]
    curves: list[Curve] = []
    for trial in reversed(best_first(summary)):  # the best are drawn last, so on top
        history = trial.get("history") or []
        curve = [(entry["epoch"], entry[metric]) for entry in history if entry.get(metric) is not None]
        if curve:
            curves.append((trial, curve))
    if not curves:
        return ""
    many = len(curves) > 60
    styles: dict[str, dict[str, Any]] = {
        "baseline": {"color": COLOURS["hard"], "linewidth": 2.0, "zorder": 4},
        "winner": {"color": COLOURS["distilled"], "linewidth": 2.4, "zorder": 5},
        "finished": {"color": COLOURS["teacher"], "linewidth": 0.9, "alpha": 0.35 if many else 0.7},
        "stopped": {"color": COLOURS["ensemble"], "linewidth": 0.8, "alpha": 0.35 if many else 0.7},
        "failed": {"color": INK, "linewidth": 0.9, "alpha": 0.5, "linestyle": (0, (1, 2))},
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        place = _logarithmic(axes, curves, metric)
        seen = set()
        for trial, curve in curves:
            state = trial["state"] if trial["state"] in styles else "finished"
            role = next((r for r in ("winner", "baseline") if summary.get(r) == trial["name"]), state)
            marker = "o" if len(curve) == 1 else None
            epochs, values = zip(*curve, strict=True)
            heights = [place(value) for value in values]
            seen.add(role)
            axes.plot(epochs, heights, marker=marker, markersize=3, **styles[role])
        frame(axes, "", "epoch")
        axes.set_ylabel(metric_name(metric))
        names = {"baseline": "baseline, hard labels", "stopped": "stopped early"}
        # As lines of the legend the faint ones would not be seen.
        lines = {role: Line2D([], [], **style | {"alpha": 0.9}) for role, style in styles.items()}
        legend(axes, [(lines[role], names.get(role, role)) for role in styles if role in seen])
        return svg(figure, "The metric of every trial against the epoch")


def _logarithmic(axes: Axes, curves: list[Curve], metric: str) -> Callable[[float], float]:
    """A log axis of the loss, or of the error turned upside down with accuracies as its labels.

    So both the first epochs and the small differences of the last are seen. Returns what places a value.
    """
    lower = lower_is_better(metric)
    turned = np.array([value if lower else 1 - value for _, curve in curves for _, value in curve])
    floor = float(turned[turned > 0].min(initial=1.0)) / 2  # an accuracy of 1 has no logarithm of its error
    low, high = max(float(turned.min()), floor), max(float(turned.max()), floor)
    if high < 1.01 * low:
        low, high = low / 1.5, high * 1.5
    axes.set_yscale("log")
    limits = (low / (high / low) ** 0.05, high * (high / low) ** 0.05)
    axes.set_ylim(*(limits if lower else limits[::-1]))
    ticks = round_numbers(low, high, log=high > 5 * low)
    axes.set_yticks(ticks, [tick_text(tick if lower else 1 - tick, metric) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    return lambda value: max(value if lower else 1 - value, floor)


def best_so_far_plot(summary: dict[str, Any]) -> str:
    """The best value against the seconds since the sweep began; a point is a trial at its end."""
    summary = plain(summary)
    scale = scale_of(summary)
    trials = [trial for trial in searched(best_first(summary)) if trial.get("ended") is not None]
    if scale is None or not trials:
        return ""
    last = max([trial["ended"] for trial in trials] + [summary.get("seconds") or 0.0])
    unit, length = next((u for u in (("h", 3600), ("min", 60)) if last > 3 * u[1]), ("s", 1))
    series = best_so_far(trials, summary["metric"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        shown = value_axis(axes, scale, summary)
        places = {t["name"]: (t["ended"] / length, shown(t.get("value"))) for t in trials}
        if series:
            x = [entry["seconds"] / length for entry in series] + [last / length]
            y = [shown(entry["value"]) for entry in series] + [shown(series[-1]["value"])]
            axes.step(x, y, where="post", color=COLOURS["distilled"], linewidth=1.8, zorder=2)
        axes.set_xlim(0, 1.02 * last / length if last else 1)
        points(axes, places, trials, scale, summary)
        frame(axes, "", f"{unit} since the sweep began")
        return svg(figure, "Best value so far against time")
