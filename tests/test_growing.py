"""Students that grow from phase to phase: the same function at first, and what is told beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import Config, load_config, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.stages.student_tasks import task
from ensemble_kd.train.initial import load_network

COUNTS = {"transfer": 100, "labelled": 50, "validation": 10, "test": 10, "train": 100}
TRAINING = {"epochs": 3, "batch_size": 64}


def phase(name: str, **model: Any) -> dict[str, Any]:
    block = {"name": name, "objective": "kl", "training": TRAINING}
    return {**block, "model": {"name": "mlp", **model}} if model else block


def config_of(phases: list[dict[str, Any]], **model: Any) -> Config:
    student = {"model": {"name": "mlp", "hidden": [20, 20], **model}, "phases": phases}
    return validate({"name": "t", "data": {"source": "digits", "kind": "image"}, "student": student})


def test_a_phase_of_the_students_own_size_is_what_it_was() -> None:
    """No noise, no other fingerprint: phases of before stay valid."""
    config = config_of([phase("first"), phase("second")])
    found = task(config, "distilled", 0, Sources("d", "s", COUNTS, Basis.alone(config)))
    assert found.initial is not None and set(found.initial) == {"stage", "member"}
    grown = config_of([phase("first", hidden=[10]), phase("second")])
    other = task(grown, "distilled", 0, Sources("d", "s", COUNTS, Basis.alone(grown)))
    assert other.initial is not None and "noise" not in other.initial  # the second phase has grown already
    assert other.initial["member"] != found.initial["member"]
    last = config_of([phase("first", hidden=[10])])
    assert (task(last, "distilled", 0, Sources("d", "s", COUNTS, Basis.alone(last))).initial or {})[
        "noise"
    ] > 0


@pytest.mark.parametrize(
    ("phases", "model", "says"),
    [
        (
            [phase("first", hidden=[30])],
            {},
            "student.model.hidden: [20, 20], but the phase before has [30], and net2net takes those layers",
        ),
        (
            [phase("first", hidden=[10]), phase("second", hidden=[8])],
            {},
            "student.phases.1.model.hidden: [8], but the phase before has [10]",
        ),
        (
            [phase("first"), phase("second", hidden=[10])],
            {},
            "student.phases.1.model.hidden: [10], but the phase before has [20, 20]",
        ),
        (
            [{**phase("first"), "model": {"name": "cnn"}}],
            {},
            "student.phases.0.model.name: 'cnn' cannot be grown; use mlp or resnet",
        ),
        ([phase("first", hidden=[10])], {"start": "net2net"}, "student.model.start: the student grows from"),
        (
            [phase("first", hidden=[10], start="net2wider")],
            {},
            "student.phases.0.model.start: is for the student itself; leave it out of a phase",
        ),
        (
            [{**phase("first"), "model": {"name": "bag"}}],
            {},
            "student.phases.0.model.name: 'bag' does not take image inputs",
        ),
    ],
)
def test_growth_to_a_smaller_network_is_told_before_anything_trains(
    phases: list[dict[str, Any]], model: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(phases, **model)
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


@pytest.mark.slow
def test_each_phase_begins_with_what_the_one_before_had_learned(tmp_path: Path) -> None:
    overrides = [
        "compute.executor=local",
        "tracking.enabled=false",
        "teachers.num_members=1",
        "teachers.training.epochs=2",
        "teachers.model={name: mlp, hidden: [16]}",
        "student.seeds=1",
        "student.training.epochs=0",
    ]
    pipeline.run(load_config("growing", overrides), tmp_path)
    members = [m for p in (tmp_path / "student/members").iterdir() if (m := read_manifest(p)) is not None]
    (data,) = (read_manifest(path.parent) for path in (tmp_path / "data").glob("*/manifest.json"))
    assert data is not None
    found = {manifest.summary["name"]: manifest for manifest in members}
    sizes = {name: manifest.config["model"]["hidden"] for name, manifest in found.items()}
    assert sizes["narrow-seed-0"] == [16] and sizes["wider-seed-0"] == [40]
    assert sizes["distilled-seed-0"] == sizes["hard-seed-0"] == [40, 40]
    inputs = torch.randint(0, 17, (50, 8, 8, 1), dtype=torch.uint8)
    logits = {
        name: load_network(
            manifest.config, data.summary["info"], tmp_path / "student/members" / manifest.fingerprint
        )(inputs).logits.detach()
        for name, manifest in found.items()
    }
    # A layer more is the identity, to which no noise is added: it starts as what the phase ended with.
    torch.testing.assert_close(logits["distilled-seed-0"], logits["wider-seed-0"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits["hard-seed-0"], logits["wider-seed-0"], atol=0.1)
    assert not torch.allclose(logits["narrow-seed-0"], logits["wider-seed-0"], atol=0.1)
