"""What a server logs, bounded: strangers decide how often something fails, and what is in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable


class Throttle(logging.Filter):
    """Lets so many records through a minute, each cut; the next one then says how many were held back."""

    def __init__(
        self, records: int = 20, characters: int = 4000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.records, self.characters, self.clock = records, characters, clock
        self.begin, self.passed, self.held = clock(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if self.clock() - self.begin >= 60:
            self.begin, self.passed = self.clock(), 0
        if self.passed >= self.records:
            self.held += 1
            return False
        self.passed += 1
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if len(text) > self.characters:  # the end tells what it was
            text = f"{text[: self.characters // 4]}\n[...]\n{text[-self.characters * 3 // 4 :]}"
        if self.held:
            text += f"\n({self.held:,} further records were not shown; at most {self.records} a minute are)"
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        self.held = 0
        return True
