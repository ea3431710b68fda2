"""`compute.executor: local`: what Ray's workers do, in this process; faults, and going on with the other."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pipeline import Lines

from ensemble_kd import member_loop, pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import ComputeConfig, Config, load_config
from ensemble_kd.disk import DiskError
from ensemble_kd.errors import ConfigError, StoppedError, TrainingError
from ensemble_kd.runtime import Runtime
from ensemble_kd.stages.context import Console
from ensemble_kd.train.process import borrowed

TINY = [
    "teachers.num_members=3",
    "teachers.training.epochs=4",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=3",
    "student.seeds=2",
    "student.model.hidden=[8]",
    "data.shard_rows=300",
    "tracking.enabled=false",
    "specialists.training.epochs=2",
    "sweep={search: grid, space: {temperature: [1, 2]}, num_seeds: 1, scheduler: none, fuse: 1}",
]
ALONE = [*TINY, "specialists=null", "sweep=null"]
LOCAL, RAY = "compute.executor=local", "compute.executor=ray"


def config(*overrides: str) -> Config:
    return load_config("digits", [*ALONE, *overrides])


def run(settings: Config, folder: Path, **options: Any) -> Lines:
    lines = Lines()
    pipeline.run(settings, folder, console=lines, **options)
    return lines


def outcome(folder: Path) -> dict[str, bytes]:
    """Every file of numbers that a run leaves, by its path below the run folder, fingerprints among it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".parquet")
    }


@pytest.fixture
def teachers(tmp_path: Path) -> Callable[..., Path]:
    """Run up to the teachers, locally; gives the members' folder."""

    def members(*overrides: str, **options: Any) -> Path:
        run(config(LOCAL, *overrides), tmp_path / "run", until="teachers", **options)
        return tmp_path / "run/teachers/members"

    return members


# ------------------------------------------------------------------------------------------ the same results


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_run_of_one_executor_goes_on_with_the_other_in_the_same_bits(
    streamed: bool, tmp_path: Path, ray_session: None
) -> None:
    overrides = [*(ALONE if streamed else TINY), f"compute.memory_budget={1e-6 if streamed else 4}"]
    overrides.append("student.temperature=auto")
    local, ray = (load_config("digits", [*overrides, which]) for which in (LOCAL, RAY))
    run(local, tmp_path / "local")
    expected = outcome(tmp_path / "local")
    assert len(expected) > (25 if streamed else 45)
    run(ray, tmp_path / "mixed", until="teachers")
    lines = run(local, tmp_path / "mixed", until="soft-targets")
    assert lines.kept() == ["data", "teachers"]
    lines = run(ray, tmp_path / "mixed")
    assert lines.kept() == ["data", "teachers", "soft-targets"]
    assert outcome(tmp_path / "mixed") == expected
    lines = run(local, tmp_path / "mixed")
    assert set(lines.kept()) == set(local.stages)


WITHOUT_RAY = """
import sys
from pathlib import Path
from ensemble_kd import pipeline
from ensemble_kd.config import load_config
pipeline.run(load_config("digits", sys.argv[2:]), Path(sys.argv[1]))
assert "ray" not in sys.modules, sorted(name for name in sys.modules if name.startswith("ray"))[:5]
"""


@pytest.mark.slow
def test_nothing_of_ray_is_imported(tmp_path: Path) -> None:
    overrides = [*TINY, LOCAL, "student.temperature=auto", "teachers.num_members=2"]
    command = [sys.executable, "-c", WITHOUT_RAY, str(tmp_path / "run"), *overrides]
    subprocess.run(command, check=True, timeout=300)


def test_it_is_not_part_of_what_names_a_result() -> None:
    assert "executor" not in config().model_dump()["compute"]
    plans = [
        pipeline.stage("data").plan(config(which), Path("run"), pipeline.Done()).fingerprint
        for which in (LOCAL, RAY)
    ]
    assert plans[0] == plans[1]


def test_what_was_borrowed_is_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(KeyError), borrowed(threads + 2):
        assert torch.get_num_threads() == threads + 2
        torch.manual_seed(torch.randint(1000, ()).item())
        raise KeyError
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------------- faults


def breaking(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, int], None]) -> list[str]:
    """`act(name, count)` before each training of a member; returns the names as they come."""
    original, names = member_loop.train_member, list[str]()

    def train_member(task: Any, *args: Any, **options: Any) -> bool:
        names.append(task.name)
        act(task.name, names.count(task.name))
        return original(task, *args, **options)

    monkeypatch.setattr(member_loop, "train_member", train_member)
    return names


def test_a_member_that_fails_costs_the_others_nothing_and_is_tried_again(
    teachers: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(name: str, count: int) -> None:
        if name == "teacher-000":
            raise RuntimeError("the first line\nadvice")

    names = breaking(monkeypatch, act)
    with pytest.raises(TrainingError) as caught:
        teachers("compute.max_failures=2")
    text = str(caught.value)
    assert text.startswith("teachers: teacher-000 failed: RuntimeError: the first line; finished members and")
    assert "run again to go on" in text and "advice" not in text
    assert "Traceback" in (tmp_path / "run/teachers/failure.txt").read_text()
    assert names.count("teacher-000") == 3 and names.count("teacher-001") == names.count("teacher-002") == 1
    monkeypatch.undo()
    members = teachers()
    assert len(list(members.glob("*/manifest.json"))) == 3


def test_a_member_that_fails_once_is_trained_all_the_same(
    teachers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(name: str, count: int) -> None:
        if name == "teacher-001" and count == 1:
            raise OSError(errno.ECONNRESET, "a store that was away")

    names = breaking(monkeypatch, act)
    members = teachers()
    assert len(list(members.glob("*/manifest.json"))) == 3
    assert names == ["teacher-000", "teacher-001", "teacher-002", "teacher-001"]


def test_a_member_that_diverges_leaves_the_others(teachers: Callable[..., Path]) -> None:
    bad = "teachers.overrides=[{}, {training: {learning_rate: 1.0e+30, optimizer: sgd}}, {}]"
    with pytest.raises(TrainingError, match="teacher-001.*NaN or infinite"):
        teachers(bad)
    members = teachers(bad, "teachers.on_failure=exclude")
    assert len(list(members.glob("*/manifest.json"))) == 2 and list(members.glob("*/failed.json"))


def test_a_full_disk_ends_the_stage_with_the_member_s_name(
    teachers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(name: str, count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    names = breaking(monkeypatch, act)
    with pytest.raises(DiskError, match=r"^teachers: teacher-000: cannot write .*the disk is full.*again"):
        teachers()
    assert names == ["teacher-000"]


def stop_at(epoch: int, number: int, times: int = 1) -> Console:
    """A console at which the signal comes when the first member has trained so many epochs."""
    left = [times]

    def progress(task: str, done: float, total: float, note: str) -> None:
        if note.startswith("teacher-000") and done >= epoch and left[0]:
            left[0] -= 1
            os.kill(os.getpid(), number)

    return Console(progress=progress)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_at_the_epoch_in_the_same_bits(
    number: int, teachers: Callable[..., Path], tmp_path: Path
) -> None:
    def numbers(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*.safetensors")}

    expected = numbers(teachers())
    shutil.rmtree(tmp_path / "run")
    error = StoppedError if number == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(error) as caught:
        pipeline.run(config(LOCAL), tmp_path / "run", until="teachers", console=stop_at(2, number))
    if number == signal.SIGTERM:
        assert "run again to go on" in str(caught.value)
    members = tmp_path / "run/teachers/members"
    assert len(list(members.glob("*/checkpoint.safetensors"))) == 1
    assert not list(members.glob("*/manifest.json"))
    assert numbers(teachers()) == expected
    entries = [json.loads(p.read_text())["summary"]["history"] for p in members.glob("*/manifest.json")]
    assert all([entry["epoch"] for entry in history] == [1, 2, 3, 4] for history in entries)


def test_a_step_that_takes_longer_than_its_grace_is_left(
    teachers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    def act(name: str, count: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    names = breaking(monkeypatch, act)
    began = time.monotonic()
    with pytest.raises(StoppedError):
        teachers("compute.grace=0.2")
    assert names == ["teacher-000"] and time.monotonic() - began < 30


@pytest.mark.parametrize("stage", ["soft-targets", "sweep"])
def test_a_stage_that_saves_by_itself_is_left_at_once(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_kd.stages.soft_targets import Labeller
    from ensemble_kd.train.trials import Packet

    def asked(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    owner, name = (Labeller, "make") if stage == "soft-targets" else (Packet, "_advance")
    monkeypatch.setattr(owner, name, asked)
    settings = load_config("digits", [*TINY, "specialists=null", LOCAL])
    with pytest.raises(StoppedError, match="stopped by SIGTERM"):
        run(settings, tmp_path / "run", until=stage)
    monkeypatch.undo()
    run(settings, tmp_path / "run", until=stage)


def test_an_actor_s_failure_reads_as_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble_kd.stages.soft_targets import Labeller

    def broken(self: Any, item: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr(Labeller, "make", broken)
    with pytest.raises(TrainingError, match=r"^soft-targets: part-00000.parquet: ValueError: a bug; what is"):
        run(config(LOCAL), tmp_path / "run", until="soft-targets")


@pytest.mark.parametrize(
    ("error", "shown"),
    [(RuntimeError("gone"), "RuntimeError: gone"), (ConnectionResetError(104, "x"), "ConnectionResetError:")],
)
def test_a_packet_of_trials_that_fails_is_tried_again_and_then_given_up(
    error: Exception, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_kd.trial_steps import TrialSteps

    original, failures = TrialSteps._epochs, list[str]()

    def broken(self: TrialSteps) -> dict[str, Any]:
        if "trial-001" in self.name:
            failures.append(self.name)
            raise error
        return original(self)

    monkeypatch.setattr(TrialSteps, "_epochs", broken)
    settings = load_config("digits", [*TINY, "specialists=null", LOCAL, "compute.max_failures=1"])
    lines = run(settings, tmp_path / "run", until="sweep")
    assert len(failures) == 2
    assert any(f"failed ({shown}" in line and "go on where" in line for line in lines.said)
    manifest = read_manifest(next((tmp_path / "run/sweep").glob("*/manifest.json")).parent)
    assert manifest is not None
    trials = {trial["name"]: trial for trial in manifest.summary["trials"]}
    assert trials["trial-001"]["state"] == "failed"
    assert trials["trial-001"]["reason"].startswith(f"its process failed 2 times: {shown}")
    assert {trial["state"] for name, trial in trials.items() if name != "trial-001"} == {"finished"}


@pytest.mark.slow
def test_asha_stops_trials_here_too(tmp_path: Path) -> None:
    sweep = "sweep={search: grid, space: {training.learning_rate: [1.0e-2, 1.0e-3, 1.0e-6, 1.0e-7]}, "
    sweep += "num_seeds: 1, scheduler: asha, grace_epochs: 2, reduction_factor: 2, fuse: 1}"
    settings = load_config("digits", [*ALONE, LOCAL, "student.training.epochs=8", sweep])
    run(settings, tmp_path / "run", until="sweep")
    manifest = read_manifest(next((tmp_path / "run/sweep").glob("*/manifest.json")).parent)
    assert manifest is not None
    states = [trial["state"] for trial in manifest.summary["trials"] if trial["kind"] == "searched"]
    assert states.count("stopped") >= 1 and states.count("finished") >= 1
    stopped = next(trial for trial in manifest.summary["trials"] if trial["state"] == "stopped")
    assert 2 <= stopped["epochs"] < 8


# -------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("teachers.replicas_per_member=2", "teachers.replicas_per_member: 2, but compute.executor is local"),
        ("student.replicas_per_member=2", "student.replicas_per_member: 2, but compute.executor is local"),
        ("compute.num_workers=3", "compute.num_workers: 3, but compute.executor is local, which is this one"),
        ("compute.num_workers=[2, 3]", "compute.num_workers: 2, but compute.executor is local"),
        ("soft_targets.num_actors=2", "soft_targets.num_actors: 2, but compute.executor is local"),
        ("sweep={space: {alpha: [1]}, concurrent_trials: 2}", "sweep.concurrent_trials: 2, but compute.exec"),
        ("specialists={replicas_per_member: 2}", "specialists.replicas_per_member: 2, but compute.executor"),
        ("compute.executor=here", "compute.executor: input should be 'auto', 'local' or 'ray'"),
    ],
)
def test_what_one_process_cannot_do_is_said_with_the_remedy(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(LOCAL, override)
    found = [line for line in caught.value.problems if line.startswith(says)]
    assert len(found) == 1, caught.value.problems
    assert "executor=" in override or "or set compute.executor to auto" in found[0]


def test_one_of_each_is_what_one_process_does() -> None:
    ones = ["compute.num_workers=[1, 4]", "soft_targets.num_actors=1", "teachers.replicas_per_member=1"]
    assert config(LOCAL, *ones).compute.executor == "local"


def test_a_cluster_is_not_this_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compute.executor: local, .* --address is auto; leave one"):
        pipeline.run(config(LOCAL), tmp_path / "run", address="auto")


def test_more_than_the_machine_has_is_refused_as_on_ray(teachers: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="compute.cpus_per_worker: 999 for one worker, but no node has mo"):
        teachers("compute.cpus_per_worker=999")


def test_a_local_runtime_has_room_for_one_worker_and_never_starts_ray() -> None:
    runtime = Runtime(ComputeConfig(gpus_per_worker=0), local=True)
    assert runtime.capacity() == 1 and runtime.group_size(5, 1, "teachers") == 1
    assert runtime.device() == torch.device("cpu")
    with pytest.raises(AssertionError):
        runtime.start()
