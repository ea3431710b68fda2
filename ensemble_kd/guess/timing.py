"""Time some steps of teacher and student on this machine: `python -m ensemble_kd.guess.timing`.

Reads a job as JSON from standard input and prints seconds per example as JSON. Networks have random weights:
what they cost does not depend on these.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ensemble_kd.config import AugmentConfig, Config, ModelConfig, TrainingConfig, member_settings, validate
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.rows import cut_tables_, tables
from ensemble_kd.models.transplant import resolve
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.learner import train_step
from ensemble_kd.train.loop import make_optimizer, predict
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import loss_of
from ensemble_kd.train.task import MemberTask

SECONDS = 2.0
"""For which steps of one network are timed, after the first, which is warm-up."""
STEPS = (3, 60)
"""At least and at most."""
PREDICTED = 256
"""Rows of a timed forward pass."""


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(max(1, int(job["threads"])))
    print(json.dumps(pace(validate(job["config"]), Path(job["folder"]), int(job["pieces"]))))


def pace(config: Config, folder: Path, pieces: int = 0) -> dict[str, float]:
    """Seconds per example, to train and to predict, of teacher and student; rows are prepared in `folder`.

    `busy` is the wall clock over the time that the processor worked for this process. `pieces` are the word
    pieces that all texts have, of which a student's table keeps its rows while it is trained.
    """
    prepare(config, folder)
    data = TrainingData(
        load_info(folder).to_dict(),
        load_split(folder, "validation"),
        load_split(folder, "test"),
        load_split(folder, "transfer"),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, training = member_settings(config.teachers, 0)
    teacher = resolve(model, path="teachers.model")[0]
    student = resolve(config.student.model, {"model": teacher, "initial": {}}, path="student.model")[0]
    # Steps are timed as a teacher's: rows are made up for the student alone, which takes next to no time.
    changes = config.data.augment.with_labels if config.data.augment.with_labels.active else None
    own = changes if config.teachers.augment else None
    found: dict[str, float] = {}
    began, worked = time.perf_counter(), time.process_time()
    for name, settings, how, augment in (
        ("teacher", teacher, training, own),
        ("student", student, config.student.training, changes),
    ):
        known: Any = TypeAdapter(ModelConfig).validate_python(settings)
        network = build(known, data.info).to(device)
        found[f"{name}_predict"] = _predict(network, data, device, how.precision)
        if pieces and not how.weight_decay:
            _cut(network, data, pieces)
        found[f"{name}_train"] = _train(network, data, settings, how, augment)
    if device.type == "cpu":
        waited = time.perf_counter() - began
        found["busy"] = max(1.0, waited / max(time.process_time() - worked, 1e-3))
    return found


def _cut(network: Network, data: TrainingData, pieces: int) -> None:
    """As training does it: rows of a table that no text reads are left out."""
    if not tables(network):
        return
    assert data.transfer is not None
    read = np.zeros(data.info["vocabulary_size"], bool)
    read[data.transfer.inputs.ravel()] = True
    read[: max(1, min(pieces, len(read)))] = True
    cut_tables_(network, torch.from_numpy(np.flatnonzero(read)))


def _predict(network: Network, data: TrainingData, device: torch.device, precision: str) -> float:
    assert data.transfer is not None
    part = as_tensor(data.transfer.inputs[:PREDICTED])
    predict(network, part[:8], device, precision=precision)
    began = time.perf_counter()
    predict(network, part, device, precision=precision)
    return (time.perf_counter() - began) / len(part)


def _train(
    network: Network,
    data: TrainingData,
    model: dict[str, Any],
    training: TrainingConfig,
    augment: AugmentConfig | None,
) -> float:
    assert data.transfer is not None
    device = next(network.parameters()).device
    task = MemberTask(
        name="timed",
        role="teacher",
        seed=0,
        model=model,
        training=training.model_dump(mode="json"),
        inputs={},
        examples_per_epoch=len(data.transfer.labels),
        augment={} if augment is None else augment.model_dump(mode="json"),
    )
    batches = make_batches(task, data, training, device)
    loss = loss_of(task, training, data.info.get("target"))
    optimizer = make_optimizer(network, training)
    network.train()
    seconds: list[float] = []
    for epoch in range(STEPS[1]):
        last = time.perf_counter()
        for batch in batches.epoch(epoch):
            train_step(network, network, optimizer, batch, loss, training, device=device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            seconds.append(now - last)  # with what it took to gather and augment the batch
            last = now
            enough = sum(seconds[1:]) >= SECONDS or len(seconds) >= STEPS[1]
            if enough and len(seconds) >= STEPS[0]:
                break
        if len(seconds) >= STEPS[0] and (sum(seconds[1:]) >= SECONDS or len(seconds) >= STEPS[1]):
            break
    return float(np.mean(seconds[1:] or seconds)) / training.batch_size


if __name__ == "__main__":
    main()
