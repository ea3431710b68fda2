"""Class folders of pictures: CLASS/*.png, or train/CLASS/*.png beside validation/ and test/.

The class of a picture is the first folder on its path, its id the path itself. A folder `unlabelled` beside
`train` holds pictures without a class for the transfer set.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from ensemble_kd.config import DataConfig
from ensemble_kd.data.files import FilePiece, file_format, file_system
from ensemble_kd.data.pieces import SPLIT_NAMES, Source
from ensemble_kd.data.problems import Problems
from ensemble_kd.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""In any case."""
FOREIGN = (
    ".pgm",
    ".ppm",
    ".pbm",
    ".pnm",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".tga",
    ".psd",
    ".svg",
    ".eps",
    ".ico",
)
"""Of images that are not read."""
PATH = "path"
"""The column of ids, where no other is named."""
UNLABELLED = "unlabelled"
TABLE_BYTES = 64 * 2**20
"""Of pictures held at once."""
SHOWN = 5
UNREADABLE = (OSError, ValueError, ImportError, RuntimeError, pa.ArrowException)
"""Of paths: RuntimeError where the user behind a `~` is not known."""


@dataclass
class PicturePiece:
    """The pictures of one split, in the order of their paths."""

    name: str
    fs: Any
    folder: str
    paths: list[str]
    """Below `folder`."""
    column: str = "input"
    """What the column of the pictures is called."""
    label: str | None = None
    """What the column of the classes is called; None where there are none."""
    id: str = PATH
    classes: list[str] = field(default_factory=list)
    """Of each path."""
    prefix: str = ""
    """What ids begin with, before the path."""
    others: list[str] = field(default_factory=list)
    """Files beside the pictures that are none."""

    def columns(self) -> list[str]:
        return [self.column, *([self.label] if self.label is not None else []), self.id]

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        if self.column not in columns:
            for begin in range(0, len(self.paths), rows):
                yield self._table(columns, begin, min(begin + rows, len(self.paths)), [])
            return
        begin, held, size = 0, list[bytes](), 0
        for i in range(len(self.paths)):
            held.append(self._read(i))
            size += len(held[-1])
            if len(held) == rows or size >= TABLE_BYTES:
                yield self._table(columns, begin, i + 1, held)
                begin, held, size = i + 1, [], 0
        if held:
            yield self._table(columns, begin, len(self.paths), held)

    def part(self, numbers: Sequence[int] | np.ndarray) -> PicturePiece:
        """Some of the pictures: those at the positions `numbers`, with their classes."""
        classes = [self.classes[i] for i in numbers] if self.classes else []
        return replace(self, paths=[self.paths[i] for i in numbers], classes=classes)

    def digest(self) -> str:
        """SHA-256 of the paths and of the pictures' bytes."""
        found = hashlib.sha256()
        for i, path in enumerate(self.paths):
            found.update(hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest())
            found.update(hashlib.sha256(self._read(i)).digest())
        return found.hexdigest()

    def _read(self, i: int) -> bytes:
        path = self.paths[i]
        try:
            with self.fs.open_input_stream(f"{self.folder}/{path}", compression=None) as file:
                held: bytes = file.read()
                return held
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error

    def _table(self, columns: list[str], begin: int, end: int, held: list[bytes]) -> pa.Table:
        made: dict[str, pa.Array] = {}
        for name in columns:
            if name == self.column:
                made[name] = pa.array(held, pa.large_binary())
            elif name == self.label:
                made[name] = pa.array(self.classes[begin:end], pa.string())
            else:
                made[name] = pa.array([self.prefix + path for path in self.paths[begin:end]], pa.string())
        return pa.table(made)


# --------------------------------------------------------------------------------------------- finding


@dataclass
class Listing:
    """The files below a folder, hidden ones left out; paths are relative."""

    fs: Any
    folder: str
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Of names that are no UTF-8, made readable."""

    @property
    def foreign(self) -> list[str]:
        """Images of formats that are not read."""
        return [name for name in self.others if PurePosixPath(name).suffix.lower() in FOREIGN]


def list_pictures(path: str) -> Listing | None:
    """What lies below a folder; None where it is none, or nothing in it is an image."""
    try:
        fs, inside = file_system(path)
        if fs.get_file_info(inside).type != pafs.FileType.Directory:
            return None
        base = inside.rstrip("/")
        if isinstance(fs, pafs.LocalFileSystem):
            names = sorted(_below(base))
        else:
            every = fs.get_file_info(pafs.FileSelector(inside, recursive=True))
            names = sorted(info.path.removeprefix(base).lstrip("/") for info in every if info.is_file)
    except UNREADABLE:
        return None  # told by whoever looks for data files there
    names = [name for name in names if not _hidden(name)]
    found = Listing(fs, base)
    for name in names:
        shown = _readable(name)
        kind = found.odd if shown != name else found.pictures if is_picture(name) else found.others
        kind.append(shown)
    return found if found.pictures or found.foreign else None


def _readable(name: str) -> str:
    """The name with what is no UTF-8 in it written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _below(root: str) -> Iterator[str]:
    """Files below a folder of this machine; links are followed, but not back to where they stand."""
    waiting = [("", frozenset({os.path.realpath(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                if _hidden(entry.name):
                    continue
                if entry.is_file():
                    yield prefix + entry.name
                elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
                    waiting.append((f"{prefix}{entry.name}/", above | {real}))


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in ENDINGS


def is_pictures(listing: Listing) -> bool:
    """Whether the folder's data are its pictures, not the data files beside which they lie.

    Lists and notes among the pictures (`train/metadata.csv`, `labels.json`) are no data files.
    """
    among = {
        str(parent) for name in listing.pictures or listing.foreign for parent in PurePosixPath(name).parents
    }
    for name in listing.others:
        file, kind = PurePosixPath(name), file_format(name)
        if kind in ("parquet", "arrow") or (kind is not None and str(file.parent) not in among):
            return False
        word = re.split(r"[^A-Za-z]", name, maxsplit=1)[0].lower()
        if kind is not None and "/" not in name and word in SPLIT_NAMES:  # train.csv
            return False
    return True


def _holds_column(listing: Listing, column: str) -> bool:
    """Whether a data file beside the folders has the column of the inputs; then that is what is meant."""
    for name in listing.others:
        if "/" not in name and file_format(name) is not None:
            try:
                if column in FilePiece(listing.fs, f"{listing.folder}/{name}", name).columns():
                    return True
            except InputError:
                continue
    return False


def open_class_folders(data: DataConfig, source: Source, problems: Problems) -> bool:
    """Put the pictures below `data.path` into `source`; False where that holds something else."""
    if data.kind != "image" or not isinstance(data.columns.input, str):
        return False
    paths = data.path if isinstance(data.path, dict) else {"": data.path}
    found = {split: list_pictures(path) for split, path in paths.items() if path is not None}
    listings = {
        split: listing
        for split, listing in found.items()
        if listing and is_pictures(listing) and not _holds_column(listing, data.columns.input)
    }
    if not listings:
        return False
    if len(listings) < len(paths):
        others = ", ".join(f"data.path.{split}" for split in paths if split not in listings)
        problems.add(f"data.path: some splits are folders of pictures, but not {others}; give one kind")
        return True
    for split, listing in listings.items():
        _Folders(data, source, problems, f"data.path.{split}" if split else "data.path").add(split, listing)
    if source.class_names is None and "train" in source.splits:
        source.class_names = _class_names(source)
    return True


class _Folders:
    """Pictures of one `path` on their way into the source."""

    def __init__(self, data: DataConfig, source: Source, problems: Problems, where: str) -> None:
        self.data, self.source, self.problems, self.where = data, source, problems, where

    def add(self, split: str, listing: Listing) -> None:
        """`split`: which one the path was given for; "" where its folders may be splits."""
        self._note("no picture", listing.others)
        self._note("of a name that is no UTF-8", listing.odd)
        if not listing.pictures:
            self.problems.add(
                f"{self.where}: no image that can be read in {listing.folder}; "
                f"{_shown(listing.foreign)}: convert them to PNG (known are {', '.join(ENDINGS)})"
            )
            return
        tops = {name.split("/")[0] for name in listing.pictures if name.count("/") >= 1}
        split_folders = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
        deep = {name.split("/")[0] for name in listing.pictures if name.count("/") >= 2}
        split_folders |= {top: UNLABELLED for top in tops if top.lower() == UNLABELLED}
        # A class may be called `train` too; then its pictures lie beside those of classes that are no splits.
        in_splits = any(split_folders.get(top) == "train" for top in deep) or tops <= set(split_folders)
        if split or not in_splits or "train" not in split_folders.values():
            self._add_classes(split or "train", "", listing)
            return
        outside = [name for name in listing.pictures if name.split("/")[0] not in split_folders]
        self._note("in no split's folder", outside)
        for top in sorted(split_folders):
            below = [name for name in listing.pictures if name.startswith(f"{top}/")]
            part = Listing(listing.fs, listing.folder, below)
            if split_folders[top] == UNLABELLED:
                self._put(UNLABELLED, top, part, below, None)
            else:
                self._add_classes(split_folders[top], f"{top}/", part)

    def _add_classes(self, split: str, prefix: str, listing: Listing) -> None:
        held = [name for name in listing.pictures if "/" in name.removeprefix(prefix)]
        self._note("in no class's folder", [n for n in listing.pictures if "/" not in n.removeprefix(prefix)])
        if not held:
            self.problems.add(
                f"{self.where}: {len(listing.pictures):,} pictures, but none in a folder of its class; "
                f"expected {prefix}CLASS/{PurePosixPath(listing.pictures[0]).name}"
            )
            return
        classes = [name.removeprefix(prefix).split("/")[0] for name in held]
        empty = sorted(self._folders(listing, prefix) - set(classes))
        if empty:
            self.problems.warn(
                f"{self.where}: no picture in the class folder{'s' if len(empty) > 1 else ''} "
                f"{_shown([prefix + name for name in empty])}; not counted as a class"
            )
        self._put(split, prefix.rstrip("/") or split, listing, held, classes)

    def _folders(self, listing: Listing, prefix: str) -> set[str]:
        """The folders beside each other in which classes are expected, hidden ones left out."""
        inside = f"{listing.folder}/{prefix}".rstrip("/")
        if isinstance(listing.fs, pafs.LocalFileSystem):
            with os.scandir(inside) as entries:
                names = {entry.name for entry in entries if entry.is_dir()}
        else:
            every = listing.fs.get_file_info(pafs.FileSelector(inside))
            names = {PurePosixPath(info.path).name for info in every if info.type == pafs.FileType.Directory}
        return {name for name in map(_readable, names) if not _hidden(name)}

    def _put(
        self, split: str, name: str, listing: Listing, paths: list[str], classes: list[str] | None
    ) -> None:
        assert isinstance(self.data.columns.input, str)
        piece = PicturePiece(
            name,
            listing.fs,
            listing.folder,
            paths,
            column=self.data.columns.input,
            label=self.data.columns.labels[0] if classes is not None else None,
            id=self.data.columns.id or PATH,
            classes=classes or [],
        )
        self.source.splits.setdefault(split, []).append(piece)

    def _note(self, what: str, names: list[str]) -> None:
        if names:
            self.problems.warn(f"{self.where}: {left_out(what, names)}")


def left_out(what: str, names: list[str]) -> str:
    """`left out, as no picture: 2 files: labels.csv, notes.txt`"""
    return f"left out, as {what}: {len(names):,} file{'s' if len(names) > 1 else ''}: {_shown(names)}"


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _class_names(source: Source) -> list[str]:
    """Of train's folders, sorted; by number where all are numbers."""
    names: set[str] = set()
    for piece in source.splits["train"]:
        assert isinstance(piece, PicturePiece)
        names |= set(piece.classes)
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numbers else sorted(names)


def open_pictures(path: str, column: str, identifier: str | None = None) -> PicturePiece | None:
    """The pictures of a folder without classes, or a picture's file; None where `path` is something else."""
    listing = list_pictures(path)
    if listing is not None and listing.pictures and is_pictures(listing):
        name = PurePosixPath(listing.folder).name
        found = PicturePiece(name, listing.fs, listing.folder, listing.pictures, column)
        return replace(found, id=identifier or PATH, others=listing.others + listing.odd)
    if not is_picture(path):
        return None
    try:
        fs, inside = file_system(path)
        if fs.get_file_info(inside).type != pafs.FileType.File:
            return None
    except UNREADABLE:
        return None
    folder, name = inside.rsplit("/", 1)
    return PicturePiece(name, fs, folder, [name], column, id=identifier or PATH)
