"""A home folder that cannot be written is done without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensemble_kd import home

NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *home.CACHES)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """None of the variables set, before and after; temporary files in a folder of the test's."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("folder", ["/proc/nope", "/dev/null/x", "/sys"])
def test_what_libraries_keep_goes_elsewhere(folder: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", folder)
    said: list[str] = []
    home.provide(said.append)
    home.provide(said.append)
    (line,) = said
    assert folder in line and "set HOME" in line
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64 and token not in line
    for name in home.CACHES:
        place = Path(os.environ[name])
        assert place.is_dir() and place.is_relative_to(bare) and not place.parent.stat().st_mode & 0o077


def test_a_home_is_left_alone(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (bare, bare / "to be made"):
        monkeypatch.setenv("HOME", str(folder))
        home.provide(lambda text: pytest.fail(text))
    assert not any(name in os.environ for name in NAMES)


def test_a_folder_of_somebody_else_is_not_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = bare / "theirs"
    theirs.mkdir()
    (bare / f"ensemble-kd-home-{os.getuid()}").symlink_to(theirs)
    monkeypatch.setenv("HOME", "/proc/nope")
    home.provide()
    assert not any(theirs.iterdir()) and Path(os.environ["HF_HOME"]).is_dir()
