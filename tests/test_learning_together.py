"""`student.peers` from the configuration to the report, and what cannot be combined with it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_local import config, run
from torch import Tensor, nn

import ensemble_kd
from ensemble_kd import pipeline
from ensemble_kd.config import validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages.student_checks import data_problems, objective_problems
from ensemble_kd.stages.trial_book import _role

LOCAL = "compute.executor=local"
INFO: dict[str, Any] = {
    "kind": "image",
    "input_shape": [8, 8, 1],
    "num_classes": 10,
    "class_names": [str(n) for n in range(10)],
    "mean": [0.5],
    "std": [0.3],
    "vocabulary_size": 0,
    "counts": {"train": 96, "validation": 30, "test": 30, "transfer": 96, "labelled": 96},
}


def settings(student: dict[str, Any], **more: Any) -> dict[str, Any]:
    data = {"source": "digits", "kind": "image"}
    small = {"model": {"name": "mlp", "hidden": [8]}, "peers": {}, **student}
    return {"name": "t", "data": data, "student": small, **more}


@pytest.mark.parametrize(
    ("student", "more", "says"),
    [
        (
            {"replicas_per_member": 2},
            {},
            "student.replicas_per_member: does not go together with student.peers; set it to 1, or leave st",
        ),
        (
            {"training": {"gradient_accumulation": 2}},
            {},
            "student.training.gradient_accumulation: does not go together with student.peers; set it to 1, o",
        ),
        ({"quantization": {}}, {}, "student.quantization: does not go together with student.peers; leave it"),
        (
            {"terms": [{"name": "hidden_mse"}]},
            {},
            "student.terms: does not go together with student.peers; leave them out",
        ),
        (
            {"online": {"logits": True}},
            {},
            "student.online.logits: does not go together with student.peers; leave it to the store",
        ),
        (
            {"phases": [{"name": "first", "objective": "kl"}]},
            {},
            "student.phases: does not go together with student.peers; leave them out",
        ),
        (
            {"generations": 2, "alpha": 0.5},
            {},
            "student.generations: does not go together with student.peers; set it to 1, or leave student.pe",
        ),
        (
            {"assistants": [{"name": "mlp"}], "alpha": 0.5},
            {},
            "student.assistants: does not go together with student.peers; leave them out, or leave student.p",
        ),
        (
            {"model": {"name": "mlp", "start": "net2wider"}},
            {},
            "student.model.start: does not go together with student.peers; leave it out, or leave student.pe",
        ),
        (
            {},
            {"sweep": {"space": {"temperature": [1, 2]}, "refit": "train+validation"}},
            "sweep.refit: does not go together with student.peers; set it to none",
        ),
        (
            {"peers": {"models": [{"name": "mlp"}, {"name": "mlp"}]}},
            {},
            "student.peers.models: 2 models, but beside the student there are 1 networks; name one for each, "
            "or set student.peers.count=3",
        ),
        (
            {"peers": {"models": [{"name": "bag"}]}},
            {},
            "student.peers.models.0.name: 'bag' does not take image inputs; use cnn or mlp or resnet",
        ),
        (
            {"peers": {"models": [{"name": "trees"}]}},
            {},
            "student.peers.models.0.name: 'trees' is for teachers; a student is a network",
        ),
        (
            {"peers": {"models": [{"name": "transformer", "source": "s"}]}},
            {},
            "student.peers.models.0: a peer with a model of its own starts from random weights, this 'transf",
        ),
        (
            {"peers": {"updates": "sequential", "refresh_steps": 2}},
            {},
            "student.peers.updates: 'sequential', but with student.peers.refresh_steps the targets come from",
        ),
    ],
)
def test_what_does_not_go_together(student: dict[str, Any], more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(settings(student, **more))
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (
            {"model": {"name": "mlp"}},
            "student.branches: branch off a section of a residual network, and stude",
        ),
        ({"peers": {}}, "student.branches: does not go together with student.peers; leave one of them out"),
        (
            {"replicas_per_member": 2},
            "student.replicas_per_member: does not go together with student.branches",
        ),
        ({"branches": {"section": 4}}, "student.branches.section: input should be 2 or 3"),
        ({"branches": {"count": 1}}, "student.branches.count: input should be greater than or equal to 2"),
        (
            {"model": {"name": "resnet", "branches": 2}},
            "student.model.branches: is filled in by student.branches; leave it out",
        ),
    ],
)
def test_what_does_not_go_together_with_branches(student: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(settings({"model": {"name": "resnet"}, "peers": None, "branches": {}, **student}))
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


@pytest.mark.slow
def test_branches_from_configuration_to_report(tmp_path: Path) -> None:
    """One branch is shipped; then the gated ensemble, which the model folder can be used as."""
    small = "student.model={name: resnet, width: 4}"
    asked = [LOCAL, small, "student.alpha=0", "student.seeds=1", "student.training.epochs=2"]
    run(config(*asked, "student.branches={count: 2}"), tmp_path)
    first = json.loads((tmp_path / "report.json").read_text())
    assert first["objective"] == "kl of 2 gated branches"
    rows = {system["name"]: system for system in first["systems"]}
    assert rows["distilled-seed-0"]["parameters"] == rows["hard-seed-0"]["parameters"]
    assert rows["together-seed-0"]["parameters"] > rows["distilled-seed-0"]["parameters"]
    run(config(*asked, "student.branches={count: 2, ship: ensemble}"), tmp_path)
    second = json.loads((tmp_path / "report.json").read_text())
    whole = {system["name"]: system for system in second["systems"]}
    assert "together" not in second["summary"]
    assert whole["distilled-seed-0"]["parameters"] == rows["together-seed-0"]["parameters"]
    assert whole["distilled-seed-0"]["accuracy"] == rows["together-seed-0"]["accuracy"]
    model = ensemble_kd.load(tmp_path / "model")
    assert len(model.predict(np.zeros((3, 8, 8, 1), np.uint8))) == 3


@pytest.mark.parametrize(
    ("peers", "says"),
    [
        (
            {"objective": "patient"},
            "student.peers.objective: 'patient' reads hidden, and peers see each other's logits; use kl",
        ),
        ({"objective": "k"}, "student.peers.objective: unknown objective 'k'; did you mean 'kl'?"),
        (
            {"objective": {"name": "kl", "temperature": 2}},
            "student.peers.objective.temperature: set student.peers.temperature instead",
        ),
        ({"weight": -1}, "student.peers.weight: a weight is finite and at least 0, got -1"),
        ({"weight": {"start": 1}}, "student.peers.weight.end: missing; a schedule goes from start to end"),
    ],
)
def test_losses_between_peers(peers: dict[str, Any], says: str) -> None:
    problems = objective_problems(validate(settings({"peers": peers})))
    assert any(line.startswith(says) for line in problems), problems


def test_a_model_of_the_users_own_is_built_before_anything_runs() -> None:
    from ensemble_kd.stages.base import DataFound

    broken = {"name": "custom", "callable": "json:loads"}
    asked = validate(settings({"peers": {"models": [broken]}}))
    found = DataFound(INFO)
    assert any(
        line.startswith("student.peers.models.0: custom model 'json:loads'")
        for line in data_problems(asked, found)
    )


class Flat(nn.Module):
    """A peer of the user's own; `extra` classes too many."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], extra: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(input_shape), num_classes + extra)

    def forward(self, inputs: Tensor) -> Tensor:
        answer: Tensor = self.head(inputs.flatten(1).float())
        return answer


@pytest.mark.parametrize("extra", [0, -3, 1])
def test_peers_of_other_class_counts_are_told_before_anything_runs(extra: int) -> None:
    from ensemble_kd.stages.base import DataFound

    peer = {"name": "custom", "callable": f"{__name__}:Flat", "options": {"extra": extra}}
    asked = validate(settings({"peers": {"models": [peer]}, "training": {"batch_size": 32}}))
    problems = [line for line in data_problems(asked, DataFound(INFO)) if "peers" in line]
    assert len(problems) == (extra != 0), problems
    if extra:
        assert problems[0].startswith("student.peers.models.0: custom model")
        assert f"of shape (2, 10) for two examples, got shape (2, {10 + extra})" in problems[0]


PLAIN: dict[str, Any] = {"name": "resnet", "width": 4}


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (
            {"terms": [{"name": "hint", "layers": [[3, 1]]}]},
            r"student\.terms\.0\.layers: the student's stage_3",
        ),
        (
            {"terms": [{"name": "rkd_angle"}], "training": {"batch_size": 2}},
            r"student\.training\.batch_size: 2, but 'rkd_angle'",
        ),
        (
            {
                "alpha": 0,
                "peers": {
                    "models": [{"name": "custom", "callable": f"{__name__}:Flat", "options": {"extra": 1}}]
                },
            },
            r"student\.peers\.models\.0: custom model .* got shape \(2, 11\)",
        ),
        ({"alpha": 0, "branches": {"section": 4}}, r"student\.branches\.section: input should be 2 or 3"),
        (
            {"model": {**PLAIN, "width": 2, "start": "net2net"}},
            r"student\.model\.width: 2, but the teacher has 4",
        ),
    ],
    ids=["maps", "batch", "classes", "branch point", "smaller"],
)
def test_bad_input_is_named_before_ray_starts(
    student: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a whole run on Ray, and not by the check alone."""

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ensemble_kd.runtime.Runtime.start", started)
    raw = settings({"model": PLAIN, "peers": None, **student})
    raw |= {"teachers": {"num_members": 1, "model": PLAIN}, "compute": {"executor": "ray"}}
    with pytest.raises(ConfigError) as caught:
        pipeline.run(validate(raw), tmp_path)
    assert any(re.match(says, line) for line in caught.value.problems), caught.value.problems
    if "terms" in student:  # what is asked for rightly gets as far as Ray, so that the patch above would tell
        with pytest.raises(AssertionError, match="Ray was started"):
            pipeline.run(validate({**raw, "student": {"model": PLAIN}}), tmp_path)


def test_a_student_with_peers_distils_whatever_alpha_is() -> None:
    """A sweep's trial at alpha = 0 is not the baseline."""
    assert _role(validate(settings({"alpha": 0})).student) == "distilled"
    assert _role(validate(settings({"alpha": 0, "peers": None})).student) == "hard"


@pytest.mark.slow
def test_from_configuration_to_report(tmp_path: Path) -> None:
    """Mutual learning alone, then on top of the stored soft targets: the baselines are trained once."""
    asked = [LOCAL, "student.peers={count: 3, updates: sequential}"]
    run(config(*asked, "student.alpha=0"), tmp_path)
    first = json.loads((tmp_path / "report.json").read_text())
    assert first["objective"] == "kl of 2 peers"
    assert "did not learn from the teachers" in first["verdict"]["text"]
    assert first["summary"]["together"]["n"] == 2 == first["summary"]["hard"]["n"]
    rows = {system["name"]: system for system in first["systems"]}
    assert rows["together-seed-0"]["parameters"] == 3 * rows["distilled-seed-0"]["parameters"]
    page = (tmp_path / "report.html").read_text()
    assert "Ensemble of what learned together" in page
    lines = run(config(*asked, "student.alpha=0.5"), tmp_path)
    second = json.loads((tmp_path / "report.json").read_text())
    assert second["objective"] == "kl + kl of 2 peers"
    assert "did not learn from the teachers" not in second["verdict"]["text"]
    assert lines.kept() == ["data", "teachers", "gap", "soft-targets"]
    assert [s for s in second["systems"] if s["role"] == "hard"] != []
    folders = list((tmp_path / "student/members").glob("*/peers.safetensors"))
    assert len(folders) == 4  # two seeds of each


@pytest.mark.slow
def test_settings_of_the_peers_are_searched(tmp_path: Path) -> None:
    """Students with peers are trials like others, and what won is taken over as it is."""
    space = "sweep={search: grid, space: {peers.weight: [0.5, 2]}, num_seeds: 1, scheduler: none, fuse: 4}"
    asked = [LOCAL, "student.peers={}", "student.alpha=0", "student.seeds=1", space]
    run(config(*asked), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    trials = [trial for trial in report["sweep"]["trials"] if trial["kind"] == "searched"]
    assert sorted(trial["parameters"]["peers.weight"] for trial in trials) == [0.5, 2]
    assert all(trial["state"] == "finished" and trial["fused"] == 1 for trial in trials)
    assert report["summary"]["together"]["n"] == 1
    assert report["settings"]["student"]["peers"]["weight"] in (0.5, 2)


@pytest.mark.slow
def test_alpha_is_chosen_with_peers(tmp_path: Path) -> None:
    run(config(LOCAL, "student.peers={}", "student.alpha=auto", "student.seeds=1"), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["choose"] is not None and report["summary"]["together"]["n"] == 1
