"""Memory that is freed and asked for again costs no new pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ensemble_kd.train.process import WORKER

CODE = """
import resource
import sys
import threading
import torch
from ensemble_kd.train.process import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def touch():
    torch.ones(int(sys.argv[2]) * 250_000)
def work():  # in a thread, as Ray Train's workers
    for _ in range(20):  # until the heap is large enough
        touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(how: str, megabytes: int) -> int:
    environment = {**os.environ, **(WORKER if how == "kept" else {})}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how, str(megabytes)], env=environment, capture_output=True, text=True
    )
    if done.returncode == 3:
        pytest.skip("no mallopt: not glibc on Linux")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("megabytes", [40, 100])
def test_large_blocks_are_used_again(megabytes: int) -> None:
    kept, as_it_is = faults("kept", megabytes), faults("as it is", megabytes)
    if as_it_is < 1000:
        pytest.skip("this system has large pages, which cost little")
    assert kept < as_it_is / 5
