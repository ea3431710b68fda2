"""Predict files with a model folder: no run folder, no tracking, and no Ray unless the input is large."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pc
import pyarrow.parquet as pq

from ensemble_kd.config import CsvConfig
from ensemble_kd.data.decode import Bad, single
from ensemble_kd.data.files import FilePiece, list_files
from ensemble_kd.data.folders import PATH, left_out, open_pictures
from ensemble_kd.data.preprocess import no_column
from ensemble_kd.data.tolerant import batches, columns_of
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.inference.predictor import Answers, Predictor
from ensemble_kd.paths import is_url, missing_data

SUFFIXES = (".parquet", ".csv", ".jsonl")
ON_BAD_ROW = ("error", "skip", "null")
"""`error`: nothing is written; `skip`: the row is left out; `null`: it stands there without an answer."""


def predict_file(
    model: Path,
    source: str,
    output: Path | None,
    batch_size: int,
    write: Callable[[str], None],
    *,
    form: str = "auto",
    on_bad_row: str = "skip",
    truncate: bool = False,
    threads: int = 1,
    strict: bool = False,
    note: Callable[[str], None] = lambda text: None,
    trust: Collection[str] = (),
) -> list[str]:
    """Write one line per row: id, label, probability of each class; returns what is wrong with bad rows.

    A row's probabilities are null where it is bad and `on_bad_row` is `null`; `answered` says whether the
    confidence reaches the model's threshold, where it has one. Columns that the model does not know are told
    to `note`, and with `strict` an error. `trust` is that of `load_package`.
    Raises InputError for an unreadable model folder or input, an unknown output format or folder, and with
    `on_bad_row` `error` for bad rows; an output file is there whole or not at all.
    """
    check_output(output)
    if (problem := missing_data(source)) is not None:
        raise InputError(f"INPUT: {problem}")
    if output is not None and not is_url(source) and Path(source).resolve() == output.resolve():
        raise InputError(f"--output: {output} is the input itself; write to another file")
    if on_bad_row not in ON_BAD_ROW:
        raise InputError(f"--on-bad-row: {on_bad_row!r}; use {', '.join(ON_BAD_ROW)}")
    predictor = load_predictor(model, form, threads, trust)
    problems: list[str] = []
    first = 0
    with _writer(output, predictor, write) as writer:
        for table, bad in tables(source, predictor, batch_size, strict, note):
            try:
                answers = predictor.answer(table, batch_size, truncate)
            except ArtifactError as error:
                raise InputError(str(error).splitlines()) from error
            named = _names(table, predictor)
            for row, problem in bad.items():
                answers.problems[row] = problem
            problems += [
                f"row {first + i}{named(i)}: {problem}"
                for i, problem in enumerate(answers.problems)
                if problem
            ]
            if not problems or on_bad_row != "error":
                writer.add(result(table, answers, predictor, first, keep_bad=on_bad_row == "null"))
            first += table.num_rows
        if first == 0:
            raise InputError(f"{source}: holds no rows")
        if problems and on_bad_row == "error":
            more = [f"and {len(problems) - 10} more rows"] if len(problems) > 10 else []
            raise InputError([*problems[:10], *more, "use --on-bad-row skip or null to go on without them"])
        writer.finish()
    return problems


def check_output(output: Path | None) -> None:
    """Raises InputError for a file that cannot be written to."""
    if output is not None and output.suffix not in SUFFIXES:
        raise InputError(f"--output: {output}: unknown format {output.suffix!r}; use {', '.join(SUFFIXES)}")
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output: {output}: no such folder: {output.parent}")


def load_predictor(
    model: Path, form: str = "auto", threads: int = 1, trust: Collection[str] = ()
) -> Predictor:
    """Raises InputError for a folder that cannot be used."""
    try:
        return Predictor(model, form, threads, trust)
    except ArtifactError as error:
        raise InputError(str(error).splitlines()) from error


def tables(
    source: str, predictor: Predictor, rows: int, strict: bool, note: Callable[[str], None]
) -> Iterator[tuple[pa.Table, Bad]]:
    """The needed columns of the input's files, some rows at a time, and rows that cannot be parsed.

    Of a folder of pictures, or a picture's file, their bytes and paths.
    """
    if predictor.info.kind == "image" and len(predictor.columns) == 1:
        pictures = open_pictures(source, predictor.columns[0])
        if pictures is not None:
            if pictures.others:
                note(f"{source}: {left_out('no picture', pictures.others)}")
            for table in pictures.batches(pictures.columns(), rows):
                yield table, Bad()
            return
    for piece in input_files(source, predictor, note):
        yield from batches(piece, wanted_columns(piece, predictor, strict, note), rows)


def input_files(source: str, predictor: Predictor, note: Callable[[str], None]) -> list[FilePiece]:
    """The files behind a path or URL, to be read as the training data were where a setting said how.

    A setting that a file does not go by, which its header or its bytes tell, is left aside: it was made for
    other files.
    """
    told: set[str] = set()

    def once(text: str) -> None:
        if text not in told:
            told.add(text)
            note(text)

    csv = CsvConfig(**predictor.info.preprocess.get("csv", {}))
    pieces = list_files(source, "INPUT", csv, once)[0]
    for piece in pieces:
        piece.other = True
        if piece.format == "csv" and csv.delimiter is not None:
            if not set(predictor.columns) <= set(columns_of(piece)):
                piece.csv = csv.model_copy(update={"delimiter": None})
    return pieces


def wanted_columns(
    piece: FilePiece,
    predictor: Predictor,
    strict: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Raises InputError where a column is missing, and with `strict` where one is unknown."""
    held = columns_of(piece)
    missing = [name for name in predictor.columns if name not in held]
    if missing:
        raise InputError([f"INPUT: {no_column(name, piece.name, held)}" for name in missing])
    used = [*predictor.columns, predictor.id_column]
    if twice := [name for name in dict.fromkeys(held) if held.count(name) > 1 and name in used]:
        raise InputError(
            f"INPUT: {piece.name} has {held.count(twice[0])} columns of the name {twice[0]!r}; rename or "
            "remove all but one"
        )
    if unknown := [name for name in held if name not in predictor.known_columns]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        names = ", ".join(map(repr, unknown[:5])) + more
        if strict:
            taken = ", ".join(map(repr, predictor.known_columns[:10]))
            raise InputError(
                f"INPUT: {piece.name} has columns that the model does not know: {names}; it knows {taken}"
            )
        note(f"{piece.name}: columns that the model does not know are not read: {names}")
    key = predictor.id_column
    return [*predictor.columns, *([key] if key in held and key not in predictor.columns else [])]


def result(
    table: pa.Table, answers: Answers, predictor: Predictor, first: int, keep_bad: bool = False
) -> pa.Table:
    """What is written of a table's rows, of which `first` is the number of the first."""
    key = _id_column(table, predictor)
    ids = _ids(table[key]) if key is not None else pa.array(range(first, first + table.num_rows))
    rows = np.arange(table.num_rows) if keep_bad else answers.good
    bad = np.array([answers.problems[i] is not None for i in rows], bool)
    probabilities = answers.probabilities[rows].astype(float)
    probabilities[bad] = 0.0
    shown = predictor.target.table(probabilities, bad, predictor.class_names, predictor.threshold)
    columns = {"id": ids.take(pa.array(rows)), **shown}
    if keep_bad:
        columns["problem"] = pa.array([answers.problems[i] for i in rows], pa.string())
    return pa.table(columns)


def _ids(column: pa.ChunkedArray) -> pa.Array:
    """Of a type that every format of output has: decimals, dates and the like as text."""
    ids = single(column)
    kept = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_null)
    if any(holds(ids.type) for holds in kept):
        return ids
    try:
        return pa.compute.cast(ids, pa.string())
    except pa.ArrowException:  # bytes that are no text, lists, structs
        return pa.array([None if each is None else _plain(each) for each in ids.to_pylist()], pa.string())


def _id_column(table: pa.Table, predictor: Predictor) -> str | None:
    """The training data's column of ids, or the paths of pictures; None where the table has neither."""
    names = [predictor.id_column, *([PATH] if PATH not in predictor.columns else [])]
    return next((name for name in names if name in table.column_names), None)


def _names(table: pa.Table, predictor: Predictor) -> Callable[[int], str]:
    """What messages add to a row's number: the path of a picture."""
    if PATH not in table.column_names or PATH in predictor.columns:
        return lambda i: ""
    return lambda i: f" ({table[PATH][i].as_py()})"


# ------------------------------------------------------------------------------------------- writing


class Writer(Protocol):
    """Where results go, some rows at a time."""

    def __enter__(self) -> Writer: ...
    def __exit__(self, *error: object) -> None: ...
    def add(self, table: pa.Table) -> None: ...
    def finish(self) -> None:
        """All rows are there: put the file in its place."""


def _writer(output: Path | None, predictor: Predictor, write: Callable[[str], None]) -> Writer:
    return ScreenWriter(write) if output is None else FileWriter(output, predictor.class_names)


class ScreenWriter:
    """One JSON line a row."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def __enter__(self) -> ScreenWriter:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def add(self, table: pa.Table) -> None:
        for line in _lines(table):
            self.write(line)

    def finish(self) -> None:
        return None


class FileWriter:
    """Parquet, CSV or JSON lines by the name's ending; under another name until it is whole."""

    def __init__(self, output: Path, class_names: list[str]) -> None:
        self.output, self.class_names = output, class_names
        self.partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
        self.writer: Any = None

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self.partial.unlink(missing_ok=True)

    def add(self, table: pa.Table) -> None:
        if self.output.suffix == ".jsonl":
            self.writer = self.writer or self.partial.open("w", encoding="utf-8")
            self.writer.writelines(f"{line}\n" for line in _lines(table))
            return
        if self.output.suffix == ".csv" and "probabilities" in table.column_names:
            table = self._flat(table)
        if self.writer is None:
            make = pq.ParquetWriter if self.output.suffix == ".parquet" else pc.CSVWriter
            self.writer = make(self.partial, table.schema)
        self.writer.write_table(table)

    def _flat(self, table: pa.Table) -> pa.Table:
        """CSV has no lists: one column a class."""
        values = [row or [None] * len(self.class_names) for row in table["probabilities"].to_pylist()]
        flat = table.drop_columns(["probabilities"])
        for i in range(len(self.class_names)):
            flat = flat.append_column(f"probability_{i}", pa.array([row[i] for row in values], pa.float64()))
        return flat

    def finish(self) -> None:
        self.writer.close()
        self.writer = None
        os.replace(self.partial, self.output)


def _lines(table: pa.Table) -> Iterator[str]:
    for row in table.to_pylist():
        if isinstance(row["id"], float) and not math.isfinite(row["id"]):
            row["id"] = None  # JSON has no NaN
        yield json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: Any) -> str:
    """An id that JSON has no type for: a date, a decimal, bytes."""
    return value.hex() if isinstance(value, bytes) else str(value)
