"""SIGTERM, as a scheduler sends it before it takes a machine away or cancels a job: save, tell, leave.

The first one lets the training that is at work save where it stands (`graceful`); elsewhere it ends the run
at once, since finished shards, trials and stages are on disk already. A second one does not wait.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ensemble_kd.errors import StoppedError


@dataclass
class Termination:
    """Whether this process was asked to leave."""

    asked: threading.Event = field(default_factory=threading.Event)
    reason: str = "SIGTERM"
    active: bool = False
    _waiting: int = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take SIGTERM in here; outside the main thread nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        self.install()
        try:
            yield
        finally:
            self.active = False
            signal.signal(signal.SIGTERM, before)

    def install(self) -> None:
        """Again, after `ray.init` has put a handler of its own in the place of this one."""
        self.active = True
        signal.signal(signal.SIGTERM, self._on)

    def _on(self, number: int, frame: Any) -> None:
        again = self.asked.is_set()
        self.asked.set()
        if again or not self._waiting:
            # Ray Data would ask to report what passes through it as a fault of its own.
            logging.getLogger("ray.data.exceptions").disabled = True
            raise self.error()

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """In here the first SIGTERM only sets `asked`, which whoever works here looks at."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def error(self) -> StoppedError:
        return StoppedError(
            f"stopped by {self.reason}; finished stages and where every member stands are kept, "
            "run again to go on"
        )
