"""Chains of students: what each link learns from, what a longer one takes over, going on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_local import outcome

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest, write_json
from ensemble_kd.config import Config, load_config, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.member_loop import after
from ensemble_kd.stages.chain import link_problems
from ensemble_kd.stages.members import _failed as failed
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.stages.student_tasks import tasks
from ensemble_kd.train.finishing import FAILED, load_logits
from ensemble_kd.train.rows import pick_rows
from ensemble_kd.train.task import MemberTask

COUNTS = {"transfer": 100, "labelled": 50, "validation": 10, "test": 10, "train": 100}
DIGITS = {"source": "digits", "kind": "image"}
SMALL = {"name": "mlp", "hidden": [8]}
ASSISTANTS = [{"name": "mlp", "hidden": [32]}, {"name": "mlp", "hidden": [16]}]
TINY = [
    "compute.executor=local",
    "tracking.enabled=false",
    "specialists=null",
    "sweep=null",
    "teachers.num_members=2",
    "teachers.training.epochs=2",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=3",
    "student.model.hidden=[8]",
    "student.seeds=2",
    "student.assistants=[{name: mlp, hidden: [12]}]",
    "student.generations=3",
]


def config_of(**student: Any) -> Config:
    return validate({"name": "t", "data": DIGITS, "student": {"model": SMALL, **student}})


def planned(**student: Any) -> dict[str, MemberTask]:
    config = config_of(**student)
    found = tasks(config, Sources("data", "store", COUNTS, Basis.alone(config)))
    assert len({task.name for task in found}) == len(found)
    return {task.name: task for task in found}


def teacher_of(task: MemberTask) -> str | None:
    return None if task.online is None else task.online["teachers"][0]["member"]


# --------------------------------------------------------------------------------------------------- links


def test_each_generation_learns_from_the_one_before_and_starts_anew() -> None:
    one, three = planned(), planned(generations=3)
    links = [three[name] for name in ("generation-1-seed-0", "generation-2-seed-0", "distilled-seed-0")]
    assert links[0].fingerprint == one["distilled-seed-0"].fingerprint
    assert [teacher_of(link) for link in links] == [None, links[0].fingerprint, links[1].fingerprint]
    assert len({link.seed for link in links}) == 3
    assert links[0].inputs == {"data": "data", "soft_targets": "store"} and links[2].inputs == {
        "data": "data"
    }
    assert not links[1].reads_teacher
    others = set(one) - {"distilled-seed-0"}
    assert others and all(one[name].fingerprint == three[name].fingerprint for name in others)


def test_a_longer_chain_takes_over_the_links_of_a_shorter_one() -> None:
    two, four = planned(generations=2, seeds=2), planned(generations=4, seeds=2)
    for seed in (0, 1):
        known = two[f"distilled-seed-{seed}"].fingerprint
        assert four[f"generation-2-seed-{seed}"].fingerprint == known
    assert len({task.fingerprint for task in four.values()}) == len(four)


def test_a_setting_of_the_first_link_changes_all_that_follow() -> None:
    for other in ({"temperature": 2.0}, {"model": {"name": "mlp", "hidden": [9]}}):
        a, b = planned(generations=3), planned(generations=3, **other)
        for name in ("generation-1-seed-0", "generation-2-seed-0", "distilled-seed-0"):
            assert a[name].fingerprint != b[name].fingerprint


def test_assistants_stand_between_the_ensemble_and_the_student() -> None:
    found, alone = planned(assistants=ASSISTANTS, generations=2), planned()
    names = ["assistant-1", "assistant-2", "generation-1", "distilled"]
    links = [found[f"{name}-seed-0"] for name in names]
    assert [teacher_of(link) for link in links] == [None, *(link.fingerprint for link in links[:3])]
    assert [link.model["hidden"] for link in links] == [[32], [16], [8], [8]]
    assert links[0].inputs["soft_targets"] == "store"
    assert found["direct-seed-0"].fingerprint == alone["distilled-seed-0"].fingerprint
    assert found["hard-seed-0"].fingerprint == alone["hard-seed-0"].fingerprint


def test_all_links_of_a_seed_see_the_same_part_of_the_rows() -> None:
    found = planned(assistants=ASSISTANTS, generations=2, fraction=0.3, seeds=2)
    labels = torch.zeros(100, dtype=torch.int64)
    rows = {name: set(pick_rows(task, labels).tolist()) for name, task in found.items()}
    links = ("assistant-1", "assistant-2", "generation-1", "distilled", "direct")
    for seed in (0, 1):
        assert len({frozenset(rows[f"{name}-seed-{seed}"]) for name in links}) == 1
    assert rows["distilled-seed-0"] != rows["distilled-seed-1"]


def test_a_link_waits_for_the_one_before() -> None:
    found = list(planned(assistants=ASSISTANTS, generations=2).values())
    names = [task.name for task in found]
    before = {names[i]: names[k] for i, k in after(found).items()}
    assert before == {
        "assistant-2-seed-0": "assistant-1-seed-0",
        "generation-1-seed-0": "assistant-2-seed-0",
        "distilled-seed-0": "generation-1-seed-0",
    }


# ---------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (
            {"pseudo": 0.5},
            "student.pseudo: 0.5 weighs the ensemble's answers, and in a chain a student learns",
        ),
        ({"pseudo": "auto"}, "student.pseudo: 'auto' weighs the ensemble's answers"),
        ({"alpha": 0}, "student.alpha: 0 learns from labels alone, and a chain hands soft targets on"),
        ({"objective": None}, "student.objective: null, but a chain hands soft targets on; name one"),
        (
            {"assistants": [{"name": "bag"}]},
            "student.assistants.0.name: 'bag' does not take image inputs; use cnn or mlp or resnet or",
        ),
        ({"assistants": [{"name": "trees"}]}, "student.assistants.0.name: 'trees' is for teachers"),
        (
            {"assistants": ASSISTANTS, "phases": [{"name": "first", "objective": "kl"}]},
            "student.phases: are the student's own, and what its assistants learn before is not known",
        ),
        ({"generations": 11}, "student.generations: input should be less than or equal to 10"),
        ({"assistants": [SMALL] * 6}, "student.assistants: "),
    ],
)
def test_what_does_not_go_with_a_chain(student: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(**{"generations": 2, **student})
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


def test_a_transformer_among_the_assistants_says_what_it_starts_from(tmp_path: Path) -> None:
    texts = {"path": str(tmp_path), "kind": "text", "text": {"tokenizer": "pretrained", "source": "s"}}
    assistant = {"name": "transformer", "weights": "teacher", "vocabulary": "used"}
    student = {"model": {"name": "bag"}, "assistants": [assistant]}
    with pytest.raises(ConfigError) as caught:
        validate({"name": "t", "data": texts, "student": student})
    found = [line for line in caught.value.problems if line.startswith("student.assistants.0")]
    assert [line.split(":")[0] for line in found] == [
        "student.assistants.0.vocabulary",
        "student.assistants.0.weights",
    ]


@pytest.mark.parametrize("path", ["generations", "assistants", "assistants.0.hidden"])
def test_no_sweep_searches_a_chain(path: str) -> None:
    student = {"model": SMALL, "assistants": [SMALL]}
    raw = {"name": "t", "data": DIGITS, "student": student, "sweep": {"space": {path: "choice(1, 2)"}}}
    with pytest.raises(ConfigError, match="trials learn from the ensemble itself"):
        validate(raw)


def test_links_whose_maps_cannot_be_paired_are_named_before_anything_trains() -> None:
    info = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 10, "mean": [0.5], "std": [0.2]}
    resnet = {"name": "resnet", "width": 4}
    raw = {
        "name": "t",
        "data": DIGITS,
        "teachers": {"model": resnet},
        "student": {
            "model": resnet,
            "terms": [{"name": "attention_transfer"}],
            "assistants": [{"name": "mlp", "hidden": [8]}],
        },
    }
    problems = link_problems(validate(raw), info)
    starts = [line.split(": ")[:2] for line in problems]
    assert ["student.assistants.0", "does not learn from teachers.model"] in starts
    raw["student"] = {**raw["student"], "assistants": [resnet], "generations": 2}  # type: ignore[dict-item]
    assert link_problems(validate(raw), info) == []


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.mark.slow
def test_a_run_of_assistants_and_generations_and_what_it_reports(tmp_path: Path) -> None:
    config = load_config("digits", TINY)
    pipeline.run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["shipped"].startswith("distilled-seed-")
    roles = {"assistant-1", "generation-1", "generation-2", "generations", "distilled", "direct", "hard"}
    assert roles < set(report["summary"])
    assert all(report["summary"][role]["n"] == 2 for role in roles)
    assert "chain" in report["verdict"]["text"] and "2 seeds" in report["difference_by_chain"]["over"]
    page = (tmp_path / "run/report.html").read_text()
    assert "Ensemble of the generations" in page and "assistant-1-seed-0" in page

    # The ensemble of the generations, by hand.
    members = tmp_path / "run/student/members"
    manifests = [read_manifest(folder) for folder in members.iterdir() if (folder / "manifest.json").exists()]
    summary = [
        m for p in (tmp_path / "run/student").glob("*/manifest.json") if (m := read_manifest(p.parent))
    ]
    entries = {entry["name"]: entry for entry in summary[0].summary["members"]}
    assert len(entries) == len(manifests) == 14
    labels = _test_labels(tmp_path / "run")
    names = [f"{role}-seed-1" for role in ("generation-1", "generation-2", "distilled")]
    found = []
    for name in names:
        logits = load_logits(members / entries[name]["fingerprint"], "test").double()
        found.append(torch.softmax(logits, 1))
    right = float((torch.stack(found).mean(0).argmax(1).numpy() == labels).mean())
    row = next(each for each in report["systems"] if each["name"] == "generations-seed-1")
    assert row["accuracy"] == pytest.approx(right, abs=1e-9)
    assert row["parameters"] == 3 * entries[names[0]]["parameters"]

    # A longer chain keeps what there is.
    before = {folder.name for folder in members.iterdir()}
    pipeline.run(load_config("digits", [*TINY, "student.generations=4"]), tmp_path / "run")
    assert len({folder.name for folder in members.iterdir()} - before) == 2


def _test_labels(run: Path) -> np.ndarray:
    from ensemble_kd.data.records import load_split

    (folder,) = (path.parent for path in (run / "data").glob("*/manifest.json"))
    return load_split(folder, "test").labels


KILLED = """
import os, signal, sys
from pathlib import Path
from ensemble_kd import member_loop, pipeline
from ensemble_kd.config import load_config

original, (folder, name, epochs), overrides = member_loop.train_member, sys.argv[1:4], sys.argv[4:]

def train_member(task, *arguments, on_epoch, **options):
    def counted(entry):
        on_epoch(entry)
        if task.name == name and entry["epoch"] >= int(epochs):
            os.kill(os.getpid(), signal.SIGKILL)
    if task.name == name and int(epochs) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(task, *arguments, on_epoch=counted, **options)

member_loop.train_member = train_member
pipeline.run(load_config("digits", overrides), Path(folder))
"""


@pytest.mark.slow
def test_a_chain_that_is_killed_between_links_and_within_one_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    config = load_config("digits", TINY)
    pipeline.run(config, tmp_path / "whole")
    killed = tmp_path / "killed"
    for name, epochs in (("generation-2-seed-0", 0), ("distilled-seed-0", 2)):
        command = [sys.executable, "-c", KILLED, str(killed), name, str(epochs), *TINY]
        assert subprocess.run(command, timeout=300, check=False).returncode == -signal.SIGKILL
    done = {p.parent: p.stat().st_mtime_ns for p in killed.glob("student/members/*/manifest.json")}
    assert len(done) >= 4
    pipeline.run(config, killed)
    assert all((folder / "manifest.json").stat().st_mtime_ns == when for folder, when in done.items())
    assert outcome(killed) == outcome(tmp_path / "whole")


def test_links_behind_one_that_diverged_are_lost_with_it(tmp_path: Path) -> None:
    found = list(planned(generations=3).values())
    first = next(task for task in found if task.name == "generation-1-seed-0")
    write_json(first.folder(tmp_path) / FAILED, {"name": first.name, "reason": "NaN"})
    lost = {task.name for task in found if failed(task, found, tmp_path)}
    assert lost == {"generation-1-seed-0", "generation-2-seed-0", "distilled-seed-0"}
