"""Parquet, CSV, JSON and Arrow files: by path, folder, glob or URL.

Nothing here interprets a value; `decode` and `labels` do.
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from ensemble_kd.config import CsvConfig, DataConfig
from ensemble_kd.data.csv_format import find_delimiter, first_rows, sample_of
from ensemble_kd.data.decode import Bad
from ensemble_kd.data.fetch import fetch, is_web, web_name
from ensemble_kd.data.json_stream import json_lines
from ensemble_kd.data.pieces import Source, slices
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.readable import LONGEST_TEXT, Readable, checked
from ensemble_kd.data.split_names import assign, same_rows
from ensemble_kd.data.text_stream import CHUNK, ChunkStream, Tell, Wrong, decode_text, decompressed, utf8
from ensemble_kd.errors import InputError
from ensemble_kd.mirror import remote_system
from ensemble_kd.paths import WILDCARDS, is_url, missing, missing_data, shown
from ensemble_kd.remote import asked

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
    """A Parquet, CSV, JSON or Arrow file. CSV columns come as strings: the whole column decides."""

    fs: Any
    path: str
    name: str
    """What messages call it."""
    origin: str = ""
    """The path or URL that names it alone, for another process."""
    csv: CsvConfig = CsvConfig()
    """Delimiter and encoding where they are given."""
    tell: Tell = lambda text: None
    """Told what was found that is not plain UTF-8."""
    other: bool = False
    """Whether `csv` is how other files were written: a file that is UTF-8 is UTF-8."""
    _delimiter: str | None = None

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
            if self.format == "json":
                return self._open_json().schema.names
            return self._header()

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        first = 0
        for table, bad in self.tables(columns, rows):
            if bad:
                row, text = next(iter(bad.items()))
                raise InputError(f"row {first + row} of {self.name}: {text}")
            yield from slices(table, rows)
            first += table.num_rows

    def tables(self, columns: list[str], rows: int) -> Iterator[tuple[pa.Table, Bad]]:
        """Yields the columns as they lie in the file, some `rows` at a time or more.

        Texts that are not UTF-8 are null, and come with the numbers of their rows.
        """
        with self.readable():
            for table in self._tables(columns, rows):
                yield checked(table)

    def text(self, wrong: Wrong = "raise") -> io.BufferedReader:
        """The file decompressed and in UTF-8; JSON as objects on lines. See `utf8` for `wrong`."""
        raw = self.fs.open_input_stream(self.path, compression=None)
        suffix = PurePosixPath(self.path).suffix.lower()
        given, fallback = (None, self.csv.encoding) if self.other else (self.csv.encoding, None)
        chunks = utf8(decompressed(raw, suffix), self.name, given, self.tell, wrong, fallback)
        if self.format == "json":
            chunks = json_lines(chunks, self.name, BLOCK_BYTES, wrong == "raise")
        return io.BufferedReader(ChunkStream(chunks), CHUNK)

    @property
    def delimiter(self) -> str:
        if self.csv.delimiter is not None:
            return self.csv.delimiter
        if self._delimiter is None:
            tabs = ".tsv" in PurePosixPath(self.path.lower()).suffixes
            self._delimiter = find_delimiter(*self._sample(), "\t" if tabs else ",")
        return self._delimiter

    def _sample(self) -> tuple[str, bool]:
        with self.text("keep") as file:
            return sample_of(file, BLOCK_BYTES)

    def _header(self) -> list[str]:
        """The names in the first row of a CSV file."""
        sample, cut = self._sample()
        if not sample.strip():
            raise InputError(f"{self.name}: empty")
        rows = first_rows(sample, self.delimiter, cut)
        if not rows:
            raise InputError(
                f"{self.name}: cannot be read as CSV: no header in its first {len(sample):,} characters; the "
                "first row must name the columns"
            )
        return rows[0]

    def _tables(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        if self.format == "parquet":
            with self.fs.open_input_file(self.path) as opened, pq.ParquetFile(opened) as file:
                for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
                    yield as_table(batch, columns)
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
            yield as_table(batch, columns)

    def open_csv(
        self, columns: list[str], invalid_row: Callable[[Any], str] | None = None, wrong: Wrong = "raise"
    ) -> Any:
        """`invalid_row` says of a row with another number of cells whether to `skip` it, or to fail."""
        return pacsv.open_csv(
            self.text(wrong),
            read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=invalid_row
            ),
            convert_options=pacsv.ConvertOptions(
                check_utf8=False,  # `text` and `checked` see to it
                include_columns=columns,
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _open_json(self) -> Any:
        """Arrow makes times of texts that look like them; these stay texts."""
        reader = self._json_reader(None)
        texts = [field.name for field in reader.schema if pa.types.is_timestamp(field.type)]
        return self._json_reader(pa.schema([(name, pa.string()) for name in texts])) if texts else reader

    def _json_reader(self, schema: pa.Schema | None) -> Any:
        return pajson.open_json(
            self.text(),
            read_options=pajson.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pajson.ParseOptions(explicit_schema=schema),
        )

    def _arrow_reader(self) -> Any:
        file = self.fs.open_input_file(self.path)
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # not the random-access form: the stream form
            file.seek(0)
            return pa.ipc.open_stream(file)

    def readable(self) -> Readable:
        """A context in which what a parser says of a broken file becomes an InputError."""
        return Readable(self.name, self.format)


def as_table(batch: pa.RecordBatch, columns: list[str]) -> pa.Table:
    """Not by pa.table, which takes the lengths of buffers from offsets that nobody has looked at."""
    return pa.Table.from_batches([batch]).select(columns)


def file_format(path: str) -> str | None:
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def file_system(path: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URL, and the path inside it."""
    if not is_url(path):
        return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    if path.startswith("file://"):
        return pafs.LocalFileSystem(), path.removeprefix("file://")
    return remote_system(path)


def is_glob(path: str) -> bool:
    """Whether a part of the path has a wildcard; in an address `?` starts the query instead."""
    if is_url(path):
        return any(c in path.split("?", 1)[0] for c in "*[")
    return any(c in path for c in WILDCARDS)


def fixed_folder(fs: Any, path: str) -> str:
    """The folder above the first part that is a pattern: one with a wildcard that nothing has as its name."""
    parts = path.split("/")
    for i, part in enumerate(parts):
        known = "/".join(parts[: i + 1])
        if is_glob(part) and fs.get_file_info(known).type == pafs.FileType.NotFound:
            return "/".join(parts[:i]) or "/"
    return path


def list_files(
    path: str, where: str, csv: CsvConfig | None = None, tell: Tell = lambda text: None
) -> tuple[list[FilePiece], bool]:
    """The data files behind a file, folder, glob or URL, sorted by path; and whether it is a folder.

    `where` is the field that names the path. Raises InputError where there is nothing to read. What exists
    is taken by its name, wildcards in it or not.
    """
    if (problem := missing_data(path)) is not None:
        raise InputError(f"{where}: {problem}")
    made: dict[str, Any] = {"csv": csv or CsvConfig(), "tell": tell}
    if is_web(path) and (copy := fetch(path, where)) is not None:
        _check_kind([web_name(path)], where)
        return [FilePiece(pafs.LocalFileSystem(), str(copy), copy.name, path, **made)], False
    try:
        fs, inside, base, found, folder = asked(path, _found) if is_url(path) else _found(path)
    except Exception as error:  # stores and their libraries raise many kinds
        text = " ".join(str(error).split("Detail:")[0].split())[:LONGEST_TEXT]
        remedy = "; check the address, the network and the credentials" if is_url(path) else ""
        raise InputError(f"{where}: cannot open {shown(path)}: {text}{remedy}") from error
    if not found and not folder:
        what = "file matches" if is_glob(path) else "such file or folder:"
        raise InputError(f"{where}: no {what} {shown(path)}")
    if not found:
        raise InputError(f"{where}: no data file in {shown(path)}; known endings: {', '.join(FORMATS)}")
    _check_kind(found, where)
    names = [name.removeprefix(base).lstrip("/") for name in found]
    pieces = [
        FilePiece(fs, p, name, _origin(path, inside, p), **made)
        for p, name in sorted(zip(found, names, strict=True))
    ]
    return pieces, folder


def _found(path: str) -> tuple[Any, str, str, list[str], bool]:
    """File system, path inside it, the folder to leave out of names, the files, whether it is a folder."""
    fs, inside = file_system(path)
    entry = fs.get_file_info(inside)
    if entry.type == pafs.FileType.Directory:
        listed = fs.get_file_info(pafs.FileSelector(inside, recursive=True))
        return fs, inside, inside, [f.path for f in listed if f.is_file and file_format(f.path)], True
    if entry.type != pafs.FileType.NotFound:
        return fs, inside, str(PurePosixPath(inside).parent), [inside], False
    if not is_glob(path):
        return fs, inside, inside, [], False
    base = fixed_folder(fs, inside)
    every = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    pattern = inside.removeprefix(base).lstrip("/")
    found = [f.path for f in every if f.is_file and _matches(f.path.removeprefix(base).lstrip("/"), pattern)]
    return fs, inside, base, found, False


def read_text(path: str, where: str) -> str:
    """A small text file by path or URL, in any encoding that is told by its bytes.

    Raises InputError, starting with the field `where`.
    """
    if (problem := missing(path, "file")) is not None:
        raise InputError(f"{where}: {problem}")
    try:
        if is_web(path):
            if (copy := fetch(path, where)) is None:
                raise FileNotFoundError
            return decode_text(copy.read_bytes(), f"{where}: {copy.name}")
        content = asked(path, _content) if is_url(path) else _content(path)
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file: {shown(path)}") from error
    except InputError:
        raise
    except Exception as error:  # stores and their libraries raise many kinds
        raise InputError(f"{where}: {shown(path)}: {str(error)[:LONGEST_TEXT]}") from error
    return decode_text(content, f"{where}: {shown(path)}")


def _content(path: str) -> bytes:
    fs, inside = file_system(path)
    with fs.open_input_stream(inside) as file:
        return bytes(file.read())


def data_folder(path: str) -> tuple[str, str]:
    """The folder of data behind a path, glob or URL; and what has to stand behind a URL in it."""
    if not is_url(path):
        local = Path(path).expanduser()
        if missing(path) is None:
            return str(local if local.is_dir() else local.parent), ""
        return fixed_folder(pafs.LocalFileSystem(), str(local.absolute())), ""
    address, mark, query = path.partition("?")
    parts = address.split("/")
    pattern = next((i for i, part in enumerate(parts) if is_glob(part)), len(parts))
    known = parts[:pattern] if pattern < len(parts) or file_format(address) is None else parts[:-1]
    return "/".join(known), "" if is_web(path) else mark + query


def _check_kind(names: list[str], where: str) -> None:
    unknown = [name for name in names if file_format(name) is None]
    if unknown:
        raise InputError(
            f"{where}: {shown(unknown[0])} is of no known kind; the name must end in one of "
            f"{', '.join(FORMATS)}"
        )


def _origin(path: str, inside: str, found: str) -> str:
    """What names one file of `path` alone: of a URL with its user and its query."""
    if not is_url(path) or is_web(path):
        return found
    scheme, rest = path.split("://", 1)
    user = f"{rest.split('/', 1)[0].rpartition('@')[0]}@" if "@" in rest.split("/", 1)[0] else ""
    query = f"?{rest.split('?', 1)[1]}" if "?" in rest and "?" not in inside else ""
    return f"{scheme}://{user}{found}{query}"


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
            pieces, folder = list_files(path, where, data.csv, problems.warn)
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
