"""Hints: a map in the middle of the teacher, which a map of the student learns to give (FitNets)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import STRICT, Batch, register
from ensemble_kd.objectives.hidden import at_least_float32
from ensemble_kd.objectives.layers import Pair
from ensemble_kd.objectives.maps import Maps, block_pairs, sides

LARGEST = 100_000_000
"""Weights of a fully connected regressor; one of more takes more memory than the networks."""


class Regressor(nn.Module):
    """r: the student's state to the shape of the teacher's."""

    def __init__(self, pair: Pair, convolution: bool, activation: str) -> None:
        super().__init__()
        ours, self.shape = tuple(pair.student.shape[1:]), tuple(pair.teacher.shape[1:])
        self.convolution, self.activation = convolution, activation
        made: Any = {"device": pair.student.device, "dtype": at_least_float32(pair.student).dtype}
        self.map: nn.Module
        if convolution:
            kernel = ours[1] - self.shape[1] + 1, ours[2] - self.shape[2] + 1
            self.map = nn.Conv2d(ours[0], self.shape[0], kernel, **made)
        else:
            self.map = nn.Linear(math.prod(ours), math.prod(self.shape), **made)

    def forward(self, state: Tensor) -> Tensor:
        # A loss computed in bfloat16 would be noise where student and teacher are close.
        with torch.autocast(state.device.type, enabled=False):
            mapped = self.map(state if self.convolution else state.flatten(1))
        mapped = F.relu(mapped) if self.activation == "relu" else mapped
        return mapped if self.convolution else mapped.view(-1, *self.shape)


@register("hint")
@dataclass(frozen=True, config=STRICT)
class Hint:
    """sum_m 1/2 ||u_m - r_m(v_m)||^2, u the teacher's state, v the student's; (B, C, H, W) or (B, D) -> (B,).

    FitNets, Romero et al., arXiv 1412.6550, section 2.2. r is learned: where both are maps a valid
    convolution whose kernel, H_s - H_t + 1 by W_s - W_t + 1, makes the sizes agree; else, or with
    `regressor: linear`, fully connected. With this loss alone, in a phase of its own (stage 1 of the paper),
    nothing above the student's state gets a gradient.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})
    layers: Maps = "middle"
    """Pairs of guided and hint layer: `middle` (the paper), `uniform`, `last`, `final`, or pairs [student,
    teacher]."""
    regressor: Literal["auto", "convolution", "linear"] = "auto"
    """`convolution` of maps, `linear`: fully connected; `auto`: the first where both sides are maps."""
    activation: Literal["relu", "none"] = "relu"
    """What follows r: the hint layer's own activation function (the paper); `none` where that is no ReLU."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the numbers of a state: `sum` is the paper's."""

    def prepare(self, student: Outputs, teacher: Outputs) -> nn.Module:
        problems, found = [], []
        for pair in block_pairs(self.layers, student, teacher):
            if problem := self._misfit(pair):
                problems.append(problem)
            else:
                found.append(Regressor(pair, self._convolves(pair), self.activation))
        if problems:
            raise ConfigError(problems)
        return nn.ModuleList(found)

    def __call__(self, student: Outputs, teacher: Outputs, batch: Batch, learned: nn.ModuleList) -> Tensor:
        terms = []
        for pair, regressor in zip(block_pairs(self.layers, student, teacher), learned, strict=True):
            guided = regressor(at_least_float32(pair.student))
            squares = (guided - at_least_float32(pair.teacher.detach())).square().flatten(1)
            terms.append(0.5 * (squares.mean(1) if self.reduction == "mean" else squares.sum(1)))
        return torch.stack(terms).sum(0)

    def _convolves(self, pair: Pair) -> bool:
        maps = pair.student.dim() == pair.teacher.dim() == 4
        return self.regressor == "convolution" or (self.regressor == "auto" and maps)

    def _misfit(self, pair: Pair) -> str | None:
        """What is wrong with the two shapes."""
        ours, theirs = pair.student.shape[1:], pair.teacher.shape[1:]
        if 3 in (pair.student.dim(), pair.teacher.dim()):
            return f"layers: {sides(pair)}; for states with positions use hidden_mse"
        if not self._convolves(pair):
            weights = math.prod(ours) * math.prod(theirs)
            if weights > LARGEST:
                return (
                    f"regressor: {sides(pair)}; fully connected that is {weights:,} weights; set regressor: "
                    "convolution, or pair smaller maps"
                )
            return None
        if not len(ours) == len(theirs) == 3:
            return f"regressor: {sides(pair)}; a convolution is for two maps; set regressor: linear"
        if ours[1] < theirs[1] or ours[2] < theirs[2]:
            return (
                f"layers: {sides(pair)}; a valid convolution makes maps smaller alone; pair a lower map of "
                "the student with it, or a higher one of the teacher, or set regressor: linear"
            )
        return None
