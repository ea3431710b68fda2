"""One member from its task to its folder: what names it, what it sees, and what it leaves behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy import CLASSES, INFO, arrays, data, settings, streamed, task

from ensemble_kd.artifacts import damage, read_json
from ensemble_kd.config import TrainingConfig, balanced_weights
from ensemble_kd.data.records import Arrays
from ensemble_kd.train.blocks import Block, slice_block
from ensemble_kd.train.finishing import CHECKPOINT, FAILED, PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import WEIGHTS, load_network
from ensemble_kd.train.loop import predict
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.rows import pick_rows
from ensemble_kd.train.task import MemberTask, discard, finished

CPU = torch.device("cpu")


# ----------------------------------------------------------------------------------------- fingerprint


def test_name_and_role_do_not_name_the_folder() -> None:
    one = task()
    assert replace(one, name="x", role="plain").fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"model": {"name": "mlp", "hidden": [17]}},
        {"training": settings(learning_rate=0.02).model_dump(mode="json")},
        {"inputs": {"data": "4567"}},
        {"rows": {"labelled": True, "bootstrap": True, "fraction": 1.0}},
        {"rows": {"labelled": True, "bootstrap": False, "fraction": 0.5}},
        {"examples_per_epoch": 48},
        {"augment": {"shift": 1}},
        {"views": 2},
        {"pseudo_labels": True},
    ],
)
def test_what_changes_a_result_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert task(**changes).fingerprint != task().fingerprint


SOFT = [
    {"temperature": 3.0},
    {"mean": "geometric"},
    {"weights": [1.0, 2.0]},
    {"objective": {"name": "mse"}},
]


@pytest.mark.parametrize("changes", SOFT)
def test_temperature_and_the_like_do_not_touch_the_hard_baseline(changes: dict[str, Any]) -> None:
    assert task("hard", **changes).fingerprint == task("hard").fingerprint
    assert task("distilled", **changes).fingerprint != task("distilled").fingerprint


# --------------------------------------------------------------------------------------------- outcome


@pytest.mark.parametrize("role", ["teacher", "hard", "pseudo", "distilled"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_member_leaves_weights_predictions_and_a_receipt(tmp_path: Path, role: str, stream: bool) -> None:
    held = data(unlabelled=40 if role in ("pseudo", "distilled") else 0)
    one, epochs = task(role), []  # type: ignore[var-annotated]
    assert finished(one, tmp_path) is None
    assert train_member(one, streamed(held) if stream else held, tmp_path, on_epoch=epochs.append)
    folder = one.folder(tmp_path)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, PREDICTIONS, "manifest.json"}
    receipt = finished(one, tmp_path)
    assert receipt is not None and not damage(folder, receipt) and receipt.fingerprint == one.fingerprint
    summary = receipt.summary
    assert summary["role"] == role and summary["epochs"] == 4 and summary["history"] == epochs
    assert summary["validation_accuracy"] > 0.6
    # The predictions are the loaded network's.
    network = load_network(receipt.config, INFO, folder)
    assert network.num_parameters == summary["parameters"]
    for name, split in load_file(folder / PREDICTIONS).items():
        inputs = torch.from_numpy({"validation": held.validation, "test": held.test}[name].inputs)
        assert torch.equal(split, predict(network, inputs, CPU)) and split.shape == (30, CLASSES)
    discard(one, tmp_path)
    assert not folder.exists()


def test_the_same_task_gives_the_same_bits(tmp_path: Path) -> None:
    one = task("distilled")
    for name in ("a", "b"):
        train_member(one, data(), tmp_path / name)
    files = [one.folder(tmp_path / name) / WEIGHTS for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_interrupted_member_goes_on(tmp_path: Path) -> None:
    one = task("distilled")
    train_member(one, data(), tmp_path / "whole")

    def interrupt(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_member(one, data(), tmp_path / "parts", on_epoch=interrupt)
    folder = one.folder(tmp_path / "parts")
    assert (folder / CHECKPOINT).exists() and finished(one, tmp_path / "parts") is None
    stale = folder / f".{CHECKPOINT}.123.tmp"
    stale.write_bytes(b"half")
    epochs = []  # type: ignore[var-annotated]
    assert train_member(one, data(), tmp_path / "parts", on_epoch=epochs.append)
    assert [entry["epoch"] for entry in epochs] == [3, 4] and not stale.exists()
    whole = one.folder(tmp_path / "whole")
    for name in (WEIGHTS, PREDICTIONS):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_member_that_diverges_says_so(tmp_path: Path) -> None:
    wild = settings(learning_rate=1e30, optimizer="sgd", warmup_fraction=0).model_dump(mode="json")
    one = task(training=wild)
    assert train_member(one, data(), tmp_path) is False
    folder = one.folder(tmp_path)
    failed = read_json(folder / FAILED)
    assert failed["name"] == one.name and "loss became" in failed["reason"]
    assert finished(one, tmp_path) is None and not (folder / WEIGHTS).exists()


def test_soft_targets_decide_what_a_distilled_student_learns(tmp_path: Path) -> None:
    """With alpha = 1 and no labels at all, it learns what the members say."""
    held = data(unlabelled=96)
    one = task("distilled", alpha=1.0, training=settings(epochs=20).model_dump(mode="json"))
    train_member(one, held, tmp_path)
    receipt = finished(one, tmp_path)
    assert receipt is not None and receipt.summary["validation_accuracy"] > 0.8


# ------------------------------------------------------------------------------------------------ rows


def rows_seen(one: MemberTask, held: TrainingData, epoch: int = 0) -> Counter[int]:
    """Rows of the transfer set in one epoch, by their first number."""
    assert held.transfer is not None
    number = {float(x): i for i, x in enumerate(held.transfer.inputs[:, 0])}
    batches = make_batches(one, held, TrainingConfig.model_validate(one.training), CPU)
    assert sum(1 for _ in batches.epoch(epoch)) == batches.steps_per_epoch
    return Counter(number[float(x)] for b in batches.epoch(epoch) for x in b.inputs[:, 0])


def test_labelled_rows_only_at_the_whole_sets_budget() -> None:
    held = data(unlabelled=48)
    seen = rows_seen(task("hard"), held)
    assert set(seen) == set(range(48, 96)) and set(seen.values()) == {2}
    assert set(rows_seen(task("distilled"), held)) == set(range(96))


def test_a_fraction_is_drawn_once_and_by_the_seed() -> None:
    half = {"labelled": True, "bootstrap": False, "fraction": 0.5}
    first, later = (rows_seen(task(rows=half), data(), epoch) for epoch in (0, 1))
    assert len(first) == 48 and set(first) == set(later) and set(first.values()) == {1}
    assert set(first) != set(rows_seen(task(rows=half, seed=8), data()))


def test_bootstrap_draws_with_replacement() -> None:
    labels = torch.zeros(20000, dtype=torch.long)
    rows = pick_rows(task(rows={"labelled": True, "bootstrap": True, "fraction": 1.0}), labels)
    assert len(rows) == 20000
    assert len(rows.unique()) / 20000 == pytest.approx(1 - 0.3679, abs=0.01)  # 1 - 1/e


def stream_rows(**rows: Any) -> Tensor:
    """Rows that a stream of 20000 gives a member."""
    from ensemble_kd.train.rows import filtered as _filtered

    numbers = torch.arange(20000)
    block = Block(numbers, numbers[:, None].float(), numbers % 2)
    parts = [slice_block(block, slice(begin, begin + 999)) for begin in range(0, 20000, 999)]
    fields = {"labelled": True, "bootstrap": False, "fraction": 1.0, **rows}
    return torch.cat([part.rows for part in _filtered(task(rows=fields), iter(parts), INFO)])


def test_fraction_and_bootstrap_of_a_stream() -> None:
    half = stream_rows(fraction=0.5)
    assert len(half) == pytest.approx(10000, rel=0.03) and len(half.unique()) == len(half)
    assert torch.equal(half, stream_rows(fraction=0.5))
    drawn = stream_rows(bootstrap=True)
    assert len(drawn) == pytest.approx(20000, rel=0.03)
    assert len(drawn.unique()) / 20000 == pytest.approx(1 - 0.3679, abs=0.015)
    both = stream_rows(bootstrap=True, fraction=0.5)
    assert set(both.tolist()) <= set(half.tolist())


def test_a_batch_never_outgrows_a_small_fraction() -> None:
    few = {"labelled": True, "bootstrap": False, "fraction": 0.01}
    seen = rows_seen(task(rows=few), data())
    assert len(seen) == 1 and sum(seen.values()) == 16  # one step, of one row


def test_predictions_of_splits_of_other_sizes(tmp_path: Path) -> None:
    held = data()
    held.validation, held.test = arrays(1, 1), arrays(2000, 2)  # less and more than a batch of `predict`
    assert train_member(task(), held, tmp_path)
    shapes = {k: tuple(v.shape) for k, v in load_file(task().folder(tmp_path) / PREDICTIONS).items()}
    assert shapes == {"validation": (1, CLASSES), "test": (2000, CLASSES)}


def test_balanced_weights_find_the_rare_class(tmp_path: Path) -> None:
    """One row in 24 is of class 2: without weights hardly any of it is found."""
    held = data()
    assert held.transfer is not None
    labels = held.transfer.labels.copy()
    rare = np.flatnonzero(labels == 2)
    labels[rare[4:]] = -1
    held.transfer = Arrays(held.transfer.inputs, labels, held.transfer.ids)
    counts = np.bincount(labels[labels >= 0], minlength=3).tolist()
    found = {}
    for name, weights in (("plain", None), ("balanced", balanced_weights(counts))):
        one = task("hard", training=settings(epochs=12, class_weights=weights).model_dump(mode="json"))
        assert train_member(one, held, tmp_path / name)
        receipt = finished(one, tmp_path / name)
        assert receipt is not None
        found[name] = receipt.summary["validation_balanced_accuracy"]
    assert found["balanced"] > found["plain"] + 0.1, found
