"""Seeds of one role that the student stage trains as one stack: the same students, also through faults."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_local import ALONE, LOCAL, run
from test_pipeline import Lines

from ensemble_kd import member_loop, pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import load_config
from ensemble_kd.errors import StoppedError, TrainingError
from ensemble_kd.stages import gap, student
from ensemble_kd.stages.context import Console
from ensemble_kd.train import fused

pytestmark = pytest.mark.slow

SETTINGS = load_config("digits", [*ALONE, LOCAL, "student.seeds=3", "teachers.num_members=2"])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything up to the soft targets; tests copy it."""
    folder = tmp_path_factory.mktemp("stacked") / "taught"
    run(SETTINGS, folder, until="soft-targets")
    return folder


@pytest.fixture(scope="module")
def whole(taught: Path) -> Path:
    """The same run to its end, undisturbed; tests that change it copy it."""
    folder = Path(shutil.copytree(taught, taught.with_name("whole")))
    run(SETTINGS, folder)
    return folder


@pytest.fixture
def began(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "run"))


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    members = folder / "student/members"
    return {path.parent.name: load_file(path) for path in members.glob("*/weights.safetensors")}


def files(folder: Path) -> dict[str, bytes]:
    return {
        f"{p.parent.name}/{p.name}": p.read_bytes() for p in folder.rglob("student/members/*/*.safetensors")
    }


def test_a_stack_gives_each_what_it_would_have_got_alone(
    began: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = member_loop.fused_epochs

    def watched(tasks: Any, *args: Any, **options: Any) -> Any:
        trained.extend(task.name for task in tasks)
        return original(tasks, *args, **options)

    monkeypatch.setattr(member_loop, "fused_epochs", watched)
    run(SETTINGS, began)
    assert sorted(trained) == [
        f"{role}-seed-{seed}" for role in ("distilled", "hard", "pseudo") for seed in range(3)
    ]
    monkeypatch.setattr(student, "stacks_of", lambda *_: [])
    monkeypatch.setattr(gap, "stacks_of", lambda *_: [])
    trained.clear()
    run(SETTINGS, tmp_path / "alone")
    assert not trained
    stacked, alone = weights(began), weights(tmp_path / "alone")
    assert stacked.keys() == alone.keys() and len(stacked) == 9
    for name, tensors in alone.items():
        for key, tensor in tensors.items():
            # Where a gradient is nearly 0, Adam makes whole steps of what was rounding.
            assert (stacked[name][key] - tensor).abs().median() < 1e-3, key
            torch.testing.assert_close(stacked[name][key], tensor, rtol=0, atol=0.03)


def test_a_stack_that_was_stopped_goes_on_in_the_same_bits(began: Path, whole: Path) -> None:
    def progress(task: str, done: float, total: float, note: str) -> None:
        if note.startswith("distilled-seed-2") and task == "student" and "1" not in stopped:
            stopped.append("1")
            os.kill(os.getpid(), signal.SIGTERM)

    stopped: list[str] = []
    with pytest.raises(StoppedError):
        pipeline.run(SETTINGS, began, console=Console(progress=progress))
    assert len(_checkpoints(began)) == 1
    run(SETTINGS, began)
    assert not _checkpoints(began)
    assert files(began) == files(whole)


def _checkpoints(folder: Path) -> list[Path]:
    known = ("weights.safetensors", "predictions.safetensors")
    return [p for p in folder.glob("student/members/*/*.safetensors") if p.name not in known]


def test_a_process_that_dies_while_it_writes_the_members_loses_none(
    began: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = fused.finish_member, list[str]()

    def finish_member(task: Any, *args: Any) -> None:
        if task.name == "distilled-seed-1" and "died" not in written:
            written.append("died")
            raise StoppedError("killed")
        original(task, *args)

    monkeypatch.setattr(fused, "finish_member", finish_member)
    with pytest.raises(StoppedError):
        run(SETTINGS, began)
    run(SETTINGS, began)
    assert files(began) == files(whole)


def test_a_stack_that_diverges_is_told_by_its_members(tmp_path: Path) -> None:
    bad = "student.training={learning_rate: 1.0e+30, optimizer: sgd}"
    settings = load_config("digits", [*ALONE, LOCAL, "student.seeds=2", "teachers.num_members=2", bad])
    with pytest.raises(TrainingError, match="hard-seed-0, hard-seed-1: the loss became NaN or infinite"):
        run(settings, tmp_path / "run")
    assert len(list((tmp_path / "run/student/members").glob("*/failed.json"))) == 2


def test_a_stack_is_shown_as_its_members(began: Path) -> None:
    lines, names = Lines(), set[str]()
    lines.progress = lambda task, done, total, note: names.add(note.split(":")[0])
    pipeline.run(SETTINGS, began, console=lines)
    assert {f"distilled-seed-{seed}" for seed in range(3)} <= names


@pytest.mark.parametrize("role", ["hard", "distilled"])
def test_one_that_is_damaged_is_made_anew_to_the_bit_and_the_others_are_left(
    whole: Path, tmp_path: Path, role: str
) -> None:
    began = Path(shutil.copytree(whole, tmp_path / "run"))
    expected = files(began)
    members = {
        manifest.summary["name"]: path.parent
        for path in began.glob("student/members/*/manifest.json")
        if (manifest := read_manifest(path.parent)) is not None
    }
    damaged = members[f"{role}-seed-1"] / "predictions.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    times = {path: path.stat().st_mtime_ns for path in began.glob("student/members/*/weights.safetensors")}
    lines = run(SETTINGS, began)
    assert set(lines.kept()) == set(SETTINGS.stages) - {"student"}
    assert files(began) == expected
    changed = [path.parent for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [damaged.parent]
