"""The sweep's part of the page: the verdict, the winner, plots, and a table of the trials."""

from __future__ import annotations

import html
from typing import Any

from ensemble_kd.report.pieces import dot, rounded, table, text_of, titled_plot
from ensemble_kd.report.plots import COLOURS
from ensemble_kd.report.sweep import (
    dimensions,
    label,
    lower_is_better,
    metric_text,
    settings_text,
    short_names,
)
from ensemble_kd.report.sweep_parallel import parallel_coordinates
from ensemble_kd.report.sweep_plots import (
    best_so_far_plot,
    heat_map,
    importance_bars,
    sweep_curves,
    value_plot,
)

MANY_TRIALS = 15
MANY_SETTINGS = 6
"""Settings up to which each has a column of its own."""
LONGEST_REASON = 300  # characters

_escape = html.escape


def sweep_html(section: dict[str, Any] | None, summary: dict[str, Any] | None) -> str:
    """`section` is the report's, `summary` the stage's with the histories, for the plots."""
    if not section:
        return ""
    names = short_names(list(section["space"]))
    verdict = section["verdict"]
    css_class = verdict["outcome"] if verdict["outcome"] in ("helped", "hurt") else "unsure"
    text = f'<h2>Sweep</h2><div class="verdict {css_class}"><p>{_escape(verdict["text"])}</p></div>'
    text += f"<p>{_escape(_winner(section, names))}</p><p class=quiet>{_escape(_effort(section))}</p>"
    text += _space(section)
    text += _plots(summary) if summary else ""
    return f"<section>{text}{_trials(section, names)}</section>"


def _winner(section: dict[str, Any], names: dict[str, str]) -> str:
    winner, baseline, metric = section["winner"], section["baseline"], section["metric"]
    if winner is None:
        return "There is no winner" + (
            "." if section["counts"]["finished"] else ": no searched trial finished."
        )
    text = f"Winner: {winner['name']}"
    settings = settings_text(winner, names)
    text += f" with {settings}" if settings else ""
    value = metric_text(winner.get("value"), metric, winner.get("standard_error"))
    text += f". Its {metric.replace('_', ' ')} is {value}"
    if baseline is None or winner["name"] == baseline["name"]:
        return text + "."
    value = metric_text(baseline.get("value"), metric, baseline.get("standard_error"))
    text += f" against {value} of the baseline on hard labels, {baseline['name']}"
    if section["difference"] is not None:
        text += f": a difference of {metric_text(section['difference'], metric, sign='+')}"
    return text + "."


def _effort(section: dict[str, Any]) -> str:
    counts = section["counts"]
    states = [f"{counts['finished']} finished"]
    states += [f"{counts['stopped']} stopped early"] if counts["stopped"] else []
    states += [f"{counts['failed']} failed"] if counts["failed"] else []
    plural = "" if counts["searched"] == 1 else "s"
    text = f"{counts['searched']:,} configuration{plural} ({section['search']}): {', '.join(states)}"
    if section["seconds"] is not None:
        text += f"; {_duration(section['seconds'])} in all"
    return f"{text}. Judged on validation rows; the test rows took no part."


def _space(section: dict[str, Any]) -> str:
    if not section["space"]:
        return ""
    rows = [
        ("", [f"<code>{_escape(path)}</code>", _escape(text_of(spec))])
        for path, spec in section["space"].items()
    ]
    inner = table(["", ""], rows, "text", header=False)
    return f"<details><summary>What was searched</summary>{inner}</details>"


def _plots(summary: dict[str, Any]) -> str:
    settings = len(dimensions(summary))
    others = " Trials differ in other settings too; of several in one cell the best is shown."
    axis = "loss" if lower_is_better(summary["metric"]) else "error, 100% less the accuracy"
    return "".join(
        [
            _noted(
                "By two settings",
                heat_map(summary),
                "Bright is good. The red line in the colour bar is the baseline."
                + (others if settings > 2 else ""),
            ),
            _noted(
                "By the searched setting",
                value_plot(summary),
                "Bars are standard errors over seeds. A trial at the edge lies beyond it.",
                "wide",
            ),
            _noted(
                "By all settings",
                parallel_coordinates(summary),
                "A line is a trial, bright is good; the winner is outlined, stopped trials are faint. Failed "
                "ones are left out. The red mark is the baseline.",
                "full" if settings > 5 else "wide",
            ),
            titled_plot("Which settings matter", importance_bars(summary)),
            _noted(
                "Learning curves of the trials",
                sweep_curves(summary),
                f"On the validation rows; the axis is the logarithm of the {axis}.",
                "wide",
            ),
            _noted(
                "Best so far",
                best_so_far_plot(summary),
                "A point is a trial at its end. Stopped trials do not count: their value is of an earlier "
                "epoch. A trial at the edge lies beyond it.",
                "wide",
            ),
        ]
    )


def _noted(title: str, plot: str, note: str, size: str = "") -> str:
    return titled_plot(title, plot, size) + (f"<p class=quiet>{note}</p>" if plot else "")


def _other(value: float | None, metric: str) -> str:
    return rounded(value) if metric == "validation_loss" else metric_text(value, metric)


def _trials(section: dict[str, Any], names: dict[str, str]) -> str:
    metric = section["metric"]
    other: str | None = "validation_accuracy" if lower_is_better(metric) else "validation_loss"
    if all(trial.get(other) is None for trial in section["trials"]):  # labels are values
        other = None
    paths = list(dict.fromkeys(path for t in section["trials"] for path in t.get("parameters") or {}))
    paths = [path for path in section["space"] if path in paths]
    columns = paths if len(paths) <= MANY_SETTINGS else []
    rows = []
    for trial in section["trials"]:
        parameters = trial.get("parameters") or {}
        settings = [_escape(label(parameters[p])) if p in parameters else "–" for p in columns]
        cells = [
            _name(trial, section),
            *(settings if columns else [_escape(settings_text(trial, names)) or "–"]),
            metric_text(trial.get("value"), metric, trial.get("standard_error")),
            *([] if other is None else [_other(trial.get(other), other)]),
            text_of(trial.get("epochs")),
            _escape(_state(trial)),
        ]
        is_winner = section["winner"] is not None and trial["name"] == section["winner"]["name"]
        rows.append((' class="shipped"' if is_winner else "", cells))
    head = ["trial", *([names[p] for p in columns] or ["settings"])]
    head += [name.replace("_", " ") for name in (metric, other) if name] + ["epochs", "state"]
    css_class = "trials" if columns else "trials together"
    text = "<h2>Trials, best first</h2>" + table(head, rows[:MANY_TRIALS], css_class)
    if len(rows) > MANY_TRIALS:
        rest = table(head, rows[MANY_TRIALS:], css_class)
        text += f"<details><summary>The other {len(rows) - MANY_TRIALS:,} trials</summary>{rest}</details>"
    return text


def _name(trial: dict[str, Any], section: dict[str, Any]) -> str:
    """With a dot in the colour of its role where it has one, and a transparent dot to stay in line."""
    role, colour = ("hard labels", COLOURS["hard"]) if trial.get("kind") == "hard" else ("", "none")
    for key, other in (("baseline", "hard"), ("winner", "distilled")):
        if section[key] is not None and section[key]["name"] == trial["name"]:
            role, colour = key, COLOURS[other]
    return dot(colour) + _escape(trial["name"] + (f" ({role})" if role else ""))


def _state(trial: dict[str, Any]) -> str:
    reason = " ".join(str(trial.get("reason") or "").split())
    if len(reason) > LONGEST_REASON:
        reason = reason[: LONGEST_REASON - 1] + "…"
    return f"{trial['state']}: {reason}" if reason else trial["state"]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds > 3 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
