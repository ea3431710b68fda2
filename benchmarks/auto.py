"""auto: what choosing T, alpha and pseudo on validation rows costs, beside the students themselves."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, benchmark, median, rounded, say

STUDENTS = {
    "stacked": "{name: mlp, hidden: [32, 32]}",
    "one by one": "{name: mlp, hidden: [512, 512]}",
}
"""The demo's, which is tried in full, ten at a time; and one whose steps have work to do."""
AUTO = ["student.temperature=auto", "student.alpha=auto", "student.pseudo=auto"]


def _stages(folder: Path, settings: list[str]) -> dict[str, Any]:
    """Manifests of a run on the embedded digits, a sixth of them labelled, with hardly trained teachers."""
    from ensemble_kd import pipeline
    from ensemble_kd.config import load_config

    usual = [
        "sweep=null",
        "specialists=null",
        "tracking.enabled=false",
        "compute.gpus_per_worker=0",
        "teachers.num_members=3",
        "teachers.training.epochs=5",
    ]
    return pipeline.run(load_config("digits", [*usual, *settings]), folder, until="student")


@benchmark(
    "auto",
    "choosing T, alpha and pseudo for a student of the digits, against training it and its baselines",
    "s",
    "at most",
    1.0,
)
def auto(quick: bool) -> Measured:
    """The stage `choose` against the stage `student` of a run in which the same numbers are given, so that
    nothing of what was tried is taken over. Both with Ray, processes, evaluation and checkpoints. Ours and
    the reference are those of the student for which the ratio is worse.
    """
    epochs, seeds, rounds = (4, 1, 1) if quick else (60, 3, 3)
    detail: dict[str, Any] = {"epochs": epochs, "seeds": seeds}
    worst: tuple[float, float] | None = None
    for name, model in STUDENTS.items():
        usual = [
            f"student.model={model}",
            f"student.training.epochs={epochs}",
            f"student.seeds={seeds}",
        ]
        ours, reference = [], []
        for turn in range(rounds):
            with tempfile.TemporaryDirectory() as place:
                found = _stages(Path(place) / "auto", [*usual, *AUTO])
                chosen = found["choose"].summary
                given = [f"student.{field}={value}" for field, value in chosen["chosen"].items()]
                alone = _stages(Path(place) / "given", [*usual, *given])
            ours.append(chosen["seconds"])
            reference.append(alone["student"].summary["seconds"])
            say(f"{name}, round {turn + 1}: {ours[-1]:.1f} s, students {reference[-1]:.1f} s")
        detail[name] = {
            "choose": rounded(ours, 1),
            "students": rounded(reference, 1),
            "candidates": len(chosen["candidates"]),
            "share_of_steps": round(chosen["steps"], 3),
            "stacked": chosen["stacked"],
        }
        pair = median(ours), median(reference)
        if worst is None or pair[0] / pair[1] > worst[0] / worst[1]:
            worst = pair
    assert worst is not None
    return Measured(*worst, detail)
