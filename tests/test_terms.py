"""Settings of terms, phases and teachers beside a student that do not go together, told at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd.config import Config, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages.fit import student_problems
from ensemble_kd.stages.phases import phase_tasks
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.stages.student_checks import objective_problems
from ensemble_kd.stages.student_tasks import task
from ensemble_kd.stages.trial_book import _role

COUNTS = {"transfer": 100, "labelled": 50, "validation": 10, "test": 10, "train": 100}
TERM = {"name": "patient"}


def raw(tmp_path: Path, **student: Any) -> dict[str, Any]:
    (tmp_path / "corpus.csv").write_text("text\nwords\n")
    return {
        "name": "t",
        "data": {"path": str(tmp_path), "kind": "text", "text": {"tokenizer": "pretrained", "source": "s"}},
        "teachers": {"num_members": 2, "model": {"name": "transformer", "source": "s"}},
        "student": {"model": {"name": "transformer", "source": "s", "weights": "random"}, **student},
    }


def phase(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    corpus = {"path": str(tmp_path / "corpus.csv")}
    return {"name": "first", "corpus": corpus, "terms": [TERM], "online": {"source": "s"}, **changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"task": "mlm", "online": {}},
            "student.phases.0.online.source: missing; the run's teachers are cla",
        ),
        ({"task": "mlm", "corpus": None}, "student.phases.0.corpus: missing; words to be guessed"),
        ({"terms": []}, "student.phases.0.terms: none, and no objective, so that alpha = 1.0 weighs nothing"),
        ({"alpha": 0.5}, "student.phases.0.alpha: 0.5, but a corpus has no labels; set it to 1"),
        ({"corpus": None, "shared": True}, "student.phases.0.shared: pretraining that any student would"),
        (
            {"corpus": None, "training": {"early_stopping": 2}},
            "student.phases.0.training.early_stopping: validation rows judge the classifier, which does not",
        ),
    ],
)
def test_phases(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(raw(tmp_path, phases=[phase(tmp_path, **changes)]))
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("teachers", [[], [2], [0, 0]])
def test_teachers_that_are_not_there(tmp_path: Path, teachers: list[int]) -> None:
    with pytest.raises(
        ConfigError, match=r"student.online.teachers: .*different ones of the 2 teachers, 0 to 1"
    ):
        validate(raw(tmp_path, terms=[TERM], online={"teachers": teachers}))


def test_logits_beside_are_not_for_specialists(tmp_path: Path) -> None:
    settings = raw(tmp_path, online={"logits": True}) | {"specialists": {}}
    with pytest.raises(ConfigError, match="student.online.logits: .*student.targets is 'specialists'"):
        validate(settings)


def test_a_sweep_leaves_alone_what_phases_were_trained_with(tmp_path: Path) -> None:
    settings = raw(tmp_path, phases=[phase(tmp_path)])
    space = {"temperature": [1, 2], "fraction": [0.5, 1.0]}
    with pytest.raises(ConfigError, match="sweep.space.fraction: the student's phases are trained once"):
        validate(settings | {"sweep": {"space": space}})
    validate(settings | {"sweep": {"space": {"temperature": [1, 2]}}})


def test_terms_alone_are_distilling_too(tmp_path: Path) -> None:
    student = validate(raw(tmp_path, alpha=0, terms=[TERM])).student
    assert _role(student) == "distilled"
    assert _role(student.model_copy(update={"terms": []})) == "hard"


def of(config: Config) -> Basis:
    architecture = {"model_type": "bert"}
    model = {"name": "transformer", "architecture": architecture}
    teachers = [{"name": f"teacher-{i:03d}", "fingerprint": f"{i}", "validation_loss": i} for i in range(2)]
    basis = Basis([{**teacher, "model": model} for teacher in teachers], model, None, {"first": "corpus"})
    return replace(basis)


def test_phases_start_where_the_baseline_starts_and_see_the_students_rows(tmp_path: Path) -> None:
    second = {"name": "second", "terms": [TERM]}
    config = validate(
        raw(
            tmp_path,
            phases=[phase(tmp_path, online={"source": None}), second],
            fraction=0.5,
            without_classes=[1],
        )
    )
    phases = phase_tasks(config, Sources("data", "store", COUNTS, of(config)), 0)
    hard = task(config, "hard", 0, Sources("data", "store", COUNTS, of(config)))
    assert {phase.seed for phase in phases} == {hard.seed}
    assert phases[0].rows["fraction"] == 1.0 and "without" not in phases[0].rows  # of a corpus
    assert phases[1].rows["fraction"] == 0.5 and phases[1].rows["without"] == [1]
    assert phases[1].initial == {"stage": "student", "member": phases[0].fingerprint}


def test_pretraining_does_not_depend_on_the_transfer_set(tmp_path: Path) -> None:
    config = validate(raw(tmp_path, phases=[phase(tmp_path, online={"source": None})]))
    larger = {**COUNTS, "transfer": 200}
    (first,) = phase_tasks(config, Sources("data", "store", COUNTS, of(config)), 0)
    (again,) = phase_tasks(config, Sources("data", "store", larger, of(config)), 0)
    assert first.fingerprint == again.fingerprint


def pictures(tmp_path: Path, **student: Any) -> Config:
    return validate(
        {
            "name": "t",
            "data": {"path": str(tmp_path), "kind": "image"},
            "teachers": {"num_members": 1, "model": {"name": "resnet", "width": 8}},
            "student": {"model": {"name": "cnn", "channels": [4, 4]}, **student},
        }
    )


def test_maps_are_paired_before_any_teacher_is_trained(tmp_path: Path) -> None:
    """Both shapes and the remedy, from networks that are built and not trained."""
    info = {"kind": "image", "input_shape": [8, 8, 3], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3}
    terms: list[dict[str, Any]] = [
        {"name": "hint", "layers": [[2, 1]]},
        {"name": "attention_transfer", "layers": [["pooled", 3]]},
        {"name": "fsp"},
        {"name": "rkd_angle"},
    ]
    assert student_problems(pictures(tmp_path, terms=terms), info) == [
        "student.terms.0.layers: the student's layer_2 has shape (4, 4, 4), the teacher's stage_1 (8, 8, 8); "
        "a valid convolution makes maps smaller alone; pair a lower map of the student with it, or a higher "
        "one of the teacher, or set regressor: linear",
        "student.terms.1.layers: the student's pooled has shape (4,), the teacher's stage_3 (32, 2, 2); maps "
        "(channels, height, width) are needed of both: use networks for images, or hidden_mse for states "
        "without a place",
        "student.terms.2.sections: 1 of the student (layer_1 to layer_2), 3 of the teacher (stage_1_first to "
        "stage_1, stage_2_first to stage_2, stage_3_first to stage_3); write out as many of both in sections "
        "and teacher_sections",
    ]


def test_relations_are_not_cut(tmp_path: Path) -> None:
    phase = {"name": "first", "terms": [{"name": "rkd_distance"}], "training": {"gradient_accumulation": 4}}
    config = pictures(tmp_path, terms=[{"name": "darkrank_hard"}], training={"batch_size": 4}, phases=[phase])
    assert objective_problems(config) == [
        "student.training.batch_size: 4, but 'darkrank_hard' (student.terms.0) relates 5 rows or more; raise "
        "it to 5 at least",
        "student.phases.0.training.gradient_accumulation: 4, but 'rkd_distance' (student.phases.0.terms.0) "
        "relates all rows of a batch, which that would cut; set it to 1, and lower batch_size to save memory",
    ]
