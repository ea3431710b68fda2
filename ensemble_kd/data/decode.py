"""Columns of the source to inputs: images (N, H, W, C) uint8, numbers (N, F) float32, texts, pairs.

Each function returns the inputs and what is wrong by row; the place of a bad row holds zeros (or ""). A
column that cannot be right in any row raises ColumnError. The common forms cost no Python per row.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.targets.columns import ColumnError as ColumnError

Bad = dict[int, str]


def single(column: pa.ChunkedArray) -> pa.Array:
    """All chunks of the column as one array, of the type that `plain_type` gives."""
    chunks = [plain(chunk) for chunk in column.chunks]  # first: dictionaries differ from chunk to chunk
    if not chunks:
        return pa.array([], plain_type(column.type))
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, views, run lengths and extensions: what polars and pandas write."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):  # pyarrow 25 finds no integer in them
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if is_list(kind) and (inner := plain_type(kind.value_type)) != kind.value_type:
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(inner, kind.list_size)
        return pa.large_list(inner) if pa.types.is_large_list(kind) else pa.list_(inner)
    return kind


def plain(array: pa.Array) -> pa.Array:
    """The same values in a plain type."""
    if isinstance(array, pa.ExtensionArray):
        return plain(array.storage)
    if pa.types.is_dictionary(array.type):
        return plain(array.dictionary).take(array.indices)  # views have no kernel for `dictionary_decode`
    if pa.types.is_run_end_encoded(array.type):
        return plain(pc.run_end_decode(array))
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Not by a cast: of a list view pyarrow 25 makes one with an offset too few.
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        if pa.types.is_list(kind):
            offsets = pa.array(ends, pa.int32())
            return pa.ListArray.from_arrays(offsets, plain(array.flatten()), mask=array.is_null())
        offsets = pa.array(ends, pa.int64())
        return pa.LargeListArray.from_arrays(offsets, plain(array.flatten()), mask=array.is_null())
    try:
        return pc.cast(array, kind)
    except pa.ArrowNotImplementedError as error:
        raise ColumnError(f"holds {array.type}, which cannot be read; write it as {kind}") from error


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def is_string(kind: pa.DataType) -> bool:
    """Whether it is a type of texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether it is a type of numbers, truth values among them."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


# --------------------------------------------------------------------------------------------- texts


def decode_texts(array: pa.Array) -> tuple[list[str], Bad]:
    if not is_string(array.type) and not pa.types.is_null(array.type):
        raise ColumnError(f"holds {array.type}, expected text")
    texts = array.to_pylist()
    bad = {i: "no text (null)" for i, text in enumerate(texts) if text is None} if array.null_count else {}
    for i in bad:
        texts[i] = ""
    return texts, bad


def decode_pairs(arrays: list[pa.Array], names: list[str]) -> tuple[list[tuple[str, str]], Bad]:
    """Two columns of texts as pairs, row by row."""
    both, bad = [], Bad()
    for array, name in zip(arrays, names, strict=True):
        try:
            texts, wrong = decode_texts(array)
        except ColumnError as error:
            raise ColumnError(f"{name!r} {error}") from error
        both.append(texts)
        bad = {i: f"column {name!r} has {message}" for i, message in wrong.items()} | bad
    first, second = both
    return list(zip(first, second, strict=True)), dict(sorted(bad.items()))


def empty_texts(texts: list[str] | list[tuple[str, str]]) -> Bad:
    """Texts without a visible character, and pairs in which neither text has one."""
    return {
        i: "an empty text; a model learns nothing from it, drop the row"
        for i, text in enumerate(texts)
        if not (text if isinstance(text, str) else "".join(text)).strip()
    }


# ------------------------------------------------------------------------------------------- numbers


def decode_numbers(arrays: list[pa.Array], names: list[str], width: int | None) -> tuple[np.ndarray, Bad]:
    """(N, F) float32 from F columns of numbers, or from one column of lists; `width` is F where known."""
    if len(arrays) == 1 and (is_list(arrays[0].type) or pa.types.is_null(arrays[0].type)):
        rows, bad = number_lists(arrays[0], None if width is None else (width,))
        labels = [f"value {i}" for i in range(rows.shape[1])]
    else:
        rows, bad = number_columns(arrays, names)
        labels = [f"column {name!r}" for name in names]
    return finite_numbers(rows, bad, labels)


def finite_numbers(rows: np.ndarray, bad: Bad, labels: list[str]) -> tuple[np.ndarray, Bad]:
    """(N, F) float32, 0 where a number is not finite, and `bad` with these rows; `labels` name columns."""
    with np.errstate(over="ignore"):
        values = rows.astype(np.float32)
    for i in np.flatnonzero(~np.isfinite(values).all(axis=1)):
        if int(i) not in bad:
            j = int(np.flatnonzero(~np.isfinite(values[i]))[0])
            value = rows[i, j]
            what = (
                "missing or NaN"
                if np.isnan(value)
                else f"{value}" + ("" if np.isinf(value) else ", too large")
            )
            bad[int(i)] = f"{labels[j]} is {what}"
    values[~np.isfinite(values)] = 0
    return values, dict(sorted(bad.items()))


def number_columns(arrays: list[pa.Array], names: list[str]) -> tuple[np.ndarray, Bad]:
    """(N, F) float64; strings (CSV) are parsed."""
    rows, bad = np.empty((len(arrays[0]), len(arrays)), dtype=np.float64), Bad()
    for j, (array, name) in enumerate(zip(arrays, names, strict=True)):
        if is_string(array.type):
            rows[:, j], wrong = _parse(array)
            bad = {i: f"column {name!r} is {text!r}, not a number" for i, text in wrong.items()} | bad
        elif is_number(array.type) or pa.types.is_null(array.type):
            rows[:, j] = _to_float(array)
        else:
            raise ColumnError(f"{name!r} holds {array.type}, expected numbers")
    return rows, bad


def _to_float(array: pa.Array) -> np.ndarray:
    return pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _parse(array: pa.Array) -> tuple[np.ndarray, dict[int, str]]:
    """Strings to float64, and those that are no numbers."""
    trimmed = pc.utf8_trim_whitespace(array)
    try:
        return _to_float(trimmed), {}
    except pa.ArrowInvalid:
        values, wrong = np.zeros(len(array)), {}
        for i, text in enumerate(trimmed.to_pylist()):
            try:
                values[i] = np.nan if text is None else float(text)
            except ValueError:
                wrong[i] = text
        return values, wrong


def number_lists(array: pa.Array, shape: tuple[int, ...] | None) -> tuple[np.ndarray, Bad]:
    """(N, size) numbers from lists, flat or nested in `shape`; without one the first row decides."""
    if shape is None:
        shape = (_first_length(array),)
    size = int(np.prod(shape))
    values, lengths, whole = array, [], True
    while is_list(values.type):
        whole = whole and values.null_count == 0
        if whole:
            found = pc.unique(pc.list_value_length(values)).to_pylist()
            whole = len(found) <= 1
            lengths += found
        values = values.flatten()
    if not is_number(values.type) and not pa.types.is_null(values.type):
        raise ColumnError(f"holds {array.type}, expected lists of numbers")
    if pa.types.is_decimal(values.type):  # numpy has no such number
        values = pc.cast(values, pa.float64())
    if whole and not values.null_count and _fits(tuple(lengths), shape) and len(array):
        return values.to_numpy(zero_copy_only=False).reshape(len(array), size), {}
    rows, bad = np.zeros((len(array), size)), Bad()
    for i, row in enumerate(array.to_pylist()):
        try:
            numbers = np.asarray(row, dtype=np.float64)
        except (ValueError, TypeError):
            bad[i] = "lists of different lengths in one row"
            continue
        if row is None:
            bad[i] = "missing (null)"
        elif not _fits(numbers.shape, shape):
            bad[i] = f"{_times(numbers.shape)} values, expected {_times(shape)}"
        else:
            rows[i] = numbers.reshape(-1)
    return rows, bad


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Flat, nested as the shape, or nested without a last dimension of 1."""
    flat = found == (int(np.prod(shape)),)
    return flat or found == shape or (shape[-1] == 1 and found == shape[:-1])


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "single"


def _first_length(array: pa.Array) -> int:
    lengths = pc.drop_null(pc.list_value_length(array)) if is_list(array.type) else []
    if not len(lengths) or not lengths[0].as_py():
        raise ColumnError(f"holds {array.type} without a value; expected lists of numbers")
    return int(lengths[0].as_py())
