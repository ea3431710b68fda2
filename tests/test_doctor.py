"""`doctor` and `recipes --show`, `--copy`."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ensemble_kd import doctor
from ensemble_kd.cli import app
from ensemble_kd.config.recipes import recipe_paths


def test_it_says_what_is_there() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    names = [finding["what"] for finding in told["findings"]]
    assert {"python", "torch", "ray", "extra onnx", "extra serve", "cores", "gpu", "disk here"} <= set(names)
    assert told["good"] is (done.exit_code == 0)
    assert "extra dev" not in names and len(names) == len(set(names))


def test_what_is_missing_comes_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "optuna", "fastapi"):
            raise PackageNotFoundError(name)
        return "0.1" if name == "torch" else real(name)

    monkeypatch.setattr(doctor, "version", version)
    found = {finding.what: finding for finding in doctor.examine()}
    assert not found["optuna"].good and found["optuna"].fix == "pip install 'optuna>=4.2'"
    assert not found["torch"].good and "wanted" in found["torch"].found
    extra = found["extra onnx"]
    assert not extra.good and not extra.needed and extra.fix == "pip install 'ensemble-kd[onnx]'"
    assert found["extra serve"].found == "missing fastapi", "what ray[serve] brings in"
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "pip install 'optuna>=4.2'" in done.stdout


def test_recipes_are_shown_and_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    text = recipe_paths()["digits"].read_text(encoding="utf-8")
    assert run(app, ["recipes", "--show", "digits"]).stdout == text
    assert run(app, ["recipes", "--copy", "digits"]).exit_code == 0
    assert yaml.safe_load((tmp_path / "digits.yaml").read_text())["name"] == "digits"
    again = run(app, ["recipes", "--copy", "digits"])
    assert again.exit_code == 2 and "is there already" in again.stderr
    wrong = run(app, ["recipes", "--show", "digitz"])
    assert wrong.exit_code == 2 and "did you mean 'digits'?" in wrong.stderr
    assert "digits" in run(app, ["recipes"]).stdout and "temperature" in run(app, ["spaces"]).stdout
