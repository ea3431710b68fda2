"""What is said of a disk that takes no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ensemble_kd import disk
from ensemble_kd.artifacts import write_atomic
from ensemble_kd.errors import ArtifactError, EnsembleKDError
from ensemble_kd.train.checkpoint import save_state


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("ray::worker: OSError: [Errno 122] Disk quota exceeded: 'x'"), errno.EDQUOT),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), errno.ENOSPC),
        (ValueError("no such thing"), None),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
    ],
)
def test_the_disk_is_found_behind_an_error(error: Exception, code: int | None) -> None:
    assert disk.code_of(error) == code
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("the worker group failed") from cause
    except RuntimeError as wrapped:
        assert disk.code_of(wrapped) == code


def test_what_where_how_much_and_what_then(tmp_path: Path) -> None:
    path = tmp_path / "member" / "checkpoint.safetensors"
    text = str(disk.full(errno.ENOSPC, path, 3_000_000).within("teacher-001").within("teachers"))
    assert text.startswith(
        f"teachers: teacher-001: cannot write {path}, which takes 3.0 MB: the disk is full"
    )
    assert "No space left on device" in text and " free of " in text
    assert "run the same command again" in text and "goes on" in text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mount it writable"),
        (errno.EACCES, "the right to write"),
        (errno.EFBIG, "ulimit"),
        (errno.ESTALE, "mount it again"),
    ],
)
def test_each_kind_has_its_own_remedy(tmp_path: Path, code: int, words: str) -> None:
    text = str(disk.full(code, tmp_path / "x"))
    assert words in text and os.strerror(code) in text


def test_no_inodes_are_told_apart_from_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.statvfs(tmp_path)
    values = list(before)
    values[5:8] = 1000, 0, 0  # files in all, free, and free for this user
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    assert "no inodes are left" in str(disk.full(errno.ENOSPC, tmp_path / "x"))


def test_a_stage_names_itself_and_leaves_other_files_to_others(tmp_path: Path) -> None:
    with pytest.raises(disk.DiskError, match=r"^report: cannot write .*/run: the disk is full"):  # noqa: SIM117
        with disk.told("report", tmp_path / "run"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError, match="elsewhere"), disk.told("data", tmp_path / "run"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/train.csv")
    with pytest.raises(disk.DiskError, match="that is not allowed"), disk.told("data", tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data"))
    with pytest.raises(ArtifactError), disk.told("data", tmp_path):
        raise ArtifactError("x: missing")


def test_a_file_says_how_large_it_would_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(disk.DiskError, match=r"resolved.json, which takes 2\.0 kB: the disk is full"):
        write_atomic(tmp_path / "resolved.json", "x" * 2000)
    model = torch.nn.Linear(10, 10)
    monkeypatch.setattr("ensemble_kd.train.checkpoint.save_file", full)
    with pytest.raises(disk.DiskError, match=r"checkpoint\.safetensors, which takes 440 bytes"):
        save_state(tmp_path / "checkpoint.safetensors", model, torch.optim.SGD(model.parameters()), None, {})
    assert not list(tmp_path.iterdir())


def test_it_is_one_of_ours_and_one_of_the_system_s(tmp_path: Path) -> None:
    error = disk.full(errno.ENOSPC, tmp_path)
    assert isinstance(error, EnsembleKDError) and isinstance(error, OSError)
    assert error.errno == errno.ENOSPC and error.exit_code == 1
