"""Failures of other processes: one paragraph for people, the traceback in a file, nothing of Ray's."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import OutOfDiskError, RayTaskError

from ensemble_kd import disk, lease
from ensemble_kd.carried import held
from ensemble_kd.config import load_config
from ensemble_kd.errors import ArtifactError, EnsembleKDError, InputError, TrainingError
from ensemble_kd.failures import FILE, last_words, packed, plain, raise_packed
from ensemble_kd.proposals import Proposals
from ensemble_kd.stages import soft_targets
from ensemble_kd.stages.shards import _Pool


class Broken:
    """In place of a stage's actor."""

    def __init__(self, error: Exception, at_once: bool = False, use_gpu: bool = False) -> None:
        self.error = error
        if at_once:
            raise error

    def make(self, item: dict[str, Any]) -> dict[str, Any]:
        raise self.error


def through_ray_data(error: Exception, folder: Path, at_once: bool) -> None:
    """What the driver raises of an actor's failure; both ends, without Ray between them."""
    pool = _Pool(Broken, {"error": error, "at_once": at_once}, None, held())
    target = folder / "soft_targets" / "x" / "part-00000.parquet"
    found = pool({"item": [json.dumps({"target": str(target), "source": "", "beside": []})]})
    assert list(found["entry"]) == [""]
    raise_packed(found["failure"][0], "soft-targets", folder)


@pytest.mark.parametrize("at_once", [False, True])
def test_the_user_s_mistakes_stay_what_they_are(tmp_path: Path, at_once: bool) -> None:
    with pytest.raises(InputError) as found:
        through_ray_data(InputError(["keep_dtype: too small", "another"]), tmp_path, at_once)
    assert found.value.problems == ["keep_dtype: too small", "another"]
    with pytest.raises(ArtifactError, match="^x: missing$"):
        through_ray_data(ArtifactError("x: missing"), tmp_path, at_once)


def test_a_full_disk_names_the_stage_and_the_shard(tmp_path: Path) -> None:
    with pytest.raises(disk.DiskError, match=r"^soft-targets: cannot write .*part-00000\.parquet: the disk"):
        through_ray_data(OSError(errno.ENOSPC, "No space left on device"), tmp_path, False)


def test_a_bug_is_one_paragraph_and_its_traceback_is_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as found:
        through_ray_data(IndexError("index 7 is out of bounds\nand much advice"), tmp_path, False)
    text = str(found.value)
    assert text.startswith("soft-targets: part-00000.parquet: IndexError: index 7 is out of bounds; ")
    assert "run the same command again" in text and "\n" not in text and "advice" not in text
    assert str(tmp_path / FILE) in text
    assert "in make" in (tmp_path / FILE).read_text()


def test_a_traceback_that_cannot_be_written_does_not_hide_the_failure(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="index 7"):
        raise_packed(packed(IndexError("index 7"), "x", tmp_path), "data", tmp_path / "absent")


def test_what_ray_makes_of_an_error_is_made_plain(tmp_path: Path) -> None:
    def raised(cause: Exception) -> Exception:
        """As `ray.get` raises it: a class of both, whose text is the traceback of the other process."""
        error: Exception = RayTaskError("part_of", f"Traceback ...\nIndexError: {cause}", cause)
        return error.as_instanceof_cause()  # type: ignore[attr-defined]

    with pytest.raises(ArtifactError, match="^x: missing$"), plain("clusters", tmp_path):
        raise raised(ArtifactError("x: missing"))
    with (
        pytest.raises(TrainingError, match=r"^clusters: IndexError: index 7; .*run the same"),
        plain("clusters", tmp_path),
    ):
        raise raised(IndexError("index 7"))
    assert "Traceback" in (tmp_path / FILE).read_text()
    with pytest.raises(IndexError, match="ours"), plain("clusters", tmp_path):
        raise IndexError("ours")  # of this process: a bug, whose traceback is shown


@given(st.text(max_size=200))
def test_whatever_a_failure_says_arrives(text: str) -> None:
    with pytest.raises(EnsembleKDError):
        raise_packed(packed(RuntimeError(text), "x", Path("/nowhere")), "data", Path("/nowhere/absent"))
    assert "\n" not in last_words(text)


def test_ray_s_names_for_its_exceptions_are_left_out() -> None:
    said = (
        "Traceback ...\n  File x\nray.exceptions.RayTaskError: ray::f()\nbuiltins.ValueError: no such thing\n"
    )
    assert last_words(said) == "ValueError: no such thing"


def test_a_full_disk_ends_a_sweep_and_not_its_trial_alone() -> None:
    nothing: Any = None
    proposals = Proposals(
        [],
        nothing,
        nothing,
        nothing,
        nothing,
        fuse=1,
        concurrent=1,
        left=lambda: 0,
        too_many_failed=lambda: False,
        max_failures=3,
        offset=0.0,
    )
    for tell in (proposals.on_trial_result, proposals.on_trial_complete):
        with pytest.raises(disk.DiskError, match="^sweep: trial-001: the disk is full"):
            tell("x", {"full": "trial-001: the disk is full"})


def test_ray_s_full_object_store_says_where_it_lies(tmp_path: Path) -> None:
    with pytest.raises(disk.DiskError) as found, disk.told("teachers", tmp_path):
        raise OutOfDiskError("Failed to put object")
    text = str(found.value)
    assert text.startswith("teachers: cannot write ") and "Ray's object store and the disk are full" in text
    assert "RAY_TMPDIR" in text and "same command again" in text


INFO = {
    "num_classes": 10,
    "counts": {"transfer": 1_000_000},
    "kind": "image",
    "input_shape": [1, 8, 8],
    "target": None,
}


@pytest.mark.parametrize(
    ("settings", "per_row"),
    [
        ([], 5 * 10 * 2),
        (["soft_targets.views=4"], 4 * 5 * 10 * 2),
        (["soft_targets.top_k=2"], 5 * (2 * 2 + 2 * 2 + 4)),
        (["specialists={}"], 2 * 5 * 10 * 2),
    ],
)
def test_a_store_that_does_not_fit_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], per_row: int
) -> None:
    base = ["specialists=null", "data.augment.shift=1"]
    config = load_config("digits", [*base, *settings])
    needed = per_row * 1_000_000
    monkeypatch.setattr(disk, "free", lambda path: needed)
    assert soft_targets.room_problems(config, INFO, tmp_path, 5) == []
    monkeypatch.setattr(disk, "free", lambda path: needed - 1)
    (problem,) = soft_targets.room_problems(config, INFO, tmp_path, 5)
    assert problem.startswith(
        f"soft_targets: {disk.size(needed)} are to be written (1,000,000 rows x 5 members"
    )
    there = tmp_path / "soft_targets" / "x" / "part-00000.parquet"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"12")
    assert soft_targets.room_problems(config, INFO, tmp_path, 5) == []


def test_a_file_system_without_locks_is_not_told_as_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS mounted without its lock service."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lease.fcntl, "flock", refuse)
    with pytest.raises(EnsembleKDError, match="no locks.*local disk"), lease.locked(tmp_path):
        pass
