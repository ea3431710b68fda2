"""Columns of words and columns with missing numbers as numbers: what train holds decides, once.

A column of words becomes one column of 0 and 1 for each of its values, a missing number the mean of train
with a column of 0 and 1 that says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.decode import Bad, ColumnError, finite_numbers, is_number, is_string, single
from ensemble_kd.data.remarks import MISSING

MISSING_WORDS = MISSING | {"missing"}
"""What stands for no value in a text, in lower case."""
NUMBERS = 0.9
"""Share of the texts of a column that are numbers, from which on it is a column of numbers: the others are
bad rows."""
MOST_WORDS = 100_000
"""Different values of a column; with more it is no category but a text or an id."""


@dataclass(frozen=True)
class TableColumn:
    """How one column becomes numbers."""

    values: tuple[str, ...] | None
    """Words that have a column of 0 and 1 each, the most frequent of train first; None of numbers."""
    rest: bool = False
    """Of words: whether train has others, which share one column after these."""
    missing: bool = False
    """Whether values are missing in train, which the last column says."""
    mean: float = 0.0
    """Of numbers, over train: what a missing one becomes."""

    @property
    def width(self) -> int:
        """Number of features (columns of numbers) that this column becomes."""
        return (1 if self.values is None else len(self.values) + self.rest) + self.missing

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        if self.values is None:
            return {"mean": self.mean, "missing": self.missing}
        return {"values": list(self.values), "rest": self.rest, "missing": self.missing}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> TableColumn:
        values = found.get("values")
        return cls(
            None if values is None else tuple(values),
            bool(found.get("rest")),
            bool(found.get("missing")),
            float(found.get("mean", 0.0)),
        )

    def encode(self, array: pa.Array, name: str) -> tuple[np.ndarray, Bad]:
        """(N, width) float64, and what is wrong by row. Raises ColumnError for a type that is neither."""
        if self.values is None:
            numbers, wrong = _numbers(array, name)
            none = np.isnan(numbers)
            for row in wrong:
                none[row] = False
            found = np.where(none, self.mean, numbers)[:, None]
            if self.missing:
                found = np.concatenate([found, none[:, None]], axis=1)
            return found, {row: f"column {name!r} is {text!r}, not a number" for row, text in wrong.items()}
        words = _words(array, name)
        codes = pc.index_in(words, value_set=pa.array(self.values, pa.string()))
        places = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        none = words.is_null().to_numpy(zero_copy_only=False)
        found = np.zeros((len(array), self.width))
        known = np.flatnonzero(places >= 0)
        found[known, places[known]] = 1
        if self.rest:
            found[:, len(self.values)] = (places < 0) & ~none
        if self.missing:
            found[:, -1] = none
        return found, {}


class TableEncoder:
    """Encodes whole tables, as train decided."""

    def __init__(self, names: list[str], columns: list[TableColumn]) -> None:
        self.names, self.columns = names, columns

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    @property
    def numbers(self) -> dict[str, int]:
        """Columns of numbers, and which of the encoded ones each is; all others are 0 or 1."""
        found, place = {}, 0
        for name, column in zip(self.names, self.columns, strict=True):
            if column.values is None:
                found[name] = place
            place += column.width
        return found

    def __call__(self, arrays: list[pa.Array]) -> tuple[np.ndarray, Bad]:
        """(N, width) float32, and what is wrong by row. Raises ColumnError."""
        parts, bad, labels = [], Bad(), []
        for array, name, column in zip(arrays, self.names, self.columns, strict=True):
            part, wrong = column.encode(array, name)
            parts.append(part)
            bad = wrong | bad
            labels += [f"column {name!r}"] * column.width
        return finite_numbers(np.concatenate(parts, axis=1), bad, labels)

    def to_list(self) -> list[dict[str, Any]]:
        """As JSON, without the names."""
        return [column.to_dict() for column in self.columns]

    @classmethod
    def from_list(cls, names: list[str], found: list[dict[str, Any]]) -> TableEncoder:
        return cls(names, [TableColumn.from_dict(column) for column in found])

    def example(self) -> list[Any]:
        """A value for each column, as a user would send it."""
        return [
            column.mean if column.values is None else (column.values or ("",))[0] for column in self.columns
        ]


class _Seen:
    """What the rows of train hold in one column."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.words: Counter[str] = Counter()
        self.count, self.total, self.missing, self.typed = 0, 0.0, 0, False
        self.parsed = 0

    def add(self, array: pa.Array) -> None:
        if is_number(array.type):
            self.typed = True
            numbers = _numbers(array, self.name)[0]
            self._add_numbers(numbers)
            self.missing += int(np.isnan(numbers).sum())
            return
        words = _words(array, self.name)
        self.missing += words.null_count
        counts = pc.value_counts(words.drop_null())
        for word, count in zip(
            counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True
        ):
            self.words[word] += count
            if (number := _parsed(word)) is not None:
                self.parsed += count
                self.count, self.total = self.count + count, self.total + count * number
        if len(self.words) > MOST_WORDS:
            raise ColumnError(
                f"{self.name!r} holds more than {MOST_WORDS:,} different words, which is an id or a text and "
                "no category; leave it out"
            )

    def _add_numbers(self, numbers: np.ndarray) -> None:
        known = numbers[np.isfinite(numbers)]
        self.count, self.total = self.count + len(known), self.total + float(known.sum())

    def column(self, most_values: int) -> TableColumn:
        """Raises ColumnError where train has no value."""
        all_words = sum(self.words.values())
        if self.typed or (all_words and self.parsed >= NUMBERS * all_words):
            if not self.count:
                raise ColumnError(f"{self.name!r} has no number in train; leave it out")
            return TableColumn(None, missing=self.missing > 0, mean=self.total / self.count)
        if not all_words:
            raise ColumnError(f"{self.name!r} has no value in train; leave it out")
        order = sorted(self.words, key=lambda word: (-self.words[word], word))
        return TableColumn(tuple(order[:most_values]), len(order) > most_values, self.missing > 0)


def learn_table(tables: Iterable[pa.Table], names: list[str], most_values: int) -> TableEncoder:
    """From the tables of train. Raises ColumnError for a column that is neither numbers nor words."""
    seen = [_Seen(name) for name in names]
    for table in tables:
        for column in seen:
            column.add(single(table[column.name]))
    return TableEncoder(names, [column.column(most_values) for column in seen])


def _words(array: pa.Array, name: str) -> pa.Array:
    """Trimmed texts, null where nothing stands."""
    if is_number(array.type):  # a column of codes that was words in train
        array = pc.cast(array, pa.string())
    elif pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.string())
    elif not is_string(array.type):
        raise ColumnError(f"{name!r} holds {array.type}, expected numbers or words")
    trimmed = pc.utf8_trim_whitespace(pc.cast(array, pa.string()))
    nothing = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(sorted(MISSING_WORDS)))
    return pc.if_else(nothing, pa.scalar(None, pa.string()), trimmed)


def _numbers(array: pa.Array, name: str) -> tuple[np.ndarray, dict[int, str]]:
    """(N,) float64, NaN where nothing stands, and the texts that are no numbers (0 in their place)."""
    if is_number(array.type):
        return pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False), {}
    words = _words(array, name)
    try:
        return pc.cast(words, pa.float64()).to_numpy(zero_copy_only=False), {}
    except pa.ArrowInvalid:
        numbers, wrong = np.full(len(array), np.nan), {}
        for row, word in enumerate(words.to_pylist()):
            if word is not None:
                number = _parsed(word)
                numbers[row] = 0 if number is None else number
                if number is None:
                    wrong[row] = word
        return numbers, wrong


def _parsed(word: str) -> float | None:
    """The number that a text holds, if it is a finite one."""
    try:
        number = float(word)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
