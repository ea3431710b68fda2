"""Colours, axes and marks that the sweep's plots share.

Colour is the metric, from viridis without its ends: its violet would vanish on near-black, its yellow on
white. Bright is good, for an accuracy as for a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ensemble_kd.report.plots import COLOURS, INK, plain_text
from ensemble_kd.report.sweep import Dimension, lower_is_better, searched

GOOD = LinearSegmentedColormap.from_list("good", matplotlib.colormaps["viridis"](np.linspace(0.34, 0.87, 64)))


@dataclass(frozen=True)
class Scale:
    """From the worst value that is told apart to the best: colours, and limits of the axes."""

    metric: str
    worst: float
    best: float
    cut: bool
    """Whether trials are worse than `worst`: outliers, which would leave the others one colour."""

    def goodness(self, value: float) -> float:
        """1 for the best, 0 for the worst and what is worse still."""
        return min(1.0, max(0.0, (value - self.worst) / (self.best - self.worst)))

    def colour(self, value: float) -> tuple[float, ...]:
        return tuple(GOOD(self.goodness(value)))


def scale_of(summary: dict[str, Any]) -> Scale | None:
    """None where no searched trial has a value.

    Outliers are below the lower quartile by 1.5 times the range between the quartiles. A stopped trial's
    value, of an earlier epoch, sets no limit unless no trial finished.
    """
    metric = summary["metric"]
    sign = -1 if lower_is_better(metric) else 1
    valued = [trial for trial in searched(summary["trials"]) if trial.get("value") is not None]
    finished = [trial for trial in valued if trial["state"] == "finished"] or valued
    if not finished:
        return None
    values = np.array([sign * trial["value"] for trial in finished])
    low, high = np.percentile(values, [25, 75])
    kept = values[values >= low - 1.5 * (high - low)] if high > low else values
    worst, best = float(kept.min()), float(values.max())
    if best - worst < 1e-9:  # one trial, or all alike: all of them are the best
        worst = best - max(1e-3, 0.01 * abs(best))
    cut = any(sign * trial["value"] < worst for trial in valued)
    return Scale(metric, sign * worst, sign * best, cut)


def points(
    axes: Axes,
    places: dict[str, tuple[float, float]],
    trials: Sequence[dict[str, Any]],
    scale: Scale,
    summary: dict[str, Any],
) -> None:
    """Finished trials as discs, stopped ones small and hollow, failed ones crosses; a ring for the winner."""
    size = 46 if len(trials) <= 60 else 22
    handles: dict[str, Line2D] = {}
    for trial in reversed(trials):  # the best on top
        x, y = places[trial["name"]]
        value, state = trial.get("value"), trial["state"]
        if value is None or state == "failed":
            axes.scatter(x, y, s=0.6 * size, marker="x", color=INK, alpha=0.6, linewidth=1.0, clip_on=False)
            handles["failed"] = _handle(marker="x", color=INK, alpha=0.6)
        elif state == "finished":
            axes.scatter(
                x, y, s=size, color=scale.colour(value), edgecolor=INK, linewidth=0.4, zorder=3, clip_on=False
            )
            handles["finished"] = _handle(
                marker="o", color=GOOD(0.7), markeredgecolor=INK, markeredgewidth=0.4
            )
        else:
            colour = scale.colour(value)
            # Whole also at the edge, where a value beyond it is drawn.
            axes.scatter(
                x, y, s=0.45 * size, facecolor="none", edgecolor=colour, linewidth=1.2, clip_on=False
            )
            handles["stopped early"] = _handle(
                marker="o", markersize=4.5, color="none", markeredgecolor=GOOD(0.4), markeredgewidth=1.2
            )
        if trial["name"] == summary.get("winner"):
            axes.scatter(
                x, y, s=max(150, 4.2 * size), facecolor="none", edgecolor=INK, linewidth=1.6, zorder=4
            )
            ring = _handle(marker="o", markersize=10, color="none", markeredgecolor=INK, markeredgewidth=1.6)
            handles["winner"] = ring
    lines = [(line, str(line.get_label())) for line in axes.get_lines()]
    drawn = [(line, name) for line, name in lines if not name.startswith("_")]  # matplotlib's own names
    order = [name for name in ("winner", "finished", "stopped early", "failed") if name in handles]
    legend(axes, [(handles[name], name) for name in order] + drawn)


def _handle(**style: Any) -> Line2D:
    return Line2D([], [], linestyle="none", **style)


def legend(axes: Axes, entries: list[tuple[Line2D, str]]) -> None:
    lines, names = zip(*entries, strict=True)
    axes.legend(
        lines,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.02),
        ncols=len(entries),
        fontsize=9,
        handletextpad=0.4,
        columnspacing=1.4,
    )


def setting_axis(axes: Axes, which: str, dimension: Dimension) -> None:
    """Limits, scale and ticks of an axis along which the dimension's values lie."""
    axis, limit = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    if dimension.categories:
        size = len(dimension.categories)
        every = max(1, size // 12)
        names = [plain_text(name, 16) for name in dimension.categories]
        axis.set_ticks(range(0, size, every), names[::every])
        limit(-0.6, size - 0.4)
        return
    low, high = dimension.low, dimension.high
    if dimension.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        margin = (high / low) ** 0.05 if high > low else 2.0
        limit(low / margin, high * margin)
        ticks = round_numbers(low, high, log=True)
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (high - low) if high > low else max(0.5, 0.1 * abs(high))
        limit(low - margin, high + margin)
        axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))


FACTORS = ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Round numbers within a power of ten, from many to few."""


def round_numbers(low: float, high: float, log: bool = False, most: int = 9) -> list[float]:
    """Ticks between two limits; the limits themselves where fewer than two round numbers lie between them."""
    ticks: list[float] = []
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factors in FACTORS:
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
            if len(ticks) <= most:
                break
        ticks = ticks[:: max(1, math.ceil(len(ticks) / most))]
    else:
        slack = 1e-9 * max(abs(low), abs(high))
        found = MaxNLocator(nbins=min(most, 5), steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        ticks = [float(tick) for tick in found if low - slack <= tick <= high + slack]
    ticks = sorted({float(f"{tick:.12g}") for tick in ticks})  # 0.3, not 0.30000000000000004
    return ticks if len(ticks) > 1 else sorted({low, high})


def value_axis(axes: Axes, scale: Scale, summary: dict[str, Any]) -> Callable[[float | None], float]:
    """The metric upwards, with the baseline dashed; returns where a value is drawn.

    That is at the edge if it lies beyond, and at the worse edge if there is none.
    """
    baseline = baseline_of(summary)
    values = [scale.worst, scale.best] + ([] if baseline is None else [baseline])
    errors = [
        trial["value"] + side * trial["standard_error"]
        for trial in searched(summary["trials"])
        for side in (-1, 1)
        if trial["name"] == summary.get("winner") and trial.get("standard_error") and trial.get("value")
    ]
    low, high = min(values + errors), max(values + errors)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.set_ylabel(metric_name(scale.metric))
    metric_format(axes.yaxis, scale.metric)
    if baseline is not None:
        axes.axhline(
            baseline,
            color=COLOURS["hard"],
            linewidth=1.4,
            linestyle=(0, (4, 3)),
            label="baseline, hard labels",
        )
    bottom, top = axes.get_ylim()
    worse = top if lower_is_better(scale.metric) else bottom
    return lambda value: worse if value is None else min(max(value, bottom), top)


def baseline_of(summary: dict[str, Any]) -> float | None:
    name = summary.get("baseline")
    return next((trial.get("value") for trial in summary["trials"] if trial["name"] == name), None)


def colour_bar(figure: Figure, axes: Axes, scale: Scale, summary: dict[str, Any]) -> None:
    """What the colours mean; a red line in it is the baseline."""
    lower = lower_is_better(scale.metric)
    low, high = sorted((scale.worst, scale.best))
    mappable = ScalarMappable(Normalize(low, high), GOOD.reversed() if lower else GOOD)
    extend = ("max" if lower else "min") if scale.cut else "neither"
    bar = figure.colorbar(mappable, ax=axes, extend=extend, fraction=0.06, pad=0.03, aspect=24)
    bar.outline.set_visible(False)
    bar.set_label(metric_name(scale.metric))
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    metric_format(bar.ax.yaxis, scale.metric)
    baseline = baseline_of(summary)
    if baseline is not None and low <= baseline <= high:
        bar.ax.axhline(baseline, color=COLOURS["hard"], linewidth=2.2)


def metric_name(metric: str) -> str:
    return plain_text(metric.replace("_", " "))


def metric_format(axis: Any, metric: str) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, place: tick_text(value, metric)))


def tick_text(value: float, metric: str) -> str:
    return f"{value:.6g}" if lower_is_better(metric) else f"{100 * value:.6g}%"
