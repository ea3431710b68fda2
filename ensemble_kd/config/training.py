"""The `training` block of teachers, specialists, students and phases."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.base import Block

ClassWeight = Annotated[float, Field(ge=0, le=1e6)]


class TrainingConfig(Block):
    """One training loop serves teachers and students; this is its dial panel."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"class_weights", "focal_gamma", "min_steps", "early_stopping_by"}
    )

    epochs: Literal["auto"] | Annotated[int, Field(ge=0)] = 20
    """Passes over the training rows; 0 leaves the initial weights as they are. `auto`: as many as `min_steps`
    asks for, known once the rows are counted. Then, unless `early_stopping` is set, the weights of the epoch
    that was best on validation rows are kept, by the calibrated loss, and training ends where half of the
    epochs brought nothing better."""
    min_steps: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Optimiser steps that `epochs: auto` takes at least. `auto`: 2,000, and at least 10 epochs; of a
    transformer that starts from trained weights, and of specialists, 500 and at least 3 epochs. Teachers take
    as many as the student, if theirs are `auto` too and they start from random weights."""
    batch_size: int = Field(128, ge=1)
    """Examples per optimiser step, over all replicas and accumulated parts together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw` (fused), or `sgd` with Nesterov momentum 0.9."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at 0."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """Weight decay, on matrices only; decoupled from the gradient with adamw, an L2 term with sgd."""
    max_norm: float | None = Field(None, gt=0)
    """Largest L2 norm of the weights into one unit (arXiv 1207.0580); null for none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the hard target spread evenly over the classes (arXiv 1512.00567)."""
    class_weights: Literal["balanced"] | list[ClassWeight] | dict[str, ClassWeight] | None = None
    """Weight of a label in the hard loss by its class: one number a class in order, numbers by name (1 for
    the others), or `balanced`: inversely to the class's share of the labels. null: 1 for all."""
    focal_gamma: float = Field(0.0, ge=0, le=100)
    """Focal loss (arXiv 1708.02002): the hard loss of a row is multiplied by (1 - p)^focal_gamma, p being
    what the model gives its label; 0 for cross-entropy."""
    gradient_accumulation: int = Field(1, ge=1)
    """Parts that a batch is cut into to save memory."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest L2 norm of the whole gradient; null for none."""
    early_stopping: int | None = Field(None, ge=1)
    """Epochs without a better validation loss before stopping at the best epoch; null to run to the end."""
    early_stopping_by: Literal["loss", "calibrated_loss"] = "loss"
    """What early stopping goes by: the validation `loss`, or the `calibrated_loss`, which is that at the best
    temperature (arXiv 1706.04599): growing confidence alone does not make a model worse."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; `auto` takes bfloat16 where the hardware computes in it."""

    @property
    def num_epochs(self) -> int:
        """`epochs` as a number. Raises ValueError where `auto` has not been resolved yet."""
        if self.epochs == "auto":
            raise ValueError("epochs: auto is resolved once the rows are counted")
        return self.epochs
