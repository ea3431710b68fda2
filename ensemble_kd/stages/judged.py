"""Given teachers held against labelled rows, before anything is spent on them: do they know these classes?

A member that was trained here is told about, at the most: more epochs may be all that it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.records import load_labels
from ensemble_kd.errors import InputError
from ensemble_kd.stages.context import Context
from ensemble_kd.targets import target_in
from ensemble_kd.train.judge import Judgement, judge

LISTED = 12
"""Classes that a message names in a row; of more an order is written to a file."""


@dataclass
class Panel:
    """What was found of the members, told at once at the end."""

    context: Context
    info: dict[str, Any]
    folder: Path
    """Where an order of many classes is written to."""
    problems: list[str] = field(default_factory=list)

    def look(
        self,
        index: int,
        where: str,
        logits: np.ndarray,
        labels: np.ndarray,
        split: str,
        *,
        applied: Sequence[int] | None = None,
        called: Sequence[str] = (),
    ) -> None:
        """Judge member `index` by its (N, C) logits on rows of `split`.

        `where` is the field and name that messages start with; `applied` the order that its outputs have been
        put in already, as `teachers.class_order` says it; `called` its own names of them.
        """
        if not target_in(self.info).classified or not len(logits):
            return
        found = judge(logits, labels, self.info["class_names"])
        seen = f"{where}: teacher-{index:03d} is right on {100 * found.accuracy:.1f}% of {found.rows:,} "
        seen += f"labelled {split} rows"
        if found.outcome == "moved":
            self.problems.append(seen + self._moved(index, found, applied, called))
        if found.outcome == "guessing":
            self.problems.append(
                f"{seen}, no more than guessing ({100 * found.chance:.1f}%), and no order of its classes "
                "fits: give a teacher of these classes, and see that each answer belongs to its row (ids); "
                "teachers.on_mismatch=warn goes on with it"
            )
        if found.outcome == "unsure" and found.accuracy <= found.chance:
            self.context.console.warning(
                f"{seen}, no more than guessing ({100 * found.chance:.1f}%); so few rows do not tell"
            )

    def _moved(
        self, index: int, found: Judgement, applied: Sequence[int] | None, called: Sequence[str]
    ) -> str:
        names = self.info["class_names"]
        order = [found.order[i] for i in applied] if applied is not None else list(found.order)
        wanted = [names[i] for i in order]
        text = f", and on {100 * found.permuted:.1f}% with its classes in another order: "
        before = applied if applied is not None else range(len(names))
        moved = [i for i, (now, then) in enumerate(zip(order, before, strict=True)) if now != then]
        own = [f" ({called[i]!r})" if called else "" for i in range(len(names))]
        text += ", ".join(f"its output {i}{own[i]} is the data's {wanted[i]!r}" for i in moved[:LISTED])
        text += f" and so on, {len(moved)} in all" if len(moved) > LISTED else ""
        if len(names) > LISTED:
            path = self.folder / f"teacher-{index:03d}.class_order.txt"
            write_atomic(path, "".join(f"{name}\n" for name in wanted))
            value = json.dumps(str(path))
        else:
            value = json.dumps(wanted, ensure_ascii=False)
        alone = len(self.context.config.teachers.given) == 1
        value = value if alone else f"{{{index}: {value}}}"
        return (
            f"{text}; set teachers.class_order={value} if so, or teachers.on_mismatch=warn to go on as it is"
        )

    def tell(self, given: bool) -> None:
        """Raises InputError with all that was found, where members are `given` and the run is to stop."""
        if given and self.problems and self.context.config.teachers.on_mismatch == "stop":
            raise InputError(self.problems)
        for problem in self.problems:
            self.context.console.warning(problem)


def labels_to_judge_by(data: Path, info: dict[str, Any], validation: bool) -> tuple[str, np.ndarray]:
    """Split and labels of the rows to hold a member against: validation rows where there are predictions."""
    if validation and info["counts"]["validation"]:
        labels = load_labels(data, "validation")
        if labelled(labels).any():
            return "validation", labels
    return "transfer", load_labels(data, "transfer")
