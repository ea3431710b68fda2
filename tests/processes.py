"""Processes of this machine, read from /proc: which stand below which."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def descendants(root: int, name: str = "") -> list[int]:
    """A process and all below it, parents first; with `name` those whose command line holds it."""
    parents: dict[int, int] = {}
    named: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_bytes().rsplit(b")", 1)[1].split()[1])
                if name.encode() in (entry / "cmdline").read_bytes():
                    named.add(int(entry.name))
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in found if pid in named]


def kill(*pids: int) -> None:
    """As when their machine goes away."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
