"""The whole way on the embedded data: results, skipping, redoing, damage, and wrong inputs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_kd import lease, pipeline
from ensemble_kd.config import Config, load_config
from ensemble_kd.errors import ConfigError, EnsembleKDError, InputError, NoGapError
from ensemble_kd.models.package import load_package
from ensemble_kd.models.quantise import quantised_weights
from ensemble_kd.stages.context import Console
from ensemble_kd.tracking import Tracker

TINY = [
    "teachers.num_members=3",
    "teachers.training.epochs=4",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=3",
    "student.seeds=2",
    "student.model.hidden=[8]",
    "data.shard_rows=500",
    "compute.executor=local",  # the same by Ray: tests/test_local.py
    "tracking.enabled=false",
    "specialists=null",  # tests/test_specialist_stages.py has them, tests/test_sweep.py sweeps
    "sweep=null",
]
RAY = "compute.executor=ray"
STAGES = ("data", "teachers", "gap", "soft-targets", "student", "report")


def tiny(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


class Lines(Console):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        super().__init__(line=self.said.append, warning=self.said.append)

    def kept(self) -> list[str]:
        return [line.split(":")[0] for line in self.said if line.endswith("(kept)")]


def run(folder: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], Lines]:
    lines = Lines()
    return pipeline.run(tiny(*overrides), folder, console=lines, **options), lines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of every trained member."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/members/*/weights.safetensors")}


@pytest.mark.slow
def test_a_run_ends_in_a_report_and_a_model(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert {s["role"] for s in report["systems"]} == {"teacher", "ensemble", "hard", "pseudo", "distilled"}
    assert report["verdict"]["text"] and "value" in report["gap_recovered"]
    assert (finished / "report.html").stat().st_size > 10_000
    names = {path.name for path in (finished / "model").iterdir()}
    assert names == {"weights.safetensors", "config.json", "README.md", "manifest.json"}
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob("checkpoint.safetensors"))
    assert not [p for p in finished.rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]


@pytest.mark.slow
def test_running_again_keeps_everything_and_starts_no_ray(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ensemble_kd.runtime.Runtime.start", refuse)
    _, lines = run(copy, RAY)
    assert lines.kept() == list(STAGES)


@pytest.mark.slow
def test_another_temperature_trains_only_distilled_students(copy: Path) -> None:
    before = weights(copy)
    _, lines = run(copy, "student.temperature=4")
    assert lines.kept() == ["data", "teachers", "gap", "soft-targets"]
    assert any("temperature: 2.0 -> 4.0" in line for line in lines.said)
    after = weights(copy)
    assert len(after) == len(before) + 2 and all(after[name] == before[name] for name in before)


@pytest.mark.slow
def test_the_baselines_are_trained_before_the_soft_targets(finished: Path) -> None:
    check = json.loads(next(finished.glob("gap/*/manifest.json")).read_text())
    student = json.loads(next(finished.glob("student/*/manifest.json")).read_text())
    hard = [m for m in student["summary"]["members"] if m["role"] == "hard"]
    assert [m["validation_accuracy"] for m in hard] == pytest.approx(check["summary"]["hard"])
    for member in hard:
        folder = finished / "student" / "members" / member["fingerprint"]
        assert json.loads((folder / "manifest.json").read_text())["created"] < check["created"]
    report = json.loads((finished / "report.json").read_text())
    assert report["gap_check"]["difference"]["points"] == check["summary"]["difference"]["points"]


@pytest.mark.slow
def test_a_gap_that_is_required_and_not_there_ends_the_run(tmp_path: Path) -> None:
    """Teachers of the student's own kind, each with less training than it."""
    weak = [
        "teachers.model={name: mlp, hidden: [8], dropout: 0.3}",
        "teachers.training.epochs=1",
        "student.training.epochs=30",
    ]
    lines = Lines()
    with pytest.raises(NoGapError) as caught:
        pipeline.run(tiny(*weak, "student.seeds=1"), tmp_path, require_gap=True, console=lines)
    assert caught.value.exit_code == 3 and not (tmp_path / "soft_targets").exists()
    assert any("gap: there is nothing to give" in line and "Likely cause" in line for line in lines.said)
    again = Lines()
    with pytest.raises(NoGapError):  # kept, and told again
        pipeline.run(tiny(*weak, "student.seeds=1"), tmp_path, require_gap=True, console=again)
    assert again.kept() == ["data", "teachers", "gap"]
    assert any("the teachers are no larger than the student" in line for line in again.said)


def test_a_gap_cannot_be_required_of_what_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is compared, since this run ends with data"):
        pipeline.run(tiny(), tmp_path, until="data", require_gap=True)


@pytest.mark.slow
def test_one_more_teacher_trains_one_teacher(copy: Path) -> None:
    before = weights(copy)
    manifests, _ = run(copy, "teachers.num_members=4", until="teachers")
    after = weights(copy)
    assert len(manifests["teachers"].summary["members"]) == 4
    assert len(after) == len(before) + 1 and all(after[name] == before[name] for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "redone"),
    [
        ("soft_targets/*/part-00001.parquet", "soft-targets"),
        pytest.param("teachers/members/*/weights.safetensors", "teachers", marks=pytest.mark.long),
        ("student/members/*/predictions.safetensors", "student"),
        pytest.param("data/*/transfer-00000.parquet", "data", marks=pytest.mark.long),
    ],
)
def test_damage_is_named_and_only_that_stage_is_redone(copy: Path, pattern: str, redone: str) -> None:
    before = weights(copy)
    damaged = sorted(copy.glob(pattern))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    _, lines = run(copy)
    assert any(damaged.name in line or damaged.parent.name in line for line in lines.said)
    assert set(lines.kept()) == set(STAGES) - {redone}
    assert weights(copy) == before and damaged.read_bytes() == content


@pytest.mark.slow
@pytest.mark.long
def test_fresh_redoes_everything_to_the_same_bits(copy: Path) -> None:
    before = weights(copy)
    _, lines = run(copy, fresh=STAGES)
    assert lines.kept() == [] and weights(copy) == before


@pytest.mark.slow
def test_predictions_of_ones_own_take_the_place_of_teachers(finished: Path, tmp_path: Path) -> None:
    """Teachers' outputs given as files lead to the same students as the teachers themselves."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ensemble_kd.data.records import load_split

    data = next(finished.glob("data/*/manifest.json")).parent
    generator = np.random.default_rng(0)
    overrides = ["teachers.source=predictions", "data.label_fraction=1"]
    for split in ("transfer", "validation", "test"):
        arrays = load_split(data, split)
        files = []
        for member in range(2):
            order = generator.permutation(len(arrays.ids))
            logits = 5 * np.eye(10, dtype=np.float32)[np.maximum(arrays.labels, 0)][order]
            file = tmp_path / f"{split}-{member}.parquet"
            pq.write_table(pa.table({"id": arrays.ids[order], "logits": logits.tolist()}), file)
            files.append(str(file))
        key = "train" if split == "transfer" else split
        overrides.append(f"teachers.predictions.{key}={json.dumps(files)}")
    manifests, _ = run(tmp_path / "run", *overrides)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    ensemble = next(s for s in report["systems"] if s["role"] == "ensemble")
    assert ensemble["accuracy"] == 1.0 and manifests["teachers"].summary["source"] == "predictions"


@pytest.mark.long
@pytest.mark.slow
def test_a_transfer_set_over_the_budget_is_streamed(tmp_path: Path, ray_session: None) -> None:
    _, lines = run(tmp_path / "run", RAY, "compute.memory_budget=1e-9", "data.shard_rows=300", "sweep=null")
    assert any("is streamed" in line for line in lines.said)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["summary"]["distilled"]["n"] == 2


@pytest.mark.long
@pytest.mark.slow
def test_top_k_reports_its_error(tmp_path: Path) -> None:
    manifests, lines = run(tmp_path / "run", "soft_targets.top_k=4", "student.seeds=1")
    bound = manifests["soft-targets"].summary["error_bound_at_temperature_1"]
    assert 0 < bound < 1 and any("top 4, error at most" in line for line in lines.said)


@pytest.mark.slow
@pytest.mark.long
def test_a_student_in_integers(tmp_path: Path) -> None:
    run(tmp_path / "run", "student.seeds=1", "student.quantization={bits: 8}")
    package = load_package(tmp_path / "run" / "model")
    assert package.quantization is not None
    assert sorted(package.quantization["thresholds"]) == ["body.head", "body.layers.0"]
    for name, (integers, step) in quantised_weights(package.network).items():
        assert torch.equal(package.network.get_parameter(name), integers.float() * step)
    members = json.loads(next((tmp_path / "run" / "student").glob("*/manifest.json")).read_text())
    assert {m["role"] for m in members["summary"]["members"]} == {"distilled", "hard", "pseudo"}


@pytest.mark.slow
def test_a_member_that_diverges_stops_the_run_or_is_left_out(tmp_path: Path, ray_session: None) -> None:
    bad = "teachers.overrides=[{}, {training: {learning_rate: 1.0e+30, optimizer: sgd}}, {}]"
    with pytest.raises(EnsembleKDError, match="teacher-001.*NaN or infinite"):
        run(tmp_path / "run", bad, RAY)
    assert len(weights(tmp_path / "run")) == 2, "the other members are kept"
    manifests, lines = run(tmp_path / "run", bad, RAY, "teachers.on_failure=exclude", until="soft-targets")
    assert manifests["teachers"].summary["excluded"] == ["teacher-001"]
    assert any("teacher-001 left out" in line for line in lines.said)


@pytest.mark.slow
def test_a_run_that_ends_in_the_middle_of_training_leaves_nothing_of_it(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray that is shut down under a thread that waits in it may abort the process."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tracker, "metrics", full)  # called at each epoch
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "run", RAY, until="teachers")
    assert "ray-train" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.slow
def test_more_replicas_than_the_cluster_has_is_an_error(tmp_path: Path, ray_session: None) -> None:
    replicas = 2 * (os.cpu_count() or 1) * 2
    with pytest.raises(ConfigError, match=r"teachers\.replicas_per_member: .* the cluster has"):
        run(
            tmp_path / "run",
            RAY,
            f"teachers.replicas_per_member={replicas}",
            f"teachers.training.batch_size={replicas}",
        )


@pytest.mark.long
@pytest.mark.slow
def test_replicas_train_a_member_together(tmp_path: Path, ray_session: None) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two workers need two CPUs")
    one, _ = run(tmp_path / "one", RAY, until="teachers")
    two, _ = run(tmp_path / "two", RAY, "teachers.replicas_per_member=2", until="teachers")
    for a, b in zip(one["teachers"].summary["members"], two["teachers"].summary["members"], strict=True):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=0.1)


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    with lease.locked(tmp_path), pytest.raises(EnsembleKDError, match="another run is at work"):
        pipeline.run(tiny(), tmp_path)


def test_unwritable_folder_is_an_input_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="--run-dir"):
        pipeline.run(tiny(), file / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.objective=lk", "did you mean 'kl'"),
        ("student.objective={name: kl, temprature: 3}", "temprature"),
        ("teachers.training.batch_size=100000", r"teachers\.training\.batch_size"),
    ],
)
def test_check_finds_what_the_settings_alone_do_not_show(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        pipeline.check(tiny(override), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "check writes nothing"


@pytest.mark.slow
def test_check_says_what_is_done(finished: Path) -> None:
    stages = pipeline.check(tiny(), finished)
    assert [stage.name for stage in stages] == list(STAGES)
    assert all(stage.state.startswith("done") for stage in stages)
    changed = {s.name: s.state for s in pipeline.check(tiny("student.temperature=3"), finished)}
    assert changed["soft-targets"].startswith("done") and "temperature: 2.0 -> 3.0" in changed["student"]
