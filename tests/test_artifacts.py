"""Artefacts: whole or absent, addressed by what they were made from, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_kd import artifacts
from ensemble_kd.artifacts import (
    MANIFEST,
    Identity,
    damage,
    differences,
    fingerprint,
    finish,
    latest_other,
    read_manifest,
    write_atomic,
    write_json,
)
from ensemble_kd.errors import ArtifactError
from ensemble_kd.stages.context import Console, StagePlan


def make(folder: Path, content: bytes = b"0123456789") -> Path:
    folder.mkdir(parents=True)
    (folder / "part.bin").write_bytes(content)
    finish(folder, Identity("stage", folder.name, {"a": 1}, {"data": "d"}), ["part.bin"], {})
    return folder


def test_fingerprint_depends_on_content_not_on_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint({"a": 1, "b": [1, 2]})
    assert before == fingerprint({"b": [1, 2], "a": 1})
    assert before != fingerprint({"a": 1, "b": [2, 1]})
    monkeypatch.setattr(artifacts, "FORMAT", 2)
    assert before != fingerprint({"a": 1, "b": [1, 2]})


def test_whole_folder_has_no_damage(tmp_path: Path) -> None:
    folder = make(tmp_path / "f")
    manifest = read_manifest(folder)
    assert manifest is not None and damage(folder, manifest) == []


def test_each_kind_of_damage_is_named(tmp_path: Path) -> None:
    changed, cut, gone = (make(tmp_path / name) for name in ("changed", "cut", "gone"))
    (changed / "part.bin").write_bytes(b"0123456780")
    (cut / "part.bin").write_bytes(b"0123")
    (gone / "part.bin").unlink()
    for folder, text in ((changed, "checksum"), (cut, "4 bytes"), (gone, "missing")):
        manifest = read_manifest(folder)
        assert manifest is not None
        [found] = damage(folder, manifest)
        assert found.file == folder / "part.bin"
        assert str(found).startswith(f"{folder / 'part.bin'}: ") and text in str(found)


def test_manifest_may_not_point_outside(tmp_path: Path) -> None:
    folder = make(tmp_path / "f")
    (tmp_path / "secret").write_text("x")
    manifest = read_manifest(folder)
    assert manifest is not None
    manifest.files["../secret"] = {"bytes": 1, "sha256": "0"}
    assert any("outside" in found.message for found in damage(folder, manifest))


def test_damage_is_removed_where_the_path_has_a_colon(tmp_path: Path) -> None:
    plan = StagePlan(stage="stage", folder=tmp_path / "a: b" / "f", config={"a": 1}, inputs={"data": "d"})
    part = make(plan.folder) / "part.bin"
    part.write_bytes(b"0123")
    told: list[str] = []
    assert plan.checked(Console(warning=told.append)) is None
    assert not part.exists() and len(told) == 1 and f"{part}: 4 bytes" in told[0]


def test_newer_format_and_broken_json_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "f")
    write_json(folder / MANIFEST, {"format": 99})
    with pytest.raises(ArtifactError, match="format 99"):
        read_manifest(folder)
    (folder / MANIFEST).write_text('{"format": 1, ')
    with pytest.raises(ArtifactError, match="not JSON"):
        read_manifest(folder)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_differences_name_the_path() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(old, new) == ["a.c: 2 -> 5", "d: 3 -> null", "e: null -> 4"]


def test_latest_other_is_the_newest_finished_sibling(tmp_path: Path) -> None:
    make(tmp_path / "s" / "one")
    make(tmp_path / "s" / "two")
    (tmp_path / "s" / "unfinished").mkdir()
    found = latest_other(tmp_path / "s" / "three")
    assert found is not None and found.fingerprint == "two"
