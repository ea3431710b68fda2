"""What every stage is given: the configuration, the run folder, and where to report to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import (
    MANIFEST,
    Identity,
    Manifest,
    damage,
    differences,
    fingerprint,
    finish,
    latest_other,
    read_manifest,
)
from ensemble_kd.attached import forget
from ensemble_kd.config import Config
from ensemble_kd.errors import ArtifactError
from ensemble_kd.redact import redacted
from ensemble_kd.runtime import Runtime
from ensemble_kd.tracking import Tracker

DAMAGED = "damaged.json"
"""The manifest of a folder in which files were found damaged; the others need not be redone."""


MATRIX = "matrix.safetensors"
"""In the clusters' folder: the matrix that was clustered, `matrix` (C, C)."""
COMBINED = "combined.safetensors"
"""In the combination's folder: log q of held-out rows, `ensemble/test`, `generalist/validation` and so on."""


@dataclass
class Console:
    """Where progress goes; the command line gives its own, a library user may leave this silent one."""

    line: Callable[[str], None] = lambda text: None
    warning: Callable[[str], None] = lambda text: None
    progress: Callable[[str, float, float, str], None] = lambda task, done, total, note: None
    """(task, done, total, note); total 0 ends the bar."""

    def __post_init__(self) -> None:
        line, warning = self.line, self.warning
        self.line = lambda text: line(redacted(text))
        self.warning = lambda text: warning(redacted(text))


@dataclass
class Context:
    """What all stages of one run share: settings, folder, Ray, and the console."""

    config: Config
    folder: Path
    """The run folder, `runs/NAME`."""
    runtime: Runtime
    tracker: Tracker
    console: Console = field(default_factory=Console)


@dataclass(frozen=True)
class StagePlan:
    """A stage of this run: its settings, its inputs and so its fingerprint and its folder."""

    stage: str
    folder: Path
    config: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def of(cls, run: Path, stage: str, config: dict[str, Any], inputs: dict[str, str]) -> StagePlan:
        """The fingerprint covers the settings as they are; what is kept and written has no secrets."""
        return cls(stage, run / stage / fingerprint(stage, config, inputs), redacted(config), inputs)

    @property
    def fingerprint(self) -> str:
        return self.folder.name

    def done(self) -> Manifest | None:
        """The manifest, where the stage is complete (files are looked at, not read)."""
        manifest = read_manifest(self.folder)
        return manifest if manifest is not None and not damage(self.folder, manifest, deep=False) else None

    def finish(
        self,
        files: Iterable[str],
        summary: dict[str, Any],
        known: dict[str, dict[str, Any]] | None = None,
    ) -> Manifest:
        """Write the manifest, which declares the stage complete; `known` as in `artifacts.finish`."""
        result = Identity(self.stage, self.fingerprint, self.config, self.inputs)
        return finish(self.folder, result, files, summary, known)

    def checked(self, console: Console) -> Manifest | None:
        """Like `done`, but checksums are compared, and what is damaged is named and removed to be redone."""
        try:
            manifest = read_manifest(self.folder)
        except ArtifactError as error:
            console.warning(f"{self.stage}: {error}; this stage is redone")
            (self.folder / MANIFEST).unlink()
            forget(self.folder / MANIFEST)
            return None
        if manifest is None:
            return None
        problems = damage(self.folder, manifest)
        if not problems:
            return manifest
        for problem in problems:
            console.warning(f"{self.stage}: {problem}; redoing what is damaged")
            path = problem.file
            if path.is_file() and path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink()
                forget(path)
        (self.folder / MANIFEST).replace(self.folder / DAMAGED)
        forget(self.folder / MANIFEST)
        return None

    def why(self) -> str:
        """Why the stage has to run: nothing there yet, or what changed since the newest result."""
        if self.folder.exists() and any(self.folder.iterdir()):
            return "continuing unfinished work"
        other = latest_other(self.folder)
        if other is None:
            return "not done yet"
        changed = differences(other.config, self.config)
        above = [name for name in self.inputs if other.inputs.get(name) != self.inputs[name]]
        parts = changed[:3] + ([f"and {len(changed) - 3} more"] if len(changed) > 3 else [])
        if above:
            parts.append(f"changed above: {', '.join(above)}")
        return "; ".join(parts) or "an earlier version wrote another format"
