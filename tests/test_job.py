"""Ray jobs on a cluster of three nodes that share nothing but a store: kills on the way change no bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_nodes import Cluster, running_cluster
from stores import BUCKET, SECRET, Store, running_store

from ensemble_kd.mirror import Mirror

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TOKEN = "planted-token-0123456789abcdef0123456789abcdef"
SETTINGS = [
    "teachers.num_members=2",
    "teachers.training.epochs=60",
    "student.training.epochs=20",
    "student.seeds=1",
    "specialists.training={epochs: 10, batch_size: 32}",
    "data.shard_rows=300",
    "sweep=null",
    "compute.placement_timeout=180",
]


def sets(*more: str) -> list[str]:
    return [part for setting in [*SETTINGS, *more] for part in ("--set", setting)]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    with running_cluster(folder, folder / "scratch", [0, 1, 1], {**store.environment, **auth}) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on this machine alone."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    command = [sys.executable, "-m", "ensemble_kd", "run", "digits", "--run-dir", str(folder)]
    subprocess.run([*command, *sets("tracking.enabled=false")], check=True, capture_output=True, timeout=600)
    return folder


def test_a_node_is_killed_and_the_student_is_the_same(
    store: Store, cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/tickets"
    job = cluster.submit(
        "python",
        "jobs/pipeline.py",
        "digits",
        "--run-dir",
        uri,
        *sets("tracking.enabled=false", f"compute.scratch={cluster.scratch}"),
    )
    look = Mirror(uri, tmp_path / "look")
    try:
        wait_for(lambda: any("/members/" in name for name in look.listed(look.root)), job, 300)
        cluster.kill_node(2)
        cluster.start_node(1)
        text, _ = job.communicate(timeout=600)
    finally:
        job.kill()
    assert job.returncode == 0, text[-4000:]
    assert "report:" in text, "progress is readable in the job's log"
    assert TOKEN not in text and SECRET not in text
    look.pull()
    assert json.loads((look.root / "report.json").read_text())["verdict"]["text"]
    assert (look.root / "model/weights.safetensors").read_bytes() == (
        undisturbed / "model/weights.safetensors"
    ).read_bytes()
    for file in look.root.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert SECRET.encode() not in content and TOKEN.encode() not in content, file


def test_exit_codes_pass_through(cluster: Cluster) -> None:
    job = cluster.submit("python", "jobs/pipeline.py", "digits", "--set", "student.temperature=0")
    text, _ = job.communicate(timeout=300)
    assert job.returncode != 0 and "student.temperature" in text
    assert "exit code 2" in text or "code 2" in text, text[-2000:]


def test_without_the_token_nobody_is_served(cluster: Cluster) -> None:
    bare = {k: v for k, v in cluster.environment.items() if not k.startswith("RAY_AUTH")}
    command = [str(Path(sys.executable).parent / "ray"), "job", "list"]
    command.append(f"--address=http://127.0.0.1:{cluster.dashboard}")
    done = subprocess.run(
        command, env={**bare, "HOME": "/nonexistent"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0 and "oken" in done.stdout + done.stderr


def wait_for(there: Callable[[], bool], job: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert job.poll() is None, job.stdout.read()[-4000:] if job.stdout else ""
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.3)
