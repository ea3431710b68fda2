"""What students learn before their last phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_kd.errors import TrainingError
from ensemble_kd.stages.context import Context
from ensemble_kd.stages.corpora import corpora
from ensemble_kd.stages.members import (
    train_and_follow,
)
from ensemble_kd.stages.phases import phase_tasks
from ensemble_kd.stages.start import Basis
from ensemble_kd.stages.student_tasks import reads_states
from ensemble_kd.stages.training_data import (
    Store,
    arrays_and_loader,
)


def train_phases(
    context: Context,
    data: Path,
    info: dict[str, Any],
    ensemble: Store,
    fingerprints: tuple[str, str],
    basis: Basis,
    weights: list[float] | None,
    seeds: int,
) -> None:
    """What students learn before their last phase, in one worker group; nothing where there are no phases.

    Raises TrainingError where a loss was not finite.
    """
    config = context.config
    if not config.student.phases:
        return
    wanted = [
        task
        for seed in range(seeds)
        for task in phase_tasks(config, basis, *fingerprints, info["counts"], weights, seed)
    ]
    arrays, load, _ = arrays_and_loader(
        data,
        info,
        config.compute.memory_budget,
        ensemble,
        run=context.folder,
        corpora=lambda: corpora(config, context.folder, data),
        states=any(map(reads_states, wanted)),
    )
    good = train_and_follow(context, "student", wanted, load, arrays, config.student.replicas_per_member)
    if lost := [task.name for task in wanted if task not in good]:
        raise TrainingError(
            f"student.phases: {', '.join(lost)}: the loss became NaN or infinite; lower the phase's "
            "training.learning_rate or set its training.gradient_clip"
        )
