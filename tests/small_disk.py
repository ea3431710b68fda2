"""A file system of a few MB, for disks that fill up: a tmpfs in a mount namespace of its own.

Where the system allows it: root on Linux, as tests/cluster_nodes.py.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_nodes import can_isolate
from processes import kill, wait_for


class SmallDisk:
    """Mounted at `path` for those that `start` starts, and seen by all others at `look`."""

    def __init__(self, path: Path, options: str) -> None:
        self.path = path
        mount = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(path))}"
        self.holder = subprocess.Popen(["unshare", "-m", "sh", "-c", f"{mount} && exec sleep 3600"])
        self.look = Path(f"/proc/{self.holder.pid}/root{path}")
        mounts = Path(f"/proc/{self.holder.pid}/mounts")
        wait_for(lambda: f" {path} tmpfs" in mounts.read_text(), self.holder)

    def start(self, *command: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        inside = ["nsenter", "-m", "-t", str(self.holder.pid), *command]
        with log.open("wb") as file:
            return subprocess.Popen(
                inside, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def fill(self, leave: int = 0) -> None:
        """Until it takes no more than `leave` bytes."""
        stat = os.statvfs(self.look)
        with (self.look / "ballast").open("ab", buffering=0) as file:  # closing has nothing to write then
            try:
                file.write(b"\0" * max(0, stat.f_bavail * stat.f_bsize - leave))
                while not leave:
                    file.write(b"\0" * 4096)
            except OSError:
                pass

    def make_room(self) -> None:
        (self.look / "ballast").unlink()


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[SmallDisk]:
    """`options` are tmpfs's: size=8m, nr_inodes=100."""
    if not (sys.platform.startswith("linux") and can_isolate()):
        pytest.skip("no file system of its own can be mounted here")
    path.mkdir(parents=True, exist_ok=True)
    disk = SmallDisk(path, options)
    try:
        yield disk
    finally:
        kill(disk.holder.pid)
        disk.holder.wait()
