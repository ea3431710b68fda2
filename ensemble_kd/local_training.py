"""Members trained in this process, one after the other, without Ray.

What a worker group does, by the same loop (`member_loop`). A process that dies takes the run with it; the
next one goes on at every member's last epoch, with either executor.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ensemble_kd.attached import attached
from ensemble_kd.board import Board, Event
from ensemble_kd.disk import DiskError
from ensemble_kd.errors import StoppedError, TrainingError
from ensemble_kd.failures import first_words, keep
from ensemble_kd.member_loop import LoadData, Work, after, train_next
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.process import borrowed
from ensemble_kd.train.task import MemberTask

SECONDS_BETWEEN_LOOKS = 0.3
"""How often it is looked whether this process was asked to leave."""


def train_here(
    runtime: Runtime,
    work: Work,
    members: Path,
    load_data: LoadData,
    arrays: Callable[[], dict[str, Any]],
    *,
    path: str,
    on_event: Callable[[MemberTask, Event], None],
) -> None:
    """Train the members. One that fails costs the others nothing; it is tried again after them.

    Raises TrainingError where it failed more often than compute.max_failures, DiskError where the disk takes
    no more, StoppedError where this process was asked to leave, once the member at work is saved.
    """
    asked = runtime.termination.asked
    failed: list[tuple[MemberTask, Exception]] = []
    with borrowed(runtime.compute.cpus_per_worker), leaving(runtime):
        data = loaded(load_data, arrays())
        for _ in range(runtime.compute.max_failures + 1):
            try:
                failed = _train_all(runtime, work, members, data, on_event)
            except DiskError as error:
                raise error.within(path) from error.__cause__
            if asked.is_set() or not failed:
                break
    if asked.is_set():
        raise runtime.termination.error()
    if failed:
        task, cause = failed[0]
        where = keep("".join(traceback.format_exception(cause)), members.parent)
        raise TrainingError(
            f"{path}: {task.name} failed: {type(cause).__name__}: {first_words(cause)}; finished members and "
            f"the last epoch of the others are kept, run again to go on{where}"
        ) from cause


class _Here:
    """The list of members in this process; events are passed on as they come."""

    def __init__(self, work: Work, on_event: Callable[[MemberTask, Event], None]) -> None:
        self.board, self.tasks, self.on_event = Board(work.claims, after(work.tasks)), work.tasks, on_event
        self.claimed: int | None = None

    def claim(self, attempt: str) -> int | None:
        self.claimed = self.board.claim(attempt)
        return self.claimed

    def post(self, event: Event) -> None:
        self.board.post(event)
        for each in self.board.drain():
            self.on_event(self.tasks[each["member"]], each)

    def skip(self, member: int) -> None:
        self.board.skip(member)

    def lose(self) -> MemberTask:
        """The member that is at work failed; those that start from it are left out."""
        assert self.claimed is not None
        self.board.lost.add(self.claimed)
        return self.tasks[self.claimed]


def _train_all(
    runtime: Runtime,
    work: Work,
    members: Path,
    data: TrainingData,
    on_event: Callable[[MemberTask, Event], None],
) -> list[tuple[MemberTask, Exception]]:
    """Train each of the members that is not finished yet; returns those that failed, and why."""
    queue, failed = _Here(work, on_event), []
    stop, more = runtime.termination.asked.is_set, True
    arguments: dict[str, Any] = {"device": runtime.device(), "mirror": attached(), "stop": stop}
    while more and not stop():
        try:
            more = train_next(queue, work, members, data, attempt="here", **arguments)
        except (DiskError, StoppedError):
            raise
        except Exception as error:  # whatever it is, it is this member's
            failed.append((queue.lose(), error))
    return failed


def loaded(load_data: LoadData, arrays: dict[str, Any]) -> TrainingData:
    """What `load_data` makes of arrays that nobody writes into, as a worker's are; read without Ray Data."""
    for array in arrays.values():
        array.setflags(write=False)
    data = load_data(arrays)
    if data.stream is not None:
        data.stream = partial(data.stream, here=True)
    return data


@contextmanager
def leaving(runtime: Runtime) -> Iterator[None]:
    """In here SIGTERM lets the work at hand save where it stands, for at most `compute.grace` seconds."""
    over, termination = threading.Event(), runtime.termination

    def hurry() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if termination.asked.is_set():
                if not over.wait(runtime.compute.grace):
                    os.kill(os.getpid(), signal.SIGTERM)  # the second one does not wait
                return

    with termination.graceful():
        if termination.active:
            threading.Thread(target=hurry, name="grace", daemon=True).start()
        try:
            yield
        finally:
            over.set()
