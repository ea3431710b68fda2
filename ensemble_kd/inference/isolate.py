"""One row's failure is that row's: rows that raise together are tried by halves until it is clear which do.

What a stranger sends can trip a decoder, a tokenizer or a kernel in ways that nobody thought of. So whatever
a step raises becomes a problem of the rows that raise alone; the others are answered as if without them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

log = logging.getLogger(__name__)
LONGEST = 200
"""Characters of a failure's own words; a library may repeat the whole row."""


def isolated(rows: np.ndarray, step: Callable[[np.ndarray], None]) -> dict[int, Exception]:
    """Call `step` on all of these row numbers, or on parts of them where that raises.

    Returns the rows that raise by themselves. Each of them costs about 2 log2(N) calls more.
    """
    failed: dict[int, Exception] = {}
    waiting = [rows] if len(rows) else []
    while waiting:
        part = waiting.pop()
        try:
            step(part)
        except Exception as error:  # the net at the edge: see above
            if len(part) == 1:
                failed[int(part[0])] = error
            else:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
    if failed:
        first = min(failed)
        log.debug("%d of %d rows raise; row %d:", len(failed), len(rows), first, exc_info=failed[first])
    return failed


def words(error: Exception) -> str:
    """`OverflowError: cannot convert ...`: the first line, cut."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return said if len(said) <= LONGEST else f"{said[: LONGEST - 3]}..."
