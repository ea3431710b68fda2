"""Parallel coordinates: every trial of a sweep as one line across all the searched settings."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ensemble_kd.report.pieces import plain
from ensemble_kd.report.plots import COLOURS, INK, STYLE, plain_text, svg
from ensemble_kd.report.sweep import (
    Dimension,
    best_first,
    dimensions,
    lower_is_better,
    metric_text,
    searched,
)
from ensemble_kd.report.sweep_axes import (
    GOOD,
    Scale,
    baseline_of,
    metric_name,
    round_numbers,
    scale_of,
    tick_text,
)

PAPER = "#040506"  # becomes the colour of the card: ticks stay readable over the lines
MOST_CATEGORIES = 12
"""Labels on an axis of categories; of more every second, third ... has one."""


def parallel_coordinates(summary: dict[str, Any]) -> str:
    """One axis per setting and the metric as the last; empty with fewer than two settings."""
    summary = plain(summary)
    scale, found = scale_of(summary), dimensions(summary)
    if scale is None or len(found) < 2:
        return ""
    trials = [
        trial
        for trial in searched(best_first(summary))
        if trial["state"] != "failed" and trial.get("value") is not None
        if all(dimension.path in trial["parameters"] for dimension in found)
    ]
    if not trials:
        return ""
    each = max(1.4, min(2.5, 7.0 / len(found)))  # inches between two axes
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + each * len(found), 4.2), layout="constrained")
        axes = figure.add_subplot()
        for trial in reversed(trials):  # the best on top
            heights = [_height(d, trial["parameters"][d.path]) for d in found]
            heights.append(scale.goodness(trial["value"]))
            _line(axes, heights, trial, scale, summary.get("winner"), len(trials))
        for place, dimension in enumerate(found):
            ticks = _ticks(dimension)
            _upright(axes, place, plain_text(_shortened(dimension.name)), ticks)
        _metric_axis(axes, len(found), scale, summary)
        axes.set(xlim=(-0.35, len(found) + 0.5), ylim=(-0.06, 1.06))
        axes.set_axis_off()
        text = svg(figure, "Every trial across all searched settings and the metric")
    return text.replace(PAPER, "var(--card)")


def _shortened(name: str, longest: int = 18) -> str:
    """Without its middle: settings of one block differ at their ends."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _line(
    axes: Axes, heights: list[float], trial: dict[str, Any], scale: Scale, winner: str | None, count: int
) -> None:
    colour, places = scale.colour(trial["value"]), range(len(heights))
    if trial["name"] == winner:
        axes.plot(places, heights, color=INK, linewidth=4.6, zorder=4, solid_joinstyle="round")
        axes.plot(places, heights, color=colour, linewidth=2.6, zorder=5, solid_joinstyle="round")
    elif trial["state"] == "finished":
        axes.plot(places, heights, color=colour, linewidth=1.3, alpha=0.85 if count <= 60 else 0.45, zorder=3)
    else:
        axes.plot(places, heights, color=colour, linewidth=0.8, alpha=0.5 if count <= 60 else 0.3, zorder=2)


def _height(dimension: Dimension, value: Any) -> float:
    """Where a value lies on its axis, from 0 to 1."""
    if dimension.categories:
        return (dimension.position(value) + 0.5) / len(dimension.categories)
    low, high = dimension.low, dimension.high
    if high == low:
        return 0.5
    if dimension.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    if not dimension.categories:
        ticks = round_numbers(dimension.low, dimension.high, dimension.log, most=6)
        return [(_height(dimension, tick), f"{tick:.4g}") for tick in ticks]
    size = len(dimension.categories)
    every = math.ceil(size / MOST_CATEGORIES)
    names = [plain_text(name, 16) for name in dimension.categories]
    return [((i + 0.5) / size, names[i]) for i in range(0, size, every)]


def _upright(axes: Axes, place: float, name: str, ticks: list[tuple[float, str]]) -> None:
    """One axis with its name above and its ticks to the left."""
    axes.plot([place, place], [0, 1], color=INK, linewidth=0.8, zorder=6)
    axes.text(place, 1.07, name, ha="center", va="bottom", fontsize=9, zorder=8)
    paper = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.78, "pad": 1.0}
    for height, text in ticks:
        axes.plot([place - 0.02, place], [height, height], color=INK, linewidth=0.8, zorder=6)
        axes.text(place - 0.04, height, text, ha="right", va="center", fontsize=8, zorder=7, bbox=paper)


def _metric_axis(axes: Axes, place: int, scale: Scale, summary: dict[str, Any]) -> None:
    """The last axis, its colours beside it: what the lines' colours mean; better is up."""
    steps = np.linspace(0, 1, 65)
    for low, high in zip(steps, steps[1:], strict=False):
        # A little higher than its step, or the browser shows seams between them.
        box = Rectangle((place, low), 0.06, min(1 - low, high - low + 0.004), color=GOOD((low + high) / 2))
        box.set(linewidth=0, zorder=5)
        axes.add_patch(box)
    name = metric_name(scale.metric)
    axes.plot([place, place], [0, 1], color=INK, linewidth=0.8, zorder=6)
    axes.text(place, 1.07, name, ha="center", va="bottom", fontsize=9, zorder=8)
    low, high = sorted((scale.worst, scale.best))
    for tick in MaxNLocator(nbins=6).tick_values(low, high):
        if low <= tick <= high and (scale.goodness(tick) > 0.04 or not scale.cut):
            text = tick_text(tick, scale.metric)
            axes.text(place + 0.09, scale.goodness(tick), text, ha="left", va="center", fontsize=8, zorder=7)
    if scale.cut:
        text = f"{'≥' if lower_is_better(scale.metric) else '≤'} {metric_text(scale.worst, scale.metric)}"
        axes.text(place + 0.09, -0.055, text, ha="left", va="center", fontsize=8, zorder=7)
    baseline = baseline_of(summary)
    if baseline is not None and low <= baseline <= high:
        height = scale.goodness(baseline)
        axes.plot(
            [place - 0.05, place + 0.08], [height, height], color=COLOURS["hard"], linewidth=2.4, zorder=8
        )
