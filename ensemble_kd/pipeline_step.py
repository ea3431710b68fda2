"""One stage on its way: timed, tracked, and said in one line how it ended."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ensemble_kd.artifacts import Manifest
from ensemble_kd.attached import attached
from ensemble_kd.disk import told
from ensemble_kd.failures import plain
from ensemble_kd.stages.base import Stage
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.members import prefixed


@dataclass
class Step:
    """One stage on its way: skipped or run."""

    fresh: bool
    context: Context
    plan: StagePlan
    name: str
    began: float = field(default_factory=time.perf_counter)
    skipped: bool = False
    manifest: Manifest | None = None

    def kept(self, manifest: Manifest | None) -> Manifest | None:
        """The finished result, or None where the stage has to run; says which and why."""
        if manifest is not None and not self.fresh:
            self.skipped = True
            return manifest
        reason = "--fresh" if self.fresh else self.plan.why()
        self.context.console.line(f"{self.name}: running ({reason})")
        return None

    @property
    def result(self) -> Manifest:
        assert self.manifest is not None
        return self.manifest


@contextmanager
def tracked(context: Context, current: Stage, plan: StagePlan, fresh: Collection[str]) -> Iterator[Step]:
    """Track a stage, time it, and say in one line how it ended."""
    step = Step(current.name in fresh, context, plan, current.name)
    key = current.name.replace("-", "_")
    context.tracker.start(key, plan.config, {"fingerprint": plan.fingerprint, **prefixed(plan.inputs)})
    good = False
    try:
        with told(current.name, context.folder), plain(current.name, plan.folder):
            if step.fresh:
                discard(plan, current.has_members)
            yield step
        if (mirror := attached()) is not None and not step.skipped:
            mirror.push(context.folder, check=True)  # the next stage's workers read it from there
        good = True
    finally:
        context.tracker.end(key, good)
    how = "kept" if step.skipped else f"{time.perf_counter() - step.began:.1f} s"
    said = _described(current, step.result)
    context.console.line(f"{current.name}: {said} [{plan.fingerprint}] ({how})")


def _described(current: Stage, manifest: Manifest) -> str:
    size = sum(entry["bytes"] for entry in manifest.files.values())
    return current.describe(manifest.summary, size)


def discard(plan: StagePlan, has_members: bool) -> None:
    """`--fresh`: put this stage's result, and the members behind it, aside.

    Nothing a user made is lost: the folder is renamed, and the newest such copy is kept.
    """
    for part in [plan.folder, *([plan.folder.parent / "members"] if has_members else [])]:
        if part.exists():
            aside = part.with_name(f".before-fresh-{part.name}")
            shutil.rmtree(aside, ignore_errors=True)
            part.rename(aside)
