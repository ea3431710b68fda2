"""Which classes the labels of all splits stand for: the values that occur, in order, or the names listed.

Labels that are numbers, also as text, are compared and ordered as numbers: "01", "001" and "1" are one class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.labels import UNLABELLED
from ensemble_kd.data.problems import Problems

MOST_CLASSES = 1_000_000
CROWDED = 1000
"""From so many classes on, two rows for each are the least that can be learned from."""
NUMBER = r"^\s*[+-]?[0-9]+(\.[0-9]*)?\s*$"
BOOLEAN = r"(?i)^\s*(true|false)\s*$"

Wrong = Iterator[tuple[int, str]]
"""Rows, and what is wrong with them."""


@dataclass(frozen=True)
class Classes:
    """The classes in order, and how a label finds its own."""

    names: list[str]
    listed: bool = False
    """Whether the names were given, rather than found in the labels."""
    numbers: np.ndarray | None = None
    """(C,) int64: the labels of the classes in ascending order, where these are integers that were found."""
    whole: bool = True
    """Whether all labels of train were read."""

    @property
    def counted(self) -> bool:
        """Whether integer labels are the classes' own numbers 0..C-1."""
        return self.numbers is None or bool(self.numbers[-1] == len(self.numbers) - 1 and not self.numbers[0])


# ------------------------------------------------------------------------------------------ one kind


def unified(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """The label columns of all splits as one kind: int64 where all are whole numbers, else strings."""
    kinds = [array.type for array in columns.values() if array.null_count < len(array)]
    if all(pa.types.is_int64(kind) for kind in kinds):
        return {split: _cast(array, pa.int64()) for split, array in columns.items()}
    texts = {split: pc.cast(array, pa.string()) for split, array in columns.items()}
    if _all(texts, NUMBER):
        texts = {split: _canonical(array) for split, array in texts.items()}
        try:
            return {split: pc.cast(array, pa.int64()) for split, array in texts.items()}
        except pa.ArrowInvalid:  # fractions, or beyond 64 bits: text in one spelling
            return texts
    if any(pa.types.is_boolean(kind) for kind in kinds):
        if _all(texts, BOOLEAN):  # pandas writes True into CSV
            return {split: pc.utf8_lower(pc.utf8_trim_whitespace(array)) for split, array in texts.items()}
        numbers = {s: _cast(a, pa.int64()) for s, a in columns.items() if not pa.types.is_string(a.type)}
        return unified({split: numbers.get(split, array) for split, array in columns.items()})
    return texts


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """All null as any type."""
    return pa.nulls(len(array), kind) if array.null_count == len(array) else pc.cast(array, kind)


def _all(columns: dict[str, pa.Array], pattern: str) -> bool:
    return all(
        pc.all(pc.match_substring_regex(pc.unique(array), pattern), min_count=0).as_py()
        for array in columns.values()
    )


def _canonical(array: pa.Array) -> pa.Array:
    """Numbers in text in one spelling: no sign of plus, no zeros in front or at the end of a fraction."""
    encoded = array.dictionary_encode()  # labels are few
    return _spelt(encoded.dictionary).take(encoded.indices)


def _spelt(array: pa.Array) -> pa.Array:
    array = pc.replace_substring_regex(pc.utf8_trim_whitespace(array), r"^\+", "")
    array = pc.replace_substring_regex(array, r"^(-?)0+([0-9])", r"\1\2")
    array = pc.replace_substring_regex(array, r"\.0*$", "")
    array = pc.replace_substring_regex(array, r"(\.[0-9]*[1-9])0+$", r"\1")
    return pc.replace_substring_regex(array, r"^-0$", "0")


# ---------------------------------------------------------------------------------------- the classes


def found_in(columns: dict[str, pa.Array], whole: bool, problems: Problems) -> Classes:
    """The values of train, or of all splits where not all of train was read, or none of it has a label."""
    without = columns["train"].null_count == len(columns["train"])
    used = list(columns.values()) if without or not whole else [columns["train"]]
    distinct = pc.drop_null(pc.unique(pa.chunked_array(used)))
    labelled = sum(len(column) - column.null_count for column in used)
    if whole and len(distinct) > CROWDED and (len(distinct) > MOST_CLASSES or 2 * len(distinct) > labelled):
        problems.add(
            f"data.columns.label: {len(distinct):,} different labels in {labelled:,} rows are too many for "
            "classes; name another column, or set data.target=value if they are numbers to predict"
        )
        return Classes([], whole=whole)
    if pa.types.is_integer(distinct.type):
        numbers = np.sort(distinct.to_numpy())
        return Classes([str(number) for number in numbers], numbers=numbers, whole=whole)
    names = distinct.to_pylist()
    numeric = _all({"": distinct}, NUMBER)
    return Classes(sorted(names, key=Decimal) if numeric else sorted(names), whole=whole)


def by_value(columns: dict[str, pa.Array], names: list[str]) -> dict[str, pa.Array]:
    """Labels as text where each is one of `names`, by its spelling or as a number; else as they are.

    That way class_names of "1" to "5" fit labels of 1 to 5, which are no numbers of classes.
    """
    texts = {split: pc.cast(array, pa.string()) for split, array in columns.items()}
    listed = pa.array(names, pa.string())
    if all(pc.all(pc.is_in(pc.drop_null(a), value_set=listed), min_count=0).as_py() for a in texts.values()):
        return texts
    if not _all({"": listed}, NUMBER) or not _all(texts, NUMBER):
        return columns
    spelt = _canonical(listed)
    if len(pc.unique(spelt)) < len(spelt):
        return columns
    places = {split: pc.index_in(_canonical(array), value_set=spelt) for split, array in texts.items()}
    if any(places[split].null_count > texts[split].null_count for split in texts):
        return columns
    return {split: listed.take(place) for split, place in places.items()}


# ---------------------------------------------------------------------------------- labels to numbers


def encode(labels: pa.Array, classes: Classes) -> tuple[np.ndarray, Wrong]:
    """Class numbers (N,) int64, -1 where null or wrong, and the wrong rows."""
    names, present = classes.names, ~np.asarray(labels.is_null())
    if not names:
        return np.full(len(labels), UNLABELLED), iter(())
    if pa.types.is_string(labels.type):
        found = pc.index_in(labels, value_set=pa.array(names, pa.string()))
        codes = pc.fill_null(found, UNLABELLED).to_numpy(zero_copy_only=False).astype(np.int64)
        if classes.listed and (present & (codes < 0)).any():  # a number written as text is a number
            numbers = _numbers(labels)
            codes = np.where((codes < 0) & (numbers >= 0) & (numbers < len(names)), numbers, codes)
    elif classes.numbers is not None:
        values = pc.fill_null(labels, 0).to_numpy(zero_copy_only=False)
        place = np.searchsorted(classes.numbers, values).astype(np.int64)
        place = np.minimum(place, len(classes.numbers) - 1)
        codes = np.where(present & (classes.numbers[place] == values), place, UNLABELLED)
    else:
        codes = pc.fill_null(labels, UNLABELLED).to_numpy(zero_copy_only=False).copy()
        codes[(codes < 0) | (codes >= len(names))] = UNLABELLED
    wrong = np.flatnonzero(present & (codes < 0))
    return codes, ((int(i), _outside(labels[int(i)].as_py(), classes)) for i in wrong)


def _numbers(labels: pa.Array) -> np.ndarray:
    """(N,) int64 of text: -1 where it is no whole number, or too large for a class."""
    whole = pc.match_substring_regex(labels, NUMBER)
    short = _canonical(pc.if_else(whole, labels, pa.scalar(None, pa.string())))
    short = pc.if_else(pc.match_substring_regex(short, "^[0-9]{1,9}$"), short, pa.scalar(None, pa.string()))
    return pc.fill_null(pc.cast(short, pa.int64()), -1).to_numpy(zero_copy_only=False)


def _outside(value: int | str, classes: Classes) -> str:
    names, where = classes.names, "data.class_names" if classes.listed else "train"
    if isinstance(value, int) and classes.counted:
        return f"label {value} is outside 0..{len(names) - 1}, the {len(names)} classes of {where}"
    if isinstance(value, int):
        return f"label {value} is not a class of {where}, which has {', '.join(shortened(names))}"
    close = difflib.get_close_matches(value[:100], names[:10_000], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    which = "in data.class_names" if classes.listed else "a class of train"
    return f"label {value[:100]!r} is not {which}{hint}"


def shortened(names: list[str], most: int = 8) -> list[str]:
    """At most `most` entries for a message: the first ones and the last, with dots between them."""
    return names if len(names) <= most else [*names[: most - 2], "...", names[-1]]


def off_by_one(columns: dict[str, pa.Array], names: list[str]) -> str | None:
    """What to do where integers count from 1 and the listed names from 0; None where they do not."""
    if not all(pa.types.is_integer(array.type) for array in columns.values()):
        return None
    distinct = pc.drop_null(pc.unique(pa.chunked_array(list(columns.values())))).to_pylist()
    if len(names) not in distinct or min(distinct) < 1:
        return None
    return (
        f"data.class_names: the labels count from {min(distinct)}, and the {len(names)} names stand for 0 to "
        f"{len(names) - 1}; leave class_names out, and the labels themselves are the classes' names, or "
        "subtract 1 from the labels, or write the names into the label column"
    )
