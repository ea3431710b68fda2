"""What the files behind a path hold: splits, columns, names of classes. Reads a sample of train; no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ensemble_kd.config import DataConfig
from ensemble_kd.config.readable import readable
from ensemble_kd.data.decode import ColumnError, single
from ensemble_kd.data.files import FilePiece, data_folder, read_text
from ensemble_kd.data.folders import PicturePiece
from ensemble_kd.data.pieces import Piece, Source
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.sources import open_source
from ensemble_kd.data.split_names import stem
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.guess.columns import Column, column_of
from ensemble_kd.guess.names import CLASS_FILES, TARGET_FILES
from ensemble_kd.paths import is_url, missing

SAMPLED = 20_000
"""Rows of train that are looked at, spread over it."""
MOST_GROUPS = 32
"""Row groups of a Parquet file that are read for that."""
BATCH_ROWS = 4096
HEAVY = ("picture", "pixels", "other")
"""Kinds of columns of which a few rows tell enough."""
UNSUPERVISED = re.compile(r"unlabell?ed|unsup", re.IGNORECASE)
LONGEST_NAME = 80
"""Characters of a column's name in a header that is one."""


@dataclass
class Facts:
    """What was found in the files: kind, columns, splits, and samples of values."""

    path: str
    source: Source
    columns: dict[str, Column]
    """Of train; of class folders none."""
    sample: pa.Table
    """The sampled rows of the columns of texts, numbers and lists."""
    names: dict[str, list[str]]
    """Columns of each split."""
    splits: dict[str, Any] = field(default_factory=dict)
    """What `data.splits` has to say."""
    class_files: list[tuple[str, list[str]]] = field(default_factory=list)
    """Files beside the data with a name a line, and the names."""
    features: dict[str, list[str]] = field(default_factory=dict)
    """Names of classes by column, where the file itself tells them (Hugging Face `datasets`)."""
    targets: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def folders(self) -> bool:
        """Whether the data are folders of pictures, one for each class."""
        return isinstance(self.source.splits["train"][0], PicturePiece)


def inspect(path: str, splits: dict[str, Any] | None = None, csv: dict[str, Any] | None = None) -> Facts:
    """`splits` and `csv` as in the block `data`, where they are given.

    Raises InputError where there is nothing to read, or what there is has no header."""
    problems = Problems()
    try:
        fields = {"path": path, "kind": "image", "splits": splits or {}, "csv": csv or {}}
        data = DataConfig.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(list(map(str, readable(error, DataConfig, prefix="data")))) from error
    source = open_source(data, problems)
    if problems:
        raise InputError([re.sub(r"^data\.path: ", "--data: ", line) for line in problems.all()])
    found = Facts(path, source, {}, pa.table({}), {}, splits or {}, remarks=problems.warnings)
    if found.folders:
        return found
    for split, pieces in source.splits.items():
        try:
            found.names[split] = pieces[0].columns()
        except InputError as error:
            raise InputError([f"--data: {line}; give a file with rows" for line in error.problems]) from error
        _check_header(pieces[0], found.names[split])
    if splits is None and (unsupervised := _unsupervised(found)):
        return inspect(path, {"unlabelled": unsupervised}, csv)
    _sample(found)
    _read_names(found)
    return found


def _check_header(piece: Piece, names: list[str]) -> None:
    """Of a text file whose first row is a row like all others."""
    if not isinstance(piece, FilePiece) or piece.format != "csv":
        return
    odd = [n for n in names if len(n) > LONGEST_NAME or re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", n)]
    if odd and len(names) > 1 and len(odd) < 8:
        raise InputError(
            f"--data: the first row of {piece.name} looks like data, not like names of columns: "
            f"{', '.join(repr(n[:40]) for n in names[:4])}; write a first row of names, as in text,label"
        )


def _unsupervised(found: Facts) -> str | None:
    """A file whose name says that it has no labels, of those that are no split."""
    path = Path(found.path).expanduser()
    if is_url(found.path) or not path.is_dir():
        return None
    used = {
        getattr(piece, "path", "") for pieces in found.source.splits.values() for piece in pieces
    }  # absolute
    for file in sorted(path.iterdir()):
        if UNSUPERVISED.search(file.name) and file.is_file() and str(file.absolute()) not in used:
            return stem(file.name)
    return None


# ---------------------------------------------------------------------------------------------- columns


def _sample(found: Facts) -> None:
    pieces = found.source.splits["train"]
    names = found.names["train"]
    light: list[str] = []
    for name, column in _first(pieces, names).items():
        found.columns[name] = column
        if column.kind not in HEAVY:
            light.append(name)
    if not light:
        return
    each = -(-SAMPLED // len(pieces))
    tables = [table for piece in pieces for table in spread(piece, light, each)]
    if not tables or not sum(table.num_rows for table in tables):
        raise InputError(
            f"--data: no rows in {', '.join(piece.name for piece in pieces[:3])}; give a file that has some"
        )
    untyped = any(isinstance(piece, FilePiece) and piece.format == "csv" for piece in pieces)
    try:
        found.sample = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # one column of two types: whoever reads all rows says which
        found.sample = max(tables, key=lambda table: table.num_rows)
    for name in light:
        found.columns[name] = column_of(name, single(found.sample[name]), untyped)


def _first(pieces: list[Piece], names: list[str]) -> dict[str, Column]:
    """All columns by some of the first rows. Raises InputError where there are none."""
    for piece in pieces:
        for table in piece.batches(names, 256):
            if table.num_rows:
                untyped = isinstance(piece, FilePiece) and piece.format == "csv"
                return {name: _column(name, table[name], untyped) for name in names}
    raise InputError(f"--data: no rows in {pieces[0].name}; give a file that has some")


def _column(name: str, chunked: pa.ChunkedArray, untyped: bool) -> Column:
    try:
        return column_of(name, single(chunked), untyped)
    except (ColumnError, pa.ArrowException):
        return Column(name, "other", str(chunked.type), len(chunked))


def spread(piece: Piece, columns: list[str], rows: int) -> Iterator[pa.Table]:
    """About `rows` rows of a piece, spread over it: files may be sorted by class."""
    if isinstance(piece, FilePiece) and piece.format == "parquet":
        with piece.readable(), piece.fs.open_input_file(piece.path) as opened, pq.ParquetFile(opened) as file:
            groups = _evenly(file.num_row_groups, MOST_GROUPS)
            for group in groups:
                wanted = _evenly(file.metadata.row_group(int(group)).num_rows, -(-rows // len(groups)))
                begin = 0
                for batch in file.iter_batches(BATCH_ROWS, [int(group)], columns, use_threads=False):
                    here = wanted[(wanted >= begin) & (wanted < begin + batch.num_rows)] - begin
                    begin += batch.num_rows
                    yield plain(pa.table(batch)).take(pa.array(here, pa.int64()))
        return
    # The length is not known: all of the first quarter, then every second row, every fourth, ...
    step, taken, begin = 1, 0, 0
    for table in piece.batches(columns, BATCH_ROWS):
        here = np.arange(-begin % step, table.num_rows, step)
        yield plain(table).take(pa.array(here, pa.int64()))
        begin, taken = begin + table.num_rows, taken + len(here)
        if taken >= rows // 4:
            step, taken = step * 2, 0


def plain(table: pa.Table) -> pa.Table:
    """Without dictionaries, views and the like, which `take` has not for all."""
    return pa.table({name: single(table[name]) for name in table.column_names})


def _evenly(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, max(0, count - 1), min(count, wanted)).round().astype(np.int64))


# ----------------------------------------------------------------------------------------------- names


def _read_names(found: Facts) -> None:
    """Files of names beside the data, and what the data's own file says of its columns."""
    try:
        folder, query = data_folder(found.path)
    except (OSError, ValueError):
        return
    if not is_url(folder):
        for name in CLASS_FILES + TARGET_FILES:
            beside = f"{folder.rstrip('/')}/{name}{query}"
            if missing(beside, "file") is not None:
                continue
            lines = [line.strip() for line in read_text(beside, "--data").splitlines()]
            lines = [line for line in lines if line]
            if name in CLASS_FILES:
                found.class_files.append((name, lines))
            else:
                found.targets = [line for line in lines if line in found.columns]
    piece = found.source.splits["train"][0]
    if isinstance(piece, FilePiece) and piece.format == "parquet":
        with piece.readable(), piece.fs.open_input_file(piece.path) as opened:
            found.features = _features(pq.read_schema(opened).metadata or {})


def _features(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Of `ClassLabel` columns, as the library `datasets` writes them into a file's schema."""
    try:
        features: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def run_name(path: str) -> str:
    """What a run on this path is called: the folder's or file's name, without what says a split."""
    local = path if is_url(path) else str(Path(path).expanduser().absolute())
    parts = [part for part in PurePosixPath(local.split("?", 1)[0]).parts if part not in ("/", ".", "..")]
    for part in reversed(parts):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem(part) if "." in part else part).strip("-._")
        if name and name.lower() not in ("train", "test", "data", "validation") and "*" not in part:
            return name[:100]
    return "data"
