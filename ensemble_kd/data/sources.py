"""Where rows come from (the embedded digits, files, Hugging Face data sets), and their fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from ensemble_kd.artifacts import fingerprint
from ensemble_kd.config import DataConfig
from ensemble_kd.data.files import (
    FilePiece,
    data_folder,
    list_files,
    open_files,
    read_text,
)
from ensemble_kd.data.folders import PATH, PicturePiece, left_out, open_class_folders, open_pictures
from ensemble_kd.data.hub import hub_folder, load_hub, open_hub
from ensemble_kd.data.pieces import Piece, Source, TablePiece
from ensemble_kd.data.problems import Problems
from ensemble_kd.errors import InputError
from ensemble_kd.paths import is_url, missing, path_problem, shown
from ensemble_kd.pretrained import tokenizer_digest

HASHED_BYTES = 256 * 2**20
"""Larger files are fingerprinted by name, size and time instead of content."""


def _open_digits(source: Source) -> None:
    import numpy as np

    values, classes = _digits()
    pixels = np.round(values * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 in the source
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(64), len(pixels), [None, pa.py_buffer(pixels)])
    table = pa.table({"input": images, "label": pa.array(classes.astype(np.int64))})
    source.splits["train"] = [TablePiece("digits", table)]
    source.class_names = [str(i) for i in range(10)]


def _digits() -> tuple[Any, Any]:
    """Pixels (1797, 8, 8) float64 and classes of the digits that come with scikit-learn.

    Its file is read as `load_digits` does, without importing the library, which takes two seconds.
    """
    import numpy as np

    spec = find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def open_source(data: DataConfig, problems: Problems) -> Source:
    """Find the pieces of every split; what cannot be found goes into `problems`."""
    source = Source()
    if data.source == "digits":
        _open_digits(source)
    elif data.source == "hub":
        open_hub(data, source, problems)
    else:
        _open_paths(data, source, problems)
    _open_unlabelled(data, source, problems)
    if all(isinstance(piece, PicturePiece) for pieces in source.splits.values() for piece in pieces):
        source.id = PATH
    # Train first: it decides the classes and the shape of images.
    order = ("train", "validation", "test", "unlabelled")
    source.splits = {split: source.splits[split] for split in order if split in source.splits}
    files = [piece for pieces in source.splits.values() for piece in pieces if isinstance(piece, FilePiece)]
    names = Counter(piece.name for piece in files)
    for piece in files:  # a/rows.csv beside b/rows.csv: messages must tell them apart
        if names[piece.name] > 1:
            piece.name = shown(piece.origin or piece.path)
    return source


def _open_paths(data: DataConfig, source: Source, problems: Problems) -> None:
    if not open_class_folders(data, source, problems):
        open_files(data, source, problems)


def _open_unlabelled(data: DataConfig, source: Source, problems: Problems) -> None:
    if data.unlabelled is None:
        return
    try:
        pictures = None
        if data.kind == "image" and isinstance(data.columns.input, str):
            pictures = open_pictures(data.unlabelled, data.columns.input, data.columns.id)
            if pictures is not None:
                pictures.prefix = f"{pictures.name}/"
                if pictures.others:
                    problems.warn(f"data.unlabelled: {left_out('no picture', pictures.others)}")
        found: list[Piece] = (
            [pictures]
            if pictures
            else [*list_files(data.unlabelled, "data.unlabelled", data.csv, problems.warn)[0]]
        )
        source.splits.setdefault("unlabelled", []).extend(found)
    except InputError as error:
        for line in error.problems:
            problems.add(line)


def read_class_names(data: DataConfig, problems: Problems) -> list[str] | None:
    """`data.class_names` as a list; a file has one name a line and lies beside the data, or where it says."""
    names = data.class_names
    if isinstance(names, str):
        try:
            lines = read_text(class_names_path(data), "data.class_names").splitlines()
        except InputError as error:
            for line in error.problems:
                problems.add(line)
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
    if path is None or is_url(name) or path_problem(name) or path_problem(path):
        return name
    if Path(name).expanduser().is_absolute():
        return name
    folder, query = data_folder(path)
    beside = f"{folder.rstrip('/')}/{name}{query}"
    if not is_url(path) and missing(beside, "file") is not None and missing(name, "file") is None:
        return name
    return beside


# --------------------------------------------------------------------------------------- fingerprint


def content(piece: FilePiece, name: str) -> list[Any]:
    """The name, and what changes with the file's content."""
    info = piece.fs.get_file_info(piece.path)
    if info.size is not None and info.size > HASHED_BYTES:
        return [name, info.size, info.mtime_ns]
    digest = hashlib.sha256()
    try:
        with piece.fs.open_input_stream(piece.path, compression=None) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{piece.name}: cannot be read: {error}") from error
    return [name, digest.hexdigest()]


def source_fingerprint(data: DataConfig, tokenizer: str | None = None) -> str:
    """16 hexadecimal digits that change when the source's content does, or that of the tokenizer's source.

    Files count by split, name and content, not by where they lie. Raises InputError where they are missing.
    """
    problems = Problems()
    parts: list[Any] = [data.source]
    source = Source()
    if data.source == "files":
        _open_paths(data, source, problems)
    elif data.source == "hub":
        folder = hub_folder(data)
        if folder is not None:  # by content: the library's own fingerprint changes with its cache
            for file in sorted(folder.rglob("*")):
                if file.is_file() and not file.name.startswith("."):
                    name = str(file.relative_to(folder))
                    parts.append(content(FilePiece(pafs.LocalFileSystem(), str(file.absolute()), name), name))
        else:
            loaded = load_hub(data)
            parts += [str(data.hub_name), data.hub_config]
            parts += [[name, dataset._fingerprint] for name, dataset in loaded.items()]
    _open_unlabelled(data, source, problems)
    if isinstance(data.class_names, str):
        parts.append(read_class_names(data, problems))
    problems.raise_if_any()
    for split in sorted(source.splits):
        for piece in source.splits[split]:
            if isinstance(piece, PicturePiece):
                parts.append([split, piece.digest()])
                continue
            assert isinstance(piece, FilePiece)
            parts.append([split, content(piece, PurePosixPath(piece.path).name)])
    if tokenizer is not None:
        parts.append(["tokenizer", tokenizer_digest(tokenizer)])
    return fingerprint(*parts)
