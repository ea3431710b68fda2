"""What a run will take, and a plan that fits a given time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from ensemble_kd.config.auto import untried
from ensemble_kd.config.student import AUTO_FIELDS
from ensemble_kd.errors import InputError
from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.counts import Rows
from ensemble_kd.guess.pace import Pace, local, side_of, tokens_of, width_of
from ensemble_kd.guess.steps import epochs_of

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
START = 10.0
"""Seconds until the workers of a stage run."""
CHOOSING = 0.9
"""Of the students' own time, at most, for what is `auto`."""
STARTED = ("teachers", "gap", "soft-targets", "student")
READ = 20_000
"""Rows a second that are read and prepared."""
TABLE = 0.1
"""A word piece by itself, against a text: each of a vocabulary goes through the teacher once."""
MARGIN = 1.15
"""What a run takes beyond its steps: checkpoints, tracking, a machine that is not always free."""


@dataclass(frozen=True)
class Line:
    """One stage of the plan."""

    stage: str
    work: str
    seconds: float


@dataclass(frozen=True)
class Lever:
    """One thing that makes a run shorter."""

    path: str
    smaller: Callable[[Any], Any]
    """The next smaller value."""
    larger: Callable[[Any], Any]
    """A value that is a little larger: what gives time back that is left over."""
    floors: tuple[float, float]
    """What it does not go below, at first and where all else is not enough; of epochs as shares."""
    harm: float
    """How much is lost by it, compared with the others."""


def fewer(value: int) -> int:
    return value - 1


def shorter(value: int) -> int:
    return max(1, int(value * 0.75))


def narrower(value: int) -> int:
    return value - 4


def coarser(value: list[int]) -> list[int]:
    return [side - 8 for side in value]


def more(value: int) -> int:
    return value + 1


def longer(value: int) -> int:
    return value + max(1, value // 10)


def wider(value: int) -> int:
    return value + 4


def finer(value: list[int]) -> list[int]:
    return [side + 8 for side in value]


def sooner(value: int) -> int:
    return value - 16


def later(value: int) -> int:
    return value + 16


def part(value: float) -> float:
    return round(value * 0.75, 3)


def larger_part(value: float) -> float:
    return round(value / 0.75, 3)


TREE = 0.005
"""Seconds for a tree of one class, by and large: to grow it and to ask it."""
AUTO_PATHS = tuple(f"student.{name}" for name in AUTO_FIELDS)
NOT_CHOSEN = 0.3
"""How much is lost where T, alpha and the share of pseudo-labels keep their defaults, as `Lever.harm`."""
LEAST_STEPS = (300, 150)
"""Below which no network learns anything, at first and where all else is not enough."""
LEVERS = (
    Lever("data.text.max_length", sooner, later, (128, 48), 1.0),
    Lever("data.image.resize", coarser, finer, (48, 32), 1.0),
    Lever("teachers.model.width", narrower, wider, (28, 24), 0.7),
    Lever("teachers.num_members", fewer, more, (2, 1), 1.0),
    Lever("teachers.training.epochs", shorter, longer, (0.5, 0.2), 1.0),
    Lever("teachers.fraction", part, larger_part, (0.5, 0.1), 1.0),
    Lever("soft_targets.views", shorter, longer, (8, 2), 0.4),
    Lever(
        "student.seeds", fewer, more, (3, 1), 0.5
    ),  # of two, the interval shows no gain below tens of points
    Lever("student.training.epochs", shorter, longer, (0.4, 0.15), 0.8),
)


def seconds_of(text: str) -> float:
    """`30m`, `90s`, `1.5h`, `1h30m`. Raises InputError for anything else."""
    if not isinstance(text, str):  # from Python: 60 may be seconds or minutes
        raise InputError(f"--budget: {text!r} has no unit; give a text with one, as in 30m, 90s, 2h or 1h30m")
    found = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    if not found or "".join(a + b for a, b in found) != text.strip().lower():
        raise InputError(f"--budget: {text[:40]!r} is no time; give one as in 30m, 90s, 2h or 1h30m")
    total = sum(float(number) * UNITS[unit] for number, unit in found)
    if not total > 0:
        raise InputError(f"--budget: {text[:40]!r} leaves no time at all; give one as in 30m")
    return total


def shown(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------------------------------------- the plan


def plan(raw: dict[str, Any], rows: Rows, pace: Pace | None) -> list[Line]:
    """The stages of a run with these settings; without a pace no seconds are known (0)."""
    speed = pace or Pace(0, 0, 0, 0, 1)
    teachers, student = raw["teachers"], raw["student"]
    kinds = [{"count": 1, "model": teachers["model"]} | kind for kind in teachers.get("kinds", [])]
    members, trees = teachers["num_members"], [kind for kind in kinds if kind["model"]["name"] == "trees"]
    members += sum(kind["count"] for kind in kinds if kind not in trees)
    views = raw.get("soft_targets", {}).get("views", 1)
    seen = round(rows.labelled * teachers.get("fraction", 1.0))
    area = (side_of(raw) / speed.side) ** 2 if speed.side else speed.share_of(tokens_of(raw))
    wide = area * (width_of(raw) / speed.width) ** 2 if speed.width else area
    lines = [Line("data", f"{rows.transfer:,} rows", 3 + rows.transfer / READ)]
    epochs, student_epochs = epochs_of(raw, rows)
    each = epochs * (seen * speed.teacher_train + rows.validation * speed.teacher_predict)
    each += (rows.validation + rows.test) * speed.teacher_predict
    rounds = -(-members // speed.workers)
    given = teachers.get("source", "train") == "predictions"  # they cost no step and no pass
    if given:
        members, wide, trees = len(teachers["predictions"]["train"]), 0.0, []
    said = f"{members} given" if given else f"{members} x {seen:,} rows x {epochs} epochs"
    grown = sum(kind["count"] * kind["model"].get("rounds", 200) for kind in trees) * max(
        1, len(rows.classes)
    )
    said += f", and {grown:,} trees" if grown else ""
    lines.append(Line("teachers", said, wide * rounds * each + grown * TREE / speed.workers))
    answers = rows.transfer * views * members
    asked = members + sum(kind["count"] for kind in trees)
    said = f"{asked} teacher{'s' if asked > 1 else ''} on {rows.transfer:,} rows" + (
        f" x {views} views" if views > 1 else ""
    )
    answered = Line("soft-targets", said, wide * answers * speed.teacher_predict / speed.workers)
    roles = roles_of(raw, rows.transfer > rows.labelled, views)
    seeds = student.get("seeds", 1)
    each = student_epochs * (rows.transfer * speed.student_train + rows.validation * speed.student_predict)
    table = 30_000 * TABLE * speed.teacher_predict if student["model"].get("start") else 0.0
    for stage, some in (("gap", ["hard"]), ("student", [role for role in roles if role != "hard"])):
        rounds = -(-seeds * len(some) // speed.workers)
        said = f"{seeds} x ({', '.join(some)}) x {rows.transfer:,} rows x {student_epochs} epochs"
        lines.append(Line(stage, said, area * rounds * each + (table if stage == "gap" else 0)))
        lines += [answered] if stage == "gap" else []
    if "auto" in (student.get(name) for name in AUTO_FIELDS):
        trained = sum(line.seconds for line in lines if line.stage in ("gap", "student")) - table
        line = Line("choose", "T, alpha and pseudo-labels, on validation rows", CHOOSING * trained)
        lines.insert(-1, line)
    lines.append(Line("report", f"{rows.test:,} test rows", 5 + 0.0))
    if pace is None:
        return [Line(line.stage, line.work, 0.0) for line in lines]
    waits = [] if local(raw) else [stage for stage in STARTED if not (given and stage == "teachers")]
    return [
        replace(line, seconds=MARGIN * line.seconds + (START if line.stage in waits else 0)) for line in lines
    ]


def roles_of(raw: dict[str, Any], unlabelled: bool, views: int) -> list[str]:
    """The students of each seed, as the student stage trains them."""
    munged = raw.get("data", {}).get("augment", {}).get("munge", 0) > 0
    roles = ["distilled", "hard"] + (["plain"] if views > 1 and not munged else [])
    classes = raw["data"].get("target", "class") == "class"
    return roles + (["pseudo"] if unlabelled and classes else [])


def total(lines: list[Line]) -> float:
    return sum(line.seconds for line in lines)


# --------------------------------------------------------------------------------------------- fitting


def fit(settings: Commented, rows: Rows, pace: Pace, budget: float, fixed: set[str], said: str) -> None:
    """Make the run short enough, by what costs least. `fixed` are paths that the user has set.

    Raises InputError where it cannot be.
    """
    before, comments = deepcopy(settings.raw), dict(settings.comments)
    # What is chosen is mostly the default; the steps that its time buys are worth more once others are cut.
    for chosen, last_resort in ((True, 0), (False, 0), (False, 1)):
        settings.raw, settings.comments = deepcopy(before), dict(comments)
        if not chosen:
            _choose_nothing(settings, rows, fixed)
        while total(plan(settings.raw, rows, pace)) > budget:
            if (step := _best(settings, before, rows, pace, fixed, last_resort)) is None:
                break
            settings.set(*step)
            if step[0].endswith(".epochs"):  # a number now, which min_steps has no part in
                settings.drop(step[0].replace("epochs", "min_steps"))
        if total(plan(settings.raw, rows, pace)) <= budget:
            break
    _give_back(settings, before, rows, pace, budget)
    lines = plan(settings.raw, rows, pace)
    if total(lines) > budget:
        raise InputError(_too_short(settings.raw, rows, pace, lines, said))
    for lever in LEVERS:
        old, new = _value(before, lever.path, rows), _value(settings.raw, lever.path, rows)
        if new is not None and new != old:
            comment = f"{new} in place of {old}: fits --budget {said}."
            own = settings.comments.get(lever.path)
            settings.comments[lever.path] = f"{comment} {own}" if own else comment
    for path in AUTO_PATHS:
        if Commented(before).get(path) == "auto" and (value := settings.get(path)) != "auto":
            settings.comments[path] = f"{value:g} in place of auto: fits --budget {said}."


def _give_back(settings: Commented, before: dict[str, Any], rows: Rows, pace: Pace, budget: float) -> None:
    """Undo cuts while time is left, in small steps: first what takes least of it for what it is worth."""
    original = Commented(before)
    while True:
        now = total(plan(settings.raw, rows, pace))
        found: list[tuple[float, dict[str, Any]]] = []
        for harm, change in _undone(settings, original, rows):
            trial = Commented(deepcopy(settings.raw))
            trial.set_all(change)
            seconds = total(plan(trial.raw, rows, pace))
            if seconds <= budget:
                found.append(((seconds - now) / harm, change))
        if not found:
            return
        settings.set_all(min(found, key=lambda each: each[0])[1])


def _undone(settings: Commented, original: Commented, rows: Rows) -> Iterator[tuple[float, dict[str, Any]]]:
    """What can be undone of each cut by itself: how much is won by it, and the settings."""
    for lever in LEVERS:
        value, first = _value(settings.raw, lever.path, rows), _value(original.raw, lever.path, rows)
        if value is None or value == first:
            continue
        new = min(first, lever.larger(value))
        change = {lever.path: new}
        if new == first:  # `auto`, and what belongs to it
            paths = [lever.path, lever.path.replace("epochs", "min_steps")]
            change = {path: original.get(path) for path in paths}
        yield lever.harm * (1 - _least(value) / _least(new)), change
    chosen = {path: "auto" for path in AUTO_PATHS if original.get(path) == "auto" != settings.get(path)}
    if chosen:
        yield NOT_CHOSEN, chosen


def _choose_nothing(settings: Commented, rows: Rows, fixed: set[str]) -> None:
    """Set what is `auto` to what stands unless something else is shown to be better."""
    munged = (settings.get("data.augment.munge") or 0) > 0
    standing = untried(rows.transfer > rows.labelled, munged)
    for path, value in zip(AUTO_PATHS, map(standing._asdict().get, AUTO_FIELDS), strict=True):
        if settings.get(path) == "auto" and not fixed & {path, "student"}:
            settings.set(path, value)


def _least(value: Any) -> float:
    return float(min(value) if isinstance(value, list) else value)


def _steps(settings: Commented, path: str, new: Any, rows: Rows) -> float:
    """Optimiser steps of the network that a lever is about, once it is pulled; no bound for others."""
    trial = Commented(deepcopy(settings.raw))
    trial.set(path, new)
    block = path.split(".")[0]
    if path not in (f"{block}.training.epochs", f"{block}.fraction"):
        return math.inf
    seen = rows.labelled * (trial.get("teachers.fraction") or 1.0) if block == "teachers" else rows.transfer
    epochs = epochs_of(trial.raw, rows)[block == "student"]
    return epochs * seen / trial.get(f"{block}.training.batch_size")


def _value(raw: dict[str, Any], path: str, rows: Rows) -> Any:
    """A setting as a number; None where it is not there."""
    if path.endswith(".epochs"):
        return epochs_of(raw, rows)[path.startswith("student")]
    value = Commented(raw).get(path)
    return 1.0 if value is None and path.endswith(".fraction") else value


def _best(
    settings: Commented, before: dict[str, Any], rows: Rows, pace: Pace, fixed: set[str], last_resort: int
) -> tuple[str, Any] | None:
    """The change that saves most time for what it costs in quality."""
    least = LEAST_STEPS[last_resort]
    now = total(plan(settings.raw, rows, pace))
    found: list[tuple[float, str, Any]] = []
    for lever in LEVERS:
        value, first = _value(settings.raw, lever.path, rows), _value(before, lever.path, rows)
        if lever.path == "teachers.fraction" and epochs_of(settings.raw, rows)[0] > 1:
            continue
        if value is None or any(lever.path.startswith(path) or path.startswith(lever.path) for path in fixed):
            continue
        floor = lever.floors[last_resort] * (first if lever.floors[0] < 1 else 1)
        new = lever.smaller(value)
        if new >= value or _least(new) < floor or _steps(settings, lever.path, new, rows) < least:
            continue
        trial = Commented(deepcopy(settings.raw))
        trial.set(lever.path, new)
        saved = now - total(plan(trial.raw, rows, pace))
        if saved > 0:
            harm = lever.harm * (1 - _least(new) / _least(value))
            found.append((saved / harm, lever.path, new))
    best = max(found, key=lambda each: each[0], default=None)
    return None if best is None else (best[1], best[2])


def _too_short(raw: dict[str, Any], rows: Rows, pace: Pace, lines: list[Line], said: str) -> str:
    by_stage = ", ".join(f"{line.stage} {shown(line.seconds)}" for line in lines)
    needed = total(lines)
    enough = f"{max(1, -(-int(needed * 1.1) // 60))}m"
    teacher = next(line for line in lines if line.stage == "teachers")
    return (
        f"--budget: {said} is too short for one teacher and a student on this data: the least is "
        f"{shown(needed)} ({by_stage}; {teacher.work}, with {pace.workers} workers that take "
        f"{1000 * pace.teacher_train:.1f} ms a row). Give --budget {enough}, or fewer rows"
    )
