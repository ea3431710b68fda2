"""Teacher outputs that the user already has: Parquet files with an id and a list of numbers per row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ensemble_kd.artifacts import checksum, fingerprint
from ensemble_kd.config import PredictionsConfig
from ensemble_kd.data.answers import distributions, values_problem
from ensemble_kd.data.readable import Readable, checked
from ensemble_kd.errors import InputError
from ensemble_kd.paths import is_url, missing, shown

LONGEST_LIST = 1000
"""Characters of the names of columns in a message."""
SMALLEST = 1e-12
"""Probabilities below this are taken for this before their logarithm."""


def predictions_fingerprint(files: PredictionsConfig) -> str:
    """By content. Raises InputError naming every file that is not there."""
    paths = [path for split in ("train", "validation", "test") for path in getattr(files, split)]
    problems = [f"teachers.predictions: {problem}" for path in paths if (problem := missing(path, "file"))]
    if problems:
        raise InputError(problems)
    return fingerprint(*(checksum(Path(path).expanduser()) for path in paths))


def _read(path: str, names: tuple[str, str]) -> pa.Table:
    """The columns of that name, as far as the file has them, checked."""
    where = f"teachers.predictions: {shown(path)}"
    if (problem := missing(path, "file")) is not None or is_url(path):
        raise InputError(f"teachers.predictions: {problem or f'{shown(path)}: give a file on this machine'}")
    with Readable(where, "parquet"), pq.ParquetFile(Path(path).expanduser()) as file:
        held = file.schema_arrow.names
        for name in names:
            if name not in held:
                raise InputError(f"{where}: no column {name!r}; it has {str(held)[:LONGEST_LIST]}")
        table, bad = checked(file.read(columns=list(dict.fromkeys(names)), use_threads=False))
    if bad:
        row, text = next(iter(bad.items()))
        raise InputError(f"{where}: row {row}: {text}")
    return table


def align(
    path: str,
    files: PredictionsConfig,
    ids: np.ndarray,
    num_classes: int,
    classes: Sequence[int] | None = None,
    setting: str = "teachers.predictions.values",
) -> np.ndarray:
    """(N, C) float32 logits of one member in the order of `ids`; of values (N, 1), for which the column may
    also hold plain numbers.

    `classes` has the data's class of each of the file's numbers, where these stand in another order;
    `setting` is the field that says what they are. Probabilities become log-probabilities.
    Raises InputError where ids are missing or repeated, where the number of classes differs, where a number
    is not finite, or where they are not what the setting says.
    """
    table = _read(path, (files.id_column, files.column))
    if not table.num_rows:
        raise InputError(f"teachers.predictions: {path}: holds no rows")
    column = table[files.column].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    kind = column.type
    if num_classes == 1 and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):  # values, one a row
        column = pa.FixedSizeListArray.from_arrays(pc.fill_null(pc.cast(column, pa.float64()), np.nan), 1)
        kind = column.type
    numbers = getattr(kind, "value_type", None)  # of a list
    if numbers is None or not (pa.types.is_floating(numbers) or pa.types.is_integer(numbers)):
        hard = pa.types.is_integer(kind) or pa.types.is_string(kind)
        hint = "; of hard labels a list with 1 at the class and 0 elsewhere (values: probabilities)"
        raise InputError(
            f"teachers.predictions: {path}: column {files.column!r} holds {kind}, expected lists of numbers"
            + (hint if hard else "")
        )
    lengths = sorted(pc.unique(pc.fill_null(pc.list_value_length(column), 0)).to_pylist())
    if lengths != [num_classes]:
        wanted = f"the data has {num_classes} classes; give one number per class, in class order"
        wanted = wanted if num_classes > 1 else "and labels are values; give one number per row"
        raise InputError(
            f"teachers.predictions: {path}: rows of {'/'.join(map(str, lengths))} numbers in column "
            f"{files.column!r}, {wanted}"
        )
    values = np.asarray(column.flatten(), np.float32).reshape(-1, num_classes)
    finite = values[np.isfinite(values).all(1)]  # all rows of the file, not only those that are asked for
    if num_classes > 1 and (problem := values_problem(finite, files.values, setting)) is not None:
        raise InputError(f"teachers.predictions: {path}: column {files.column!r} holds {problem}")
    position = {key: i for i, key in enumerate(table[files.id_column].to_pylist())}
    if len(position) != table.num_rows:
        raise InputError(f"teachers.predictions: {path}: {table.num_rows - len(position)} ids occur twice")
    keys = ids.tolist()  # plain numbers and strings, also in messages
    order = np.array([position.get(key, -1) for key in keys], np.int64)
    if (order < 0).any():
        absent = [key for key, at in zip(keys, order, strict=True) if at < 0]
        raise InputError(
            f"teachers.predictions: {path}: {len(absent)} of {len(ids)} rows have no prediction, for example "
            f"id {absent[0]!r}; predictions must cover every row, by data.columns.id or the row number"
        )
    values = values[order]
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InputError(f"teachers.predictions: {path}: id {keys[row]!r} holds a number that is not finite")
    if files.values == "probabilities":
        off = ~distributions(values)
        if off.any():
            row = int(np.argmax(off))
            share = f", and {int(off.sum()) - 1:,} more of {len(off):,} rows" if off.sum() > 1 else ""
            raise InputError(
                f"teachers.predictions: {path}: id {keys[row]!r} is no distribution "
                f"(sum {values[row].sum():.4f}{share}); set {setting}=logits if these are logits"
            )
        values = np.log(np.maximum(values, SMALLEST))
    if classes is not None:
        values = np.ascontiguousarray(values[:, np.argsort(classes)])  # as files of tensors need it
    return values
