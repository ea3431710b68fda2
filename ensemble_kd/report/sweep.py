"""What a sweep found: its trials best first, the best value so far, and the settings that it searched."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ensemble_kd.report.pieces import plain

STATES = ("finished", "stopped", "failed")
"""In the order of a ranking: a stopped trial's value is of an earlier epoch, a failed one has none."""


def sweep_section(summary: dict[str, Any]) -> dict[str, Any]:
    """What report.json holds about the sweep: all but the histories, the trials best first."""
    summary = plain(summary)
    metric, trials = summary["metric"], best_first(summary)
    rows = [{key: value for key, value in trial.items() if key != "history"} for trial in trials]
    winner, baseline = (_named(rows, summary.get(key)) for key in ("winner", "baseline"))
    difference = None
    if winner and baseline and None not in (winner.get("value"), baseline.get("value")):
        difference = winner["value"] - baseline["value"]
    states = Counter(trial["state"] for trial in searched(trials))
    return {
        "metric": metric,
        "space": summary["space"],
        "search": summary["search"],
        "verdict": summary["verdict"],
        "winner": winner,
        "baseline": baseline,
        "difference": difference,
        "importances": summary.get("importances") or {},
        "counts": {"searched": states.total(), **{state: states[state] for state in STATES}},
        "best_so_far": best_so_far(trials, metric),
        "seconds": summary.get("seconds"),
        "trials": rows,
    }


def _named(trials: list[dict[str, Any]], name: str | None) -> dict[str, Any] | None:
    """The trial of that name without its members."""
    found = next((trial for trial in trials if trial["name"] == name), None)
    return found and {key: value for key, value in found.items() if key != "members"}


def lower_is_better(metric: str) -> bool:
    return metric == "validation_loss"


def searched(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the baselines on hard labels."""
    return [trial for trial in trials if trial.get("kind") != "hard"]


def best_first(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished trials by their value, then stopped ones by theirs, then failed ones.

    Of equal values the winner's comes first, then the one of lower validation loss, then the earlier trial.
    """
    sign = 1 if lower_is_better(summary["metric"]) else -1

    def rank(trial: dict[str, Any]) -> tuple[float, ...]:
        state, value, loss = trial["state"], trial.get("value"), trial.get("validation_loss")
        return (
            STATES.index(state) if state in STATES else len(STATES),
            value is None,
            0.0 if value is None else sign * value,
            trial["name"] != summary.get("winner"),
            loss is None,
            0.0 if loss is None else loss,
        )

    return sorted(plain(summary["trials"]), key=rank)


def best_so_far(trials: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Every improvement among the searched trials that finished: at which second, to what, by which trial."""
    sign = -1 if lower_is_better(metric) else 1
    done = [t for t in searched(trials) if t["state"] == "finished"]
    done = [t for t in done if t.get("value") is not None and t.get("ended") is not None]
    series: list[dict[str, Any]] = []
    # Of trials that end together, as fused ones do, only the best is a step.
    for trial in sorted(done, key=lambda t: (t["ended"], -sign * t["value"])):
        if not series or sign * trial["value"] > sign * series[-1]["value"]:
            series.append({"seconds": trial["ended"], "value": trial["value"], "trial": trial["name"]})
    return series


# --------------------------------------------------------------------------------------------- dimensions


@dataclass(frozen=True)
class Dimension:
    """One searched setting, as an axis."""

    path: str
    name: str
    """The path's last part, where no other setting ends alike."""
    categories: list[str]
    """Labels of its values in order; empty for a number."""
    log: bool = False
    low: float = 0.0
    high: float = 1.0

    def position(self, value: Any) -> float:
        """The value as a number along the axis: itself, or the place of its category."""
        return float(self.categories.index(label(value))) if self.categories else float(value)


def dimensions(summary: dict[str, Any]) -> list[Dimension]:
    """The searched settings in the order of the space, with limits from the space and from the trials."""
    tried = [trial.get("parameters") or {} for trial in searched(plain(summary["trials"]))]
    space = summary["space"]
    paths = list(dict.fromkeys([*space, *(path for parameters in tried for path in parameters)]))
    names = short_names(paths)
    found = []
    for path in paths:
        values = [parameters[path] for parameters in tried if path in parameters]
        if values:
            found.append(_dimension(path, names[path], space.get(path), values))
    return found


def _dimension(path: str, name: str, spec: Any, values: list[Any]) -> Dimension:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        # As the space lists them where it is a list; the trials' order would be the search's whim.
        labels = [label(value) for value in spec] if isinstance(spec, list) else []
        labels += sorted({label(value) for value in values} - set(labels))
        return Dimension(path, name, list(dict.fromkeys(labels)))
    kind, limits = _range(spec)
    low, high = min([*limits, *values]), max([*limits, *values])
    # A list of numbers says nothing about its scale: over a factor of 20 they are best seen by factors.
    log = low > 0 and (kind.startswith("log") or (not kind and high / low >= 20))
    return Dimension(path, name, [], log, float(low), float(high))


def _range(spec: Any) -> tuple[str, list[float]]:
    """`loguniform(0.5, 20)` as ("loguniform", [0.5, 20.0]); no limits for what is not a range."""
    number = r"\s*([-+.\deE]+)\s*"
    found = re.fullmatch(rf"\s*((?:log)?(?:uniform|integers))\({number},{number}\)\s*", str(spec))
    try:
        return (found[1], [float(found[2]), float(found[3])]) if found else ("", [])
    except ValueError:
        return "", []


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """`training.learning_rate` as `learning_rate` where only one path ends so, else the whole path."""
    ends = {path: path.rpartition(".")[2] for path in paths}
    count = Counter(ends.values())
    return {path: end if count[end] == 1 else path for path, end in ends.items()}


# ----------------------------------------------------------------------------------------------- as text


def label(value: Any) -> str:
    """A parameter's value in few characters."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings_text(trial: dict[str, Any], names: dict[str, str]) -> str:
    """`temperature 3.2, alpha 0.8`."""
    return ", ".join(f"{names.get(k, k)} {label(v)}" for k, v in (trial.get("parameters") or {}).items())


def metric_text(value: float | None, metric: str, error: float | None = None, sign: str = "") -> str:
    """`95.12% ± 0.30`, a loss with four digits; `sign="+"` for a difference, in points."""
    if value is None:
        return "–"
    scale, digits, unit = (1, 4, "") if lower_is_better(metric) else (100, 2, " points" if sign else "%")
    text = f"{scale * value:{sign}.{digits}f}{unit}"
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"
