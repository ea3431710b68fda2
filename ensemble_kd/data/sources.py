"""Where rows come from: the embedded digits, files anywhere, Hugging Face data sets.

Whatever the source, a split is a list of pieces (files), and a piece gives Arrow tables of a bounded number
of rows. Nothing here interprets a value; `decode` and `labels` do.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.json as pajson
import pyarrow.parquet as pq

from ensemble_kd.artifacts import fingerprint
from ensemble_kd.config import DataConfig
from ensemble_kd.data.problems import Problems
from ensemble_kd.errors import InputError

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
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
BLOCK_BYTES = 16 * 2**20
"""Text parsed at once; a single row must fit."""
HASHED_BYTES = 256 * 2**20
"""Larger files are fingerprinted by name, size and time instead of content."""


class Piece(Protocol):
    """One file, or one split of a data set that is not in files."""

    name: str
    """What messages call it."""

    def columns(self) -> list[str]: ...

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """The columns, at most `rows` rows at a time."""
        ...


@dataclass
class Source:
    """The pieces of each split (train, validation, test, unlabelled) and the names that the source knows."""

    splits: dict[str, list[Piece]] = field(default_factory=dict)
    class_names: list[str] | None = None


def slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for begin in range(0, table.num_rows, rows):
        yield table.slice(begin, rows)


@dataclass
class TablePiece:
    """A table in memory."""

    name: str
    table: pa.Table

    def columns(self) -> list[str]:
        return self.table.column_names

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        return slices(self.table.select(columns), rows)


# --------------------------------------------------------------------------------------------- files


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
        with self._readable():
            if self.format == "parquet":
                with self.fs.open_input_file(self.path) as file:
                    return pq.read_schema(file).names
            if self.format == "arrow":
                return self._arrow_reader().schema.names
            opened = self._open_csv(None) if self.format == "csv" else self._open_json()
            return opened.schema.names

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        with self._readable():
            for table in self._tables(columns, rows):
                yield from slices(table, rows)

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
            batches = iter(self._open_csv(columns) if self.format == "csv" else self._open_json())
        for batch in batches:
            yield pa.table(batch).select(columns)

    def _open_csv(self, columns: list[str] | None) -> Any:
        tabs = ".tsv" in PurePosixPath(self.path).suffixes
        return pacsv.open_csv(
            self.fs.open_input_stream(self.path),  # decompresses by the name's ending
            read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            parse_options=pacsv.ParseOptions(delimiter="\t" if tabs else ",", newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=columns or [],
                column_types={name: pa.string() for name in columns or []},
                strings_can_be_null=True,
                null_values=[""],
            ),
        )

    def _open_json(self) -> Any:
        return pajson.open_json(
            self.fs.open_input_stream(self.path),
            read_options=pajson.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        )

    def _arrow_reader(self) -> Any:
        file = self.fs.open_input_file(self.path)
        try:
            return pa.ipc.open_file(file)
        except pa.ArrowInvalid:  # not the random-access form: the stream form
            file.seek(0)
            return pa.ipc.open_stream(file)

    def _readable(self) -> _Readable:
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
            if "Empty CSV file" in str(error) or "Empty JSON file" in str(error):
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
    try:
        return pafs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # a kind of URL that only fsspec knows
        import fsspec

        system, inside = fsspec.core.url_to_fs(path)
        return pafs.PyFileSystem(pafs.FSSpecHandler(system)), inside


def _wildcard(path: str) -> bool:
    return any(c in path for c in "*?[")


def _fixed_folder(path: str) -> str:
    """The folder above the first wildcard."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if _wildcard(part))
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
        elif _wildcard(inside):
            base, folder = _fixed_folder(inside), False
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


def _split_of(name: str) -> str | None:
    """train.csv, train-00000-of-00002.parquet, train/part-0.parquet, data/train-0.parquet."""
    for part in name.split("/"):
        word = re.split(r"[^A-Za-z]", part, maxsplit=1)[0].lower()
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def _open_files(data: DataConfig, source: Source, problems: Problems) -> None:
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
            source.splits[split or "train"] = list(pieces)
            continue
        named = [(_split_of(piece.name), piece) for piece in pieces]
        if not any(name for name, _ in named):
            source.splits["train"] = list(pieces)  # a folder of parts of one set
            continue
        for name, piece in named:
            if name:
                source.splits.setdefault(name, []).append(piece)
        if "train" not in source.splits:
            found = ", ".join(piece.name for piece in pieces[:5])
            problems.add(f"{where}: no train.* in {path}; found {found}. Give data.path as a block per split")


# ----------------------------------------------------------------------------------- Hugging Face hub


@dataclass
class HubPiece:
    """One split of a Hugging Face data set."""

    name: str
    dataset: Any

    def columns(self) -> list[str]:
        return list(self.dataset.column_names)

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        plain = self.dataset.select_columns(columns).with_format("arrow")
        for begin in range(0, len(plain), rows):
            yield plain[begin : begin + rows]


def _load_hub(data: DataConfig) -> dict[str, Any]:
    """The data set's splits by name. Raises InputError where it cannot be loaded."""
    import datasets
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    name = str(data.hub_name)
    folder = Path(name).expanduser()
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # preparing data has one line of its own
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder) if folder.is_dir() else name, data.hub_config)
    except Exception as error:  # the library, its scripts and the network raise many kinds
        first = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"data.hub_name: cannot load {name!r}: {type(error).__name__}: {first}; "
            "without a network give a local folder"
        ) from error
    finally:
        if shown:
            enable_progress_bar()
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _open_hub(data: DataConfig, source: Source, problems: Problems) -> None:
    try:
        loaded = _load_hub(data)
    except InputError as error:
        for line in error.problems:
            problems.add(line)
        return
    for name, dataset in loaded.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            continue
        feature = dataset.features.get(data.columns.label)
        names = getattr(feature, "names", None)
        if names and source.class_names is None:
            source.class_names = list(names)
        piece = HubPiece(name, dataset)
        if split == "test" and names and _withheld(dataset, data.columns.label):
            continue  # benchmarks publish test rows without labels (-1); hold rows out of train instead
        source.splits.setdefault(split, []).append(piece)
    if "train" not in source.splits:
        problems.add(f"data.hub_name: no split 'train' in {data.hub_name!r}; it has {', '.join(loaded)}")


def _withheld(dataset: Any, label: str) -> bool:
    labels = dataset.select_columns([label]).with_format("numpy")[:][label]
    return len(labels) > 0 and bool((labels < 0).all())


# -------------------------------------------------------------------------------------------- digits


def _open_digits(source: Source) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 in the source
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(64), len(pixels), [None, pa.py_buffer(pixels)])
    table = pa.table({"input": images, "label": pa.array(digits.target.astype(np.int64))})
    source.splits["train"] = [TablePiece("digits", table)]
    source.class_names = [str(i) for i in range(10)]


def open_source(data: DataConfig, problems: Problems) -> Source:
    """Find the pieces of every split; what cannot be found goes into `problems`."""
    source = Source()
    if data.source == "digits":
        _open_digits(source)
    elif data.source == "hub":
        _open_hub(data, source, problems)
    else:
        _open_files(data, source, problems)
    if data.unlabelled is not None:
        try:
            source.splits["unlabelled"] = list(list_files(data.unlabelled, "data.unlabelled")[0])
        except InputError as error:
            for line in error.problems:
                problems.add(line)
    files = [piece for pieces in source.splits.values() for piece in pieces if isinstance(piece, FilePiece)]
    names = Counter(piece.name for piece in files)
    for piece in files:  # a/rows.csv beside b/rows.csv: messages must tell them apart
        if names[piece.name] > 1:
            piece.name = piece.path
    return source


def read_class_names(data: DataConfig, problems: Problems) -> list[str] | None:
    """`data.class_names` as a list; a file has one name a line and lies beside the data, or where it says."""
    names = data.class_names
    if isinstance(names, str):
        path = class_names_path(data)
        try:
            fs, inside = file_system(path)
            with fs.open_input_stream(inside) as file:
                lines = file.read().decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            detail = f"no such file: {path}" if isinstance(error, FileNotFoundError) else f"{path}: {error}"
            problems.add(f"data.class_names: {detail}")
            return None
        while lines and not lines[-1].strip():
            lines.pop()
        names = [line.strip() for line in lines]
    if names is not None:
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            problems.add(f"data.class_names: {', '.join(map(repr, repeated))} listed more than once")
        if len(names) < 2:
            problems.add(f"data.class_names: {len(names)} names; a classifier needs at least two classes")
    return names


def class_names_path(data: DataConfig) -> str:
    """Where the file named by `data.class_names` is: absolute, beside the data, or else as it stands."""
    name = str(data.class_names)
    path = data.path.get("train") if isinstance(data.path, dict) else data.path or data.hub_name
    if path is None or "://" in name or Path(name).expanduser().is_absolute():
        return name
    if _wildcard(path):
        folder = _fixed_folder(path)
    elif "://" in path:
        folder = path if file_format(path) is None else path.rsplit("/", 1)[0]
    else:
        local = Path(path).expanduser()
        folder = str(local if local.is_dir() else local.parent)
        if not (Path(folder) / name).exists() and Path(name).exists():
            return name
    return f"{folder.rstrip('/')}/{name}"


# --------------------------------------------------------------------------------------- fingerprint


def _content(piece: FilePiece, name: str) -> list[Any]:
    info = piece.fs.get_file_info(piece.path)
    if info.size is not None and info.size > HASHED_BYTES:
        return [name, info.size, info.mtime_ns]
    digest = hashlib.sha256()
    with piece.fs.open_input_stream(piece.path, compression=None) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return [name, digest.hexdigest()]


def source_fingerprint(data: DataConfig) -> str:
    """16 hexadecimal digits that change when the source's content does.

    Files count by split, name and content, not by where they lie. Raises InputError where they are missing.
    """
    problems = Problems()
    parts: list[Any] = [data.source]
    source = Source()
    if data.source == "files":
        _open_files(data, source, problems)
    elif data.source == "hub":
        folder = Path(str(data.hub_name)).expanduser()
        if folder.is_dir():  # by content: the library's own fingerprint changes with its cache
            for file in sorted(folder.rglob("*")):
                if file.is_file() and not file.name.startswith("."):
                    name = str(file.relative_to(folder))
                    parts.append(
                        _content(FilePiece(pafs.LocalFileSystem(), str(file.absolute()), name), name)
                    )
        else:
            loaded = _load_hub(data)
            parts += [str(data.hub_name), data.hub_config]
            parts += [[name, dataset._fingerprint] for name, dataset in loaded.items()]
    if data.unlabelled is not None:
        try:
            source.splits["unlabelled"] = list(list_files(data.unlabelled, "data.unlabelled")[0])
        except InputError as error:
            for line in error.problems:
                problems.add(line)
    if isinstance(data.class_names, str):
        parts.append(read_class_names(data, problems))
    problems.raise_if_any()
    for split in sorted(source.splits):
        for piece in source.splits[split]:
            assert isinstance(piece, FilePiece)
            parts.append([split, _content(piece, PurePosixPath(piece.path).name)])
    return fingerprint(*parts)
