"""Ctrl-C and SIGTERM while a server starts: what is being done ends first, so that nothing is left half done.

An interrupt in the middle of an import or of Ray's start leaves processes behind, or a traceback. So a signal
is only noted, and whoever starts something looks at it between two steps, which take some seconds each. The
third one does not wait. Imports nothing of ours, as it is there before everything else.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENT = 2
"""Signals that are only noted."""


class StoppedEarly(BaseException):
    """Asked to stop before everything was there."""


class Stopping:
    """Within it, signals are noted; leaving it by one is no error."""

    def __init__(self) -> None:
        self.asked = 0

    def __enter__(self) -> Stopping:
        self.before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # SystemExit: while Ray starts, SIGTERM goes to a handler of Ray's, which raises that.
        left = isinstance(error, StoppedEarly | KeyboardInterrupt | SystemExit) or bool(self.asked and error)
        for number, handler in self.before.items():  # who has asked once need not wait for the end of Python
            signal.signal(number, signal.SIG_IGN if left else handler or signal.SIG_DFL)
        return left

    def install(self) -> None:
        """Again, where a library has put a handler of its own in the place of this one."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raises StoppedEarly after a signal."""
        if self.asked:
            raise StoppedEarly

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked > PATIENT:
            raise KeyboardInterrupt


@contextmanager
def ignored() -> Iterator[None]:
    """A second signal does not leave half of Ray behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
