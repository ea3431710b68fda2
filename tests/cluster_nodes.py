"""A Ray cluster of several nodes on this machine, each a process tree of its own that can be killed.

Where the system allows it (root on Linux), every node has a mount namespace with a scratch folder that no
other node sees, so that what nodes share they share through the store.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import descendants, kill, listens, wait_for
from stores import free_port

BIN = Path(sys.executable).parent


def can_isolate() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Cluster:
    """Started by `running_cluster`."""

    def __init__(self, folder: Path, scratch: Path, environment: dict[str, str]) -> None:
        self.folder, self.scratch = folder, scratch
        path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])  # the job's `python` is this one
        self.environment = {**os.environ, "PATH": path, **environment}
        self.port, self.dashboard = free_port(), free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.ray = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        """Each node's own folder of Ray's: nodes that share one take each other's working directory for
        damaged and unpack it anew under those that stand in it. The path is short, for sockets."""
        self.isolated = can_isolate()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_node(self, cpus: int) -> int:
        """A head, or one more node; returns its number."""
        number = len(self.nodes)
        arguments = [str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", "--disable-usage-stats"]
        arguments += [f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=200000000"]
        arguments.append(f"--temp-dir={self.ray / str(number)}")
        if number == 0:
            arguments += ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
            arguments += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={free_port()}"]
        else:
            arguments.append(f"--address={self.address}")
        script = f"exec {shlex.join(arguments)}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        if self.isolated:
            script = f"mount -t tmpfs -o size=200m tmpfs {shlex.quote(str(self.scratch))} && {script}"
            command = ["unshare", "-m", "sh", "-c", script]
        else:
            command = ["sh", "-c", script]
        log = (self.folder / f"node-{number}.log").open("wb")
        process = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.nodes.append(process)
        return number

    def kill_node(self, number: int) -> None:
        """As when its machine goes away."""
        kill(*reversed(descendants(self.nodes[number].pid)))
        self.nodes[number].wait()

    def alive(self) -> list[int]:
        """The numbers of the nodes that live."""
        return [number for number, node in enumerate(self.nodes) if node.poll() is None]

    def processes(self, name: str, number: int | None = None) -> list[int]:
        """Of a node, or of all that live: those whose command line holds `name`."""
        numbers = self.alive() if number is None else [number]
        return [pid for i in numbers for pid in descendants(self.nodes[i].pid, name)]

    def submit(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """`ray job submit`, with the repository as the working directory; what it says goes to `log`."""
        root = Path(__file__).parents[1]
        submit = [str(BIN / "ray"), "job", "submit", f"--address=http://127.0.0.1:{self.dashboard}"]
        with log.open("ab") as file:
            return subprocess.Popen(
                [*submit, f"--working-dir={root}", "--", *command],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def stop_job(self, text: str) -> None:
        """`ray job stop` of the job whose submission said `text`."""
        found = re.search(r"raysubmit_\w+", text)
        assert found, text
        # As `ray job stop`, which takes seconds to start.
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.dashboard}/api/jobs/{found.group()}/stop", method="POST"
        )
        if token := self.environment.get("RAY_AUTH_TOKEN"):
            request.add_header("Authorization", f"Bearer {token}")
        urllib.request.urlopen(request, timeout=60).close()

    def fill_scratch(self) -> None:
        """Every node's scratch has no byte left."""
        if not self.isolated:
            pytest.skip("nodes have no file system of their own here, and this would fill the machine's")
        self._on_nodes(f"dd if=/dev/zero of={shlex.quote(str(self.scratch))}/ballast bs=1M || true")

    def empty_scratch(self) -> None:
        self._on_nodes(f"rm -f {shlex.quote(str(self.scratch))}/ballast")

    def _on_nodes(self, script: str) -> None:
        for node in self.nodes:
            if node.poll() is None:
                command = ["nsenter", "-m", "-t", str(node.pid), "sh", "-c", script]
                subprocess.run(command, check=True, capture_output=True, timeout=120)


@contextmanager
def running_cluster(
    folder: Path, scratch: Path, cpus: list[int], environment: dict[str, str] | None = None
) -> Iterator[Cluster]:
    """A head and further nodes with so many CPUs each."""
    cluster = Cluster(folder, scratch, environment or {})
    try:
        for count in cpus:
            cluster.start_node(count)
            if count == cpus[0]:
                log = folder / "node-0.log"
                wait_for(lambda: listens(cluster.dashboard), cluster.nodes[0], said=log.read_text)
        yield cluster
    finally:
        for number, node in reversed(list(enumerate(cluster.nodes))):
            if node.poll() is None:
                cluster.kill_node(number)
        shutil.rmtree(cluster.ray, ignore_errors=True)
