"""Columns of labels and ids to class numbers and keys, over the whole column at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.decode import single
from ensemble_kd.data.problems import Problems
from ensemble_kd.targets.base import labelled as labelled
from ensemble_kd.targets.classes import UNLABELLED as UNLABELLED


@dataclass(frozen=True)
class Span:
    """Where the rows of one piece lie in its split."""

    name: str
    begin: int
    end: int


def place(row: int, spans: list[Span]) -> str:
    """`row 3 of train.csv`: where a row of the split is."""
    span = next(span for span in spans if row < span.end)
    return f"row {row - span.begin} of {span.name}"


def spread(bad: Iterable[tuple[int, str]], spans: list[Span], kind: str, problems: Problems) -> None:
    """Report rows of a split by the piece that they are in."""
    by_span: dict[int, dict[int, str]] = {}
    ends = np.array([span.end for span in spans])
    for row, message in bad:
        i = int(np.searchsorted(ends, row, side="right"))
        by_span.setdefault(i, {})[row - spans[i].begin] = message
    for i, rows in by_span.items():
        problems.add_rows(kind, spans[i].name, 0, rows)


def values(labels: pa.Array, name: str | None = None) -> tuple[np.ndarray, Iterator[tuple[int, str]]]:
    """Labels (N,) float32, NaN where null or wrong, and the wrong rows; messages say the column's `name`."""
    if pa.types.is_string(labels.type):
        found = np.array([_number(text) for text in labels.to_pylist()], np.float64)
    else:
        found = pc.fill_null(labels, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = found.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(rounded))
    remedy = "a value is a finite number; rows without one belong into data.unlabelled"
    rounded[wrong] = np.nan
    what = "label" if name is None else f"label {name!r},"
    return rounded, ((int(i), f"{what} {_shown(labels[int(i)].as_py())}: {remedy}") for i in wrong)


def weights(column: pa.Array) -> tuple[np.ndarray, Iterator[tuple[int, str]]]:
    """Weights (N,) float64 of rows, 0 where wrong, and the wrong rows."""
    if pa.types.is_string(column.type):
        found = np.array([_number(text) for text in column.to_pylist()], np.float64)
    else:
        found = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    found[wrong] = 0.0
    return found, (
        (int(i), f"weight {_shown(column[int(i)].as_py())}: a weight is a finite number from 0 on")
        for i in wrong
    )


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
    """One column; integers beside strings become strings, truth values beside integers 0 and 1."""
    if any(pa.types.is_string(array.type) for array in arrays):
        arrays = [pc.cast(array, pa.string()) for array in arrays]
    elif len({array.type for array in arrays}) > 1:
        arrays = [pc.cast(array, pa.int64()) for array in arrays]
    return single(pa.chunked_array(arrays, arrays[0].type)) if arrays else pa.array([], pa.int64())


def repeated_ids(ids: pa.Array) -> Iterator[tuple[int, str]]:
    """Yields each row whose id is missing, or is the id of an earlier row, with the reason."""
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
