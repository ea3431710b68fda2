"""Every form gives what the student gives, or is not handed over."""

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
import torch
from model_cases import MODELS, case, info_of, inputs_of, package
from torch import Tensor, nn

from ensemble_kd.config import ExportConfig
from ensemble_kd.errors import ArtifactError, ExportError, InputError
from ensemble_kd.export import form_checks
from ensemble_kd.export import forms as forms_module
from ensemble_kd.export.folder import export_folder, is_model_folder
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import available, export_forms
from ensemble_kd.export.graph import Graph, OnnxBiLSTM, UnrolledBiLSTM
from ensemble_kd.inference.feed import by_length, feed
from ensemble_kd.inference.onnx_model import load_onnx
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.package import Package, load_package, save_package
from ensemble_kd.train.loop import predict


@pytest.fixture(autouse=True)
def measured_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form_checks, "SECONDS", 0.01)


def export(model: Path, *forms: str, **options: Any) -> dict[str, Any]:
    source = load_package(model)
    inputs = inputs_of(source.info)
    rows = Rows(inputs, logits(source, inputs).argmax(1))
    settings = ExportConfig(
        **{"forms": list(forms) or available(source), "max_accuracy_loss": 100, **options}
    )
    return export_forms(source, model / "export", settings, rows)


def logits(source: Package, inputs: np.ndarray) -> np.ndarray:
    return predict(source.network, torch.from_numpy(inputs), torch.device("cpu")).numpy()


def table(name: str) -> pa.Table:
    kind = MODELS[name][0]
    if kind in ("text", "pieces"):
        return pa.table({"input": ["my card is lost", "the cat sat on the mat", "pay", "stolen, my bank?"]})
    values = inputs_of(info_of(kind), 4)
    return pa.table({"input": [v.tobytes() if kind == "image" else v.tolist() for v in values]})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of numbers with its graph, and the graph in int8."""
    model, _ = case(tmp_path_factory.mktemp("exported"), "numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form_checks, "SECONDS", 0.01)
        export(model, "onnx", "int8")
    return model


@pytest.fixture
def with_graph(exported: Path, tmp_path: Path) -> Path:
    """A copy of the model with its graph alone."""
    leave = shutil.ignore_patterns("int8")
    return Path(shutil.copytree(exported, tmp_path / "model", ignore=leave))


OFTEN = ("resnet", "pieces")
"""Kinds whose forms are made in every test run; the others in `make test-all`."""


@pytest.mark.parametrize("name", ["numbers", pytest.param("mlp", marks=[pytest.mark.slow, pytest.mark.long])])
def test_onnx_and_int8_of_an_mlp(tmp_path: Path, name: str) -> None:
    model, _ = case(tmp_path, name)
    made = export(model, "onnx", "int8")
    assert made["onnx"]["logit_difference"] < 1e-4 and made["onnx"]["agreement"] == 1
    assert made["int8"]["method"] in ("dynamic", "static") and len(made["int8"]["tried"]) == 2
    answers = [
        Predictor(model, form).answer(table(name)).probabilities for form in ("pytorch", "onnx", "int8")
    ]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    np.testing.assert_allclose(answers[2], answers[0], atol=0.1)
    assert Predictor(model).form == "onnx"  # taken by itself once it is there


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in MODELS]
)
def test_every_form_of_every_kind(tmp_path: Path, name: str) -> None:
    model, _ = case(tmp_path, name)
    forms = [form for form in available(load_package(model)) if form != "mlflow"]  # runs the ONNX graph
    made = export(model, *forms)
    assert list(made) == forms
    for form, entry in made.items():
        if form != "int8":
            assert entry["logit_difference"] < 1e-3, form
        assert entry["accuracy"] > 0.5 and entry["latency_ms"]["batch_1"]["p50"] > 0
    expected = Predictor(model, "pytorch").answer(table(name)).probabilities
    np.testing.assert_allclose(
        Predictor(model, "onnx").answer(table(name)).probabilities, expected, atol=1e-5
    )
    assert expected.std(0).max() > 1e-3  # the rows differ, so that agreement says something


# --------------------------------------------------------------------------- without this package


def plain_python(code: str, *blocked: str, python: str = sys.executable) -> Any:
    """What a fresh Python prints as JSON, in which these packages cannot be imported."""
    guard = (
        "import builtins, json\nreal = builtins.__import__\n"
        "def guarded(name, *rest, **more):\n"
        f"    if name.split('.')[0] in {blocked!r}: raise ImportError('not here: ' + name)\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = guarded\n"
    )
    done = subprocess.run([python, "-c", guard + code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def with_onnxruntime(folder: Path, values: np.ndarray) -> str:
    """What a user of the folder writes."""
    return f"""
import numpy, onnxruntime
config = json.load(open({str(folder / "config.json")!r}))
session = onnxruntime.InferenceSession({str(folder / "model.onnx")!r})
rows = numpy.array({values.tolist()}, config["inputs"][0]["type"])
print(json.dumps(session.run(None, {{config["inputs"][0]["name"]: rows}})[0].tolist()))
"""


def test_the_onnx_folder_runs_with_what_its_requirements_name(with_graph: Path, tmp_path: Path) -> None:
    model = with_graph
    folder = (model / "export" / "onnx").rename(tmp_path / "elsewhere")
    assert (folder / "requirements.txt").read_text().split() == ["numpy", "onnxruntime"]
    values = inputs_of(info_of("numeric"), 3)
    code = with_onnxruntime(folder, values)
    found = plain_python(code, "ensemble_kd", "torch", "ray", "mlflow", "pyarrow")
    np.testing.assert_allclose(found, logits(load_package(model), values), atol=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_the_onnx_folder_in_an_environment_of_its_own(tmp_path: Path) -> None:
    model, _ = case(tmp_path, "numbers")
    export(model, "int8", "onnx")
    folder = (model / "export" / "onnx").rename(tmp_path / "elsewhere")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "empty")], check=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-r", str(folder / "requirements.txt")]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"pip installs nothing here: {done.stderr[-200:]}")
    values = inputs_of(info_of("numeric"), 3)
    found = plain_python(with_onnxruntime(folder, values), python=python)
    np.testing.assert_allclose(found, logits(load_package(model), values), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) for name in ("bert", "distilbert")] + ["pieces"]
)
def test_plain_transformers_loads_the_hugging_face_folder(tmp_path: Path, name: str) -> None:
    model, _ = case(tmp_path, name)
    export(model, "huggingface", "onnx")
    folder = (model / "export" / "huggingface").rename(tmp_path / "elsewhere")
    texts = table(name)["input"].to_pylist()
    code = f"""
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(folder)!r}).eval()
read = AutoTokenizer.from_pretrained({str(folder)!r})({texts!r}, padding=True, return_tensors="pt")
found = torch.softmax(model(**read).logits, 1).tolist()
print(json.dumps([found, model.config.id2label]))
"""
    found, names = plain_python(code, "ensemble_kd", "ray", "mlflow")
    expected = Predictor(model, "pytorch").answer(table(name)).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert list(names.values()) == ["cat", "dog", "eel"]
    # The same by hand, over the ONNX graph: its inputs are the tokenizer's.
    code = f"""
import numpy, onnxruntime
from tokenizers import Tokenizer
folder = {str(model / "export" / "onnx")!r}
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
found = []
for text in {texts!r}:
    ids = numpy.array([tokenizer.encode(text).ids], numpy.int64)
    found += session.run(None, {{"input_ids": ids, "attention_mask": numpy.ones_like(ids)}})[0].tolist()
print(json.dumps(found))
"""
    found = np.array(plain_python(code, "ensemble_kd", "torch", "ray", "transformers"))
    np.testing.assert_allclose(np.exp(found) / np.exp(found).sum(1, keepdims=True), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.long), "bert"])
def test_the_mlflow_model_answers_without_torch(tmp_path: Path, name: str) -> None:
    model, _ = case(tmp_path, name)
    export(model, "mlflow")
    folder = (model / "export" / "mlflow").rename(tmp_path / "elsewhere")
    assert not [p for p in folder.rglob("*") if p.suffix in (".pkl", ".bin", ".pt")]
    rows = table(name).to_pydict()
    code = f"""
import mlflow.pyfunc, pandas, sys
model = mlflow.pyfunc.load_model({str(folder)!r})
found = model.predict(pandas.DataFrame({rows!r}))
inside = sys.modules["ensemble_kd"].__file__
print(json.dumps([found["probabilities"].tolist(), found["label_name"].tolist(), inside]))
"""
    found, labels, inside = plain_python(code, "torch", "ray", "transformers")
    expected = Predictor(model, "pytorch").answer(table(name)).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert labels == [["cat", "dog", "eel"][i] for i in expected.argmax(1)]
    assert inside.startswith(str(folder))  # its own copy of the code, not what is installed


# ------------------------------------------------------------------------------------------ refusals


def test_a_graph_with_another_weight_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changed(Graph):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            with torch.no_grad():
                next(self.network.body.parameters()).view(-1)[0] += 0.5

    model, _ = case(tmp_path, "numbers")
    monkeypatch.setattr(forms_module, "Graph", Changed)
    with pytest.raises(ExportError, match=r"onnx: its logits differ .* by up to \S+ on 40 validation rows"):
        export(model, "onnx")
    assert not (model / "export" / "onnx").exists()
    assert not list((model / "export").iterdir())


def test_int8_that_loses_too_much_is_not_handed_over(tmp_path: Path) -> None:
    model, _ = case(tmp_path, "numbers")
    source = load_package(model)
    rows = at_the_boundary(source)
    with pytest.raises(
        ExportError, match=r"int8: dynamic loses \d+\.\d+, static loses .* allowed are 0; allow more"
    ) as caught:
        export_forms(source, model / "export", ExportConfig(max_accuracy_loss=0), rows)
    assert "forms that were made: onnx" in str(caught.value)
    assert (model / "export" / "onnx" / "model.onnx").exists() and not (model / "export" / "int8").exists()


def at_the_boundary(source: Package) -> Rows:
    """Rows so near to a boundary between two classes that rounding changes the label of some."""
    inputs = inputs_of(source.info)
    labels = logits(source, inputs).argmax(1)
    start, end = inputs[0], inputs[np.flatnonzero(labels != labels[0])[0]]
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        point = (start + middle * (end - start))[None].astype(np.float32)
        low, high = (middle, high) if logits(source, point).argmax() == labels[0] else (low, middle)
    shares = low + np.linspace(-0.01, 0.01, 64)[:, None]
    near = (start + shares * (end - start)).astype(np.float32)
    return Rows(near, logits(source, near).argmax(1))


class Unknown(nn.Module):
    """A step that ONNX has no operator for."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(input_shape[0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.special.bessel_j0(x))


def test_an_operator_that_onnx_lacks_is_named_and_other_forms_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLE_KD_TRUST", "another, export.test_forms")
    custom = {"name": "custom", "callable": "export.test_forms:Unknown"}
    sys.modules["export.test_forms"] = sys.modules[__name__]
    model, _ = package(tmp_path, "numeric", custom)
    with pytest.raises(ExportError, match="bessel_j0") as caught:
        export(model, "onnx", "int8", "program")
    assert len(caught.value.problems) == 2  # the operator once, and the forms
    assert "forms that were made: program" in str(caught.value)
    assert (model / "export" / "program" / "model.pt2").exists()


def test_a_damaged_form_is_refused(with_graph: Path) -> None:
    folder = with_graph / "export" / "onnx"
    (folder / "model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError, match="pickle"):
        load_onnx(folder)
    (folder / "model.bin").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    outside = {**manifest, "files": {**manifest["files"], "../../../other": {"bytes": 1, "sha256": ""}}}
    (folder / "manifest.json").write_text(json.dumps(outside))
    with pytest.raises(ArtifactError, match="outside"):
        load_onnx(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(graph[:-1] + bytes([graph[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="checksum"):
        load_onnx(folder)
    (folder / "model.onnx").write_bytes(graph)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ArtifactError, match="format 99, this version reads"):
        load_onnx(folder)


def test_a_form_of_another_student_is_not_used(with_graph: Path, tmp_path: Path) -> None:
    model = with_graph
    config = json.loads((model / "export" / "onnx" / "config.json").read_text())
    assert config["lineage"] == {"student": "s"}
    other = load_package(model)
    save_package(
        tmp_path / "two",
        other.network,
        other.model,
        other.info,
        "",
        None,
        lineage={"student": "t"},
        calibration=None,
        forms=model / "export",
    )
    with pytest.raises(ArtifactError, match="exported from another student"):
        Predictor(tmp_path / "two", "onnx")


# ------------------------------------------------------------------------------------- around a folder


def test_a_second_export_keeps_what_is_there(with_graph: Path) -> None:
    model = with_graph
    before = (model / "export" / "onnx" / "manifest.json").stat().st_mtime_ns
    export(model, "onnx", "int8")
    assert (model / "export" / "onnx" / "manifest.json").stat().st_mtime_ns == before
    export(model, "onnx", tolerance=1e-2)
    assert (model / "export" / "onnx" / "manifest.json").stat().st_mtime_ns > before


def test_forms_of_the_same_weights_outlive_the_folder(with_graph: Path) -> None:
    model = with_graph
    source = load_package(model)
    network = source.network
    save_package(model, network, source.model, source.info, "# another card", None, lineage=source.lineage)
    assert (model / "export" / "onnx" / "model.onnx").exists()
    assert Predictor(model).form == "onnx"
    folder = (model, network, source.model, source.info, "# card", None)
    save_package(
        *folder, lineage=source.lineage, calibration={"temperature": 1.0, "threshold": None}
    )  # that is none
    assert Predictor(model).form == "onnx"
    save_package(*folder, lineage=source.lineage, calibration={"temperature": 2.0})
    assert not (model / "export").exists()
    export(model, "onnx")
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    save_package(model, network, source.model, source.info, "# card", None, lineage={"student": "t"})
    assert not (model / "export").exists() and Predictor(model).form == "pytorch"


def test_a_folder_away_from_its_run_needs_rows(tmp_path: Path) -> None:
    model, _ = package(tmp_path, "numeric", input=["f0", "f1", "f2", "f3"])
    with pytest.raises(InputError, match=r"no validation rows .* --rows FILE"):
        export_folder(model, ["onnx"])
    rows = tmp_path / "rows.csv"
    rows.write_text("f0,f1,f2,f3\n" + "1,2,3,4\n0,1,0,2\n,,,\n5,4,3,1\n" * 8)
    made = export_folder(model, ["onnx"], str(rows))
    assert made["onnx"]["validation_rows"] == 24 and "accuracy" not in made["onnx"]
    assert is_model_folder(str(model)) == model and is_model_folder(str(tmp_path)) == model
    with pytest.raises(InputError, match="this student is no transformers model"):
        export_folder(model, ["huggingface"], str(rows))
    with pytest.raises(InputError, match=r"--form: 'onx'; use onnx, int8"):
        export_folder(model, ["onx"], str(rows))
    rows.write_text("f0,f1,f2,f3\n,,,\n")
    with pytest.raises(InputError, match="--rows: .*rows.csv holds no row that can be read"):
        export_folder(model, ["int8"], str(rows))
    rows.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="--rows: rows.csv has no column 'f0'"):
        export_folder(model, ["int8"], str(rows))


def test_the_temperature_is_in_the_graph(tmp_path: Path) -> None:
    model, _ = case(tmp_path, "numbers")
    source = load_package(model)
    source.calibration["temperature"] = 2.0
    inputs = inputs_of(source.info)
    export_forms(source, model / "export", ExportConfig(forms=["onnx"]), Rows(inputs, None))
    graph, config = load_onnx(model / "export" / "onnx")
    np.testing.assert_allclose(graph.logits(inputs), logits(source, inputs) / 2, atol=1e-5)
    assert config["calibration"] == {"temperature": 2.0}


# ------------------------------------------------------------------------------------------- the graph


def test_both_written_out_lstms_are_the_packed_one(tmp_path: Path) -> None:
    model, network = case(tmp_path, "bilstm")
    tokens = torch.from_numpy(inputs_of(info_of("text"), 16)).long()
    tokens[0] = 0  # a text without tokens
    unrolled = UnrolledBiLSTM(network.body)  # type: ignore[arg-type]
    torch.testing.assert_close(unrolled(tokens).logits, network(tokens).logits)
    assert len(OnnxBiLSTM(network.body).weights) == 6  # type: ignore[arg-type]


def test_inputs_of_graphs() -> None:
    tokens = np.array([[6, 7, 0], [1, 0, 0]], np.int32)
    found = feed(info_of("pieces"), tokens)
    assert found["input_ids"].tolist() == [[5, 6, 0], [0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert feed(info_of("text"), tokens)["tokens"].tolist() == tokens.tolist()


def test_texts_come_in_parts_of_about_one_length() -> None:
    tokens = inputs_of(info_of("text"), 50)
    parts = by_length(tokens, 8, 40)
    assert sorted(np.concatenate(parts).tolist()) == list(range(50))
    lengths = (tokens != 0).sum(1)
    for rows in parts:
        assert len(rows) <= 8 and (len(rows) == 1 or lengths[rows].max() * len(rows) <= 40)
    longest = [lengths[rows].max() for rows in parts]
    assert longest == sorted(longest)
