"""A plug-in of pytest: a test that takes long and is not marked slow fails, where the environment says so.

`ENSEMBLE_KD_TEST_SECONDS` is how long a test may take, with the fixtures made for it; .ci/run sets it. A busy
machine fails nothing: twice as many seconds of CPU are allowed, of this process and of those it waited for,
and twelve times as many by the clock.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Generator

import pytest

SECONDS = "ENSEMBLE_KD_TEST_SECONDS"
CPU, CLOCK = 2.0, 12.0
BEGAN = pytest.StashKey[tuple[float, float]]()


def spent() -> tuple[float, float]:
    """Seconds of CPU, and by the clock."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used), time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    item.stash[BEGAN] = spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    result = yield
    seconds = float(os.environ.get(SECONDS, "inf"))
    before, now = item.stash[BEGAN], spent()
    cpu, clock = now[0] - before[0], now[1] - before[1]
    marked = any(item.get_closest_marker(name) for name in ("slow", "long", "cluster"))
    if not marked and (cpu > CPU * seconds or clock > CLOCK * seconds):
        pytest.fail(
            f"took {cpu:.1f} s of CPU and {clock:.1f} s by the clock; a test that is not marked slow may "
            f"take {seconds:g} ({CPU:g} times that of CPU, {CLOCK:g} times by the clock): make it shorter, "
            "or mark it @pytest.mark.slow",
            pytrace=False,
        )
    return result
