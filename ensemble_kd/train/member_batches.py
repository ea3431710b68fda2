"""The batches that a member's task describes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig, TrainingConfig
from ensemble_kd.data.mixing import Pool
from ensemble_kd.data.versions import Others
from ensemble_kd.models.transformer import piece_map
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import MemberLogits, Source, StreamSource, TensorSource, as_tensor, mix
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.loop import Replicas
from ensemble_kd.train.masking import Masking
from ensemble_kd.train.rows import filtered, pick_rows
from ensemble_kd.train.specialist import Specialty
from ensemble_kd.train.stored import JoinedLogits
from ensemble_kd.train.task import MemberTask

BY_LENGTH = ("transformer", "bilstm", "text_cnn")
"""Models that cost as much as their texts are long: batches are of about one length."""


def make_batches(
    task: MemberTask,
    data: TrainingData,
    training: TrainingConfig,
    device: torch.device,
    replicas: Replicas | None = None,
) -> Batches:
    """The batches that a task describes, over the data at hand."""
    replicas = replicas or Replicas()
    augment = AugmentConfig.model_validate(task.augment)
    num_classes = data.info["num_classes"]
    specialty = Specialty(**task.specialist) if task.specialist else None
    guesses, soft = task.guess_weight > 0, task.alpha > 0
    targets = Targets(task.temperature, task.mean, task.weights, guesses, soft)
    targets.calibration = task.calibration
    if task.temperature_schedule is not None:
        targets.schedule = parse_weight(task.temperature_schedule, "student.temperature")
        targets.epochs = training.num_epochs
    if specialty is not None and specialty.output == "full":
        targets.certain = specialty.inside(num_classes)
    elif specialty is not None:
        targets.specialist_outputs = specialty.outputs(num_classes)
    source: Source
    num_examples = round(task.examples_per_epoch * task.rows["fraction"])
    masking = None
    if task.corpus is not None:
        texts = as_tensor(data.corpora[task.corpus["fingerprint"]])
        none = torch.full((len(texts),), -1)
        source = TensorSource(texts, none, torch.arange(len(texts)), mix(task.seed, 13))
        num_examples = len(texts)
    elif data.transfer is not None:
        labels = as_tensor(data.transfer.labels)
        rows = pick_rows(task, labels)
        inputs, labels, rows = _resident([as_tensor(data.transfer.inputs), labels, rows], device)
        special, fraction = None, 0.5
        if specialty is not None:
            inside = (labels[rows] >= 0) & specialty.inside(num_classes).to(rows.device)[labels[rows]]
            special, rows, fraction = rows[inside], rows[~inside], specialty.special_fraction
        source = TensorSource(
            inputs,
            labels,
            rows,
            mix(task.seed, 13),
            _teacher(task, data),
            max(1, task.views),
            special=special,
            special_fraction=fraction,
        )
    else:
        assert data.stream is not None, "a transfer set is either in memory or streamed"
        wanted = task.targets if task.reads_teacher else None
        open_epoch = data.stream(wanted, mix(task.seed, 13), max(1, task.views))
        source = StreamSource(lambda epoch: filtered(task, open_epoch(epoch), data.info, epoch))
    others: Others | None = None
    if augment.mixup and isinstance(source, TensorSource):  # a stored view is mixed with any row of the split
        others = Pool(source.inputs, source.labels, source.rows if task.views == 0 else None)
    elif augment.munge and task.views > 1:
        others = data.near
    if task.masked_lm:
        masking = _masking(task, data.info)
    return Batches(
        source,
        training.batch_size,
        max(1, num_examples // training.batch_size),
        targets,
        augment,
        fresh_views=task.views == 0,
        seed=task.seed,
        rank=replicas.rank,
        replicas=replicas.size,
        device=device,
        trim_padding=data.info["kind"] == "text",
        by_length=data.info["kind"] == "text" and any(name in BY_LENGTH for name in _models(task)),
        masking=masking,
        weights=None if data.weights is None or task.corpus is not None else as_tensor(data.weights),
        others=others,
    )


def _models(task: MemberTask) -> list[str]:
    """Names of the models that a batch is for."""
    return [task.model["name"], *(model["name"] for model in (task.peers or {}).get("models", []))]


def _masking(task: MemberTask, info: dict[str, Any]) -> Masking:
    special = info["preprocess"]["special"]
    assert task.mask_probability is not None
    mapped = None
    if task.model.get("pieces"):
        mapped = piece_map(task.model["pieces"], info["vocabulary_size"] - 1, special["unk"])
    return Masking(
        task.mask_probability,
        mix(task.seed, 41),
        special["mask"] + 1,
        tuple(number + 1 for number in special.values()),
        info["vocabulary_size"],
        mapped,
    )


def _teacher(task: MemberTask, data: TrainingData) -> MemberLogits | None:
    """The stored logits that a task reads."""
    if not task.reads_teacher:
        return None
    if task.targets == "ensemble":
        return data.teacher
    assert data.combined is not None, "the student stage asks for a combination only where there is one"
    if task.targets == "specialists":
        return data.combined
    assert data.teacher is not None
    return JoinedLogits(data.teacher, data.combined)


def _resident(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """On a GPU, rows live where the model does, as long as they take at most a quarter of its free memory.

    All or none: rows on a GPU cannot pick from inputs that are not.
    """
    if device.type != "cuda":
        return tensors
    free, _ = torch.cuda.mem_get_info(device)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return [tensor.to(device) for tensor in tensors] if size < free // 4 else tensors
