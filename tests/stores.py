"""A store that speaks S3, as a process of its own on the loopback device."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import listens, wait_for

BUCKET = "runs"
SECRET = "wJalrXUtnFEMI-planted-secret"


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Gate:
    """A port in front of a server that can be closed and opened again: closed, it refuses every connection,
    also those that stand, while the server keeps what it has."""

    def __init__(self, behind: int) -> None:
        self.behind, self.port = behind, free_port()
        self.listener: socket.socket | None = None
        self.connections: set[socket.socket] = set()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        if self.listener is not None:
            _end(self.listener)
            self.listener = None
        for connection in list(self.connections):
            _end(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:  # closed
                return
            try:
                there = socket.create_connection(("127.0.0.1", self.behind))
            except OSError:
                here.close()
                continue
            self.connections |= {here, there}
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            self.connections.discard(end)
            _end(end)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@dataclass
class Store:
    """Where it listens, and what a client's environment needs to reach it."""

    port: int = field(default_factory=free_port)
    gate: Gate | None = None
    """Where clients go instead, if there is one."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port if self.gate else self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        program = Path(sys.executable).with_name("moto_server")
        self.process = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: listens(self.port), self.process, 90)

    def make_bucket(self) -> None:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running_store(gated: bool = False) -> Iterator[Store]:
    """One with a bucket, behind a gate or not; this process's environment reaches it meanwhile."""
    store = Store()
    store.start()
    if gated:
        store.gate = Gate(store.port)
        store.gate.open()
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    try:
        store.make_bucket()
        yield store
    finally:
        if store.gate is not None:
            store.gate.close()
        store.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
