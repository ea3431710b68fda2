"""What every process that trains members does: take the next one, train it, report.

The same for Ray's workers and for this process; only how they reach the list of members differs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from ensemble_kd.board import WAIT, Event
from ensemble_kd.disk import told
from ensemble_kd.mirror import Mirror
from ensemble_kd.train.loop import Interrupted, Replicas
from ensemble_kd.train.member import MemberTask, TrainingData, finished, train_member

LoadData = Callable[[dict[str, Any]], TrainingData]

SECONDS_BETWEEN_CLAIMS = 0.2


class Queue(Protocol):
    """The members that are left, as a `Board` has them, wherever that lives."""

    def claim(self, attempt: str) -> int | None: ...

    def post(self, event: Event) -> None: ...

    def skip(self, member: int) -> None: ...


def train_next(
    queue: Queue,
    tasks: list[MemberTask],
    members: Path,
    data: TrainingData,
    *,
    device: torch.device,
    mirror: Mirror | None,
    stop: Callable[[], bool],
    attempt: str,
    replicas: Replicas | None = None,
) -> bool:
    """Claim a member and train it; whether there may be more. Raises DiskError with the member's name."""
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
    index: int = claimed[0]
    task = tasks[index]
    with told(task.name, members.parents[1]):
        if mirror is not None:
            _fetch(mirror, task.folder(members), replicas)
        if finished(task, members) is not None:
            if replicas.rank == 0:
                if mirror is not None:  # a run that ended before it could send it
                    mirror.push(task.folder(members))
                queue.skip(index)
            return True

        def report(kind: str, **fields: Any) -> None:
            queue.post({"kind": kind, "member": index, **fields})

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
