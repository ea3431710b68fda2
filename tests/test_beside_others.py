"""The comparison with other systems: a rival that fails is a row, one that works has figures."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.given import Teacher, perceptron
from benchmarks.peers.rivals import LIMIT, OURS, RIVALS, Rival
from benchmarks.peers.side_by_side import compare, environment, lines_of_code, row
from benchmarks.peers.task import HELD_OUT, prepare, rows

WORKS = '''"""Waits a little, then answers class 1."""

from benchmarks.peers.given import read

given = read()
with given.clock():
    sum(range(200_000))  # something to do
given.finish(lambda inputs: [1] * len(inputs))
'''


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Eight test rows, six of class 1."""
    folder = tmp_path / "task"
    folder.mkdir()
    labels = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    arrays = {"train_labels": labels, "test_labels": labels, "test_inputs": np.zeros((8, 2), np.float32)}
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]
    (folder / "settings.json").write_text(json.dumps({"epochs": 5}), encoding="utf-8")
    return folder


def _rival(folder: Path, name: str, text: str) -> Rival:
    script = folder / f"{name}.py"
    script.write_text(text, encoding="utf-8")
    return Rival(name, script, "stored", "nothing")


def test_one_works_and_one_fails(tmp_path: Path, task: Path) -> None:
    fails = 'print("nearly")\nraise ImportError("libmissing.so: no such file")\n'
    rivals = [_rival(tmp_path, "fails", fails), _rival(tmp_path, "works", WORKS)]
    failed, worked = compare(rivals, task, 1, tmp_path)
    assert failed["problem"] == "does not work: ImportError: libmissing.so: no such file"
    assert failed["lines"] == 2 and "accuracy" not in failed
    assert worked["accuracy"] == 75.0 and worked["interval"] is None and worked["lines"] == 4
    assert worked["examples_per_cpu_second"] > 0 and "problem" not in worked


def test_what_cannot_be_installed_says_so(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an index pip fails at once; its environment is made all the same."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    script = tmp_path / "absent.py"
    script.write_text(WORKS, encoding="utf-8")
    rival = Rival("absent", script, "stored", "nothing", ("no-such-package-of-anybody==1.0",))
    (told,) = compare([rival], task, 1, tmp_path)
    assert told["problem"].startswith("cannot be installed: ERROR: ")
    assert told["version"] is None


def test_the_running_environment_serves_those_that_install_nothing(tmp_path: Path) -> None:
    assert environment(Rival("x", tmp_path / "x.py", "", ""), tmp_path) == Path(sys.executable)


def test_seeds_become_a_mean_with_an_interval(tmp_path: Path) -> None:
    runs = [
        {"accuracy": a, "cpu_seconds": s, "examples": 100} for a, s in ((0.8, 2.0), (0.9, 1.0), (0.85, 4.0))
    ]
    told = row(_rival(tmp_path, "x", WORKS), runs, None, None)
    assert told["accuracy"] == 85.0 and told["examples_per_cpu_second"] == 50 and told["cpu_seconds"] == 2.0
    assert told["interval"] == pytest.approx(4.302653 * 5 / 3**0.5, abs=0.01)  # t of 2 degrees of freedom


def test_what_counts_as_a_line() -> None:
    left_out = '"""Doc\nover two."""\nimport a\nfrom b import (\n    c,\n)\n\n# why\n'
    assert lines_of_code(left_out) == 0
    assert lines_of_code(left_out + "x = f(\n    1,\n)  # one\n") == 3
    assert lines_of_code('y = """\n\n"""\n') == 3


def test_the_shipped_scripts_are_there() -> None:
    names = [rival.name for rival in RIVALS]
    assert names[:2] == [LIMIT, OURS] and len(set(names)) == len(names)
    for rival in RIVALS:
        text = rival.script.read_text(encoding="utf-8")
        ast.parse(text)
        assert ".clock()" in text or "our_clock.attach" in text
        assert 10 < lines_of_code(text) < 80


def test_a_teacher_is_the_mean_of_its_members() -> None:
    members = [perceptron(3, [4], 2) for _ in range(2)]
    x = torch.randn(5, 3)
    mean = (members[0](x) + members[1](x)) / 2
    torch.testing.assert_close(Teacher(list(members))(x), mean)


def test_rows_are_those_of_letter(shared_data: Path, tmp_path: Path) -> None:
    found = rows(shared_data)
    assert found["train_inputs"].shape == (16_000 - HELD_OUT, 16) and found["test_inputs"].shape == (4000, 16)
    assert len(found["train_labels"]) % 64 == 0, "every batch of every system is whole"
    assert set(found["train_labels"]) == set(range(26))
    assert abs(found["train_inputs"].mean()) < 0.05
    with pytest.raises(RuntimeError, match="--data"):
        prepare(tmp_path, tmp_path / "task", True)
