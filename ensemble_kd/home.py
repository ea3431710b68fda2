"""A home folder that cannot be written: what libraries keep there goes elsewhere, for as long as this lives.

Ray writes the token of its cluster there, the hub's libraries what they fetch, matplotlib its fonts. Accounts
of services often have no home, or a read-only one.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHES = {"HF_HOME": "huggingface", "MPLCONFIGDIR": "matplotlib"}
"""Environment variables that libraries read for a folder of their own, and what it is called here."""


def writable(folder: Path) -> bool:
    """Whether files can be made in it, or it itself where its parent allows that."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not _of_the_kernel(folder)


def _of_the_kernel(folder: Path) -> bool:
    """/proc and /sys let the root user in and take no file."""
    return folder.parts[1:2] in (("proc",), ("sys",))


def _own(folder: Path) -> Path:
    """The folder, made for this user alone; another one where somebody else has taken its name."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="ensemble-kd-home-"))
    return folder


def provide(warn: Callable[[str], None] = lambda text: None) -> None:
    """Give what needs a home another place, where there is none that can be written; says so once."""
    home = os.path.expanduser("~")
    if home != "~" and writable(Path(home)):
        return
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would write one there
    missing = [name for name in CACHES if not os.environ.get(name)]
    if not missing:
        return
    base = _own(Path(tempfile.gettempdir()) / f"ensemble-kd-home-{os.getuid()}")
    for name in missing:
        (base / CACHES[name]).mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ[name] = str(base / CACHES[name])
    warn(
        f"the home folder {home} cannot be written; what libraries keep there goes into {base}; set HOME to "
        "one that can be, to keep it"
    )
