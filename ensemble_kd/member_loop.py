"""What every process that trains members does: take the next one, train it, report.

The same for Ray's workers and for this process; only how they reach the list of members differs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from ensemble_kd.artifacts import fingerprint
from ensemble_kd.board import WAIT, Event
from ensemble_kd.disk import told
from ensemble_kd.mirror import Mirror
from ensemble_kd.train.fused import fused_epochs
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.loop import Interrupted, Replicas
from ensemble_kd.train.member import train_member
from ensemble_kd.train.task import MemberTask, finished

LoadData = Callable[[dict[str, Any]], TrainingData]

SECONDS_BETWEEN_CLAIMS = 0.2


class Queue(Protocol):
    """The members that are left, as a `Board` has them, wherever that lives."""

    def claim(self, attempt: str) -> int | None: ...

    def post(self, event: Event) -> None: ...

    def skip(self, member: int) -> None: ...


@dataclass(frozen=True)
class Work:
    """Members that are left to train, and which of them are trained together."""

    tasks: list[MemberTask]
    stacks: dict[int, list[MemberTask]]
    """Members that one process trains as stacked parameters, by the place in `tasks` of the first that is
    left. Those that are finished are trained along and left as they are: rounding depends on the stack."""

    @cached_property
    def places(self) -> dict[str, int]:
        """Each task's place in the list of all tasks, by its fingerprint."""
        return {task.fingerprint: place for place, task in enumerate(self.tasks)}

    @property
    def claims(self) -> list[int]:
        """Places in `tasks` that processes claim: of a stack the first alone."""
        led = {
            self.places[task.fingerprint]
            for first, stack in self.stacks.items()
            for task in stack
            if self.places.get(task.fingerprint, first) != first
        }
        return [place for place in range(len(self.tasks)) if place not in led]


def left_of(tasks: list[MemberTask], stacks: Sequence[list[MemberTask]], members: Path) -> Work:
    """What is not finished; of a stack with a member that is not, the whole stack."""
    left = [task for task in tasks if finished(task, members) is None]
    places = {task.fingerprint: place for place, task in enumerate(left)}
    found: dict[int, list[MemberTask]] = {}
    for stack in stacks:
        missing = [places[task.fingerprint] for task in stack if task.fingerprint in places]
        if missing:
            found[min(missing)] = stack
    return Work(left, found)


def checkpoint_of(stack: list[MemberTask], members: Path) -> Path:
    """In the folder of the first, which is sent to a store with it."""
    name = fingerprint("stack", *(task.fingerprint for task in stack))
    return stack[0].folder(members) / f"{name}.safetensors"


def train_next(
    queue: Queue,
    work: Work,
    members: Path,
    data: TrainingData,
    *,
    device: torch.device,
    mirror: Mirror | None,
    stop: Callable[[], bool],
    attempt: str,
    replicas: Replicas | None = None,
) -> bool:
    """Claim a member, or a stack of them, and train it; whether there may be more.

    Raises DiskError with the member's name.
    """
    import torch.distributed as dist

    replicas = replicas or Replicas()
    claimed = [queue.claim(attempt) if replicas.rank == 0 else None]
    if replicas.size > 1:
        dist.broadcast_object_list(claimed, group=replicas.group, group_src=0)
    if claimed[0] is None:
        return False
    if claimed[0] == WAIT:
        time.sleep(SECONDS_BETWEEN_CLAIMS)
        return True
    place: int = claimed[0]
    task = work.tasks[place]
    with told(task.name, members.parents[1]):
        if place in work.stacks:
            return _train_stack(queue, work, place, members, data, device, mirror=mirror, stop=stop)
        if mirror is not None:
            _fetch(mirror, task.folder(members), replicas)
        if finished(task, members) is not None:
            if replicas.rank == 0:
                if mirror is not None:  # a run that ended before it could send it
                    mirror.push(task.folder(members))
                queue.skip(place)
            return True

        def report(kind: str, **fields: Any) -> None:
            queue.post({"kind": kind, "member": place, **fields})

        if replicas.rank == 0:
            report("start", pid=os.getpid())

        def on_epoch(entry: dict[str, float]) -> None:
            if mirror is not None:
                mirror.push_soon(task.folder(members))
            report("epoch", entry=entry)

        try:
            good = train_member(
                task,
                data,
                members,
                device=device,
                replicas=replicas,
                on_epoch=on_epoch,
                on_warning=lambda text: report("warning", text=text),
                stop=stop,
            )
            outcome = "done" if good else "failed"
        except Interrupted:
            outcome = "stopped"
        if replicas.rank == 0:
            if mirror is not None:
                mirror.push_soon(task.folder(members))
                mirror.flush()
            report(outcome)
    return outcome != "stopped"


def _train_stack(
    queue: Queue,
    work: Work,
    place: int,
    members: Path,
    data: TrainingData,
    device: torch.device,
    *,
    mirror: Mirror | None,
    stop: Callable[[], bool],
) -> bool:
    """Train the stack that is claimed by its first member, its state saved after every epoch."""
    stack = work.stacks[place]
    shown = [work.places.get(task.fingerprint) for task in stack]  # None: finished before
    folders = [task.folder(members) for task in stack]
    checkpoint = checkpoint_of(stack, members)
    for folder in folders if mirror is not None else []:
        assert mirror is not None
        mirror.pull(folder)

    def report(kind: str, each: Sequence[dict[str, Any] | None]) -> None:
        for member, fields in zip(shown, each, strict=True):
            if member is not None and fields is not None:
                queue.post({"kind": kind, "member": member, **fields})

    report("start", [{"pid": os.getpid()}] * len(stack))

    def warn(text: str) -> None:
        queue.post({"kind": "warning", "member": place, "text": text})

    epochs = fused_epochs(stack, data, members, device=device, checkpoint=checkpoint, on_warning=warn)
    while not stop():
        try:
            entries = next(epochs)
        except StopIteration as end:
            good: list[bool] = end.value
            break
        report("epoch", [None if entry is None else {"entry": entry} for entry in entries])
        if mirror is not None:
            mirror.push_soon(folders[0])
    else:
        epochs.close()
        good = []
    if mirror is not None:
        for folder in folders:
            mirror.push_soon(folder)
        mirror.flush()
    if not good:
        report("stopped", [{}] * len(stack))
        return False
    report("done", [{} if one else None for one in good])
    report("failed", [None if one else {} for one in good])
    return True


def _fetch(mirror: Mirror, folder: Path, replicas: Replicas) -> None:
    """Bring a member's folder up to date; replicas get the very state that their first one has."""
    import torch.distributed as dist

    if replicas.rank == 0:
        mirror.pull(folder)
        if replicas.size > 1:
            mirror.push(folder)
    if replicas.size > 1:
        dist.barrier(group=replicas.group)
        if replicas.rank:
            mirror.pull(folder)


def after(tasks: list[MemberTask]) -> dict[int, int]:
    """For each task that starts or learns from another of them, that other."""
    places = {task.fingerprint: i for i, task in enumerate(tasks)}
    needed = {i: [m for m in members_before(task) if m in places] for i, task in enumerate(tasks)}
    assert all(len(members) < 2 for members in needed.values()), "a task waits for one other at the most"
    return {i: places[members[0]] for i, members in needed.items() if members}


def members_before(task: MemberTask) -> list[str]:
    """Fingerprints of the members that a task starts from, or that run beside it."""
    places = [task.initial or {}, *((task.online or {}).get("teachers") or [])]
    return [str(place["member"]) for place in places if "member" in place]
