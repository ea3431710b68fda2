"""What can be wrong inside a data file, in one line: which file, what its parser says, and what to do."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.data.decode import Bad
from ensemble_kd.errors import EnsembleKDError, InputError

NAMES = {"csv": "CSV", "json": "JSON lines", "parquet": "Parquet", "arrow": "Arrow"}
LONGEST_TEXT = 300
REMEDIES = (
    ("columns, got", "csv", "put cells that hold the delimiter in quotes, or set data.csv.delimiter"),
    ("straddl", "csv", "a row of more than 16 MB, or a quote that never ends; mend it"),
    ("straddl", "json", "a row of more than 16 MB; write smaller ones"),
    ("changed from", "json", "write one type per column"),
    ("Failed to convert", "json", "write one type per column"),
    ("", "csv", "mend the file"),
    ("", "json", 'write one object {"COLUMN": VALUE, ...} a line, or an array of these'),
    ("", "parquet", "it is damaged, cut off, or no such file; write it again"),
    ("", "arrow", "it is damaged, cut off, or no such file; write it again"),
)
"""Part of what the parser says, the format, what to do."""


class Readable:
    """A context in which whatever a parser raises becomes an InputError that names the file.

    All kinds of errors: parsers of damaged files raise many, and whoever reads the file wants one line.
    """

    def __init__(self, name: str, format: str) -> None:
        self.name, self.format = name, format

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, EnsembleKDError):
            return
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # a full disk is not the file's fault
        text = str(error)
        if "Empty CSV" in text or "Empty JSON" in text:
            raise InputError(f"{self.name}: empty") from error
        if isinstance(error, MemoryError):
            text = f"asks for more memory than there is ({text})"
        first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
        first = first if len(first) <= LONGEST_TEXT else f"{first[:LONGEST_TEXT]}..."
        remedy = next(r for part, format, r in REMEDIES if part in text and format == self.format)
        raise InputError(f"{self.name}: cannot be read as {NAMES[self.format]}: {first}; {remedy}") from error


def checked(table: pa.Table) -> tuple[pa.Table, Bad]:
    """The table with null for texts that are not UTF-8, and these rows. Raises ArrowInvalid for columns whose
    parts do not fit each other, which reading them could end the process with."""
    bad = Bad()
    for i, name in enumerate(table.column_names):
        wrong = _wrong_texts(table.column(i))
        if wrong:
            gap = np.zeros(table.num_rows, bool)
            gap[list(wrong)] = True
            places = pa.array(np.arange(table.num_rows), mask=gap)
            table = table.set_column(i, name, table.column(i).take(places))
            bad = {row: f"column {name!r} {text}" for row, text in wrong.items()} | bad
    return table, dict(sorted(bad.items()))


def _wrong_texts(column: pa.ChunkedArray) -> dict[int, str]:
    try:
        column.validate(full=True)
        return {}
    except pa.ArrowInvalid:
        raw = _as_bytes(column)
        if raw is None:
            raise
    raw.validate(full=True)
    wrong: dict[int, str] = {}
    for row, value in enumerate(raw):
        try:
            (value.as_py() or b"").decode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            wrong[row] = f"holds a text that is not UTF-8 (byte 0x{byte:02x}); write it again in UTF-8"
    return wrong


def _as_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of strings without the claim that they are UTF-8; None for other columns."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        for chunk in column.chunks:
            chunk.indices.validate(full=True)
        return None
    if pa.types.is_string(kind):
        return column.cast(pa.binary())
    if pa.types.is_large_string(kind):
        return column.cast(pa.large_binary())
    return None
