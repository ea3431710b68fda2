"""One run at a time in a run folder: a lock on disk, a lease in a store.

A lease is an object that its holder writes anew every few seconds. Whoever finds one waits until it has seen
it stand still for `LEASE` seconds, and takes it over then: the holder was killed. Stores compare nothing when
they write, so two that come in the same second both write, look again after a moment, and the last one stays.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_kd.errors import EnsembleKDError
from ensemble_kd.mirror import Mirror

LEASE = 15.0
"""Seconds without a beat after which the holder counts as gone."""
BEAT = 4.0
MOMENT = 1.0
NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Refuse a second run in a folder on disk; the lock goes with the process, however it ends."""
    with (folder / NAME).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # as on a file server without locks
                raise EnsembleKDError(
                    f"{folder}: its file system has no locks ({error.strerror}), which keep two runs apart; "
                    "choose another --run-dir, on a local disk or in a store"
                ) from error
            raise EnsembleKDError(
                f"{folder}: another run is at work here; wait for it or choose another --run-dir"
            ) from error
        yield


@contextmanager
def leased(mirror: Mirror, lost: Callable[[], None], seconds: float = LEASE) -> Iterator[None]:
    """Hold the lease of a run folder in a store; `lost` is called where another run took it nonetheless.

    Raises EnsembleKDError where another run holds it.
    """
    me = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    holder = mirror.read_object(NAME)
    if holder is not None and not _gone(_parsed(holder)):
        end = time.monotonic() + seconds
        mirror.warn(
            f"{mirror.shown}: a run held it last; waiting {seconds:.0f} s to see whether it is at work"
        )
        while time.monotonic() < end:
            time.sleep(0.5)
            if (seen := mirror.read_object(NAME)) is None:
                break
            if seen != holder:
                raise _refused(mirror, _parsed(seen))
    beat = 0

    def write() -> None:
        nonlocal beat
        beat += 1
        mirror.write_object(NAME, json.dumps({**me, "beat": beat}))

    write()
    time.sleep(MOMENT)
    now = _parsed(mirror.read_object(NAME))
    if now.get("owner") != me["owner"]:
        raise _refused(mirror, now)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(BEAT):
            try:
                there = mirror.read_object(NAME, patience=0)
                if there is not None and _parsed(there).get("owner") != me["owner"]:
                    lost()
                    return
                write()
            except EnsembleKDError:  # a store that refuses refuses others, too
                continue

    thread = threading.Thread(target=work, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _parsed(mirror.read_object(NAME)).get("owner") == me["owner"]:
            mirror.remove_object(NAME)


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return not holder
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _refused(mirror: Mirror, holder: dict[str, Any]) -> EnsembleKDError:
    who = f" (process {holder.get('pid')} on {holder.get('host')})" if holder else ""
    return EnsembleKDError(
        f"{mirror.shown}: another run is at work here{who}; wait for it or choose another --run-dir"
    )
