"""Model folders of strangers: none runs code, leads outside, or takes more than a moment to be refused."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import change, put, refusal
from model_cases import MODELS, case, package
from typer.testing import CliRunner

from ensemble_kd.cli import app
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.export.folder import export_folder
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.package import load_package
from ensemble_kd.predict import load_predictor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model folder of each kind; tests copy what they change."""
    return {name: case(tmp_path_factory.mktemp(name), name)[0] for name in MODELS}


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def made(name: str) -> Path:
        return Path(shutil.copytree(folders[name], tmp_path / name))

    return made


Copy = Callable[[str], Path]


def test_unchanged_folders_load(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert refusal(folder) is None, name


# ---------------------------------------------------------------------------------------------- code


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the module `stranger`, once imported, leaves behind."""
    marker = tmp_path / "it ran"
    code = f"""
from pathlib import Path
from torch import nn
Path({str(marker)!r}).write_text("")
class Net(nn.Module):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.head = nn.Linear(input_shape[0], num_classes)
    def forward(self, x):
        return self.head(x)
"""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "stranger.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return marker


def test_a_custom_model_loads_only_where_its_module_is_trusted(
    tmp_path: Path, stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = package(tmp_path, "numeric", {"name": "custom", "callable": "stranger:Net"})
    stranger.unlink()
    sys.modules.pop("stranger")
    for other in ("", "other", "stranger.Net", "strange"):
        monkeypatch.setenv("ENSEMBLE_KD_TRUST", other)
        text = refusal(model)
        assert text is not None and "--trust stranger" in text and "ENSEMBLE_KD_TRUST=stranger" in text
        with pytest.raises(InputError, match="--trust stranger"):
            export_folder(model, ["onnx"])
    assert not stranger.exists() and "stranger" not in sys.modules
    assert load_predictor(model, trust=["stranger"]).form == "pytorch" and stranger.exists()
    monkeypatch.setenv("ENSEMBLE_KD_TRUST", "other, stranger")
    assert refusal(model) is None


def test_predict_takes_trust_on_the_command_line(tmp_path: Path, stranger: Path) -> None:
    model, _ = package(tmp_path, "numeric", {"name": "custom", "callable": "stranger:Net"})
    pq.write_table(pa.table({"input": [[0.0, 1.0, 2.0, 3.0]]}), tmp_path / "rows.parquet")
    arguments = ["predict", str(model), str(tmp_path / "rows.parquet")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "--trust stranger" in result.output and "Traceback" not in result.output
    result = CliRunner().invoke(app, [*arguments, "--trust", "other", "--trust", "stranger"])
    assert result.exit_code == 0 and "probabilities" in result.output


def test_an_mlflow_model_is_never_loaded(copy: Copy, stranger: Path) -> None:
    folder = copy("numbers")
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: stranger}}")
    text = refusal(folder)
    assert text is not None and "is code" in text and not stranger.exists()


def test_torch_hub_is_not_called(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.hub

    called: list[Any] = []
    monkeypatch.setattr(torch.hub, "load", lambda *args, **options: called.append(options))
    folder = copy("numbers")
    model = {"name": "custom", "callable": "torch.hub:load", "options": {"repo_or_dir": "a/b", "model": "c"}}
    change(folder, lambda config: config.update(model=model))
    text = refusal(folder)
    assert text is not None and "--trust torch.hub" in text and not called


def test_code_that_comes_with_a_model_never_runs(copy: Copy, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    marker = tmp_path / "it ran"
    auto = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (source / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    (source / "code.py").write_text(f"open({str(marker)!r}, 'w')")
    folder = copy("bert")
    change(folder, lambda config: config["model"].update(source=str(source), trust_remote_code=True))
    text = refusal(folder)
    assert text is not None and "trust_remote_code" in text
    change(folder, lambda config: config["model"].update(trust_remote_code=False))
    text = refusal(folder)
    assert text is not None and "model.source" in text and not marker.exists()


@pytest.mark.parametrize(
    "field",
    [
        {"auto_map": {"AutoConfig": "x.Y"}},
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "x"}},
        {"backbone": "someone/model", "use_pretrained_backbone": True},
        {"num_labels": 10**9},
        {"model_type": "timm_wrapper"},
    ],
)
def test_fields_by_which_transformers_reads_something_else_are_refused(
    copy: Copy, field: dict[str, Any]
) -> None:
    folder = copy("vit")
    change(folder, lambda config: config["model"]["architecture"].update(field))
    text = refusal(folder)
    assert text is not None and "not taken from a model folder" in text


# --------------------------------------------------------------------------------------------- paths

FILES = ("manifest.json", "config.json", "weights.safetensors", "tokenizer.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "folder"])
def test_what_is_no_plain_file_is_refused_and_not_opened(copy: Copy, name: str, kind: str) -> None:
    folder = copy("bert")
    path = folder / name
    outside = folder.parent / "outside"
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path is short
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(name)
        finally:
            os.chdir(here)
    text = refusal(folder)
    assert text is not None and name in text
    assert ("link" if kind == "link" else "plain file") in text


@pytest.mark.parametrize(
    "name", ["export", "export/onnx", "export/onnx/model.onnx", "export/mlflow", "notes"]
)
def test_links_to_folders_are_refused(copy: Copy, name: str) -> None:
    folder = copy("numbers")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "elsewhere").mkdir()
    (folder / name).symlink_to(folder.parent / "elsewhere")
    text = refusal(folder)
    assert text is not None and "link" in text
    with pytest.raises(InputError, match="link"):
        export_folder(folder, ["onnx"])


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../outside", "", ".", "x\0y", "n" * 5000, "a\nb/c", "con:x"]
)
def test_names_in_the_manifest_stay_inside(copy: Copy, name: str) -> None:
    folder = copy("numbers")
    (folder.parent / "outside").write_text("{}")
    change(folder, lambda m: m["files"].update({name: {"bytes": 2, "sha256": "0" * 64}}), "manifest.json")
    assert refusal(folder) is not None


def test_lineage_does_not_lead_the_export_elsewhere(copy: Copy) -> None:
    folder = copy("numbers")
    (folder.parent / "outside").mkdir()
    (folder.parent / "data").mkdir()
    change(folder, lambda config: config["lineage"].update(data="../outside"))
    with pytest.raises(InputError, match="not inside its run folder"):
        export_folder(folder, ["onnx"])


# --------------------------------------------------------------------------------------------- sizes

HUGE = 10**12


def architecture(**fields: Any) -> dict[str, Any]:
    return {"model": {"architecture": fields}}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("numbers", {"model": {"hidden": [HUGE]}}),
        ("numbers", {"model": {"hidden": [10**6]}}),
        ("numbers", {"model": {"hidden": [8] * 100_000}}),
        ("numbers", {"info": {"num_classes": 10**6}}),
        ("numbers", {"info": {"input_shape": [HUGE]}}),
        ("numbers", {"info": {"input_shape": [1 << 24], "mean": [], "std": []}}),
        ("mlp", {"info": {"input_shape": [4096, 4096, 3]}}),
        ("cnn", {"model": {"channels": [8] * 100_000}}),
        ("cnn", {"model": {"channels": [HUGE]}}),
        ("resnet", {"model": {"blocks": 100_000}}),
        ("resnet", {"model": {"width": HUGE}}),
        ("resnet", {"info": {"input_shape": [HUGE, 4, 3]}}),
        ("resnet", {"info": {"input_shape": [10**9, 4, 3]}}),
        ("bag", {"model": {"embedding": 10**9}}),
        ("bag", {"info": {"vocabulary_size": HUGE}}),
        ("bag", {"info": {"vocabulary_size": 1 << 24}}),
        ("bag", {"info": {"input_shape": [HUGE]}}),
        ("text_cnn", {"model": {"filters": 10**9}}),
        ("text_cnn", {"model": {"widths": [60] * 64, "embedding": 1}}),
        ("text_cnn", {"model": {"hidden": [8] * 100_000}}),
        ("bilstm", {"model": {"layers": 100_000}}),
        ("bilstm", {"model": {"hidden": 10**7}}),
        ("bert", architecture(num_hidden_layers=100_000)),
        ("bert", architecture(num_hidden_layers=999)),
        ("bert", architecture(hidden_size=HUGE)),
        ("bert", architecture(hidden_size=1 << 20)),
        ("bert", architecture(vocab_size=10**9)),
        ("bert", architecture(max_position_embeddings=1 << 20)),
        ("bert", architecture(intermediate_size=1 << 20)),
        ("bert", architecture(type_vocab_size=1 << 20)),
        ("distilbert", architecture(sinusoidal_pos_embds=True, max_position_embeddings=1 << 20)),
        ("vit", architecture(num_hidden_layers=10**6)),
        ("vit", architecture(hidden_size=1 << 20)),
        ("bert", {"model": {"architecture": {"model_type": "albert", "num_hidden_layers": 10**8}}}),
        ("bag", {"info": {"preprocess": {"text": {"char_ngrams": [1, 10**9]}}}}),
        ("pieces", {"model": {"pieces": [0] * 100_000}}),
        ("pieces", {"model": {"pieces": [-1, 2, 3]}}),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(
    copy: Copy, name: str, fields: dict[str, Any]
) -> None:
    folder = copy(name)

    def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value

    change(folder, lambda config: merge(config, fields))
    assert refusal(folder) is not None


@pytest.mark.parametrize("length", [1 << 62, 1 << 31, 16_000_001])
def test_a_header_longer_than_its_file_is_refused(copy: Copy, length: int) -> None:
    folder = copy("numbers")
    put(folder, "weights.safetensors", length.to_bytes(8, "little") + b"{}")
    text = refusal(folder)
    assert text is not None and "header" in text


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, HUGE]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": [], "shape": 1, "data_offsets": None},
        [],
        None,
    ],
)
def test_odd_entries_of_a_header_are_refused(copy: Copy, entry: Any) -> None:
    folder = copy("numbers")
    header = json.dumps({"body.head.weight": entry}).encode()
    put(folder, "weights.safetensors", len(header).to_bytes(8, "little") + header + b"\0" * 4)
    text = refusal(folder)
    assert text is not None and "safetensors" in text


# ---------------------------------------------------------------------------------------------- JSON

TEXTS = {
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested blocks": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "exponent": b'{"format": 1e999}',
    "nan": b'{"format": NaN}',
    "infinity": b'{"format": -Infinity}',
    "twice": b'{"format": 1, "format": 1}',
    "latin": '{"format": "é"}'.encode("latin-1"),
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "bom": b"\xef\xbb\xbf{}",
    "surrogate": b'{"format": "\\ud800"}',
    "true": b'{"format": true}',
    "many": b"[" + b"[]," * 3_000_000 + b"[]]",
}


@pytest.mark.parametrize("name", FILES[:2] + FILES[3:])
@pytest.mark.parametrize("kind", TEXTS)
def test_odd_json_is_one_line(copy: Copy, name: str, kind: str) -> None:
    folder = copy("bert")
    if name == "manifest.json":
        (folder / name).write_bytes(TEXTS[kind])
    else:
        put(folder, name, TEXTS[kind])
    text = refusal(folder)
    assert text is not None and name in text


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of everything in a structure, itself left out."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in inside for found in [(*path, key), *paths_of(inner, (*path, key))]]


@pytest.mark.parametrize("name", ["numbers", "mlp", "bert", "bag"])
def test_each_field_missing_or_odd_is_one_line(folders: dict[str, Path], copy: Copy, name: str) -> None:
    """Or changes nothing; but a network of another shape never answers."""
    original = json.loads((folders[name] / "config.json").read_text())
    folder = copy(name)
    refused = 0
    for path in paths_of(original):
        odds: tuple[Any, ...] = (None, -1, "odd", {"a": 1}, [], 1.5, True)
        for odd in odds:
            value = json.loads(json.dumps(original))
            *before, last = path
            here = value
            for key in before:
                here = here[key]
            if odd is None and isinstance(here, dict):
                del here[last]
            else:
                here[last] = odd
            put(folder, "config.json", json.dumps(value))
            refused += refusal(folder) is not None
    assert refused > 30


# ---------------------------------------------------------------------------- the tokenizer and the graph


@pytest.mark.parametrize(
    "fields",
    [
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
            }
        },
        {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {}}},
        {"model": None},
        {"version": "9"},
    ],
)
def test_an_odd_tokenizer_is_refused(copy: Copy, fields: dict[str, Any]) -> None:
    folder = copy("bert")
    change(folder, lambda tokenizer: tokenizer.update(fields), "tokenizer.json")
    text = refusal(folder)
    assert text is not None and ("tokenizer" in text or "answer" in text)


def test_a_tokenizer_that_pads_to_any_length_does_not(copy: Copy) -> None:
    folder = copy("bert")
    padding = {
        "strategy": {"Fixed": 10**9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    change(folder, lambda tokenizer: tokenizer.update(padding=padding), "tokenizer.json")
    assert refusal(folder) is None


def test_a_tokenizer_with_numbers_beyond_the_vocabulary_is_refused(copy: Copy) -> None:
    folder = copy("bert")
    whole = (folder / "tokenizer.json").read_bytes()
    for fields in ({"cls": ["[CLS]", 10**6]}, {"seldom": 10**6}):
        inside = "post_processor" if "cls" in fields else "model"

        def beyond(made: dict[str, Any], fields: Any = fields, inside: str = inside) -> None:
            (made[inside] if inside == "post_processor" else made[inside]["vocab"]).update(fields)

        put(folder, "tokenizer.json", whole)
        change(folder, beyond, "tokenizer.json")
        text = refusal(folder)
        assert text is not None and "beyond the vocabulary" in text


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with its ONNX form."""
    import numpy as np
    from model_cases import inputs_of

    from ensemble_kd.config import ExportConfig
    from ensemble_kd.export.form_checks import Rows
    from ensemble_kd.export.forms import export_forms

    model, _ = case(tmp_path_factory.mktemp("exported"), "numbers")
    source = load_package(model)
    rows = Rows(inputs_of(source.info), np.zeros(40, np.int64))
    export_forms(source, model / "export", ExportConfig(forms=["onnx"]), rows)
    return model


def test_a_graph_whose_weights_lie_elsewhere_is_refused(exported: Path, tmp_path: Path) -> None:
    import onnx

    model = Path(shutil.copytree(exported, tmp_path / "model"))
    place = model / "export" / "onnx"
    for where in ("../../../secret", "/etc/hostname", "inside"):
        graph = onnx.load(exported / "export" / "onnx" / "model.onnx")
        tensor = graph.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", where
        put(place, "model.onnx", graph.SerializeToString())
        text = refusal(model)
        assert text is not None and "another file" in text
    assert refusal(model, "pytorch") is None


def test_an_odd_graph_is_refused(exported: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    model = Path(shutil.copytree(exported, tmp_path / "model"))
    place = model / "export" / "onnx"
    assert refusal(model) is None
    content = (place / "model.onnx").read_bytes()
    for odd in (b"", b"\x80", b"no graph", content[:-40], content[:40], b"\x0a\xff\xff\xff\xff\xff\x7f"):
        put(place, "model.onnx", odd)
        assert refusal(model) is not None, odd[:40]
    graph = onnx.load(exported / "export" / "onnx" / "model.onnx")
    graph.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
    put(place, "model.onnx", graph.SerializeToString())
    text = refusal(model)
    assert text is not None and "a tensor of" in text
    # Another graph altogether: its input is called otherwise, or its output is of another shape.
    for name, width in (("words", 3), ("numbers", 7)):
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4])
        got = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, width])
        weight = helper.make_tensor("w", TensorProto.FLOAT, [4, width], [0.0] * 4 * width)
        node = helper.make_node("MatMul", [name, "w"], ["logits"])
        other = helper.make_model(helper.make_graph([node], "g", [given], [got], [weight]), ir_version=8)
        put(place, "model.onnx", other.SerializeToString())
        assert refusal(model) is not None


def updated(fields: dict[str, Any], config: dict[str, Any]) -> None:
    config.update(fields)


def summarised(fields: dict[str, Any], manifest: dict[str, Any]) -> None:
    manifest["summary"].update(fields)


def test_an_odd_receipt_of_a_form_is_made_anew(exported: Path, tmp_path: Path) -> None:
    """It has the right fingerprint, and not what is printed of it."""
    from ensemble_kd.artifacts import read_manifest
    from ensemble_kd.export.forms import _kept

    model = Path(shutil.copytree(exported, tmp_path / "model"))
    place = model / "export" / "onnx"
    manifest = read_manifest(place)
    assert manifest is not None and _kept(place, manifest.fingerprint) is not None
    whole = (place / "manifest.json").read_bytes()
    odd: list[dict[str, Any]] = [
        {"latency_ms": {}},
        {"model_bytes": "x"},
        {"form": "other"},
        {"accuracy": []},
        {"method": 3},
    ]
    for fields in odd:
        change(place, partial(summarised, fields), "manifest.json")
        assert _kept(place, manifest.fingerprint) is None, fields
        (place / "manifest.json").write_bytes(whole)


def test_a_form_of_the_folder_with_an_odd_description_is_refused(exported: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(exported, tmp_path / "model"))
    place = model / "export" / "onnx"
    odd: list[dict[str, Any]] = [
        {"info": {}},
        {"lineage": 7},
        {"calibration": {"temperature": 0}},
        {"model": None},
    ]
    for fields in odd:
        before = (place / "config.json").read_bytes()
        change(place, partial(updated, fields))
        assert refusal(model) is not None, fields
        put(place, "config.json", before)


def test_rows_are_prepared_a_few_at_a_time_where_inputs_are_large(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_kd.inference import predictor

    whole = Predictor(folders["numbers"])
    table = pa.table({"input": [[float(i), 1.0, 2.0, 3.0] for i in range(50)] + [None]})
    expected = whole.answer(table)
    monkeypatch.setattr(predictor, "MOST_BYTES", 4 * 4 * 7)
    found = whole.answer(table)
    assert found.problems == expected.problems and found.problems[-1] is not None
    assert found.probabilities[:50] == pytest.approx(expected.probabilities[:50], abs=1e-6)


def test_the_command_line_says_it_in_one_paragraph(copy: Copy) -> None:
    folder = copy("numbers")
    (folder / "config.json").write_text("{}")
    pq.write_table(pa.table({"input": [[0.0] * 4]}), folder.parent / "rows.parquet")
    for command in (["predict", str(folder), str(folder.parent / "rows.parquet")], ["export", str(folder)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and result.output.startswith("error:"), result.output
        assert len(result.output.splitlines()) == 1


def test_a_manifest_of_a_run_may_be_large_but_is_no_fifo(tmp_path: Path) -> None:
    from ensemble_kd.artifacts import read_manifest

    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="plain file"):
        read_manifest(tmp_path)
