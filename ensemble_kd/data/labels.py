"""Columns of labels and ids to class numbers and keys, over the whole column at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.decode import ColumnError, single
from ensemble_kd.data.problems import Problems

MOST_CLASSES = 1_000_000
UNLABELLED = -1
"""The class of a row without a label. The value of one is NaN."""


def labelled(labels: Any) -> Any:
    """(N,) bool: which rows have a label, of classes (-1: none) or values (NaN: none); numpy or torch."""
    return labels == labels if "float" in str(labels.dtype) else labels >= 0


@dataclass(frozen=True)
class Span:
    """Where the rows of one piece lie in its split."""

    name: str
    begin: int
    end: int


def spread(bad: Iterable[tuple[int, str]], spans: list[Span], kind: str, problems: Problems) -> None:
    """Report rows of a split by the piece that they are in."""
    by_span: dict[int, dict[int, str]] = {}
    ends = np.array([span.end for span in spans])
    for row, message in bad:
        i = int(np.searchsorted(ends, row, side="right"))
        by_span.setdefault(i, {})[row - spans[i].begin] = message
    for i, rows in by_span.items():
        problems.add_rows(kind, spans[i].name, 0, rows)


def plain_values(array: pa.Array) -> pa.Array:
    """int64 or string. Strings that are all integers (a CSV file has nothing else) become integers.

    Raises ColumnError for other types.
    """
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind) or pa.types.is_integer(kind):
        return pc.cast(array, pa.int64())
    if pa.types.is_floating(kind):  # what pandas makes of integers with gaps
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        try:
            return pc.cast(array, pa.int64())
        except pa.ArrowInvalid as error:
            raise ColumnError(f"holds numbers that are not whole ({error})") from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.cast(array, pa.string())
    raise ColumnError(f"holds {kind}, expected integers or strings")


def value_column(array: pa.Array) -> pa.Array:
    """Labels that are values: float64 as they are, or strings that `values` reads (a CSV file's).

    Raises ColumnError for other types.
    """
    kind = array.type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if number or pa.types.is_null(kind):
        return pc.cast(array, pa.float64(), safe=False)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.cast(array, pa.string())
    raise ColumnError(f"holds {kind}, expected numbers")


def values(labels: pa.Array) -> tuple[np.ndarray, Iterator[tuple[int, str]]]:
    """Labels (N,) float32, NaN where null or wrong, and the wrong rows."""
    if pa.types.is_string(labels.type):
        found = np.array([_number(text) for text in labels.to_pylist()], np.float64)
    else:
        found = pc.fill_null(labels, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = found.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(rounded))
    remedy = "a value is a finite number; rows without one belong into data.unlabelled"
    rounded[wrong] = np.nan
    return rounded, ((int(i), f"label {_shown(labels[int(i)].as_py())}: {remedy}") for i in wrong)


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else float("nan")
    except ValueError:
        return float("nan")


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def integers_if_all(array: pa.Array) -> pa.Array:
    """A string column as int64 where every value is one."""
    try:
        return pc.cast(pc.utf8_trim_whitespace(array), pa.int64())
    except pa.ArrowInvalid:
        return array


def join(arrays: list[pa.Array]) -> pa.Array:
    """One column; integers beside strings become strings."""
    if any(pa.types.is_string(array.type) for array in arrays):
        arrays = [pc.cast(array, pa.string()) for array in arrays]
    return single(pa.chunked_array(arrays, arrays[0].type)) if arrays else pa.array([], pa.int64())


def names_from(labels: pa.Array, problems: Problems) -> list[str]:
    """Class names from the train labels: 0..max for integers, the sorted distinct values for strings."""
    if pa.types.is_string(labels.type):
        return sorted(pc.unique(pc.drop_null(labels)).to_pylist())
    largest = pc.max(labels).as_py()
    if largest is None or largest < 0:
        return []
    if largest >= MOST_CLASSES:
        problems.add(
            f"data.columns.label: labels up to {largest} would be {largest + 1} classes; "
            "number the classes from 0, or list data.class_names"
        )
        return []
    return [str(i) for i in range(largest + 1)]


def encode(labels: pa.Array, names: list[str], listed: bool) -> tuple[np.ndarray, Iterator[tuple[int, str]]]:
    """Class numbers (N,) int64, -1 where null or wrong, and the wrong rows.

    `listed`: the names were given, rather than found in train.
    """
    present = ~np.asarray(labels.is_null())
    if pa.types.is_string(labels.type):
        found = pc.index_in(labels, value_set=pa.array(names, pa.string()))
        codes = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        for i in np.flatnonzero(present & (codes < 0)):  # a number written as text is a number
            text = labels[int(i)].as_py().strip()
            if text.isdecimal() and int(text) < len(names) and listed:
                codes[i] = int(text)
    else:
        codes = pc.fill_null(labels, -1).to_numpy(zero_copy_only=False).copy()
        codes[(codes < 0) | (codes >= len(names))] = UNLABELLED
    wrong = np.flatnonzero(present & (codes < 0))
    return codes, ((int(i), _outside(labels[int(i)].as_py(), names, listed)) for i in wrong)


def _outside(value: int | str, names: list[str], listed: bool) -> str:
    if isinstance(value, int):
        which = "data.class_names" if listed else "train"
        return f"label {value} is outside 0..{len(names) - 1}, the {len(names)} classes of {which}"
    close = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"label {value!r} is not {'in data.class_names' if listed else 'a class of train'}{hint}"


def repeated_ids(ids: pa.Array) -> Iterator[tuple[int, str]]:
    """Rows whose id is missing or has come before."""
    if not ids.null_count and pc.count_distinct(ids).as_py() == len(ids):
        return
    seen: dict[int | str, int] = {}
    for i, key in enumerate(ids.to_pylist()):
        if key is None:
            yield i, "no id (null)"
        elif key in seen:
            yield i, f"id {key!r} repeats that of row {seen[key]} of the split"
        else:
            seen[key] = i
