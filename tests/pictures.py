"""Pictures as bytes, in the formats that are read and in those that are not."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
EXACT = ("PNG", "BMP", "TIFF", "WEBP")
"""Those that keep every bit (WebP with the option)."""


def picture(height: int = 8, width: int = 8, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise in one of PIL's modes."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    if mode in ("1", "P", "PA"):
        return Image.fromarray(values[..., 0]).convert("RGB").convert(mode)
    return Image.frombytes(mode, (width, height), values.tobytes())


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    if format == "WEBP":
        options = {"lossless": True, "exact": True} | options
    image.save(file, format, **options)
    return file.getvalue()


def turned(pixels: np.ndarray, orientation: int, format: str = "PNG") -> bytes:
    """A picture that viewers show as `pixels`: stored otherwise, with the EXIF entry that undoes it."""
    undone = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(undone[orientation](pixels))
    return saved(Image.fromarray(stored), format, exif=exif)


def tripping(height: int = 6, width: int = 5) -> bytes:
    """A TIFF whose strip begins at a fraction of a byte: PIL raises TypeError."""
    sizes = [(256, 4, width), (257, 4, height), (278, 4, height)]
    entries = sorted([*sizes, (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)])
    head = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    offsets = struct.pack("<HHIf", 273, 11, 1, 8.5) + struct.pack("<HHII", 279, 4, 1, 30)
    return b"II*\0" + struct.pack("<IH", 8, len(entries) + 2) + head + offsets + bytes(4)


def write(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
