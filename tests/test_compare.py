"""`compare`: runs side by side, paired where the test rows are the same."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from ensemble_kd.artifacts import Identity, finish
from ensemble_kd.cli import app
from ensemble_kd.compare import compared
from ensemble_kd.errors import InputError

ROWS = 200
LABELS = np.arange(ROWS) % 2


def write_run(folder: Path, wrong: list[int], labels: np.ndarray = LABELS) -> Path:
    """A finished run whose student, in a seed for each number of `wrong`, errs in that many first rows."""
    data = folder / "data" / "d"
    data.mkdir(parents=True)
    pq.write_table(pa.table({"id": np.arange(ROWS), "label": labels}), data / "test-00000.parquet")
    finish(data, Identity("data", "d", {}, {}), ["test-00000.parquet"], {})
    members, systems = [], []
    for seed, count in enumerate(wrong):
        said = np.where(np.arange(ROWS) < count, 1 - labels, labels)
        member = folder / "student" / "members" / str(seed)
        member.mkdir(parents=True)
        save_file({"test": np.eye(2, dtype=np.float32)[said]}, member / "predictions.safetensors")
        entry = {"name": f"distilled-seed-{seed}", "role": "distilled"}
        members.append({**entry, "fingerprint": str(seed)})
        systems.append({**entry, "count": ROWS, "parameters": 9, "latency_ms_batch_1": 0.1})
    stage = folder / "student" / "s"
    stage.mkdir()
    finish(stage, Identity("student", "s", {}, {}), [], {"members": members})
    mean = 1 - np.mean(wrong) / ROWS
    report = {
        "systems": systems,
        "shipped": "distilled-seed-0",
        "summary": {"distilled": {"n": len(wrong), "accuracy": {"mean": mean, "standard_error": None}}},
        "lineage": {"data": "d", "student": "s"},
        "verdict": {"outcome": "helped"},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_an_interval_by_hand(tmp_path: Path) -> None:
    """One errs in 10 rows, the other in these and 30 more: a difference of 30/200, by rows."""
    better, worse = write_run(tmp_path / "better", [10]), write_run(tmp_path / "worse", [40])
    rows = compared([str(worse), str(better)])
    assert [row["run"] for row in rows] == [str(better), str(worse)]
    share = 30 / ROWS
    half = 1.959964 * math.sqrt(share * (1 - share)) / math.sqrt(ROWS) + 1 / ROWS
    wanted = (100 * share, 100 * (share - half), 100 * (share + half))
    assert (rows[1]["behind"], rows[1]["low"], rows[1]["high"]) == pytest.approx(wanted)
    assert rows[0]["behind"] is None and rows[0]["accuracy"] == pytest.approx(0.95)


def test_seeds_are_paired_and_widen_it(tmp_path: Path) -> None:
    better, worse = write_run(tmp_path / "better", [10, 20]), write_run(tmp_path / "worse", [40, 30])
    row = compared([str(better), str(worse)])[1]
    assert row["behind"] == pytest.approx(10) and row["low"] < -50 < 50 < row["high"]  # 15 and 5 points


def test_other_test_rows_are_not_paired(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "one", [10]), write_run(tmp_path / "two", [20], 1 - LABELS)
    done = CliRunner().invoke(app, ["compare", str(one), str(two)])
    assert done.exit_code == 0 and "other test rows" in done.stdout
    assert (
        json.loads(CliRunner().invoke(app, ["compare", str(one), str(two), "--json"]).stdout)[1]["low"]
        is None
    )


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [10])
    with pytest.raises(InputError, match=r"nowhere: no report.json there"):
        compared([str(one), str(tmp_path / "nowhere")])
    other = write_run(tmp_path / "other", [10])
    for path in other.rglob("predictions.safetensors"):
        path.unlink()
    done = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert done.exit_code == 2 and "is gone; run it again" in done.stderr.replace("\n", " ")
