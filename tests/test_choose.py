"""The stage `choose`: what `auto` tries, what it refuses, and what becomes of the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd import pipeline
from ensemble_kd.artifacts import Manifest, read_manifest
from ensemble_kd.config import Config, Point, load_config, points, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages import choose, student_tasks, sweep
from ensemble_kd.stages.base import Artifact, DataFound
from ensemble_kd.stages.context import Console, StagePlan
from ensemble_kd.stages.stacking import stackable, stacks_of
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.train.stackable import random_inputs
from ensemble_kd.train.task import MemberTask

DIGITS: dict[str, Any] = {"name": "auto", "data": {"source": "digits", "kind": "image"}}
ALL = {"temperature": "auto", "alpha": "auto", "pseudo": "auto"}
COUNTS = {"transfer": 1000, "labelled": 100, "validation": 200, "test": 20}
IMAGES = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 10, "mean": [0.5], "std": [0.5]}
INFO: dict[str, Any] = {**IMAGES, "class_names": list("0123456789"), "vocabulary_size": 0, "counts": COUNTS}


def config_of(student: dict[str, Any] | None = None, **blocks: Any) -> Config:
    return validate({**DIGITS, "student": {**ALL, **(student or {})}, **blocks})


# ---------------------------------------------------------------------------------------- what is tried


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize("few", [True, False])
def test_grids_are_small_and_hold_what_stands_beside_soft_targets(unlabelled: bool, few: bool) -> None:
    found = points(config_of().student, unlabelled, few, softened=True)
    assert len(found) == len(set(found)) <= (6 if few else 12)
    assert found[0] == (Point(1, 0.5, 0.5) if unlabelled else Point(2, 1, 0))
    assert (Point(1, 0, 1) in found) == unlabelled  # pseudo-labels alone
    assert (Point(1, 0, 0) in found) == (not unlabelled)  # labels alone
    assert all(point.pseudo == 0 for point in found if not unlabelled)


def test_with_rows_that_are_made_up_t_1_stands_and_alpha_is_not_tried() -> None:
    for few in (True, False):
        found = points(config_of().student, False, few, True, made_up=True)
        assert found[0] == Point(1, 1, 0) and found[-1] == Point(1, 0, 0)
        assert {point.alpha for point in found[:-1]} == {1.0}
        unlabelled = points(config_of().student, True, few, True, made_up=True)
        assert unlabelled == points(config_of().student, True, few, True)


def test_numbers_that_are_given_stay_and_what_makes_no_difference_is_tried_once() -> None:
    given = config_of({"alpha": 0.7, "pseudo": 0.2}).student
    assert points(given, True, False, True) == [Point(t, 0.7, 0.2) for t in (1, 0.5, 2, 4, 8)]
    assert points(given, False, True, True) == [Point(t, 0.7, 0) for t in (2, 1, 4, 8)]
    assert len(points(given, True, False, softened=False)) == 1
    alphas = [point.alpha for point in points(config_of().student, False, False, softened=False)]
    assert alphas == [1, 0.5, 0]
    # Of rows without labels nothing would be learned.
    assert Point(1, 0, 0) not in points(config_of({"pseudo": 0}).student, True, False, True)
    assert str(Point(1, 0, 1)) == "pseudo-labels alone" and str(Point(1, 0, 0)) == "hard labels alone"


def task(**settings: Any) -> tuple[MemberTask, Config]:
    config = config_of({**dict.fromkeys(ALL, 0.5), **settings})
    return student_tasks.task(config, "distilled", 0, Sources("d", "s", COUNTS, Basis.alone(config))), config


def test_values_have_no_temperature_to_tell() -> None:
    told = choose._only(Point(4, 1, 0), {**INFO, "target": {"mean": 0.0, "std": 1.0}})["text"]
    assert told.startswith("alpha = 1, the only choice") and "T = " not in told
    assert choose._only(Point(4, 1, 0), INFO)["text"].startswith("T = 4, alpha = 1, the only choice")


def test_small_students_are_stacked_and_others_trained_one_by_one() -> None:
    assert stackable(*task(), INFO)
    assert not stackable(*task(model={"name": "mlp", "hidden": [800, 800]}), INFO)
    assert not stackable(*task(replicas_per_member=2), INFO)
    assert random_inputs(INFO).shape == (4, 8, 8, 1)


def test_an_assistant_is_stacked_by_its_own_network() -> None:
    """Its batch norm cannot be stacked, whatever the student is; nor is a large one small for its sake."""
    small, large = {"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [800, 800]}
    for model, alone in ((small, False), (large, True), ({"name": "resnet", "width": 4}, True)):
        config = config_of({**dict.fromkeys(ALL, 0.5), "pseudo": 0, "seeds": 2, "assistants": [model]})
        basis = Basis.alone(config)
        tasks = student_tasks.tasks(config, Sources("d", "s", {**COUNTS, "labelled": 1000}, basis))
        stacked = {group[0].role for group in stacks_of(tasks, config, INFO)}
        assert "hard" in stacked and ("assistant-1" not in stacked) == alone


@pytest.mark.parametrize("epochs", [1, 2, 4, 60])
@pytest.mark.parametrize("share", [1 / 3, 0.3, 0.6])
def test_a_short_schedule_has_that_share_of_the_steps(epochs: int, share: float) -> None:
    one, _ = task(training={"epochs": epochs, "batch_size": 16})
    short = choose.shortened(one, share)
    steps = short.training["epochs"] * short.examples_per_epoch
    assert steps == pytest.approx(share * epochs * COUNTS["transfer"], rel=0.02)
    assert short.examples_per_epoch <= one.examples_per_epoch and short.fingerprint != one.fingerprint


# ---------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"student": {"temperature": "atuo"}}, "student.temperature: .*did you mean 'auto'"),
        ({"sweep": {"space": {"temperature": ["auto", 1]}}}, "sweep.space.temperature: searches numbers"),
        (
            {"student": {"alpha": "auto", "objective": None, "terms": [{"name": "hidden_mse"}]}},
            "student.alpha: 'auto' is about the soft loss",
        ),
        ({"student": {"pseudo": "auto", "online": {"logits": True}}}, "student.pseudo: 'auto' reads answers"),
    ],
)
def test_what_cannot_be_chosen_is_told(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate({**DIGITS, **settings})


def test_without_validation_rows_there_is_nothing_to_choose_by() -> None:
    found = DataFound({**INFO, "counts": {**COUNTS, "validation": 0}})
    assert len(choose.STAGE.problems(config_of(), found)) == 3
    assert choose.STAGE.problems(config_of(), DataFound(INFO)) == []


def test_a_run_without_auto_cannot_stop_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="student.temperature: .*--set student.temperature=auto"):
        pipeline.run(load_config("digits"), tmp_path, until="choose")


# ------------------------------------------------------------------------------- beside a sweep, and after


def test_what_a_sweep_searches_is_not_chosen_again() -> None:
    config = config_of(sweep={"space": {"temperature": [1, 2], "student.alpha": [0.5, 1]}})
    assert config.choosing == ("pseudo",) and "choose" in config.stages
    everything = config_of(sweep={"space": {"temperature": [1, 2], "alpha": [1], "pseudo": [0, 1]}})
    assert everything.choosing is None and "choose" not in everything.stages
    # The winner's numbers stand; what it had no number for is still to be chosen.
    searched = {**config.student.model_dump(mode="json"), "temperature": 2, "alpha": 0.5, "pseudo": 0}
    won = sweep.with_winner(config, Manifest("sweep", "f", {}, {}, {}, {"student": searched}, 0.0))
    assert (won.student.temperature, won.student.alpha, won.student.pseudo) == (2, 0.5, "auto")


def test_the_choice_becomes_the_configuration(tmp_path: Path) -> None:
    config = config_of({"alpha": 0.7})
    summary = {"chosen": {"temperature": 4, "alpha": 0.7, "pseudo": 1}, "fields": ["temperature", "pseudo"]}
    made = Manifest("choose", "f", {}, {}, {}, summary, 0.0)
    after = choose.STAGE.rewrite(config, Artifact("choose", StagePlan.of(tmp_path, "choose", {}, {}), made))
    assert after.student.numbers == (4, 0.7, 1) and after.choosing is None
    assert config.student.numbers == (1, 0.7, 0), "what stands for them before"
    plans = [choose.plan(replace_seeds(config, n), tmp_path, "d", "s").fingerprint for n in (1, 3, 9)]
    assert plans[0] != plans[1] == plans[2]  # more seeds than are tried change nothing


def replace_seeds(config: Config, seeds: int) -> Config:
    return config.model_copy(update={"student": config.student.model_copy(update={"seeds": seeds})})


TINY = [
    "sweep=null",
    "specialists=null",
    "data.label_fraction=0.3",
    "teachers={num_members: 2, model: {name: mlp, hidden: [32]}, training: {epochs: 8}}",
    "student={model: {name: mlp, hidden: [16]}, training: {epochs: 4}, seeds: 2, temperature: auto, "
    "alpha: auto, pseudo: auto}",
    "compute.executor=local",
    "tracking.enabled=false",
]


@pytest.mark.slow
def test_a_stack_is_tried_and_the_choice_is_the_students(tmp_path: Path) -> None:
    config, said = load_config("digits", TINY), list[str]()
    manifests = pipeline.run(config, tmp_path / "run", console=Console(line=said.append))
    summary = manifests["choose"].summary
    assert summary["stacked"] and summary["seeds"] == 2 and summary["steps"] == 1
    counts = manifests["data"].summary["info"]["counts"]
    assert len(summary["candidates"]) == 10 and summary["rows"] == counts["validation"]
    chosen = summary["candidates"][summary["choice"]]
    assert chosen["accuracy_gain"] == chosen["likelihood_gain"] == 0
    # The student stage took over what was tried, pseudo-labels alone among it: that is its own baseline.
    entries = manifests["student"].summary["members"]
    taken = {path.parent.name for path in (tmp_path / "run/choose/members").glob("*/manifest.json")}
    roles = {entry["role"] for entry in entries if entry["fingerprint"] in taken}
    assert roles == {"distilled", "pseudo"}
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["choose"]["text"] == summary["text"] and report["choose"]["cost"] > 0
    assert report["temperature"] == summary["chosen"]["temperature"]
    assert report["lineage"]["choose"] == manifests["choose"].fingerprint
    assert "Chosen on validation rows" in (tmp_path / "run" / "report.html").read_text()
    said.clear()
    pipeline.run(config, tmp_path / "run", console=Console(line=said.append))
    assert sum("(kept)" in line for line in said) == len(config.stages)
    # Without its result, but with its members, it comes to the same choice at once.
    before = read_manifest(tmp_path / "run" / "choose" / manifests["choose"].fingerprint)
    assert before is not None
    (tmp_path / "run" / "choose" / before.fingerprint / "manifest.json").unlink()
    again = pipeline.run(config, tmp_path / "run", until="choose")["choose"]
    drop = {"seconds": 0}
    assert again.summary | drop == before.summary | drop
    states = [line.state[:4] for line in pipeline.check(config, tmp_path / "run")]
    assert set(states[:-1]) == {"done"}
