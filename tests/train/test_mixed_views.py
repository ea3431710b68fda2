"""Mixtures on the whole way: the store answers what the student sees; teachers learn from mixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import INFO, arrays, data, settings, task

from ensemble_kd.config import validate
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.stages import soft_targets
from ensemble_kd.stages.shards import encode
from ensemble_kd.stages.training_data import mixing_problems
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.stored import StoredLogits

CPU = torch.device("cpu")
MIXED = {"shift": 0, "horizontal_flip": False, "mixup": 0.8}
MUNGED = {"shift": 0, "horizontal_flip": False, "munge": 0.3}
VIEWS = 4


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [16]}, {"name": "trees", "rounds": 5}])
@pytest.mark.parametrize("how", [MIXED, MUNGED], ids=["mixup", "munge"])
def test_the_store_answers_the_very_mixtures_that_the_student_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, object], how: dict[str, object]
) -> None:
    teacher = task("teacher", model=model)
    assert train_member(teacher, data(), tmp_path)
    folder = teacher.folder(tmp_path)
    transfer = arrays(96, 0)
    monkeypatch.setattr(soft_targets, "load_split", lambda folder, split: transfer)
    layout = StoreLayout(VIEWS, 1, INFO["num_classes"], None, None)
    labeller = soft_targets.Labeller(
        INFO, layout, [(teacher.settings, str(folder))], how, batch_size=16, data="."
    )
    parts = [  # as shards come
        labeller.logits(
            torch.from_numpy(transfer.inputs[begin : begin + 32]), torch.arange(begin, begin + 32)
        )
        for begin in range(0, 96, 32)
    ]
    whole = data()
    whole.teacher = StoredLogits(encode(torch.cat(parts), layout)[0], layout)
    student = task("distilled", views=VIEWS, augment=how, temperature=1.0)
    network = load_network(teacher.settings, INFO, folder)
    batches, changed = make_batches(student, whole, settings(), CPU), 0
    for batch in batches.epoch(0):
        assert batch.teacher is not None and batch.rows is not None
        wanted = torch.log_softmax(network(batch.inputs).logits, 1)
        torch.testing.assert_close(torch.log_softmax(batch.teacher.logits, 1), wanted, atol=2e-2, rtol=1e-2)
        differ = (batch.inputs != torch.from_numpy(transfer.inputs)[batch.rows]).any(1)
        changed += int(differ.sum())
        # A mixture keeps one of its labels, what is made up has none.
        assert bool((batch.labels >= 0).all()) if how is MIXED else bool((batch.labels[differ] == -1).all())
    assert 0.4 < changed / 96 < 0.8  # three views of four, of which four fifths


def test_a_teacher_mixes_its_own_rows_alone_and_anew_in_every_epoch(tmp_path: Path) -> None:
    whole = data(unlabelled=48)
    teacher = task("teacher", augment=MIXED, rows={"labelled": True, "bootstrap": False, "fraction": 1.0})
    batches = make_batches(teacher, whole, settings(), CPU)
    first, second = (list(batches.epoch(epoch)) for epoch in (0, 1))
    assert all((batch.labels >= 0).all() for batch in first)  # no mixture with a row without a label
    by_row: list[dict[int, torch.Tensor]] = [{}, {}]
    for found, epoch in zip(by_row, (first, second), strict=True):
        for batch in epoch:
            assert batch.rows is not None
            found |= {int(row): x for row, x in zip(batch.rows, batch.inputs, strict=True)}
    assert sum(torch.equal(by_row[0][row], by_row[1][row]) for row in by_row[0]) < 0.2 * len(by_row[0])
    assert train_member(teacher, whole, tmp_path)


def test_a_set_that_is_streamed_cannot_be_mixed() -> None:
    raw = {
        "name": "mixed",
        "data": {"kind": "numeric", "path": ".", "augment": {"mixup": 0.5}},
        "compute": {"memory_budget": 1e-9},
    }
    (told,) = mixing_problems(validate(raw), INFO)
    assert told.startswith("data.augment.mixup:") and "compute.memory_budget" in told
    raw["compute"] = {}
    assert mixing_problems(validate(raw), INFO) == []
