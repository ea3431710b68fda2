"""Processes killed for real: the same command again ends in the same result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, kill, wait_for
from safetensors import safe_open

pytestmark = [pytest.mark.slow, pytest.mark.ray]

OVERRIDES = [
    "teachers.num_members=2",
    "teachers.training.epochs=40",
    "student.training.epochs=40",
    "student.seeds=1",
    "data.shard_rows=100",
    "soft_targets.batch_size=8",
    "tracking.enabled=false",
    "sweep=null",
]
NO_SPECIALISTS, SPECIALISTS = "specialists=null", "specialists.training={epochs: 40, batch_size: 32}"


def command(folder: Path, specialists: str = NO_SPECIALISTS, what: str = "run") -> list[str]:
    sets = [part for override in [*OVERRIDES, specialists] for part in ("--set", override)]
    return [sys.executable, "-m", "ensemble_kd", what, "digits", "--run-dir", str(folder), *sets]


def outcome(folder: Path) -> dict[str, bytes]:
    """What must not depend on the disturbances: weights, predictions and soft targets."""
    patterns = (
        "*/members/*/*.safetensors",
        "soft_targets/*/part-*.parquet",
        "combined_targets/*/part-*.parquet",
        "model/weights.safetensors",
    )
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in patterns for p in folder.glob(pattern)}


def unfinished(folder: Path, stage: str, pattern: str) -> Callable[[], bool]:
    """Whether a stage is in the middle of its work: `pattern` is there, its manifest is not."""

    def middle() -> bool:
        return any(folder.glob(f"{stage}/{pattern}")) and not any(
            path for path in folder.glob(f"{stage}/*/manifest.json") if path.parent.parent.name == stage
        )

    return middle


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the same run with or without specialists, made without Ray when it is first asked for."""

    @cache
    def run(specialists: str) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        settings = [*command(folder, specialists), "--set", "compute.executor=local"]
        subprocess.run(settings, check=True, capture_output=True, timeout=400)
        return folder

    return run


@pytest.mark.parametrize(
    ("stages", "specialists"),
    [
        (["soft_targets", "student"], NO_SPECIALISTS),
        pytest.param(
            ["data", "teachers", "clusters", "specialists", "combined_targets", "report"],
            SPECIALISTS,
            marks=pytest.mark.long,
        ),
    ],
)
def test_driver_killed_in_the_middle_of_stages(
    undisturbed: Callable[[str], Path], tmp_path: Path, stages: list[str], specialists: str
) -> None:
    folder = tmp_path / "run"
    middles = {
        "data": unfinished(folder, "data", "*"),
        "teachers": unfinished(folder, "teachers", "members/*/checkpoint.safetensors"),
        "soft_targets": unfinished(folder, "soft_targets", "*/part-*.parquet"),
        "clusters": unfinished(folder, "clusters", "*"),
        "specialists": unfinished(folder, "specialists", "members/*/checkpoint.safetensors"),
        "combined_targets": unfinished(folder, "combined_targets", "*/part-*.parquet"),
        "student": unfinished(folder, "student", "members/*/checkpoint.safetensors"),
        "report": unfinished(folder, "report", "*"),
    }
    for stage in stages:
        in_the_middle = middles[stage]
        process = subprocess.Popen(
            command(folder, specialists),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(in_the_middle, process, said=f"in the middle of {stage}".format, pause=0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list((folder / "model").glob("manifest.json")) or stage == "report"
    last = subprocess.run(command(folder, specialists), capture_output=True, text=True, timeout=400)
    assert last.returncode == 0, last.stderr
    assert outcome(folder) == outcome(undisturbed(specialists))


@pytest.mark.long
def test_ctrl_c_leaves_at_once_and_sigterm_saves_in_the_middle_of_an_epoch(
    undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    members = folder / "teachers/members"

    def stopped(stop: Callable[[int], None]) -> tuple[int, str]:
        begin = time.time()
        process = subprocess.Popen(
            command(folder, what="teachers"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        checkpoints = "*/checkpoint.safetensors"
        wait_for(lambda: any(p.stat().st_mtime > begin for p in members.glob(checkpoints)), process)
        stop(process.pid)
        text, _ = process.communicate(timeout=60)
        assert "run again to go on" in text and "Traceback" not in text
        return process.returncode, text

    code, text = stopped(lambda pid: os.killpg(pid, signal.SIGINT))  # as a terminal does
    assert code == 130, text
    code, text = stopped(lambda pid: os.kill(pid, signal.SIGTERM))
    assert code == 143 and "stopped by SIGTERM" in text, text
    steps = [progress(path)["step"] for path in members.glob("*/checkpoint.safetensors")]
    assert any(steps), "no member was in the middle of an epoch: all waited for its end"
    last = subprocess.run(command(folder, what="teachers"), capture_output=True, text=True, timeout=400)
    assert last.returncode == 0, last.stderr
    there = outcome(undisturbed(NO_SPECIALISTS))
    assert outcome(folder) == {name: there[name] for name in there if name.startswith("teachers/")}


@pytest.mark.long
@pytest.mark.parametrize("stage", ["teachers", "specialists"])
def test_worker_killed_costs_at_most_one_epoch(
    undisturbed: Callable[[str], Path], tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(folder, SPECIALISTS), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    in_the_middle = unfinished(folder, stage, "members/*/checkpoint.safetensors")
    wait_for(in_the_middle, process)
    workers = descendants(process.pid, "RayTrainWorker")
    assert workers, "no worker process was found"
    kill(workers[0])
    kept = histories(folder / stage / "members")
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 0, text
    assert outcome(folder) == outcome(undisturbed(SPECIALISTS))
    # Epochs that were saved when the worker died were not trained again: their times are still the same.
    for name, history in kept.items():
        done = json.loads((folder / stage / "members" / name / "manifest.json").read_text())
        assert history and done["summary"]["history"][: len(history)] == history


SWEEP = [
    "specialists=null",
    "teachers.training.epochs=10",
    "student.training.epochs=60",
    "sweep={search: grid, space: {temperature: [1, 2, 4, 8]}, scheduler: none, fuse: 1}",
]
UP_TO_THE_SWEEP = """
import sys
from pathlib import Path
from ensemble_kd import pipeline
from ensemble_kd.config import load_config
from ensemble_kd.stages.context import Console
config, folder = load_config("digits", sys.argv[2:]), Path(sys.argv[1])
pipeline.run(config, folder, until="sweep", console=Console(print, print))
"""


def sweep_command(folder: Path) -> list[str]:
    return [sys.executable, "-c", UP_TO_THE_SWEEP, str(folder), *OVERRIDES, *SWEEP]


def finished_trials(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, from the files they leave."""
    records = (json.loads(path.read_text()) for path in folder.glob("sweep/*/trials/*.json"))
    return {record["name"]: record for record in records if record["state"] == "finished"}


@pytest.mark.long
def test_a_trial_s_process_and_then_the_driver_killed_in_the_middle_of_a_sweep(tmp_path: Path) -> None:
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    subprocess.run(sweep_command(undisturbed), check=True, capture_output=True, timeout=400)
    for part in ("data", "teachers", "soft_targets"):
        shutil.copytree(undisturbed / part, folder / part)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            sweep_command(folder), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    in_the_middle = unfinished(folder, "sweep", "members/*/checkpoint.safetensors")
    at_work = partial(descendants, process.pid, "ray::Students")
    end = time.monotonic() + 180
    actors = wait_for(lambda: at_work() if in_the_middle() else [], process, said=log.read_text)
    kill(actors[0])
    wait_for(
        lambda: "its students go on in another" in log.read_text() and len(finished_trials(folder)) >= 2,
        process,
        end - time.monotonic(),
        said=log.read_text,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = finished_trials(folder)
    assert 2 <= len(before) < 5, "the sweep was over already"
    last = subprocess.run(sweep_command(folder), capture_output=True, text=True, timeout=400)
    assert last.returncode == 0, last.stderr
    after = finished_trials(folder)
    assert len(after) == 5
    for name, record in before.items():  # to the second: they were not trained again
        assert (after[name]["began"], after[name]["ended"]) == (record["began"], record["ended"])
    assert outcome(folder) == outcome(undisturbed)


def progress(checkpoint: Path) -> dict[str, Any]:
    with safe_open(checkpoint, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["progress"])
    return found


def histories(members: Path) -> dict[str, list[dict[str, float]]]:
    """The epochs in each unfinished member's checkpoint."""
    found = {}
    for path in members.glob("*/checkpoint.safetensors"):
        try:
            found[path.parent.name] = progress(path)["history"]
        except FileNotFoundError:  # finished by now
            continue
    return found
