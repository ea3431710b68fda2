"""Arrays and torch data sets as Arrow tables with the columns `input` and `label`."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.api.problems import InputValueError

INPUT, LABEL = "input", "label"
"""Columns of tables that are made of arrays."""


def from_arrays(X: Any, y: Any, where: str) -> tuple[pa.Table, Any, tuple[int, int, int] | None]:
    """The table, X as an array or list, and the shape of images.

    X: (N, F) numbers, (N, H, W) or (N, H, W, C) images of 0 to 255, or N texts. y: (N,) labels, or (N, K)
    values; None for none. Raises ValueError for other shapes, for values that are not finite, and for
    unequal lengths.
    """
    inputs = as_array(X, f"{where}: X")
    shape = None
    if inputs.dtype.kind in "OUST":
        column: Any = pa.array(_texts(inputs, where), pa.string())
        inputs = column.to_pylist()
    elif inputs.ndim == 2:
        column = _numbers(inputs, where)
    elif inputs.ndim in (3, 4):
        column, shape = _images(inputs, where)
    else:
        raise InputValueError(
            f"{where}: X has shape {inputs.shape}; give (N, features) numbers, (N, height, width[, "
            "channels]) "
            "images or N texts"
            + (", here X.reshape(-1, 1) if these are N numbers" if inputs.ndim == 1 else "")
        )
    columns = {INPUT: column}
    if y is not None:
        labels = label_columns(y, len(column), where)
        if INPUT in labels:  # of a frame
            raise InputValueError(f"{where}: a column of y is called {INPUT!r}, as X is here; rename it")
        columns |= labels
    return pa.table(columns), inputs, shape


def as_array(values: Any, what: str) -> np.ndarray:
    """An array of anything that has rows. Raises ValueError for ragged lists and sparse matrices."""
    if hasattr(values, "toarray"):
        raise InputValueError(f"{what}: a sparse matrix; give a dense one, X.toarray()")
    if hasattr(values, "detach"):  # torch
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InputValueError(f"{what}: no array: {error}; give rows of equal length") from None


def _texts(values: np.ndarray, where: str) -> list[str]:
    texts: list[Any] = values.tolist()
    if values.ndim != 1:
        raise InputValueError(
            f"{where}: X has shape {values.shape} and dtype {values.dtype}; columns of several types belong "
            "into a DataFrame"
        )
    odd = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        raise InputValueError(
            f"{where}: X holds {type(texts[odd]).__name__} in row {odd}; give N texts, or numbers alone"
        )
    return texts


def _numbers(X: np.ndarray, where: str) -> pa.Array:
    """(N, F) as lists of F numbers."""
    if X.dtype.kind not in "fiub":
        raise InputValueError(f"{where}: X has dtype {X.dtype}; give real numbers")
    if not X.shape[1]:
        raise InputValueError(f"{where}: X has shape {X.shape}, no features; give some")
    check_finite(X, f"{where}: X")
    kept = X.astype(np.float32 if X.dtype.kind == "f" else np.int64, copy=False)
    check_finite(kept, f"{where}: X, as float32,")
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(kept).reshape(-1)), X.shape[1])


def _images(X: np.ndarray, where: str) -> tuple[pa.Array, tuple[int, int, int]]:
    """(N, H, W[, C]) as bytes of H * W * C pixels."""
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4):
        hint = "; channels come last: X.transpose(0, 2, 3, 1)" if X.shape[1] in (1, 3, 4) else ""
        raise InputValueError(f"{where}: X has shape {X.shape}, not (N, height, width, channels){hint}")
    whole = X.dtype.kind in "iub" or (X.dtype.kind == "f" and bool((X == np.floor(X)).all()))
    if not whole or X.min() < 0 or X.max() > 255:
        low, high = (float(f(X)) for f in (np.min, np.max))
        raise InputValueError(
            f"{where}: images with pixels from {low:g} to {high:g}; the student takes whole numbers from 0 "
            "to "
            "255, as in (255 * X).round().astype('uint8'), and normalises them itself; a teacher that wants "
            "others can be a function that scales them"
        )
    height, width, channels = (*X.shape[1:], 1)[:3]
    pixels = np.ascontiguousarray(X.astype(np.uint8)).reshape(len(X), -1)
    kind = pa.binary(pixels.shape[1])
    column = pa.Array.from_buffers(kind, len(X), [None, pa.py_buffer(pixels.tobytes())])
    return column, (height, width, channels)


def label_columns(y: Any, rows: int, where: str) -> dict[str, pa.Array]:
    """One column `label`; of (N, K) values K columns, by the names of a frame or as `label_0`, `label_1`.

    Raises ValueError as `label_column`.
    """
    values = y.detach().cpu().numpy() if hasattr(y, "detach") else y
    values = np.asarray(y) if hasattr(y, "dtypes") else values  # a frame
    several = isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] > 1
    if not several or values.dtype.kind != "f" or set(np.unique(values)) <= {0.0, 1.0}:
        return {LABEL: label_column(y, rows, where)}  # which tells what is wrong with one-hot rows
    names = [str(name) for name in getattr(y, "columns", [])]
    names = names or [f"{LABEL}_{i}" for i in range(values.shape[1])]
    return {name: label_column(column, rows, where) for name, column in zip(names, values.T, strict=True)}


def label_column(y: Any, rows: int, where: str) -> pa.Array:
    """(N,) labels. Raises ValueError for another number of them, mixed types, and rows of several."""
    from ensemble_kd.api.tables import check_one_type

    if isinstance(y, list | tuple):  # numpy would make one type of several
        check_one_type(each := np.fromiter(y, object, len(y)), f"{where}: y")
        y = each if any(isinstance(value, str) or value is None for value in y) else y
    values: Any = y if hasattr(y, "iloc") else as_array(y, f"{where}: y")
    if hasattr(values, "iloc") and getattr(values, "ndim", 1) == 2:  # a frame of one column
        values = values.to_numpy()
    shape = tuple(values.shape)
    if len(shape) == 2 and shape[1] == 1:
        values, shape = values.reshape(-1), shape[:1]
    if len(shape) != 1:
        hint = "; of one-hot rows give y.argmax(1), of several values floats" if len(shape) == 2 else ""
        raise InputValueError(f"{where}: y has shape {shape}, expected one label a row, ({rows},){hint}")
    if shape[0] != rows:
        raise InputValueError(f"{where}: X has {rows:,} rows, y has {shape[0]:,}; give a label for each row")
    if isinstance(values, np.ndarray) and values.dtype == object:
        check_one_type(values, f"{where}: y")
    try:
        column = pa.array(
            values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind == "O" else values,
            from_pandas=True,
        )
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputValueError(f"{where}: y cannot be read: {error}; give numbers or texts") from None
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def check_finite(values: np.ndarray, what: str) -> None:
    """Raises ValueError that says where the first NaN or infinity stands."""
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    kind = "NaN" if np.isnan(values[where]) else "infinity"
    rows = int(bad.reshape(len(values), -1).any(1).sum())
    at = f"row {where[0]}" + (f", column {where[1]}" if len(where) == 2 else "")
    raise InputValueError(
        f"{what} contains {kind} in {rows:,} of {len(values):,} rows ({at} first); fill or drop these rows"
    )


# ------------------------------------------------------------------------------------------------ torch


def is_torch_dataset(data: Any) -> bool:
    """Whether this is a torch Dataset, without importing torch."""
    torch = sys.modules.get("torch.utils.data")
    return torch is not None and isinstance(data, torch.Dataset | torch.DataLoader)


def from_torch(data: Any, where: str, labelled: bool) -> tuple[Any, Any]:
    """(X, y) of a torch Dataset, item by item. Raises ValueError for items that are no (x, y)."""
    import torch

    if isinstance(data, torch.utils.data.DataLoader):
        raise InputValueError(f"{where}: a DataLoader; give its data set, loader.dataset")
    if isinstance(data, torch.utils.data.TensorDataset) and len(data.tensors) == 1 + labelled:
        return data.tensors[0], data.tensors[1] if labelled else None
    if isinstance(data, torch.utils.data.IterableDataset):
        items = list(data)
    else:
        items = [data[i] for i in range(len(data))]
    if not items:
        raise InputValueError(f"{where}: no rows; give some")
    pairs = [item if isinstance(item, tuple | list) and len(item) == 2 else (item, None) for item in items]
    if labelled and any(y is None for _, y in pairs):
        kind = type(items[0]).__name__
        raise InputValueError(f"{where}: items of the data set are {kind}, expected pairs (x, y)")
    xs = [x if isinstance(x, str) else as_array(x, f"{where}: item {i}") for i, (x, _) in enumerate(pairs)]
    shapes = {None if isinstance(x, str) else x.shape for x in xs}
    if len(shapes) > 1:
        raise InputValueError(
            f"{where}: items of different shapes, {' and '.join(map(str, list(shapes)[:2]))}; resize or pad "
            "them"
        )
    X: Any = xs if isinstance(xs[0], str) else np.stack(xs)
    if not labelled:
        return X, None
    return X, [_scalar(y) for _, y in pairs]


def _scalar(label: Any) -> Any:
    """The number in a tensor or array of one."""
    return label.item() if hasattr(label, "item") and math.prod(label.shape) == 1 else label
