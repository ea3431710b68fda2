"""Columns of the source to images (N, H, W, C) uint8: raw bytes, encoded pictures, lists, pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.data import images
from ensemble_kd.data.decode import (
    Bad,
    ColumnError,
    is_binary,
    is_list,
    is_number,
    number_columns,
    number_lists,
)
from ensemble_kd.data.images import ACCEPTED, AS_THEY_ARE, PictureError, Pictures

EXPECTED = f"bytes, lists of numbers, or encoded images ({ACCEPTED})"


# -------------------------------------------------------------------------------------------- images


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded pictures: bytes, or Hugging Face's {bytes, path}."""
    return is_binary(kind) or pa.types.is_struct(kind)


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
    elif not (holds_pictures(kind) or is_list(kind) or pa.types.is_null(kind)):
        raise ColumnError(f"holds {kind}, expected {EXPECTED}")
    if given is not None:
        return given
    wrong = None
    for value in array:
        row = value.as_py()
        if row is None:
            continue
        if is_list(kind):
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
    if len(array) and not is_list(kind) and not pa.types.is_null(kind):
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
        values, bad = number_columns(arrays, names)
        pixels = _to_pixels(values, bad)
    elif is_list(array.type):
        values, bad = number_lists(array, shape)
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
    if is_binary(array.type) and not array.null_count and len(array):
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
