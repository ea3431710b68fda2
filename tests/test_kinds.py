"""Ensembles of several kinds: who their members are, what is refused, a whole run of trees and networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble_kd import pipeline
from ensemble_kd.config import (
    Config,
    cross_field_problems,
    member_settings,
    num_teachers,
    unresolved,
    validate,
    with_class_weights,
    with_epochs,
)
from ensemble_kd.stages import teachers as teachers_stage
from ensemble_kd.stages.context import Console
from ensemble_kd.stages.fit import student_problems

TREES = {"model": {"name": "trees", "rounds": 20}, "count": 2}


def config(path: str = ".", **blocks: Any) -> Config:
    teachers = {"num_members": 2, "model": {"name": "mlp", "hidden": [16]}, "training": {"epochs": 3}}
    return validate(
        {
            "name": "kinds",
            "data": {
                "kind": "numeric",
                "path": path,
                "columns": {"input": ["a", "b", "c"], "label": "label"},
                "shard_rows": 200,
            },
            "teachers": {**teachers, **blocks.pop("teachers", {})},
            "student": {"model": {"name": "mlp", "hidden": [8]}, "training": {"epochs": 3}, "seeds": 2},
            "tracking": {"enabled": False},
            **blocks,
        }
    )


def test_kinds_stand_behind_the_members_of_the_model() -> None:
    found = config(teachers={"kinds": [TREES, {"training": {"learning_rate": 0.1}}]})
    assert num_teachers(found) == 5
    settings = [member_settings(found.teachers, i) for i in range(5)]
    assert [model.name for model, _ in settings] == ["mlp", "mlp", "trees", "trees", "mlp"]
    assert [training.learning_rate for _, training in settings] == [1e-3, 1e-3, 1e-3, 1e-3, 0.1]


def test_overrides_are_of_the_members_of_the_model_alone() -> None:
    found = config(teachers={"overrides": [{"training": {"epochs": 7}}], "kinds": [TREES]})
    assert [member_settings(found.teachers, i)[1].epochs for i in range(4)] == [7, 7, 3, 3]


def test_a_further_kind_leaves_the_other_members_as_they_are() -> None:
    one, two = config(), config(teachers={"kinds": [TREES]})
    before, after = (teachers_stage.tasks(each, "data") for each in (one, two))
    assert [task.fingerprint for task in before] == [task.fingerprint for task in after[:2]]
    assert len({task.fingerprint for task in after}) == 4


def test_how_networks_are_trained_does_not_change_trees() -> None:
    one = config(teachers={"kinds": [TREES]})
    two = config(teachers={"kinds": [TREES], "training": {"epochs": 9, "learning_rate": 0.1}})
    before, after = (teachers_stage.tasks(each, "data") for each in (one, two))
    same = [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)]
    assert same == [False, False, True, True]


def test_epochs_and_weights_of_every_kind_become_numbers() -> None:
    kinds = [{"training": {"epochs": "auto", "class_weights": "balanced"}}, TREES]
    found = config(teachers={"kinds": kinds})
    assert unresolved(found)
    counts = {"transfer": 1000, "labelled": 500, "validation": 100}
    found = with_class_weights(with_epochs(found, counts), ["x", "y"], [400, 100])
    assert not unresolved(found)
    training = member_settings(found.teachers, 2)[1]
    assert training.num_epochs > 100 and training.class_weights == [0.625, 2.5]
    assert member_settings(found.teachers, 0)[1].class_weights is None


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        (
            {"teachers": {"kinds": [{"model": {"name": "cnn"}}]}},
            "teachers.kinds.0.model.name: 'cnn' does not",
        ),
        (
            {"teachers": {"kinds": [{"training": {"batch_size": 0}}]}},
            "teachers.kinds.0.training.batch_size",
        ),
        ({"teachers": {"kinds": [TREES]}, "specialists": {}}, "specialists: they start from a teacher's"),
        (
            {"teachers": {"kinds": [TREES], "source": "callable", "given": ["a:b"]}},
            "teachers.kinds: set, but teachers.source is 'callable'",
        ),
        ({"student": {"model": {"name": "trees"}}}, "student.model.name: 'trees' is for teachers"),
    ],
)
def test_what_does_not_fit_is_refused(blocks: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match="problem|" + told[:20]) as error:
        found = config(**blocks)
        raise ValueError("\n".join(cross_field_problems(found)))
    assert told in str(error.value)


def write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 3)).astype(np.float32)
    label = ((x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 0.8)).astype(np.int64)
    table = pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": label})
    folder.mkdir()
    pq.write_table(table.slice(0, 600), folder / "train.parquet")
    pq.write_table(table.slice(600), folder / "test.parquet")


def test_weights_from_validation_rows_and_given_ones_exclude_each_other() -> None:
    found = config(teachers={"weights": "validation"})
    assert cross_field_problems(found) == []
    both = found.model_copy(update={"student": found.student.model_copy(update={"weights": [1.0, 2.0]})})
    assert any("teachers.weights is 'validation'" in line for line in cross_field_problems(both))


def test_a_student_of_a_teacher_s_layers_takes_a_transformer_s() -> None:
    found = validate(
        {
            "name": "kinds",
            "data": {"kind": "text", "path": ".", "text": {"tokenizer": "pretrained", "source": "none"}},
            "teachers": {
                "num_members": 1,
                "model": {
                    "name": "transformer",
                    "architecture": {
                        "model_type": "bert",
                        "hidden_size": 16,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 2,
                        "intermediate_size": 16,
                    },
                },
                "kinds": [{"model": {"name": "bag"}}],
            },
            "student": {"model": {"name": "transformer", "weights": "teacher", "layers": "every_second"}},
        }
    )
    info = {
        "kind": "text",
        "input_shape": [8],
        "num_classes": 2,
        "vocabulary_size": 31,
        "preprocess": {"special": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}},
    }
    assert student_problems(found, info) == []
    beside = found.student.model_copy(update={"terms": [{"objective": "hidden_mse"}]})
    told = student_problems(found.model_copy(update={"student": beside}), info)
    assert any("is bag" in line for line in told)  # a teacher beside the student may be any of them


def report_of(folder: Path, data: Path, weights: str = "equal", **blocks: Any) -> dict[str, dict[str, Any]]:
    """Runs it; the report's systems by name."""
    blocks = {"compute": {"executor": "local"}, **blocks}
    found = config(str(data), teachers={"kinds": [TREES], "weights": weights}, **blocks)
    pipeline.run(found, folder, console=Console())
    systems = json.loads((folder / "report.json").read_text())["systems"]
    return {system["name"]: system for system in systems}


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("*/manifest.json")]


@pytest.mark.slow
def test_trees_and_networks_teach_together_and_the_mean_may_follow_the_better_kind(tmp_path: Path) -> None:
    write(tmp_path / "data")
    folder = tmp_path / "run"
    equal = report_of(folder, tmp_path / "data")
    scores = [equal[f"teacher-{i:03d}"]["accuracy"] for i in range(4)]
    assert min(scores[2:]) > max(*scores[:2], 0.8)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pkl", ".bin")]
    members = sorted(path.name for path in (folder / "teachers" / "members").iterdir())

    followed = report_of(folder, tmp_path / "data", "validation")
    assert followed["ensemble"]["nll"] < 0.9 * equal["ensemble"]["nll"]
    found = [made["summary"] for made in manifests(folder / "teachers") if "calibration" in made["summary"]]
    assert all(len(each["calibration"]["temperatures"]) == 4 for each in found)
    (weights,) = [each["weights"] for each in found if "weights" in each]
    assert len(weights) == 4 and min(weights[2:]) > max(weights[:2])
    # No teacher was trained or asked again, and distilled students alone know of the weights.
    assert sorted(path.name for path in (folder / "teachers" / "members").iterdir()) == members
    assert len(list((folder / "soft_targets").iterdir())) == 1
    told = [made["config"].get("weights") for made in manifests(folder / "student" / "members")]
    assert told.count(weights) == 2


@pytest.mark.slow
@pytest.mark.long
def test_trees_are_fitted_to_rows_that_are_streamed(tmp_path: Path, ray_session: None) -> None:
    write(tmp_path / "data")
    found = report_of(tmp_path / "run", tmp_path / "data", compute={"memory_budget": 1e-9})
    assert min(found[f"teacher-{i:03d}"]["accuracy"] for i in (2, 3)) > 0.8
