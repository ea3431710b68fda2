"""A run on a cluster that somebody else started: two nodes, one CPU each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TINY = [
    "teachers.num_members=2",
    "teachers.training.epochs=2",
    "student.training.epochs=2",
    "student.seeds=1",
    "specialists.training.epochs=2",
    "sweep.space={temperature: [2, 4]}",
    "sweep.num_seeds=1",
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    sets = [part for override in [*TINY, "tracking.enabled=false"] for part in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "ensemble_kd",
        "run",
        "digits",
        "--run-dir",
        str(folder),
        *sets,
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.long
@pytest.mark.cluster
def test_run_on_a_cluster_of_two_nodes(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        done = run(tmp_path / "run", "--address", cluster.address)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"]["text"]
        wanted = ("--set", "compute.num_workers=3", "--set", "seed=1", "--address", cluster.address)
        refused = run(tmp_path / "other", *wanted)
        assert refused.returncode == 2
        assert "compute.num_workers: 3, but the cluster has 2 CPUs" in refused.stderr
    finally:
        cluster.shutdown()


def test_no_cluster_at_the_address_is_told(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr
