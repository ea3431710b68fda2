"""`run --data PATH` and `init PATH`: from a path to a configuration as YAML, and its plan."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_kd.config import Config, apply_override, read_config
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.errors import ConfigError, EnsembleKDError, InputError
from ensemble_kd.guess.budget import Line, fit, plan, seconds_of, shown, total
from ensemble_kd.guess.choice import Choice, Request
from ensemble_kd.guess.pace import Pace, measure
from ensemble_kd.guess.remarks import remarks
from ensemble_kd.guess.settings import choose
from ensemble_kd.guess.told import found_lines
from ensemble_kd.redact import redacted

BUSY = 1.5
"""Wall clock over processor time from which on it is told."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """The options of the command line."""

    path: str
    label: str | None = None
    input: tuple[str, ...] = ()
    budget: str | None = None
    source: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As it would be typed after `ensemble-kd`."""
        said = [("--data", self.path), ("--label", self.label), *(("--input", name) for name in self.input)]
        said += [("--budget", self.budget), ("--source", self.source)]
        said += [("--set", assignment) for assignment in self.overrides]
        return " ".join(f"{option} {shlex.quote(value)}" for option, value in said if value)


@dataclass
class Made:
    """A configuration that was made for the data."""

    text: str
    """YAML, without what is secret in addresses."""
    config: Config
    choice: Choice
    lines: list[Line] = field(default_factory=list)
    pace: Pace | None = None


def make(asked: Asked, tell: Tell, warn: Tell, run: Callable[[str], Path | None] | None = None) -> Made:
    """Looks at the data, chooses, and fits the budget; tells what was found.

    `run` gives the folder of a run of this name, in which the pace is kept; without it, and without a budget,
    nothing is timed. Raises ConfigError or InputError with what was found and what to do.
    """
    budget = seconds_of(asked.budget) if asked.budget is not None else None
    wanted: dict[str, Any] = {}
    for assignment in asked.overrides:
        apply_override(wanted, assignment)
    choice = choose(request_of(asked, wanted))
    for line in found_lines(choice):
        tell(line)
    settings = choice.settings
    for assignment in asked.overrides:
        apply_override(settings.raw, assignment)
    fixed = {assignment.partition("=")[0].strip() for assignment in asked.overrides}
    for path in fixed:
        settings.comments[path] = "As --set says."
    odd: list[str] = []
    if problems := inspect_source(read_config(settings.text([]), "the configuration"), odd.append):
        raise InputError(problems)
    pace = _pace(choice, budget, settings.get("name"), run, warn)
    if budget is not None and pace is not None:
        fit(settings, choice.rows, pace, budget, fixed, str(asked.budget))
    text = settings.text(_head(asked, choice))
    config = read_config(text, "the configuration")
    for line in [*choice.notes, *remarks(choice.rows), *([] if run else odd)]:  # a run tells these itself
        warn(line)
    lines = plan(settings.raw, choice.rows, pace)
    return Made(redacted(text), config, choice, lines, pace)


def request_of(asked: Asked, wanted: dict[str, Any]) -> Request:
    """`wanted` are the overrides as blocks. Raises ConfigError for those that --data cannot take."""
    data = wanted.get("data") or {}
    if not isinstance(data, dict):
        raise ConfigError("--set data: set its fields one by one, as in data.label_fraction=0.2")
    if "path" in data or "source" in data:
        raise ConfigError("--set data.path: --data says where the data is; leave one of them out")
    columns = data.get("columns") or {}
    names = list(asked.input) or columns.get("input") or None
    labels = columns.get("label")
    labels = labels if isinstance(labels, list) else [labels]
    if asked.label and len(labels) > 1:
        raise ConfigError("--label: data.columns.label lists columns, too; leave one of them out")
    values = len(labels) > 1  # several columns are values, each a number
    return Request(
        asked.path,
        label=asked.label or (labels[0] if labels else None),
        further=tuple(labels[1:]),
        input=[names] if isinstance(names, str) else names,
        source=asked.source,
        target=data.get("target") or ("value" if values else None),
        wanted=wanted,
    )


def _pace(
    choice: Choice, budget: float | None, name: str, run: Callable[[str], Path | None] | None, warn: Tell
) -> Pace | None:
    if budget is None and run is None:
        return None
    try:
        found = measure(choice, run(name) if run is not None else None)
        if found.busy > BUSY:
            warn(
                f"this machine is busy: the timed steps took {found.busy:.1f} times as long as they worked, "
                "and the plan is for a machine that stays so"
            )
        return found
    except EnsembleKDError as error:
        if budget is not None:
            raise InputError(f"--budget: {error}; run without it") from error
        warn(f"no estimate of the time: {error}")
        return None


def _head(asked: Asked, choice: Choice) -> list[str]:
    name = choice.settings.get("name")
    return [
        f"ensemble-kd run {asked.command}",
        f"The recipe {choice.recipe}, and what was found in the data, with the reason for each choice. This "
        f"file runs by itself: ensemble-kd run FILE, which goes on with runs/{name} where that is there.",
    ]


def plan_lines(made: Made) -> list[tuple[str, str, str]]:
    """Stage, work, and the time it is thought to take."""
    rows = [(line.stage, line.work, shown(line.seconds) if made.pace else "") for line in made.lines]
    if made.pace is None:
        return rows
    workers = f"{made.pace.workers} worker{'s' if made.pace.workers > 1 else ''}"
    return [*rows, ("all", f"from some timed steps on this machine, {workers}", shown(total(made.lines)))]
