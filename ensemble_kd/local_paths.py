"""Paths as users write them: whether there is something, without an exception for any text."""

from __future__ import annotations

from pathlib import Path

from ensemble_kd.errors import ConfigError


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
    """Whether there is a file or folder: not for a path that is too long, or of a user who is not there."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def is_folder(text: str | Path) -> bool:
    """As `exists`."""
    return exists(text) and Path(text).expanduser().is_dir()


def is_file(text: str | Path) -> bool:
    """As `exists`, and neither a folder nor a pipe or device."""
    return exists(text) and Path(text).expanduser().is_file()
