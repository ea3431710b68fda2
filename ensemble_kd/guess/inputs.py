"""Which columns are the input: texts, a pair of them, pictures or numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ensemble_kd.data.decode import single
from ensemble_kd.data.preprocess import meant
from ensemble_kd.errors import InputError
from ensemble_kd.guess.columns import Column, same_partition
from ensemble_kd.guess.inspect import Facts
from ensemble_kd.guess.names import LEADS, PICTURES, TEXTS, first_of, is_id, label_rank, pair_of, plain
from ensemble_kd.guess.target import describe, some

WORDS = 3
"""On average, from which on a column holds texts."""
CHARACTERS = 8
"""The same where words are not set apart by spaces."""
VARIED = 0.2
"""Share of different values of a column of texts."""
TABLE = 3
"""Columns of numbers beside which a short text (a name, a title) is one feature of several."""
SHORT = 8
"""Words of such a text."""
MOST_KINDS, COMES_BACK = 200, 5
"""Different words of a column that is one feature of a table, and how often each occurs on average."""
LEAST_PIXELS = 64
"""Numbers of a list, or columns, that may be a picture."""


@dataclass
class Inputs:
    """The columns that the models see."""

    kind: str
    """`text`, `image` or `numeric`."""
    names: str | list[str]
    why: str
    compares: bool = False
    """Whether one text is held against another, so that the order of words counts."""
    shape: list[int] | None = None
    """Of pictures that are raw numbers: height, width, channels."""
    table: bool = False
    """Of numbers, whether columns of words are among them, or numbers are missing."""
    unused: list[str] = field(default_factory=list)
    """Columns that are left out, each with the reason."""


def find_inputs(
    facts: Facts, label: str, asked: list[str] | None = None, shape: list[int] | None = None
) -> Inputs:
    """`asked` are the columns that --input names, `shape` that of raw pixels where it is given.

    Raises InputError where there is no input.
    """
    columns = {name: column for name, column in facts.columns.items() if name != label}
    if asked:
        if unknown := [name for name in asked if name not in facts.columns]:
            raise InputError(
                f"--input: no column {unknown[0]!r}; the columns are {some(list(facts.columns))}"
                f"{meant(unknown[0], list(facts.columns))}"
            )
        if label in asked:
            raise InputError(f"--input: {label!r} is the label; a model would only copy it")
        return _as_asked([columns[name] for name in asked], shape)
    out: list[str] = []
    free = []
    for column in columns.values():
        why = _not_input(facts, column, label)
        if why is None:
            free.append(column)
        else:
            out.append(f"{column.name!r}: {why}")
    found = _pictures(free, shape) or _texts(free) or _pixels(free) or _numbers(free)
    if found is None:
        shown = "; ".join(out) or ", ".join(describe(column) for column in columns.values())
        raise InputError(
            f"--data: no column that could be the input beside the label {label!r} ({shown}); name one: "
            "--input COLUMN"
        )
    used = {found.names} if isinstance(found.names, str) else set(found.names)
    mentioned = " ".join(found.unused)
    out += [describe(column) for column in free if column.name not in used and column.name not in mentioned]
    found.unused = out + found.unused
    return found


def _not_input(facts: Facts, column: Column, label: str) -> str | None:
    """Why a column is no input at all."""
    if column.kind == "nothing":
        return "empty"
    if column.name in facts.targets:
        return "another target"
    if column.kind in ("text", "number", "flag") and column.distinct == 1:
        return "the same in all rows"
    table = facts.sample
    if column.repeated and {column.name, label} <= set(table.column_names):
        if same_partition(single(table[column.name]), single(table[label])):
            return f"says the same as {label!r}"
    short = column.kind == "text" and column.words < 2 and column.characters < 64 and column.foreign < 0.5
    numbered = column.kind == "number" and column.whole
    if column.all_different and ((short and column.rows >= LEAST_PIXELS) or numbered):
        span = column.high - column.low + 1
        if is_id(column.name) or short or column.rising or (numbered and span == column.distinct):
            return "an id, different in all rows"
    if is_id(column.name) and column.kind in ("text", "number"):
        return "an id"
    if column.repeated and label_rank(column.name) is not None and column.kind == "text":
        return "looks like another label"
    return None


def _as_asked(columns: list[Column], shape: list[int] | None) -> Inputs:
    why = "as --input says"
    names: Any = columns[0].name if len(columns) == 1 else [column.name for column in columns]
    kinds = {column.kind for column in columns}
    if kinds == {"text"} and len(columns) <= 2:
        return Inputs("text", names, why, compares=len(columns) == 2)
    if kinds <= {"number", "flag", "text"}:
        table = "text" in kinds or any(column.missing for column in columns)
        return Inputs("numeric", [column.name for column in columns], why, table=table)
    if len(columns) == 1 and columns[0].kind in ("picture", "pixels", "list"):
        return _pictures(columns, shape) or _pixels(columns) or Inputs("numeric", names, why)
    raise InputError(
        f"--input: {', '.join(map(describe, columns))}: give one column of texts or two, one of images, or "
        "columns of numbers"
    )


# -------------------------------------------------------------------------------------------- pictures


def _pictures(columns: list[Column], shape: list[int] | None) -> Inputs | None:
    found = [column for column in columns if column.kind in ("picture", "pixels")]
    if not found:
        return None
    named = first_of([column.name for column in found], PICTURES)
    column = next((column for column in found if column.name == named), found[0])
    if column.kind == "picture":
        return Inputs("image", column.name, "encoded images")
    size = column.lengths[0]
    shape = shape or shape_of(size)
    if shape is None:
        raise InputError(
            f"--data: {column.name!r} holds {size:,} raw bytes a row, which is no square image of 1, 3 or 4 "
            "channels; say what it is: --set data.image.shape=[HEIGHT,WIDTH,CHANNELS]"
        )
    return Inputs("image", column.name, f"{size:,} raw bytes a row, a square image", shape=shape)


def shape_of(size: int) -> list[int] | None:
    """Height, width and channels of a square picture of so many numbers."""
    for channels in (1, 3, 4):
        side = math.isqrt(size // channels)
        if side * side * channels == size and side >= 4:
            return [side, side, channels]
    return None


def _pixels(columns: list[Column]) -> Inputs | None:
    """Lists of numbers, or columns that are a picture's pixels."""
    lists = [column for column in columns if column.kind == "list" and column.of_numbers]
    if lists:
        column = lists[0]
        grey = column.whole and column.low >= 0 and 16 < column.high <= 255
        if column.nested:
            if grey:
                return Inputs("image", column.name, "nested lists of pixels")
            return None
        shape = shape_of(column.lengths[1]) if column.lengths[1] >= LEAST_PIXELS else None
        if grey and shape is not None:
            return Inputs(
                "image", column.name, f"lists of {column.lengths[1]:,} pixels, 0 to 255", shape=shape
            )
        if column.lengths[0] == column.lengths[1]:
            return Inputs("numeric", column.name, f"lists of {column.lengths[0]:,} numbers")
        return None
    numbers = [column for column in columns if column.kind == "number"]
    shape = shape_of(len(numbers)) if len(numbers) >= LEAST_PIXELS else None
    alike = {re.sub(r"\d+", "#", column.name) for column in numbers}
    if shape is None or len(alike) > 1 or "#" not in next(iter(alike)):
        return None
    pixels = all(column.whole and column.low >= 0 and column.high <= 255 for column in numbers)
    if not pixels or max(column.high for column in numbers) <= 16:
        return None
    names = [column.name for column in numbers]
    return Inputs("image", names, f"{len(names):,} columns of pixels, 0 to 255", shape=shape)


# ----------------------------------------------------------------------------------------------- texts


def is_text(column: Column) -> bool:
    """Many different values, and several words on average (or, without spaces, several characters)."""
    if column.kind != "text" or column.distinct < VARIED * column.known or column.distinct < 2:
        return False
    unspaced = column.words < 2 and column.foreign > 0.5 and column.characters >= CHARACTERS
    return column.words >= WORDS or unspaced


def _texts(columns: list[Column]) -> Inputs | None:
    found = [column for column in columns if is_text(column)]
    numbers = [column for column in columns if column.kind in ("number", "flag")]
    if len(numbers) >= TABLE and all(
        column.words < SHORT and plain(column.name) not in TEXTS for column in found
    ):
        return None
    if not found:
        texts = [c for c in columns if c.kind == "text" and c.distinct > VARIED * c.known]
        if len(texts) == 1 and not numbers:  # names, single words
            return Inputs("text", texts[0].name, "the only column of texts")
        return None
    names = [column.name for column in found]
    if len(names) == 1:
        return Inputs("text", names[0], f"texts of {found[0].words:.0f} words on average")
    if pair := pair_of(names):
        return Inputs("text", list(pair), "a pair of texts, by their names", compares=True)
    main = first_of(names, TEXTS)
    longest = max(found, key=lambda column: column.characters).name
    lead = first_of(names, LEADS)
    if lead is not None:
        body = first_of([name for name in names if name != lead], TEXTS) or longest
        if body != lead:
            return Inputs("text", [lead, body], f"{lead!r} stands above {body!r}: read together")
    if main is None and len(names) == 2:
        return Inputs("text", names, "the two columns of texts", compares=True)
    chosen = main or longest
    return Inputs("text", chosen, "by its name" if main else "the longest of the columns of texts")


# --------------------------------------------------------------------------------------------- numbers


def _numbers(columns: list[Column]) -> Inputs | None:
    """Columns of numbers, and beside them of words that are few: kinds of something."""
    numbers = [column for column in columns if column.kind in ("number", "flag")]
    words = [column for column in columns if column.kind == "text" and _few(column)]
    many = [column for column in columns if column.kind == "text" and not _few(column)]
    if not numbers and not words:
        return None
    unused = []
    if many:
        kinds = ", ".join(f"{column.name!r} ({column.distinct:,} kinds)" for column in many)
        unused.append(f"{kinds}: too many different words for a table")
    # in the order of the file, so that a request reads like a row of it
    names = [column.name for column in columns if column in numbers or column in words]
    what = "the columns of numbers" if len(names) > 1 else "the only column of numbers"
    if words:
        what = f"columns of numbers ({len(numbers)}) and of words ({len(words)})"
    table = bool(words) or any(column.missing for column in numbers)
    return Inputs("numeric", names, what, unused=unused, table=table)


def _few(column: Column) -> bool:
    """Whether its words come back often enough to be kinds of something, rather than names or texts."""
    return column.distinct <= MOST_KINDS and column.known >= COMES_BACK * column.distinct
