"""What of a run folder no result needs any more: other settings' stages and members, and what was put aside.

What a finished run reads is found by following fingerprints: from report.json and the model's manifest to
the folders that these name, to those that their manifests name, and so on. A folder that nothing names on
that way was made for other settings. Reports stay in any case, and so does what is no stage's or member's.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemble_kd.artifacts import MANIFEST, Manifest, differences, read_manifest, size_on_disk
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.lease import locked
from ensemble_kd.mirror import is_remote
from ensemble_kd.stage_list import STAGES

RESOLVED, REPORT, MODEL, MEMBERS, INPUT = "resolved.json", "report.json", "model", "members", "input"
FINGERPRINT = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")
ASIDE = (".before-fresh-", ".rows.", ".answers.")
"""Names of what `--fresh` put aside, and of what a killed process was writing."""
OTHER, UNFINISHED, PUT_ASIDE = "other settings", "unfinished, of other settings", "put aside"
MOST_TOLD = 3
"""Settings of one folder."""


@dataclass(frozen=True)
class Leftover:
    """A folder or file that can go."""

    path: Path
    reason: str
    """`OTHER`, `UNFINISHED` or `PUT_ASIDE`."""
    size: int
    """Bytes."""
    settings: str = ""
    """What was other, where a result of the same stage stays."""


def used(run: Path) -> set[str]:
    """Fingerprints that the last finished run reads, and those of all that was finished after its report.

    Without a report everything that is finished is used. Raises InputError where there is no run.
    """
    if not (run / RESOLVED).is_file():
        raise InputError(f"{run}: no run there; give a run folder, for example runs/digits")
    report = run / REPORT
    written = report.stat().st_mtime if report.is_file() else 0.0
    waiting = {RESOLVED: _named(run / RESOLVED), REPORT: _named(report)}
    found = waiting[RESOLVED] | waiting[REPORT] | _named(run / MODEL / MANIFEST)
    made = dict(_folders(run))
    for folder, manifest in made.items():
        if manifest is not None and (manifest.created > written or _same(folder, manifest, report)):
            found |= {folder.name}
    seen: set[Path] = set()
    while new := [folder for folder in made if folder.name in found and folder not in seen]:
        for folder in new:
            seen.add(folder)
            found |= _named(folder / MANIFEST)
    return found


def leftovers(run: Path) -> list[Leftover]:
    """What can be deleted, the largest first. Raises InputError where there is no run."""
    if is_remote(str(run)):
        raise InputError(f"{run}: lies in a store; delete there, or give this machine's copy")
    needed = used(run)
    report = run / REPORT
    written = report.stat().st_mtime if report.is_file() else 0.0
    kept: dict[Path, Manifest] = {}
    found = []
    folders = dict(_folders(run))
    for folder, manifest in folders.items():
        if manifest is not None and folder.name in needed:
            kept[folder.parent] = manifest
    for folder, manifest in folders.items():
        if folder.name in needed or folder.parent.name == "report":
            continue
        if manifest is None:
            if _touched(folder) < written:
                found.append(Leftover(folder, UNFINISHED, size_on_disk(folder)))
            continue
        found.append(
            Leftover(folder, OTHER, size_on_disk(folder), _settings(kept.get(folder.parent), manifest))
        )
    found += [Leftover(path, OTHER, _size(path)) for path in _rows(run) if path.stem not in needed]
    found += [Leftover(path, PUT_ASIDE, _size(path)) for path in _aside(run)]
    return sorted(found, key=lambda each: (-each.size, str(each.path)))


def delete(run: Path, what: list[Leftover]) -> int:
    """Delete them; returns the bytes. Raises EnsembleKDError where a run is at work in the folder."""
    with locked(run):
        needed, freed = used(run), 0
        for each in what:
            if each.path.stem in needed:  # a run came in between and took it up
                continue
            # The manifest first: what is left of a folder after a kill is unfinished, not damaged.
            (each.path / MANIFEST).unlink(missing_ok=True) if each.path.is_dir() else None
            shutil.rmtree(each.path) if each.path.is_dir() else each.path.unlink(missing_ok=True)
            freed += each.size
    return freed


def _folders(run: Path) -> Iterator[tuple[Path, Manifest | None]]:
    """Every folder of a stage or member, named by its fingerprint; None for an unfinished one."""
    for stage in STAGES:
        place = run / stage.replace("-", "_")
        for folder in sorted([*place.glob("*"), *(place / MEMBERS).glob("*")]):
            if folder.is_symlink() or not folder.is_dir() or not FINGERPRINT.fullmatch(folder.name):
                continue
            try:
                yield folder, read_manifest(folder)
            except ArtifactError:  # damaged, or of another version: not ours to judge
                continue


def _named(file: Path) -> set[str]:
    """The fingerprints that a JSON file names."""
    return set(FINGERPRINT.findall(file.read_text(encoding="utf-8"))) if file.is_file() else set()


def _same(folder: Path, manifest: Manifest, report: Path) -> bool:
    """Whether this is the report that stands in the run folder."""
    return (
        manifest.stage == "report"
        and report.is_file()
        and (folder / REPORT).is_file()
        and (folder / REPORT).read_bytes() == report.read_bytes()
    )


def _rows(run: Path) -> Iterator[Path]:
    """Rows and answers that Python's frames and teachers left, named by their content."""
    for path in sorted([*(run / INPUT).glob("*"), *(run / INPUT / "answers").glob("*.parquet")]):
        if FINGERPRINT.fullmatch(path.stem):
            yield path


def _aside(run: Path) -> Iterator[Path]:
    """Hidden folders and files that a process left behind; of one at work they are younger than an hour."""
    places = [run / INPUT, run / INPUT / "answers"]
    places += [run / stage.replace("-", "_") for stage in STAGES]
    for path in (path for place in places for path in sorted(place.glob(".*"))):
        fresh = path.name.startswith(".before-fresh-")
        left = path.name.endswith((".tmp", ".new")) and _touched(path) < time.time() - 3600
        if fresh or left:
            yield path


def _settings(kept: Manifest | None, other: Manifest) -> str:
    lines = differences(kept.config, other.config) if kept is not None and kept.stage == other.stage else []
    if other.stage == "member" or not lines:
        return ""
    more = f", and {len(lines) - MOST_TOLD} more" if len(lines) > MOST_TOLD else ""
    return ", ".join(line.replace(" -> ", " there, here ") for line in lines[:MOST_TOLD]) + more


def _size(path: Path) -> int:
    return size_on_disk(path) if path.is_dir() else path.stat().st_size


def _touched(path: Path) -> float:
    """When something in it was last written."""
    return max(
        (each.stat().st_mtime for each in [path, *path.rglob("*")] if not each.is_symlink()), default=0
    )
