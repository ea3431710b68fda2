"""Did distillation help, by how much, is that more than noise, and what limited it? In plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble_kd.train.statistics import Interval, shown

NEARLY_ALL = 0.9
"""Share of the gap from which on the ensemble, not the student, is what limits."""
MOST_CAUSES = 2
"""Told in a verdict; the page has them all."""


@dataclass(frozen=True)
class Gap:
    """The ensemble against the student on hard labels, on test rows."""

    share: float | None = None
    """Part of the gap that the distilled student recovered; None where there is none."""
    reason: str | None = None
    """Why there is none."""
    advantage: Interval | None = None
    """Ensemble less student on hard labels; None where the ensemble is not known."""
    causes: Sequence[str] = ()
    """Why the ensemble knows no more, as the stage `gap` found on validation rows."""
    chosen: bool = False
    """Whether temperature, alpha and the share of pseudo-labels were chosen on validation rows."""
    softened: bool = True
    """Whether there is a temperature: labels are classes."""
    falling: float | None = None
    """By which share the distilled student's validation loss fell in the last quarter of its epochs."""
    read: bool = True
    """Whether the student learned from the ensemble, and not from its peers alone."""


def verdict(
    difference: Interval, gap: Gap, over_pseudo_labels: Interval | None = None, noun: str = "accuracy"
) -> str:
    """A few sentences; `difference` is distilled less hard labels, `noun` what the points are of.

    `not shown` is an interval that holds 0; `did not help` one below 0, or one so narrow around 0 that a gain
    worth having is ruled out.
    """
    points, told = _points(abs(difference.points)), shown(difference)
    change = f"{points} {'more' if difference.points >= 0 else 'less'} {noun}"
    if difference.outcome == "helped":
        text = f"Distillation helped: {points} more {noun} than the same student on hard labels {told}."
    elif difference.outcome == "hurt":
        text = (
            f"Distillation did not help here: it cost {points} of {noun} against the same student on hard "
            f"labels {told}."
        )
    elif difference.negligible:
        text = (
            f"Distillation did not help here: {change} than the same student on hard labels, and not more "
            f"than {difference.margin:g} points either way {told}."
        )
    else:
        text = (
            f"A gain from distillation is not shown: {change} than the same student on hard labels is within "
            f"the noise {told}."
        )
    if not gap.read:
        return text + " It did not learn from the teachers, but from what learned together with it."
    if gap.share is not None:
        noise = gap.advantage is not None and gap.advantage.outcome != "helped"
        within = ", a gap that is within the noise itself" if noise else ""
        text += f" It recovered {100 * gap.share:.0f}% of the gap to the ensemble{within}."
    elif gap.reason:
        text += f" Gap recovered: not defined, {gap.reason}."
    if over_pseudo_labels is not None:
        text += _over_pseudo_labels(over_pseudo_labels)
    return text + _limit(gap, over_pseudo_labels)


def _over_pseudo_labels(p: Interval) -> str:
    told = f"(95% interval {_interval(p)})"
    return {
        "helped": f" Soft targets add {_points(p.points)} over the ensemble's hard pseudo-labels {told}.",
        "hurt": f" Soft targets are {_points(-p.points)} worse than hard pseudo-labels {told}.",
        "no difference shown": f" Soft targets against the ensemble's hard pseudo-labels: "
        f"{p.points:+.2f} points, within the noise {told}.",
    }[p.outcome]


def _limit(gap: Gap, over_pseudo_labels: Interval | None) -> str:
    """What a larger gain would take, in a sentence or two; empty where the ensemble is not known."""
    if gap.advantage is None:
        return ""
    start = " What limits the gain: "
    more = f"{_points(gap.advantage.points)} above hard labels"
    if gap.advantage.outcome != "helped":
        text = f"{start}the ensemble, which is not shown to know more than the student on hard labels"
        text += f" ({gap.advantage.points:+.2f} points, 95% interval {_interval(gap.advantage)})."
        if gap.causes:
            text += f" Likely: {'; '.join(gap.causes[:MOST_CAUSES])}."
        return text
    share = 1.0 if gap.share is None else gap.share
    if share >= NEARLY_ALL:
        return f"{start}the ensemble, {more}: the student has nearly all of that, so take better teachers."
    if gap.falling is not None:
        return (
            f"{start}the student's training, whose validation loss was still falling at the end (by "
            f"{100 * gap.falling:.0f}% over the last quarter of the epochs); train it longer."
        )
    if share <= 0:
        return f"{start}how the ensemble is handed on: it is {more}, and who learns from it is not; " + (
            "bring rows without labels." if gap.chosen else "choose temperature and alpha: set them to auto."
        )
    if over_pseudo_labels is not None and over_pseudo_labels.outcome != "helped":
        remedy = "." if gap.chosen else "; try another temperature, or a share of pseudo-labels (auto)."
        return (
            f"{start}the softness: the student learns no more from it than from the ensemble's bare "
            f"answers{remedy}"
        )
    softer = " or another temperature" if gap.softened and not gap.chosen else ""
    return (
        f"{start}the student, which takes {100 * share:.0f}% of what the ensemble has, {more}; a larger "
        f"student{', more' if softer else ' or more'} rows without labels{softer} may take more."
    )


def _points(value: float) -> str:
    return f"{value:.2f} points"


def _interval(interval: Interval) -> str:
    return f"{interval.low:+.2f} to {interval.high:+.2f}"
