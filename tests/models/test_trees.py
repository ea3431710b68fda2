"""Boosted trees as arrays: held against scikit-learn's own answers, and written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from ensemble_kd.config import TrainingConfig, TreesConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.fits import check_fits
from ensemble_kd.models.trees import Trees, as_arrays
from ensemble_kd.models.weights import load_weights, save_weights, shapes_of
from ensemble_kd.train.trees import Rows, fit_trees_

ROUNDS = 12


def rows(classes: int, count: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    score = x[:, 0] * x[:, 1] + 0.5 * x[:, 2] + 0.1 * torch.randn(count, generator=generator)
    edges = torch.quantile(score, torch.linspace(0, 1, classes + 1)[1:-1])
    return x, torch.bucketize(score, edges)


def info(classes: int, target: dict[str, float] | None = None) -> dict[str, object]:
    return {
        "kind": "numeric",
        "input_shape": [4],
        "num_classes": 1 if target else classes,
        "mean": [0.1, -0.2, 0.0, 3.0],
        "std": [1.5, 0.5, 1.0, 2.0],
        "target": target,
    }


def fitted(
    x: torch.Tensor, y: torch.Tensor, classes: int, target: dict[str, float] | None = None, **training: object
) -> Network:
    network = build(TreesConfig(rounds=ROUNDS), info(classes, target)).eval()
    model = {"name": "trees", "rounds": ROUNDS}
    none = (x[:0], y[:0])
    fit_trees_(network, model, TrainingConfig.model_validate(training), 3, Rows(x, y), none, target=target)
    return network


@pytest.mark.parametrize("classes", [2, 5])
def test_the_arrays_answer_as_scikit_learn_does(classes: int) -> None:
    x, y = rows(classes)
    network = fitted(x, y, classes)
    seen = network.normalise(x).numpy()
    reference = HistGradientBoostingClassifier(
        max_iter=ROUNDS, max_features=0.5, early_stopping=False, random_state=3
    ).fit(seen, y.numpy())
    new, _ = rows(classes, seed=1)
    wanted = reference.predict_proba(network.normalise(new).numpy())
    found = torch.softmax(network(new).logits, 1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.std(0).min() > 0.05


def test_values_are_in_the_label_s_own_units() -> None:
    x, _ = rows(2)
    y = 1000 + 50 * x[:, 0]
    target = {"mean": float(y.mean()), "std": float(y.std())}
    network = fitted(x, y, 1, target)
    seen = network.normalise(x).numpy()
    reference = HistGradientBoostingRegressor(
        max_iter=ROUNDS, max_features=0.5, early_stopping=False, random_state=3
    ).fit(seen, (y.numpy() - target["mean"]) / target["std"])
    wanted = reference.predict(seen) * target["std"] + target["mean"]
    np.testing.assert_allclose(network(x).logits[:, 0].numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("kept", [[0, 1, 3], [1, 3]])
def test_a_class_without_rows_is_as_unlikely_as_the_least_likely(kept: list[int]) -> None:
    x, y = rows(4)
    there = torch.isin(y, torch.tensor(kept))
    logits = fitted(x[there], y[there], 4)(x).logits
    assert logits.shape == (300, 4)
    known = logits[:, kept]
    assert set(logits.argmax(1).tolist()) <= set(kept)
    for absent in set(range(4)) - set(kept):
        assert torch.equal(logits[:, absent], known.min(1).values)
    assert (logits.argmax(1)[there] == y[there]).float().mean() > 0.85


def test_labels_of_one_class_leave_a_constant() -> None:
    x, y = rows(3)
    logits = fitted(x, torch.full_like(y, 1), 3)(x).logits
    assert torch.equal(logits, logits[:1].expand_as(logits))


def test_rounds_after_the_best_on_validation_rows_are_dropped() -> None:
    x, y = rows(3, 80)
    noisy = torch.where(torch.rand(80, generator=torch.Generator().manual_seed(5)) < 0.4, 2 - y, y)
    network = build(TreesConfig(rounds=60), info(3)).eval()
    other = rows(3, 200, seed=2)
    model = {"name": "trees", "rounds": 60, "learning_rate": 0.5}
    kept = fit_trees_(network, model, TrainingConfig(), 0, Rows(x, noisy), other, target=None)
    assert isinstance(network.body, Trees)
    assert 1 <= kept < 60 and network.body.rounds == kept
    stages = dict(network.body.staged(network.normalise(x), 1))
    assert torch.allclose(stages[kept], network(x).logits)


def test_weights_of_classes_move_the_answers() -> None:
    x, y = rows(2, 200)
    y = torch.where(torch.rand(200, generator=torch.Generator().manual_seed(5)) < 0.3, 1 - y, y)
    plain = fitted(x, y, 2)(x).logits.softmax(1)[:, 1].mean()
    heavy = fitted(x, y, 2, class_weights=[1.0, 10.0])(x).logits.softmax(1)[:, 1].mean()
    assert heavy > plain + 0.1


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    x, y = rows(5)
    network = fitted(x, y, 5)
    path = tmp_path / "weights.safetensors"
    save_weights(network, path)
    fresh = build(TreesConfig(rounds=ROUNDS), info(5)).eval()
    assert isinstance(fresh.body, Trees)
    fresh.body.make_room_(shapes_of(path))
    load_weights(fresh, path)
    assert torch.equal(fresh(x).logits, network(x).logits)


def test_many_rows_and_few_answer_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(5)
    network = fitted(x, y, 5)
    whole = network(x).logits
    monkeypatch.setattr("ensemble_kd.models.trees.AT_ONCE", 700)
    np.testing.assert_allclose(network(x).logits.numpy(), whole.numpy(), atol=1e-6)
    assert torch.allclose(torch.cat([network(x[i : i + 7]).logits for i in range(0, 300, 7)]), whole)


def test_a_tree_without_a_split_is_one_leaf() -> None:
    nodes = np.zeros(1, [("is_leaf", "u1"), ("feature_idx", "i8"), ("num_threshold", "f8"), ("left", "u4"),
                         ("right", "u4"), ("value", "f8"), ("depth", "u4")])  # fmt: skip
    nodes["is_leaf"], nodes["value"] = 1, 0.25
    tree = type("Tree", (), {"nodes": nodes})()
    body = Trees(1)
    body.fill_(as_arrays([[tree]], np.array([1.0]), np.array([0])))
    assert body(torch.zeros(3, 2)).logits.tolist() == [[1.25]] * 3


def test_no_model_folder_holds_trees() -> None:
    with pytest.raises(ArtifactError, match="'trees' is for teachers"):
        check_fits(TreesConfig(), info(3), {"body.feature": (0, 1)})
