"""The references: what one would write without this package. Plain torch, data in memory, no frills."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.train.device import autocast


class BareLoop:
    """A tensor-indexing loop of an MLP on soft targets: fused AdamW, KL at T.

    The inputs are normalised float32 and the soft targets probabilities, averaged at T, both in memory
    before the clock starts.
    """

    def __init__(
        self,
        inputs: Tensor,
        logits: Tensor,
        hidden: list[int],
        *,
        temperature: float = 4.0,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        precision: str = "auto",
    ) -> None:
        """`inputs` (N, ...) uint8; `logits` (N, M, C) of the members."""
        self.inputs = inputs.flatten(1).float().div(255).sub(0.13).div(0.31)  # (N, F)
        self.targets = torch.softmax(mean_logits(logits, temperature) / temperature, 1)  # (N, C)
        self.temperature, self.batch_size, self.precision = temperature, batch_size, precision
        widths = [self.inputs.shape[1], *hidden]
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Linear(widths[-1], self.targets.shape[1]))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
        )

    def epoch(self) -> float:
        """One pass over the rows; examples per second."""
        began = time.perf_counter()
        order, size = torch.randperm(len(self.inputs)), self.batch_size
        steps = len(order) // size
        total = torch.zeros(())
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            x, p = self.inputs[rows], self.targets[rows]
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(x.device, self.precision):
                logits = self.model(x)
            log_q = F.log_softmax(logits.float() / self.temperature, 1)
            loss = F.kl_div(log_q, p, reduction="batchmean") * self.temperature**2
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return steps * size / (time.perf_counter() - began)


def teacher_pace(rows: int, epochs: int) -> float:
    """Seconds that one process takes for its own bare training of a teacher-sized MLP."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 28, 28, 1), dtype=torch.uint8)
    loop = BareLoop(pixels, torch.randn(rows, 1, 10), [1200, 1200])
    loop.epoch()
    return min(rows / loop.epoch() for _ in range(epochs)) * epochs


@torch.inference_mode()
def label(networks: list[nn.Module], inputs: Tensor, batch_size: int, classes: int) -> float:
    """A bare loop of several models over rows in memory; seconds. The logits are dropped."""
    began = time.perf_counter()
    for begin in range(0, len(inputs), batch_size):
        x = inputs[begin : begin + batch_size]
        out = torch.empty(len(x), len(networks), classes)
        for m, network in enumerate(networks):
            with autocast(x.device, "auto"):
                out[:, m] = network(x).logits
    return time.perf_counter() - began
