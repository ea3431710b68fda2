"""The `sweep` block and the corners of its space; and what is wrong with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from ensemble_kd import space, space_problems
from ensemble_kd.config.base import Block

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


MOST_GRID_POINTS = 10_000


class SweepConfig(Block):
    """The search for the student's settings, judged on validation rows."""

    space: dict[str, str | list[Any]] = {
        "temperature": "loguniform(0.5, 20)",
        "alpha": "uniform(0.1, 1)",
    }
    """Per field of `student` what to try: uniform(a, b), loguniform(a, b), integers(a, b), logintegers(a, b),
    choice(a, b, ...) or a list. In a file also the name or path of a YAML file with such a block."""

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """`training: {learning_rate: ...}`, as `--set` writes it too, is `training.learning_rate: ...`."""

        def leaves(block: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
            for key, item in block.items():
                if item is None and str(key).endswith(")"):  # YAML's braces cut values at the comma
                    raise ValueError("in { } a comma ends a value; quote what has one: 'uniform(1, 8)'")
                if isinstance(item, dict) and item:
                    yield from leaves(item, f"{path}{key}.")
                else:
                    yield f"{path}{key}", item

        return dict(leaves(value)) if isinstance(value, dict) else value

    search: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's TPE, random, or every combination (a range then gives `grid_points` values)."""
    trials: int = Field(20, ge=1, le=100000)
    """Configurations to try (tpe, random); the hard-label baseline comes on top."""
    grid_points: int = Field(4, ge=2, le=1000)
    """Values taken from each range (search: grid)."""
    num_seeds: int = Field(1, ge=1, le=1000)
    """Students trained for each configuration; their mean is what counts."""
    metric: Literal[
        "validation_accuracy", "validation_loss", "validation_balanced_accuracy", "validation_macro_f1"
    ] = "validation_accuracy"
    """What to choose by. Balanced accuracy and macro-F1 are means over classes, for rare ones."""
    scheduler: Literal["auto", "asha", "none"] = "auto"
    """ASHA (arXiv 1810.05934) stops trials that lag behind; `auto`: with 12 epochs or more."""
    grace_epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Epochs that every trial gets (ASHA); `auto`: a quarter of them, as high temperatures start slowly."""
    reduction_factor: float = Field(3.0, gt=1)
    """Of so many trials at a rung one goes on (ASHA)."""
    concurrent_trials: int | Literal["auto"] = "auto"
    """Trials at a time, each with `compute.cpus_per_worker` and `gpus_per_worker`; `auto`: as many as fit."""
    fuse: int | Literal["auto"] = "auto"
    """Students trained together in one process as stacked parameters, where they differ in numbers only;
    1 for none, `auto` measures what pays."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Largest share of trials that may fail; above it the sweep ends."""
    refit: Literal["none", "train+validation"] = "none"
    """Whether the winner is trained anew with the validation rows among its own."""


def corners(config: Config) -> list[tuple[str, Config]]:
    """The configuration with one searched field at an end of its range, or at one of its choices, each.

    The first of the pair says which, as `sweep.space.PATH: VALUE`. Needs a space without problems.
    """
    if config.sweep is None:
        return []
    found = []
    for path, dimension in space.parse_space(config.sweep.space).items():
        for value in dimension.points(2):
            student = space_problems.apply(config.student, {path: value})
            found.append(
                (
                    f"sweep.space.{path}: {value!r}",
                    config.model_copy(update={"student": student, "sweep": None}),
                )
            )
    return found


def corner_problems(config: Config, problems_of: Callable[[Config], list[str]]) -> list[str]:
    """What `problems_of` finds at the corners of the search space and not in the configuration itself."""
    known = set(problems_of(config.model_copy(update={"sweep": None})))
    found: dict[str, None] = {}
    for where, corner in corners(config):
        for problem in problems_of(corner):
            if problem not in known:
                found[f"{where}: {problem}"] = None
    return list(found)


def sweep_problems(config: Config, problems_of: Callable[[Config], list[str]]) -> list[str]:
    """What is wrong with the search; `problems_of` finds what is wrong with a configuration without one."""
    sweep = config.sweep
    if sweep is None:
        return []
    if problems := space_problems.problems(config.student, sweep.space):
        return problems
    problems = corner_problems(config, problems_of)
    dimensions = space.parse_space(sweep.space)
    if sweep.search == "grid":
        points = math.prod(len(dimension.points(sweep.grid_points)) for dimension in dimensions.values())
        if points > MOST_GRID_POINTS:
            problems.append(
                f"sweep.space: the grid has {points:,} points; lower sweep.grid_points, drop a field, or use "
                "search: tpe"
            )
    if config.student.phases:
        # Phases are trained once, before the trials, which all start from the last one.
        fixed_by_phases = ("model", "phases", "fraction", "mean", "weights", "without_classes")
        problems += [
            f"sweep.space.{path}: the student's phases are trained once, with one value of it; leave it out "
            "of the space, or the phases out of the student"
            for path in dimensions
            if path.split(".")[0] in fixed_by_phases
        ]
    own = config.student.numbers._asdict()
    ends = [dimensions[n].points(2) if n in dimensions else [own[n]] for n in ("alpha", "pseudo")]
    student = config.student
    others = student.terms or student.peers or student.branches or student.learner
    if not any(map(any, ends)) and not others:
        problems.append(
            "sweep.space.alpha: always 0, so that nothing is distilled; raise it (a baseline on hard labels "
            "is among the trials anyway)"
        )
    epochs, grace = config.student.training.epochs, sweep.grace_epochs
    fixed = "training.epochs" not in dimensions
    if "auto" in (dimensions["training.epochs"].points(2) if not fixed else []):
        problems.append(
            "sweep.space.training.epochs: 'auto' is one number for all trials; give numbers, or leave it out "
            "of the space"
        )
    if sweep.scheduler == "asha" and fixed and grace != "auto" and epochs != "auto" and grace >= epochs:
        problems.append(
            f"sweep.grace_epochs: {grace}, but a trial has {epochs} epochs, so ASHA could stop "
            "none; lower it, or use scheduler: none"
        )
    for name, value in (("concurrent_trials", sweep.concurrent_trials), ("fuse", sweep.fuse)):
        if value != "auto" and value < 1:
            problems.append(f"sweep.{name}: at least 1, or auto; got {value}")
    if sweep.refit != "none":
        for wrong, field in (
            (config.soft_targets.views > 1, f"soft_targets.views = {config.soft_targets.views}"),
            (config.specialists is not None, "a `specialists` block"),
            (config.teachers.source == "predictions", "teachers.source = predictions"),
            (config.student.class_bias != "none", "student.class_bias = fitted"),
        ):
            if wrong:
                problems.append(
                    "sweep.refit: needs soft targets of the validation rows, and nothing fitted on them, "
                    f"which a run with {field} does not have; set it to none"
                )
    if sweep.fuse != "auto" and sweep.fuse > 1 and config.student.replicas_per_member > 1:
        problems.append(
            f"sweep.fuse: {sweep.fuse}, but student.replicas_per_member = "
            f"{config.student.replicas_per_member}: what needs several workers is not stacked; set fuse to 1"
        )
    return problems
