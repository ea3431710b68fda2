"""A store that `ensemble-kd soft-targets` wrote, and the loss of our own loop on it, for any loop in torch.

targets = SoftTargets("runs/tickets")
loss = targets.loss(temperature=2.0, alpha=0.9)
loss(network(inputs), labels, rows).backward()  # rows: targets.rows(ids)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.augment import view
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.records import load_info, load_split, load_weights
from ensemble_kd.data.store import load_columns
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.integrations.place import find
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch, Objective, build_objective, value_problems
from ensemble_kd.objectives.hard import UNLABELLED
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.objectives.targets import HALVES
from ensemble_kd.targets import target_of
from ensemble_kd.train.batches import VIEW_SEED, Targets
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.stored import StoredLogits

MOST_NAMED = 5
"""Ids or rows that an error names."""


class SoftTargets:
    """What the teachers of a run say of each row of its transfer set, in memory.

    A row is a number 0..N-1 in the transfer set: train's rows, then those without a label. `ids` says which
    row of the data each one is, `rows` turns ids into rows.
    """

    def __init__(self, path: str | Path) -> None:
        """`path` is a run folder, or one of its stores, RUN/soft_targets/FINGERPRINT.

        Raises InputError where there is no finished store, or several and none of them is the report's, and
        ArtifactError for one that is damaged.
        """
        place = find(path)
        self.folder, self.layout = place.folder, place.layout
        info = load_info(place.data)
        self.kind, self.class_names, self.target = info.kind, info.class_names, target_of(info.target)
        arrays = load_split(place.data, "transfer")
        self.ids: np.ndarray = arrays.ids
        """(N,) of each row: the data's id column, or the row's number in train, with rows that have no
        label behind them."""
        self.labels = as_tensor(arrays.labels)
        """(N,) int64 class numbers in the order of `class_names`, -1 where there is none; or float32 values,
        NaN where there is none."""
        self._inputs = as_tensor(arrays.inputs)
        weights = load_weights(place.data)
        self.weights = None if weights is None else as_tensor(weights)
        """(N,) float32: how much each row counts; None for 1 each."""
        columns = load_columns(place.folder, place.shards, self.layout.logits_alone, len(arrays.ids))
        self._stored = StoredLogits(columns, self.layout)
        self._place = place
        self._row_of: dict[Any, int] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, ids: Sequence[Any] | np.ndarray) -> np.ndarray:
        """(n,) int64 rows of these ids. Raises InputError for ids that the transfer set does not have."""
        keys = _keys(ids)
        positions, rows = self.matched(keys)
        if len(rows) == len(keys):
            return rows
        there = set(positions.tolist())
        missing = [key for i, key in enumerate(keys) if i not in there]
        raise InputError(
            f"ids: {len(missing)} of {len(keys)} are not in the transfer set of {self._place.run} "
            f"({_some(missing)}), whose ids are such as {_some(self.ids[:2].tolist())}; rows that were "
            "held out for validation and test have no soft targets: take those that `matched` finds"
        )

    def matched(self, ids: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) positions of those of the ids that the transfer set has, and (n,) their rows; int64."""
        if self._row_of is None:
            self._row_of = {key: row for row, key in enumerate(self.ids.tolist())}
        row_of = self._row_of
        found = [(i, row_of[key]) for i, key in enumerate(_keys(ids)) if key in row_of]
        pairs = np.array(found, np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def inputs(self, rows: Tensor, views: Tensor | None = None) -> Tensor:
        """(B, ...) inputs of rows (B,) as our own models see them: pixels (H, W, C) uint8, numbers float32,
        token numbers (L,) int32 that end in padding, 0.

        With `views` (B,), numbers below `layout.views`, those versions of the images that the teachers saw.
        Raises ConfigError where versions are mixtures of images.
        """
        found = self._inputs[rows.cpu()]
        if views is None:
            return found
        augment = AugmentConfig.model_validate(self._place.augment)
        if augment.mixup:
            raise ConfigError(
                "views: those of this store are mixtures of rows (data.augment.mixup); leave views out"
            )
        return view(found, rows.cpu(), views.cpu(), VIEW_SEED, augment)

    def logits(self, rows: Tensor, temperature: float = 1.0, views: Tensor | None = None) -> Tensor:
        """(B, C) float32 v of rows (B,), on the CPU: softmax(v / T) is the members' mean at this T,
        calibrated and weighted as in the run. Of values (B, 1).

        `views` (B,) are numbers below `layout.views`; by default 0, the row as it is.
        """
        return self._averaged(temperature).average(self.member_logits(rows, views))

    def member_logits(self, rows: Tensor, views: Tensor | None = None) -> Tensor:
        """(B, M, C) of each member as stored: its logits less their largest, which no softmax sees.

        Raises InputError for rows and views that are none.
        """
        rows = rows.cpu()
        views = torch.zeros_like(rows) if views is None else views.cpu()
        _check("rows", rows, len(self), "the transfer set")
        _check("views", views, self.layout.views, "the store")
        return self._stored.pick(rows, views)

    def loss(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        *,
        objective: str | dict[str, Any] | None = None,
        pseudo: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> SoftTargetLoss:
        """The loss of our own loop: alpha * soft + (1 - alpha) * hard, the soft part times T^2.

        objective: as `student.objective`: "kl" by default, "mse" where labels are values.
        pseudo: weight of the loss on the ensemble's most probable class, of rows without a label.

        Raises ConfigError with what is wrong with these.
        """
        problems = [] if 0 <= alpha <= 1 else [f"alpha: between 0 and 1, got {alpha}"]
        if not 0 <= pseudo <= 1:
            problems.append(f"pseudo: between 0 and 1, got {pseudo}")
        elif pseudo and not self.target.classified:
            problems.append("pseudo: is for classes, and these labels are values; leave it out")
        soft: Objective | None = None
        try:
            soft = self._objective(objective, temperature)
        except ConfigError as error:
            problems += [line.removeprefix("student.") for line in error.problems]
        if problems:
            raise ConfigError(problems)
        hard, unit = HALVES[self.target.name].hard, self.target.unit
        loss = DistillationLoss(soft, alpha, label_smoothing, hard=hard, unit=unit, pseudo=pseudo)
        return SoftTargetLoss(self, loss, temperature)

    def _objective(self, given: str | dict[str, Any] | None, temperature: float) -> Objective:
        fields = given if isinstance(given, dict) else {"name": given or self.target.objective}
        objective = build_objective(fields, temperature, "objective")
        problems = []
        if not self.target.classified:
            problems += value_problems(objective, fields["name"], "objective")
        if missing := sorted(objective.needs - {"logits"}):
            problems.append(
                f"objective: {fields['name']!r} needs the teacher's {', '.join(missing)}; the store gives "
                "logits alone: use one on these, or `ensemble-kd run`, which asks a teacher in every step"
            )
        if self.layout.top_k is not None and fields["name"] == "mse":
            problems.append(
                f"objective: 'mse' needs every logit, the store has the largest {self.layout.top_k}; use 'kl'"
            )
        if problems:
            raise ConfigError(problems)
        return objective

    def _averaged(self, temperature: float) -> Targets:
        place = self._place
        return Targets(temperature, place.mean, place.weights, calibration=place.calibration)

    def __repr__(self) -> str:
        return f"SoftTargets({str(self.folder)!r}: {len(self)} rows, {self.layout.members} members)"


class SoftTargetLoss:
    """`loss(logits, labels, rows)`: the scalar to minimise of a batch, as our own loop has it."""

    def __init__(self, targets: SoftTargets, loss: DistillationLoss, temperature: float) -> None:
        self.targets, self.loss, self.temperature = targets, loss, temperature
        self._members = targets._averaged(temperature)

    def __call__(
        self, logits: Tensor, labels: Tensor | None, rows: Tensor, views: Tensor | None = None
    ) -> Tensor:
        """The mean over the batch.

        logits: (B, C) of the student; of values (B, K).
        labels: (B,) class numbers in the order of `targets.class_names`, negative where there is none (-1,
            or -100 as transformers has it), or values with NaN; None takes the run's own.
        rows: (B,) int64, `targets.rows(ids)`.
        views: (B,) which version of each row the student was given; by default the row as it is.

        Raises InputError where labels are not those of the run, or the logits have other classes.
        """
        found = self.targets.labels[rows.cpu()]
        self._check_shape(logits)
        if labels is None:
            labels = found.to(logits.device)
        else:
            labels = labels if not self.targets.target.classified else labels.clamp(min=UNLABELLED)
            self._check_labels(labels.cpu(), found, rows.cpu())
        teacher, guesses = None, None
        if self.loss.alpha > 0 or self.loss.pseudo > 0:
            members = self.targets.member_logits(rows, views)
            if self.loss.alpha > 0:
                teacher = Outputs(self._members.average(members).to(logits.device))
            if self.loss.pseudo > 0:
                guesses = self._members.guess(members).to(logits.device).masked_fill(labels >= 0, -1)
        weights = self.targets.weights
        weights = None if weights is None else weights[rows.cpu()].to(logits.device)
        batch = Batch(logits, labels, teacher, rows=rows, guesses=guesses, weights=weights)
        return self.loss(Outputs(logits), teacher, batch)

    def on_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The hard part alone, at weight 1, of rows that need not be the run's; negative labels count 0."""
        self._check_shape(logits)
        labels = labels if not self.targets.target.classified else labels.clamp(min=UNLABELLED)
        alone = DistillationLoss(hard=self.loss.hard, unit=self.loss.unit)
        return alone(Outputs(logits), None, Batch(logits, labels))

    def _check_shape(self, logits: Tensor) -> None:
        classes = self.targets.layout.classes
        if logits.dim() != 2 or logits.shape[1] != classes:
            names = "" if not self.targets.target.classified else f" ({_some(self.targets.class_names)})"
            raise InputError(
                f"logits: (B, {classes}) expected, one for each class of the run{names}, got "
                f"{tuple(logits.shape)}; give the student as many outputs"
            )

    def _check_labels(self, labels: Tensor, found: Tensor, rows: Tensor) -> None:
        """Other labels than the run's mean rows in another order, or classes with other numbers."""
        known = torch.from_numpy(labelled(labels.numpy()) & labelled(found.numpy()))
        alike = torch.isclose(labels.to(torch.float64), found.to(torch.float64), rtol=1e-5)
        wrong = known & ~alike.view(len(known), -1).all(1)
        if not wrong.any():
            return
        at = int(wrong.nonzero()[0])
        numbered = ""
        if self.targets.target.classified:
            numbered = f"; the run numbers its classes {_some(self.targets.class_names)} from 0"
        raise InputError(
            f"labels: row {int(rows[at])} (id {self.targets.ids[int(rows[at])]}) has {_shown(labels[at])}, "
            f"the run has {_shown(found[at])}{numbered}. Rows or classes stand in another order; make rows "
            "of ids by `targets.rows`, or pass labels=None to take the run's"
        )


def _shown(label: Tensor) -> str:
    """A row's label, or its labels."""
    return ", ".join(f"{number:g}" for number in label.reshape(-1).tolist())


def _keys(ids: Sequence[Any] | np.ndarray) -> list[Any]:
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _check(what: str, numbers: Tensor, end: int, of: str) -> None:
    wrong = numbers[(numbers < 0) | (numbers >= end)]
    if len(wrong):
        raise InputError(f"{what}: {_some(wrong.tolist())}, but {of} has 0 to {end - 1}")


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(value) if isinstance(value, str) else str(value) for value in values[:MOST_NAMED])
    return shown + (", ..." if len(values) > MOST_NAMED else "")
