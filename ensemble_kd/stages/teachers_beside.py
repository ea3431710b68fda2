"""The teachers that a loss reads beside a student: at work, or what the store keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import TypeAdapter

from ensemble_kd.config import ModelConfig, OnlineConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.foreign import taken_over
from ensemble_kd.models.outputs import Outputs, state_name
from ensemble_kd.models.transplant import resolve
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.stages.members import best
from ensemble_kd.stages.skeletons import sample_outputs
from ensemble_kd.stages.start import Basis, place


def online_of(
    online: OnlineConfig,
    basis: Basis,
    weights: list[float] | None,
    path: str,
    terms: Sequence[dict[str, Any]] = (),
    averaged: bool = False,
) -> dict[str, Any]:
    """The teachers beside a student, as a task names them. Raises ConfigError where there are none.

    With `terms`, losses on rows of the transfer set: `stored` where the store holds all that these read.
    `averaged`: their logits are, whatever the settings say.
    """
    if online.source is not None:
        wanted: Any = TypeAdapter(ModelConfig).validate_python(
            {"name": "transformer", "source": online.source, "pooling": "cls"}  # its own classifier, or none
        )
        model, initial = resolve(wanted, path=f"{path}.online")
        assert initial is not None
        if basis.info:
            initial |= taken_over(online.source, basis.info, None)
        return {"teachers": [{**initial, "model": model}], "shares": [1.0], "logits": online.logits}
    if not basis.teachers:
        raise ConfigError(
            f"{path}.online: a loss reads a teacher beside the student, and of the run's teachers there are "
            "only numbers; use losses on stored logits, train the teachers, or set online.source"
        )
    names = [teacher["name"] for teacher in basis.teachers]
    if online.teachers == "best":
        chosen = [best(basis.teachers)]
    elif online.teachers == "all":
        chosen = basis.teachers
    else:
        if unknown := [n for n in online.teachers if f"teacher-{n:03d}" not in names]:
            raise ConfigError(f"{path}.online.teachers: {unknown}, but the teachers are {', '.join(names)}")
        chosen = [basis.teachers[names.index(f"teacher-{n:03d}")] for n in online.teachers]
    shares = [1.0] * len(chosen)
    if weights is not None:
        shares = [weights[names.index(teacher["name"])] for teacher in chosen]
        if not sum(shares) > 0:
            raise ConfigError(f"{path}.online.teachers: student.weights gives all of them 0; choose others")
    total = sum(shares)
    places = [place(teacher) for teacher in chosen]
    found = {"teachers": places, "shares": [share / total for share in shares], "logits": online.logits}
    if basis.calibration is not None and (online.logits or averaged):
        found["calibration"] = [basis.calibration[names.index(teacher["name"])] for teacher in chosen]
    return {**found, "stored": True} if not online.logits and stored(basis, terms) else found


def stored(basis: Basis, terms: Sequence[dict[str, Any]]) -> bool:
    """Whether the states and scores that the store keeps are all that these losses read of a teacher."""
    if basis.store is None or basis.store.kept is None or not terms:
        return False
    kept, loss = basis.store.kept, DistillationLoss(terms=build_terms(terms, 1.0, "student.terms"))
    for objective in (term.objective for term in loss.terms):
        needs = objective.needs
        if "logits" in needs and basis.store.top_k is not None:
            return False
        if kept.features:
            if not getattr(objective, "features_only", False):
                return False
            continue
        if getattr(objective, "reads_last", False) and kept.depth not in kept.hidden:
            return False
        if "hidden" in needs and kept.first_only and not getattr(objective, "first_only", False):
            return False
        # What does not say which layers it reads may read all.
        whole = len(kept.hidden) > kept.depth or "hidden" not in needs
        whole &= len(kept.attention) == kept.depth or "attention" not in needs
        if not hasattr(objective, "prepare") and not whole:
            return False
    states = {"features": torch.zeros(2, kept.features)} if kept.features else None
    teacher = Outputs(
        torch.zeros(2, basis.store.classes),
        states
        or {state_name(k): torch.zeros(2, 1 if kept.first_only else 8, kept.width) for k in kept.hidden},
        tuple(torch.zeros(2, kept.heads, 8, 8) for _ in kept.attention),
        torch.ones(2, 1 if kept.first_only else 8, dtype=torch.bool),
        kept.depth,
        kept.attention,
    )
    try:
        loss.prepare(sample_outputs(basis.student, basis.info, loss.wants), [teacher])
    except ConfigError:
        return False
    return True
