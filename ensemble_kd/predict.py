"""Predict a file with a model folder: no run folder, no Ray, no tracking."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ensemble_kd.data.files import list_files
from ensemble_kd.data.prepared import DataInfo, Preprocessor
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.models.package import load_package
from ensemble_kd.train.loop import predict

SUFFIXES = (".parquet", ".csv", ".jsonl")


def predict_file(
    model: Path, source: str, output: Path | None, batch_size: int, write: Callable[[str], None]
) -> list[str]:
    """Write one line per row: id, label, probability of each class; returns the rows that were skipped.

    Raises InputError for an unreadable model folder or input, an unknown output format or folder.
    """
    if output is not None and output.suffix not in SUFFIXES:
        raise InputError(f"--output: {output}: unknown format {output.suffix!r}; use {', '.join(SUFFIXES)}")
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output: {output}: no such folder: {output.parent}")
    try:
        package = load_package(model)
    except ArtifactError as error:
        raise InputError(str(error).splitlines()) from error
    info = DataInfo.from_dict(package.info)
    preprocessor = Preprocessor(info, model)
    problems: list[str] = []
    tables = []
    first = 0
    for table in _tables(source, info, preprocessor, batch_size):
        inputs, found = preprocessor.transform(table)
        bad = [i for i, problem in enumerate(found) if problem is not None]
        problems += [f"row {first + i}: {found[i]}" for i in bad]
        good = np.array([i for i in range(table.num_rows) if found[i] is None], np.int64)
        if len(good):
            # `inputs` has one row per row of the table, with a placeholder where the row is bad
            logits = predict(package.network, torch.from_numpy(inputs[good]), torch.device("cpu"), batch_size)
            ids = _ids(table, info, first)
            tables.append(_result([ids[i] for i in good], logits, info))
            if output is None:
                for row in tables.pop().to_pylist():
                    write(json.dumps(row, ensure_ascii=False))
        first += table.num_rows
    if first == 0:
        raise InputError(f"{source}: holds no rows")
    if output is not None:
        _write(
            pa.concat_tables(tables) if tables else _result([], torch.empty(0, info.num_classes), info),
            output,
        )
    return problems


def _tables(source: str, info: DataInfo, preprocessor: Preprocessor, rows: int) -> Iterator[pa.Table]:
    """The needed columns of the input's files, some rows at a time."""
    id_column = info.preprocess.get("columns", {}).get("id")
    for piece in list_files(source, "INPUT")[0]:
        held = piece.columns()
        missing = [name for name in preprocessor.columns if name not in held]
        if missing:
            raise InputError(
                f"INPUT: {piece.name} has no column {', '.join(map(repr, missing))}; it has {', '.join(held)}"
            )
        wanted = [*preprocessor.columns, *([id_column] if id_column in held else [])]
        yield from piece.batches(wanted, rows)


def _ids(table: pa.Table, info: DataInfo, first: int) -> list[Any]:
    column = info.preprocess.get("columns", {}).get("id")
    if column and column in table.column_names:
        return list(table[column].to_pylist())
    return list(range(first, first + table.num_rows))


def _result(ids: list[Any], logits: torch.Tensor, info: DataInfo) -> pa.Table:
    probabilities = torch.softmax(logits, 1).numpy()
    best = probabilities.argmax(1) if len(ids) else np.empty(0, np.int64)
    return pa.table(
        {
            "id": pa.array(ids) if ids else pa.array([], pa.int64()),
            "label": pa.array(best.astype(np.int64)),
            "label_name": pa.array([info.class_names[i] for i in best], pa.string()),
            "probability": pa.array(
                [float(p[i]) for p, i in zip(probabilities, best, strict=True)], pa.float64()
            ),
            "probabilities": pa.array([p.tolist() for p in probabilities], pa.list_(pa.float64())),
        }
    )


def _lines(table: pa.Table) -> Iterator[str]:
    for row in table.to_pylist():
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _write(table: pa.Table, output: Path) -> None:
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if output.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(table, partial)
        elif output.suffix == ".csv":
            import pyarrow.csv as pc

            # CSV has no lists: one column a class
            names = [f"probability_{i}" for i in range(len(table["probabilities"][0]) if len(table) else 0)]
            columns = list(zip(*table["probabilities"].to_pylist(), strict=True))
            flat = table.drop_columns(["probabilities"])
            for name, column in zip(names, columns, strict=True):
                flat = flat.append_column(name, pa.array(column))
            pc.write_csv(flat, partial)
        else:
            partial.write_text("".join(_lines(table)), encoding="utf-8")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
