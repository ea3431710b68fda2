"""What is told of pretrained models before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_cases import VOCABULARY, write_tokenizer

from ensemble_kd.config import Config, validate
from ensemble_kd.stages.pretrained_files import source_problems


def configuration(data: Path, teacher: str, **student: Any) -> Config:
    return validate(
        {
            "name": "t",
            "data": {"path": str(data), "kind": "text", "text": {"tokenizer": "pretrained"}},
            "teachers": {"model": {"name": "transformer", "source": teacher}},
            "student": {"model": {"name": "transformer", **student}},
        }
    )


def test_models_that_share_a_tokenizer(tmp_path: Path) -> None:
    one, two = (str(write_tokenizer(tmp_path / name)) for name in ("one", "two"))
    assert source_problems(configuration(tmp_path, one, source=two)) == []


def test_another_vocabulary_is_told_with_both_sides(tmp_path: Path) -> None:
    one = str(write_tokenizer(tmp_path / "one"))
    two = str(write_tokenizer(tmp_path / "two", [*VOCABULARY[:5], "zebra", *VOCABULARY[5:]]))
    (problem,) = source_problems(configuration(tmp_path, one, source=two))
    assert problem.startswith(f"student.model.source: its tokenizer has {len(VOCABULARY) + 1} word pieces")
    assert f"that of {one} with {len(VOCABULARY)}" in problem and problem.endswith("for this one")
    assert source_problems(configuration(tmp_path, one, source=two, weights="random")) == []


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("./nowhere", "teachers.model.source: no such folder: ./nowhere"),
        ("package:no_such_package/model", "teachers.model.source: the Python package 'no_such_package'"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, source: str, says: str) -> None:
    problems = source_problems(configuration(tmp_path, source, weights="teacher"))
    assert len(problems) == 1 and problems[0].startswith(says)
