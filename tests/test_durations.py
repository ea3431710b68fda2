"""A test that takes long and does not say so fails, by its CPU or by the clock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import durations
import pytest

CASES = """
import time, pytest

def spin():
    end = time.process_time() + 0.8
    while time.process_time() < end:
        pass

@pytest.fixture
def dear():
    spin()

def test_quick(): pass
def test_works(): spin()
def test_waits(): time.sleep(5)
def test_by_its_fixture(dear): pass
@pytest.mark.slow
def test_says_so(): spin()
@pytest.mark.xfail
def test_fails_otherwise(): assert False
"""


@pytest.mark.parametrize(
    ("seconds", "failed"), [("0.4", {"test_works", "test_waits", "test_by_its_fixture"}), (None, set())]
)
def test_what_takes_long_and_does_not_say_so_fails(
    tmp_path: Path, seconds: str | None, failed: set[str]
) -> None:
    (tmp_path / "test_cases.py").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    environment = {k: v for k, v in os.environ.items() if k != durations.SECONDS}
    environment |= {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= {durations.SECONDS: seconds} if seconds else {}
    command = [sys.executable, "-m", "pytest", "-p", "durations", "-rf", "--tb=line", str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert {line.split("::")[1].split(" ")[0] for line in lines} == failed, done.stdout
    assert done.stdout.count("or mark it @pytest.mark.slow") >= len(failed)
