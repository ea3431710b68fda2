"""Weights of losses that change in the course of training."""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ensemble_kd.config_checks import shown
from ensemble_kd.errors import ConfigError

MOST = 1e30
"""Of a weight: in float32 the square of a larger one is infinite."""
Weight = Annotated[float, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]


class Schedule(BaseModel):
    """A weight as a function of the share of the training that is done.

    It is `start` up to `begin` and `end` from `finish` on; between them `shape` says how it goes.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    start: Weight
    """Weight at the beginning."""
    end: Weight
    """Weight at the end."""
    shape: Literal["linear", "cosine", "sigmoid", "step", "constant"] = "linear"
    """`linear`, `cosine` (half a wave, level at both ends), `sigmoid` (exp(-5 (1 - t)^2): slow, then fast,
    then level), `step` (`end` from `begin` on), or `constant`."""
    begin: Share = 0.0
    """Share of the training, 0 to 1, where the change begins."""
    finish: Share = 1.0
    """Share of the training where the change is complete."""

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        # Settings that would have no effect are errors: they are mistakes more often than not.
        problem = None
        if self.shape == "constant":
            if self.start != self.end:
                problem = f"a constant weight has one value, got start {self.start} and end {self.end}"
                problem += "; use another shape, or give one number"
        elif self.shape == "step":
            if self.begin == 0 or self.finish != 1:
                problem = (
                    f"a step is at begin, above 0, and has no finish, got begin {self.begin} and finish "
                )
                problem += f"{self.finish}; set begin alone"
        elif self.begin >= self.finish:
            problem = f"begin comes before finish, got begin {self.begin} and finish {self.finish}"
            problem += "; for a sudden change use shape: step"
        if problem:
            raise PydanticCustomError("schedule", "{problem}", {"problem": problem})
        return self

    def at(self, progress: float) -> float:
        """The weight when `progress` (0 to 1) of the training is done."""
        if self.shape == "constant":
            return self.start
        if self.shape == "step":
            return self.start if progress < self.begin else self.end
        done = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        if self.shape == "sigmoid":  # less what it has at 0, which is exp(-5), so that it begins at `start`
            done = (math.exp(-5 * (1 - done) ** 2) - math.exp(-5)) / (1 - math.exp(-5))
        return (1 - done) * self.start + done * self.end  # exactly start and end at the ends


def parse_weight(value: Any, path: str) -> Schedule:
    """The schedule that a configuration gives at `path`: a number, or a mapping of Schedule's fields.

    Raises ConfigError with every problem, each line starting with the path of its field.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= MOST:  # nor NaN
            raise ConfigError(f"{path}: a weight is finite and at least 0, got {shown(value)}")
        return Schedule(start=float(value), end=float(value), shape="constant")
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: input should be a number, or a block with start, end, shape, begin and finish, "
            f"got {value!r}"
        )
    try:
        return Schedule.model_validate(value)
    except ValidationError as error:
        raise ConfigError([_line(item, path) for item in error.errors(include_url=False)]) from None


def _line(item: Any, path: str) -> str:
    where = ".".join([path, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        known = list(Schedule.model_fields)
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
        return f"{where}: unknown setting; " + (
            f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        )
    if item["type"] == "missing":
        return f"{where}: missing; a schedule goes from start to end"
    if item["type"] == "schedule":
        return f"{where}: {item['msg']}"
    return f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"
