"""Memory that is freed and asked for again costs no new pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource
import sys
import torch
from ensemble_kd.train.process import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def touch():
    torch.ones(10_000_000)  # 40 MB
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("no mallopt: not glibc on Linux")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_blocks_are_used_again() -> None:
    pages = 9_766
    assert faults("as it is") >= 9 * pages
    assert faults("kept") < 2 * pages
