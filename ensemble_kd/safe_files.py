"""Files that a stranger may have written: opened only where they are plain files, read up to a size, parsed
strictly.

A link can lead anywhere, a FIFO never ends, a device may do something, and 100 bytes of JSON can be a number
that takes a minute to read. None of them is opened, or followed.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from ensemble_kd.errors import ArtifactError

LINK = "a symbolic link, which may lead outside its folder; copy the files themselves (cp -rL)"
MOST_ENTRIES = 100_000
"""Files and folders below a model folder."""
DEEPEST = 64
"""Levels of nested JSON; ours has six."""
MOST_BLOCKS = 2_000_000
"""Lists and objects of one file; a tokenizer of 500,000 merges has a list for each."""
SHOWN = 120
"""Characters of a stranger's text in a message."""


def shown(value: Any, most: int = SHOWN) -> str:
    """A stranger's name or value as it stands in a message: on one line, and not for long."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def in_one_line(error: BaseException, most: int = 2 * SHOWN) -> str:
    """The first words of what a library says."""
    return shown(" ".join(str(error)[:10_000].split()), most)


def kind_problem(path: Path) -> str | None:
    """Why `path` is no plain file: missing, a link, a folder, a FIFO, a device; None where it is one."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISLNK(mode):
        return LINK
    return None if stat.S_ISREG(mode) else "not a plain file"


def problem_inside(folder: Path, name: str) -> str | None:
    """Why the file `name` of a folder, a relative path with slashes, is not to be opened; None where it is.

    No part of it may be a link, so that a path that stays below the folder by its name does so on the disk.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        return "lies outside its folder"
    for parent in path.parents[:-1]:  # the last is the folder itself, which the user named
        try:
            if (folder / parent).is_symlink():
                return LINK
        except OSError:  # a name that is too long; opening it will say so
            break
    return kind_problem(folder / path)


def entries(folder: Path) -> Iterator[Path]:
    """Every file below a folder, links not followed.

    Raises ArtifactError for what is neither file nor folder, and where there are too many.
    """
    waiting, count = [folder], 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as scanned:
                found = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be listed ({error.strerror})") from error
        for entry in found:
            count += 1
            if count > MOST_ENTRIES:
                raise ArtifactError(f"{folder}: more than {MOST_ENTRIES:,} files; no model folder")
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif (problem := kind_problem(path)) is not None:
                raise ArtifactError(f"{folder / shown(path.relative_to(folder))}: {problem}")
            else:
                yield path


def open_plain(path: Path, links: bool = False) -> BufferedReader:
    """The file opened for reading, without waiting for anyone; a link only where `links` are allowed.

    Raises ArtifactError for what is no plain file. It is looked at after it was opened, so that it cannot be
    exchanged in between.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    if not links and (problem := kind_problem(path)) is not None:
        raise ArtifactError(f"{path}: {problem}")
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path}: cannot be opened ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArtifactError(f"{path}: not a plain file")
    return os.fdopen(descriptor, "rb")  # closes it


def read_plain(path: Path, most: int, links: bool = False) -> bytes:
    """The content of a plain file of at most `most` bytes. Raises ArtifactError."""
    with open_plain(path, links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ArtifactError(f"{path}: {size:,} bytes; at most {most:,} are read")
        return file.read(most)


def parse_json(content: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, every key once, finite numbers, at most 64 levels. Raises ArtifactError."""
    if content.count(b"[") + content.count(b"{") > MOST_BLOCKS:  # each takes many times its bytes
        raise ArtifactError(f"{where}: not JSON of ours (more than {MOST_BLOCKS:,} lists and blocks)")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_not_a_number,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ArtifactError(f"{where}: not JSON (nested too deep)") from error
    except ValueError as error:  # also what is not UTF-8, and an integer of too many digits
        raise ArtifactError(f"{where}: not JSON ({shown(error)})") from error
    if _depth(value) > DEEPEST:
        raise ArtifactError(f"{where}: not JSON of ours (nested more than {DEEPEST} levels deep)")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)!r} stands there twice")
    return found


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        here, depth = waiting.pop()
        deepest = max(deepest, depth)
        inside = here.values() if isinstance(here, dict) else here if isinstance(here, list) else ()
        waiting += [(inner, depth + 1) for inner in inside if isinstance(inner, dict | list)]
    return deepest
