"""Raw rows to inputs: one code path for preparing data and for `predict`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.config import ColumnsConfig, TextConfig
from ensemble_kd.data.decode import Bad, ColumnError, decode_numbers, decode_pairs, decode_texts, single
from ensemble_kd.data.decode_images import decode_images, image_shape
from ensemble_kd.data.images import AS_THEY_ARE, Pictures
from ensemble_kd.data.records import DataInfo
from ensemble_kd.data.table import TableEncoder
from ensemble_kd.data.tokenize import load_tokenizer, pad
from ensemble_kd.errors import InputError

LONGEST = 1 << 20
"""Tokens; no text is cut at so many."""
LONGEST_NAME = 100
"""Characters of a column's name in a message."""
TOO_LONG = "the rest would be cut off"
"""In what is said of a row with a longer text: those who allow cutting by an option name it then."""


class InputReader:
    """Decodes the input column(s) of tables. The shape is given, or found in the first rows that tell."""

    def __init__(
        self,
        kind: str,
        columns: ColumnsConfig,
        shape: list[int] | None = None,
        pictures: Pictures = AS_THEY_ARE,
        *,
        table: TableEncoder | None = None,
    ) -> None:
        """Two columns of texts make pairs; `table` encodes columns of words, or with missing numbers."""
        self.kind = kind
        self.columns = [columns.input] if isinstance(columns.input, str) else list(columns.input)
        self.shape = shape
        self.pictures = pictures
        self.table = table
        if table is not None:
            self.shape = [table.width]

    def __call__(self, table: pa.Table) -> tuple[Any, Bad]:
        """Images (N, H, W, C), numbers (N, F), a list of texts or of pairs; and what is wrong, by row.

        Raises ColumnError where the column cannot hold such inputs.
        """
        arrays = [single(table[name]) for name in self.columns]
        if self.kind == "text":
            return decode_texts(arrays[0]) if len(arrays) == 1 else decode_pairs(arrays, self.columns)
        if self.table is not None:
            return self.table(arrays)
        if self.kind == "numeric":
            numbers, bad = decode_numbers(arrays, self.columns, self.shape[0] if self.shape else None)
            self.shape = [numbers.shape[1]]
            return numbers, bad
        if self.shape is None:
            found = image_shape(arrays, None, self.pictures)
            if found is None:
                return None, {i: "no image to be read" for i in range(table.num_rows)}
            self.shape = list(found)
        height, width, channels = self.shape
        shape = (height, width, channels)
        image_shape(arrays, shape)  # the type of the column
        return decode_images(arrays, self.columns, shape, self.pictures)


class Preprocessor:
    """What `predict` needs: tables with the input column(s) to inputs."""

    def __init__(self, info: DataInfo, folder: Path) -> None:
        """`folder` holds tokenizer.json where the vocabulary was learned or pretrained."""
        self.info = info
        columns = ColumnsConfig(**info.preprocess["columns"])
        shape = None if info.kind == "text" else info.input_shape
        resize = info.preprocess.get("image", {}).get("resize") is not None
        self.reader = InputReader(info.kind, columns, shape, Pictures(resize), table=table_encoder(info))
        self.columns = self.reader.columns
        self.tokenizer = None
        if info.kind == "text":
            text = TextConfig(**info.preprocess["text"])
            if text.tokenizer == "pretrained":  # cuts by itself, so that the last special token stays
                text = text.model_copy(update={"max_length": info.input_shape[0]})
            self.tokenizer = load_tokenizer(text, folder)
            self._whole = load_tokenizer(text.model_copy(update={"max_length": LONGEST}), folder)

    def transform(self, table: pa.Table, truncate: bool = True) -> tuple[np.ndarray, list[str | None]]:
        """Inputs (N, ...) and what is wrong with each row, None where nothing is; a bad row's input is 0.

        Texts are cut to the length that training cut them to; without `truncate` a longer one is a bad row.
        Raises InputError where a column is missing.
        """
        missing = [name for name in self.columns if name not in table.column_names]
        if missing:
            raise InputError(
                [missing_column("input", name, "the input", table.column_names) for name in missing]
            )
        rows = table.num_rows
        problems: list[str | None] = [None] * rows
        kind = {"image": np.uint8, "numeric": np.float32, "text": np.int32}[self.info.kind]
        try:
            values, bad = self.reader(table)
        except ColumnError as error:
            columns = ", ".join(map(repr, self.columns))
            return np.zeros((rows, *self.info.input_shape), kind), [f"column {columns} {error}"] * rows
        if self.tokenizer is not None:
            if not truncate:
                bad = self._too_long(values, bad)
            values = pad(*self.tokenizer.encode(values), self.info.input_shape[0])
            values[list(bad)] = 0
        for i, message in bad.items():
            problems[i] = message
        return values, problems

    def _too_long(self, texts: list[Any], bad: Bad) -> Bad:
        """`bad`, and the texts that the tokenizer would cut."""
        assert self._whole is not None
        most = self.info.input_shape[0]
        lengths = np.diff(self._whole.encode(texts)[1])
        found = {
            int(i): f"a text of {lengths[i]:,} tokens; the model takes {most:,}, {TOO_LONG}"
            for i in np.flatnonzero(lengths > most)
        }
        return dict(sorted((found | bad).items()))


def table_encoder(info: DataInfo) -> TableEncoder | None:
    """What encodes the columns of a table with words or missing numbers; None where there is none."""
    found = info.preprocess.get("table")
    if not found:
        return None
    names = info.preprocess["columns"]["input"]
    return TableEncoder.from_list([names] if isinstance(names, str) else list(names), found)


def missing_column(field: str, name: str, source: str, columns: list[str]) -> str:
    """`data.columns.input: no column 'imgae' in train.csv; it has 'image', 'label'; did you mean 'image'?`"""
    return f"data.columns.{field}: {no_column(name, source, columns)}"


def no_column(name: str, source: str, columns: list[str]) -> str:
    """What `missing_column` says after the field."""
    short = (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in columns[:10])
    shown = ", ".join(map(repr, short))
    shown += f" and {len(columns) - 10} more" if len(columns) > 10 else ""
    return f"no column {name!r} in {source}; it has {shown or 'none'}{meant(name, columns)}"


def meant(name: str, columns: list[str]) -> str:
    """`; did you mean 'image'?`, or nothing where no column is called nearly so."""
    close = difflib.get_close_matches(name, columns, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
