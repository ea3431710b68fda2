"""Run as a program: exported forms as their users have them, in a process that has nothing of this package.

Each line of standard input is a JSON object {form, folder, inputs, rows, output}: `inputs` are numpy's files
by the names of the form's own inputs, `rows` an Arrow file or null. The logits go into `output`, and
{"error": ...} to standard output. What an MLflow model carries is all that it finds of us.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

OURS = "ensemble_kd"


class NothingOfOurs(MetaPathFinder):
    """Finds our modules in the folder of the form alone, however this package is installed."""

    folder: str | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != OURS:
            return None
        code = [str(Path(self.folder) / "code")] if self.folder else []
        spec = PathFinder.find_spec(name, path if "." in name else code)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not among what the form carries")
        return spec

    def forget(self) -> None:
        """What the form before has brought along."""
        for name in [name for name in sys.modules if name.partition(".")[0] == OURS]:
            del sys.modules[name]
        if self.folder:
            sys.path[:] = [entry for entry in sys.path if not entry.startswith(self.folder)]


def onnx(folder: Path, inputs: dict[str, np.ndarray], rows: str | None) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    logits: np.ndarray = session.run(None, inputs)[0]
    return logits


def program(folder: Path, inputs: dict[str, np.ndarray], rows: str | None) -> np.ndarray:
    import torch

    module = torch.export.load(folder / "model.pt2").module()
    with torch.inference_mode():
        logits: np.ndarray = module(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    return logits


def huggingface(folder: Path, inputs: dict[str, np.ndarray], rows: str | None) -> np.ndarray:
    import torch
    import transformers

    if (folder / "modules.json").is_file():
        return sentence_transformers(folder, inputs)
    image = "pixel_values" in inputs
    auto: Any = (
        transformers.AutoModelForImageClassification
        if image
        else transformers.AutoModelForSequenceClassification
    )
    model = auto.from_pretrained(folder).eval()
    if not image:
        transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        logits: np.ndarray = model(**given).logits.numpy()
    return logits


def sentence_transformers(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """By that library where it is installed, else by what its folder says."""
    import torch
    import transformers

    given: Any = {name: torch.from_numpy(array) for name, array in inputs.items()}
    transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        if find_spec("sentence_transformers") is None:
            logits: np.ndarray = by_hand(folder, given).numpy()
            return logits
        from sentence_transformers import SentenceTransformer

        logits = SentenceTransformer(str(folder), device="cpu")(given)["sentence_embedding"].numpy()
    return logits


def by_hand(folder: Path, given: Any) -> Any:
    """(B, C) logits of such a folder, by transformers."""
    import torch
    import transformers
    from safetensors.torch import load_file

    said = json.loads((folder / "1_Pooling" / "config.json").read_text())
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    states = transformers.AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    inside = given["attention_mask"].unsqueeze(-1)
    pooled = (states * inside).sum(1) / inside.sum(1)
    if said["pooling_mode_max_tokens"]:
        pooled = states.masked_fill(inside == 0, float("-inf")).amax(1)
    return torch.nn.functional.linear(pooled, dense["linear.weight"], dense.get("linear.bias"))


def mlflow(folder: Path, inputs: dict[str, np.ndarray], rows: str | None) -> np.ndarray:
    """Answers rows as a user sends them, too."""
    import mlflow.pyfunc
    import pyarrow as pa

    model = mlflow.pyfunc.load_model(str(folder))
    with pa.OSFile(rows) as file:
        table = pa.ipc.open_file(file).read_all()
    if len(model.predict(table.to_pandas())) != table.num_rows:
        raise ValueError("not an answer for each row")
    (array,) = inputs.values()
    logits: np.ndarray = model.unwrap_python_model().predictor.logits(array)
    return logits


FORMS = {"onnx": onnx, "int8": onnx, "program": program, "huggingface": huggingface, "mlflow": mlflow}


def read(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        found: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return found


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    finder = NothingOfOurs()
    sys.meta_path.insert(0, finder)
    for line in sys.stdin:
        asked = json.loads(line)
        finder.forget()
        finder.folder = asked["folder"]
        try:
            given = {name: read(path) for name, path in asked["inputs"].items()}
            logits = FORMS[asked["form"]](Path(asked["folder"]), given, asked["rows"])
            np.save(asked["output"], logits, allow_pickle=False)
            error = None
        except Exception as failure:  # whatever it is, it is what a user of the form would see
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
