"""Generated outputs of teachers and students, so that a report can be made without training."""

from collections.abc import Callable

import numpy as np
import pytest

from ensemble_kd.report import ReportInputs, System
from ensemble_kd.targets.metrics import log_softmax

LATENCY = {"batch_1": 0.21, "batch_32": 0.9}


@pytest.fixture
def make_inputs() -> Callable[..., ReportInputs]:
    return generated


def generated(
    num_classes: int = 10,
    seeds: int = 1,
    teachers: int = 3,
    count: int = 1500,
    pseudo: bool = False,
    names: list[str] | None = None,
    signal: tuple[float, float, float] = (3.4, 2.2, 3.2),
) -> ReportInputs:
    """`signal`: how much the logit of the true class stands out for teachers, hard, distilled."""
    rng = np.random.default_rng(num_classes)
    labels = rng.integers(num_classes, size=count)
    shared = rng.normal(size=(count, num_classes))

    def system(name: str, role: str, seed: int, strength: float) -> System:
        logits = 0.8 * shared + 0.9 * rng.normal(size=(count, num_classes))
        logits[np.arange(count), labels] += strength
        history = [
            {
                "epoch": e + 1,
                "train_loss": 2 / (e + 1),
                "validation_loss": 2.2 / (e + 1),
                "validation_accuracy": 1 - 0.6 / (e + 1),
                "seconds": 1.5,
                "learning_rate": 1e-3,
            }
            for e in range(8)
        ]
        logits = logits.astype(np.float32)
        return System(name, role, seed, logits, 12_345, 49_380, LATENCY, 0.3, history)

    members = [system(f"teacher-{i:03}", "teacher", i, signal[0]) for i in range(teachers)]
    students = [system(f"hard-seed-{s}", "hard", s, signal[1]) for s in range(seeds)]
    students += [system(f"distilled-seed-{s}", "distilled", s, signal[2]) for s in range(seeds)]
    if pseudo:
        students += [system(f"pseudo-seed-{s}", "pseudo", s, signal[1]) for s in range(seeds)]
    ensemble = log_softmax(np.mean([m.logits for m in members], axis=0)) if members else None
    info = {
        "kind": "image",
        "input_shape": [8, 8, 1],
        "num_classes": num_classes,
        "class_names": names or [f"class {i}" for i in range(num_classes)],
        "mean": [0.3],
        "std": [0.2],
        "vocabulary_size": 0,
        "preprocess": {"columns": {"input": "image"}},
        "counts": {"train": 9000, "validation": 1000, "test": count, "transfer": 9000, "labelled": 9000},
    }
    return ReportInputs(
        name="digits",
        created=1.75e9,
        info=info,
        labels=labels,
        teachers=members,
        ensemble_log_probs=ensemble,
        students=students,
        shipped="distilled-seed-0",
        temperature=4.0,
        alpha=0.9,
        objective="kl",
        mean="arithmetic",
        settings={"student": {"temperature": 4.0, "alpha": 0.9}, "seed": 0},
        lineage={"data": "0123456789abcdef", "teachers": {m.name: "fedcba9876543210" for m in members}},
    )
