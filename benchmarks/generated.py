"""Data of mnist's shape, stores and teachers, all drawn at random: speed and size do not ask for more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.artifacts import write_json
from ensemble_kd.config import Config, validate
from ensemble_kd.data.records import INFO_FILE, DataInfo, SplitWriter

CLASSES = 10
PIXELS = [28, 28, 1]
HELD_OUT = 5000
"""Rows of validation, as in the mnist recipe, and of test."""


def config(**blocks: Any) -> Config:
    """Settings of the mnist recipe's models, without views and shifts; `blocks` replace whole blocks."""
    raw: dict[str, Any] = {
        "name": "benchmark",
        "data": {"source": "digits"},
        "teachers": {"model": {"name": "mlp", "hidden": [1200, 1200], "dropout": 0.3}},
        "student": {
            "model": {"name": "mlp", "hidden": [800, 800]},
            "training": {"batch_size": 128, "learning_rate": 1e-3},
            "temperature": 4,
            "alpha": 1.0,
        },
        "tracking": {"enabled": False},
    }
    return validate(raw | blocks)


def on_cpu(workers: int) -> dict[str, Any]:
    """The compute block of a comparison on CPU cores, also where there is a GPU."""
    return {"num_workers": workers, "cpus_per_worker": 1, "gpus_per_worker": 0}


def info(rows: int, kind: str = "image", shape: list[int] | None = None) -> dict[str, Any]:
    """The description of a data set with `rows` labelled rows in its transfer set."""
    shape = shape or PIXELS
    return DataInfo(
        kind=kind,
        input_shape=shape,
        num_classes=CLASSES,
        class_names=[str(c) for c in range(CLASSES)],
        mean=[0.13] * shape[-1],
        std=[0.31] * shape[-1],
        vocabulary_size=0,
        preprocess={},
        counts={
            "train": rows,
            "validation": HELD_OUT,
            "test": HELD_OUT,
            "transfer": rows,
            "labelled": rows,
        },
    ).to_dict()


def images(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N, 28, 28, 1) uint8 and labels (N,)."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (rows, *PIXELS), dtype=np.uint8)
    return pixels, generator.integers(0, CLASSES, rows)


def member_logits(rows: int, members: int, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
    """(N, 1, M, C) float16 with the largest at 0, as the store holds them."""
    logits = np.random.default_rng(seed).normal(0, 4, (rows, 1, members, classes)).astype(np.float32)
    return (logits - logits.max(-1, keepdims=True)).astype(np.float16)


def shared_arrays(rows: int, members: int = 0) -> dict[str, np.ndarray]:
    """What `train_members` shares with its workers: three splits and, with `members`, the soft targets."""
    arrays = {}
    for i, (split, count) in enumerate((("transfer", rows), ("validation", HELD_OUT), ("test", HELD_OUT))):
        arrays[f"{split}/inputs"], arrays[f"{split}/labels"] = images(count, i)
    if members:
        arrays["ensemble/logits"] = member_logits(rows, members)
    return arrays


def write_prepared(folder: Path, description: dict[str, Any]) -> None:
    """The transfer set on disk as the data stage writes it, a shard at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, kind = description["input_shape"], description["kind"]
    rows, writer = description["counts"]["transfer"], SplitWriter(folder, "transfer", 8192)
    for begin in range(0, rows, 8192):
        count = min(8192, rows - begin)
        generator = np.random.default_rng(begin)
        if kind == "image":
            inputs = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        else:
            inputs = generator.normal(0, 1, (count, *shape)).astype(np.float32)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(inputs[0].nbytes), count, [None, pa.py_buffer(inputs.reshape(-1).view(np.uint8))]
        )
        labels = generator.integers(0, CLASSES, count)
        writer.add(pa.array(np.arange(begin, begin + count)), column, labels)
    writer.close()
    write_json(folder / INFO_FILE, description)


def write_teachers(
    folder: Path, members: int, model: dict[str, Any], description: dict[str, Any]
) -> list[tuple[dict[str, Any], str]]:
    """Untrained teachers as the teachers stage leaves them: (settings, folder) of each."""
    import torch
    from pydantic import TypeAdapter

    from ensemble_kd.config import ModelConfig
    from ensemble_kd.models.build import build
    from ensemble_kd.models.weights import save_weights
    from ensemble_kd.train.initial import WEIGHTS

    found = []
    for member in range(members):
        torch.manual_seed(member)
        network = build(TypeAdapter(ModelConfig).validate_python(model), description)
        place = folder / f"teacher-{member:03d}"
        place.mkdir(parents=True)
        save_weights(network, place / WEIGHTS)
        found.append(({"model": model}, str(place)))
    return found
