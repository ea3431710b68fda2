"""A small set of images and its configuration, for the tests of the data room."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_kd.config import Config, validate
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare

REAL_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def make_config(batch_size: int = 4, seed: int = 0, **data: Any) -> Config:
    """A configuration whose data block is `data`."""
    model = {"name": "bag" if data.get("kind") == "text" else "mlp"}
    block = {"model": model, "training": {"batch_size": batch_size}}
    return validate({"name": "test", "seed": seed, "data": data, "teachers": block, "student": block})


def make_images(rows: int = 30, shape: tuple[int, int, int] = (5, 4, 3), seed: int = 0) -> np.ndarray:
    """(N, H, W, C) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """One image (H, W, C) as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def real_set(name: str) -> Path:
    """The folder of a real data set; skips the test where it is not at hand."""
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"the real set {name} is not at {REAL_DATA}")
    return REAL_DATA / name


def told_of(config: Config, out: Path) -> list[str]:
    """What is odd about a source; `check` and `prepare` say the same."""
    told: list[str] = []
    prepare(config, out, told.append)
    also: list[str] = []
    assert inspect_source(config, also.append) == []
    assert also == told
    return told
