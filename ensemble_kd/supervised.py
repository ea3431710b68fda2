"""A run in one process, watched by another: should it die, it is started again and goes on where it stands.

So `compute.executor: auto` may do without Ray where one process is all that can work, and loses nothing that
Ray's worker processes give. The watching process imports neither torch nor Ray.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_kd.config import Config
from ensemble_kd.config.plugins import loaded, provide
from ensemble_kd.errors import TrainingError
from ensemble_kd.runtime import cpus_here
from ensemble_kd.secret_options import held, hold

COMMAND = "supervised-run"
"""Hidden sub-command of the process that works; it reads the `Job` from its standard input."""
DEATH_OF_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl.h."""


@dataclass(frozen=True)
class Job:
    """What the command line asks the pipeline for."""

    until: str
    settings: Config
    run_dir: str | None
    verbose: bool
    require_gap: bool
    recipe: str | None


def wanted(config: Config, address: str | None, fresh: Collection[str]) -> bool:
    """Whether `compute.executor: auto` is local: nothing of this run could work side by side.

    Never with stages to be redone (`--fresh`): a run that is started again would redo them again.
    """
    compute, actors = config.compute, config.soft_targets.num_actors
    replicas = [config.teachers.replicas_per_member, config.student.replicas_per_member]
    if config.specialists is not None:
        replicas.append(config.specialists.replicas_per_member)
    if compute.executor != "auto" or address or os.environ.get("RAY_ADDRESS") or fresh or os.name != "posix":
        return False
    if max(replicas) > 1:
        return False
    if compute.gpus_per_worker != 0 and gpus_there():
        return False
    most = compute.num_workers[1] if isinstance(compute.num_workers, tuple) else compute.num_workers
    concurrent = config.sweep.concurrent_trials if config.sweep is not None else "auto"
    if any(count not in ("auto", 1) for count in (most, actors, concurrent)):
        return False
    return cpus_here() < 2 * compute.cpus_per_worker or (most == 1 and actors == 1)


def gpus_there() -> bool:
    """Whether this machine has a GPU, without asking torch, whose import takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def attend(job: Job, warn: Callable[[str], None]) -> int:
    """Run it in a process of its own; returns its exit code. SIGINT and SIGTERM are passed on.

    Raises TrainingError where the process was killed more often than `compute.max_failures`.
    """
    work = packed(job)
    failures = job.settings.compute.max_failures
    for attempt in range(failures + 1):
        code, asked = _attempt(work)
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        if asked:
            return 128 - code
        why = ", as the system does where memory is short" if name == "SIGKILL" else ""
        if attempt < failures:
            warn(f"the process of this run died of {name}{why}; it is started again, and goes on")
    raise TrainingError(
        f"the process of this run died of {name}{why}, {failures + 1} times; finished members and the last "
        "epoch of the others are kept, run again to go on"
    )


def _attempt(work: bytes) -> tuple[int, bool]:
    """The exit code of one process, negative for a signal, and whether it was asked to leave."""
    # A group of its own: Ctrl-C of a terminal goes to all of a group, and it would get two.
    child = subprocess.Popen(
        [sys.executable, "-m", "ensemble_kd", COMMAND], stdin=subprocess.PIPE, process_group=0
    )
    with _passed_on(child) as asked:
        assert child.stdin is not None
        try:
            child.stdin.write(work)
            child.stdin.close()
        except BrokenPipeError:  # it is gone; its exit code says why
            pass
        return child.wait(), bool(asked)


@contextmanager
def _passed_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """In here SIGINT and SIGTERM go to the child; the list takes them."""
    asked: list[int] = []

    def forward(number: int, frame: Any) -> None:
        asked.append(number)
        child.send_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, forward)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def packed(job: Job) -> bytes:
    """As JSON what the process that works needs: the job, and what this one knows."""
    settings = job.settings.model_dump(mode="json")
    settings["compute"]["executor"] = "local"
    work = {"job": {**vars(job), "settings": settings}, "path": sys.path, "held": held()}
    return json.dumps({**work, "plugins": loaded()}).encode()


def unpacked(work: bytes) -> Job:
    """Undo `packed`, in the process that works."""
    found = json.loads(work)
    sys.path[:] = found["path"]
    provide(found["plugins"])
    hold([(name, options, tuple(public)) for name, options, public in found["held"]])
    return Job(**{**found["job"], "settings": Config.model_validate(found["job"]["settings"])})


def job() -> Job:
    """In the process that works: what there is to do. It ends with the one that watches it."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DEATH_OF_PARENT, signal.SIGTERM)
    return unpacked(sys.stdin.buffer.read())
