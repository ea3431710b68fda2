"""Lightning on the soft targets of a run. Needs lightning: pip install 'ensemble-kd[lightning]'.

loss = SoftTargets("runs/digits").loss(temperature=2.0, alpha=0.9)
lightning.Trainer(max_epochs=20).fit(DistillationModule(network, loss), loader)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from ensemble_kd.integrations.soft_targets import SoftTargetLoss


class DistillationModule(lightning.LightningModule):
    """Trains any torch network on batches (inputs, labels, rows).

    Subclass it as any LightningModule. One that has a training_step of its own needs no more than the loss:
    `self.distillation(logits, labels, rows)`.
    """

    def __init__(
        self,
        network: nn.Module,
        distillation: SoftTargetLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        """`network(inputs)` gives logits (B, C), or something that has them as `.logits`; `optimizer` is
        called with its parameters."""
        super().__init__()
        self.network, self.distillation, self.optimizer = network, distillation, optimizer

    def forward(self, inputs: Any) -> Tensor:
        outputs = self.network(inputs)
        logits: Tensor = getattr(outputs, "logits", outputs)
        return logits

    def training_step(self, batch: Any, index: int) -> Tensor:
        inputs, labels, rows = batch
        loss = self.distillation(self(inputs), labels, rows)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """The loss on labels alone and, of classes, the accuracy, of batches (inputs, labels)."""
        inputs, labels = batch[:2]
        logits = self(inputs)
        loss = self.distillation.on_labels(logits, labels)
        self.log("validation_loss", loss, batch_size=len(labels))
        if self.distillation.targets.target.classified:
            right = (logits.argmax(1) == labels).float().mean()
            self.log("validation_accuracy", right, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.network.parameters())
