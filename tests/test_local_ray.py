"""Ray on this machine alone: what it listens on, and what happens when it does not start."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from model_cases import package
from processes import descendants, listeners

from ensemble_kd import disk, local_ray
from ensemble_kd.errors import EnsembleKDError, StoppedError

LATE = (
    "The current node timed out during startup. This could happen because some of the raylet failed to "
    "startup or the GCS has become overloaded."
)
"""What Ray 2.60 raises, as a plain Exception, when its 30 s are over."""


class Starts:
    """In place of `ray.init`: raises what it is given, in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | None) -> None:
        import ray

        self.outcomes = list(outcomes)
        self.options: list[dict[str, Any]] = []
        monkeypatch.setattr(ray, "init", self)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(local_ray, "store_options", lambda warn: {})
        self.said: list[str] = []

    def __call__(self, **options: Any) -> None:
        self.options.append(options)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome

    def start(self) -> None:
        local_ray.start(self.said.append)


def test_a_late_start_is_tried_again_once_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, Exception(LATE), None)
    starts.start()
    assert len(starts.options) == 2
    assert len(starts.said) == 1 and "tried once more" in starts.said[0] and "timed out" in starts.said[0]


def test_the_second_late_start_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, Exception(LATE), Exception(LATE))
    with pytest.raises(EnsembleKDError, match=r"twice: .*30 s.*run the same command again"):
        starts.start()
    assert len(starts.said) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("The requested object store memory is too large"), "did not start .*: The requested"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), "RAY_TMPDIR to a folder with a shorter"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/x"), "the disk is full.*RAY_TMPDIR"),
        (OSError(errno.EACCES, "Permission denied", "/tmp/ray/x"), "not allowed.*RAY_TMPDIR"),
    ],
)
def test_what_does_not_pass_by_itself_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    starts = Starts(monkeypatch, error)
    with pytest.raises(EnsembleKDError, match=message):
        starts.start()
    assert not starts.said


def test_a_signal_during_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch, StoppedError("stopped by SIGTERM"))
    with pytest.raises(StoppedError):
        starts.start()


@pytest.mark.parametrize(
    ("shared", "temporary", "held", "warned"),
    [
        (50e9, 50e9, None, False),
        (64e6, 50e9, 4e9, True),  # Docker
        (64e6, 2e9, 1e9, True),
        (200e6, 10e6, 180e6, False),
    ],
)
def test_the_object_store_lies_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, shared: float, temporary: float, held: float | None, warned: bool
) -> None:
    _rooms(monkeypatch, shared, temporary)
    said: list[str] = []
    options = local_ray.store_options(said.append)
    assert options.get("object_store_memory") == (None if held is None else int(held))
    assert bool(said) == warned


def test_no_room_for_the_smallest_object_store_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _rooms(monkeypatch, 64e6, 100e6)
    with pytest.raises(disk.DiskError, match=r"RAY_TMPDIR.*--shm-size"):
        local_ray.store_options(lambda text: None)


def _rooms(monkeypatch: pytest.MonkeyPatch, shared: float, temporary: float) -> None:
    import ray._private.utils as utils

    monkeypatch.setattr(utils, "resolve_object_store_memory", lambda memory: 4_000_000_000)
    monkeypatch.setattr(disk, "free", lambda path: int(shared if path == local_ray.SHARED else temporary))


FAILS_ONCE = f"""
import json, os, sys
import ray
from ray._private import services
from processes import descendants
from ensemble_kd.config import ComputeConfig
from ensemble_kd.runtime import Runtime

found, before = services.get_node, []

def late(*arguments, **named):  # what has been started by then runs for real
    if not before:
        before.extend(set(descendants(os.getpid())) - {{os.getpid()}})
        raise Exception({LATE!r})
    return found(*arguments, **named)

services.get_node = late
with Runtime(ComputeConfig(), warn=lambda text: print("warned:", text)) as runtime:
    runtime.start(libraries=False)
    left = [pid for pid in before if pid in descendants(os.getpid())]
    print("answer", ray.get(ray.remote(lambda: 42).remote()), "of", len(before) > 3, "left", left)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_nothing_of_a_failed_start_is_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FAILS_ONCE], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "warned: Ray did not start (The current node timed out" in done.stdout
    assert "answer 42 of True left []" in done.stdout


REPLICAS = """
name: listening
data: {source: digits, kind: image}
teachers: {num_members: 1, model: {name: mlp, hidden: [16]}, training: {epochs: 2}, replicas_per_member: 2}
student: {model: {name: mlp, hidden: [8]}, training: {epochs: 2}, seeds: 1, replicas_per_member: 2}
sweep: {search: grid, space: {temperature: [2]}, num_seeds: 1, scheduler: none, fuse: 1}
tracking: {enabled: false}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="sockets are read from /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a member of two workers needs two CPUs")
def test_a_run_listens_on_the_loopback_device_alone(tmp_path: Path) -> None:
    """Ray's processes, workers of a group that share a member, and those of a trial."""
    (tmp_path / "config.yaml").write_text(REPLICAS)
    command = [sys.executable, "-m", "ensemble_kd", "run", str(tmp_path / "config.yaml")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--run-dir", str(tmp_path / "run")], stdout=log, stderr=subprocess.STDOUT
        )
    seen: dict[str, set[str]] = {}
    while process.poll() is None:
        for address, _, pid in listeners(descendants(process.pid)):
            seen.setdefault(address, set()).add(_name(pid))
        time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    names = set().union(*seen.values())
    assert any("RayTrainWorker" in name for name in names) and any("_Replica" in name for name in names)
    outside = {address: seen[address] for address in seen if not _is_loopback(address)}
    assert not outside


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="sockets are read from /proc")
def test_serve_listens_on_the_loopback_device_alone(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    model, _ = package(tmp_path, "numeric")
    command = [sys.executable, "-m", "ensemble_kd", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and "serving" in process.stdout.readline()
        seen = {address: _name(pid) for address, _, pid in listeners(descendants(process.pid))}
        assert len(seen) >= 2 and not [address for address in seen if not _is_loopback(address)], seen
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _name(pid: int) -> str:
    try:
        return re.split(r"\0", Path(f"/proc/{pid}/cmdline").read_text())[0][-60:]
    except OSError:
        return "gone"
