"""What is wrong with a chain of students: `student.assistants` and `student.generations`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ensemble_kd.config.models import model_problems, transformer_problems
from ensemble_kd.config.start import start_problems

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


def chain_problems(config: Config) -> list[str]:
    """Assistants that cannot learn, and settings that a chain does not go with."""
    student, problems = config.student, []
    for i, model in enumerate(student.assistants):
        path = f"student.assistants.{i}"
        problems += model_problems(path, model, config.data.kind)
        problems += transformer_problems(path, model, config.data)
        problems += start_problems(path, model, config)
        for name, usual in (("start", None), ("vocabulary", "all")):
            if getattr(model, name, usual) != usual:
                problems.append(f"{path}.{name}: is for the student itself; leave it out of an assistant")
        if getattr(model, "weights", None) == "teacher":
            problems.append(
                f"{path}.weights: 'teacher' is for the student itself; name a source, or set it to random"
            )
    if not student.chained:
        return problems
    path = "student.assistants" if student.assistants else "student.generations"
    if student.numbers.pseudo > 0:
        problems.append(
            f"student.pseudo: {student.pseudo:g} weighs the ensemble's answers, and in a chain a student "
            f"learns from the one before; set it to 0, or leave {path} out"
        )
    if student.alpha == 0:
        problems.append(
            f"student.alpha: 0 learns from labels alone, and a chain hands soft targets on; raise it, or "
            f"leave {path} out"
        )
    if student.objective is None:
        problems.append(
            f"student.objective: null, but a chain hands soft targets on; name one, or leave {path} out"
        )
    if student.assistants and student.phases:
        problems.append(
            "student.phases: are the student's own, and what its assistants learn before is not known; leave "
            "the phases or the assistants out"
        )
    return problems
