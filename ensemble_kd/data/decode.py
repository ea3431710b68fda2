"""Columns of the source to inputs: images (N, H, W, C) uint8, numbers (N, F) float32, texts, pairs.

Each function returns the inputs and what is wrong by row; the place of a bad row holds zeros (or ""). A
column that cannot be right in any row raises ColumnError. The common forms cost no Python per row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.data import images
from ensemble_kd.data.images import ACCEPTED, AS_THEY_ARE, PictureError, Pictures
from ensemble_kd.targets.columns import ColumnError as ColumnError

Bad = dict[int, str]

EXPECTED = f"bytes, lists of numbers, or encoded images ({ACCEPTED})"


def single(column: pa.ChunkedArray) -> pa.Array:
    """One array of the column in a plain type, as `plain_type` says."""
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
    if _is_list(kind) and (inner := plain_type(kind.value_type)) != kind.value_type:
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


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
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
    """Two columns of texts."""
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
    if len(arrays) == 1 and (_is_list(arrays[0].type) or pa.types.is_null(arrays[0].type)):
        rows, bad = _lists(arrays[0], None if width is None else (width,))
        labels = [f"value {i}" for i in range(rows.shape[1])]
    else:
        rows, bad = _columns(arrays, names)
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


def _columns(arrays: list[pa.Array], names: list[str]) -> tuple[np.ndarray, Bad]:
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


def _lists(array: pa.Array, shape: tuple[int, ...] | None) -> tuple[np.ndarray, Bad]:
    """(N, size) numbers from lists, flat or nested in `shape`; without one the first row decides."""
    if shape is None:
        shape = (_first_length(array),)
    size = int(np.prod(shape))
    values, lengths, whole = array, [], True
    while _is_list(values.type):
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
    lengths = pc.drop_null(pc.list_value_length(array)) if _is_list(array.type) else []
    if not len(lengths) or not lengths[0].as_py():
        raise ColumnError(f"holds {array.type} without a value; expected lists of numbers")
    return int(lengths[0].as_py())


# -------------------------------------------------------------------------------------------- images


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded pictures: bytes, or Hugging Face's {bytes, path}."""
    return _is_binary(kind) or pa.types.is_struct(kind)


def image_shape(
    arrays: list[pa.Array], given: tuple[int, int, int] | None, pictures: Pictures = AS_THEY_ARE
) -> tuple[int, int, int] | None:
    """[H, W, C]: as given, or from the first image that tells; None if none of these rows does.

    Raises ColumnError where the column cannot hold images of that shape.
    """
    array = arrays[0]
    kind = array.type
    if len(arrays) > 1 or is_number(kind):
        if given is None:
            raise ColumnError(
                "one column per pixel tells no shape; set data.image.shape=[height,width,channels]"
            )
        if int(np.prod(given)) != len(arrays):
            raise ColumnError(
                f"{len(arrays)} columns, but data.image.shape {list(given)} has {np.prod(given)} pixels"
            )
        return given
    if pa.types.is_fixed_size_binary(kind):
        if given is None:
            raise ColumnError(
                f"holds {kind.byte_width} raw bytes a row; set data.image.shape=[height,width,channels]"
            )
        if int(np.prod(given)) != kind.byte_width:
            raise ColumnError(
                f"holds {kind.byte_width} bytes a row, but data.image.shape {list(given)} takes "
                f"{np.prod(given)}"
            )
    elif not (holds_pictures(kind) or _is_list(kind) or pa.types.is_null(kind)):
        raise ColumnError(f"holds {kind}, expected {EXPECTED}")
    if given is not None:
        return given
    wrong = None
    for value in array:
        row = value.as_py()
        if row is None:
            continue
        if _is_list(kind):
            nest = list(np.shape(row)) if _regular(row) else []
            if len(nest) in (2, 3):
                height, width, channels = (*nest, 1)[:3]
                return height, width, channels
            if len(nest) == 1:
                raise ColumnError("holds flat lists; set data.image.shape=[height,width,channels]")
            continue
        try:
            found = images.size(pictures.bytes_of(row) or b"")
        except PictureError as error:
            wrong = wrong or str(error)
            continue
        if found:
            return found
    if wrong is not None:
        raise ColumnError(f"holds no image that can be read; the first: {wrong}")
    if len(array) and not _is_list(kind) and not pa.types.is_null(kind):
        raise ColumnError(
            f"holds bytes that are no readable image ({ACCEPTED}); for raw pixels set "
            "data.image.shape=[height,width,channels]"
        )
    return None


def _regular(row: Any) -> bool:
    try:
        np.asarray(row, dtype=np.float64)
    except (ValueError, TypeError):
        return False
    return True


def decode_images(
    arrays: list[pa.Array],
    names: list[str],
    shape: tuple[int, int, int],
    pictures: Pictures = AS_THEY_ARE,
) -> tuple[np.ndarray, Bad]:
    """(N, H, W, C) uint8 from raw bytes, encoded pictures, lists, or one column per pixel."""
    array = arrays[0]
    rows = len(array)
    if len(arrays) > 1 or is_number(array.type):
        values, bad = _columns(arrays, names)
        pixels = _to_pixels(values, bad)
    elif _is_list(array.type):
        values, bad = _lists(array, shape)
        pixels = _to_pixels(values, bad)
    elif pa.types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        if width != int(np.prod(shape)):
            raise ColumnError(f"holds {width} bytes a row, expected {np.prod(shape)} for {list(shape)}")
        flat = np.frombuffer(array.buffers()[1] or b"", np.uint8)
        pixels = flat[array.offset * width : (array.offset + rows) * width].reshape(rows, width)
        bad = {int(i): "no image (null)" for i in np.flatnonzero(array.is_null())} if array.null_count else {}
    elif holds_pictures(array.type) or pa.types.is_null(array.type):
        pixels, bad = _from_bytes(array, shape, pictures)
    else:
        raise ColumnError(f"holds {array.type}, expected {EXPECTED}")
    return pixels.reshape(rows, *shape), dict(sorted(bad.items()))


def _to_pixels(values: np.ndarray, bad: Bad) -> np.ndarray:
    """Numbers (N, size) to uint8; rows with anything but whole numbers in 0..255 go into `bad`."""
    if values.dtype == np.uint8:
        return values
    wrong = ~((values >= 0) & (values <= 255))
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    for i in np.flatnonzero(wrong.any(axis=1)):
        value = values[i][wrong[i]][0]
        bad.setdefault(int(i), f"pixel value {value:g} is not a whole number in 0..255")
    return np.where(wrong, 0, values).astype(np.uint8)


def _from_bytes(array: pa.Array, shape: tuple[int, int, int], pictures: Pictures) -> tuple[np.ndarray, Bad]:
    size = int(np.prod(shape))
    pixels, suspects = np.zeros((len(array), *shape), np.uint8), np.arange(len(array))
    if _is_binary(array.type) and not array.null_count and len(array):
        kind = np.int64 if pa.types.is_large_binary(array.type) else np.int32
        ends = np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array) + 1]
        if (np.diff(ends) == size).all():
            block = np.frombuffer(array.buffers()[2], np.uint8)[ends[0] : ends[-1]].reshape(-1, size)
            suspects = np.flatnonzero(images.look_encoded(block))
            if not len(suspects):
                return block, {}
            pixels[:] = block.reshape(-1, *shape)
    bad = Bad()
    for i in suspects.tolist():
        try:
            raw = pictures.bytes_of(array[i].as_py())
        except PictureError as error:
            bad[i] = str(error)
            continue
        if raw is None:
            bad[i] = "no image (null)"
            continue
        # Raw pixels may begin like a picture by chance, so the right number of bytes is a second chance.
        known = images.encoded(raw) is not None
        found = pictures.decode(raw, shape) if known else ""
        if isinstance(found, np.ndarray):
            pixels[i] = found
        elif len(raw) == size and not images.surely_encoded(raw):
            pixels[i] = np.frombuffer(raw, np.uint8).reshape(shape)
        else:
            pixels[i] = 0
            bad[i] = found or (
                f"{len(raw)} bytes that are neither an image ({ACCEPTED}) nor {size} raw pixels of "
                f"{list(shape)}"
            )
    return pixels.reshape(len(array), size), bad
