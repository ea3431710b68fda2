"""Encoded pictures to pixels, for training, `predict` and `serve` alike: six formats, bounded, no surprises.

The bytes may come from a stranger. They are given to the one decoder whose mark they begin with, never to
the rest of what PIL knows (some formats start other programs); the size is read from the header and held
against a bound before a pixel is decoded; and whatever a decoder raises is what is wrong with that picture
alone.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF")
ACCEPTED = ", ".join(FORMATS)
MOST_PIXELS = 64 * 10**6
"""Height times width of a picture; decoding takes some 8 bytes a pixel."""
MOST_FILE_BYTES = 256 * 2**20
"""Of a picture's file that a row names by its path."""
MOST_SCANNED = 16 * MOST_PIXELS
"""Pixels times passes of a progressive JPEG; encoders make about ten."""
MOST_TAGS = 200
"""Entries of a TIFF's directory."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CHANNELS = {mode: channels for channels, mode in MODES.items()}
GREY = ("1", "L", "LA", "La")
"""Modes of PIL without colour."""
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
SHOWN = 200
"""Characters of what a decoder says."""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MARKS = (
    ("PNG", PNG),
    ("JPEG", JPEG),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("TIFF", b"II+\x00"),
    ("TIFF", b"MM\x00+"),
    ("WEBP", b"RIFF"),
)
"""What a picture begins with; a WebP has `WEBP` from its ninth byte on."""
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to PIL's `Transpose` that makes the picture upright."""


class PictureError(Exception):
    """What is wrong with a picture."""


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture's file say, before the picture is decoded."""

    mode: str
    transparent: bool

    @property
    def grey(self) -> bool:
        return self.mode in GREY

    @property
    def deep(self) -> bool:
        """More than 8 bits a channel, which no array of ours holds."""
        return self.mode[0] in "IF"


@dataclass(frozen=True)
class Pictures:
    """How rows that hold encoded pictures are read."""

    resize: bool = False
    """Scale every picture to the wanted height and width; otherwise it must have them."""
    training: bool = False
    """The rows are the user's own training data: files that they name are read, and settings can change."""
    grey: bool = False
    """A sample of the pictures was grey, so that one in colour is an error."""

    def decode(self, raw: bytes, shape: tuple[int, int, int]) -> np.ndarray | str:
        """Pixels (H, W, C) uint8, or what is wrong. Never raises, whatever the bytes."""
        try:
            return self._pixels(raw, shape)
        except PictureError as error:
            return str(error)

    def _pixels(self, raw: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        height, width, channels = shape
        mode = MODES.get(channels)
        with _decoding():
            image = _opened(raw)
            if mode is None:
                raise PictureError(
                    f"{image.format} image where data.image.shape has {channels} channels; encoded images "
                    "have 1, 3 or 4"
                )
            if not self.resize and sorted(image.size) != sorted((height, width)):
                raise PictureError(self._other_size(image, height, width))
            found = _header(image)
            if found.deep:
                raise PictureError(
                    f"image of mode {found.mode}, more than 8 bits a channel; convert it to 8 bits"
                )
            if self.grey and not found.grey:
                raise PictureError(
                    f"image of mode {found.mode} in a set whose sampled images are all grey; set "
                    "data.image.mode=RGB, or L to drop the colours"
                )
            image = _upright(image)
            if image.mode != mode:
                image = image.convert(mode)
            if self.resize and image.size != (width, height):
                from PIL.Image import Resampling

                image = image.resize((width, height), Resampling.BILINEAR)  # antialiased
            if image.size != (width, height):
                raise PictureError(self._other_size(image, height, width))
            return np.asarray(image, dtype=np.uint8).reshape(shape)

    def _other_size(self, image: Any, height: int, width: int) -> str:
        hint = (
            f"; data.image.resize=[{height},{width}] brings all images to one size" if self.training else ""
        )
        return f"image of {image.height}x{image.width} pixels, expected {height}x{width}{hint}"

    def bytes_of(self, row: Any) -> bytes | None:
        """The bytes of a row: themselves, or in the Hugging Face form {bytes, path}; None where it is null.

        Raises PictureError where the file at `path` is not there, or must not be read.
        """
        if not isinstance(row, dict):
            return row
        held = row.get("bytes")
        if isinstance(held, bytes):
            return held
        if held is not None:
            raise PictureError(f"its bytes are {type(held).__name__}, expected an image's own bytes")
        path = row.get("path")
        if not path:
            return None
        if not self.training:
            raise PictureError(
                f"only a path, {_cut(path)!r}, which is not opened; give the image's own bytes"
            )
        return _file(str(path))


AS_THEY_ARE = Pictures()
"""Of the wanted size, and by their own bytes."""


def encoded(raw: bytes) -> str | None:
    """PIL's name of the format that the bytes begin like, one of the accepted; None for all others."""
    for name, mark in MARKS:
        if raw.startswith(mark) and (name != "WEBP" or raw[8:12] == b"WEBP"):
            return name
    return None


def surely_encoded(raw: bytes) -> bool:
    """Whether the first bytes are more than raw pixels would be by chance."""
    return encoded(raw) in ("PNG", "GIF", "WEBP")


def look_encoded(block: np.ndarray) -> np.ndarray:
    """Which of the rows (N, size) begin like an accepted picture, (N,) bool."""
    heads = np.ascontiguousarray(block[:, :8])
    found = np.zeros(len(block), bool)
    for _, mark in MARKS:
        found |= (heads[:, : len(mark)] == np.frombuffer(mark, np.uint8)[: heads.shape[1]]).all(axis=1)
    return found


def header(raw: bytes) -> Header | None:
    """None where the bytes are no picture. Nothing is decoded."""
    try:
        with _decoding():
            return _header(_opened(raw))
    except PictureError:
        return None


def size(raw: bytes) -> tuple[int, int, int] | None:
    """[H, W, C] of an upright picture, which is decoded for that; None where it cannot be."""
    try:
        with _decoding():
            image = _opened(raw)
            channels = 1 if _header(image).grey else 3
            image = _upright(image)
            return image.height, image.width, channels
    except PictureError:
        return None


# --------------------------------------------------------------------------------------------- decoding


@contextmanager
def _decoding() -> Iterator[None]:
    """The net below PIL: its decoders raise errors of a dozen kinds, all of which concern one picture.

    What it warns of and logs are broken metadata, which cost no pixel; the size is bounded by `_opened`.
    """
    log = logging.getLogger("PIL.TiffImagePlugin")
    silent, log.disabled = log.disabled, True  # a stranger's pictures shall not fill a log
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PictureError:
        raise
    except Exception as error:
        text = _cut(" ".join(str(error).split()))
        raise PictureError(f"image cannot be decoded: {text or type(error).__name__}") from None
    finally:
        log.disabled = silent


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _opened(raw: bytes) -> Any:
    """The picture's header as PIL's image; nothing is decoded yet. Raises PictureError and what PIL does."""
    from PIL import Image, UnidentifiedImageError

    name = encoded(raw)
    if name is None:
        raise PictureError(f"{len(raw)} bytes that are no picture of a known format ({ACCEPTED})")
    if name == "TIFF":
        raw = _first_page(raw)
    _load_decoders()
    try:
        image = Image.open(io.BytesIO(raw), formats=(name,))
    except UnidentifiedImageError:
        raise PictureError(f"image cannot be decoded: no readable header of a {name}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"image of too many pixels; at most {MOST_PIXELS:,}") from None
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(
            f"image of {image.height}x{image.width} pixels, more than {MOST_PIXELS:,}; scale it down"
        )
    if name == "JPEG" and (scans := raw.count(b"\xff\xda")) * image.width * image.height > MOST_SCANNED:
        raise PictureError(f"image of {image.height}x{image.width} pixels in {scans:,} scans; save it anew")
    return image


def _load_decoders() -> None:
    """PIL looks for what it has not loaded among all of its formats; so ours are loaded first, alone."""
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )


def _header(image: Any) -> Header:
    return Header(image.mode, image.mode in ALPHA or "transparency" in image.info)


def _upright(image: Any) -> Any:
    """The decoded picture, turned as its EXIF orientation says. PIL has turned a TIFF by itself."""
    image.load()
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata; the pixels stand
        return image
    return image if turn is None else image.transpose(turn)


def _first_page(raw: bytes) -> bytes:
    """A TIFF without its further pages, all of which PIL would look through. Raises PictureError."""
    order = "<" if raw[:2] == b"II" else ">"
    big = raw[2:4] in (b"+\x00", b"\x00+")
    try:
        (begin,) = struct.unpack_from(order + ("Q" if big else "I"), raw, 8 if big else 4)
        (tags,) = struct.unpack_from(order + ("Q" if big else "H"), raw, begin)
    except (struct.error, OverflowError):
        raise PictureError("image cannot be decoded: a TIFF without a directory") from None
    if tags > MOST_TAGS:
        raise PictureError(f"image cannot be decoded: a TIFF of {tags:,} tags; at most {MOST_TAGS:,}")
    end = begin + (8 + 20 * tags if big else 2 + 12 * tags)
    link = 8 if big else 4
    return raw if end + link > len(raw) else raw[:end] + bytes(link) + raw[end + link :]


def _file(name: str) -> bytes:
    """The bytes of a picture's file. Raises PictureError where it is absent or no such file."""
    path = Path(name)
    try:
        if not path.exists():
            where = "" if path.is_absolute() else f" in {Path.cwd()}"
            raise PictureError(f"no such file: {name}{where}")
        if not path.is_file():
            raise PictureError(f"{name}: not a file")
        if path.stat().st_size > MOST_FILE_BYTES:
            raise PictureError(f"{name}: more than {MOST_FILE_BYTES:,} bytes")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise PictureError(f"{_cut(name)}: cannot be read: {error}") from None
