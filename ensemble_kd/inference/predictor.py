"""A model folder that answers: rows in, probabilities out. Prediction, serving and MLflow go through here.

torch is loaded for the PyTorch form alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo
from ensemble_kd.data.tokenize import pad
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.inference.isolate import isolated, words
from ensemble_kd.inference.onnx_model import load_onnx
from ensemble_kd.model_folder import TOKENIZER, check_kinds, form_folder, read_folder_manifest, read_format
from ensemble_kd.safe_files import in_one_line
from ensemble_kd.targets import target_of

GRAPHS = ("onnx", "int8")
MLMODEL = "MLmodel"
FORMS = ("auto", "pytorch", *GRAPHS)
MOST_TRIED = 1 << 20
"""Values of an input with which a model is tried; a larger one takes long."""
TRIED = "a text to try"
MOST_BYTES = 1 << 27
"""Of inputs that are prepared at once, as float32; tables of more are answered part by part."""
NOT_FINITE = "the model's answer is not a number; are the values as large as in the training data?"


@dataclass
class Answers:
    """What a model says of N rows."""

    probabilities: np.ndarray
    """(N, C) float32; a bad row's are NaN. Of a regressor its values (N, K), in the labels' units."""
    problems: list[str | None]
    """What is wrong with each row, None where nothing is."""

    @property
    def good(self) -> np.ndarray:
        """(M,) numbers of the rows that could be read."""
        return np.array([i for i, problem in enumerate(self.problems) if problem is None], np.int64)


class Predictor:
    """A model folder, or one exported form of it, ready to answer."""

    def __init__(
        self, folder: Path, form: str = "auto", threads: int = 1, trust: Collection[str] = ()
    ) -> None:
        """`form`: `pytorch`, or an exported `onnx` or `int8`; `auto` takes ONNX where its folder is there.

        ONNX was faster on every model that was measured, at batch 1 and at 32, and agrees with the student
        by the export's own check; int8 is never taken by itself, as it may answer differently.
        `trust`: modules that a custom model's code may come from, as of `load_package`.
        Raises ArtifactError where a file is missing, changed, a link or a pickle, or the model does not
        answer, InputError for a form not there.
        """
        check_kinds(folder)
        if (folder / MLMODEL).exists():
            raise InputError(
                f"{folder}: an MLflow model, which is code; mlflow models serve -m {folder}, or give the "
                "model folder that it was exported from"
            )
        config = read_format(folder)
        if config.get("form") in GRAPHS:  # the folder of an exported form
            if form not in ("auto", config["form"]):
                raise InputError(f"--form: {form}, but {folder} is the form {config['form']}")
            place, form = folder, config["form"]
        else:
            place = folder
            if form == "auto":
                form, place = _automatic(folder)
            elif form in GRAPHS:
                found = form_folder(folder, form)
                if found is None:
                    raise InputError(
                        f"--form: no {form} in {folder}; run: ensemble-kd export {folder} --form {form}"
                    )
                place = found
        self.folder, self.form = folder, form
        if form in GRAPHS:
            self._graph, config = load_onnx(place, threads)
            if place != folder and config.get("lineage") != read_format(folder).get("lineage"):
                raise ArtifactError(f"{place}: exported from another student than {folder}; export it again")
            self.temperature = 1.0  # in the graph already
            self.parameters: int | None = None
        else:
            self._load_torch(folder, threads, trust)
        self.config = config
        self.calibration: dict[str, Any] = config.get("calibration", {})
        self.info = DataInfo.from_dict(config["info"])
        self.target = target_of(self.info.target)
        self._preprocessor = Preprocessor(self.info, place)
        self._try(place)

    def _try(self, place: Path) -> None:
        """One row, so that a model that cannot answer says so before the first row is read."""
        if math.prod(self.info.input_shape) > MOST_TRIED:
            return
        kind = {"image": np.uint8, "numeric": np.float32, "text": np.int32}[self.info.kind]
        row = np.zeros((1, *self.info.input_shape), kind)
        try:
            if (tokenizer := self._preprocessor.tokenizer) is not None:
                tokens, ends = tokenizer.encode([TRIED, ""])
                library = getattr(tokenizer, "tokenizer", None)
                words = library.get_vocab(with_added_tokens=True).values() if library is not None else ()
                if max(int(tokens.max(initial=1)), *(n + 1 for n in words), 1) >= self.info.vocabulary_size:
                    raise ValueError(f"{TOKENIZER} has numbers beyond the vocabulary")
                row = pad(tokens, ends, self.info.input_shape[0])[:1]
            found = self.logits(row)
            if found.shape != (1, self.info.num_classes):
                raise ValueError(f"logits of shape {found.shape} for one row")
        except Exception as error:  # what libraries say of numbers that fit one by one and not together
            raise ArtifactError(f"{place}: does not answer ({in_one_line(error)})") from error

    def _load_torch(self, folder: Path, threads: int, trust: Collection[str]) -> None:
        import torch

        from ensemble_kd.models.package import load_package

        package = load_package(folder, trust)
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
        """Columns that a table may have: inputs, and the training data's labels, ids and weights."""
        named = self.info.preprocess.get("columns", {})
        label = named.get("label") or []
        labels = [label] if isinstance(label, str) else label
        return [*self.columns, *labels, *(named[key] for key in ("id", "weight") if named.get(key))]

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
        if self.form == "int8" and self.info.kind == "numeric":
            # A batch shares one scale of its activations: one row of huge numbers would flatten the others.
            batch_size = 1
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

        A row that cannot be read, makes the model fail or has no finite answer is bad, and costs no other.
        Without `truncate` a text beyond the length that the model takes is bad, too.
        """
        rows = max(1, MOST_BYTES // (4 * math.prod(self.info.input_shape)))
        if table.num_rows > rows:
            parts = [
                self.answer(table.slice(begin, rows), batch_size, truncate)
                for begin in range(0, table.num_rows, rows)
            ]
            problems = [problem for part in parts for problem in part.problems]
            return Answers(np.concatenate([part.probabilities for part in parts]), problems)
        probabilities = np.full((table.num_rows, self.info.num_classes), np.nan, np.float32)
        inputs, problems = self._inputs(table, truncate)

        def run(part: np.ndarray) -> None:
            found = self.logits(inputs[part], batch_size)
            probabilities[part] = self.target.answers(found)

        # `inputs` has a row for every row of the table, with a placeholder where it is bad.
        failed = isolated(Answers(probabilities, problems).good, run)
        if failed:
            plain = np.zeros_like(inputs[:1])
            plain[:, :1] = self.info.kind == "text"  # no text is without a token
            self.logits(plain)  # raises where it is the model that is broken
        for row, error in failed.items():
            problems[row] = f"the model fails at it ({words(error)})"
        # An input like 1e38 is a float32, and overflows inside the network.
        for row in np.flatnonzero(~np.isfinite(probabilities).all(axis=1)).tolist():
            problems[row] = problems[row] or NOT_FINITE
            probabilities[row] = np.nan
        return Answers(probabilities, problems)

    def _inputs(self, table: pa.Table, truncate: bool) -> tuple[np.ndarray, list[str | None]]:
        """As `Preprocessor.transform`, but for rows at which it raises: these are bad."""
        try:
            return self._preprocessor.transform(table, truncate)
        except InputError:
            raise
        except Exception:  # a decoder that trips over a row: which one?
            inputs: np.ndarray | None = None
            problems: list[str | None] = [None] * table.num_rows

            def read(part: np.ndarray) -> None:
                nonlocal inputs
                found, wrong = self._preprocessor.transform(table.take(pa.array(part)), truncate)
                if inputs is None:
                    inputs = np.zeros((table.num_rows, *found.shape[1:]), found.dtype)
                inputs[part] = found
                for row, problem in zip(part, wrong, strict=True):
                    problems[row] = problem

            for row, error in isolated(np.arange(table.num_rows), read).items():
                problems[row] = f"cannot be read ({words(error)})"
            return np.zeros((table.num_rows, 0)) if inputs is None else inputs, problems


def _automatic(folder: Path) -> tuple[str, Path]:
    place = form_folder(folder, "onnx")
    try:
        manifest = read_folder_manifest(place) if place is not None else None
        import onnxruntime  # noqa: F401
    except (ArtifactError, ImportError):
        return "pytorch", folder
    return ("onnx", place) if place is not None and manifest is not None else ("pytorch", folder)
