"""Processes of this machine: which stand below which, read from /proc, and waiting for what they do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")


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


def wait_for(
    what: Callable[[], Found],
    process: subprocess.Popen[Any],
    seconds: float = 180,
    said: Callable[[], str] = str,
    pause: float = 0.01,
) -> Found:
    """Look until there is something; returns it.

    Raises AssertionError, with what was said, if the process ends first, or after `seconds`.
    """
    end = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, f"it ended with {process.returncode} first\n{said()[-4000:]}"
        assert time.monotonic() < end, f"it did not come in time\n{said()[-4000:]}"
        time.sleep(pause)
    return found


def listens(port: int) -> bool:
    """Whether somebody takes connections at a port of the loopback device."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def listeners(pids: list[int]) -> set[tuple[str, int, int]]:
    """(address, port, pid) of the TCP sockets at which these processes listen."""
    holders: dict[str, int] = {}
    for pid in pids:
        try:
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
        except OSError:  # it ended meanwhile
            continue
        holders |= {link[8:-1]: pid for link in links if link.startswith("socket:[")}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in holders:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                shown = socket.inet_ntop(family, b"".join(words))
                found.add((shown, int(port, 16), holders[fields[9]]))
    return found
