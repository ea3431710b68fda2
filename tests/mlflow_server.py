"""MLflow's tracking server as teams run it: on PostgreSQL, with artefacts in a store that speaks S3.

Both are processes of their own on the loopback device. PostgreSQL refuses to run as root, so a test that
root started runs it as the user that Debian's package makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import descendants, kill, wait_for
from stores import free_port


def postgres_programs() -> Path | None:
    """The folder with `initdb` and `postgres`; Debian keeps it off the path."""
    found = shutil.which("initdb")
    folders = (
        [Path(found).resolve().parent]
        if found
        else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """An empty database; yields its SQLAlchemy address. Skips the test where PostgreSQL is not installed."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    port, place = free_port(), Path(tempfile.mkdtemp(dir="/tmp"))  # where another user gets to
    user: list[str] = []
    if os.getuid() == 0:
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(place, "postgres", "postgres")
    data = str(place / "data")
    initialise = [*user, str(programs / "initdb"), "-D", data, "-U", "mlflow", "-A", "trust", "-N"]
    subprocess.run(initialise, check=True, capture_output=True, cwd=place)
    command = [*user, str(programs / "postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1"]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen([*command, "-k", str(place)], stdout=log, stderr=log, cwd=place)
    try:
        ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        end = time.monotonic() + 60
        while subprocess.run(ready, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, (folder / "postgres.log").read_text()
            time.sleep(0.2)
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # without waiting for clients
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(place, ignore_errors=True)


class MLflowServer:
    """Can be stopped and started again at the same address."""

    def __init__(self, folder: Path, database: str, artifacts: str, environment: Mapping[str, str]) -> None:
        self.folder, self.database, self.artifacts = folder, database, artifacts
        self.environment = {**os.environ, **environment}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin to start it; `wait` sees that it answers."""
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host=127.0.0.1", "--workers=1"]
        command += [f"--port={self.port}", f"--backend-store-uri={self.database}"]
        command += [f"--artifacts-destination={self.artifacts}"]
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder
            )

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def wait(self) -> None:
        assert self.process is not None
        wait_for(self.answers, self.process, said=(self.folder / "mlflow.log").read_text, pause=0.3)

    def stop(self) -> None:
        """As when it crashes."""
        if self.process is not None:
            kill(*descendants(self.process.pid))
            self.process.wait()


@contextmanager
def running_mlflow(folder: Path, artifacts: str, environment: Mapping[str, str]) -> Iterator[MLflowServer]:
    """Not waited for: it takes half a minute, in which others can start, too."""
    with running_postgres(folder) as database:
        server = MLflowServer(folder, database, artifacts, environment)
        server.start()
        try:
            yield server
        finally:
            server.stop()
