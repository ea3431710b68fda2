"""Exported forms where nothing of this package is: in a process, and in an environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from model_cases import case, inputs_of

from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ExportError
from ensemble_kd.export import form_checks, mlflow_form
from ensemble_kd.export.elsewhere import Elsewhere
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import available, export_forms
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.package import load_package


def exported(place: Path, name: str, forms: list[str] | None = None) -> Path:
    model, _ = case(place, name)
    source = load_package(model)
    inputs = inputs_of(source.info)
    options = ExportConfig.model_validate({"forms": forms or available(source), "max_accuracy_loss": 100})
    export_forms(source, model / "export", options, Rows(inputs, np.zeros(len(inputs), np.int64)))
    return model


def test_what_an_mlflow_model_carries_imports_alone(tmp_path: Path) -> None:
    mlflow_form._copy_code(tmp_path / "code" / "ensemble_kd")
    names = [
        ".".join(("ensemble_kd", *path.with_suffix("").parts)).removesuffix(".__init__")
        for path in mlflow_form.carried()
    ]
    assert "ensemble_kd.inference.predictor" in names and "ensemble_kd.redact" in names
    code = f"""
import importlib, sys
from ensemble_kd.export.without_us import NothingOfOurs
finder = NothingOfOurs()
finder.folder = {str(tmp_path)!r}
finder.forget()
sys.meta_path.insert(0, finder)
for name in {names!r}:
    assert importlib.import_module(name).__file__.startswith({str(tmp_path)!r})
heavy = [name for name in ("torch", "ray", "mlflow", "transformers") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("lost", ["redact.py", "data/preprocess.py"])
@pytest.mark.slow
def test_an_mlflow_model_that_lacks_a_module_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    everything = mlflow_form.carried()
    monkeypatch.setattr(mlflow_form, "carried", lambda: [p for p in everything if str(p) != lost])
    monkeypatch.setattr(form_checks, "SECONDS", 0.01)
    module = f"ensemble_kd.{lost.removesuffix('.py').replace('/', '.')}"
    with pytest.raises(ExportError, match=f"mlflow: .* without this package: .*{module}"):
        exported(tmp_path, "numbers", ["mlflow"])
    assert not (tmp_path / "model" / "export" / "mlflow").exists()


def test_a_form_that_answers_otherwise_elsewhere_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Elsewhere.logits
    monkeypatch.setattr(Elsewhere, "logits", lambda *args, **options: real(*args, **options) + 0.01)
    monkeypatch.setattr(form_checks, "SECONDS", 0.01)
    with pytest.raises(ExportError, match="onnx: gives other logits in a process without this package"):
        exported(tmp_path, "numbers", ["onnx"])


def test_a_process_that_dies_is_told_and_started_again(tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    try:
        with pytest.raises(ExportError, match="onnx: does not run .*NoSuchFile|onnx: does not run"):
            elsewhere.logits("onnx", tmp_path, {"numbers": np.zeros((1, 4), np.float32)})
        process = elsewhere._process
        assert process is not None and process.poll() is None  # an error is not an end
        process.kill()
        process.wait()
        with pytest.raises(ExportError, match="does not run"):
            elsewhere.logits("onnx", tmp_path, {"numbers": np.zeros((1, 4), np.float32)})
        assert elsewhere._process is not process
    finally:
        elsewhere.close()
    assert not elsewhere.path.exists()


# ------------------------------------------------------------------------------------- an environment

LOGITS = {
    "onnx": """
import numpy, onnxruntime
session = onnxruntime.InferenceSession(folder + "/model.onnx")
names = [value.name for value in session.get_inputs()]
found = session.run(None, {name: numpy.array(given[name], kinds[name]) for name in names})[0]
""",
    "program": """
import numpy, torch
module = torch.export.load(folder + "/model.pt2").module()
found = module(*(torch.from_numpy(numpy.array(given[name], kinds[name])) for name in given))
""",
    "huggingface": """
import torch, transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
read = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
found = model(**read).logits
""",
    "mlflow": """
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(folder)
found = model.predict(pandas.DataFrame({"input": rows}))["probabilities"].tolist()
""",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of an environment with the libraries that are installed here, and without this package."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched; its own .pth files, such as an editable install's, are not.
    (packages / "libraries.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    return str(place / "bin" / "python")


@pytest.fixture(scope="module")
def every_form(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A model of numbers in every form, and the processes without us that were started to make these."""
    started: list[Any] = []
    real = Elsewhere._start

    def counted(self: Elsewhere) -> Any:
        started.append(real(self))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Elsewhere, "_start", counted)
        patch.setattr(form_checks, "SECONDS", 0.01)
        return exported(tmp_path_factory.mktemp("forms"), "numbers"), started


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numbers", pytest.param("bert", marks=pytest.mark.long)])
def test_every_form_in_an_environment_of_its_own(
    tmp_path: Path, python: str, name: str, request: pytest.FixtureRequest
) -> None:
    if name == "numbers":
        made, _ = request.getfixturevalue("every_form")
        model = Path(shutil.copytree(made, tmp_path / "model"))
    else:
        model = exported(tmp_path, name)
    texts = ["my card is lost", "the cat sat on the mat", "pay", "stolen, my bank?"]
    values = inputs_of(load_package(model).info, 4)
    rows: list[Any] = texts if name == "bert" else values.tolist()
    predictor = Predictor(model, "pytorch")
    expected = predictor.answer(pa.table({"input": rows})).probabilities
    given: dict[str, Any] = {"numbers": values.tolist()}
    kinds = {"numbers": "float32"}
    if name == "bert":
        inputs, _ = predictor._preprocessor.transform(pa.table({"input": rows}))
        given = {"input_ids": np.maximum(inputs - 1, 0).tolist(), "attention_mask": (inputs != 0).tolist()}
        kinds = {"input_ids": "int64", "attention_mask": "int64"}
    for form in [path.name for path in (model / "export").iterdir()]:
        folder = (model / "export" / form).rename(tmp_path / form)
        code = f"""
import importlib.util, json
assert importlib.util.find_spec("ensemble_kd") is None
folder, texts, rows, given, kinds = {str(folder)!r}, {texts!r}, {rows!r}, {given!r}, {kinds!r}
{LOGITS["onnx" if form == "int8" else form]}
print(json.dumps(found if isinstance(found, list) else found.tolist()))
"""
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, (form, done.stderr[-2000:])
        found = np.array(json.loads(done.stdout.splitlines()[-1]))
        if form != "mlflow":
            found = np.exp(found) / np.exp(found).sum(1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=0.1 if form == "int8" else 1e-5, err_msg=form)


@pytest.mark.slow
def test_one_process_serves_all_forms(every_form: tuple[Path, list[Any]]) -> None:
    model, started = every_form
    made = {path.name for path in (model / "export").iterdir()}
    assert made == {"mlflow", "onnx", "int8", "program"} and len(started) == 1
