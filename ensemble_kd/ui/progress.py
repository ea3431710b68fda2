"""How far a run is, from what lies in its folder."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ensemble_kd.artifacts import Manifest
from ensemble_kd.errors import ArtifactError
from ensemble_kd.leftovers import REPORT, RESOLVED
from ensemble_kd.safe_files import shown
from ensemble_kd.stage_list import STAGES, stages_of
from ensemble_kd.ui.folders import FINGERPRINT, Run

LOCK, LOCKS = ".lock", Path("/proc/locks")
RECENT = 60.0
"""Seconds since something was written, where locks cannot be listed."""
CHECKPOINT = "checkpoint.safetensors"
STACK = re.compile(r"[0-9a-f]{16}$")
"""What a stack's checkpoint is called, in the folder of its first member."""
MOST_STACKED = 1000
WITH_MEMBERS = ("teachers", "gap", "specialists", "student", "choose")


@dataclass(frozen=True)
class Training:
    """The members of a stage."""

    finished: int
    running: list[tuple[str, int]]
    """Fingerprint and finished epochs of each that is not finished."""
    wanted: int | None = None
    """How many there will be, where the settings say it."""
    epochs: int | None = None
    """Of each."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands."""

    state: str
    """finished, running, stopped or damaged."""
    planned: list[str]
    done: list[str]
    current: str | None = None
    """The stage that is at work, or would go on."""
    training: Training | None = None
    """Of the current stage."""
    report: dict[str, Any] | None = None
    when: float = 0.0
    """Seconds since 1970: of the report, else of the last thing that was written."""
    problems: list[str] = field(default_factory=list)


def standing(run: Run) -> Standing:
    """Never raises for what is damaged; its `problems` say what."""
    problems: list[str] = []
    report, settings = None, {}
    try:
        settings = run.json(RESOLVED)
    except (ArtifactError, OSError) as error:
        problems.append(str(error))
    try:
        report = run.report()
    except (ArtifactError, OSError) as error:
        problems.append(str(error))
    planned = planned_stages(settings)
    written = _touched(run, planned)
    running = at_work(run, written)
    when = written
    if report is not None:
        created = report.get("created")
        when = float(created) if isinstance(created, int | float) else _mtime(run.folder / REPORT)
    if report is not None and not running:
        return Standing(
            "damaged" if problems else "finished", planned, planned, None, None, report, when, problems
        )
    done = []
    for name in planned:
        try:
            if run.stage(name) is not None:
                done.append(name)
        except (ArtifactError, OSError) as error:
            problems.append(f"{name}: {error}")
    if running and report is not None:  # other settings: what is newer than the report counts
        done = [name for name in done if _newer(run, name, when)] or done[:-1]
    current = next((name for name in planned if name not in done), None)
    state = "running" if running else "damaged" if problems else "stopped"
    return Standing(
        state, planned, done, current, training_of(run, current, settings), report, written, problems
    )


def planned_stages(settings: dict[str, Any]) -> list[str]:
    """The stages of a run with these settings; all of them where the settings cannot be read."""
    student, sweep = settings.get("student"), settings.get("sweep")
    swept = sweep.get("space") if isinstance(sweep, dict) else None
    swept = {str(path).removeprefix("student.") for path in swept} if isinstance(swept, dict) else set()
    auto = [
        n
        for n in ("temperature", "alpha", "pseudo")
        if isinstance(student, dict) and student.get(n) == "auto"
    ]
    choosing = [name for name in auto if name not in swept]
    try:
        found = json.loads(json.dumps(settings), object_hook=lambda block: SimpleNamespace(**block))
        found.choosing = choosing or None  # of a Config a property
        return list(stages_of(found))
    except (AttributeError, TypeError, ValueError, RecursionError):
        return list(STAGES)


def training_of(run: Run, stage: str | None, settings: dict[str, Any]) -> Training | None:
    """Of the stage that is at work; None where it trains none."""
    if stage not in WITH_MEMBERS:
        return None
    found = members_standing(run, stage)
    block = settings.get({"specialists": "specialists", "teachers": "teachers"}.get(stage, "student"))
    block = block if isinstance(block, dict) else {}
    training = block.get("training")
    epochs = training.get("epochs") if isinstance(training, dict) else None
    wanted = block.get("num_members") if stage == "teachers" else None
    done = {where for where, manifest, _ in found if manifest is not None}
    return Training(
        len(done),
        [(where.rsplit("/", 1)[1], epoch) for where, _, epoch in found if where not in done],
        wanted if isinstance(wanted, int) else None,
        epochs if isinstance(epochs, int) else None,
    )


def members_standing(run: Run, stage: str) -> list[tuple[str, Manifest | None, int]]:
    """Folder, manifest and finished epochs of each member."""
    found: list[tuple[str, Manifest | None, int]] = []
    for where, manifest in run.members(stage):
        if manifest is not None:
            found.append((where, manifest, 0))
            continue
        for name, progress in (training(run, where) or {where.rsplit("/", 1)[1]: {}}).items():
            epoch = progress.get("epoch")
            found.append((where.rsplit("/", 1)[0] + "/" + name, None, epoch if isinstance(epoch, int) else 0))
    return found


def training(run: Run, where: str) -> dict[str, dict[str, Any]]:
    """What the checkpoint in a member's folder says, by fingerprint: of the member, or of each of a stack."""
    own = where.rsplit("/", 1)[1]
    names = [f"{where}/{CHECKPOINT}"]
    names += [
        f"{where}/{path.name}"
        for path in (run.folder / where).glob("*.safetensors")
        if STACK.match(path.stem)
    ]
    for name in names:
        try:
            progress = run.head(name)
        except (ArtifactError, OSError):
            continue
        members = progress.get("members")
        if not isinstance(members, list):
            return {own: progress}
        return {
            member["fingerprint"]: member["progress"]
            for member in members[:MOST_STACKED]
            if isinstance(member, dict)
            and FINGERPRINT.fullmatch(str(member.get("fingerprint")))
            and isinstance(member.get("progress"), dict)
        }
    return {}


def histories(run: Run, stage: str) -> dict[str, list[dict[str, Any]]]:
    """Entries per epoch by `role/name`, of finished members and of those that are being trained."""
    found: dict[str, Any] = {}
    for where, manifest in run.members(stage):
        short = where.rsplit("/", 1)[1][:8]
        if manifest is not None:
            role = str(manifest.summary.get("role", stage))
            found[f"{role}/{manifest.summary.get('name')}-{short}"] = manifest.summary.get("history")
        else:
            role = (
                "teacher" if stage == "teachers" else "specialist" if stage == "specialists" else "distilled"
            )
            for fingerprint, progress in training(run, where).items():
                found[f"{role}/{fingerprint}"] = progress.get("history")
    return {
        name: history
        for name, history in found.items()
        if isinstance(history, list) and history and all(isinstance(entry, dict) for entry in history)
    }


# ---------------------------------------------------------------------------------------------- at work?


def at_work(run: Run, written: float) -> bool:
    """Whether a process holds the run's lock. It is only looked at: a lock taken here, for however short a
    time, could refuse a run that starts just then."""
    try:
        state = os.lstat(run.folder / LOCK)
        held = locks()
    except OSError:
        return time.time() - written < RECENT and not run.has(REPORT)
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    return device in held


def locks(path: Path = LOCKS) -> set[str]:
    """Device and inode of every file that is locked as a whole. Raises OSError where there is no list."""
    lines = (line.split() for line in path.read_text(encoding="ascii", errors="replace").splitlines())
    return {parts[5] for parts in lines if len(parts) > 5 and parts[1] == "FLOCK"}


def _touched(run: Run, stages: list[str]) -> float:
    """When something was last made: folders of stages and members, their manifests and checkpoints."""
    newest = max(_mtime(run.folder / RESOLVED), _mtime(run.folder))
    for name in stages:
        place = name.replace("-", "_")
        newest = max(newest, _mtime(run.folder / place), _mtime(run.folder / place / "members"))
        for parts in ((place,), (place, "members")):
            newest = max([newest, *(_mtime(run.folder.joinpath(*parts, f)) for f in run.folders(*parts))])
    return newest


def _newer(run: Run, stage: str, when: float) -> bool:
    place = stage.replace("-", "_")
    return any(_mtime(run.folder / place / f) > when for f in run.folders(place))


def _mtime(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except (OSError, ValueError):
        return 0.0


def text_of(found: Standing) -> str:
    """Where it is, in a few words."""
    if found.state == "finished":
        return f"all {len(found.planned)} stages"
    text = f"{len(found.done)} of {len(found.planned)} stages"
    if found.current is not None:
        text += f"; {found.current}"
    if found.training is not None and (found.training.finished or found.training.running):
        each = found.training
        text += f": {each.finished}" + (f" of {each.wanted}" if each.wanted else "") + " members"
        if each.running:
            epochs = "".join(f" of {each.epochs}" if each.epochs else "")
            furthest = max(epoch for _, epoch in each.running)
            text += f", {len(each.running)} in training at epoch {furthest}{epochs}"
    return shown(text, 200)
