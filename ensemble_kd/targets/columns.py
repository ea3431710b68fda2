"""Columns of labels and ids in few types: integers, texts, numbers. pyarrow only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST = np.iinfo(np.int64).max


class ColumnError(Exception):
    """A column whose type cannot hold such inputs."""


def plain_values(array: pa.Array) -> pa.Array:
    """int64 or string. Raises ColumnError for other types, and for integers beyond 64 bits."""
    kind = array.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind) or pa.types.is_signed_integer(kind):
        return pc.cast(array, pa.int64())
    if pa.types.is_unsigned_integer(kind):
        most = pc.max(array).as_py()
        if most is not None and most > MOST:
            raise ColumnError(
                f"holds {most}, and {MOST} is the largest integer here (2**64 - 1 is what becomes of -1 in "
                "an unsigned column); leave it empty where it stands for none, or write the column as text"
            )
        return pc.cast(array, pa.int64())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if pa.types.is_floating(kind):  # what pandas makes of integers with gaps
            array = pc.if_else(pc.is_nan(array), pa.scalar(None, kind), array)
        try:
            return pc.cast(array, pa.int64())
        except pa.ArrowInvalid as error:
            raise ColumnError(
                f"holds numbers that are not whole, or beyond 64 bits ({error}); write them "
                "as text, or, as labels that are to be predicted as numbers, set data.target=value"
            ) from error
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            array.validate(full=True)
            return pc.cast(array, pa.string())
        except pa.ArrowInvalid as error:
            raise ColumnError(f"holds bytes that are no UTF-8 ({error}); write it anew") from error
    raise ColumnError(f"holds {kind}, expected integers or strings")


def class_column(array: pa.Array) -> pa.Array:
    """Labels that are classes: as `plain_values`, and truth values as they are."""
    return array if pa.types.is_boolean(array.type) else plain_values(array)


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
