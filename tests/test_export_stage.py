"""The export as a stage of a run: forms, calibration, what you ship, and the registered model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.cli import app
from ensemble_kd.config import Config, load_config
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, ExportError
from ensemble_kd.export import form_checks
from ensemble_kd.export.mlflow_form import behind
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.model_folder import EXPORT
from ensemble_kd.report.ships import calibration_text, ship_rows, ships_html
from ensemble_kd.stages.context import Console
from ensemble_kd.train.calibration import fit_temperature

TINY = [
    "teachers.num_members=2",
    "teachers.training.epochs=3",
    "student.training.epochs=3",
    "student.seeds=1",
    "compute.executor=local",
    "specialists=null",
    "sweep=null",
    "export={forms: [onnx, int8, mlflow], calibrate: true, precision: 0.9, max_accuracy_loss: 5}",
    "export.register_as=tiny-digits",
]


def tiny(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form_checks, "SECONDS", 0.01)
        pipeline.run(tiny(), folder)
    return folder


@pytest.mark.slow
def test_the_report_says_what_you_ship(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    ships = report["ships"]
    assert [s["name"] for s in ships["systems"]] == ["single teacher", "ensemble", "student"]
    assert list(ships["forms"]) == ["onnx", "int8", "mlflow"]
    shipped = next(s for s in report["systems"] if s["name"] == report["shipped"])
    for entry in (ships["systems"][2], ships["forms"]["onnx"], ships["forms"]["mlflow"]):
        assert entry["accuracy"] == shipped["accuracy"]  # calibration changes no answer
        assert entry["ece"] == pytest.approx(report["ships"]["calibrated"]["after"]["ece"], abs=1e-3)
    assert [s["agreement"] == 1 for s in ships["systems"]] == [False, False, True]
    assert ships["systems"][1]["model_bytes"] > 2 * ships["systems"][2]["model_bytes"]
    assert "<h2>What you ship</h2>" in (finished / "report.html").read_text()
    card = (finished / "model" / "README.md").read_text()
    assert "## Forms" in card and "| student, ONNX int8 (" in card
    assert "Logits are divided by" in card


@pytest.mark.slow
def test_the_model_folder_answers_as_its_forms_do(finished: Path) -> None:
    model = finished / "model"
    config = json.loads((model / "config.json").read_text())
    data = finished / "data" / config["lineage"]["data"]
    validation, test = load_split(data, "validation"), load_split(data, "test")
    table = pa.table({"input": pa.array([row.tobytes() for row in test.inputs[:50]])})
    expected = Predictor(model, "pytorch").answer(table).probabilities
    np.testing.assert_allclose(Predictor(model).answer(table).probabilities, expected, atol=1e-5)
    temperature = config["calibration"]["temperature"]
    plain = Predictor(model, "pytorch").logits(validation.inputs) * temperature
    assert temperature == pytest.approx(fit_temperature(plain, validation.labels), rel=1e-3)
    assert config["calibration"]["precision"] == 0.9
    assert Predictor(model).calibration == config["calibration"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's database layer warns about itself
def test_the_model_is_registered_with_its_lineage(finished: Path) -> None:
    import mlflow
    from mlflow import MlflowClient

    uri = f"sqlite:///{finished.parent / 'mlflow.db'}"
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name='tiny-digits'")
    lineage = json.loads((finished / "report.json").read_text())["lineage"]
    assert version.tags["lineage.student"] == lineage["student"]
    assert version.tags["lineage.teachers.teacher-000"] == lineage["teachers"]["teacher-000"]
    with behind():
        model = mlflow.pyfunc.load_model(version.source)
    assert model.metadata.signature.inputs.input_names() == ["input"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_second_run_keeps_the_forms_and_others_are_added(finished: Path) -> None:
    lines: list[str] = []
    pipeline.run(tiny(), finished, console=Console(line=lines.append))
    assert all(line.endswith("(kept)") for line in lines)
    states = {stage.name: stage.state for stage in pipeline.check(tiny(), finished)}
    assert states["export"].startswith("done") and states["report"].startswith("done")
    states = {stage.name: stage.state for stage in pipeline.check(tiny("export.calibrate=false"), finished)}
    assert states["export"].startswith("to do: calibrate: true -> false")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.parent / 'mlflow.db'}")
    assert len(client.search_model_versions("name='tiny-digits'")) == 1, "the same model was registered again"
    with pytest.raises(ConfigError, match=r"export: this configuration has none; add an? `export` block"):
        pipeline.run(tiny("export=null"), finished, until="export")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_form_that_fails_costs_no_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "digits"))
    (run / "report.json").unlink()
    settings = ["export.register_as=null", "tracking.enabled=false"]
    answers = form_checks.all_logits  # a fault, not a small tolerance: some processors answer to the last bit
    with monkeypatch.context() as fault, pytest.raises(ExportError, match="onnx: its logits differ"):
        fault.setattr(form_checks, "all_logits", lambda *given: 1.1 * answers(*given))
        pipeline.run(tiny("export.tolerance=1e-4", *settings), run)
    assert json.loads((run / "report.json").read_text())["ships"] is None
    weights = [(folder / "model/weights.safetensors").read_bytes() for folder in (run, finished)]
    assert weights[0] == weights[1] and not (run / "model" / EXPORT).exists()
    pipeline.run(tiny(*settings), run)
    assert json.loads((run / "report.json").read_text())["ships"]["forms"]


@pytest.mark.slow
def test_the_command_takes_a_run_folder(finished: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(finished), "--form", "program"])
    assert result.exit_code == 0, result.output
    assert "export: program" in result.output and "torch.export" in result.output
    assert (finished / "model" / "export" / "program" / "model.pt2").exists()
    result = CliRunner().invoke(app, ["export", str(finished), "--set", "seed=1"])
    assert result.exit_code == 2 and "is a folder; --set" in result.output


# ------------------------------------------------------------------------------------------- without Ray


def entry(**changes: object) -> dict[str, object]:
    times = {"p50": 1.0, "p99": 2.0}
    usual = {
        "model_bytes": 2_500_000,
        "latency_ms": {"batch_1": times, "batch_32": times},
        "examples_per_second": 1234.5,
        "accuracy": 0.9,
        "ece": 0.01,
    }
    return {**usual, **changes}


def test_rows_of_what_you_ship() -> None:
    section = {
        "systems": [entry(name="ensemble")],
        "forms": {"int8": entry(form="int8", method="dynamic", agreement=0.995, accuracy=None)},
    }
    first, second = ship_rows(section)
    assert first[:2] == ["ensemble, PyTorch", "2.50 MB"] and first[-1] == "–"
    assert second[0] == "student, ONNX int8 (dynamic)"
    assert second[-1] == "99.50%" and second[-3] == "–"
    assert ships_html(None) == ""


def test_text_of_a_calibration() -> None:
    figures = {"before": {"ece": 0.05, "nll": 0.5}, "after": {"ece": 0.01, "nll": 0.4}}
    section = {"calibration": {"temperature": 1.0}, "calibrated": figures}
    assert calibration_text(section) == ""
    section["calibration"] = {"temperature": 2.0, "threshold": 0.7, "precision": 0.95, "coverage": 0.8}
    text = calibration_text(section)
    assert "divided by 2.000" in text and "from 0.0500 to 0.0100" in text
    assert "confidence of 0.7000 on, 95% of the answers" in text and "80.0% of the rows" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("export={forms: []}", r"export\.forms: .*at least 1"),
        ("export={forms: [onnx, onnx]}", r"export\.forms: .*name each form once"),
        ("export={forms: [onnyx]}", r"export\.forms"),
        ("export={precision: 1}", r"export\.precision: .*less than 1"),
        ("export={register_as: x}", r"export: .*register_as needs the form mlflow; .* onnx, int8, add it"),
        ("export={tolerance: 0}", r"export\.tolerance: .*greater than 0"),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("digits", [override])
