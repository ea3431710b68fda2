"""`compute.executor: auto` where one process does it all: watched, and started again when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, kill, wait_for

from ensemble_kd import pipeline, secret_options, supervised
from ensemble_kd.config import Config, load_config
from ensemble_kd.errors import TrainingError

SETTINGS = [
    "teachers.num_members=2",
    "teachers.training.epochs=6",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=3",
    "student.seeds=1",
    "tracking.enabled=false",
    "specialists=null",
    "sweep=null",
]
ALONE = ["compute.num_workers=1", "soft_targets.num_actors=1", "compute.gpus_per_worker=0"]


def config(*overrides: str) -> Config:
    return load_config("digits", [*SETTINGS, *overrides])


@pytest.mark.parametrize(
    ("overrides", "cpus", "local"),
    [
        ([], 1, True),
        ([], 2, False),
        (["compute.cpus_per_worker=2"], 3, True),
        (["compute.cpus_per_worker=2"], 4, False),
        (ALONE, 16, True),
        (ALONE[:1], 16, False),  # soft targets are made side by side
        ([*ALONE, "compute.num_workers=[1, 1]"], 16, True),
        ([*ALONE, "compute.num_workers=[1, 2]"], 16, False),
        ([*ALONE, "compute.executor=ray"], 16, False),
        ([*ALONE, "compute.executor=local"], 16, False),  # in this process, as asked
        (["teachers.replicas_per_member=2"], 1, False),
        (["specialists={replicas_per_member: 2}"], 1, False),
        (["sweep={space: {alpha: [1]}}"], 1, True),
        (["sweep={space: {alpha: [1]}, concurrent_trials: 2}"], 1, False),
    ],
)
def test_where_nothing_could_work_side_by_side(
    overrides: list[str], cpus: int, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(supervised, "cpus_here", lambda: cpus)
    monkeypatch.setattr(supervised, "gpus_there", lambda: False)
    settings = config(*overrides)
    assert supervised.wanted(settings, None, set()) is local
    assert not supervised.wanted(settings, "auto", set())
    assert not supervised.wanted(settings, None, {"teachers"})
    monkeypatch.setattr(supervised, "gpus_there", lambda: True)
    assert supervised.wanted(settings, None, set()) is (local and settings.compute.gpus_per_worker == 0)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not supervised.wanted(settings, None, set())


def job(*overrides: str) -> supervised.Job:
    return supervised.Job("data", config(*overrides), None, False, False, None)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sweep={space: {temperature: [0.5, 2], training.learning_rate: 'loguniform(1e-4, 1e-1)'}}"],
        ["student={model: {name: mlp, hidden: [4]}, temperature: auto, alpha: auto, terms: []}"],
        ["teachers={source: callable, given: ['asked_teachers:linear']}", "specialists=null"],
        ["teachers.model={name: custom, callable: 'counted_teacher:make', options: {path: a}}", "export={}"],
    ],
)
def test_a_job_arrives_as_it_was_sent(overrides: list[str]) -> None:
    settings = load_config("digits", overrides)
    sent = supervised.Job("student", settings, "runs/a", True, True, "name: a")
    found = supervised.unpacked(supervised.packed(sent))
    assert found.settings.compute.executor == "local"
    compute = found.settings.compute.model_copy(update={"executor": "auto"})
    settings = found.settings.model_copy(update={"compute": compute})
    assert supervised.Job(**{**vars(found), "settings": settings}) == sent


def test_secret_options_arrive_and_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_options, "_held", [])
    secret_options.remember("secret_nets:make", {"token": "tsk-1234567", "width": 4}, [])
    known, work = secret_options.held(), supervised.packed(job())
    assert known
    monkeypatch.setattr(secret_options, "_held", [])
    supervised.unpacked(work)
    assert secret_options.held() == known


class Ends:
    """In place of the processes: how each of them ends."""

    def __init__(self, *codes: int, asked: bool = False) -> None:
        self.codes, self.asked = list(codes), asked

    def __call__(self, work: bytes) -> tuple[int, bool]:
        return self.codes.pop(0), self.asked


def test_it_is_started_again_as_often_as_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(supervised, "_attempt", Ends(-11, -9, 0))
    assert supervised.attend(job(), warned.append) == 0
    assert "died of SIGSEGV; it is started" in warned[0] and "SIGKILL, as the system does wh" in warned[1]
    monkeypatch.setattr(supervised, "_attempt", Ends(-11, -11, 0))
    with pytest.raises(TrainingError, match="died of SIGSEGV, 2 times; .* run again to go on"):
        supervised.attend(job("compute.max_failures=1"), warned.append)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130, 143])
def test_what_it_ends_with_is_passed_on(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_attempt", Ends(code))
    assert supervised.attend(job(), pytest.fail) == code


def test_one_that_was_asked_to_leave_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "_attempt", Ends(-15, asked=True))
    assert supervised.attend(job(), pytest.fail) == 143


def command(folder: Path, *more: str) -> list[str]:
    sets = [part for setting in [*SETTINGS, *ALONE, *more] for part in ("--set", setting)]
    return [sys.executable, "-m", "ensemble_kd", "teachers", "digits", "--run-dir", str(folder), *sets]


def begin(folder: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    """A run that trains for long, and the process that works, once it has saved an epoch."""
    log: Any = (folder.parent / "log").open("w")
    process = subprocess.Popen(
        command(folder, "teachers.training.epochs=3000", *more),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )
    saved = folder / "teachers/members"
    said = (folder.parent / "log").read_text
    wait_for(lambda: any(saved.glob("*/checkpoint.safetensors")), process, said=said)
    workers = descendants(process.pid, supervised.COMMAND)
    assert len(workers) == 1
    assert not descendants(process.pid, "raylet")
    return process, workers[0]


@pytest.mark.slow
def test_a_native_crash_is_survived_in_the_same_bits(tmp_path: Path) -> None:
    folder, epochs = tmp_path / "run", "teachers.training.epochs=150"
    process, worker = begin(folder, epochs)
    os.kill(worker, signal.SIGSEGV)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    assert "died of SIGSEGV; it is started again, and goes on" in (tmp_path / "log").read_text()
    pipeline.run(config(epochs, "compute.executor=local"), tmp_path / "other", until="teachers")
    found = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.glob("teachers/members/*/*.safetensors")}
        for root in (folder, tmp_path / "other")
    ]
    assert len(found[0]) == 4 and found[0] == found[1]
    assert json.loads((folder / "resolved.json").read_text())["compute"]["executor"] == "local"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_watches_passes_on_that_the_run_is_to_end(number: int, code: int, tmp_path: Path) -> None:
    process, _ = begin(tmp_path / "run")
    process.send_signal(number)
    assert process.wait(60) == code
    text = (tmp_path / "log").read_text()
    assert "run again to go on" in text and "Traceback" not in text and text.count("stopped") == 1


@pytest.mark.slow
def test_who_works_ends_with_who_watches(tmp_path: Path) -> None:
    process, worker = begin(tmp_path / "run")
    watch = subprocess.Popen(["tail", "--pid", str(worker), "-f", "/dev/null"])
    kill(process.pid)
    process.wait()
    watch.wait(60)


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_with_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    found = subprocess.run(command(tmp_path / "run"), capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and found.stderr.count("error:") == 1 and "Traceback" not in found.stderr
