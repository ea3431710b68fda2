"""Export from a model folder, or from the run folder around it, without running the pipeline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from ensemble_kd.config import ExportConfig, ExportForm
from ensemble_kd.data.files import list_files
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import DataInfo, load_split
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import available, export_forms
from ensemble_kd.model_folder import CONFIG, EXPORT, form_folder
from ensemble_kd.models.package import Package, load_package

FINGERPRINT = r"[0-9a-f]{16}"
MOST_ROWS = 10_000
"""Rows of a file that the forms are held against."""


def is_model_folder(path: str) -> Path | None:
    """The model folder that a path means: itself, or the `model` of a run folder; None for neither."""
    for folder in (Path(path), Path(path) / "model"):
        if os.path.lexists(folder / CONFIG):  # a link or a FIFO is refused when it is loaded
            return folder
    return None


def export_folder(
    model: Path,
    forms: list[str] | None = None,
    rows: str | None = None,
    tolerance: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    trust: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """Make `forms` (by default ONNX and int8) in MODEL/export; returns what was measured of each.

    They are held against the student on the run's validation rows, where the run is around the folder, or on
    the rows of the file `rows`. `trust` is that of `load_package`.
    Raises InputError where there are none, ExportError for a form that failed.
    """
    known = get_args(ExportForm)
    if unknown := [form for form in forms or [] if form not in known]:
        raise InputError(f"--form: {', '.join(map(repr, unknown))}; use {', '.join(known)}")
    try:
        for form in known:
            form_folder(model, form)  # where a link leads, nothing is to be written
        source = load_package(model, trust)
    except ArtifactError as error:
        raise InputError(str(error).splitlines()) from error
    wanted: dict[str, Any] = {} if tolerance is None else {"tolerance": tolerance}
    options = ExportConfig(**wanted, **({"forms": forms} if forms else {}))
    if missing := [form for form in options.forms if form not in available(source)]:
        raise InputError(
            f"--form: {', '.join(missing)}: this student is no transformers model; its model folder is "
            "safetensors and config.json already"
        )
    validation, test = _of_run(source) if rows is None else (_of_file(source, rows), None)
    return export_forms(source, model / EXPORT, options, validation, test, say)


def _of_run(source: Package) -> tuple[Rows, Rows]:
    """Validation and test rows of the run that the folder lies in."""
    name = str(source.lineage.get("data"))
    data = source.folder.absolute().parent / "data" / name
    if not re.fullmatch(FINGERPRINT, name) or not data.is_dir():
        raise InputError(
            f"{source.folder}: not inside its run folder, so there are no validation rows to hold the forms "
            "against; give some: --rows FILE, in the format of the training data"
        )
    validation, test = (load_split(data, split) for split in ("validation", "test"))
    return Rows(validation.inputs, validation.labels), Rows(test.inputs, test.labels)


def _of_file(source: Package, path: str) -> Rows:
    """Up to 10,000 rows of a file, without labels; bad rows are left out."""
    preprocessor = Preprocessor(DataInfo.from_dict(source.info), source.folder)
    parts: list[np.ndarray] = []
    for piece in list_files(path, "--rows")[0]:
        held = piece.columns()
        if missing := [name for name in preprocessor.columns if name not in held]:
            raise InputError(f"--rows: {piece.name} has no column {', '.join(map(repr, missing))}")
        for table in piece.batches(preprocessor.columns, 1024):
            parts.append(_good(preprocessor, table))
            if sum(map(len, parts)) >= MOST_ROWS:
                break
    if not sum(map(len, parts)):
        raise InputError(f"--rows: {path} holds no row that can be read")
    return Rows(np.concatenate(parts)[:MOST_ROWS], None)


def _good(preprocessor: Preprocessor, table: pa.Table) -> np.ndarray:
    inputs, problems = preprocessor.transform(table)
    kept: np.ndarray = inputs[[problem is None for problem in problems]]
    return kept
