"""The stage `gap`, its members trained in this process: what it finds, and what the student stage takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ensemble_kd import pipeline
from ensemble_kd.config import Config, load_config
from ensemble_kd.errors import NoGapError
from ensemble_kd.stages import gap, student_tasks
from ensemble_kd.stages.base import Artifact, Done
from ensemble_kd.stages.context import Console
from ensemble_kd.stages.members import members_folder
from ensemble_kd.stages.start import Sources, basis_of
from ensemble_kd.tracking import Tracker
from ensemble_kd.train.member import train_member
from ensemble_kd.train.task import MemberTask, finished

TINY = [
    "data.label_fraction=0.3",
    "teachers.num_members=2",
    "teachers.training={epochs: 12, batch_size: 64, learning_rate: 3.0e-3}",
    "student.training={epochs: 2, batch_size: 64, learning_rate: 3.0e-3}",
    "student.seeds=2",
    "student.model={name: mlp, hidden: [4]}",
    "tracking.enabled=false",
    "specialists=null",
    "sweep=null",
]
Walk = Callable[..., tuple[Done, list[str], list[str]]]


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    """(overrides) -> what the stages up to `gap` found, who was trained, and what was warned of."""

    def here(runtime: Any, tasks: list[MemberTask], members: Path, load: Any, arrays: Any, **_: Any) -> None:
        data = load(arrays())
        for task in tasks:
            if finished(task, members) is None:
                names.append(task.name)
                train_member(task, data, members)

    names: list[str] = []
    monkeypatch.setattr("ensemble_kd.stages.members.train_members", here)

    def walked(*overrides: str) -> tuple[Done, list[str], list[str]]:
        names.clear()
        config, warned = load_config("digits", [*TINY, *overrides]), list[str]()
        tracker = Tracker(config.tracking, tmp_path, config.name, warned.append, tmp_path)
        console = Console(warning=warned.append)
        parts = {"config": config, "folder": tmp_path, "console": console, "tracker": tracker}
        context: Any = SimpleNamespace(runtime=None, **parts)
        done = Done()
        for stage in map(pipeline.stage, ("data", "teachers", "gap")):
            plan = stage.plan(context.config, tmp_path, done)
            manifest = plan.done() or stage.run(context, plan, done)
            done.add(Artifact(stage.name, plan, manifest))
            context.config = stage.rewrite(context.config, done[stage.name])
        return done, list(names), warned

    return walked


def config_of(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


@pytest.mark.slow
def test_an_ensemble_that_knows_more(walk: Walk, tmp_path: Path) -> None:
    done, trained, warned = walk()
    found = done["gap"].summary
    assert found["outcome"] == "helped" and found["ensemble"] > max(found["hard"]) and not warned
    assert found["difference"]["over"].startswith("2 seeds,") and found["causes"] == []
    assert "validation rows" in found["text"] and len(found["hard"]) == 2
    gap.require(found)
    assert trained == ["teacher-000", "teacher-001", "hard-seed-0", "hard-seed-1"]

    # The student stage, with the store that comes later, plans the same members.
    config = config_of()
    basis = basis_of(config, tmp_path, done["data"].folder, done["teachers"].manifest)
    planned = student_tasks.tasks(
        config, Sources(done["data"].fingerprint, "a store", done.info["counts"], basis)
    )
    folder = members_folder(tmp_path, "student")
    assert {task.role for task in planned if finished(task, folder)} == {"hard"}
    assert sum(finished(task, folder) is not None for task in planned) == 2

    # What hard labels do not read changes nothing; what they read does.
    settings = {"data": done["data"], "teachers": done["teachers"]}
    again = Done()
    for artifact in settings.values():
        again.add(artifact)
    stage, own = pipeline.stage("gap"), done["gap"].fingerprint
    for override in ("student.temperature=3", "student.alpha=0.3", "student.objective=mse"):
        assert stage.plan(config_of(override), tmp_path, again).fingerprint == own
    for override in ("student.training.epochs=3", "student.seeds=3", "student.mean=geometric"):
        assert stage.plan(config_of(override), tmp_path, again).fingerprint != own


@pytest.mark.slow
def test_an_ensemble_that_knows_less_is_told_with_causes(walk: Walk) -> None:
    weak = [
        "teachers.model={name: mlp, hidden: [4]}",
        "teachers.training={epochs: 1, batch_size: 64}",
        "student.training.epochs=20",
        "sweep={}",
    ]
    done, trained, warned = walk(*weak)
    found = done["gap"].summary
    assert found["outcome"] == "hurt" and trained[2:] == ["hard-seed-0"]  # a sweep may choose another student
    assert {"undertrained", "same_kind"} <= {cause["name"] for cause in found["causes"]}
    told = warned[-1]  # before it, of teachers that hardly learned anything
    assert told.startswith("gap: there is nothing to give: the ensemble has") and "Likely causes: " in told
    assert "optimiser steps, the student" in told and "the student's own network" in told
    assert "the sweep may choose another" in found["settings"]
    assert done["gap"].summary["warnings"] == [told]  # told again where the stage is kept
    with pytest.raises(NoGapError, match="--require-gap: stopped before the soft targets: there is nothing"):
        gap.require(found)


@pytest.mark.slow
def test_of_labels_that_are_wrong(walk: Walk, tmp_path: Path) -> None:
    """Classes by a rule that a network learns; a tenth of the labels is another class."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    x = generator.normal(size=(1200, 4))
    label = (x[:, 0] > 0).astype(int)
    label = np.where(generator.random(1200) < 0.1, 1 - label, label)
    columns = {**{f"x{i}": x[:, i] for i in range(4)}, "label": label}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    data = f"data={{source: files, kind: numeric, path: {path}, columns: {{input: [x0, x1, x2, x3]}}}}"
    done, _, warned = walk(
        data,
        "data.label_fraction=1",
        "data.augment={}",
        "teachers.model={name: mlp, hidden: [64]}",
        "student.model.hidden=[32]",
        "student.training.epochs=12",
    )
    found = {cause["name"]: cause["found"] for cause in done["gap"].summary["causes"]}
    assert "labels look wrong" in found["label_noise"] and warned


@pytest.mark.slow
def test_epochs_auto_from_end_to_end(walk: Walk) -> None:
    auto = "{epochs: auto, min_steps: 40, batch_size: 64, learning_rate: 3.0e-3}"
    done, _, _ = walk(f"teachers.training={auto}", f"student.training={auto}")
    counts = done.info["counts"]
    teacher = done["teachers"].summary["members"][0]
    assert teacher["epochs"] <= -(-40 // (counts["labelled"] // 64)) and teacher["best_epoch"] >= 1
    assert done["gap"].plan.config["training"]["epochs"] == -(-40 // (counts["transfer"] // 64))
