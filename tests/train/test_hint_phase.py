"""FitNets' first stage as a phase: the lower half learns from the teacher's map, what is above stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.records import Arrays
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED, WEIGHTS
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.task import MemberTask, finished

INFO: dict[str, Any] = {
    "kind": "image",
    "input_shape": [8, 8, 1],
    "num_classes": 2,
    "class_names": ["a", "b"],
    "mean": [0.5],
    "std": [0.3],
    "preprocess": {},
    "counts": {"train": 32, "validation": 8, "test": 8, "transfer": 32, "labelled": 32},
}


def arrays(rows: int, seed: int) -> Arrays:
    """Bright at the left or at the right."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    images = generator.integers(0, 100, (rows, 8, 8, 1))
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 4] += 120
    return Arrays(images.astype(np.uint8), labels.astype(np.int64), np.arange(rows))


def task(role: str, model: dict[str, Any], epochs: int, **changes: Any) -> MemberTask:
    training = TrainingConfig(epochs=epochs, batch_size=16, learning_rate=0.01, precision="float32")
    fields: dict[str, Any] = {
        "name": f"{role}-seed-0",
        "role": role,
        "seed": 7,
        "model": model,
        "training": training.model_dump(mode="json"),
        "inputs": {"data": "0123"},
        "examples_per_epoch": 32,
    }
    return MemberTask(**{**fields, **changes})


def test_stage_one_and_two(tmp_path: Path) -> None:
    held = TrainingData(INFO, arrays(8, 1), arrays(8, 2), arrays(32, 0), run=tmp_path)
    teacher = task("teacher", {"name": "resnet", "width": 8, "blocks": 1}, 3)
    assert train_member(teacher, held, tmp_path / "teachers" / "members")
    place = {"stage": "teachers", "member": teacher.fingerprint}
    student = {"name": "resnet", "width": 4, "blocks": 2}
    stage_one = task(
        "phase",
        student,
        6,
        phase="hint",
        alpha=1.0,
        terms=[{"name": "hint", "layers": "middle"}],
        online={"teachers": [place], "shares": [1.0], "logits": False},
    )
    members = tmp_path / "student" / "members"
    assert train_member(stage_one, held, members)
    receipt = finished(stage_one, members)
    assert receipt is not None
    losses = [entry["train_loss"] for entry in receipt.summary["history"]]
    assert losses[-1] < 0.8 * losses[0]
    begun, ended = (
        initial_network(stage_one, held).state_dict(),
        load_file(stage_one.folder(members) / WEIGHTS),
    )
    learns = ("body.stem", "body.norm.", "body.stages.0.", "body.stages.1.")  # up to the guided map, stage_2
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, before in begun.items():
        if name.endswith(statistics):
            continue
        assert torch.equal(before, ended[name]) != name.startswith(learns), name
    assert (stage_one.folder(members) / LEARNED).exists()  # the regressor, which is not shipped
    after = {"stage": "student", "member": stage_one.fingerprint}
    stage_two = task("hard", student, 4, initial=after)
    assert torch.equal(
        initial_network(stage_two, held).state_dict()["body.stem.weight"], ended["body.stem.weight"]
    )
    assert train_member(stage_two, held, members)
