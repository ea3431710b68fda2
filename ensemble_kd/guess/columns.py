"""What a column holds, from a sample of its values. No files, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["text", "number", "flag", "list", "picture", "pixels", "nothing", "other"]
"""`picture`: encoded images, or structs of bytes and path. `pixels`: a fixed number of bytes a row."""
FEW = 5
"""Rows per value, on average, of a column whose values are repeated."""
MOST_KEPT = 5000
"""Different values that are kept of a column."""


@dataclass(frozen=True)
class Column:
    """One column of train, as far as a sample of its rows tells."""

    name: str
    kind: Kind
    type: str
    """What the file says that it holds, for people."""
    rows: int
    """Sampled."""
    missing: int = 0
    distinct: int = 0
    values: tuple[str, ...] | None = None
    """The different values as text, where they are few enough to keep."""
    whole: bool = False
    """Numbers (or the numbers in lists) without a fraction."""
    low: float = 0.0
    high: float = 0.0
    rising: bool = False
    """Numbers each of which is above the one before."""
    words: float = 0.0
    """Of a text, on average."""
    characters: float = 0.0
    foreign: float = 0.0
    """Share of the texts that are not plain ASCII."""
    lengths: tuple[int, int] = (0, 0)
    """Of lists, shortest and longest; of `pixels` the bytes."""
    nested: bool = False
    of_numbers: bool = False

    @property
    def known(self) -> int:
        return self.rows - self.missing

    @property
    def repeated(self) -> bool:
        """At least two different values, each of which occurs many times: what classes look like."""
        discrete = self.kind in ("text", "flag") or (self.kind == "number" and self.whole)
        return discrete and self.distinct >= 2 and self.known >= FEW * self.distinct

    @property
    def all_different(self) -> bool:
        return self.distinct == self.known > 1

    @property
    def shown(self) -> str:
        """`'label' (3 different values in 500 rows)`"""
        return f"{self.name!r} ({self.distinct:,} different values in {self.known:,} rows)"


def column_of(name: str, array: pa.Array, untyped: bool = False) -> Column:
    """`untyped`: from a text file, in which numbers are texts."""
    kind, rows, said = array.type, len(array), str(array.type)
    missing = array.null_count
    if untyped and pa.types.is_string(kind):
        said = "text"
        try:
            array = pc.cast(pc.utf8_trim_whitespace(array), pa.float64())
            kind = array.type
        except pa.ArrowInvalid:
            pass
    if pa.types.is_null(kind) or missing == rows:
        return Column(name, "nothing", said, rows, rows)
    if pa.types.is_boolean(kind):
        return Column(name, "flag", said, rows, missing, pc.count_distinct(array).as_py(), ("false", "true"))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _number(name, said, rows, pc.cast(array, pa.float64(), safe=False))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text(name, said, rows, array)
    if pa.types.is_fixed_size_binary(kind):
        return Column(name, "pixels", said, rows, missing, lengths=(kind.byte_width, kind.byte_width))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return Column(name, "picture", said, rows, missing)
    if pa.types.is_struct(kind):
        fields = {kind.field(i).name for i in range(kind.num_fields)}
        return Column(name, "picture" if fields & {"bytes", "path"} else "other", said, rows, missing)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list(name, said, rows, array)
    return Column(name, "other", said, rows, missing)


def _number(name: str, said: str, rows: int, array: pa.Array) -> Column:
    array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    known = pc.drop_null(array)
    if not len(known):
        return Column(name, "nothing", said, rows, rows)
    distinct = pc.unique(known)
    bounds = pc.min_max(known).as_py()
    whole = bool(pc.all(pc.equal(known, pc.floor(known))).as_py())
    values = None
    if len(distinct) <= MOST_KEPT:
        values = tuple(f"{value:g}" if not whole else str(int(value)) for value in distinct.to_pylist())
    numbers = known.to_numpy(zero_copy_only=False)
    return Column(
        name,
        "number",
        said,
        rows,
        rows - len(known),
        len(distinct),
        values,
        whole,
        bounds["min"],
        bounds["max"],
        bool((numbers[1:] > numbers[:-1]).all()),
    )


def _text(name: str, said: str, rows: int, array: pa.Array) -> Column:
    known = pc.drop_null(array)
    distinct = pc.unique(known)
    return Column(
        name,
        "text",
        said,
        rows,
        rows - len(known),
        len(distinct),
        tuple(distinct.to_pylist()) if len(distinct) <= MOST_KEPT else None,
        words=pc.mean(pc.count_substring_regex(known, r"\S+")).as_py(),
        characters=pc.mean(pc.utf8_length(known)).as_py(),
        foreign=1 - pc.mean(pc.cast(pc.string_is_ascii(known), pa.float64())).as_py(),
    )


def _list(name: str, said: str, rows: int, array: pa.Array) -> Column:
    lengths = pc.min_max(pc.list_value_length(array)).as_py()
    inner, nested = array, -1
    while pa.types.is_list(inner.type) or pa.types.is_large_list(inner.type) or _fixed(inner.type):
        inner, nested = inner.flatten(), nested + 1
    numbers = pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type)
    found = _number(name, said, len(inner), pc.cast(inner, pa.float64(), safe=False)) if numbers else None
    return Column(
        name,
        "list",
        said,
        rows,
        array.null_count,
        whole=found is not None and found.whole,
        low=0.0 if found is None else found.low,
        high=0.0 if found is None else found.high,
        lengths=(lengths["min"] or 0, lengths["max"] or 0),
        nested=nested > 0,
        of_numbers=numbers,
    )


def _fixed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def same_partition(one: pa.Array, other: pa.Array) -> bool:
    """Whether two columns tell the same: each value of one goes with a single value of the other."""
    both = pa.table({"one": one, "other": other})
    pairs = both.group_by(["one", "other"]).aggregate([]).num_rows
    return bool(pairs == len(pc.unique(one)) == len(pc.unique(other)))
