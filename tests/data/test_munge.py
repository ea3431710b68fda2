"""Rows that are made up of similar ones (MUNGE)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from ensemble_kd.config import Config, validate
from ensemble_kd.data.munge import MOST_CANDIDATES, NEIGHBOURS, munged_view, neighbourhood
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages import student_tasks, teachers
from ensemble_kd.stages.start import Basis, Sources

INFO: dict[str, Any] = {"preprocess": {}}


def table(rows: int = 400, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def munged(
    inputs: np.ndarray, view: int, probability: float = 0.5, info: dict[str, Any] = INFO
) -> np.ndarray:
    near, rows = neighbourhood(inputs, info), torch.arange(len(inputs))
    found, _ = munged_view(torch.from_numpy(inputs), None, rows, view, 7, probability, near=near)
    return found.numpy()


def test_neighbours_are_the_nearest_of_the_scaled_rows_and_none_the_row_itself() -> None:
    inputs = table() * np.array([1, 1000, 0.01], np.float32)
    inputs[17] = inputs[3]  # a copy is a neighbour as any other
    near = neighbourhood(inputs, INFO)
    scaled = (inputs - inputs.mean(0)) / inputs.std(0)
    distances = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    for row, found in enumerate(near.nearest.tolist()):
        assert len(set(found)) == NEIGHBOURS and row not in found
        np.testing.assert_allclose(
            np.sort(distances[row, found]), np.sort(distances[row])[:NEIGHBOURS], rtol=1e-4, atol=1e-3
        )
    assert 17 in near.nearest[3] and 3 in near.nearest[17]


def test_view_0_is_the_row_and_others_lose_their_label() -> None:
    inputs, near = torch.from_numpy(table()), neighbourhood(table(), INFO)
    labels, rows = torch.arange(400) % 3, torch.arange(400)
    views = rows % 4
    seen, told = munged_view(inputs, labels, rows, views, 7, 0.5, near=near)
    assert told is not None
    assert torch.equal(seen[views == 0], inputs[views == 0])
    assert torch.equal(told[views == 0], labels[views == 0]) and bool((told[views != 0] == -1).all())
    _, values = munged_view(inputs, labels.float(), rows, views, 7, 0.5, near=near)
    assert values is not None and torch.equal(values.isnan(), views != 0)


def test_a_version_does_not_depend_on_batches_and_differs_from_others() -> None:
    inputs, near = torch.from_numpy(table()), neighbourhood(table(), INFO)
    whole, _ = munged_view(inputs, None, torch.arange(400), 2, 7, 0.5, near=near)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    parts = [munged_view(inputs[part], None, part, 2, 7, 0.5, near=near)[0] for part in order.split(37)]
    assert torch.equal(torch.cat(parts), whole[order])
    other, _ = munged_view(inputs, None, torch.arange(400), 3, 7, 0.5, near=near)
    seeded, _ = munged_view(inputs, None, torch.arange(400), 2, 8, 0.5, near=near)
    assert not torch.equal(whole, other) and not torch.equal(whole, seeded)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_each_column_changes_with_that_probability_by_the_paper_s_formula(probability: float) -> None:
    inputs = table(rows=2)  # of two rows each is the other's only neighbour
    near, rows = neighbourhood(inputs, {}), torch.zeros(20_000, dtype=torch.int64)
    # More than a few values, so that columns are smooth.
    near = type(near)(near.inputs, near.nearest, near.groups, torch.ones(3, dtype=torch.bool))
    first = torch.from_numpy(inputs)[rows]
    seen, _ = munged_view(first, None, rows, torch.arange(1, 20_001), 7, probability, near=near)
    changed = (seen != first).float().mean(0)
    assert changed.numpy() == pytest.approx(probability, abs=0.015)
    if probability == 1:
        spread = np.abs(inputs[0] - inputs[1])
        drawn = (seen.numpy() - inputs[1]) / spread
        for column in range(3):
            assert stats.kstest(drawn[:, column], "norm").pvalue > 1e-3
        assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.04


def test_columns_of_few_values_take_the_other_s_as_it_is() -> None:
    inputs = table()
    inputs[:, 1] = np.random.default_rng(1).integers(4, size=400)
    seen = munged(inputs, 1)
    assert set(np.unique(seen[:, 1])) <= {0.0, 1.0, 2.0, 3.0}
    assert len(np.unique(seen[:, 0])) > 300


def test_what_one_column_of_words_became_changes_together() -> None:
    columns = [{"values": ["a", "b", "c"], "rest": False, "missing": False}, {"mean": 0.0, "missing": False}]
    rng = np.random.default_rng(0)
    words, numbers = np.eye(3, dtype=np.float32)[rng.integers(3, size=400)], rng.normal(size=(400, 1))
    inputs = np.concatenate([words, numbers.astype(np.float32)], 1)
    seen = munged(inputs, 1, 0.7, {"preprocess": {"table": columns}})
    assert (seen[:, :3].sum(1) == 1).all() and set(np.unique(seen[:, :3])) == {0.0, 1.0}
    assert len(np.unique(seen[:, 3])) > 300


def test_a_large_set_looks_among_some_of_its_rows_alone() -> None:
    inputs = table(rows=2 * MOST_CANDIDATES, columns=2)
    near = neighbourhood(inputs, INFO)
    assert near.nearest.shape == (len(inputs), NEIGHBOURS)
    assert len(near.nearest.unique()) <= MOST_CANDIDATES
    assert not bool((near.nearest == torch.arange(len(inputs))[:, None]).any())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "image"}, "data.augment.munge: only for tables of numbers; data.kind is 'image'"),
        ({"mixup": 0.5}, "mixup and munge both make up rows of tables; set one of them to 0"),
        ({"views": 1}, "data.augment.munge: makes up further views of a row, and soft_targets.views is 1"),
        ({"specialists": {}}, "data.augment.munge: specialists are asked about rows of their classes"),
    ],
)
def test_bad_settings(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert told in str(caught.value)
    assert config().data.augment.munge == 0.5


def config(views: int = 4, kind: str = "numeric", mixup: float = 0.0, **blocks: Any) -> Config:
    augment = {"munge": 0.5, "mixup": mixup}
    data = {"kind": kind, "path": ".", "augment": augment}
    clusters = {"clusters": {"num_clusters": 2}} if "specialists" in blocks else {}
    return validate({"name": "made-up", "data": data, "soft_targets": {"views": views}, **clusters, **blocks})


def test_who_learns_from_labels_alone_sees_the_rows_as_they_are() -> None:
    counts = {"transfer": 100, "labelled": 100, "validation": 20, "test": 20}
    for alpha, expected in ((1.0, 4), (0.5, 4), (0.0, 1)):
        made = config(student={"alpha": alpha, "pseudo": 0.0})
        basis = Basis.alone(made)
        tasks = {t.role: t for t in student_tasks.tasks(made, Sources("data", "store", counts, basis))}
        assert set(tasks) == {"distilled", "hard"}
        assert tasks["hard"].views == 1 and not tasks["hard"].augment
        assert tasks["distilled"].views == expected and bool(tasks["distilled"].augment) == (expected > 1)
    teacher = teachers.tasks(config(), "data", 100)[0]
    assert not teacher.augment
