"""`transformers.Trainer` on the soft targets of a run. Needs accelerate: pip install 'ensemble-kd[trainer]'.

targets = SoftTargets("runs/tickets")
positions, rows = targets.matched(dataset["id"])
train = dataset.select(positions).add_column("row", rows)
DistillationTrainer(model, arguments, train_dataset=train, soft_targets=targets, temperature=2.0).train()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ensemble_kd.errors import InputError
from ensemble_kd.integrations.soft_targets import SoftTargets

ROW = "row"


class DistillationTrainer(Trainer):
    """A Trainer whose loss is that of our own loop: alpha * soft + (1 - alpha) * hard.

    The train dataset has a column `row` beside what the model takes: `targets.rows(ids)`. Batches without it,
    those of evaluation, have the loss on labels alone, so that it compares with any other model's.
    Everything else is Trainer's: collators, schedules, accumulation, precision, callbacks, checkpoints.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch: Trainer divides it where batches are accumulated

    def __init__(
        self,
        *arguments: Any,
        soft_targets: SoftTargets,
        temperature: float = 2.0,
        alpha: float = 0.9,
        objective: str | dict[str, Any] | None = None,
        pseudo: float = 0.0,
        **others: Any,
    ) -> None:
        """`soft_targets` and the arguments of `SoftTargets.loss`; all others are Trainer's.

        Raises ConfigError where these are wrong, InputError where label smoothing is asked for as well.
        """
        self.distillation = soft_targets.loss(temperature, alpha, objective=objective, pseudo=pseudo)
        super().__init__(*arguments, **others)
        self.model_accepts_loss_kwargs = False  # Trainer would hand num_items_in_batch to the model
        if self.label_smoother is not None:
            raise InputError(
                f"label_smoothing_factor: {self.args.label_smoothing_factor:g}, but soft targets are smooth; "
                "set it to 0"
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # Or it would be dropped as no argument of the model.
        kept: Any = self._signature_columns
        if ROW not in kept:
            kept.append(ROW)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's loss, and the model's outputs where they are asked for.

        Raises InputError for a training batch without `row`.
        """
        given = dict(inputs)
        rows = given.pop(ROW, None)
        labels = given.pop("labels", None)
        outputs = model(**given)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if rows is None and model.training:
            raise InputError(
                f"train_dataset: no column {ROW!r}; add it: dataset.add_column('row', targets.rows(ids))"
            )
        if rows is not None:
            loss = self.distillation(logits, labels, rows)
        elif labels is None:
            raise InputError("eval_dataset: neither 'labels' nor 'row'; add one of them")
        else:
            loss = self.distillation.on_labels(logits, labels)
        return (loss, outputs) if return_outputs else loss
