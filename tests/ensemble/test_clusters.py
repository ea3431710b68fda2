"""Covariance in a stream, and clusters of planted confusions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.ensemble import clusters
from ensemble_kd.ensemble.assign import assign_classes
from ensemble_kd.ensemble.clusters import Clustering, cluster_columns
from ensemble_kd.ensemble.covariance import (
    StreamingCovariance,
    confusion_affinity,
    confusion_captured,
    confusion_mass,
)
from ensemble_kd.errors import InputError

METHODS = ["kmeans", "online", "spectral"]


def planted(sizes: list[int], per_class: int = 40, seed: int = 0) -> tuple[np.ndarray, list[list[int]]]:
    """Predictions whose confusions lie within groups of these sizes; classes are shuffled."""
    generator = np.random.default_rng(seed)
    num_classes = sum(sizes)
    order = generator.permutation(num_classes)
    groups = [sorted(part.tolist()) for part in np.split(order, np.cumsum(sizes)[:-1])]
    group_of = {c: group for group in groups for c in group}
    rows = []
    for c in range(num_classes):
        for _ in range(per_class):
            logits = generator.normal(size=num_classes) * 0.3
            logits[group_of[c]] += 5 + generator.normal(size=len(group_of[c]))
            logits[c] += 1.5
            rows.append(np.exp(logits - logits.max()))
    probabilities = np.array(rows)
    return probabilities / probabilities.sum(1, keepdims=True), sorted(groups)


def covariance(probabilities: np.ndarray) -> np.ndarray:
    return np.cov(probabilities.T, bias=True)


def groups_of(clustering: Clustering) -> list[list[int]]:
    labels = clustering.labels
    return sorted(np.flatnonzero(labels == k).tolist() for k in range(clustering.num_clusters))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_classes=st.integers(2, 7), seed=st.integers(0, 999))
def test_covariance_is_numpys_for_any_chunks_and_order_of_merging(
    data: st.DataObject, num_classes: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.dirichlet(np.full(num_classes, 0.3), size=data.draw(st.integers(1, 40)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    parts = []
    for chunk in np.split(rows, cuts):
        part = StreamingCovariance(num_classes)
        part.update(torch.from_numpy(chunk), rows=data.draw(st.integers(1, 10)))
        parts.append(part)
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        first.merge(second)
        parts.append(first)
    assert parts[0].count == len(rows)
    np.testing.assert_allclose(parts[0].mean.numpy(), rows.mean(0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(parts[0].covariance(), covariance(rows), rtol=1e-12, atol=1e-15)


def test_covariance_in_float32_over_several_blocks_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).dirichlet(np.full(30, 0.1), size=500).astype(np.float32)
    stream = StreamingCovariance(30, dtype=torch.float32)
    monkeypatch.setattr(stream, "_accumulate", partial(stream._accumulate, width=7))
    stream.update(rows[:200])
    stream.covariance(width=11)  # reading between updates changes nothing
    stream.update(rows[200:])
    found = stream.covariance(width=11)
    assert found.dtype == np.float32 and (found == found.T).all()
    np.testing.assert_allclose(found, covariance(rows.astype(np.float64)), atol=1e-7)
    assert np.shares_memory(found, stream.covariance())  # held once


def test_empty_and_wrong_predictions() -> None:
    stream = StreamingCovariance(3)
    stream.update(np.zeros((0, 3)))
    stream.merge(StreamingCovariance(3))
    assert stream.count == 0 and not stream.covariance().any()
    with pytest.raises(InputError, match=r"shape \(2, 4\), expected \(examples, 3 classes\)"):
        stream.update(np.zeros((2, 4)))
    with pytest.raises(InputError, match="NaN"):
        stream.update(np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="3 and 4 classes"):
        stream.merge(StreamingCovariance(4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_clusters", [5, "auto"])
@pytest.mark.parametrize("sizes", [[4, 4, 4, 4, 4], [3, 6, 4, 5, 7]])
def test_planted_groups_are_found(method: str, num_clusters: Any, sizes: list[int]) -> None:
    probabilities, groups = planted(sizes)
    matrix = covariance(probabilities)
    found = cluster_columns(matrix, method=method, num_clusters=num_clusters, seed=1)
    assert groups_of(found) == groups
    assert assign_classes(matrix, found, overlap=False) == sorted(tuple(group) for group in groups)
    assert assign_classes(matrix, found) == sorted(tuple(group) for group in groups)
    again = cluster_columns(matrix, method=method, num_clusters=num_clusters, seed=1)
    assert (again.labels == found.labels).all() and (again.centroids == found.centroids).all()
    captured = sum(confusion_captured(matrix, group) for group in groups)
    assert 0.95 < captured <= 1


@pytest.mark.parametrize("num_groups", [2, 3, 9])
def test_auto_finds_how_many(num_groups: int) -> None:
    probabilities, groups = planted([4] * num_groups, seed=num_groups)
    assert groups_of(cluster_columns(covariance(probabilities))) == groups


@pytest.mark.parametrize("method", METHODS)
def test_many_classes_go_through_the_projection(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "LARGE", 20)
    monkeypatch.setattr(clusters, "NEIGHBOURS", 4)
    probabilities, groups = planted([5] * 12, per_class=20)
    matrix = covariance(probabilities).astype(np.float32)
    assert groups_of(cluster_columns(matrix, method=method, num_clusters=12)) == groups


@pytest.mark.parametrize("method", METHODS)
def test_confusion_matrix_instead_of_covariance(method: str) -> None:
    probabilities, groups = planted([3, 4, 5], per_class=60)
    truth = np.repeat(np.arange(12), 60)
    counts = np.zeros((12, 12), dtype=np.int64)
    np.add.at(counts, (truth, probabilities.argmax(1)), 1)
    matrix = confusion_affinity(counts)
    assert (matrix == matrix.T).all() and matrix.sum() == pytest.approx(1)
    assert groups_of(cluster_columns(matrix, method=method, num_clusters=3)) == groups
    with pytest.raises(InputError, match="counts"):
        confusion_affinity(np.zeros((3, 3)))


def test_classes_that_nobody_confuses_are_left_out() -> None:
    matrix = np.full((8, 8), -0.001)
    for a, b in [(0, 3), (1, 5)]:
        matrix[a, b] = matrix[b, a] = 0.05
    np.fill_diagonal(matrix, 0.1)
    found = cluster_columns(matrix, num_clusters=2)
    assert found.labels.tolist() == [0, 1, -1, 0, -1, 1, -1, -1]
    assert assign_classes(matrix, found, classes_per_specialist=3) == [(0, 1, 3), (0, 1, 5)]
    assert assign_classes(matrix, found, overlap=False) == [(0, 3), (1, 5)]
    np.testing.assert_allclose(confusion_mass(matrix), [0.05, 0.05, 0, 0.05, 0, 0.05, 0, 0], atol=1e-12)
    assert confusion_captured(matrix, [0, 3]) == pytest.approx(0.5)
    with pytest.raises(InputError, match="no two of 4 classes are confused.*clusters.temperature=3"):
        cluster_columns(np.eye(4))
    with pytest.raises(InputError, match=r"3 clusters of 2 classes \(2 more are confused with no other\)"):
        cluster_columns(matrix[np.ix_([0, 3, 2, 4], [0, 3, 2, 4])], num_clusters=3)


def test_overlap_takes_the_nearest_columns() -> None:
    probabilities, _ = planted([4, 4, 4], seed=3)
    matrix = covariance(probabilities)
    found = cluster_columns(matrix, num_clusters=3)
    sets = assign_classes(matrix, found, classes_per_specialist=6)
    columns = matrix / np.linalg.norm(matrix, axis=0)
    for k, classes in enumerate(sets):
        centroid = columns[:, found.labels == k].mean(1)
        distances = ((columns - centroid[:, None]) ** 2).sum(0)
        assert classes == tuple(sorted(np.argsort(distances)[:6].tolist()))
        np.testing.assert_allclose(found.distances(matrix)[:, k], distances, atol=1e-12)


def test_disjoint_keeps_to_the_sizes() -> None:
    probabilities, groups = planted([2, 3, 6, 3], seed=5)
    matrix = covariance(probabilities)
    found = cluster_columns(matrix, num_clusters=4)
    for low, high in [(2, 5), (3, 6), (3, 4), (4, None)]:
        sets = assign_classes(matrix, found, overlap=False, min_size=low, max_size=high)
        assert all(low <= len(classes) <= (high or 13) for classes in sets)
        flat = [c for classes in sets for c in classes]
        assert len(set(flat)) == len(flat)
    small = assign_classes(matrix, found, overlap=False, max_size=3)
    largest = max(groups, key=len)
    assert sum(set(classes) <= set(largest) for classes in small) == 1


def test_collapse_is_told_with_the_remedy() -> None:
    matrix = np.full((26, 26), 1e-4)  # two frequent pairs hide what the other 22 do
    np.fill_diagonal(matrix, 2e-4)
    matrix[:2, :2] += 1.0
    matrix[2:4, 2:4] += 2.0
    with pytest.raises(InputError) as caught:
        cluster_columns(matrix, num_clusters=3, normalise=False)
    assert str(caught.value) == (
        "clusters: 22 of 26 classes fell into one cluster (kmeans, 3); soften the predictions "
        "(clusters.temperature=3), scale the columns (clusters.normalise=true), or try another "
        "clusters.method (kmeans, online, spectral)"
    )


def test_small_clusters_that_pile_up_are_a_collapse_too() -> None:
    matrix = covariance(planted([4, 4])[0])
    found = Clustering(np.array([0, 0, 0, 0, 1, 2, 3, 4]), np.diag([0.0] + [9.0] * 7)[:5], True)
    with pytest.raises(InputError, match="7 of 8 classes fell into one cluster .after small"):
        assign_classes(matrix, found, overlap=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 13}, "clusters.num_clusters: 13 clusters of 12 classes; ask for at most 6"),
        ({"num_clusters": 0}, "'auto' or an integer above 0, got 0"),
        ({"num_clusters": "many"}, "got 'many'"),
    ],
)
def test_impossible_numbers_of_clusters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cluster_columns(covariance(planted([4, 4, 4])[0]), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_specialist": 1}, "1 of 12 classes; a specialist needs 2 to 11"),
        ({"classes_per_specialist": 12}, "something to leave out"),
        ({"min_size": 1}, "a cluster of one class tells nothing apart"),
        ({"min_size": 5, "max_size": 4}, "max_size: 4 is below clusters.min_size = 5"),
        ({"classes_per_specialist": 3, "min_size": 4}, "3 lies outside clusters.min_size = 4"),
        ({"classes_per_specialist": 5, "max_size": 4}, "5 lies outside"),
    ],
)
def test_impossible_sizes(arguments: dict[str, Any], message: str) -> None:
    matrix = covariance(planted([4, 4, 4])[0])
    with pytest.raises(InputError, match=message):
        assign_classes(matrix, cluster_columns(matrix, num_clusters=3), **arguments)


def test_a_matrix_that_is_none() -> None:
    with pytest.raises(InputError, match="square matrix"):
        cluster_columns(np.zeros((3, 4)))
    with pytest.raises(InputError, match="NaN"):
        cluster_columns(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="method: kmeans, online, spectral, got 'kmean'"):
        cluster_columns(np.eye(4), method="kmean")


@pytest.mark.parametrize("method", METHODS)
def test_equal_columns(method: str) -> None:
    """Fewer different columns than clusters: fewer clusters, and no warning."""
    matrix = np.kron(np.eye(3), np.ones((2, 2)))
    found = cluster_columns(matrix, method=method, num_clusters=5)
    assert found.num_clusters <= 5
    assert all(len(set(found.labels[i : i + 2])) == 1 for i in (0, 2, 4)) or method != "kmeans"
