"""What stages hand over: folders with a manifest, addressed by fingerprint, whole or absent.

A stage writes into `RUN/STAGE/FINGERPRINT/` and puts `manifest.json` there last, by an atomic rename.
A folder without a manifest is unfinished work that the next run continues. The fingerprint covers the
stage's own settings, the fingerprints of its inputs and the format version, so a change anywhere above
leads to another folder, and going back to an earlier setting finds the earlier result again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemble_kd.disk import writing
from ensemble_kd.errors import ArtifactError
from ensemble_kd.registry import LOADED, noted
from ensemble_kd.safe_files import open_plain, problem_inside, shown

FORMAT = 1
"""Raised when the meaning or layout of any artefact changes; older artefacts are then redone."""

MANIFEST = "manifest.json"


def canonical(value: Any) -> str:
    """JSON with sorted keys, so that equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that stand for `parts` (JSON values) and the format version."""
    return hashlib.sha256(canonical([FORMAT, *parts]).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all, also after a kill or a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with writing(path, len(data)), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Of a file of a run. Raises ArtifactError where it is absent, no plain file, or not JSON."""
    with open_plain(path, links=True) as file:
        content = file.read()
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error}); delete it to redo the work behind it") from error


@dataclass(frozen=True)
class Manifest:
    """The receipt of a finished stage (or member)."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    """The settings that the fingerprint covers."""
    inputs: dict[str, str]
    """Fingerprint of each input, by name."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`bytes` and `sha256` of each file, by path relative to the folder."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What later stages and readers need to know: counts, class order, names, metrics."""
    created: float = 0.0
    """Seconds since 1970."""
    format: int = FORMAT


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": checksum(folder / name)}
        for name in sorted(names)
    }


@dataclass(frozen=True)
class Identity:
    """What the result in a folder is: the stage that made it, its settings, its inputs, its fingerprint."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]


def finish(
    folder: Path,
    result: Identity,
    files: Iterable[str],
    summary: dict[str, Any],
    known: dict[str, dict[str, Any]] | None = None,
) -> Manifest:
    """Declare the folder complete. `known` saves hashing the files whose entry is at hand.

    Where plug-ins are loaded, the summary notes them.
    """
    known = known or {}
    names = list(files)
    entries = {name: known[name] for name in names if name in known}
    entries |= describe_files(folder, [name for name in names if name not in known])
    if LOADED:
        summary = {**summary, "plugins": noted(LOADED)}
    manifest = Manifest(
        result.stage, result.fingerprint, result.config, result.inputs, entries, summary, time.time()
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished folder, or None where there is none.

    Raises ArtifactError for a manifest that cannot be read or has a newer format.
    """
    path = folder / MANIFEST
    return parsed_manifest(read_json(path), path) if path.exists() else None


def parsed_manifest(raw: Any, path: Path) -> Manifest:
    """Raises ArtifactError as `read_manifest`."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else "no"
        raise ArtifactError(
            f"{path}: format {shown(found)}, this version reads format {FORMAT}; "
            "use the version that wrote it, or run again with --fresh"
        )
    try:
        manifest = Manifest(**raw)
    except TypeError as error:
        raise ArtifactError(
            f"{path}: fields are missing or unknown ({shown(error)}); run again with --fresh"
        ) from error
    blocks = (manifest.config, manifest.inputs, manifest.files, manifest.summary)
    if not all(isinstance(block, dict) for block in blocks):
        raise ArtifactError(
            f"{path}: config, inputs, files and summary must be blocks; run again with --fresh"
        )
    return manifest


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of a finished folder; as text the line that users read."""

    folder: Path
    name: str
    """As the manifest has it, which may be anything."""
    message: str

    @property
    def file(self) -> Path:
        return self.folder / self.name

    def __str__(self) -> str:
        return f"{self.folder / shown(self.name).lstrip('/')}: {self.message}"


def damage(folder: Path, manifest: Manifest, deep: bool = True) -> list[Damage]:
    """What is wrong with a finished folder's files, one entry each; `deep` compares checksums too.

    Nothing is opened that is no plain file, or not inside the folder.
    """
    problems = []
    for name, entry in manifest.files.items():
        problem = _damage(folder, name, entry, deep)
        if problem is not None:
            problems.append(Damage(folder, name, problem))
    return problems


def _damage(folder: Path, name: str, entry: Any, deep: bool) -> str | None:
    known = entry if isinstance(entry, dict) else {}
    if type(known.get("bytes")) is not int or not isinstance(known.get("sha256"), str):
        return f"{MANIFEST} does not say its bytes and sha256"
    if (problem := problem_inside(folder, name)) is not None:
        return problem
    path = folder / name
    if (size := path.stat().st_size) != known["bytes"]:
        return f"{size} bytes, the manifest says {shown(known['bytes'])}"
    if deep:
        with open_plain(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known["sha256"]:
                return "content differs from the manifest's checksum"
    return None


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two settings differ, as `a.b: 1 -> 2` lines."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def latest_other(folder: Path) -> Manifest | None:
    """The newest finished sibling of a stage folder: what this run's settings are compared with."""
    found = []
    for sibling in folder.parent.glob(f"*/{MANIFEST}"):
        if sibling.parent != folder:
            try:
                manifest = read_manifest(sibling.parent)
            except ArtifactError:
                continue
            if manifest is not None:
                found.append(manifest)
    return max(found, key=lambda manifest: manifest.created, default=None)


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
