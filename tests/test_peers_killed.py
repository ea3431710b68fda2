"""Networks that learn together, in a worker of Ray that is killed: all of them and their copies come back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import descendants, kill, wait_for
from safetensors import SafetensorError, safe_open

pytestmark = [pytest.mark.slow, pytest.mark.long]

EPOCHS = 60
OVERRIDES = [
    "teachers.num_members=1",
    "teachers.training.epochs=1",
    f"student.training.epochs={EPOCHS}",
    "student.seeds=1",
    "tracking.enabled=false",
]
OTHERS = "[{name: mlp, hidden: [48]}, {name: mlp, hidden: [16]}]"
HOW = {
    "sequential": "student.peers={count: 3, updates: sequential}",
    "copies": f"student.peers={{count: 3, refresh_steps: 7, models: {OTHERS}}}",
}


def command(folder: Path, how: str, executor: str) -> list[str]:
    compute = [f"compute.executor={executor}", "compute.num_workers=1"]
    sets = [part for override in [*OVERRIDES, *compute, HOW[how]] for part in ("--set", override)]
    return [sys.executable, "-m", "ensemble_kd", "run", "codistillation", "--run-dir", str(folder), *sets]


def outcome(folder: Path) -> dict[str, bytes]:
    files = folder.glob("student/members/*/*.safetensors")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return found | {"model": (folder / "model/weights.safetensors").read_bytes()}


def held(folder: Path) -> list[str]:
    """What the checkpoint of the networks that learn together holds, once it is there."""
    for path in folder.glob("student/members/*/checkpoint.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (OSError, SafetensorError):  # it is finished, and the file was put away
            continue
        if any(name.startswith("model/peers.") for name in names):
            return names
    return []


@pytest.mark.parametrize("how", HOW)
def test_a_killed_worker_s_peers_go_on_in_the_same_bits(tmp_path: Path, how: str) -> None:
    """The run that nothing disturbs has no Ray; the other finds all but the student in its folder."""
    undisturbed, folder, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "log"
    subprocess.run(command(undisturbed, how, "local"), check=True, capture_output=True, timeout=400)
    for part in ("data", "teachers", "gap", "soft_targets"):
        shutil.copytree(undisturbed / part, folder / part)
    with log.open("w") as file:
        process = subprocess.Popen(command(folder, how, "ray"), stdout=file, stderr=subprocess.STDOUT)
    names = wait_for(lambda: held(folder), process, 400, said=log.read_text, pause=0.002)
    workers = descendants(process.pid, "RayTrainWorker")
    assert workers, "no worker process was found"
    kill(*workers)
    assert held(folder), "it was over already"
    assert {name.split(".")[1] for name in names if name.startswith("model/peers.")} == {"0", "1", "2"}
    assert any(name.startswith("model/stale.") for name in names) == (how == "copies")
    assert process.wait(timeout=400) == 0, log.read_text()
    assert outcome(folder) == outcome(undisturbed)
    (shipped,) = (path.parent for path in folder.glob("student/members/*/peers.safetensors"))
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert len(manifest["summary"]["history"]) == EPOCHS
