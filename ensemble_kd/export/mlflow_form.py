"""An MLflow model: pyfunc, logged as code, that runs the ONNX graph. Nothing in it is a pickle."""

from __future__ import annotations

import ast
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import ensemble_kd
from ensemble_kd.artifacts import Identity, finish
from ensemble_kd.data.preprocess import table_encoder
from ensemble_kd.data.records import DataInfo
from ensemble_kd.errors import ExportError
from ensemble_kd.export.graph import first_words
from ensemble_kd.models.package import Package
from ensemble_kd.targets import target_in

NEEDS = ["numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "onnxruntime", "tokenizers"]
"""What the code beside the model imports; neither torch nor Ray."""
MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
LEFT_OUT = ("models", "train", "api")
"""Rooms that only the PyTorch form asks for, inside functions: the model runs the ONNX graph. And the Python
interface, which loads at its first use."""


def write_mlflow(graph: Path, source: Package, inputs: np.ndarray, folder: Path) -> None:
    """Save the model into `folder`; `graph` is the folder of the ONNX form, `inputs` a few rows.

    Raises ExportError.
    """
    with _quiet():  # importing it warns
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    files = [path.name for path in graph.iterdir()]
    finish(graph, Identity("export", "", {"form": "onnx"}, {}), files, {})
    example = example_rows(source.info, inputs)
    kinds = {
        "integer": DataType.long,
        "string": DataType.string,
        "number": DataType.double,
        "array": Array(DataType.double),
    }
    fields = target_in(source.info).row_schema(None)
    answers = Schema([ColSpec(kinds[field["type"][0]], name) for name, field in fields.items()])
    required = "table" not in source.info["preprocess"]  # of a table's columns values may be missing
    columns = Schema([_column(name, example[name][0], required) for name in example])
    texts = source.info["kind"] == "text"
    options = ParamSchema([ParamSpec("truncate", DataType.boolean, False)]) if texts else None
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        _copy_code(Path(scratch) / "ensemble_kd")
        try:
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(MODEL_CODE),
                artifacts={"model": str(graph)},
                code_paths=[str(Path(scratch) / "ensemble_kd")],
                pip_requirements=["mlflow", *NEEDS],
                signature=ModelSignature(inputs=columns, outputs=answers, params=options),
                input_example=_frame(example),
                metadata={"lineage": source.lineage},
            )
        except Exception as error:  # MLflow's errors, and those of what it calls
            raise ExportError(f"mlflow: {type(error).__name__}: {first_words(error)}") from error


def _copy_code(target: Path) -> None:
    """The modules that prediction imports."""
    home = Path(ensemble_kd.__file__).parent
    for path in carried():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / path, target / path)


def carried() -> list[Path]:
    """Files of this package, relative to it, that the model's code imports, and what these import in turn."""
    home = Path(ensemble_kd.__file__).parent
    found: set[Path] = set()
    waiting = [MODEL_CODE]
    while waiting:
        for name in _imported(waiting.pop()):
            parts = name.split(".")[1:]
            if parts[:1] and parts[0] in LEFT_OUT:
                continue
            packages = [Path(*parts[:i], "__init__.py") for i in range(len(parts) + 1)]
            for path in (*packages, Path(*parts).with_suffix(".py") if parts else Path("__init__.py")):
                if path not in found and (home / path).is_file():
                    found.add(path)
                    waiting.append(home / path)
    return sorted(found)


def _imported(path: Path) -> Iterator[str]:
    """Names of ours that a file imports, anywhere in it; of `from a import b` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.partition(".")[0] == ensemble_kd.__name__)


def example_rows(info: dict[str, Any], inputs: np.ndarray) -> dict[str, list[Any]]:
    """Rows as a user would send them, by column: texts are made up, images are raw bytes."""
    columns = info["preprocess"]["columns"]["input"]
    names = [columns] if isinstance(columns, str) else list(columns)
    if info["kind"] == "text":
        return {name: ["text", "more"] for name in names}
    if table := table_encoder(DataInfo.from_dict(info)):
        return {name: [value, value] for name, value in zip(names, table.example(), strict=True)}
    rows = inputs[:2]
    if len(names) > 1:
        flat = rows.reshape(len(rows), -1)
        return {name: [float(value) for value in flat[:, i]] for i, name in enumerate(names)}
    if info["kind"] == "image":
        return {names[0]: [row.tobytes() for row in rows]}
    return {names[0]: [[float(value) for value in row] for row in rows]}


def _column(name: str, value: Any, required: bool) -> Any:
    from mlflow.types.schema import Array, ColSpec, DataType

    if isinstance(value, list):
        return ColSpec(Array(DataType.double), name)
    kinds = {str: DataType.string, bytes: DataType.binary, float: DataType.double}
    return ColSpec(kinds[type(value)], name, required=required)


def _frame(columns: dict[str, list[Any]]) -> Any:
    return pa.table(columns).to_pandas()


def load_mlflow(folder: Path, info: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """(B, ...) inputs as the data stage writes them -> (B, C) logits of the model inside."""
    with _quiet(), behind():
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(str(folder)).unwrap_python_model()
    return lambda inputs: model.predictor.logits(inputs)


@contextmanager
def behind() -> Iterator[None]:
    """What is put before sys.path in here goes to its end: a model brings modules of our name along, and
    other processes that start with this one's path are to find ours."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [*before, *(entry for entry in sys.path if entry not in before)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's notes on versions and hints."""
    import mlflow.environment_variables as settings

    bars = settings.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
    shown = bars.get_raw()
    bars.set(False)
    level = logging.getLogger("mlflow").level
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("mlflow").setLevel(level)
        bars.unset() if shown is None else bars.set(shown)
