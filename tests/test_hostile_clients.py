"""A real server, on Ray, beside clients who mean harm: nobody else notices, and it ends cleanly."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_cases import package
from processes import descendants

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from benchmarks.fuzz import Fuzzer, answers, broken_picture, example, send
from benchmarks.harness import fresh_processes
from benchmarks.serve import load, served

FILES = 1024
"""Descriptors of a process, as systems give them by default."""


class Hostile:
    """A server, and what it has written: its standard error and Ray's logs."""

    def __init__(self, address: tuple[str, int], log: Path, ray: Path) -> None:
        self.address, self.log, self.ray = address, log, ray
        self.valid = example(*address)

    def written(self) -> int:
        files = [self.log, *self.ray.rglob("logs/**/*")]
        return sum(path.stat().st_size for path in files if path.is_file())

    @contextlib.contextmanager
    def beset(self, *attacks: Callable[[], None]) -> Iterator[None]:
        """Each attack again and again, in a thread of its own."""
        ended = threading.Event()

        def repeat(attack: Callable[[], None]) -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):  # it was refused, which is right
                    attack()

        threads = [threading.Thread(target=repeat, args=(attack,)) for attack in attacks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def honest(self, clients: int, seconds: float) -> dict[str, Any]:
        """What honest clients got."""
        body = json.dumps(self.valid).encode()
        with fresh_processes(1) as pool:
            return pool.submit(load, *self.address, [body], clients, seconds).result()

    # ------------------------------------------------------------------------------------- attacks

    def broken_pictures(self) -> None:
        cell = base64.b64encode(broken_picture()).decode()
        body = json.dumps({"rows": [*self.valid["rows"], {"input": cell}]}).encode()
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        found = answers(send(self.address, [request * 20], 10.0))[0]
        assert set(found) <= {422}, found

    def fuzz(self) -> None:
        fuzzer = Fuzzer(int.from_bytes(os.urandom(4)), self.valid)
        for _ in range(50):
            found = answers(send(self.address, fuzzer()[0], 0.05))[0]
            assert not [status for status in found if status >= 500]

    def idle(self, count: int = 200) -> None:
        """Connections that send nothing, or half a head."""
        held = [socket.create_connection(self.address, timeout=5) for _ in range(count)]
        for connection in held[::2]:
            with contextlib.suppress(OSError):
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX: ")
        time.sleep(0.2)
        for connection in held:
            connection.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    model, _ = package(tmp_path_factory.mktemp("served"), "image")
    log = tmp_path_factory.mktemp("log") / "stderr"
    with tempfile.TemporaryDirectory(prefix="kd") as ray:  # its sockets' paths may not be long
        env = {**os.environ, "RAY_TMPDIR": ray}
        with served(model, env=env, log=log, files=FILES, stop=signal.SIGINT) as address:
            yield Hostile(address, log, Path(ray))


@pytest.mark.slow
@pytest.mark.ray
def test_one_clients_rows_never_touch_anothers(hostile: Hostile) -> None:
    before = hostile.written()
    with hostile.beset(hostile.broken_pictures):
        found = hostile.honest(clients=8, seconds=5)
    assert found["requests"] > 50 and not found["failed"]
    assert hostile.written() - before < 200_000, hostile.log.read_text()[-2000:]


@pytest.mark.slow
@pytest.mark.ray
def test_idle_connections_lock_nobody_out(hostile: Hostile) -> None:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 1500:
        pytest.skip(f"this process may open {most} files")
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), most))
    held = [socket.create_connection(hostile.address, timeout=10) for _ in range(1100)]
    try:
        found = hostile.honest(clients=4, seconds=2)
        assert found["requests"] > 10 and not found["failed"]
    finally:
        for connection in held:
            connection.close()


def storm(hostile: Hostile, seconds: float) -> None:
    before = hostile.written()
    attacks = (hostile.broken_pictures, hostile.fuzz, hostile.fuzz, hostile.idle)
    with hostile.beset(*attacks):
        found = hostile.honest(clients=16, seconds=seconds)
    assert found["requests"] > 5 * seconds and not found["failed"], found["failed"]
    assert hostile.written() - before < 1_000_000 + 20_000 * seconds


@pytest.mark.slow
@pytest.mark.ray
def test_sixteen_clients_beside_a_hostile_one(hostile: Hostile) -> None:
    storm(hostile, 10)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.long
def test_sixteen_clients_beside_a_hostile_one_for_a_minute(hostile: Hostile) -> None:
    storm(hostile, 60)


# -------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("phase", "signals"),
    [
        ("the model is read", [signal.SIGINT]),
        ("Ray starts", [signal.SIGINT]),
        ("Ray starts", [signal.SIGTERM, signal.SIGINT]),
        ("replicas start", [signal.SIGINT]),
    ],
)
def test_an_early_interrupt_ends_quietly(tmp_path: Path, phase: str, signals: list[signal.Signals]) -> None:
    """As a terminal sends it: to the whole group of processes."""
    model, _ = package(tmp_path, "text")
    command = [sys.executable, "-m", "ensemble_kd", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    there = {
        "the model is read": lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text(),
        "Ray starts": lambda: descendants(process.pid, "gcs_server"),
        "replicas start": lambda: descendants(process.pid, "ServeController"),
    }[phase]
    left: set[int] = set()
    end = time.monotonic() + 120
    while not there() and time.monotonic() < end:
        time.sleep(0.02)
    for number in signals:
        left |= set(descendants(process.pid))
        os.killpg(process.pid, number)
        time.sleep(0.2)
    while process.poll() is None and time.monotonic() < end:
        left |= set(descendants(process.pid))
        time.sleep(0.05)
    said, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors + said and "serving" not in said, errors + said
    wait = time.monotonic() + 20
    while alive := [pid for pid in left if Path(f"/proc/{pid}/stat").exists() and not _zombie(pid)]:
        assert time.monotonic() < wait, [Path(f"/proc/{pid}/cmdline").read_bytes()[:80] for pid in alive]
        time.sleep(0.2)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] == b"Z"
    except OSError:
        return True
