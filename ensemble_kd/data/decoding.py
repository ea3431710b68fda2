"""Rows of a source as decoded inputs, with what is wrong by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ensemble_kd.config import Config, DataConfig
from ensemble_kd.data.decode import ColumnError, empty_texts
from ensemble_kd.data.folders import PicturePiece
from ensemble_kd.data.images import Pictures
from ensemble_kd.data.preprocess import InputReader
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.reading import Reading
from ensemble_kd.data.survey import survey
from ensemble_kd.data.table import TableEncoder, learn_table
from ensemble_kd.errors import InputError


def decoded(
    reading: Reading, reader: InputReader, split: str, problems: Problems, filled: bool = False
) -> Iterator[tuple[int, int, Any]]:
    """Yields for each piece: its first row's number in the split, its number of rows, and the decoded inputs.

    Rows that cannot be decoded are added to `problems`.

    With `filled` an empty text in train is a problem, too.
    """
    hopeless: set[str] = set()
    for piece, first, begin, table in reading.tables(split, reader.columns):
        if piece.name in hopeless:
            continue
        try:
            values, bad = reader(table)
        except ColumnError as error:
            hopeless.add(piece.name)
            columns = ", ".join(map(repr, reader.columns[:3])) + (" ..." if len(reader.columns) > 3 else "")
            problems.add(f"data.columns.input: {columns} of {piece.name} {error}")
            continue
        if isinstance(piece, PicturePiece):
            bad = {i: f"{piece.paths[first + i]}: {message}" for i, message in bad.items()}
        if filled and split == "train":
            bad = dict(sorted((empty_texts(values) | bad).items()))
        problems.add_rows("bad inputs", piece.name, first, bad)
        if bad and reader.kind == "numeric" and reader.table is None and len(reader.columns) > 1:
            problems.add(
                "data.table: where columns hold words or lack numbers, --set data.table={} makes columns of "
                "0 and 1 of words, and the mean of train of what is missing"
            )
        yield begin, table.num_rows, values


def reader_of(config: Config, reading: Reading, problems: Problems) -> InputReader:
    data, layout = config.data, config.data.image
    if data.table is not None:
        return InputReader(data.kind, data.columns, table=_table(data, reading))
    if data.kind != "image":
        return InputReader(data.kind, data.columns)
    if data.source == "digits":
        return InputReader(data.kind, data.columns, [8, 8, 1])
    shape = None if layout.shape is None else list(layout.shape)
    found = survey(reading.source, data, problems) if shape is None or layout.for_encoded else None
    if shape is None and found is not None:
        shape = found.shape
    grey = found is not None and found.grey and shape == found.shape
    return InputReader(
        data.kind, data.columns, shape, Pictures(layout.resize is not None, training=True, grey=grey)
    )


def _table(data: DataConfig, reading: Reading) -> TableEncoder:
    """How columns become numbers, from all rows of the source's train. Raises InputError if they cannot."""
    assert data.table is not None
    if reading.table is not None:
        return reading.table
    names = [data.columns.input] if isinstance(data.columns.input, str) else list(data.columns.input)
    tables = (table for _, _, _, table in reading.tables("train", names))
    try:
        reading.table = learn_table(tables, names, data.table.most_values)
    except ColumnError as error:
        raise InputError([f"data.columns.input: {error}"]) from error
    return reading.table


def has_no_empty_texts(config: Config) -> bool:
    """Whether an empty text of train is an error: nothing but special tokens would stand for it."""
    return config.data.kind == "text" and config.data.text.tokenizer == "pretrained"
