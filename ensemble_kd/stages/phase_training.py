"""What students learn before their last phase."""

from __future__ import annotations

from ensemble_kd.errors import TrainingError
from ensemble_kd.stages.context import Context
from ensemble_kd.stages.corpora import corpora
from ensemble_kd.stages.members import train_and_follow
from ensemble_kd.stages.phases import phase_tasks
from ensemble_kd.stages.start import Sources
from ensemble_kd.stages.student_tasks import reads_states
from ensemble_kd.stages.training_data import arrays_and_loader
from ensemble_kd.stages.upstream import Upstream


def train_phases(context: Context, above: Upstream, sources: Sources, seeds: int) -> None:
    """What students learn before their last phase, in one worker group; nothing where there are no phases.

    Raises TrainingError where a loss was not finite.
    """
    config = context.config
    if not config.student.phases:
        return
    wanted = [task for seed in range(seeds) for task in phase_tasks(config, sources, seed)]
    arrays, load, _ = arrays_and_loader(
        above.data,
        above.info,
        config.compute.memory_budget,
        above.store,
        run=context.folder,
        corpora=lambda: corpora(config, context.folder, above.data),
        states=any(map(reads_states, wanted)),
    )
    good = train_and_follow(context, "student", wanted, load, arrays, config.student.replicas_per_member)
    if lost := [task.name for task in wanted if task not in good]:
        raise TrainingError(
            f"student.phases: {', '.join(lost)}: the loss became NaN or infinite; lower the phase's "
            "training.learning_rate or set its training.gradient_clip"
        )
