"""Which class each of a teacher's outputs stands for: `classes_`, `classes=`, or the labels' own order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_kd.api.problems import InputValueError

SHOWN = 6


@dataclass(frozen=True)
class Task:
    """What is learned, as far as teachers have to know."""

    kind: str
    """`text`, `image` or `numeric`."""
    inputs: list[str]
    """Columns."""
    label: str
    classes: tuple[str, ...]
    """Their names in the data's order; empty where values are predicted."""
    natural: bool
    """Whether the labels are numbers or booleans, whose order is nobody's choice."""
    shape: tuple[int, int, int] | None = None
    """Of images."""
    resize: bool = False
    further: tuple[str, ...] = ()
    """More columns of labels, where several values are predicted."""

    @property
    def outputs(self) -> int:
        """Numbers that a teacher gives for a row."""
        return len(self.classes) or 1 + len(self.further)

    @property
    def labels(self) -> list[str]:
        """All columns of labels."""
        return [self.label, *self.further]


def spelt(value: Any) -> str:
    """A label as the data's classes are called: `3` for 3.0, `true` for True."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def said_order(classes: Any, index: int, count: int, task: Task) -> list[int] | None:
    """What `classes=` says of teacher `index` of `count`: the data's class of each output; None for nothing.

    `classes` is a list of labels for all teachers, or a dict or list of such lists. Raises ValueError for
    what is not each class of the data once.
    """
    if classes is None:
        return None
    where, mine = "classes", classes
    if isinstance(classes, Mapping):
        if unknown := [key for key in classes if not isinstance(key, int) or not 0 <= key < count]:
            raise InputValueError(
                f"classes: {unknown[0]!r} is no teacher; they are numbered 0 to {count - 1}"
            )
        where, mine = f"classes[{index}]", classes.get(index)
    elif len(classes) and all(
        isinstance(each, list | tuple | np.ndarray) or each is None for each in classes
    ):
        if len(classes) != count:
            raise InputValueError(f"classes: {len(classes)} lists for {count} teachers; give one for each")
        where, mine = f"classes[{index}]", classes[index]
    return None if mine is None else _order([spelt(each) for each in mine], where, task)


def _order(given: list[str], where: str, task: Task) -> list[int]:
    if sorted(given) != sorted(task.classes):
        unknown = [name for name in given if name not in task.classes]
        absent = [name for name in task.classes if name not in given]
        wrong = [f"unknown {some(unknown)}"] if unknown else []
        wrong += [f"without {some(absent)}"] if absent else []
        wrong += ["a class comes twice"] if len(set(given)) != len(given) else []
        raise InputValueError(
            f"{where}: {'; '.join(wrong)}; list each class of the data once ({some(task.classes)}), in the "
            "order of the teacher's outputs"
        )
    return [task.classes.index(name) for name in given]


def own_order(classes: Any, where: str, task: Task) -> list[int]:
    """By an estimator's `classes_`. Raises ValueError where these are not the data's classes."""
    names = [spelt(each) for each in np.asarray(classes).tolist()]
    if sorted(names) == sorted(task.classes):
        return [task.classes.index(name) for name in names]
    if task.natural and names == [str(i) for i in range(len(task.classes))]:
        return list(range(len(names)))  # numbers of classes that have names
    absent = [name for name in task.classes if name not in names]
    unknown = [name for name in names if name not in task.classes]
    apart = f"; it lacks {some(absent)}" if absent else ""
    apart += f"; the data has no {some(unknown)}" if unknown else ""
    if len(names) != len(task.classes):  # no order of its outputs helps
        raise InputValueError(
            f"{where}: it has {len(names)} classes_, the data {len(task.classes)} classes{apart}; fit it on "
            "rows of all classes of the data, and of no others"
        )
    raise InputValueError(
        f"{where}: its classes_ are {some(names)}, the data's classes {some(task.classes)}{apart}; fit it on "
        "these labels, or say which class each of its columns is: classes=[...]"
    )


def check_said(said: list[int], classes: Any, where: str, task: Task) -> None:
    """Raises ValueError where an estimator's `classes_` are the data's in another order than `said`."""
    names = [spelt(each) for each in np.asarray(classes).tolist()]
    told = [task.classes[i] for i in said]
    if sorted(names) == sorted(task.classes) and names != told:
        raise InputValueError(
            f"{where}: classes says that its outputs are {some(told)}, its classes_ {some(names)}; leave it "
            "out of classes: a dict {number of a teacher: [...]} for those without classes_"
        )


def assumed_order(where: str, task: Task) -> None:
    """Raises ValueError where nothing tells in which order the outputs stand."""
    if task.natural or not task.classes or all(re.fullmatch(r"-?\d+", name) for name in task.classes):
        return
    raise InputValueError(
        f"{where}: nothing says which class each of its {len(task.classes)} outputs is; the data's classes "
        f"are {some(task.classes)}, so say classes=[...] with them in the order of the teacher's outputs"
    )


def some(names: Sequence[str]) -> str:
    """The first `SHOWN` names in quotes, as a list for messages."""
    shown = ", ".join(repr(name[:60]) for name in names[:SHOWN])
    return f"[{shown}{', ...' if len(names) > SHOWN else ''}]"
