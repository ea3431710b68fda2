"""Files for `predict`: a row that cannot be parsed costs itself alone, and keeps its place.

A CSV row with too many or too few cells, a line that is not JSON, and a value of another type than the
other rows' stand in the table as nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data.decode import Bad
from ensemble_kd.data.files import FilePiece, as_table
from ensemble_kd.data.pieces import slices
from ensemble_kd.data.text_stream import MARK
from ensemble_kd.errors import InputError

FIRST_LINES = 1000
"""Lines that tell the columns of a file in which some lines are no JSON."""


def columns_of(piece: FilePiece) -> list[str]:
    """As `piece.columns`, also where lines of JSON are broken. Raises InputError where all are."""
    try:
        return piece.columns()
    except InputError:
        if piece.format != "json":
            raise
        _, rows, _ = next(_json_rows(piece, FIRST_LINES), (0, [], Bad()))
        if not (names := list(dict.fromkeys(name for row in rows for name in row))):
            raise
        return names


def batches(piece: FilePiece, columns: list[str], rows: int) -> Iterator[tuple[pa.Table, Bad]]:
    """Yields tables of at most `rows` rows, each with the problems of the rows that cannot be parsed."""
    if piece.format == "csv":
        yield from _csv(piece, columns, rows)
        return
    done = 0
    try:
        for table, bad in piece.tables(columns, rows):
            for part in _parts(table, bad, rows):
                yield part
                done += part[0].num_rows
    except InputError:
        if piece.format != "json":
            raise
        yield from _json(piece, columns, rows, done)


# ----------------------------------------------------------------------------------------------- CSV


def _csv(piece: FilePiece, columns: list[str], rows: int) -> Iterator[tuple[pa.Table, Bad]]:
    wrong: list[tuple[int, str]] = []

    def note(row: Any) -> str:
        text = f"{row.actual_columns} cells, the header has {row.expected_columns}"
        wrong.append((row.number - 2, text))  # from 1, and that is the header
        return "skip"

    first = 0
    with piece.readable():
        reader = piece.open_csv(columns, note, "mark")
        for batch in reader:
            table, unread = _marked(as_table(batch, columns))
            table, bad = _with_gaps(table, unread, first, wrong)
            first += table.num_rows
            yield from _parts(table, bad, rows)
    if wrong:  # behind the last good row
        empty = reader.schema.empty_table().select(columns)
        yield from _parts(*_with_gaps(empty, Bad(), first, wrong), rows)


def _marked(table: pa.Table) -> tuple[pa.Table, Bad]:
    """Null for cells with bytes that are not UTF-8, and their rows."""
    bad = Bad()
    for i, name in enumerate(table.column_names):
        found = pc.match_substring(table.column(i), MARK)
        if pc.any(found).as_py():
            nothing = pa.scalar(None, table.column(i).type)
            table = table.set_column(i, name, pc.if_else(found, nothing, table.column(i)))
            for row in np.flatnonzero(pc.fill_null(found, False).to_numpy(zero_copy_only=False)):
                bad.setdefault(int(row), f"column {name!r} holds bytes that are not UTF-8")
    return table, bad


def _with_gaps(
    table: pa.Table, unread: Bad, first: int, wrong: list[tuple[int, str]]
) -> tuple[pa.Table, Bad]:
    """A row of nulls for each of the `wrong` ones among the rows from `first` on, which are taken out.

    `unread`: bad rows of the table as it is.
    """
    bad = Bad()
    while wrong and wrong[0][0] - first <= table.num_rows + len(bad):
        number, text = wrong.pop(0)
        bad[number - first] = text
    if not bad:
        return table, unread
    gap = np.zeros(table.num_rows + len(bad), bool)
    gap[list(bad)] = True
    places = np.flatnonzero(~gap)
    bad |= {int(places[row]): text for row, text in unread.items()}
    return table.take(pa.array(np.cumsum(~gap) - 1, mask=gap)), bad


def _parts(table: pa.Table, bad: Bad, rows: int) -> Iterator[tuple[pa.Table, Bad]]:
    for i, part in enumerate(slices(table, rows)):
        first = i * rows
        yield part, {row - first: bad[row] for row in bad if first <= row < first + part.num_rows}


# -------------------------------------------------------------------------------------------- JSON lines


def _json(piece: FilePiece, columns: list[str], rows: int, done: int) -> Iterator[tuple[pa.Table, Bad]]:
    """Line by line, without the first `done` rows."""
    for first, parsed, bad in _json_rows(piece, rows):
        table = pa.table([_array([row.get(name) for row in parsed], name, bad) for name in columns], columns)
        known = max(0, done - first)
        if known < len(parsed):
            yield table.slice(known), {row - known: text for row, text in bad.items() if row >= known}


def _json_rows(piece: FilePiece, rows: int) -> Iterator[tuple[int, list[dict[str, Any]], Bad]]:
    """The number of the first row, `rows` rows, and which lines are no JSON objects."""
    first, parsed, bad = 0, list[dict[str, Any]](), Bad()
    with piece.readable():
        for line in piece.text("keep"):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                wrong = None if isinstance(row, dict) else f"{str(row)[:40]!r}, not a JSON object"
            except (ValueError, RecursionError) as error:
                wrong = f"not JSON: {str(error)[:200]}"
            if wrong is not None:
                bad[len(parsed)], row = wrong, {}
            parsed.append(row)
            if len(parsed) == rows:
                yield first, parsed, bad
                first, parsed, bad = first + rows, [], Bad()
    if parsed:
        yield first, parsed, bad


def _array(values: list[Any], name: str, bad: Bad) -> pa.Array:
    """A column of the type that most values have; the others become null, and their rows bad."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError):
        pass
    common = _common_type(values)
    cells: list[Any] = []
    for row, value in enumerate(values):
        try:
            cells.append(pa.array([value], common)[0].as_py())
        except (pa.ArrowException, UnicodeError, OverflowError):
            cells.append(None)
            bad.setdefault(row, f"column {name!r} is {str(value)[:40]!r}, where other rows hold {common}")
    return pa.array(cells, common)


def _common_type(values: list[Any]) -> pa.DataType:
    """Of most values; whole numbers and others count as one type."""
    kinds = []
    for value in values:
        try:
            kinds.append(pa.infer_type([value]))
        except (pa.ArrowException, UnicodeError, OverflowError):
            continue
    alike: dict[pa.DataType, list[pa.DataType]] = {}
    for kind in kinds:
        if not pa.types.is_null(kind):
            alike.setdefault(_floating(kind), []).append(kind)
    if not alike:
        return pa.null()
    widest = max(alike, key=lambda kind: len(alike[kind]))
    return alike[widest][0] if len(set(alike[widest])) == 1 else widest


def _floating(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_floating(kind.value_type))
    return pa.float64() if pa.types.is_integer(kind) else kind
