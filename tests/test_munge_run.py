"""A table with made-up rows, from the files to the report: the same in one process and on Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
from test_local import outcome, run

from ensemble_kd.artifacts import read_json
from ensemble_kd.config import load_config

SETTINGS = [
    "data.table={}",
    "data.columns={input: [a, b, word], label: label}",
    "teachers.num_members=2",
    "teachers.training={epochs: 3, batch_size: 32}",
    "teachers.model.hidden=[16]",
    "teachers.kinds=[{model: {name: trees, rounds: 5}, count: 1}]",
    "soft_targets.views=3",
    "student.training={epochs: 3, batch_size: 32}",
    "student.model.hidden=[8]",
    "student.seeds=2",
    "data.shard_rows=100",
    "tracking.enabled=false",
]


def table(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 300), ("validation", 60), ("test", 60)):
        a, b = rng.normal(size=rows), rng.normal(size=rows)
        word = np.array(["red", "green", "blue"])[rng.integers(3, size=rows)]
        label = np.where(a + b + (word == "red") > 0, "yes", "no")
        columns = {"a": a, "b": b, "word": word, "label": label}
        pcsv.write_csv(pa.table(columns), folder / f"{split}.csv")
    return folder


@pytest.mark.slow
def test_made_up_rows_are_the_same_in_one_process_and_on_ray(tmp_path: Path, ray_session: None) -> None:
    (tmp_path / "data").mkdir()
    path = table(tmp_path / "data")
    found = {}
    for executor in ("local", "ray"):
        overrides = [*SETTINGS, f"data.path={path}", f"compute.executor={executor}"]
        run(load_config("numeric", overrides), tmp_path / executor)
        found[executor] = outcome(tmp_path / executor)
    assert found["local"] == found["ray"] and len(found["local"]) > 15
    report = read_json(tmp_path / "local/report.json")
    assert set(report["summary"]) == {"teacher", "ensemble", "hard", "distilled"}
