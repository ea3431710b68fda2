"""Which column is to be predicted, and whether it holds classes or values; or why none can be."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.decode import single
from ensemble_kd.data.preprocess import meant
from ensemble_kd.errors import InputError
from ensemble_kd.guess.columns import Column, same_partition
from ensemble_kd.guess.inspect import Facts, spread
from ensemble_kd.guess.names import NOT_LABELS, is_id, label_rank, plain

MOST_CODES = 20
"""Whole numbers of up to so many values are classes, whatever they are; of more where they count from 0 or
1."""
HALF = 0.5
"""Share of different labels from which on they are almost all different."""
LOOKED_AT = 1000
"""Rows of validation and test."""


@dataclass(frozen=True)
class Label:
    """The column to be predicted."""

    column: Column
    target: str
    """`class` or `value`."""
    why: str


def find_label(facts: Facts, asked: str | None = None, target: str | None = None) -> Label:
    """`asked` names the column, `target` says class or value; None to find out.

    Raises InputError where there is none, or one that cannot be learned.
    """
    columns = facts.columns
    if asked is not None:
        if asked not in columns:
            raise InputError(
                f"--label: no column {asked!r}; the columns are {some(list(columns))}"
                f"{meant(asked, list(columns))}"
            )
        column, why = columns[asked], "as --label says"
    else:
        column, why = _found(facts)
    return Label(column, target or _kind(column, facts), why)


def _found(facts: Facts) -> tuple[Column, str]:
    columns = facts.columns
    if len(columns) == 1:
        only = next(iter(columns))
        raise InputError(
            f"--data: {facts.path} has one column only, {only!r}, so that there is nothing to predict; add a "
            "column of labels (empty in rows that have none)"
        )
    if len(facts.targets) > 1:
        names = [name for name in facts.targets if name in columns]
        raise InputError(
            f"--data: {facts.path} has several targets ({some(names)}), and a run predicts one; say which: "
            f"--label {quoted(names[0])}"
        )
    if facts.targets:
        return columns[facts.targets[0]], "the one target of targets.txt"
    named = [(rank, name) for name in columns if (rank := label_rank(name)) is not None]
    if {"x", "z"} <= {plain(name) for name in columns}:  # coordinates
        named = [(rank, name) for rank, name in named if plain(name) != "y"]
    for _, name in sorted(named, key=lambda pair: pair[0]):
        if columns[name].kind not in ("nothing", "other", "picture", "pixels"):
            return columns[name], "its name says so"
    return _by_values(facts)


def by_name(facts: Facts, label: Label) -> Label:
    """The column that says the same in words, where the classes are numbers that nothing else names."""
    column, table = label.column, facts.sample
    named = any(len(names) > column.high for _, names in facts.class_files) or column.name in facts.features
    if label.target != "class" or column.kind != "number" or named:
        return label
    for other in facts.columns.values():
        if not (other.kind == "text" and other.repeated and other.distinct == column.distinct):
            continue
        everywhere = all(other.name in names for names in facts.names.values() if column.name in names)
        if everywhere and same_partition(single(table[other.name]), single(table[column.name])):
            return Label(other, "class", f"{column.name!r} by name")
    return label


def _by_values(facts: Facts) -> tuple[Column, str]:
    """The only column whose values are few and repeated."""
    possible = [
        column
        for column in facts.columns.values()
        if column.repeated and plain(column.name) not in NOT_LABELS and not is_id(column.name)
    ]
    foreign = [column for column in possible if not _shared(facts, column.name)]
    possible = [column for column in possible if column not in foreign]
    if len(possible) > 1 and len(texts := [c for c in possible if c.kind in ("text", "flag")]) == 1:
        possible = texts  # one column of words in a table of numbers
    if len(possible) == 1:
        return possible[0], "the only column of few different values, each repeated many times"
    if possible:
        names = [column.name for column in possible]
        raise InputError(
            f"--data: none of the columns is named as a label, and {len(names)} have few different values: "
            f"{some(names)}; say which is to be predicted: --label {quoted(names[-1])}"
        )
    numbers = [c.name for c in facts.columns.values() if c.kind == "number" and not is_id(c.name)]
    hint = "; name the column, --label COLUMN, or add one (empty in rows that have no label)"
    if maybe := [c.name for c in facts.columns.values() if c.repeated and c not in foreign]:
        hint = f"; if {maybe[-1]!r} is to be predicted, say so: --label {quoted(maybe[-1])}"
    elif numbers:
        hint = f"; to predict a number, name its column: --label {quoted(numbers[-1])}"
    told = "".join(
        f"; {column.name!r} has other values in validation or test than in train, and cannot be it"
        for column in foreign[:3]
    )
    shown = ", ".join(describe(column) for column in list(facts.columns.values())[:6])
    raise InputError(f"--data: no labels in {facts.path}, whose columns are {shown}{told}{hint}")


def _shared(facts: Facts, name: str) -> bool:
    """Whether the values of the other splits occur in train too."""
    known = facts.columns[name].values
    if known is None:
        return False
    for split in ("validation", "test"):
        pieces = facts.source.splits.get(split, [])
        if not pieces or name not in facts.names[split]:
            continue
        for table in spread(pieces[0], [name], LOOKED_AT):
            values = set(pc.cast(pc.unique(pc.drop_null(single(table[name]))), pa.string()).to_pylist())
            if values and not values & set(known):
                return False
    return True


# ------------------------------------------------------------------------------------- class or value


def _kind(column: Column, facts: Facts) -> str:
    """Raises InputError where the column can be neither."""
    name = column.name
    if column.kind == "list":
        raise InputError(
            f"--data: {name!r} holds lists ({column.type}): several labels a row, or several numbers; a run "
            "predicts one class or one number a row. Write one label a row into a column of its own, and "
            "name it with --label"
        )
    if column.kind in ("other", "picture", "pixels"):
        raise InputError(f"--data: {name!r} holds {column.type}, which is no label; name another: --label")
    if not column.known:
        raise InputError(f"--data: {name!r} is empty in all sampled rows: no labels; name another: --label")
    if column.distinct < 2:
        raise InputError(
            f"--data: {name!r} has the same value in all {column.known:,} sampled rows; there is nothing to "
            "tell apart. Name another column: --label"
        )
    crowded = column.distinct > MOST_CODES and column.distinct > HALF * column.known
    if column.kind == "text":
        if crowded:
            what = "a text" if column.words >= 2 else "a name or an id"
            raise InputError(
                f"--data: the labels {column.shown} are almost all different: they look like {what}, not "
                f"like classes; {_another(facts, column)}"
            )
        return "class"
    if column.kind == "flag":
        return "class"
    if not column.whole:
        return "value" if column.distinct > 2 else "class"
    counted = column.low in (0, 1) and column.high - column.low + 1 <= 1.25 * column.distinct + 1
    if crowded:
        span = column.high - column.low + 1
        looks = "an id" if is_id(name) or column.rising or span <= 1.05 * column.distinct else "a number"
        remedy = (
            _another(facts, column)
            if looks == "an id"
            else "if a number is to be predicted, say so: --set data.target=value"
        )
        raise InputError(
            f"--data: the labels {column.shown} are almost all different, from {column.low:g} to "
            f"{column.high:g}: they look like {looks}, not like classes; {remedy}"
        )
    return "class" if column.distinct <= MOST_CODES or counted else "value"


def _another(facts: Facts, column: Column) -> str:
    names = [c.name for c in facts.columns.values() if c.repeated and c.name != column.name]
    has = f", which may be {some(names)}" if names else ""
    return f"name the column of the classes with --label{has}"


# --------------------------------------------------------------------------------------------- words


def some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name[:60]) for name in names[:8]) + more


def quoted(name: str) -> str:
    """As a shell takes it."""
    return name if name.replace("_", "").replace("-", "").isalnum() else f"'{name}'"


def describe(column: Column) -> str:
    """`'text' (text, 11 words)`"""
    said: dict[str, str] = {
        "text": f"text, {column.words:.0f} words" if column.words >= 1.5 else "single words",
        "number": "whole numbers" if column.whole else "numbers",
        "flag": "true or false",
        "list": "lists",
        "picture": "images",
        "pixels": f"{column.lengths[0]:,} bytes",
        "nothing": "empty",
        "other": column.type,
    }
    return f"{column.name!r} ({said[column.kind]})"
