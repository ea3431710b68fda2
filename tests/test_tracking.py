"""MLflow as it is: SQLite in a folder, a server that is not there, and tracking turned off."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd.config import TrackingConfig
from ensemble_kd.tracking import Tracker, flatten

pytestmark = pytest.mark.filterwarnings("ignore")


def tracked(folder: Path, **settings: Any) -> tuple[Tracker, list[str]]:
    warnings: list[str] = []
    return Tracker(TrackingConfig(**settings), folder, "digits", warnings.append), warnings


def runs(tracker: Tracker) -> dict[str, Any]:
    """All runs of the experiment by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracker.uri)
    experiment = client.get_experiment_by_name(tracker.config.experiment)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def a_run(tracker: Tracker, folder: Path) -> None:
    """What a pipeline sends, in short."""
    tracker.start("", {"student": {"temperature": 4.0}, "seed": 3}, {"version": "1"})
    tracker.start("student", {"alpha": 0.9}, {"fingerprint": "abc", "input.data": "0123"})
    tracker.start("student/distilled-seed-0", {"model": {"hidden": [8]}}, {"role": "distilled"})
    for epoch in (1, 2):
        entry = {"epoch": epoch, "train_loss": 1.0 / epoch, "note": "no number", "good": True}
        tracker.metrics("student/distilled-seed-0", entry, epoch)
    tracker.history("student", [{"epoch": e, "loss": float(e)} for e in range(1, 1501)])
    tracker.tags("student/distilled-seed-0", {"lineage.data": "0123", "lineage.teachers.teacher-000": "4567"})
    (folder / "report.json").write_text(json.dumps({"verdict": "yes"}))
    tracker.file("", folder / "report.json")
    tracker.end("student/distilled-seed-0")
    tracker.end("student", good=False)
    tracker.end("")


@pytest.mark.slow
def test_runs_parameters_metrics_and_lineage(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker, warnings = tracked(tmp_path)
    assert tracker.uri == f"sqlite:///{tmp_path}/mlflow.db"
    a_run(tracker, tmp_path)
    tracker.close()
    assert warnings == []
    found = runs(tracker)
    assert set(found) == {"digits", "student", "distilled-seed-0"}
    parent, stage, member = found["digits"], found["student"], found["distilled-seed-0"]
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert member.data.tags["mlflow.parentRunId"] == stage.info.run_id
    assert parent.data.params == {"student.temperature": "4.0", "seed": "3"}
    assert stage.data.tags["fingerprint"] == "abc" and stage.data.tags["input.data"] == "0123"
    assert member.data.tags["lineage.data"] == "0123" and member.data.params == {"model.hidden": "[8]"}
    assert member.data.tags["lineage.teachers.teacher-000"] == "4567"
    assert member.data.metrics == {"epoch": 2.0, "train_loss": 0.5}
    assert [r.info.status for r in (parent, stage, member)] == ["FINISHED", "FAILED", "FINISHED"]
    client = MlflowClient(tracking_uri=tracker.uri)
    curve = client.get_metric_history(member.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in curve] == [(1, 1.0), (2, 0.5)]
    assert len(client.get_metric_history(stage.info.run_id, "loss")) == 1500
    assert [f.path for f in client.list_artifacts(parent.info.run_id)] == ["report.json"]
    # A second session files its runs under the same experiment.
    again, warnings = tracked(tmp_path)
    again.start("", {}, {})
    again.end("")
    again.close()
    assert warnings == []
    assert len(client.search_runs([parent.info.experiment_id])) == 4


def test_runs_asked_for_are_known_before_the_thread_opens_them(tmp_path: Path) -> None:
    tracker, _ = tracked(tmp_path, enabled=False)
    tracker.start("student/distilled-seed-0")
    assert "student/distilled-seed-0" in tracker.asked


def test_a_server_that_is_not_there_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    tracker, warnings = tracked(tmp_path, uri="http://127.0.0.1:9")
    began = time.perf_counter()
    a_run(tracker, tmp_path)
    assert time.perf_counter() - began < 1, "training never waits for the server"
    tracker.close(30)
    assert len(warnings) == 1
    assert warnings[0].startswith("MLflow at http://127.0.0.1:9: ") and "11 entries are kept" in warnings[0]


def test_a_database_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tracker, warnings = tracked(tmp_path, uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    a_run(tracker, tmp_path)
    tracker.close(30)
    assert len(warnings) == 1


def test_what_a_server_missed_is_sent_by_the_next_run(tmp_path: Path) -> None:
    """Under its own times, once, and the journal is gone then."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/later/mlflow.db"
    (tmp_path / "later").write_text("in the way")
    tracker, warnings = tracked(tmp_path, uri=uri)
    began = time.time() * 1000
    a_run(tracker, tmp_path)
    ended = time.time() * 1000
    tracker.close(30)
    assert len(warnings) == 1
    (journal,) = (tmp_path / "tracking").glob("*.jsonl")
    journal.write_text(journal.read_text() + '{"kind": "metr')  # killed while it wrote
    (tmp_path / "later").unlink()
    time.sleep(0.01)
    again, warnings = tracked(tmp_path, uri=uri)
    again.start("")
    again.end("")
    again.close(120)
    assert warnings == []
    assert not list((tmp_path / "tracking").iterdir())
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("ensemble-kd").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["digits", "digits", "distilled-seed-0", "student"]
    member = next(run for run in found if run.info.run_name == "distilled-seed-0")
    assert began - 1 <= member.info.start_time <= member.info.end_time <= ended + 1
    curve = client.get_metric_history(member.info.run_id, "train_loss")
    assert [(m.step, m.value) for m in curve] == [(1, 1.0), (2, 0.5)]
    assert all(began - 1 <= m.timestamp <= ended + 1 for m in curve)


def test_an_entry_that_is_wrong_does_not_hold_up_the_others(tmp_path: Path) -> None:
    tracker, warnings = tracked(tmp_path)
    tracker.start("", {"a": 1})
    tracker.metrics("", {"not a name: *?!\n": 1.0})
    tracker.metrics("", {"loss": 2.0})
    tracker.end("")
    tracker.close(120)
    assert len(warnings) == 1 and "refused an entry" in warnings[0]
    assert runs(tracker)["digits"].data.metrics == {"loss": 2.0}


def test_turned_off_nothing_is_written(tmp_path: Path) -> None:
    tracker, warnings = tracked(tmp_path, enabled=False)
    tracker.start("", {"a": 1})
    tracker.metrics("", {"b": 2.0})
    tracker.close()
    assert warnings == [] and list(tmp_path.iterdir()) == []


def test_settings_become_flat_parameters() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None}
    assert flatten(nested) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e": None}
    assert flatten({}) == {}, "a parameter without a name is one that MLflow refuses"


@pytest.mark.slow
def test_a_model_is_registered_once(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    for fingerprint in ("one", "one", "two"):
        tracker, warnings = tracked(tmp_path)
        tracker.start("")
        tracker.register("", folder, "tickets", {"fingerprint": fingerprint})
        tracker.end("")
        tracker.close()
        assert warnings == []
    versions = MlflowClient(tracker.uri).search_model_versions("name='tickets'")
    assert sorted(version.tags["fingerprint"] for version in versions) == ["one", "two"]
