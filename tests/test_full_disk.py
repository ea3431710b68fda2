"""A real disk that fills up in each stage: told in one line; with room again the same command goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import descendants, wait_for
from small_disk import SmallDisk, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = [
    "teachers.num_members=2",
    "teachers.model={name: mlp, hidden: [64]}",
    "teachers.training={epochs: 60, batch_size: 16}",
    "student.training={epochs: 40, batch_size: 16}",
    "student.seeds=1",
    "data.shard_rows=50",
    "soft_targets={batch_size: 1, views: 4}",
    "data.augment.shift=1",
    "specialists=null",
    "sweep={search: grid, space: {temperature: [2, 4]}, num_seeds: 1, scheduler: none, fuse: 1}",
    "tracking.enabled=false",
]


def command(folder: Path, what: str, *more: str) -> list[str]:
    sets = [part for setting in [*SETTINGS, *more] for part in ("--set", setting)]
    return [sys.executable, "-m", "ensemble_kd", what, "digits", "--run-dir", str(folder), *sets]


class Run:
    """A run folder on a small disk, and what its command said last."""

    def __init__(self, disk: SmallDisk, log: Path) -> None:
        self.disk, self.log, self.folder = disk, log, disk.path / "run"

    def begin(self, what: str, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        return self.disk.start(*command(self.folder, what, *more), log=self.log, **environment)

    def fills_up(self, what: str, pattern: str) -> str:
        """The disk is full as soon as a file of the pattern is there; returns the one line about it."""
        process = self.begin(what)
        look = self.disk.look / "run"
        wait_for(lambda: any(look.glob(pattern)), process, said=self.log.read_text, pause=0.002)
        self.disk.fill()
        return self.fails(process)

    def fails(self, process: subprocess.Popen[bytes]) -> str:
        below = descendants(process.pid)
        assert process.wait(180) == 1, self.log.read_text()
        text = self.log.read_text()
        errors = [line for line in text.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "Traceback" not in text, text
        assert "the same command again" in errors[0] and " free of " in errors[0], text
        assert "Ray" not in errors[0] and str(self.folder) in errors[0]
        assert below
        return errors[0]


@pytest.fixture
def run(tmp_path: Path) -> Run:  # type: ignore[misc]
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        yield Run(disk, tmp_path / "log")


CHECKPOINT = "members/*/checkpoint.safetensors"


def test_a_disk_that_fills_up_under_teachers_and_then_under_soft_targets(run: Run) -> None:
    error = run.fills_up("soft-targets", f"teachers/{CHECKPOINT}")
    assert "error: teachers: teacher-00" in error and "the disk is full" in error
    assert "No space left on device" in error and "(tmpfs)" in error
    assert "checkpoint.safetensors, which takes" in error
    run.disk.make_room()
    error = run.fills_up("soft-targets", "soft_targets/*/part-00001.json")
    assert "error: soft-targets: cannot write" in error and "part-" in error
    made = {
        name: time
        for name, time in shards(run).items()
        if (run.disk.look / name).with_suffix(".json").exists()
    }
    assert made  # those with a receipt
    run.disk.make_room()
    last = run.begin("soft-targets", "compute.executor=local")  # the rest is the same without Ray
    assert last.wait(180) == 0, run.log.read_text()
    assert made.items() <= shards(run).items(), "shards that were finished are not made again"


def shards(run: Run) -> dict[str, int]:
    """When each shard of soft targets was written, by its path on the disk."""
    found = run.disk.look.glob("run/soft_targets/*/part-*.parquet")
    return {str(path.relative_to(run.disk.look)): path.stat().st_mtime_ns for path in found}


@pytest.mark.long
def test_a_disk_that_fills_up_under_a_sweep_and_the_report_ends_in_the_same_bytes(
    run: Run, tmp_path: Path
) -> None:
    error = run.fills_up("run", f"sweep/{CHECKPOINT}")
    assert "error: sweep: " in error and "the disk is full" in error  # a trial's file, or one of Tune's own
    run.disk.make_room()
    error = run.fills_up("run", "report/*")
    assert "error: report: cannot write" in error
    run.disk.make_room()
    assert run.begin("run").wait(300) == 0, run.log.read_text()
    subprocess.run(command(tmp_path / "other", "run"), check=True, capture_output=True, timeout=300)
    name = "model/weights.safetensors"
    assert (run.disk.look / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_store_that_cannot_fit_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        run = Run(disk, tmp_path / "log")
        data = run.begin("data")
        assert data.wait(120) == 0, run.log.read_text()
        for what in ("check", "run"):
            process = run.begin(what, "soft_targets.views=175")
            assert process.wait(120) == 2, run.log.read_text()
            text = run.log.read_text()
            assert "error: soft_targets: " in text and "rows x 2 members x 10 classes x 175 views" in text
            assert "5.0 MB are to be written" in text and "free; make room there" in text, text
            assert "teachers: running" not in text


@pytest.mark.parametrize(("options", "wrong"), [("size=16m,nr_inodes=60", "no inodes are left")])
def test_a_disk_without_inodes(tmp_path: Path, options: str, wrong: str) -> None:
    with small_disk(tmp_path / "disk", options) as disk:
        run = Run(disk, tmp_path / "log")
        error = run.fails(run.begin("data", "data.shard_rows=10"))
        assert wrong in error and "data:" in error


def test_a_read_only_disk_in_the_middle(run: Run) -> None:
    assert run.begin("data").wait(120) == 0, run.log.read_text()
    remount = f"mount -o remount,ro {run.disk.path}"
    assert run.disk.start("sh", "-c", remount, log=run.log.with_name("mount")).wait(60) == 0
    process = run.begin("teachers")
    assert process.wait(120) == 2
    assert "cannot be written (Read-only file system)" in run.log.read_text()


def test_docker_s_small_shared_memory_is_told_and_does_not_stop_a_run(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        run = Run(disk, tmp_path / "log")
        shared: Callable[[], int] = disk.start(
            "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm", log=tmp_path / "mount"
        ).wait
        assert shared() == 0
        process = run.begin(
            "teachers", "teachers.training={epochs: 1, batch_size: 16}", "compute.executor=ray"
        )
        assert process.wait(180) == 0, run.log.read_text()
        said = run.log.read_text()
        assert "warning: /dev/shm has room for 6" in said and "--shm-size" in said
