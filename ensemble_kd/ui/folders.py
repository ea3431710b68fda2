"""Run folders below the one that the user names: found by listing it, read as a stranger's.

A page asks for a run by its name in the listing, so no path comes from a request. Links are not followed,
files are read up to a size, and what cannot be read is told in place of it.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import MANIFEST, Manifest, parsed_manifest
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.leftovers import MEMBERS, REPORT, RESOLVED
from ensemble_kd.mirror import is_remote
from ensemble_kd.safe_files import open_plain, problem_inside, read_plain, shown
from ensemble_kd.stage_list import STAGES

FINGERPRINT = re.compile(r"[0-9a-f]{16}")
LARGEST = 64_000_000
"""Bytes of a JSON file; a report of 1000 classes has one million."""
LARGEST_HEAD = 20_000_000
"""Bytes of a checkpoint's head, which lists tensors and holds the history."""
MOST_RUNS = 1000
MOST_CACHED = 256
DEEPEST = 2
"""Levels below the given folder at which runs are looked for."""


@dataclass
class Cached:
    """JSON by file, as long as the file stays the same."""

    kept: OrderedDict[Path, tuple[tuple[int, int], Any]] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, folder: Path, name: str) -> Any:
        """Raises ArtifactError where it is missing, no plain file, a link, too large or not JSON."""
        if (problem := problem_inside(folder, name)) is not None:
            raise ArtifactError(f"{name}: {problem}")
        path = folder / name
        state = path.stat()
        stamp = (state.st_mtime_ns, state.st_size)
        with self.lock:
            if path in self.kept and self.kept[path][0] == stamp:
                self.kept.move_to_end(path)
                return self.kept[path][1]
        try:
            value = json.loads(read_plain(path, LARGEST).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{name}: not JSON ({shown(error)})") from error
        with self.lock:
            self.kept[path] = (stamp, value)
            while len(self.kept) > MOST_CACHED:
                self.kept.popitem(last=False)
        return value


CACHE = Cached()


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    """Its path below the folder of runs, with slashes."""
    folder: Path

    def json(self, name: str) -> dict[str, Any]:
        """A JSON block. Raises ArtifactError."""
        value = CACHE.read(self.folder, name)
        if not isinstance(value, dict):
            raise ArtifactError(f"{name}: no block of JSON")
        return value

    def has(self, name: str) -> bool:
        """Whether there is a plain file of this name."""
        return problem_inside(self.folder, name) is None

    def report(self) -> dict[str, Any] | None:
        """None before the first report. Raises ArtifactError."""
        return self.json(REPORT) if os.path.lexists(self.folder / REPORT) else None

    def manifest(self, *parts: str) -> Manifest:
        """Of a folder below the run. Raises ArtifactError."""
        name = "/".join((*parts, MANIFEST))
        return parsed_manifest(self.json(name), Path(name))

    def folders(self, *parts: str) -> list[str]:
        """Names of the folders there that a fingerprint names; links are left out."""
        place = self.folder.joinpath(*parts)
        try:
            with os.scandir(place) as found:
                return sorted(
                    e.name for e in found if FINGERPRINT.fullmatch(e.name) and e.is_dir(follow_symlinks=False)
                )
        except OSError:
            return []

    def stage(self, name: str) -> tuple[str, Manifest] | None:
        """Folder below the run, and manifest, of what the report was made from, else of the newest there is.

        Raises ArtifactError where the folders that are there cannot be read.
        """
        place, problem, found = name.replace("-", "_"), None, []
        if place not in os.listdir(self.folder) or (self.folder / place).is_symlink():
            return None
        for fingerprint in self.folders(place):
            if not self.has(f"{place}/{fingerprint}/{MANIFEST}"):
                continue
            try:
                found.append((f"{place}/{fingerprint}", self.manifest(place, fingerprint)))
            except ArtifactError as error:
                problem = error
        if not found:
            if problem is not None:
                raise problem
            return None
        named = self._of_report(place)
        return max(found, key=lambda each: (each[1].fingerprint in named, _number(each[1].created)))

    def _of_report(self, place: str) -> set[str]:
        """Fingerprints that the report names; the teachers' stage is named by the store's inputs alone."""
        try:
            lineage = (self.report() or {}).get("lineage")
        except ArtifactError:
            return set()
        named = lineage.get(place) if isinstance(lineage, dict) else None
        return {named} if isinstance(named, str) else set()

    def members(self, stage: str) -> Iterator[tuple[str, Manifest | None]]:
        """Folder below the run of each member, and its manifest; None for one that is being trained."""
        place = stage.replace("-", "_")
        if (self.folder / place).is_symlink():
            return
        for fingerprint in self.folders(place, MEMBERS):
            where = f"{place}/{MEMBERS}/{fingerprint}"
            try:
                yield where, self.manifest(place, MEMBERS, fingerprint)
            except ArtifactError:
                yield where, None

    def head(self, name: str) -> dict[str, Any]:
        """What a checkpoint says of its training; nothing else of it is read. Raises ArtifactError."""
        if (problem := problem_inside(self.folder, name)) is not None:
            raise ArtifactError(f"{name}: {problem}")
        with open_plain(self.folder / name) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEAD:
                raise ArtifactError(f"{name}: its head has {length:,} bytes")
            content = file.read(length)
        try:
            progress = json.loads(json.loads(content)["__metadata__"]["progress"])
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise ArtifactError(f"{name}: not a readable checkpoint") from error
        return progress if isinstance(progress, dict) else {}


def runs_below(folder: Path) -> dict[str, Run]:
    """The runs by name: the folder itself if it is one, else those up to two levels below it."""
    if _is_run(folder):
        return {folder.resolve().name: Run(folder.resolve().name, folder)}
    found: dict[str, Run] = {}
    waiting = [(folder, 1)]
    while waiting and len(found) < MOST_RUNS:
        here, depth = waiting.pop(0)
        try:
            with os.scandir(here) as entries:
                names = sorted(
                    e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")
                )
        except OSError:
            continue
        for name in names:
            path = here / name
            if _is_run(path):
                run = Run(path.relative_to(folder).as_posix(), path)
                found[run.name] = run
            elif depth < DEEPEST:
                waiting.append((path, depth + 1))
    return dict(sorted(found.items()))


def _is_run(path: Path) -> bool:
    """Whether a pipeline was started there: also of one that was damaged since."""
    try:
        if os.path.lexists(path / RESOLVED):
            return True
        places = {stage.replace("-", "_") for stage in STAGES}
        return os.path.lexists(path / REPORT) and not places.isdisjoint(os.listdir(path))
    except (OSError, ValueError):
        return False


def checked_root(text: str) -> Path:
    """The folder of runs. Raises InputError where there is none, or nothing in it."""
    if is_remote(text):
        raise InputError(f"RUNS: {text} lies in a store; give this machine's copy")
    root = Path(text).expanduser()
    if not root.is_dir():
        raise InputError(
            f"RUNS: no such folder: {shown(text)}; give the folder that runs lie in (ensemble-kd run makes "
            "runs/), or a run folder"
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"RUNS: {shown(text)} cannot be listed; its permissions do not let you")
    if not runs_below(root):
        raise InputError(
            f"RUNS: {shown(text)} holds no run; start one (ensemble-kd run digits), or give another folder"
        )
    return root


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
