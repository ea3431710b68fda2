"""The trials of a sweep in one process: students of several configurations, an epoch of each at a time.

Torch only. Ray Tune's actors hold a `Packet` and call `step`; tests call it directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensemble_kd.artifacts import fingerprint, read_json
from ensemble_kd.disk import code_of
from ensemble_kd.errors import StoppedError
from ensemble_kd.train.finishing import FAILED
from ensemble_kd.train.fused import Entry, fused_epochs
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.member import member_epochs
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.task import MemberTask, finished

Epochs = Generator[Entry, None, bool]

JUDGED = (
    "validation_accuracy",
    "validation_loss",
    "validation_balanced_accuracy",
    "validation_macro_f1",
)
"""What an evaluation produces, of values the loss alone, so what a sweep can choose by."""


@dataclass
class Trial:
    """One configuration: its students, one for each seed, and how they fared."""

    name: str
    kind: str
    """`hard`: a baseline on hard labels, `searched`: one of the search."""
    parameters: dict[str, Any]
    """Value of each searched field of `student`."""
    tasks: list[MemberTask]
    state: str = "waiting"
    """waiting, running, finished, stopped (early, by the scheduler) or failed."""
    reason: str | None = None
    """Why it was stopped or failed."""
    epochs: int = 0
    values: dict[str, float] = field(default_factory=dict)
    """`JUDGED` of the weights that are kept, mean over seeds."""
    history: list[Entry] = field(default_factory=list)
    """One entry per epoch, mean over seeds."""
    began: float | None = None
    """Seconds since the sweep began."""
    ended: float | None = None
    fused: int = 1
    """Students in the process that trained it as stacked parameters; 1: trained by itself."""
    packet: int | None = None
    """Which trials shared its process: after a kill they do so again, and find their common checkpoint."""
    alone: bool = False
    """Not to share a process again, after one died with it."""

    @property
    def over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    def to_json(self) -> dict[str, Any]:
        """Everything but the tasks, which follow from the parameters."""
        return {key: value for key, value in asdict(self).items() if key not in ("tasks", "alone")}


@dataclass(eq=False)
class Slot:
    """One student of a packet; trials that ask for the same one share it."""

    task: MemberTask
    entries: dict[int, Entry] = field(default_factory=dict)
    """By epoch, as far as trained here."""
    epoch: int = 0
    """Of its last entry."""
    state: str = "running"
    reason: str | None = None
    fused: int = 1


Unit = tuple[list[Slot], Generator[list[Entry | None], None, list[bool]]]


class Packet:
    """Trials that one process trains side by side.

    Students that differ in numbers only are stacked, at most `fuse` of them; the others take turns. `start`
    trains one student; `folder` takes the checkpoints of stacked ones.
    """

    def __init__(
        self,
        trials: list[list[MemberTask]],
        data: TrainingData,
        members: Path,
        *,
        fuse: int = 1,
        folder: Path | None = None,
        device: torch.device | None = None,
        start: Callable[[MemberTask], Epochs] | None = None,
    ) -> None:
        self.data, self.members, self.folder, self.device = data, members, folder, device
        self.start = start or self._alone
        slots: dict[str, Slot] = {}
        self.trials = [[slots.setdefault(t.fingerprint, Slot(t)) for t in tasks] for tasks in trials]
        self.told = [0] * len(trials)
        """The last epoch that each trial's standing had."""
        self.units: list[Unit] = []
        groups: dict[str, list[Slot]] = {}
        for number, slot in enumerate(slots.values()):
            if finished(slot.task, members) is not None:  # by an earlier run, or another trial
                slot.state = "finished"
                continue
            key = fuse_key(slot.task) if fuse > 1 else None
            groups.setdefault(f"{number}" if key is None else key, []).append(slot)
        for group in groups.values():
            for begin in range(0, len(group), fuse):
                self._open(group[begin : begin + fuse])

    def step(self) -> list[dict[str, Any]]:
        """One epoch of every student that is not done; the standing of each trial.

        A standing has `state` (running, finished, failed), `reason`, `epoch`, `entry` (mean over seeds, None
        where there is no new epoch) and `fused`; for a finished one `values`. Seeds of a trial stay level:
        one that was ahead when an earlier process died waits for the others.
        """
        units, self.units = self.units, []
        for unit in units:
            if self._ahead(unit[0]):
                self.units.append(unit)
            else:
                self._advance(unit)
        return [self._standing(trial) for trial in range(len(self.trials))]

    def _ahead(self, unit: list[Slot]) -> bool:
        mine = min(slot.epoch for slot in unit)
        for slots in self.trials:
            if any(slot in unit for slot in slots):
                if any(other.state == "running" and other.epoch < mine for other in slots):
                    return True
        return False

    @property
    def done(self) -> bool:
        return not self.units

    def close(self) -> None:
        """Let go of what is not finished; its checkpoints stay."""
        for _, epochs in self.units:
            epochs.close()
        self.units = []

    def _alone(self, task: MemberTask) -> Epochs:
        return member_epochs(task, self.data, self.members, device=self.device)

    def _open(self, slots: list[Slot]) -> None:
        tasks = [slot.task for slot in slots]
        if len(slots) == 1:
            self.units.append((slots, _as_list(self.start(tasks[0]))))
            return
        checkpoint = None
        if self.folder is not None:
            name = fingerprint(*(task.fingerprint for task in tasks))
            checkpoint = self.folder / f"{name}.safetensors"
        for slot in slots:
            slot.fused = len(slots)
        epochs = fused_epochs(tasks, self.data, self.members, device=self.device, checkpoint=checkpoint)
        self.units.append((slots, epochs))

    def _advance(self, unit: Unit) -> None:
        slots, epochs = unit
        try:
            entries = next(epochs)
            for slot, entry in zip(slots, entries, strict=True):
                if entry is not None:
                    slot.epoch = int(entry["epoch"])
                    slot.entries[slot.epoch] = entry
            last = slots[0].task.training["epochs"]
            if any(entry is not None and entry["epoch"] >= last for entry in entries):
                next(epochs)  # nothing is left to train: finish the folders
                raise AssertionError("a student trained past its last epoch")
        except StopIteration as end:
            for slot, good in zip(slots, end.value, strict=True):
                slot.state = "finished" if good else "failed"
                slot.reason = None if good else _why(slot.task, self.members)
        except Exception as error:  # one trial's failure, of whatever kind, is its own; a full disk is all's
            if code_of(error) is not None or isinstance(error, StoppedError):
                raise
            if len(slots) > 1:  # they may fit, or run, one by one
                for slot in slots:
                    slot.fused, slot.epoch = 1, 0
                    self._open([slot])
            else:
                slots[0].state, slots[0].reason = "failed", f"{type(error).__name__}: {error}"[:500]
        else:
            self.units.append(unit)

    def _standing(self, trial: int) -> dict[str, Any]:
        slots = self.trials[trial]
        standing: dict[str, Any] = {"reason": None, "state": "running", "entry": None}
        standing["fused"] = max(slot.fused for slot in slots)
        if failed := [slot for slot in slots if slot.state == "failed"]:
            standing |= {"state": "failed", "reason": f"{failed[0].task.name}: {failed[0].reason}"}
        elif all(slot.state == "finished" for slot in slots):
            standing |= {
                "state": "finished",
                "values": values_of([slot.task for slot in slots], self.members),
            }
        # The next epoch that all have which still run; a seed that stopped early counts as long as it ran.
        reached = [slot.epoch for slot in slots if slot.state == "running"] or [s.epoch for s in slots]
        level = min(reached) if standing["state"] == "running" else max(reached)
        whole = all(level in slot.entries for slot in slots if slot.state == "running")
        if level > self.told[trial] and whole:
            self.told[trial] = level
            standing["entry"] = mean_entry([s.entries[level] for s in slots if level in s.entries])
        standing["epoch"] = self.told[trial]
        return standing


def values_of(tasks: list[MemberTask], members: Path) -> dict[str, float]:
    """`JUDGED` of finished students, mean over them."""
    summaries = [manifest.summary for task in tasks if (manifest := finished(task, members))]
    known = [key for key in JUDGED if all(key in summary for summary in summaries)]
    return {key: math.fsum(s[key] for s in summaries) / len(summaries) for key in known}


def mean_entry(entries: list[Entry]) -> Entry | None:
    """The mean over seeds of what all their entries of one epoch have."""
    if not entries:
        return None
    keys = set.intersection(*(set(entry) for entry in entries))
    return {key: math.fsum(e[key] for e in entries) / len(entries) for key in sorted(keys)}


def mean_history(tasks: list[MemberTask], members: Path) -> list[Entry]:
    """Mean over finished students of every epoch; those that stopped early count as long as they ran."""
    histories = [manifest.summary["history"] for task in tasks if (manifest := finished(task, members))]
    longest = max(map(len, histories), default=0)
    means = (mean_entry([h[epoch] for h in histories if epoch < len(h)]) for epoch in range(longest))
    return [entry for entry in means if entry is not None]


def _as_list(epochs: Epochs) -> Generator[list[Entry | None], None, list[bool]]:
    while True:
        try:
            entry = next(epochs)
        except StopIteration as end:
            return [end.value]
        yield [entry]


def _why(task: MemberTask, members: Path) -> str:
    path = task.folder(members) / FAILED
    return str(read_json(path)["reason"]) if path.exists() else "unknown"
