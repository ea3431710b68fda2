"""A learner: a network with a moving average of itself as its teacher (Mean Teacher, arXiv 1703.01780)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ensemble_kd.config import TrainingConfig
from ensemble_kd.config.methods import LEARNERS, LearnerConfig
from ensemble_kd.train.device import autocast
from ensemble_kd.train.learner import Learner, update

if TYPE_CHECKING:
    from ensemble_kd.config import Config
    from ensemble_kd.objectives.base import Batch


@LEARNERS.register
class AverageTeacherConfig(LearnerConfig):
    """A teacher whose weights are a moving average of the student's (arXiv 1703.01780)."""

    name: Literal["average_teacher"] = "average_teacher"
    """`average_teacher`"""
    networks: ClassVar[int] = 2
    decay: float = Field(0.99, ge=0, lt=1)
    """Of the average, per step."""
    weight: float = Field(1.0, ge=0)
    """Weight of the squared distance between the distributions of the two."""

    def problems(self, config: Config) -> list[str]:
        if config.student.training.gradient_accumulation == 1:
            return []
        return ["student.training.gradient_accumulation: average_teacher takes whole batches; set it to 1"]

    def learner(self, network: Any, loss: Any, another: Any) -> Learner:
        return AverageTeacher(network, another(1), loss, self)


class AverageTeacher(Learner):
    """loss + weight * || softmax(z) - softmax(z') ||^2 / C, z' (B, C) of the averaged network."""

    def __init__(self, network: Any, average: Any, loss: Any, settings: AverageTeacherConfig) -> None:
        super().__init__(network, loss)
        average.load_state_dict(network.state_dict())
        average.requires_grad_(False)
        self.average, self.settings = average, settings
        self.trained = nn.ModuleList([network, average])  # what a checkpoint saves

    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        training: TrainingConfig,
        number: int,
    ) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(batch.inputs.device, training.precision):
            outputs = self.network(batch.inputs)
            with torch.no_grad():
                target = self.average(batch.inputs).logits.float().softmax(1)
        apart = F.mse_loss(outputs.logits.float().softmax(1), target)
        value: Tensor = self.loss(outputs, batch.teacher, batch) + self.settings.weight * apart
        value.backward()
        update(optimizer, training, [self.network], [self.network])
        self.follow()
        return value.detach()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the network; what counts something is copied."""
        state = self.network.state_dict()
        for name, old in self.average.state_dict().items():
            old.copy_(
                old.lerp(state[name], 1 - self.settings.decay) if old.is_floating_point() else state[name]
            )
