"""Fits boosted trees to a member's rows, in one go. Torch and scikit-learn.

Networks learn in epochs; trees are fitted at once, with all rows in memory, whether these come as arrays or
as a stream. What scikit-learn found is copied into arrays (`models.trees`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.config import TrainingConfig, TreesConfig
from ensemble_kd.data.labels import labelled
from ensemble_kd.models.build import Network
from ensemble_kd.models.trees import Trees, as_arrays
from ensemble_kd.train.blocks import Source, StreamSource, TensorSource
from ensemble_kd.train.validation import validation_metrics

STAGES = 40
"""Numbers of rounds that are held against each other on validation rows."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows that trees are fitted to."""

    inputs: Tensor
    """(N, F) float32."""
    labels: Tensor
    """(N,), or (N, K) of several values."""
    weights: Tensor | None = None
    """(N,) float32: how much each row counts; None for 1 each."""


def rows_of(source: Source, weights: Tensor | None = None) -> Rows:
    """All labelled rows that a member draws from, each as often as it is in there.

    `weights` are those of all rows of the split.
    """
    if isinstance(source, TensorSource):
        numbers = source.rows
        inputs, labels = source.inputs[numbers], source.labels[numbers]
    else:
        assert isinstance(source, StreamSource), "rows lie in memory or are streamed"
        blocks = list(source.open_epoch(0))
        numbers = torch.cat([block.rows for block in blocks])
        order = torch.argsort(numbers, stable=True)
        numbers = numbers[order]
        inputs = torch.cat([block.inputs for block in blocks])[order]
        labels = torch.cat([block.labels for block in blocks])[order]
    known = labelled(labels)
    own = None if weights is None else weights[numbers.cpu()][known.cpu()]
    return Rows(inputs[known], labels[known], own)


@torch.no_grad()
def fit_trees_(
    network: Network,
    settings: dict[str, Any],
    training: TrainingConfig,
    seed: int,
    rows: Rows,
    validation: tuple[Tensor, Tensor],
    *,
    target: dict[str, Any] | None,
) -> int:
    """Fill `network` with trees fitted to `rows`; returns the rounds kept.

    These are the ones with the least calibrated loss (of values: mean squared error) on `validation`; all
    where there are no such rows. `settings` are of a TreesConfig; of `training` the weights of classes are
    read. Single labels are answered with a constant.
    """
    assert isinstance(network.body, Trees)
    model = TreesConfig.model_validate(settings)
    inputs, labels = rows.inputs.cpu(), rows.labels.cpu()
    device = next(network.buffers()).device
    x = network.normalise(inputs.to(device)).flatten(1).cpu().numpy()
    if network.output_scale is not None and network.output_shift is not None:
        scale, shift = network.output_scale.cpu(), network.output_shift.cpu()
        y = ((labels.view(len(labels), -1) - shift) / scale).double().numpy()
        classes = np.arange(y.shape[1])
        fitted = [_fit(model, seed, (x, column), _own(rows.weights), values=True) for column in y.T]
    else:
        y, classes = labels.numpy(), np.unique(labels.numpy())
        if len(classes) < 2:
            network.body.fill_(as_arrays([], np.zeros(1), classes))
            return 0
        fitted = [_fit(model, seed, (x, y), _weights(training, y, rows.weights), values=False)]
    # A round of several values has one tree for each, from estimators of their own.
    rounds = [
        [tree for each in one for tree in each] for one in zip(*(f._predictors for f in fitted), strict=True)
    ]
    base = np.concatenate([np.ravel(f._baseline_prediction) for f in fitted])
    network.body.fill_(as_arrays(rounds, base, classes))
    best = _best(network, model.rounds, *validation, target)
    network.body.cut_(best)
    return best


def _fit(
    model: TreesConfig,
    seed: int,
    rows: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray | None,
    *,
    values: bool,
) -> Any:
    """scikit-learn's estimator of inputs (N, F) and labels (N,)."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if values else HistGradientBoostingClassifier
    estimator = kind(
        max_iter=model.rounds,
        max_leaf_nodes=model.leaves,
        learning_rate=model.learning_rate,
        max_features=model.features,
        early_stopping=False,  # on validation rows of ours instead: so no row of train is lost
        random_state=seed,
    )
    return estimator.fit(*rows, weights)


def _own(weights: Tensor | None) -> np.ndarray | None:
    return None if weights is None else weights.double().numpy()


def _weights(training: TrainingConfig, y: np.ndarray, own: Tensor | None) -> np.ndarray | None:
    """(N,) Weights of rows times those of their classes; None where all are 1."""
    weights = _own(own)
    if training.class_weights is None:
        return weights
    assert isinstance(training.class_weights, list), "the data stage puts numbers in place of names"
    by_class: np.ndarray = np.array(training.class_weights)[y]
    return by_class if weights is None else weights * by_class


def _best(
    network: Network, rounds: int, inputs: Tensor, labels: Tensor, target: dict[str, Any] | None
) -> int:
    body = network.body
    assert isinstance(body, Trees)
    if not len(labels):
        return body.rounds
    seen = network.normalise(inputs.to(body.base.device))
    losses: dict[int, float] = {}
    for count, logits in body.staged(seen, max(1, rounds // STAGES)):
        if network.output_scale is not None and network.output_shift is not None:
            logits = logits * network.output_scale + network.output_shift
        found = validation_metrics(logits.cpu(), labels, target, "calibrated_loss")
        losses[count] = found.get("calibrated_loss", found["validation_loss"])
    return min(losses, key=lambda count: losses[count])
