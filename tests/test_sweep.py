"""The sweep as a stage: the winner becomes the student, no teacher is asked, failures stay where they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import Config, load_config
from ensemble_kd.errors import ConfigError, TrainingError
from ensemble_kd.stages.context import Console
from ensemble_kd.stages.trial_book import result_of

pytestmark = pytest.mark.slow

PASSES = Path(tempfile.gettempdir()) / f"ensemble-kd-passes-{os.getpid()}"
"""Where teachers note their forward passes."""
TINY = [
    "teachers.num_members=2",
    "teachers.training.epochs=4",
    f"teachers.model={{name: custom, callable: 'counted_teacher:make', options: {{path: '{PASSES}'}}}}",
    "student.training.epochs=4",
    "student.model.hidden=[8]",
    "student.seeds=1",
    "data.label_fraction=1",
    "data.shard_rows=500",
    "tracking.enabled=false",
    "specialists=null",
    "sweep.trials=4",
    "sweep.num_seeds=1",
    "sweep.scheduler=none",
    "sweep.fuse=1",
    "sweep.search=random",
    "soft_targets.num_actors=1",  # a second may start late, and try its teachers once when all is done
]


class Lines(Console):
    def __init__(self) -> None:
        self.said: list[str] = []
        super().__init__(line=self.said.append, warning=self.said.append)


def tiny(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


def run(folder: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], Lines]:
    lines = Lines()
    return pipeline.run(tiny(*overrides), folder, console=lines, **options), lines


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Path]:
    """A run up to its soft targets, by teachers that count their forward passes."""
    folder = tmp_path_factory.mktemp("sweeps") / "base"
    run(folder, until="soft-targets")
    yield folder
    PASSES.unlink()


def passes() -> int:
    """Forward passes of teachers so far, by any process."""
    return len(PASSES.read_text().splitlines())


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "tiny"))


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def test_the_winner_is_shipped_untrained_and_no_teacher_is_asked(copy: Path) -> None:
    before = passes()
    assert before > 0
    done, lines = run(copy, until="student")
    assert passes() == before, "a teacher ran during the sweep"
    summary = done["sweep"].summary
    trials = {trial["name"]: trial for trial in summary["trials"]}
    assert sorted(trials) == ["hard-000", *(f"trial-{i:03d}" for i in range(4))]
    assert all(trial["state"] == "finished" for trial in trials.values())
    best = max(
        (t for t in trials.values() if t["kind"] == "searched"),
        key=lambda t: (t["validation_accuracy"], -t["validation_loss"]),
    )
    assert summary["winner"] == best["name"] and summary["baseline"] == "hard-000"
    for path in ("temperature", "alpha"):
        assert summary["student"][path] == best["parameters"][path]
    # The shipped student's bytes are the trial's, and the stage after it trained no such student.
    student = done["student"].summary
    entry = next(e for e in student["members"] if e["name"] == student["shipped"])
    fingerprint = best["members"][0]["fingerprint"]
    assert entry["fingerprint"] == fingerprint
    trained = copy / "sweep" / "members" / fingerprint
    shipped = copy / "student" / "members" / fingerprint
    assert weights(trained) == weights(shipped)
    first, second = read_manifest(trained), read_manifest(shipped)
    assert first is not None and second is not None and first.created == second.created
    # Again: everything is kept; and the report has the sweep.
    _, lines = run(copy)
    assert [line for line in lines.said if line.startswith("sweep:")][0].endswith("(kept)")
    report = json.loads((copy / "report.json").read_text())
    assert report["sweep"]["winner"]["name"] == best["name"]
    assert report["temperature"] == best["parameters"]["temperature"]
    assert json.loads((copy / "model" / "config.json").read_text())["lineage"]["sweep"]


@pytest.mark.long
def test_a_grid_of_two_seeds_in_stacked_students_equals_single_ones(copy: Path) -> None:
    space = "sweep.space={temperature: [1, 4], alpha: [0.5, 1.0]}"
    grid = [space, "sweep.search=grid", "sweep.num_seeds=2"]
    done, _ = run(copy, *grid, until="sweep")
    single = {t["name"]: t for t in done["sweep"].summary["trials"]}
    assert len(single) == 5 and all(len(t["members"]) == 2 and t["fused"] == 1 for t in single.values())
    shutil.rmtree(copy / "sweep")
    done, _ = run(copy, *grid, "sweep.fuse=16", until="sweep")
    stacked = {t["name"]: t for t in done["sweep"].summary["trials"]}
    assert max(t["fused"] for t in stacked.values()) > 1
    for name, trial in single.items():
        assert stacked[name]["parameters"] == trial["parameters"]
        assert stacked[name]["validation_loss"] == pytest.approx(trial["validation_loss"], rel=2e-2)
        mean = sum(m["validation_loss"] for m in trial["members"]) / 2
        assert trial["validation_loss"] == pytest.approx(mean)


@pytest.mark.filterwarnings("ignore")  # MLflow warns about its own dependencies
def test_a_failed_trial_is_recorded_and_does_not_end_the_sweep(copy: Path) -> None:
    grid = ["sweep.search=grid", "sweep.space={training.learning_rate: [0.01, 0.001, 1.0e+30]}"]
    grid.append("student.training.learning_rate=1e-7")
    done, lines = run(copy, *grid, "tracking.enabled=true", until="sweep")
    trials = {t["name"]: t for t in done["sweep"].summary["trials"]}
    assert trials["trial-002"]["state"] == "failed" and "nan" in trials["trial-002"]["reason"].lower()
    assert trials["trial-002"]["value"] is None
    assert [t["state"] for t in trials.values()].count("finished") == len(trials) - 1
    assert any("trial-002 failed" in line for line in lines.said)
    # In MLflow: a child run for each trial, the winner's tagged, the failed one failed.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{copy.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ensemble-kd")
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(trials) <= set(found)
    won = [name for name in trials if found[name].data.tags.get("winner") == "True"]
    assert won == [done["sweep"].summary["winner"]]
    assert found["trial-002"].info.status == "FAILED" and found[won[0]].info.status == "FINISHED"
    assert found[won[0]].data.tags["mlflow.parentRunId"] == found["sweep"].info.run_id
    assert len(client.get_metric_history(found[won[0]].info.run_id, "validation_accuracy")) == 4
    # The winner's learning rate is not the configuration's: it got a baseline of its own, the better one.
    winner, baseline = (trials[done["sweep"].summary[key]] for key in ("winner", "baseline"))
    assert baseline["name"] == "hard-001" and baseline["parameters"] == winner["parameters"]
    assert baseline["value"] > trials["hard-000"]["value"]
    # A new session, whose MLflow starts anew, has all trials too.
    (copy.parent / "mlflow.db").unlink()
    for path in copy.glob("sweep/*/manifest.json"):
        path.unlink()
    again, lines = run(copy, *grid, "tracking.enabled=true", until="sweep")
    assert again["sweep"].summary["trials"] == done["sweep"].summary["trials"]
    client = MlflowClient(f"sqlite:///{copy.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ensemble-kd")
    found = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(trials) <= set(found) and found[won[0]].data.tags["winner"] == "True"


def test_too_many_failures_end_the_sweep_with_the_reason(copy: Path) -> None:
    """Also when it is run again: what was not finite would not be another time."""
    grid = ["sweep.search=grid", "sweep.space={training.learning_rate: [1.0e+27, 1.0e+28, 1.0e+29, 1.0e+30]}"]
    for _ in range(2):
        with pytest.raises(
            TrainingError, match="of .* trials failed, more than sweep.max_failed = 0.5 .*nan"
        ):
            run(copy, *grid, until="sweep")


def test_asha_stops_those_that_lag_but_no_baseline(copy: Path) -> None:
    space = "sweep.space={training.learning_rate: [0.003, 0.0031, 0.0032, 1.0e-7, 1.1e-7, 1.2e-7]}"
    options = ["sweep.search=grid", space, "sweep.scheduler=asha", "sweep.grace_epochs=1"]
    done, _ = run(copy, *options, "student.training.epochs=9", "sweep.concurrent_trials=1", until="sweep")
    trials = done["sweep"].summary["trials"]
    stopped = [t for t in trials if t["state"] == "stopped"]
    slow = {t["name"] for t in trials if t["parameters"].get("training.learning_rate", 1) < 1e-6}
    assert len(slow) == 3 and slow <= {t["name"] for t in stopped}
    assert all(t["epochs"] < 9 for t in stopped)
    assert all(t["state"] == "finished" and t["epochs"] == 9 for t in trials if t["kind"] == "hard")


def test_more_trials_at_a_time_than_fit_is_an_error_before_any_starts(copy: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep.concurrent_trials: 500, but the cluster has .* room for"):
        run(copy, "sweep.concurrent_trials=500", until="sweep")
    assert not list((copy / "sweep").glob("members/*"))


def processes(name: str) -> list[int]:
    """Numbers of the processes whose command line holds `name`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_students_of_several_workers_leave_no_placement_group_behind(copy: Path) -> None:
    """Actors in the trial's own placement group train them; some trials are stopped, a worker is killed."""
    import ray
    from ray.util import placement_group_table

    def kill_one() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if list(copy.glob("sweep/members/*/checkpoint.safetensors")) and (
                found := processes("ray::_Replica")
            ):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return
            time.sleep(0.05)

    killed: list[int] = []
    space = "sweep.space={training.learning_rate: [0.003, 0.0031, 1.0e-7, 1.1e-7]}"
    options = ["sweep.search=grid", space, "sweep.scheduler=asha", "sweep.grace_epochs=1"]
    options += ["student.training.epochs=9", "student.replicas_per_member=2"]
    thread = threading.Thread(target=kill_one)
    thread.start()
    done, _ = run(copy, *options, until="sweep")
    thread.join()
    assert killed
    states = [trial["state"] for trial in done["sweep"].summary["trials"]]
    assert "finished" in states and "stopped" in states and "failed" not in states
    left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert not left
    end = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, "CPUs are still held"
        time.sleep(0.1)


def test_zero_validation_rows_is_an_error_before_ray() -> None:
    counts = {"labelled": 100, "transfer": 100, "validation": 0}
    info = {"counts": counts, "num_classes": 10, "kind": "image", "input_shape": [8, 8, 1]}
    with pytest.raises(ConfigError, match="judged on validation rows, and there are none"):
        pipeline.check_sizes(tiny(), info)


@pytest.mark.long
def test_refit_trains_the_winner_with_the_validation_rows_too(copy: Path) -> None:
    options = ["sweep.search=grid", "sweep.space={temperature: [2, 4]}", "student.training.early_stopping=3"]
    done, _ = run(copy, *options, "sweep.refit=train+validation")
    student = done["student"].summary
    assert student["shipped"] == "refit-seed-0"
    entry = next(e for e in student["members"] if e["name"] == "refit-seed-0")
    manifest = read_manifest(copy / "student" / "members" / entry["fingerprint"])
    assert manifest is not None
    counts = done["data"].summary["info"]["counts"]
    assert manifest.config["examples_per_epoch"] == counts["transfer"] + counts["validation"]
    assert manifest.config["training"]["early_stopping"] is None
    distilled = next(e for e in student["members"] if e["name"] == "distilled-seed-0")
    assert manifest.config["training"]["epochs"] == distilled["best_epoch"]
    report = json.loads((copy / "report.json").read_text())
    assert report["summary"]["refit"]["n"] == 1 and report["shipped"] == "refit-seed-0"
    shipped = json.loads((copy / "model" / "config.json").read_text())["lineage"]["member"]
    assert shipped == entry["fingerprint"]
    # Without it, the sweep is kept, and so are its students.
    done, lines = run(copy, *options)
    assert [line for line in lines.said if line.startswith("sweep:")][0].endswith("(kept)")
    assert done["student"].summary["shipped"] == "distilled-seed-0"


@pytest.mark.long
def test_teachers_weights_in_the_space_count(copy: Path) -> None:
    space = "sweep.space={weights: [[1, 0], [0, 1]]}"
    done, _ = run(copy, "sweep.search=grid", space, until="sweep")
    trials = done["sweep"].summary["trials"]
    assert len({trial["members"][0]["fingerprint"] for trial in trials}) == 3
    weights = [
        manifest.config["weights"]
        for trial in trials
        if trial["kind"] == "searched"
        and (manifest := read_manifest(copy / "sweep" / "members" / trial["members"][0]["fingerprint"]))
    ]
    assert weights == [[1, 0], [0, 1]]


def test_a_sweep_goes_on_when_more_trials_are_asked_for(copy: Path) -> None:
    before, _ = run(copy, "sweep.trials=2", until="sweep")
    first = {t["name"]: t for t in before["sweep"].summary["trials"]}
    done, lines = run(copy, "sweep.trials=3", until="sweep")
    # The report is written again, though the sweep's own fingerprint is the same.
    assert done["sweep"].fingerprint == before["sweep"].fingerprint
    assert result_of(done["sweep"]) != result_of(before["sweep"])
    more = {t["name"]: t for t in done["sweep"].summary["trials"]}
    assert set(more) - set(first) == {"trial-002"}
    for name, trial in first.items():
        assert (more[name]["parameters"], more[name]["ended"]) == (trial["parameters"], trial["ended"])
    done, lines = run(copy, "sweep.trials=2", until="sweep")
    assert [line for line in lines.said if line.startswith("sweep:")][0].endswith("(kept)")
    # A space with fewer points than trials ends when all are tried.
    space = "sweep.space={temperature: [2, 4]}"
    done, lines = run(copy, "sweep.trials=10", space, until="sweep")
    assert len(done["sweep"].summary["trials"]) == 3
    assert any("holds nothing new after 2 trials of 10" in line for line in lines.said)
    _, lines = run(copy, "sweep.trials=10", space, until="sweep")
    assert [line for line in lines.said if line.startswith("sweep:")][0].endswith("(kept)")
