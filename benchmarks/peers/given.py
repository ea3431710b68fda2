"""What every script of the comparison starts from and ends with: rows, teacher, student, clock, result.

Each script runs in a process of its own, in its system's environment: numpy and torch alone are imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Several networks as one: the mean of their logits."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members]).mean(0)


def perceptron(inputs: int, hidden: list[int], classes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


@dataclass
class Given:
    """The task, the same for all."""

    folder: Path
    seed: int
    result: Path
    settings: dict[str, Any]
    """epochs, batch_size, learning_rate, temperature, alpha (of the soft loss), hidden (the student's),
    teacher_hidden, members."""
    arrays: dict[str, Any]
    """Tensors: `train_inputs` (N, F) float32, `train_labels` (N,), `train_logits` (N, C) of the teacher;
    the same of `validation` and `test`. On texts `inputs` are a list, and `train_vectors`
    (N, 384) the teacher's."""
    cpu_seconds: float = 0.0

    @property
    def classes(self) -> int:
        return int(self.arrays["train_logits"].shape[1])

    def student(self) -> nn.Sequential:
        return perceptron(self.arrays["train_inputs"].shape[1], self.settings["hidden"], self.classes)

    def teacher(self) -> Teacher:
        """The trained ensemble, frozen."""
        features, hidden = self.arrays["train_inputs"].shape[1], self.settings["teacher_hidden"]
        members = [perceptron(features, hidden, self.classes) for _ in range(self.settings["members"])]
        teacher = Teacher(list(members))
        teacher.load_state_dict(torch.load(self.folder / "teacher.pt", weights_only=True))
        return teacher.eval().requires_grad_(False)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """The training loop runs in here; CPU seconds of this process count, its own threads included."""
        began = time.process_time()
        yield
        self.cpu_seconds += time.process_time() - began

    @torch.no_grad()
    def finish(self, predict: Any) -> None:
        """Judge on test rows and write the result. `predict`: inputs (N, F) -> logits or class numbers."""
        inputs = self.arrays["test_inputs"]
        answers = np.asarray(predict(inputs))
        if answers.ndim == 2:
            answers = answers.argmax(1)
        accuracy = float((answers == self.arrays["test_labels"].numpy()).mean())
        seen = len(self.arrays["train_labels"]) * self.settings["epochs"]
        found = {"accuracy": accuracy, "cpu_seconds": self.cpu_seconds, "examples": seen}
        self.result.write_text(json.dumps(found), encoding="utf-8")


def read() -> Given:
    """The task in the folder that the command line names: FOLDER SEED RESULT."""
    folder, seed, result = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    with np.load(folder / "rows.npz") as file:
        arrays = {
            name: file[name].tolist() if file[name].dtype.kind == "U" else torch.from_numpy(file[name])
            for name in file.files
        }
    return Given(folder, seed, result, settings, arrays)
