"""Decoding pictures: six formats, exact pixels, EXIF, modes, bounds, and whatever else the bytes may be."""

from __future__ import annotations

import io
import os
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import EXACT, READ, picture, saved, turned
from PIL import Image, ImageOps

from ensemble_kd.data import images
from ensemble_kd.data.decode_images import decode_images
from ensemble_kd.data.images import MOST_PIXELS, PictureError, Pictures

PLAIN, SCALED = Pictures(), Pictures(resize=True)


def refused(raw: bytes, pictures: Pictures = SCALED, shape: tuple[int, int, int] = (8, 8, 3)) -> str:
    found = pictures.decode(raw, shape)
    assert isinstance(found, str), "a picture was read"
    return found


def read(raw: bytes, shape: tuple[int, int, int], pictures: Pictures = PLAIN) -> np.ndarray:
    found = pictures.decode(raw, shape)
    assert isinstance(found, np.ndarray), found
    return found


# ------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("format", READ)
def test_every_accepted_format_is_read(format: str) -> None:
    image = picture(6, 5)
    expected = np.asarray(Image.open(io.BytesIO(saved(image, format))).convert("RGB"))
    np.testing.assert_array_equal(read(saved(image, format), (6, 5, 3)), expected)
    if format in EXACT:
        np.testing.assert_array_equal(expected, np.asarray(image))


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [picture(6, 5, "L", seed) for seed in range(3)]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        raw = saved(frames[0], format, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(read(raw, (6, 5, 1)), np.asarray(frames[0])[..., None])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(format: str, orientation: int) -> None:
    """As `PIL.ImageOps.exif_transpose` does, which `datasets` calls, and to the very pixels."""
    pixels = np.asarray(picture(6, 5))
    raw = turned(pixels, orientation, format)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB"))
    np.testing.assert_array_equal(read(raw, (6, 5, 3)), expected)
    if format != "JPEG":
        np.testing.assert_array_equal(expected, pixels)
    assert images.size(raw) == (6, 5, 3)


def test_broken_metadata_cost_nothing() -> None:
    pixels = np.asarray(picture(6, 5))
    good = turned(pixels, 6, "PNG")
    begin = good.index(b"eXIf") + 4
    length = struct.unpack(">I", good[begin - 8 : begin - 4])[0]
    for block in (bytes(length), b"Exif\0\0MM\0*" + b"\xff" * (length - 10)):
        chunk = b"eXIf" + block[:length]
        raw = good[: begin - 4] + chunk + struct.pack(">I", zlib.crc32(chunk)) + good[begin + length + 4 :]
        assert read(raw, (5, 6, 3)).shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("mode", "format", "channels"),
    [
        ("1", "PNG", 1),
        ("L", "PNG", 1),
        ("LA", "PNG", 1),
        ("P", "PNG", 3),
        ("P", "GIF", 3),
        ("RGBA", "PNG", 3),
        ("RGBA", "WEBP", 4),
        ("CMYK", "JPEG", 3),
        ("CMYK", "TIFF", 3),
        ("YCbCr", "TIFF", 3),
    ],
)
def test_modes(mode: str, format: str, channels: int) -> None:
    raw = saved(picture(6, 5, mode), format)
    wanted = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = np.asarray(Image.open(io.BytesIO(raw)).convert(wanted)).reshape(6, 5, channels)
    np.testing.assert_array_equal(read(raw, (6, 5, channels)), expected)


def test_a_palette_with_transparency() -> None:
    """PIL warns of such a palette, which pytest would make an error."""
    raw = saved(picture(6, 5, "P"), transparency=bytes(range(256)))
    assert read(raw, (6, 5, 3)).shape == (6, 5, 3)
    assert read(raw, (6, 5, 4))[..., 3].min() < 255


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_are_refused(mode: str) -> None:
    raw = saved(Image.new(mode, (8, 8)), "TIFF")
    assert f"mode {mode}, more than 8 bits a channel" in refused(raw)


def test_resize_is_pils_antialiased_bilinear() -> None:
    for mode, shape in (("RGB", (7, 9, 3)), ("L", (7, 9, 1)), ("P", (7, 9, 3)), ("RGBA", (7, 9, 4))):
        raw = saved(picture(40, 30, mode))
        upright = Image.open(io.BytesIO(raw)).convert({1: "L", 3: "RGB", 4: "RGBA"}[shape[2]])
        expected = np.asarray(upright.resize((9, 7), Image.Resampling.BILINEAR)).reshape(shape)
        np.testing.assert_array_equal(read(raw, shape, SCALED), expected)


def test_other_sizes_are_told_with_the_setting_in_training_alone() -> None:
    raw = saved(picture(6, 5))
    assert refused(raw, PLAIN) == "image of 6x5 pixels, expected 8x8"
    told = refused(raw, Pictures(training=True))
    assert told == "image of 6x5 pixels, expected 8x8; data.image.resize=[8,8] brings all images to one size"
    assert "[5,6]" in refused(raw, Pictures(training=True), (5, 6, 3))


# ---------------------------------------------------------------------------------- what is refused


MARKS_OF_OTHERS = {
    "PSD": b"8BPS\0\1" + bytes(200),
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "FLI": bytes((0, 1, 0, 0, 0x11, 0xAF)) + bytes(200),
    "XPM": b"/* XPM */ static char * x[] = {",
    "SUN": b"\x59\xa6\x6a\x95" + bytes(200),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(200),
    "EMF": b"\x01\0\0\0" + bytes(200),
    "DCX": b"\xb1\x68\xde\x3a" + bytes(200),
    "GBR": b"\0\0\0\x1c\0\0\0\2" + bytes(200),
    "CUR": b"\0\0\2\0\1\0" + bytes(200),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(200),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(200),
}


def other_formats() -> dict[str, bytes]:
    """A picture in every further format that PIL can write here, and the marks of others that it reads."""
    Image.init()
    found = dict(MARKS_OF_OTHERS)
    for name in sorted(set(Image.SAVE) - {*READ, "MPO"}):
        for mode in ("RGB", "L", "1"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # some are deprecated
                    found[name] = saved(picture(8, 8, mode), name)
                break
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
    return found


OTHERS = other_formats()


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_formats_are_refused_by_name(name: str) -> None:
    column = pa.array([OTHERS[name]], pa.binary())
    for pictures in (PLAIN, SCALED, Pictures(training=True)):
        pixels, bad = decode_images([column], ["input"], (8, 8, 3), pictures)
        assert "(PNG, JPEG, WebP, GIF, BMP, TIFF)" in bad[0]
        assert not pixels.any()
    assert images.header(OTHERS[name]) is None and images.size(OTHERS[name]) is None


def test_many_other_formats_were_tried() -> None:
    assert len(OTHERS) >= 25 and {"EPS", "PDF", "PPM", "TGA", "ICO"} <= set(OTHERS)


def test_an_eps_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `gs` that PIL would call leaves a mark."""
    marker = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!{sys.executable}\nopen({str(marker)!r}, 'w').close()\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises((OSError, ValueError, SyntaxError, IndexError)):
        Image.open(io.BytesIO(OTHERS["EPS"])).load()
    assert marker.exists(), "the control: PIL by itself starts it"
    marker.unlink()
    hidden = b"\xff\xd8\xff" + OTHERS["EPS"]
    for raw in (OTHERS["EPS"], hidden, b"BM" + OTHERS["EPS"]):
        for pictures in (PLAIN, SCALED, Pictures(training=True)):
            decode_images([pa.array([raw], pa.binary())], ["input"], (8, 8, 3), pictures)
            images.header(raw), images.size(raw)
    assert not marker.exists()


def png_of(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def bombs() -> dict[str, bytes]:
    """Small files that claim to be huge."""
    gif = bytearray(saved(picture(8, 8, "P"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(saved(picture(8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    webp = bytearray(saved(picture(8, 8), "WEBP"))
    begin = webp.index(b"VP8L") + 9
    rest = int.from_bytes(webp[begin : begin + 4], "little") & ~0xFFFFFFF
    webp[begin : begin + 4] = (rest | 16382 | 16382 << 14).to_bytes(4, "little")
    tiff = saved(Image.new("1", (9000, 9000)), "TIFF", compression="group4")
    return {
        "png": png_of(30_000, 30_000, bytes(100_000)),
        "largest png": png_of(2**31 - 1, 2**31 - 1, b""),
        "just above": png_of(8001, 8000, b""),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": bytes(webp),
        "tiff": tiff,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_cost_nothing(name: str) -> None:
    raw = bombs()[name]
    Image.new("L", (1, 1))
    images.header(raw)  # loads the decoders
    began = time.perf_counter()
    assert f"{MOST_PIXELS:,}" in refused(raw)
    assert time.perf_counter() - began < 0.5


def test_a_jpeg_of_very_many_scans_costs_nothing() -> None:
    plain = saved(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)
    last = plain.rindex(b"\xff\xda")
    raw = plain[:last] + plain[last:-2] * 200 + b"\xff\xd9"
    assert "scans; save it anew" in refused(raw)
    assert read(plain, (8, 8, 3), SCALED).shape == (8, 8, 3)


def test_a_tiff_of_very_many_tags_or_pages() -> None:
    tags = b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535 + 4)
    assert "a TIFF of 65,535 tags" in refused(tags)
    entry = struct.pack("<HHII", 256, 4, 1, 1)
    each = (struct.pack("<H", 1) + entry + struct.pack("<I", 26 + 18 * i) for i in range(50_000))
    pages = b"II*\0" + struct.pack("<I", 8) + b"".join(each)
    began = time.perf_counter()
    assert "image cannot be decoded" in refused(pages)
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"BM",
        b"RIFF",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"II*\0",
        b"MM\0+",
        b"RIFF\0\0\0\0WEBP",
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_marks_alone_are_no_pictures(raw: bytes) -> None:
    assert refused(raw)
    assert images.size(raw) is None


# ------------------------------------------------------------------------------------------ paths


def test_paths_are_opened_in_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(saved(picture()))
    monkeypatch.chdir(tmp_path)
    for path in (str(secret), "secret.png"):
        column = pa.array([{"bytes": None, "path": path}])
        _, bad = decode_images([column], ["input"], (8, 8, 3))
        assert "only a path" in bad[0] and "not opened" in bad[0]
        pixels, bad = decode_images([column], ["input"], (8, 8, 3), Pictures(training=True))
        assert not bad and pixels.any()


def test_absent_files_are_told_as_absent(tmp_path: Path) -> None:
    training = Pictures(training=True)
    os.mkfifo(tmp_path / "pipe.png")
    for path, problem in (
        (str(tmp_path / "none.png"), f"no such file: {tmp_path}/none.png"),
        ("none.png", f"no such file: none.png in {Path.cwd()}"),
        (str(tmp_path), "not a file"),
        (str(tmp_path / "pipe.png"), "not a file"),
        ("x" * 5000, "cannot be read"),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(PictureError, match=problem.replace("[", r"\[")):
            training.bytes_of({"bytes": None, "path": path})


# ------------------------------------------------------------------------------------------- fuzz


def sources() -> list[bytes]:
    found = []
    for format in READ:
        for mode in ("RGB", "L", "P") if format != "JPEG" else ("RGB", "L", "CMYK"):
            found.append(saved(picture(9, 7, mode), format))
    found += [turned(np.asarray(picture(9, 7)), 6, format) for format in ("PNG", "JPEG", "WEBP", "TIFF")]
    found += [saved(picture(9, 7), "TIFF", compression=kind) for kind in ("jpeg", "tiff_lzw", "packbits")]
    found.append(saved(picture(9, 7), "JPEG", progressive=True))
    return found


SOURCES = sources()


def check(raw: bytes) -> None:
    """Pixels of the right shape or a message, by all ways in, in bounded time."""
    began = time.perf_counter()
    for pictures in (PLAIN, SCALED, Pictures(training=True, grey=True)):
        for shape in ((9, 7, 3), (9, 7, 1), (9, 7, 4), (9, 7, 2)):
            found: Any = pictures.decode(raw, shape)
            if isinstance(found, str):
                assert found and "\n" not in found and len(found) < 400
            else:
                assert found.shape == shape and found.dtype == np.uint8
    images.header(raw), images.size(raw)
    _, bad = decode_images([pa.array([raw, None], pa.binary())], ["input"], (9, 7, 3), SCALED)
    assert 1 in bad
    assert time.perf_counter() - began < 10


mutations = st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=8)


def mutate(raw: bytes, changes: list[tuple[int, int]], end: int) -> bytes:
    """Bytes set at places counted around, then cut (0: not)."""
    made = bytearray(raw)
    for place, value in changes:
        made[place % len(made)] = value
    return bytes(made[: end % len(made)] if end else made)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SOURCES), mutations, st.integers(0, 4095))
def test_broken_pictures_never_raise(raw: bytes, changes: list[tuple[int, int]], end: int) -> None:
    check(mutate(raw, changes, end))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([b"", *(mark for _, mark in images.MARKS), b"RIFF\x20\0\0\0WEBPVP8 "]),
    st.binary(max_size=300),
)
def test_any_bytes_never_raise(mark: bytes, rest: bytes) -> None:
    check(mark + rest)


@pytest.mark.long
@settings(max_examples=6000, deadline=None)
@given(st.sampled_from(SOURCES), mutations, st.integers(0, 4095))
def test_broken_pictures_never_raise_at_length(raw: bytes, changes: list[tuple[int, int]], end: int) -> None:
    check(mutate(raw, changes, end))
