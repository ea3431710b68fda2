"""Whether a search space fits the student: paths that name something, values that fields take."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ensemble_kd.errors import ConfigError
from ensemble_kd.space import NOT_SEARCHED, Dimension, Range, dimensions_of, to_text, value_text

Model = TypeVar("Model", bound=BaseModel)


# --------------------------------------------------------------------------------- dimensions to students


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path inside a block, with what stands there: blocks, lists and plain values."""
    inner: Any = ()
    if isinstance(value, BaseModel):
        inner = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for name, item in inner:
        here = f"{path}.{name}" if path else str(name)
        yield here, item
        yield from _fields(item, here)


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _unknown(path: str, fields: dict[str, Any]) -> str | None:
    """What is wrong with a path that names nothing; None where it names something."""
    parent, _, last = path.rpartition(".")
    # Keys of a free block, such as a custom model's options, cannot be checked here; nor can an objective's.
    if path in fields or (last and (parent == "objective" or isinstance(fields.get(parent), dict))):
        return None
    candidates = [p for p, v in fields.items() if not isinstance(v, BaseModel) and p not in NOT_SEARCHED]
    ranked = [(_likeness(last, c.rpartition(".")[2]), _likeness(path, c), c) for c in candidates]
    best = max(ranked, default=(0.0, 0.0, ""))
    if best[0] >= 0.7 and not last.isdigit() and not path.startswith("objective."):
        return f"unknown setting; did you mean {best[2]!r}?"
    while parent and parent not in fields:
        parent = parent.rpartition(".")[0]
    here = fields.get(parent)
    if isinstance(here, list):
        return f"unknown setting; {parent} has {len(here)} element(s), counted from 0"
    if parent and not isinstance(here, BaseModel | dict):
        return f"unknown setting; {parent} is {value_text(here)}, which has no parts"
    known = [p.rpartition(".")[2] for p in fields if p.rpartition(".")[0] == parent and p not in NOT_SEARCHED]
    return f"unknown setting; known {f'in {parent}' if parent else 'here'}: {', '.join(known)}"


def apply(student: Model, parameters: dict[str, Any]) -> Model:
    """A new student with the fields at the dotted paths replaced, such as `model.hidden.0`.

    Raises ConfigError for paths that name nothing, and pydantic's ValidationError for wrong values.
    """
    fields, data = dict(_fields(student)), student.model_dump()
    problems = []
    # Outer paths first, so that `objective` does not undo `objective.FIELD`.
    for path in sorted(parameters, key=lambda p: p.count(".")):
        *parents, last = path.split(".")
        if parents[:1] == ["objective"] and isinstance(data.get("objective"), str):
            data["objective"] = {"name": data["objective"]}
        problem, here = _unknown(path, fields), data
        if problem is None:
            try:
                for part in parents:
                    here = here[int(part)] if isinstance(here, list) else here[part]
                # A copy: `objective.FIELD` is written into what `objective` was set to.
                here[int(last) if isinstance(here, list) else last] = copy.deepcopy(parameters[path])
            except (KeyError, IndexError, TypeError):  # a replaced outer block without this part
                problem = "unknown setting once the other parameters are in place"
        if problem is not None:
            problems.append(f"sweep.space.{path}: {problem}")
    if problems:
        raise ConfigError(problems)
    return type(student).model_validate(data)


def _refused(student: BaseModel, path: str, value: Any) -> list[ErrorDetails]:
    """What pydantic has against one value of a field."""
    try:
        apply(student, {path: value})
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _value_problems(student: BaseModel, path: str, dimension: Dimension) -> list[str]:
    """What the field at `path` does not take of a dimension: one line for each value."""
    text = to_text(dimension)
    if isinstance(dimension, Range):
        # The ends of uniform(1, 9) are whole; this share of the way in, a value never is.
        inside = dimension.at((3 - math.sqrt(5)) / 2)
        if any(item["type"] == "int_from_float" for item in _refused(student, path, inside)):
            whole = dimension.kind.replace("uniform", "integers")
            return [f"takes whole numbers, got {text}; use {whole}(low, high)"]
        tried = [("low end of", dimension.low), ("high end of", dimension.high)]
    else:
        tried = [("in", value) for value in dimension.values]
    lines = []
    for place, value in tried:
        if items := _refused(student, path, value):
            items = [item for item in items if item["type"] != "literal_error"] or items  # `auto`
            # A union reports each branch.
            said = "; or ".join(dict.fromkeys(item["msg"][0].lower() + item["msg"][1:] for item in items))
            part = items[0]["input"]
            got = value_text(value) if part == value else f"{value_text(part)} in {value_text(value)}"
            lines.append(f"{said}, got {got} ({place} {text})")
    return lines


def problems(student: BaseModel, space: dict[str, str | list[Any]]) -> list[str]:
    """Everything wrong with a space for this student, one line each; empty where it can be searched.

    The fields of an objective are known in the torch rooms only and are not checked here.
    """
    dimensions, found = dimensions_of(space)
    fields = dict(_fields(student))
    for path, dimension in dimensions.items():
        outers = [
            p for p in dimensions if path.startswith(f"{p}.") and not isinstance(fields.get(p), BaseModel)
        ]
        outer = outers[0] if outers else None
        if why := NOT_SEARCHED.get(path) or NOT_SEARCHED.get(path.split(".")[0]):
            lines = [f"cannot be searched; {why}"]
        elif (unknown := _unknown(path, fields)) is not None:
            lines = [unknown]
        elif isinstance(fields.get(path), BaseModel):
            example = next(p for p in fields if p.startswith(f"{path}.") and p not in NOT_SEARCHED)
            lines = [f"a block, not a field; name a field of it, such as {example}"]
        elif outer is not None and (outer, path.count(".")) != ("objective", 1):
            lines = [f"part of {outer}, which is searched too; keep one of them"]
        else:
            lines = _value_problems(student, path, dimension)
        found += [f"sweep.space.{path}: {line}" for line in lines]
    return found
