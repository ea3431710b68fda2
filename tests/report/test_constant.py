"""A student that always answers the same is shipped with a warning: verdict, page and model card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_kd.report import ReportInputs
from ensemble_kd.report.build import build_report
from ensemble_kd.report.card import model_card
from ensemble_kd.report.constant import constant_answer
from ensemble_kd.report.page import write_report

NAMES = {"class_names": ["no", "yes", "perhaps"]}


def answers(labels: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[labels]


@pytest.mark.parametrize(
    ("answered", "labels", "told"),
    [
        ([0] * 100, [0, 1] * 50, True),
        ([0] * 100, [0] * 97 + [1] * 3, True),  # the majority of them: still nothing is told apart
        ([1] * 99 + [0], [0, 1] * 50, True),
        ([0] * 99 + [1], [0] * 98 + [1] * 2, False),  # rare, and answered as rarely
        ([0, 1] * 50, [0, 1] * 50, False),
        ([0] * 100, [0] * 100, False),  # there is nothing else
        ([0] * 6, [0, 1] * 3, False),  # too few rows
    ],
)
def test_when_it_is_told(answered: list[int], labels: list[int], told: bool) -> None:
    found = constant_answer(answers(answered), np.array(labels), NAMES)
    assert (found is not None) == told


def test_values_that_never_change() -> None:
    labels = np.linspace(0, 5, 50).astype(np.float32)
    info: dict[str, Any] = {"target": {"mean": 2.5, "std": 1.4}, "class_names": []}
    found = constant_answer(np.full((50, 1), 2.5, np.float32), labels, info)
    assert found is not None and "answers 2.5 for all 50 test rows, whatever the input" in found["text"]
    assert constant_answer(labels[:, None] / 10 + 2, labels, info) is None


def test_verdict_page_and_card_say_so(tmp_path: Path, make_inputs: Callable[..., ReportInputs]) -> None:
    inputs = make_inputs(num_classes=3, names=["no", "yes", "perhaps"])
    assert "constant" not in build_report(inputs)
    shipped = next(s for s in inputs.students if s.name == inputs.shipped)
    shipped.logits[:] = [0.0, 9.0, 0.0]
    report = build_report(inputs)
    text = report["verdict"]["text"]
    assert text.startswith("Warning: the student that ships answers 'yes' for all 1,500 test rows, of which ")
    assert report["constant"]["share"] == 1
    write_report(report, {}, {}, tmp_path)
    assert "It tells nothing apart" in (tmp_path / "report.html").read_text()
    assert "- Warning: the student that ships" in model_card(report, inputs.info, {})
