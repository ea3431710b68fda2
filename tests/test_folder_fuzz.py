"""Whatever stands in a model folder's files: it loads, or is refused in one paragraph, soon and cheaply."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hostile import limit_memory, put, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_cases import case, inputs_of

from ensemble_kd.config import ExportConfig
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import export_forms
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.package import load_package
from ensemble_kd.predict import result

NAMES = ("numbers", "resnet", "bag", "bilstm", "pieces", "bert")
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 255, 1 << 20, 1 << 31, 1 << 63, 10**30, 0.0, -0.5, 1e-300, 1e300,
    "", "a", "text", "image", "numeric", "mlp", "custom", "transformer", "pretrained", "../../x",
    "/etc/passwd", "os:system", "x" * 100_000, "\x00", "\x1b[31m", "\n", [], [[]], [0], [1] * 1000, [10**9],
    {}, {"a": {"a": 1}}, {"name": "custom", "callable": "os:system"}, [[1]] * 200, ["a", "a"],
]  # fmt: skip
"""Values that a field of another type, or of another size, may be replaced by."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made(tmp_path_factory.mktemp("fuzz"))


def made(place: Path) -> dict[str, Path]:
    """A whole model folder of each kind; `numbers` has its ONNX form."""
    found = {name: case(place / name, name)[0] for name in NAMES}
    source = load_package(found["numbers"])
    inputs = inputs_of(source.info)
    rows = Rows(inputs, inputs.argmax(1) % 3)
    export_forms(source, found["numbers"] / "export", ExportConfig(forms=["onnx"]), rows)
    return found


def files_of(folder: Path) -> list[str]:
    """Those that loading reads, relative to the folder."""
    ends = (".json", ".safetensors", ".onnx")
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in ends)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a structure, from the whole of it down."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in inside for found in places(inner, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with `new` at the path; `KeyError` the class stands for leaving the place out."""
    if not path:
        return None if new is KeyError else new
    value = copy.deepcopy(value)
    *before, last = path
    here = value
    for key in before:
        here = here[key]
    if new is KeyError:
        del here[last]
    else:
        here[last] = new
    return value


def write(folder: Path, name: str, content: bytes) -> None:
    """The file, and the manifest beside it made to fit; a manifest stands as it is."""
    place, base = (folder / name).parent, Path(name).name
    if base == "manifest.json":
        (place / base).write_bytes(content)
    else:
        put(place, base, content)


def answer(predictor: Predictor) -> None:
    """A folder that loads answers, or says why not, for each row."""
    value: Any = {"image": b"\x00" * 60, "numeric": [0.0] * 4, "text": "a text"}[predictor.info.kind]
    if predictor.info.kind == "numeric" and len(predictor.columns) > 1:
        value = 1.5
    table = pa.table({name: [value, None] for name in predictor.columns})
    answers = predictor.answer(table)
    assert result(table, answers, predictor, 0, keep_bad=True).num_rows == 2


def holds(original: Path, name: str, content: bytes) -> None:
    """The property, for one file of the folder replaced."""
    folder = original.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    write(folder, name, content)
    form = "auto" if "onnx" in name else "pytorch"
    if refusal(folder, form) is None:
        answer(Predictor(folder, form))


quickly = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40, derandomize=True)


@quickly
@given(st.sampled_from(NAMES), st.data())
def test_any_field_replaced_by_any_value(originals: dict[str, Path], name: str, data: st.DataObject) -> None:
    original = originals[name]
    jsons = [file for file in files_of(original) if file.endswith(".json")]
    file = data.draw(st.sampled_from(jsons))
    value = json.loads((original / file).read_text())
    path = data.draw(st.sampled_from(places(value)))
    new = data.draw(st.sampled_from([KeyError, *ODD]) | json_values)
    holds(original, file, json.dumps(replaced(value, path, new)).encode())


@quickly
@given(st.sampled_from(NAMES), st.data())
def test_any_bytes_flipped_cut_or_put_in(originals: dict[str, Path], name: str, data: st.DataObject) -> None:
    original = originals[name]
    file = data.draw(st.sampled_from(files_of(original)))
    content = (original / file).read_bytes()
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "random"]))
    some = data.draw(st.binary(min_size=1, max_size=64))
    changed = {
        "flip": content[:at] + bytes([content[at] ^ some[0] or 255]) + content[at + 1 :] if content else some,
        "cut": content[:at],
        "insert": content[:at] + some + content[at:],
        "random": some,
    }[kind]
    holds(original, file, changed)


def hunt(seconds: float, seed: int) -> int:
    """The same for a while, without hypothesis: several changes at once, from `seed`; returns the tries."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="hunt-"))
    originals = made(place)
    limit_memory(6 << 30)  # threads and mapped libraries take addresses, not memory; `refusal` counts that
    draw, tries, end = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        original = originals[draw.choice(NAMES)]
        file = draw.choice(files_of(original))
        content = (original / file).read_bytes()
        if file.endswith(".json") and draw.random() < 0.8:
            value = json.loads(content)
            for _ in range(draw.choice((1, 1, 2, 4))):
                new = draw.choice([KeyError, *ODD])
                value = replaced(value, draw.choice(places(value)), new)
            content = json.dumps(value).encode()
        else:
            for _ in range(draw.choice((1, 2, 8))):
                at = draw.randrange(max(1, len(content)))
                if draw.random() < 0.7 and content:
                    content = content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
                else:
                    content = content[:at] + draw.choice((b"", draw.randbytes(8) + content[at:]))
        tries += 1
        try:
            holds(original, file, content)
        except BaseException:
            (place / "found").write_bytes(content)
            print(f"seed {seed}, try {tries}: {original.parent.name}, {file}; {place / 'found'}", flush=True)
            raise
    shutil.rmtree(place)
    return tries


@pytest.mark.slow
@pytest.mark.long
def test_a_hunt_in_a_process_of_little_memory() -> None:
    code = f"import test_folder_fuzz as fuzz; print(fuzz.hunt(60, {os.getpid()}))"
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert int(done.stdout.split()[-1]) > 100
