"""Chains of students: assistants between the ensemble and the student, and generations of it.

Each link is a member with a fingerprint of its own. The first learns as the `student` block says. Each of the
others learns from the link before, which runs beside it, so that no store is made for every link.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ensemble_kd.config import Config, OnlineConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.transplant import resolve
from ensemble_kd.stages.fit import block_problems, resolved_teachers
from ensemble_kd.stages.members import STREAM_OF_STUDENTS
from ensemble_kd.stages.skeletons import skeleton
from ensemble_kd.stages.start import Basis
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.task import MemberTask

DIRECT = "direct"
"""Role of the student that learns from the ensemble itself, beside one that learns from assistants."""
CHAINED = ("assistants", "generations")
"""Fields of the student that one which learns from the ensemble itself does not read: a sweep's, say."""
FIRST_OF_ASSISTANTS = 1000
"""Keeps the seeds of assistants and of generations apart."""


def chain(config: Config, direct: MemberTask, basis: Basis, seed: int) -> list[MemberTask]:
    """The links up to the student that is shipped, in order; that one alone without a chain.

    `direct` is the student as it would learn from the ensemble itself. The first generation is that student,
    where there are no assistants: a longer chain takes over all links of a shorter one. Later generations and
    assistants start from other random numbers, and draw the rows that the student draws.
    """
    student = config.student
    links: list[MemberTask] = []
    for i, model in enumerate(student.assistants):
        settings, initial = resolve(model, path=f"student.assistants.{i}")
        link = replace(
            _drawn_anew(config, direct, seed, FIRST_OF_ASSISTANTS + i),
            name=f"assistant-{i + 1}-seed-{seed}",
            role=f"assistant-{i + 1}",
            model=settings,
            initial=initial,
            quantization=None,  # only what is shipped need be in integers
        )
        links.append(taught_by(link, links[-1]) if links else link)
    for k in range(1, student.generations + 1):
        link = direct if k == 1 else _drawn_anew(config, direct, seed, k)
        if k < student.generations:
            link = replace(link, name=f"generation-{k}-seed-{seed}", role=f"generation-{k}")
        links.append(taught_by(link, links[-1]) if links else link)
    return links


def _drawn_anew(config: Config, task: MemberTask, seed: int, number: int) -> MemberTask:
    rows = task.rows if task.rows["fraction"] == 1 else {**task.rows, "drawn_by": task.seed}
    return replace(task, seed=mix(config.seed, STREAM_OF_STUDENTS, seed, number), rows=rows)


def taught_by(task: MemberTask, teacher: MemberTask) -> MemberTask:
    """The same student with another as its only teacher, whose logits are computed beside it."""
    place = {"stage": "student", "member": teacher.fingerprint}
    return replace(
        task,
        inputs={"data": task.inputs["data"]},
        weights=None,
        calibration=None,
        targets="ensemble",
        online={"teachers": [place], "shares": [1.0], "logits": True},
    )


def link_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """What is wrong with a chain: an assistant does not fit the data, or a term does not fit two neighbours.

    Another check tells whether the student fits the teachers.
    """
    student, problems = config.student, []
    if not student.chained:
        return []
    found: list[tuple[str, dict[str, Any]]] = []
    for i, model in enumerate(student.assistants):
        path = f"student.assistants.{i}"
        try:
            settings, _ = resolve(model, path=path)
            skeleton(settings, info, path)
            found.append((path, settings))
        except ConfigError as error:
            problems += error.problems
    if problems or not student.terms:
        return problems
    try:
        settings, _ = resolve(student.model, _best_of(config), path="student.model")
    except ConfigError:
        return []  # told of the student
    found += [("student.model", settings)] * (2 if student.generations > 1 else 1)
    alone = student.model_copy(update={"online": OnlineConfig()})
    pairs = list(zip(found, found[1:], strict=False))
    first = [(("teachers.model", teacher), found[0]) for teacher in resolved_teachers(config)]
    for (above, teacher), (path, settings) in [*(first if student.assistants else []), *pairs]:
        lines = block_problems(config, "student", alone, settings, teacher, info)
        problems += [f"{path}: does not learn from {above}: {line}" for line in lines]
    return list(dict.fromkeys(problems))


def _best_of(config: Config) -> dict[str, Any] | None:
    """A teacher that the student may start from."""
    teachers = resolved_teachers(config)
    return {"model": teachers[0], "initial": {}} if teachers else None
