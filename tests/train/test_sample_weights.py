"""Weights of rows: twice the weight is twice the row, from the data file to the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from test_fused import check, student
from toy import MODEL, batches, data, streamed, task

from ensemble_kd.config import Config, validate
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import WEIGHTS_FILE, load_split, load_weights
from ensemble_kd.errors import InputError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.logits import KL
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss
from ensemble_kd.stages.training_data import arrays_and_loader
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.member import train_member

LOSSES = [
    DistillationLoss(KL(2.0), 0.7, pseudo=0.6),
    DistillationLoss(KL(1.0), 1.0),
    DistillationLoss(None, 0.0, label_smoothing=0.1),
]


def made_up(stacked: int = 0) -> tuple[Outputs, Outputs, Batch]:
    torch.manual_seed(0)
    shape = (stacked, 4, 3) if stacked else (4, 3)
    z, v = (torch.randn(shape, dtype=torch.float64) for _ in "zv")
    labels, guesses = torch.tensor([2, -1, -1, 0]), torch.tensor([-1, 1, 2, -1])
    weights = torch.tensor([1.0, 3.0, 0.0, 2.0])
    return Outputs(z), Outputs(v), Batch(torch.zeros(4, 1), labels, guesses=guesses, weights=weights)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_weight_is_a_number_of_copies(loss: DistillationLoss) -> None:
    z, v, seen = made_up()
    again = torch.tensor([0, 1, 1, 1, 3, 3])
    assert seen.guesses is not None
    copies = Batch(torch.zeros(6, 1), seen.labels[again], guesses=seen.guesses[again])
    expected = loss(Outputs(z.logits[again]), Outputs(v.logits[again]), copies) * 6 / 4
    torch.testing.assert_close(loss(z, v, seen), expected)


def test_stacked_losses_are_those_of_each_member() -> None:
    z, v, seen = made_up(len(LOSSES))
    each = [loss(Outputs(z.logits[i]), Outputs(v.logits[i]), seen).float() for i, loss in enumerate(LOSSES)]
    torch.testing.assert_close(StackedLoss(LOSSES)(z, v, seen).float(), torch.stack(each))


def test_a_part_of_a_batch_keeps_its_weights() -> None:
    part = made_up()[2][1:3]
    assert part.weights is not None and part.weights.tolist() == [3.0, 0.0]


def test_batches_carry_the_weights_of_their_rows_on_every_replica() -> None:
    numbers = torch.arange(96, dtype=torch.float32)
    for rank in (0, 1):
        for batch in batches(weights=numbers, rank=rank, replicas=2).epoch(0):
            assert batch.weights is not None and batch.rows is not None
            assert torch.equal(batch.weights, batch.rows.float())


WEIGHTED = np.linspace(0, 2, 96).astype(np.float32)


@pytest.mark.parametrize("form", [lambda held: held, streamed])
def test_stacked_students_train_as_alone(form: Any, tmp_path: Path) -> None:
    students = [student(alpha=1.0), student(alpha=0.3, pseudo=0.5), student(alpha=0.0)]
    check(students, replace(form(data(unlabelled=40)), weights=WEIGHTED), tmp_path)


@pytest.mark.parametrize("model", [MODEL, {"name": "trees", "rounds": 20}])
def test_rows_of_weight_0_teach_nothing(model: dict[str, Any], tmp_path: Path) -> None:
    """A model that sees wrong labels, all of weight 0, ends where one ends that sees others there."""
    weights, ends = (np.arange(96) % 2).astype(np.float32), []
    for shift in (1, 2):
        held = data()
        assert held.transfer is not None
        labels = np.where(weights > 0, held.transfer.labels, (held.transfer.labels + shift) % 3)
        held = replace(held, transfer=replace(held.transfer, labels=labels), weights=weights)
        one = task("hard", name=f"shift-{shift}", inputs={"data": str(shift)}, model=model)
        assert train_member(one, held, tmp_path)
        ends.append(load_file(one.folder(tmp_path) / WEIGHTS))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ------------------------------------------------------------------------------------------- from the file


def configured(tmp_path: Path, weights: list[Any], **columns: Any) -> Config:
    rows = len(weights)
    (tmp_path / "in").mkdir()
    table = pa.table({"x": np.arange(rows) / 7, "label": np.arange(rows) % 2, "w": weights})
    pq.write_table(table, tmp_path / "in/train.parquet")
    pq.write_table(pa.table({"x": [1.5, 2.5]}), tmp_path / "extra.parquet")
    raw = {
        "name": "t",
        "data": {
            "path": str(tmp_path / "in"),
            "kind": "numeric",
            "columns": {"input": ["x"], "label": "label", "weight": "w", **columns},
            "unlabelled": str(tmp_path / "extra.parquet"),
        },
        "teachers": {"model": {"name": "mlp"}},
        "student": {"model": {"name": "mlp"}},
    }
    return validate(raw)


def test_weights_of_train_are_scaled_to_a_mean_of_1(tmp_path: Path) -> None:
    config = configured(tmp_path, [float(i) for i in range(200)])
    info, files = prepare(config, tmp_path / "out")
    found = load_weights(tmp_path / "out")
    assert WEIGHTS_FILE in files and found is not None and found.dtype == np.float32
    train = info.counts["train"]
    assert found[:train].mean() == pytest.approx(1) and found[train:].tolist() == [1.0, 1.0]
    ids = load_split(tmp_path / "out", "transfer").ids[:train]  # row numbers, which are the weights
    assert np.allclose(found[:train] / found[1], ids / ids[1])
    arrays, load, _ = arrays_and_loader(tmp_path / "out", info.to_dict(), 1.0)
    loaded = load(arrays()).weights
    assert loaded is not None and np.array_equal(loaded, found)


def test_without_the_column_there_are_none(tmp_path: Path) -> None:
    prepare(configured(tmp_path, [1.0] * 300, weight=None), tmp_path / "out")
    assert load_weights(tmp_path / "out") is None


@pytest.mark.parametrize(
    ("weights", "columns", "said"),
    [
        ([1.0] * 59 + [-2.0], {}, "row 59 of .*: weight -2.0: a weight is a finite number from 0 on"),
        ([1.0] * 59 + [None], {}, "weight null"),
        ([1.0] * 59 + [float("nan")], {}, "weight nan"),
        (["1"] * 59 + ["heavy"], {}, "weight 'heavy'"),
        ([0.0] * 60, {}, "all of 'w' are 0"),
        ([1.0] * 60, {"weight": "W"}, r"data\.columns\.weight: no column 'W' in"),
        ([1.0] * 60, {"weight": "label"}, r"data\.columns\.weight: 'label' is the label too"),
        ([[1.0]] * 60, {}, "'w' of .* holds list"),
    ],
)
def test_what_is_no_weight_is_told(weights: Any, columns: Any, said: str, tmp_path: Path) -> None:
    config = configured(tmp_path, weights, **columns)
    with pytest.raises(InputError, match=said):
        prepare(config, tmp_path / "out")
    assert inspect_source(config)
