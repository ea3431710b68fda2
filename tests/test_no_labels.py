"""Distilling given teachers into a student without a single training label: labels judge, nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from asked_teachers import of_money
from test_given_teachers import WORDS

from ensemble_kd import pipeline
from ensemble_kd.config import Config, validate
from ensemble_kd.errors import ConfigError, InputError


def texts(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts, and the labels that `asked_teachers:of_money` is always right about."""
    generator = np.random.default_rng(seed)
    found = [" ".join(generator.choice(WORDS, generator.integers(1, 5))) for _ in range(rows)]
    return found, ["money" if logits[1] > 0 else "another" for logits in of_money(found)]


def config_of(folder: Path, label: str | None = None, judged: bool = True, **changes: Any) -> Config:
    """`label`: the train file's label column, with nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", 300), ("validation", 60), ("test", 60)):
        inputs, labels = texts(rows, len(split))
        columns: dict[str, Any] = {"input": inputs}
        if split != "train" and judged:
            columns["label"] = labels
        elif split == "train" and label is not None:
            columns[label] = pa.nulls(rows, pa.string())
        if split == "train" or judged:
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    raw: dict[str, Any] = {
        "name": "unlabelled",
        "data": {"source": "files", "path": str(folder), "kind": "text"},
        "teachers": {"source": "callable", "given": ["asked_teachers:of_money"]},
        "student": {
            "model": {"name": "bag"},
            "training": {"epochs": 8, "batch_size": 16, "learning_rate": 0.02},
            "temperature": 1.0,
            "alpha": 1.0,
            "seeds": 2,
        },
        "compute": {"executor": "local"},
        "tracking": {"enabled": False},
    }
    return validate({**raw, **changes})


@pytest.mark.parametrize("label", [None, "label"])
def test_train_rows_without_a_label_are_the_transfer_set(tmp_path: Path, label: str | None) -> None:
    manifests = pipeline.run(config_of(tmp_path / "data", label), tmp_path / "run", until="soft-targets")
    info = manifests["data"].summary["info"]
    assert info["class_names"] == ["another", "money"]
    assert info["counts"] == {"train": 300, "validation": 60, "test": 60, "transfer": 300, "labelled": 0}


@pytest.mark.slow
def test_a_student_learns_what_the_teacher_says(tmp_path: Path) -> None:
    pipeline.run(config_of(tmp_path / "data"), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["summary"]) == {"teacher", "ensemble", "distilled", "pseudo"}
    assert report["summary"]["teacher"]["accuracy"]["mean"] == 1.0
    assert report["summary"]["distilled"]["accuracy"]["mean"] > 0.85
    assert report["verdict"]["outcome"] == "not measured"
    assert (tmp_path / "run" / "report.html").exists()


def test_without_labels_to_judge_by_it_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        pipeline.run(config_of(tmp_path / "data", "label", judged=False), tmp_path / "run")
    assert "add these" in str(error.value) and "validation and test files" in str(error.value)


def test_teachers_to_be_trained_need_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train holds no label; a classifier needs at least two classes"):
        pipeline.run(
            config_of(tmp_path / "data", "label", teachers={"num_members": 2, "model": {"name": "bag"}}),
            tmp_path / "run",
        )


@pytest.mark.parametrize(
    ("changes", "path"),
    [({"sweep": {}}, "sweep"), ({"student": {"model": {"name": "bag"}, "alpha": 0}}, "student.alpha")],
)
def test_what_wants_labels_is_refused_before_ray_starts(
    tmp_path: Path, changes: dict[str, Any], path: str
) -> None:
    with pytest.raises(ConfigError) as error:
        pipeline.run(config_of(tmp_path / "data", **changes), tmp_path / "run")
    assert any(line.startswith(f"{path}: no train row has a label") for line in error.value.problems)


def test_copies_of_test_rows_leave_the_transfer_set(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = config_of(data)
    copied = pq.read_table(data / "test.parquet").select(["input"])
    train = pa.concat_tables([pq.read_table(data / "train.parquet"), copied])
    pq.write_table(train, data / "train.parquet")
    raw = config.model_dump()
    raw["data"]["duplicates"] = "drop"
    info = pipeline.run(validate(raw), tmp_path / "run", until="data")["data"].summary["info"]
    assert info["counts"]["transfer"] <= 300
    held = [pq.read_table(data / f"{split}.parquet")["input"] for split in ("validation", "test")]
    judging = {text for column in held for text in column.to_pylist()}
    kept = [text for text in train["input"].to_pylist() if text not in judging]
    assert info["counts"]["transfer"] == len(set(kept))


def test_a_phase_on_labels_alone_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path / "data")
    raw = config.model_dump()
    raw["student"]["phases"] = [{"name": "first", "alpha": 0.0}]
    with pytest.raises(ConfigError) as error:
        pipeline.run(validate(raw), tmp_path / "run")
    assert any(line.startswith("student.phases.0.alpha: no train row") for line in error.value.problems)
