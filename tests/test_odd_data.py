"""What is odd about the data reaches the user: by `check`, by `run`, and by a run that skips the stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.cli import app
from ensemble_kd.config import Config, validate
from ensemble_kd.errors import InputError
from ensemble_kd.stages.context import Console


def config_of(folder: Path, labels: np.ndarray, **data: object) -> Config:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": np.arange(float(len(labels))), "y": labels}), folder / "train.parquet")
    columns = {"input": "x", "label": "y"}
    block = {"model": {"name": "mlp"}, "training": {"batch_size": 4}}
    fields = {"path": str(folder), "kind": "numeric", "columns": columns} | data
    return validate(
        {"name": "odd", "data": fields, "teachers": block, "student": block, "tracking": {"enabled": False}}
    )


def stars() -> np.ndarray:
    labels = 1 + np.arange(200) % 5
    labels[17] = 100000
    return labels


TYPO = "data.columns.label: label 100000 occurs once (row 17 of train.parquet), far from all others: a typo?"


def test_what_is_odd_is_told_by_check_and_by_every_run(tmp_path: Path) -> None:
    config = config_of(tmp_path / "in", stars())
    for tell in ("check", "run", "run again"):
        told: list[str] = []
        console = Console(warning=told.append)
        if tell == "check":
            pipeline.check(config, tmp_path / "out", console)
        else:
            done = pipeline.run(config, tmp_path / "out", until="data", console=console)
            assert done["data"].summary["info"]["class_names"] == ["1", "2", "3", "4", "5", "100000"]
        assert [line.startswith(TYPO) for line in told] == [True]
    (folder,) = (tmp_path / "out" / "data").iterdir()
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.summary["warnings"][0].startswith(TYPO)


def test_what_is_odd_is_told_beside_an_error(tmp_path: Path) -> None:
    config = config_of(tmp_path / "in", stars(), validation_fraction=0.001)
    told: list[str] = []
    with pytest.raises(InputError, match="leaves no validation row"):
        pipeline.run(config, tmp_path / "out", until="data", console=Console(warning=told.append))
    assert [line.startswith(TYPO) for line in told] == [True]


def test_the_command_line_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_of(tmp_path / "in", stars())
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "odd.yaml").write_text(
        "name: odd\n"
        f"data: {{path: {tmp_path}/in, kind: numeric, columns: {{input: x, label: y}}}}\n"
        "teachers: {model: {name: mlp}}\nstudent: {model: {name: mlp}}\n"
    )
    batches = ["--set", "teachers.training.batch_size=4", "--set", "student.training.batch_size=4"]
    found = CliRunner().invoke(app, ["check", str(tmp_path / "odd.yaml"), *batches])
    assert found.exit_code == 0, found.output
    assert "warning: data.columns.label: label 100000 occurs once" in found.output
