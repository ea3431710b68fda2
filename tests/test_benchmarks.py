"""The benchmarks: the list is complete, a result says what it must, and one of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.harness import BENCHMARKS, Benchmark, Measured, run
from benchmarks.scaling import expected as expected_seconds
from benchmarks.transformers import finetune, texts

ROOT = Path(__file__).parent.parent


def test_every_figure_of_the_readme_has_a_benchmark() -> None:
    expected = {"demo", "loop", "ensemble", "targets", "store", "precompute", "memory"}
    expected |= {"clusters", "specialists", "combine", "fused", "sweep", "sweep-memory"}
    expected |= {"cached", "online", "buckets", "finetune", "latency", "int8", "relations", "mutual", "one"}
    assert expected <= set(BENCHMARKS)
    expected |= {"serve", "scaling", "members", "scale", "faults", "fuzz", "peers", "peers-texts"}
    for name, entry in BENCHMARKS.items():
        assert entry.name == name and entry.bound >= 0 and entry.unit
        assert entry.text and "\n" not in entry.text
        assert entry.sense in ("at least", "at most")


def test_without_a_name_they_are_listed() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in BENCHMARKS)


def test_an_unknown_name_gets_a_hint() -> None:
    result = CliRunner().invoke(app, ["stor"])
    assert result.exit_code == 2
    assert "'store'" in result.output


def test_an_option_that_a_benchmark_does_not_take_is_refused() -> None:
    result = CliRunner().invoke(app, ["store", "--quick", "--threads", "1"])
    assert result.exit_code == 2
    assert "--threads" in result.output


def test_made_up_texts_are_as_long_as_real_questions() -> None:
    made = texts(2000)
    present = made.inputs != 0
    lengths = present.sum(1)
    assert 13 < lengths.mean() < 15 and lengths.min() >= 4 and lengths.max() <= 80
    assert (present == (np.arange(present.shape[1]) < lengths[:, None])).all()  # padding at the end alone
    assert set(made.labels) == set(range(77))


def test_finetune_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.transformers.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'ensemble-kd\[bench\]'"):
        finetune(True)


@pytest.mark.parametrize(
    ("sense", "ours", "problem", "holds"),
    [
        ("at least", 9.0, None, True),
        ("at least", 8.9, None, False),
        ("at most", 9.0, None, True),
        ("at most", 9.1, None, False),
        ("at most", 1.0, "3 Ray Train runs, 2 allowed", False),
    ],
)
def test_the_bound_decides(sense: Any, ours: float, problem: str | None, holds: bool) -> None:
    entry = Benchmark("x", "text", "s", sense, 0.9, lambda quick: Measured(ours, 10.0, {}, problem))
    result = run(entry, quick=True)
    assert result["holds"] is holds
    assert result["ratio"] == pytest.approx(ours / 10)
    assert set(result["machine"]) == {
        "cpu",
        "cores",
        "memory_gb",
        "gpu",
        "python",
        "torch",
        "ray",
        "load_before",
    }


def test_the_store_is_as_small_as_promised() -> None:
    result = CliRunner().invoke(app, ["store", "--quick", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {"name", "ours", "reference", "ratio", "bound", "holds", "unit", "detail", "machine"} <= set(found)
    assert found["holds"] and found["ratio"] >= 1 and found["detail"]["quick"]


def test_specialists_are_asked_quickly() -> None:
    result = CliRunner().invoke(app, ["combine", "--quick", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["holds"] and found["ours"] > 0
    assert all(share > 0.5 for share in found["detail"]["several_asked"].values())


@pytest.mark.slow
@pytest.mark.long
def test_planted_clusters_are_found_in_little_memory() -> None:
    result = CliRunner().invoke(app, ["clusters", "--quick", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["holds"] and found["ours"] > found["detail"]["before (GB)"]
    assert found["detail"]["planted_pairs_together"] > 0.9


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["loop", "precompute", "specialists"])
def test_inside_ray_they_run_to_a_result(name: str) -> None:
    """Whether the bound holds is not asked of a busy machine's quick run."""
    found = _quick(name)
    assert found["ours"] > 0 and found["reference"] > 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cached", "online", "buckets", "finetune"])
def test_transformers_are_compared_over_the_same_texts(name: str) -> None:
    if name == "finetune":
        pytest.importorskip("accelerate")
    found = _quick(name, "--threads", "1")
    assert found["ours"] > 0 and found["reference"] > 0
    detail = found["detail"]
    assert detail["threads"] == 1 and len(detail["ratios"]) == 2
    assert "problem" not in detail  # of `online`: the bare loop computes the same loss


@pytest.mark.long
@pytest.mark.slow
def test_served_rows_are_compared_and_none_fails() -> None:
    pytest.importorskip("fastapi")
    detail = _quick("serve", "--seconds", "3")["detail"]
    assert "problem" not in detail and detail["failed"] == 0
    assert detail["requests"] > 0 and detail["p99 (ms)"] >= detail["p50 (ms)"]


@pytest.mark.long
@pytest.mark.slow
def test_fuzzed_requests_get_no_server_error() -> None:
    pytest.importorskip("fastapi")
    found = _quick("fuzz")
    assert found["holds"] and found["ours"] == 0 and found["reference"] > 300, found["detail"]
    assert found["detail"]["honest"]["requests"] and "problem" not in found["detail"]


@pytest.mark.long
@pytest.mark.slow
def test_the_memory_of_trials_is_found_in_their_processes() -> None:
    """Hardly any transfer set: what a trial adds is not asked. `sweep` drives the stage as this does."""
    detail = _quick("sweep-memory")["detail"]
    size = detail["transfer_set (MB)"]
    assert all(held >= size for held in detail["shared (MB)"].values())
    assert all(own and min(own) > 50 for own in detail["own_of_each_trial (MB)"].values())


@pytest.mark.long
@pytest.mark.slow
def test_many_members_take_one_worker_group() -> None:
    detail = _quick("members")["detail"]
    assert "problem" not in detail and detail["members"] == 20 and detail["worker_groups"] == 1


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaling", "scale"])
def test_the_benchmarks_of_scale_run_to_a_result(name: str) -> None:
    found = _quick(name)
    assert found["ours"] > 0 and found["reference"] > 0
    if name == "scale":
        assert found["holds"] and found["detail"]["store"]["shards"] > 1


def test_the_cost_model_of_scaling() -> None:
    """Rounds of items, and no more cores than there are."""
    assert expected_seconds(3.0, 4, 1, cores=2) == 12.0
    assert expected_seconds(3.0, 4, 2, cores=2) == 6.0
    assert expected_seconds(3.0, 4, 4, cores=2) == 6.0
    assert expected_seconds(3.0, 5, 2, cores=2) == 9.0  # the last worker waits
    assert expected_seconds(3.0, 4, 4, cores=8) == 3.0


def _quick(name: str, *options: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick", "--json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)
