"""Paths as users write them: looked at before anything is opened, so that none of them hangs or surprises."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ensemble_kd.errors import ConfigError

LONGEST_PATH, LONGEST_NAME = 4095, 255
"""Bytes that Linux takes."""
SHOWN = 200
"""Characters of a path in a message."""
WILDCARDS = "*?["


def is_url(path: str) -> bool:
    return "://" in path


def shown(path: str) -> str:
    """A path in a message: short, of a URL without its query."""
    text = path.split("?", 1)[0] if is_url(path) else path
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def path_problem(path: str) -> str | None:
    """Why a path cannot name anything; None where it can."""
    if not path.strip():
        return "an empty path; name a file or folder ('.' is the working directory)"
    if "\0" in path:
        return f"{shown(path)!r} holds a zero byte, which no path has"
    if is_url(path):
        return None
    try:
        local = os.fsencode(Path(path).expanduser())
    except RuntimeError:  # a home folder that is not known
        return f"{shown(path)}: there is no user {path.split('/')[0][1:]!r} here; write the folder out"
    except UnicodeError:
        return f"{shown(path)!r} holds characters that no file name has"
    if len(local) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in local.split(b"/")):
        return (
            f"{shown(path)}: longer than a path can be ({LONGEST_PATH:,} bytes, {LONGEST_NAME} for a name); "
            "if this is the content of a file, give the file"
        )
    return None


def kind_of(path: Path) -> str | None:
    """`file`, `folder`, None where there is nothing; else what stands there, for a message.

    Raises OSError where it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"


def missing(path: str, wanted: str = "file or folder") -> str | None:
    """What is wrong with a path on this machine as the name of a `file`, a `folder` or either; None where
    nothing is, and for URLs, which are asked later."""
    if (problem := path_problem(path)) is not None or is_url(path):
        return problem
    try:
        found = kind_of(Path(path).expanduser())
    except OSError as error:
        return f"{shown(path)}: cannot be looked at: {error.strerror}"
    if found is None:
        return f"no such {wanted}: {shown(path)}"
    if found in ("file", "folder"):
        return None if found in wanted else f"{shown(path)} is a {found}; give a {wanted}"
    return f"{shown(path)} is {found}, which may never end; write its content to a file and give that"


def missing_data(path: str) -> str | None:
    """As `missing` for files and folders; a path with wildcards that names nothing is a pattern."""
    problem = missing(path)
    pattern = problem is not None and problem.startswith("no such ") and any(c in path for c in WILDCARDS)
    return None if pattern else problem


def expanded(text: str | Path, where: str) -> Path:
    """The path with `~` and `~user` written out. Raises ConfigError, starting with the field `where`."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = Path(text).parts[0]
        raise ConfigError(
            f"{where}: no such file or folder: {text}; "
            + (
                "the home folder is not known, set HOME or write the path out"
                if user == "~"
                else f"there is no user {user[1:]!r} here, write the path out"
            )
        ) from error


def exists(text: str | Path) -> bool:
    """Whether there is a file or folder; False for a path that is too long, or whose `~user` is unknown."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def is_file(text: str | Path) -> bool:
    """As `exists`, and neither a folder nor a pipe or device."""
    return exists(text) and Path(text).expanduser().is_file()
