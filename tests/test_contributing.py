"""What CONTRIBUTING.md shows as a whole method is one: the very code, in the whole loss."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import OBJECTIVES, Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
IMPORTS = """
from __future__ import annotations
from typing import ClassVar
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
"""


@pytest.fixture
def shown() -> Any:
    kept = dict(OBJECTIVES)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    sys.modules["shown"] = ModuleType("shown")  # where dataclasses look up what annotations mean
    for block in blocks:
        exec(compile(IMPORTS + block, "CONTRIBUTING.md", "exec"), vars(sys.modules["shown"]))
    yield blocks
    del sys.modules["shown"]
    OBJECTIVES.clear()
    OBJECTIVES.update(kept)


def test_the_examples_are_short(shown: list[str]) -> None:
    assert len(shown) == 2
    for block in shown:
        assert len(block.splitlines()) <= 25


def test_an_objective_on_logits(shown: list[str]) -> None:
    cosine = build_objective({"name": "cosine"}, 1.0)
    z = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    loss = cosine(Outputs(z), Outputs(-z), Batch(z, torch.zeros(2, dtype=torch.int64)))
    torch.testing.assert_close(loss, torch.tensor([2.0, 2.0]))


def test_a_term_with_a_projection(shown: list[str]) -> None:
    torch.manual_seed(0)
    student = Outputs(torch.zeros(3, 2, requires_grad=True), {"layer_1": torch.randn(3, 4, 5)})
    teacher = Outputs(torch.zeros(3, 2), {"layer_1": torch.randn(3, 4, 7)})
    loss = DistillationLoss(alpha=1, terms=build_terms([{"name": "first_token"}], 1.0, "student.terms"))
    learned = loss.prepare(student, [teacher])
    value = loss(student, None, Batch(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)), [teacher])
    value.backward()
    (linear,) = learned
    assert student.hidden is not None and teacher.hidden is not None
    difference = linear(student.hidden["layer_1"][:, 0]) - teacher.hidden["layer_1"][:, 0]
    torch.testing.assert_close(value, difference.square().mean())
    assert all(parameter.grad is not None for parameter in learned.parameters())
