"""A model folder that answers: rows in, probabilities out. Prediction, serving and MLflow go through here.

torch is loaded for the PyTorch form alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.artifacts import read_manifest
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.inference.onnx_model import load_onnx
from ensemble_kd.model_folder import EXPORT, read_format

GRAPHS = ("onnx", "int8")
FORMS = ("auto", "pytorch", *GRAPHS)


@dataclass
class Answers:
    """What a model says of N rows."""

    probabilities: np.ndarray
    """(N, C) float32; a bad row's are NaN. Of a regressor its values (N, 1), in the labels' units."""
    problems: list[str | None]
    """What is wrong with each row, None where nothing is."""

    @property
    def good(self) -> np.ndarray:
        """(M,) numbers of the rows that could be read."""
        return np.array([i for i, problem in enumerate(self.problems) if problem is None], np.int64)


class Predictor:
    """A model folder, or one exported form of it, ready to answer."""

    def __init__(self, folder: Path, form: str = "auto", threads: int = 1) -> None:
        """`form`: `pytorch`, or an exported `onnx` or `int8`; `auto` takes ONNX where its folder is there.

        ONNX was faster on every model that was measured, at batch 1 and at 32, and agrees with the student
        by the export's own check; int8 is never taken by itself, as it may answer differently.
        Raises ArtifactError where a file is missing, changed or a pickle, InputError for a form not there.
        """
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such folder; expected a model folder (RUN/model)")
        config = read_format(folder)
        if config.get("form") in GRAPHS:  # the folder of an exported form
            if form not in ("auto", config["form"]):
                raise InputError(f"--form: {form}, but {folder} is the form {config['form']}")
            place, form = folder, config["form"]
        else:
            place = folder / EXPORT / form if form in GRAPHS else folder
            if form == "auto":
                form, place = _automatic(folder)
            elif form in GRAPHS and not place.is_dir():
                raise InputError(
                    f"--form: no {form} in {folder}; run: ensemble-kd export {folder} --form {form}"
                )
        self.folder, self.form = folder, form
        if form in GRAPHS:
            self._graph, config = load_onnx(place, threads)
            if place != folder and config["lineage"] != read_format(folder)["lineage"]:
                raise ArtifactError(f"{place}: exported from another student than {folder}; export it again")
            self.temperature = 1.0  # in the graph already
            self.parameters: int | None = None
        else:
            self._load_torch(folder, threads)
        self.config = config
        self.calibration: dict[str, Any] = config.get("calibration", {})
        self.info = DataInfo.from_dict(config["info"])
        self._preprocessor = Preprocessor(self.info, place)

    def _load_torch(self, folder: Path, threads: int) -> None:
        import torch

        from ensemble_kd.models.package import load_package

        package = load_package(folder)
        torch.set_num_threads(threads)
        self._network, self._torch = package.network, torch
        self.temperature = float(package.calibration.get("temperature", 1.0))
        self.parameters = package.network.num_parameters

    @property
    def columns(self) -> list[str]:
        """Columns that a table must have."""
        return self._preprocessor.columns

    @property
    def id_column(self) -> str | None:
        """The training data's column of ids, which a table may have."""
        column: str | None = self.info.preprocess.get("columns", {}).get("id")
        return column

    @property
    def known_columns(self) -> list[str]:
        """Columns that a table may have: those of the input, and the training data's labels and ids."""
        named = self.info.preprocess.get("columns", {})
        return [*self.columns, *(named[key] for key in ("label", "id") if named.get(key))]

    @property
    def class_names(self) -> list[str]:
        return self.info.class_names

    @property
    def threshold(self) -> float | None:
        """The confidence below which the model had better not answer; None where none was fitted."""
        value: float | None = self.calibration.get("threshold")
        return value

    def logits(self, inputs: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """(N, C) float32, divided by the calibration's temperature."""
        if self.form in GRAPHS:
            return self._graph.logits(inputs, batch_size)
        from ensemble_kd.train.loop import predict

        if (
            self.info.kind == "text" and self.config["model"]["name"] != "custom"
        ):  # that one has a fixed width
            inputs = inputs[:, : int(np.flatnonzero((inputs != 0).any(0)).max(initial=0)) + 1]
        found = predict(
            self._network, self._torch.from_numpy(inputs), self._torch.device("cpu"), batch_size
        ).numpy()
        return found / np.float32(self.temperature)

    def answer(self, table: pa.Table, batch_size: int = 1024, truncate: bool = True) -> Answers:
        """Probabilities of every row. Raises InputError where a column is missing.

        Without `truncate` a text beyond the length that the model takes is a bad row.
        """
        inputs, problems = self._preprocessor.transform(table, truncate)
        probabilities = np.full((table.num_rows, self.info.num_classes), np.nan, np.float32)
        good = Answers(probabilities, problems).good
        if len(good):
            # `inputs` has a row for every row of the table, with a placeholder where it is bad.
            found = self.logits(inputs[good], batch_size)
            probabilities[good] = softmax(found) if self.info.target is None else found
        return Answers(probabilities, problems)


def _automatic(folder: Path) -> tuple[str, Path]:
    place = folder / EXPORT / "onnx"
    try:
        manifest = read_manifest(place)
        import onnxruntime  # noqa: F401
    except (ArtifactError, ImportError):
        return "pytorch", folder
    return ("onnx", place) if manifest is not None else ("pytorch", folder)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) float32 rows that sum to 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return found
