"""The search space of a sweep: which fields of the student to try, and over which values.

    temperature: loguniform(0.3, 20)
    training.learning_rate: loguniform(1e-4, 1e-2)
    model.hidden: choice([32], [64, 64])

A path names a field of `student`; its text is a `Range` or a `Choice`. The configuration checks spaces
with this module, so nothing here imports the configuration, torch, Ray or Optuna.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ensemble_kd.config_yaml import one_line
from ensemble_kd.config_yaml import parse as parse_yaml
from ensemble_kd.config_yaml import read as read_yaml
from ensemble_kd.errors import ConfigError
from ensemble_kd.paths import expanded, is_file

Kind = Literal["uniform", "loguniform", "integers", "logintegers"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FORMS = ", ".join(f"{kind}(low, high)" for kind in KINDS) + ", choice(a, b, ...) or a list"

MOST_CHOICES = 1000
"""Of one field: each is checked against the whole configuration."""
NOT_SEARCHED = {
    "seeds": "sweep.num_seeds says how many seeds each configuration gets; leave it out",
    "replicas_per_member": "it does not change the student, only how it is trained; leave it out",
    "generations": "trials learn from the ensemble itself, and the winner's chain follows; leave it out",
    "assistants": "trials learn from the ensemble itself, and the winner's chain follows; leave it out",
    "training.min_steps": "all trials have one number of epochs; search training.epochs",
    "model.name": "each architecture has fields of its own; run one sweep for each",
}
"""Fields of the student that no space may name, and why."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, evenly spread over the range or, for the log kinds, over its logarithm.

    Integer kinds hold ints and include both ends.
    """

    kind: Kind
    low: float | int
    high: float | int

    def at(self, share: float) -> float | int:
        """The value that lies `share` (0 to 1) of the way from low to high."""
        if self.kind.startswith("log"):
            value = math.exp((1 - share) * math.log(self.low) + share * math.log(self.high))
        else:
            value = (1 - share) * self.low + share * self.high
        if self.kind.endswith("integers"):
            value = round(value)
        return min(max(value, self.low), self.high)  # rounding errors must not leave the range

    def points(self, n: int) -> list[float | int]:
        """n >= 2 values in rising order from low to high; fewer where rounding makes some the same."""
        if n < 2:
            raise ValueError(f"a range needs 2 points or more, got {n}")
        inner = [self.at(i / (n - 1)) for i in range(1, n - 1)]
        return list(dict.fromkeys([self.low, *inner, self.high]))


@dataclass(frozen=True)
class Choice:
    """Values in the order given: numbers, strings, null, lists or blocks."""

    values: tuple[Any, ...]

    def points(self, n: int) -> list[Any]:
        """All the values, whatever n."""
        return list(self.values)


Dimension = Range | Choice

# ------------------------------------------------------------------------------------- text to dimension


def value_text(value: Any) -> str:
    """A value much as a user would write it: 0 for 0.0, null for None."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else repr(value)


def _numbers(value: Any) -> Any:
    """Strings that are finite numbers as numbers, also inside lists and blocks.

    YAML 1.1 wants 1.0e-3 and reads 1e-3 as a string.
    """
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        if not math.isfinite(number):
            return value
        return int(value) if re.fullmatch(r"[+-]?\d+", value) else number
    return value


def _key(value: Any) -> str:
    """The same text for the same value: 1 and 1.0 are the same, 1 and true are not."""

    def plain(item: Any) -> Any:
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        if isinstance(item, dict):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"a choice must be finite, got {item}; leave it out")
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(plain(value), sort_keys=True, default=repr)


def _choice(values: list[Any]) -> Choice:
    if len(values) > MOST_CHOICES:
        raise ValueError(f"{len(values):,} choices; name at most {MOST_CHOICES:,}, or give a range")
    if not values:
        raise ValueError("empty choice; name at least one value, for example choice(4, 8)")
    values = [_numbers(value) for value in values]
    keys = [_key(value) for value in values]
    twice = [value_text(v) for i, v in enumerate(values) if keys[i] in keys[:i]]
    if twice:
        raise ValueError(f"duplicate choices: {', '.join(twice)}; name each value once")
    return Choice(tuple(values))


def _range(kind: Kind, arguments: list[str], text: str) -> Range:
    if len(arguments) != 2:
        count = f"{len(arguments)} argument{'' if len(arguments) == 1 else 's'}"
        raise ValueError(f"{kind} takes two numbers, got {count} in {text}; write {kind}(low, high)")
    ends: list[float | int] = []
    for argument in arguments:
        try:
            number = float(argument)
        except ValueError:
            raise ValueError(f"not a number: {argument!r} in {text}; write {kind}(low, high)") from None
        if not math.isfinite(number):
            raise ValueError(f"not finite: {argument} in {text}; write a finite number")
        if kind.endswith("integers"):
            if not number.is_integer():
                raise ValueError(
                    f"{kind} takes whole numbers, got {argument} in {text}; "
                    f"round it or use {kind.replace('integers', 'uniform')}"
                )
            number = int(argument) if re.fullmatch(r"[+-]?\d+", argument) else int(number)
        ends.append(number)
    low, high = ends
    if low > high:
        raise ValueError(
            f"inverted: {value_text(low)} is above {value_text(high)} in {text}; "
            f"write {kind}({value_text(high)}, {value_text(low)})"
        )
    if low == high:
        raise ValueError(
            f"empty range {text}; write the value in the configuration itself or choice({value_text(low)})"
        )
    if kind.startswith("log") and low <= 0:
        raise ValueError(
            f"{kind} needs a low end above 0, got {value_text(low)} in {text}; raise it or use {kind[3:]}"
        )
    return Range(kind, low, high)


def parse(value: str | list[Any]) -> Dimension:
    """The dimension that a text such as loguniform(0.3, 20) or choice(a, b) says; a list is a choice.

    Raises ValueError, with one line, where it is none.
    """
    if isinstance(value, list):
        return _choice(value)
    match = re.fullmatch(r"\s*([\w.-]+)\s*\((.*)\)\s*", value, re.DOTALL) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"neither a range nor a choice, got {value!r}; write {FORMS}")
    name, inner = match[1], match[2]
    text = f"{name}({inner})"
    for kind in KINDS:
        if name == kind:
            return _range(kind, [a.strip() for a in inner.split(",")] if inner.strip() else [], text)
    if name != "choice":
        close = difflib.get_close_matches(name.lower(), [*KINDS, "choice"], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"write {FORMS}"
        raise ValueError(f"unknown function {name!r}; {hint}")
    try:
        values = parse_yaml(f"[{inner}]", "choice")
    except ConfigError as error:
        raise ValueError(f"cannot be read as YAML: {text}; write choice(a, b) or a list") from error
    return _choice(values)


def to_text(dimension: Dimension) -> str:
    """The text that `parse` reads back as the same dimension."""
    if isinstance(dimension, Range):
        return f"{dimension.kind}({value_text(dimension.low)}, {value_text(dimension.high)})"
    flow = yaml.safe_dump(
        list(dimension.values), default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False
    )
    return f"choice({flow.strip()[1:-1]})"


def dimensions_of(space: dict[str, str | list[Any]]) -> tuple[dict[str, Dimension], list[str]]:
    """The dimensions by path without `student.`, and what could not be read."""
    if not space:
        return {}, ["sweep.space: empty; name a field of student, such as temperature: loguniform(0.5, 20)"]
    dimensions: dict[str, Dimension] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for written, value in space.items():
        path = str(written).removeprefix("student.")
        if path in seen:
            problems.append(f"sweep.space.{path}: given twice, with and without 'student.'; keep one of them")
            continue
        seen.add(path)
        try:
            dimensions[path] = parse(value)
        except ValueError as error:
            problems.append(f"sweep.space.{path}: {error}")
    return dimensions, problems


def searched(space: dict[str, str | list[Any]]) -> set[str]:
    """The paths of a space, whether its dimensions can be read or not."""
    return {str(path).removeprefix("student.") for path in space}


def parse_space(space: dict[str, str | list[Any]]) -> dict[str, Dimension]:
    """The dimensions of a space by path, in its order; a leading `student.` is dropped.

    Raises ConfigError with every dimension that cannot be read.
    """
    dimensions, problems = dimensions_of(space)
    if problems:
        raise ConfigError(problems)
    return dimensions


def grid(dimensions: dict[str, Dimension], points_per_range: int) -> list[dict[str, Any]]:
    """Every combination of values; the last dimension changes fastest."""
    values = [dimension.points(points_per_range) for dimension in dimensions.values()]
    return [dict(zip(dimensions, combination, strict=True)) for combination in itertools.product(*values)]


def read_space(source: str | Path, spaces: Path) -> dict[str, Any]:
    """The space in a YAML file, given by its path or, for a shipped one in the folder `spaces`, its name.

    The dimensions are not checked yet. Raises ConfigError where there is no such file, or no block in it.
    """
    file = expanded(source, "sweep.space")
    if not is_file(source):  # a folder of that name hides no shipped space
        shipped = {path.stem: path for path in sorted(spaces.glob("*.yaml"))}
        if str(source) not in shipped:
            close = difflib.get_close_matches(str(source), shipped, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"shipped: {', '.join(shipped) or 'none'}"
            raise ConfigError(f"sweep.space: no such search space: {one_line(str(source), 200)}; {hint}")
        file = shipped[str(source)]
    raw = read_yaml(file, f"sweep.space: {file}")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"sweep.space: {file}: expected a block with lines such as temperature: loguniform(0.5, 20), "
            f"got {'nothing' if raw is None else type(raw).__name__}"
        )
    return raw
