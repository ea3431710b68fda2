"""A disk that takes no more: what could not be written and where, how much is free, and what to do.

Whoever writes a file of some size wraps that in `writing`; each stage wraps all its work in `told`, which
finds a full disk behind whatever a library made of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_kd.errors import EnsembleKDError

KINDS = {
    errno.ENOSPC: ("the disk is full", "make room there"),
    errno.EDQUOT: ("the disk quota is used up", "remove files of yours there, or have the quota raised"),
    errno.EFBIG: (
        "a file so large is not allowed",
        "raise the limit (ulimit -f) or choose another disk",
    ),
    errno.EROFS: ("the file system is read-only", "mount it writable"),
    errno.EACCES: ("that is not allowed", "give this user the right to write there"),
    errno.EPERM: ("that is not allowed", "give this user the right to write there"),
    errno.EIO: ("the disk reports an error", "look after it (dmesg says more)"),
    errno.ESTALE: ("the file server has lost the folder", "mount it again"),
}
"""By error number: what is wrong, and what to do about it."""
NO_INODES = ("the file system has no room for more files (no inodes are left)", "remove files there")
AGAIN = "then run the same command again: it goes on where it stands"

WORDS = {
    errno.ENOSPC: r"No space left on device|\b(?:os error|[Ee]rrno) 28\b|database or disk is full|"
    r"disk's utilization is over capacity",
    errno.EDQUOT: r"Disk quota exceeded|\b(?:os error|[Ee]rrno) 122\b",
    errno.EROFS: r"Read-only file system|\b(?:os error|[Ee]rrno) 30\b",
}
"""How libraries that raise something else than OSError, and Ray, which hands on texts, say so."""


class DiskError(EnsembleKDError, OSError):
    """A file could not be written, for example because the disk is full. See `within` for the message."""

    def __init__(self, text: str = "", code: int | None = None) -> None:
        super().__init__(text)
        self.errno = code

    def within(self, name: str) -> DiskError:
        """The same error with the name of the stage or member in front, unless it is there already."""
        text = str(self)
        return self if text.startswith(f"{name}: ") else DiskError(f"{name}: {text}", self.errno)


STORE_FULL = "local disk's utilization is over capacity"
"""Ray's words for an object store that is full, and a folder beside it that is, too: it stops at 95%."""


def code_of(error: BaseException | str | None) -> int | None:
    """The error number where a disk is behind an error or its causes; None where it is not."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in KINDS:
            return error.errno
        if (found := code_of(str(error))) is not None:
            return found
        error = error.__cause__ or error.__context__
    if isinstance(error, str):
        return next((code for code, words in WORDS.items() if re.search(words, error)), None)
    return None


def full(code: int, path: Path, needed: int | None = None, said: str = "") -> DiskError:
    """What to say of `path`, which would take `needed` bytes; `said` are the system's own words."""
    place = _existing(path)
    wrong, fix = KINDS[code]
    room = ""
    try:
        stat = os.statvfs(place)
        if code == errno.ENOSPC and stat.f_files and not stat.f_favail and stat.f_bavail:
            wrong, fix = NO_INODES
        usage = shutil.disk_usage(place)
        room = f"; {mount_of(place)} has {size(usage.free)} free of {size(usage.total)}"
    except OSError:  # a file server that is gone
        pass
    wants = f", which takes {size(needed)}" if needed else ""
    words = said or os.strerror(code)
    return DiskError(f"cannot write {path}{wants}: {wrong} ({words}){room}; {fix}, {AGAIN}", code)


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """A file that is written in here, of `needed` bytes. Raises DiskError where the disk takes no more."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        code = code_of(error)
        if code is None:
            raise
        raise full(code, path, needed) from error


@contextmanager
def told(name: str, folder: Path) -> Iterator[None]:
    """The work of a stage, which writes into `folder`. Raises DiskError, with the stage's name, as `writing`.

    Files that it only reads, which lie elsewhere, are left to others.
    """
    try:
        yield
    except DiskError as error:
        raise error.within(name) from error.__cause__
    except EnsembleKDError:
        raise
    except Exception as error:
        code, path = code_of(error), _path_of(error) or folder
        if STORE_FULL in str(error):
            raise _store_full().within(name) from error
        inside = path.absolute().is_relative_to(folder.absolute())
        if code is None or (code not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not inside):
            raise
        raise full(code, path).within(name) from error


def free(path: Path) -> int:
    """Bytes that this user may still write where `path` lies or will lie."""
    return shutil.disk_usage(_existing(path)).free


def mount_of(path: Path) -> str:
    """The file system that a path lies on: where it is mounted and, on Linux, of what type it is."""
    place = _existing(path).resolve()
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    kind = ""
    try:
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split()
            if len(fields) > 2 and fields[1].replace("\\040", " ") == str(place):
                kind = f" ({fields[2]})"  # the last one lies on top
    except OSError:
        pass
    return f"{place}{kind}"


def size(count: float) -> str:
    """A number of bytes as text that people read, for example `1.5 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _store_full() -> DiskError:
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # as Ray decides
    text = str(full(errno.ENOSPC, Path(place) / "ray"))
    text = text.replace("the disk is full", "Ray's object store and the disk are full")
    return DiskError(text.replace(AGAIN, f"or set RAY_TMPDIR to a folder that has it, {AGAIN}"), errno.ENOSPC)


def _path_of(error: BaseException | None) -> Path | None:
    while error is not None:
        if isinstance(error, OSError) and isinstance(error.filename, str):
            return Path(error.filename)
        error = error.__cause__ or error.__context__
    return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
