"""Parquet, CSV, JSON-lines and Arrow files: by path, folder, glob or URL.

Nothing here interprets a value; `decode` and `labels` do.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from ensemble_kd.config import DataConfig
from ensemble_kd.data.pieces import Source, slices
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.split_names import assign, same_rows
from ensemble_kd.errors import InputError
from ensemble_kd.mirror import remote_system

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
BLOCK_BYTES = 16 * 2**20
"""Text parsed at once; a single row must fit."""


@dataclass
class FilePiece:
    """A Parquet, CSV, JSON-lines or Arrow file. CSV columns come as strings: the whole column decides."""

    fs: Any
    path: str
    name: str

    @property
    def format(self) -> str:
        return file_format(self.path) or ""

    def columns(self) -> list[str]:
        with self.readable():
            if self.format == "parquet":
                with self.fs.open_input_file(self.path) as file:
                    return pq.read_schema(file).names
            if self.format == "arrow":
                return self._arrow_reader().schema.names
            opened = self.open_csv(None, lambda row: "skip") if self.format == "csv" else self._open_json()
            return opened.schema.names

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        with self.readable():
            for table in self._tables(columns, rows):
                yield from slices(table, rows)

    def open_stream(self) -> Any:
        """The bytes, decompressed by the name's ending."""
        return self.fs.open_input_stream(self.path)

    def _tables(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        if self.format == "parquet":
            with self.fs.open_input_file(self.path) as opened, pq.ParquetFile(opened) as file:
                for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                    yield pa.table(batch).select(columns)
            return
        if self.format == "arrow":
            reader = self._arrow_reader()
            if isinstance(reader, pa.RecordBatchFileReader):
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(reader)
        else:
            batches = iter(self.open_csv(columns) if self.format == "csv" else self._open_json())
        for batch in batches:
            yield pa.table(batch).select(columns)

    def open_csv(self, columns: list[str] | None, invalid_row: Callable[[Any], str] | None = None) -> Any:
        """`invalid_row` says of a row with another number of cells whether to `skip` it, or to fail."""
        tabs = ".tsv" in PurePosixPath(self.path).suffixes
        return pacsv.open_csv(
            self.open_stream(),
            read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter="\t" if tabs else ",", newlines_in_values=True, invalid_row_handler=invalid_row
            ),
            convert_options=pacsv.ConvertOptions(
                include_columns=columns or [],
                column_types={name: pa.string() for name in columns or []},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _open_json(self) -> Any:
        return pajson.open_json(
            self.open_stream(),
            read_options=pajson.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        )

    def _arrow_reader(self) -> Any:
        file = self.fs.open_input_file(self.path)
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # not the random-access form: the stream form
            file.seek(0)
            return pa.ipc.open_stream(file)

    def readable(self) -> _Readable:
        """A context in which what Arrow says of a broken file becomes an InputError."""
        return _Readable(self.name, self.format)


class _Readable:
    """Turns what Arrow says about a broken file into an InputError that names the file."""

    NAMES = {"csv": "CSV", "json": "JSON lines", "parquet": "Parquet", "arrow": "Arrow"}

    def __init__(self, name: str, format: str) -> None:
        self.name, self.format = name, format

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            if str(error).startswith(("Empty CSV", "Empty JSON")):
                raise InputError(f"{self.name}: empty") from error
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.name}: cannot be read as {self.NAMES[self.format]}: {first}") from error


def file_format(path: str) -> str | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def file_system(path: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URL, and the path inside it."""
    if "://" not in path:
        return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    if path.startswith("file://"):
        return pafs.LocalFileSystem(), path.removeprefix("file://")
    return remote_system(path)


def is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def fixed_folder(path: str) -> str:
    """The folder above the first wildcard."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if is_glob(part))
    return "/".join(parts[:first]) or "/"


def list_files(path: str, where: str) -> tuple[list[FilePiece], bool]:
    """The data files behind a file, folder, glob or URL, sorted by path; and whether it is a folder.

    `where` is the field that names the path. Raises InputError where there is nothing to read.
    """
    try:
        fs, inside = file_system(path)
        if "://" not in path and Path(inside).is_file():
            found, base = [inside], str(PurePosixPath(inside).parent)
            folder = False
        elif is_glob(inside):
            base, folder = fixed_folder(inside), False
            every = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
            found = [f.path for f in every if f.is_file and _matches(f.path, inside)]
            if not found:
                raise InputError(f"{where}: no file matches {path}")
        else:
            entry = fs.get_file_info(inside)
            if entry.type == pafs.FileType.NotFound:
                raise InputError(f"{where}: no such file or folder: {path}")
            folder = entry.type == pafs.FileType.Directory
            base = inside if folder else str(PurePosixPath(inside).parent)
            listed = fs.get_file_info(pafs.FileSelector(inside, recursive=True)) if folder else [entry]
            found = [f.path for f in listed if not folder or (f.is_file and file_format(f.path))]
            if not found:
                raise InputError(f"{where}: no data file in {path}; known endings: {', '.join(FORMATS)}")
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise InputError(f"{where}: cannot open {path}: {error}") from error
    unknown = [name for name in found if file_format(name) is None]
    if unknown:
        raise InputError(
            f"{where}: {unknown[0]} is of no known kind; the name must end in one of {', '.join(FORMATS)}"
        )
    names = [name.removeprefix(base).lstrip("/") for name in found]
    return [FilePiece(fs, p, name) for p, name in sorted(zip(found, names, strict=True))], folder


def _matches(path: str, pattern: str) -> bool:
    """Shell wildcards part by part; `**` stands for any number of folders."""
    parts, patterns = path.split("/"), pattern.split("/")

    def match(i: int, j: int) -> bool:
        if j == len(patterns):
            return i == len(parts)
        if patterns[j] == "**":
            return any(match(k, j + 1) for k in range(i, len(parts) + 1))
        return i < len(parts) and fnmatch.fnmatchcase(parts[i], patterns[j]) and match(i + 1, j + 1)

    return match(0, 0)


def open_files(data: DataConfig, source: Source, problems: Problems) -> None:
    paths = data.path if isinstance(data.path, dict) else {"": data.path}
    for split, path in paths.items():
        where = f"data.path.{split}" if split else "data.path"
        if path is None:
            problems.add(f"{where}: missing; give a file, folder, glob or URL")
            continue
        try:
            pieces, folder = list_files(path, where)
        except InputError as error:
            for line in error.problems:
                problems.add(line)
            continue
        if split or not folder:
            same_rows(pieces, where, problems)
            source.splits[split or "train"] = list(pieces)
            if data.splits:
                problems.add(f"data.splits: for a folder as data.path, which {path} is not; leave it out")
            continue
        for name, files in assign(pieces, data.splits, path, where, problems).items():
            source.splits[name] = list(files)
