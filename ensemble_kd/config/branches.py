"""The `student.branches` block: branches over a shared trunk; and what does not go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.image_models import MOST_BRANCHES
from ensemble_kd.config.peers import learner_problems
from ensemble_kd.config.resnet import ResNetConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config

RAMP: dict[str, Any] = {"start": 0.0, "end": 1.0, "shape": "sigmoid", "finish": 0.27}


class BranchesConfig(Block):
    """Branches of a residual network over a shared trunk, which learn from their own gated ensemble (ONE,
    arXiv 1806.04606)."""

    count: int = Field(3, ge=2, le=MOST_BRANCHES)
    """Branches, the student's own layers among them."""
    section: Literal[2, 3] = 3
    """Section from which on each branch has layers of its own; those before are the trunk."""
    weight: float | dict[str, Any] = RAMP
    """Weight of what each branch learns from the ensemble: a number or a schedule; by default it rises over
    the first 27% of the steps, 80 of 300 epochs in the paper."""
    temperature: float = Field(3.0, gt=0, le=1000)
    """T of that loss, on both sides."""
    ship: Literal["branch", "ensemble"] = "branch"
    """`branch`: the branch that is best on validation rows, which is the student's own network. `ensemble`:
    trunk, all branches and the gate."""


def branch_problems(config: Config) -> list[str]:
    """What does not fit between `student.branches` and the rest."""
    student = config.student
    if student.branches is None:
        return []
    problems = learner_problems(config, "student.branches")
    if not isinstance(student.model, ResNetConfig):
        problems.append(
            f"student.branches: branch off a section of a residual network, and student.model is "
            f"{student.model.name!r}; use resnet, or student.peers, which takes any model"
        )
    if not config.data.predicts.classified:
        problems.append(
            f"student.branches: are for classes, and data.target is {config.data.target!r}; use student.peers"
        )
    if student.peers is not None:
        problems.append("student.branches: does not go together with student.peers; leave one of them out")
    return problems
