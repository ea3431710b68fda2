"""What a trained member leaves in its folder: weights, predictions, and the manifest, written last."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ensemble_kd.artifacts import Identity, finish
from ensemble_kd.attached import ensure
from ensemble_kd.models.build import Network
from ensemble_kd.models.quantise import harden_
from ensemble_kd.models.specialist import correct_dustbin_
from ensemble_kd.models.weights import save_weights
from ensemble_kd.redact import redacted_settings
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.class_bias import add_class_bias_, fit_class_bias
from ensemble_kd.train.compression import compressors
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED, WEIGHTS
from ensemble_kd.train.learner import Left
from ensemble_kd.train.loop import Progress, predict
from ensemble_kd.train.specialist import Judge, correction_for, describe
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.validation import validation_metrics

PREDICTIONS = "predictions.safetensors"
CHECKPOINT = "checkpoint.safetensors"
FAILED = "failed.json"


def finish_phase(
    task: MemberTask, network: Network, progress: Progress, folder: Path, seconds: float
) -> None:
    """Write what a phase leaves to the next: weights, and the manifest, which declares it done."""
    save_weights(network, folder / WEIGHTS)
    files = [WEIGHTS, *([LEARNED] if (folder / LEARNED).exists() else [])]
    summary = {
        "name": task.name,
        "role": task.role,
        "seed": task.seed,
        "epochs": progress.epoch,
        "seconds": seconds,
        "history": progress.history,
    }
    finish(
        folder,
        Identity("member", task.fingerprint, redacted_settings(task.settings), task.inputs),
        files,
        summary,
    )
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)


@dataclass(frozen=True)
class Trained:
    """A network at the end of its training."""

    network: Network
    progress: Progress
    seconds: float
    judge: Judge | None = None
    """By which a specialist is judged."""
    left: Left = field(default_factory=Left)
    """What its learner left beside the network."""


def finish_member(
    task: MemberTask, data: TrainingData, trained: Trained, folder: Path, device: torch.device
) -> None:
    """Write what a trained member leaves: weights, predictions, and the manifest, which declares it done."""
    network, progress, judge, left = trained.network, trained.progress, trained.judge, trained.left
    inputs = {"validation": as_tensor(data.validation.inputs), "test": as_tensor(data.test.inputs)}
    labels = as_tensor(data.validation.labels)
    special: dict[str, Any] = {}
    for compressor in compressors(task):
        compressor.finish(network)
    if task.quantization is not None:
        harden_(network)  # before anything is measured: predictions are those of the weights in the folder
    if judge is not None:
        specialty = judge.specialty
        before = specialty.logits(predict(network, inputs["validation"][judge.rows], device))
        special["dustbin_correction"] = correction_for(specialty, judge, before)
        correct_dustbin_(network, specialty.classes, specialty.output, special["dustbin_correction"])
    if task.class_bias:
        bias = fit_class_bias(predict(network, inputs["validation"], device), labels)
        add_class_bias_(network, bias)
        special["class_bias"] = bias.tolist()
    logits = {name: predict(network, part, device) for name, part in inputs.items()}
    if judge is None:
        measured = validation_metrics(logits["validation"], labels, data.info.get("target"))
    else:
        logits = {name: judge.specialty.logits(part) for name, part in logits.items()}
        measured = judge(logits["validation"][judge.rows], corrected=True)
        special |= describe(judge, measured)
    save_weights(network, folder / WEIGHTS)
    temporary = folder / f".{PREDICTIONS}.tmp"
    tensors = {name: tensor.contiguous() for name, tensor in {**logits, **left.logits}.items()}
    save_file(tensors, temporary)
    temporary.replace(folder / PREDICTIONS)
    summary = {
        "name": task.name,
        "role": task.role,
        "seed": task.seed,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch or progress.epoch,
        "parameters": network.num_parameters,
        "bytes": (folder / WEIGHTS).stat().st_size,
        **measured,
        **special,
        **left.summary,
        "seconds": trained.seconds,
        "history": progress.history,
    }
    settings, files = redacted_settings(task.settings), [WEIGHTS, PREDICTIONS, *left.files]
    finish(folder, Identity("member", task.fingerprint, settings, task.inputs), files, summary)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / FAILED).unlink(missing_ok=True)


def load_logits(folder: Path, split: str) -> Tensor:
    """A finished member's logits on the `validation` or `test` rows; the others are not read."""
    ensure(folder)
    with safe_open(folder / PREDICTIONS, framework="pt") as file:
        logits: Tensor = file.get_tensor(split)
    return logits
