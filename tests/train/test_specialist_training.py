"""A specialist from its generalist to its folder: what it sees, how it is judged and what corrects it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toy import FEATURES, INFO, settings, streamed
from toy import task as plain_task

from ensemble_kd.artifacts import Manifest, damage
from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.records import Arrays
from ensemble_kd.ensemble.specialists import specialist_logits_from_generalist
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.specialist import DustbinHead
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.blocks import Block
from ensemble_kd.train.finishing import CHECKPOINT, PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import WEIGHTS, load_network
from ensemble_kd.train.loop import predict
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.specialist import Judge, Specialty, start
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
CLASSES = 6
SIX = {**INFO, "num_classes": CLASSES, "class_names": list("abcdef")}
"""As the toy problem, with a class for each of its numbers."""
S = [1, 5]
OUTPUT = {1: 0, 5: 1}  # all other classes: 2, the dustbin
OUTPUTS = ["aggregate", "row", "full"]


def arrays(rows: int, seed: int) -> Arrays:
    """Each class is where its number is largest; 1 and 5 lie close together, so that they are confused."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, FEATURES)).astype(np.float32)
    scores = inputs + 0.3 * generator.normal(size=(rows, FEATURES))
    middle = scores[:, S].mean(1, keepdims=True)
    scores[:, S] = middle + 0.3 * (scores[:, S] - middle) + 0.5
    return Arrays(inputs, scores.argmax(1).astype(np.int64), np.arange(rows))


@dataclass
class Held:
    """A trained generalist, the folder it is in, and the data."""

    folder: Path
    manifest: Manifest
    data: TrainingData
    logits: dict[str, Tensor]
    """Its logits (N, C) on the rows of each split."""

    @property
    def labels(self) -> dict[str, Tensor]:
        assert self.data.transfer is not None
        splits = {"transfer": self.data.transfer, "validation": self.data.validation, "test": self.data.test}
        return {name: torch.from_numpy(split.labels) for name, split in splits.items()}

    def with_labels(self, labels: Tensor) -> TrainingData:
        """The same data with other labels of the transfer set, its number of labelled rows counted anew."""
        assert self.data.transfer is not None
        transfer = replace(self.data.transfer, labels=labels.numpy())
        counts = {"transfer": len(labels), "labelled": int((labels >= 0).sum())}
        return replace(self.data, transfer=transfer, info={**SIX, "counts": {**SIX["counts"], **counts}})


class Stored:
    """Soft targets in memory: of two members the second one is the generalist."""

    num_views = 1

    def __init__(self, logits: Tensor) -> None:
        other = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
        self.logits = torch.stack([5 * other, logits], 1)  # (N, M, C)

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return self.logits[rows]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("teachers")
    data = TrainingData(SIX, arrays(200, 1), arrays(50, 2), arrays(480, 0), generalists=folder)
    one = plain_task("teacher", training=trained(epochs=4), examples_per_epoch=480)
    assert train_member(one, data, folder)
    manifest = finished(one, folder)
    assert manifest is not None
    logits = load_file(one.folder(folder) / PREDICTIONS)
    assert data.transfer is not None
    network = load_network(manifest.config, SIX, one.folder(folder))
    logits["transfer"] = predict(network, torch.from_numpy(data.transfer.inputs), CPU)
    data.teacher = Stored(logits["transfer"])
    return Held(folder, manifest, data, logits)


def trained(**changes: Any) -> dict[str, Any]:
    return settings(**changes).model_dump(mode="json")


def specialty(held: Held, output: str = "aggregate", **changes: Any) -> Specialty:
    share = float(np.isin(held.labels["transfer"], S).mean())
    return Specialty(
        **{"classes": S, "generalist": held.manifest.fingerprint, "natural_share": share, **changes},
        output=output,
    )


def task(
    held: Held, output: str = "aggregate", special: dict[str, Any] | None = None, **changes: Any
) -> MemberTask:
    """The task of a specialist of S; `special` are fields of its Specialty."""
    soft: dict[str, Any] = {
        "alpha": 1.0,
        "objective": {"name": "kl"},
        "weights": [0.0, 1.0],
        "rows": {"labelled": False, "bootstrap": False, "fraction": 1.0},
    }
    fields = {
        "training": trained(epochs=3),
        "inputs": {"data": "0123", "generalist": held.manifest.fingerprint},
        "examples_per_epoch": 320,
        "specialist": vars(specialty(held, output, **(special or {}))),
        **(soft if output == "full" else {}),
    }
    return plain_task("specialist", **{**fields, **changes})


def summary_of(one: MemberTask, members: Path) -> dict[str, Any]:
    receipt = finished(one, members)
    assert receipt is not None
    return receipt.summary


def outputs_of(labels: Tensor) -> Tensor:
    """Outputs that stand for these labels, by hand."""
    return torch.tensor([OUTPUT.get(label, 2) for label in labels.tolist()])


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    log_p = logits.double() - logits.double().logsumexp(1, keepdim=True)
    return -float(log_p.gather(1, targets[:, None]).mean())


def asked_for(logits: Tensor, top_n: int = 1) -> Tensor:
    """(N,) bool: is one of the n largest logits of a class in S?"""
    return torch.from_numpy(np.isin((-logits).argsort(1)[:, :top_n], S).any(1))


# --------------------------------------------------------------------------------------------- outcome


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_specialist_leaves_weights_predictions_and_a_receipt(
    tmp_path: Path, held: Held, output: str, stream: bool
) -> None:
    one = task(held, output)
    assert train_member(one, streamed(held.data, 64) if stream else held.data, tmp_path)
    folder, receipt = one.folder(tmp_path), finished(one, tmp_path)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, PREDICTIONS, "manifest.json"}
    assert receipt is not None and not damage(folder, receipt) and receipt.inputs == one.inputs
    network, stored = load_network(receipt.config, SIX, folder), load_file(folder / PREDICTIONS)
    assert network.num_parameters == receipt.summary["parameters"]
    for name, split in (("validation", held.data.validation), ("test", held.data.test)):
        outputs = predict(network, torch.from_numpy(split.inputs), CPU)
        assert outputs.shape[1] == (CLASSES if output == "full" else 3)
        expected = specialist_logits_from_generalist(outputs, S) if output == "full" else outputs
        assert stored[name].shape == (len(split.labels), 3) and torch.equal(stored[name], expected)
    # The receipt's figures, from the stored predictions by hand.
    labels, logits, summary = held.labels["validation"], stored["validation"], receipt.summary
    asked, inside = asked_for(held.logits["validation"]), torch.from_numpy(np.isin(labels, S))
    loss = cross_entropy(logits[asked], outputs_of(labels)[asked])
    assert summary["validation_loss"] == pytest.approx(loss, abs=1e-5)
    right = logits[inside, :2].argmax(1) == outputs_of(labels)[inside]
    assert (
        summary["conditional_accuracy"]
        == summary["validation_accuracy"]
        == pytest.approx(float(right.float().mean()))
    )
    before = held.logits["validation"][inside][:, S].argmax(1) == outputs_of(labels)[inside]
    assert summary["conditional_accuracy_before"] == pytest.approx(float(before.float().mean()))
    assert summary["conditional_rows"] == int(inside.sum()) and summary["role"] == "specialist"


@pytest.mark.parametrize("output", OUTPUTS)
def test_before_training_it_says_what_the_generalist_says(held: Held, output: str) -> None:
    special = specialty(held, output)
    network = load_network(held.manifest.config, SIX, held.folder / held.manifest.fingerprint)
    begun = start(special, network, held.logits["validation"])
    logits = special.logits(predict(begun, torch.from_numpy(held.data.validation.inputs), CPU))
    expected = specialist_logits_from_generalist(held.logits["validation"], S)
    torch.testing.assert_close(logits[:, :2], expected[:, :2], atol=1e-5, rtol=1e-5)
    p, mass = logits.softmax(1), expected.softmax(1)[:, 2]
    if output == "row":  # one level for all rows, right on average
        torch.testing.assert_close(p[:, 2].mean(), mass.mean(), atol=1e-5, rtol=0)
        assert torch.equal(logits[:, 2], logits[:1, 2].expand(len(logits)))
    else:
        torch.testing.assert_close(p[:, 2], mass, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output", ["aggregate", "full"])
def test_a_specialist_that_learns_nothing_is_its_generalist(tmp_path: Path, held: Held, output: str) -> None:
    one = task(held, output, {"correction": "none"}, training=trained(epochs=1, learning_rate=1e-12))
    assert train_member(one, held.data, tmp_path)
    stored = load_file(one.folder(tmp_path) / PREDICTIONS)["test"]
    expected = specialist_logits_from_generalist(held.logits["test"], S)
    torch.testing.assert_close(stored, expected, atol=1e-5, rtol=1e-5)


def test_training_helps_among_its_classes(tmp_path: Path, held: Held) -> None:
    """The loss on its slice falls from that of the generalist, and it confuses them no more than before."""
    one = task(held, training=trained(epochs=12))
    assert train_member(one, held.data, tmp_path)
    summary = summary_of(one, tmp_path)
    judge = Judge(specialty(held), held.logits["validation"], held.labels["validation"])
    generalist = specialist_logits_from_generalist(held.logits["validation"], S)[judge.rows]
    assert summary["validation_loss"] < judge(generalist)["validation_loss"]
    assert summary["conditional_accuracy"] >= summary["conditional_accuracy_before"]


@pytest.mark.parametrize("train_outside", [True, False])
def test_rows_behind_the_dustbin_are_trained_or_stay(tmp_path: Path, held: Held, train_outside: bool) -> None:
    one = task(held, special={"train_outside": train_outside}, training=trained(epochs=1, weight_decay=0.1))
    assert train_member(one, held.data, tmp_path)
    receipt = finished(one, tmp_path)
    assert receipt is not None
    head = load_network(receipt.config, SIX, one.folder(tmp_path)).head
    generalist = load_network(held.manifest.config, SIX, held.folder / held.manifest.fingerprint).head
    assert isinstance(head, DustbinHead) and generalist is not None
    others = [c for c in range(CLASSES) if c not in S]
    assert torch.equal(head.outside_weight, generalist.weight[others]) != train_outside
    assert not torch.equal(head.weight, generalist.weight[S])


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_interrupted_specialist_goes_on(tmp_path: Path, held: Held, output: str) -> None:
    one = task(held, output, training=trained(epochs=4, early_stopping=4))
    train_member(one, held.data, tmp_path / "whole")

    def interrupt(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_member(one, held.data, tmp_path / "parts", on_epoch=interrupt)
    folder, whole = one.folder(tmp_path / "parts"), one.folder(tmp_path / "whole")
    assert (folder / CHECKPOINT).exists() and finished(one, tmp_path / "parts") is None
    epochs = []  # type: ignore[var-annotated]
    assert train_member(one, held.data, tmp_path / "parts", on_epoch=epochs.append)
    assert [entry["epoch"] for entry in epochs] == [3, 4]
    for name in (WEIGHTS, PREDICTIONS):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_missing_generalist_is_named_with_the_remedy(tmp_path: Path, held: Held) -> None:
    one = task(held, special={"generalist": "0" * 16})
    with pytest.raises(ArtifactError) as caught:
        train_member(one, held.data, tmp_path)
    assert str(caught.value) == (
        f"{held.folder / ('0' * 16)}: the generalist of {one.name} is missing; run the teachers stage again"
    )
    assert finished(one, tmp_path) is None


def test_early_stopping_judges_by_the_slice(tmp_path: Path, held: Held) -> None:
    """The epoch of the least loss on the slice is kept, and only once corrected is it the receipt's loss."""
    wild = trained(epochs=30, early_stopping=3, learning_rate=0.1, schedule="constant", warmup_fraction=0)
    one = task(held, training=wild)
    assert train_member(one, held.data, tmp_path)
    summary = summary_of(one, tmp_path)
    losses = [entry["validation_loss"] for entry in summary["history"]]
    best = summary["best_epoch"]
    assert best == 1 + int(np.argmin(losses)) and summary["epochs"] == best + 3 < 30
    assert summary["validation_loss"] == pytest.approx(losses[best - 1], abs=1e-5)
    labels, asked = held.labels["validation"], asked_for(held.logits["validation"])
    stored = load_file(one.folder(tmp_path) / PREDICTIONS)["validation"]
    assert cross_entropy(stored[asked], outputs_of(labels)[asked]) == pytest.approx(
        losses[best - 1], abs=1e-5
    )
    assert abs(cross_entropy(stored, outputs_of(labels)) - losses[best - 1]) > 0.01  # of all rows: another


# ------------------------------------------------------------------------------------------------ rows


def epoch_of(one: MemberTask, held: TrainingData, epoch: int = 0) -> Batch:
    """All examples of an epoch as one batch."""
    batches = make_batches(one, held, TrainingConfig.model_validate(one.training), CPU)
    parts = list(batches.epoch(epoch))
    assert len(parts) == batches.steps_per_epoch
    teacher = None
    if parts[0].teacher is not None:
        teacher = replace(
            parts[0].teacher, logits=torch.cat([part.teacher.logits for part in parts if part.teacher])
        )
    return Batch(
        torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]), teacher
    )


def rows_of(batch: Batch, held: Held) -> Tensor:
    """(B,) row numbers of the transfer set, by the first number of each."""
    assert held.data.transfer is not None
    number = {float(x): i for i, x in enumerate(held.data.transfer.inputs[:, 0])}
    return torch.tensor([number[float(x)] for x in batch.inputs[:, 0]])


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.5, 0.9])
def test_share_of_its_rows_in_memory_is_exact(held: Held, fraction: float) -> None:
    one = task(held, special={"special_fraction": fraction})
    orders = []
    for epoch in (0, 1):
        batch = epoch_of(one, held.data, epoch)
        special = batch.labels < 2
        assert len(batch) == 320 and int(special.sum()) == round(320 * fraction)
        rows = rows_of(batch, held)
        orders.append(rows.tolist())
        for part in (rows[special], rows[~special]):  # one row as often as another
            assert len(set(Counter(part.tolist()).values())) <= 2
        first = special[:160].float().mean()  # well mixed
        assert float(first) == pytest.approx(fraction, abs=0.12)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("stream", [False, True])
def test_labels_become_outputs_and_the_dustbin_is_last(held: Held, stream: bool) -> None:
    batch = epoch_of(task(held), streamed(held.data, 64) if stream else held.data)
    labels = held.labels["transfer"][rows_of(batch, held)]
    assert set(labels.tolist()) == set(range(CLASSES))
    assert torch.equal(batch.labels, outputs_of(labels)) and batch.teacher is None


@pytest.mark.parametrize("stream", [False, True])
def test_unlabelled_rows_stay_unlabelled_and_count_as_others(held: Held, stream: bool) -> None:
    labels = held.labels["transfer"].clone()
    labels[::2] = -1
    data = held.with_labels(labels)
    everything = {"labelled": False, "bootstrap": False, "fraction": 1.0}
    batch = epoch_of(task(held, rows=everything), streamed(data, 64) if stream else data)
    known = labels[rows_of(batch, held)]
    assert torch.equal(batch.labels, torch.where(known < 0, known, outputs_of(known)))
    share = float(((batch.labels == 0) | (batch.labels == 1)).float().mean())
    assert share == pytest.approx(0.5, abs=0.08 if stream else 0) and bool((batch.labels < 0).any())
    # Those that see labelled rows only do not see these.
    batch = epoch_of(task(held), streamed(data, 64) if stream else data)
    assert not bool((batch.labels < 0).any()) and not bool((rows_of(batch, held) % 2 == 0).any())


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_share_of_its_rows_in_a_stream(fraction: float, labelled: bool) -> None:
    """40,000 rows, 3 of 10 of its classes; where it sees them, a quarter of the rows have no label."""
    count = 40_000
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.2, 0.1, 0.2, 0.1, 0.2, 0.2]), count, True, generator=generator)
    labels[torch.rand(count, generator=generator) < 0.25] = -1
    numbers = torch.arange(count)

    def stream(targets: str | None, seed: int, views: int) -> Callable[[int], Iterator[Block]]:
        return lambda epoch: (Block(rows, rows[:, None].float(), labels[rows]) for rows in numbers.split(999))

    counts = {"transfer": count, "labelled": int((labels >= 0).sum())}
    data = TrainingData({**SIX, "counts": counts}, arrays(1, 1), arrays(1, 2), stream=stream)
    special = Specialty(S, "0", 0.3, special_fraction=fraction)
    one = plain_task(
        "specialist",
        examples_per_epoch=8000,
        rows={"labelled": labelled, "bootstrap": False, "fraction": 1.0},
        specialist=vars(special),
    )
    seen = []
    for epoch in (0, 1):
        batch = epoch_of(one, data, epoch)
        share = float(((batch.labels == 0) | (batch.labels == 1)).float().mean())
        assert share == pytest.approx(fraction, abs=0.02)  # 4 standard errors or more
        assert bool((batch.labels < 0).any()) != labelled
        seen.append(set(batch.inputs[:, 0].tolist()))
    last = min(max(rows) for rows in seen)
    first, second = ({row for row in rows if row <= last} for rows in seen)
    assert first != second  # thinned anew in each epoch
    share = 0.3 if labelled else 0.3 * counts["labelled"] / count
    rare = np.isin(labels, S) if fraction >= share else ~np.isin(labels, S)
    if labelled:
        rare &= labels.numpy() >= 0
    kept = {float(row) for row in np.flatnonzero(rare) if row <= last}
    assert kept <= first and kept <= second  # the rarer side loses none


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_softmax_learns_certain_labels_and_else_what_the_generalist_says(
    held: Held, stream: bool
) -> None:
    """arXiv 1503.02531, section 5.5; a row of S without a label is one of the others."""
    labels = held.labels["transfer"].clone()
    labels[::3] = -1
    data = held.with_labels(labels)
    batch = epoch_of(task(held, "full", temperature=2.0), streamed(data, 64) if stream else data)
    rows = rows_of(batch, held)
    assert torch.equal(batch.labels, labels[rows])  # classes, not outputs
    certain = torch.from_numpy(np.isin(batch.labels, S))
    assert float(certain.float().mean()) == pytest.approx(0.5, abs=0.08 if stream else 0)
    assert batch.teacher is not None
    p = (batch.teacher.logits / 2.0).softmax(1)
    assert torch.equal(p[certain], torch.nn.functional.one_hot(batch.labels[certain], CLASSES).float())
    expected = (held.logits["transfer"][rows] / 2.0).softmax(1)
    torch.testing.assert_close(p[~certain], expected[~certain])
    assert bool((batch.labels[~certain] < 0).any()) and bool((batch.labels[~certain] >= 0).any())


# ------------------------------------------------------------------------------------------- correction


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_fitted_correction_is_the_best_and_the_formula_is_the_formula(
    tmp_path: Path, held: Held, output: str
) -> None:
    """Training is the same; what is stored differs by one constant between S and the dustbin."""
    fraction = 0.9
    logits, summaries = {}, {}
    for correction in ("none", "formula", "fitted"):
        one = task(held, output, {"correction": correction, "special_fraction": fraction})
        assert train_member(one, held.data, tmp_path)
        logits[correction] = load_file(one.folder(tmp_path) / PREDICTIONS)["validation"]
        summaries[correction] = summary_of(one, tmp_path)
        bias = summaries[correction]["dustbin_correction"]
        odds = [part[:, 2:] - part[:, :2] for part in (logits[correction], logits["none"])]
        torch.testing.assert_close(odds[0], odds[1] + bias, atol=1e-5, rtol=1e-5)
    share = specialty(held).natural_share
    assert summaries["none"]["dustbin_correction"] == 0
    formula = math.log(fraction / (1 - fraction) * (1 - share) / share)
    assert summaries["formula"]["dustbin_correction"] == pytest.approx(formula)
    losses = {name: summary["validation_loss"] for name, summary in summaries.items()}
    assert losses["fitted"] < min(losses["none"], losses["formula"])
    labels, asked = held.labels["validation"], asked_for(held.logits["validation"])

    def loss(bias: float) -> float:
        moved = logits["none"] + torch.tensor([0.0, 0.0, bias])
        return cross_entropy(moved[asked], outputs_of(labels)[asked])

    grid = np.arange(-5, 5, 0.02)
    best = float(grid[np.argmin([loss(bias) for bias in grid])])
    assert summaries["fitted"]["dustbin_correction"] == pytest.approx(best, abs=0.021)
    assert losses["fitted"] == pytest.approx(loss(summaries["fitted"]["dustbin_correction"]), abs=1e-5)
    assert losses["none"] == pytest.approx(loss(0.0), abs=1e-5)


# ------------------------------------------------------------------------------------------------ judge


def judged(top_n: int = 1, seed: int = 0, rows: int = 60) -> tuple[Judge, Tensor, Tensor, Tensor]:
    """A judge, the generalist's logits (N, C), labels (N,), and a specialist's logits (N, 3)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    judge = Judge(Specialty(S, "0", 0.3, top_n=top_n), logits, labels)
    return judge, logits, labels, torch.randn(rows, 3, generator=generator)


@pytest.mark.parametrize("top_n", [1, 2, CLASSES])
def test_the_loss_is_that_of_the_rows_on_which_it_is_asked(top_n: int) -> None:
    judge, logits, labels, own = judged(top_n)
    asked, inside = asked_for(logits, top_n), torch.from_numpy(np.isin(labels, S))
    assert torch.equal(judge.rows, (asked | inside).nonzero()[:, 0]) and int(asked.sum()) > 5
    assert bool((inside & ~asked).any()) == (top_n < CLASSES)
    found = judge(own[judge.rows], corrected=True)
    assert found["validation_loss"] == pytest.approx(
        cross_entropy(own[asked], outputs_of(labels)[asked]), abs=1e-5
    )
    right = own[inside, :2].argmax(1) == outputs_of(labels)[inside]
    assert found["validation_accuracy"] == pytest.approx(float(right.float().mean()))
    # What it says on rows of S on which it is not asked counts for the accuracy alone.
    other = own.clone()
    other[~asked] *= -9.0
    assert judge(other[judge.rows], corrected=True)["validation_loss"] == found["validation_loss"]


def test_before_the_correction_the_level_of_the_dustbin_does_not_count() -> None:
    judge, _, labels, own = judged()
    found = judge(own[judge.rows])
    for bias in (-3.0, 2.0):
        moved = own + torch.tensor([0.0, 0.0, bias])
        assert judge(moved[judge.rows]) == pytest.approx(found, abs=1e-5)
        assert judge.correction(moved[judge.rows]) == pytest.approx(
            judge.correction(own[judge.rows]) - bias, abs=1e-5
        )
        assert judge(moved[judge.rows], corrected=True)["validation_loss"] > found["validation_loss"]
    given = own[judge.rows]
    judge(given)
    assert torch.equal(given, own[judge.rows])


def test_where_nobody_asks_all_rows_are_judged() -> None:
    _, logits, labels, own = judged()
    logits[:, S] -= 100.0
    judge = Judge(Specialty(S, "0", 0.3), logits, labels)
    assert torch.equal(judge.rows, torch.arange(60)) and bool(judge.asked.all())
    found = judge(own, corrected=True)
    assert found["validation_loss"] == pytest.approx(cross_entropy(own, outputs_of(labels)), abs=1e-5)


def test_without_validation_rows_of_its_classes_there_is_no_accuracy() -> None:
    _, logits, _, own = judged()
    judge = Judge(Specialty(S, "0", 0.3), logits, torch.zeros(60, dtype=torch.long))
    assert judge.before is None and set(judge(own[judge.rows])) == {"validation_loss"}
    assert judge.correction(own[judge.rows]) == pytest.approx(10, abs=1e-6)  # all dustbin: at its limit


# ------------------------------------------------------------------------------------------ fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [1, 3]},
        {"generalist": "0" * 16},
        {"natural_share": 0.123},
        {"output": "row"},
        {"output": "full"},
        {"train_outside": False},
        {"special_fraction": 0.6},
        {"correction": "none"},
        {"top_n": 2},
    ],
)
def test_what_sets_a_specialist_apart_changes_its_fingerprint(held: Held, changes: dict[str, Any]) -> None:
    one = task(held)
    assert one.specialist is not None
    other = replace(one, specialist={**one.specialist, **changes})
    assert other.fingerprint != one.fingerprint != replace(one, specialist=None).fingerprint
    assert other.settings["specialist"] == {**one.specialist, **changes}


def test_targets_change_the_fingerprint_of_who_reads_them() -> None:
    kinds = [plain_task("distilled", targets=targets) for targets in ("ensemble", "specialists", "both")]
    assert len({one.fingerprint for one in kinds}) == 3
    assert ["targets" in one.settings for one in kinds] == [False, True, True]


def test_members_without_specialists_keep_their_folders() -> None:
    """Fingerprints that such members had before there were specialists."""
    teacher = MemberTask("a", "teacher", 7, {"name": "mlp"}, {"epochs": 4}, {"data": "0123"})
    inputs = {"data": "0123", "soft_targets": "4567"}
    student = replace(teacher, inputs=inputs, alpha=0.5, objective={"name": "kl"}, temperature=2.0)
    assert not {"specialist", "targets"} & (set(teacher.settings) | set(student.settings))
    assert teacher.fingerprint == "5e3f10272687d683" and student.fingerprint == "e3aa8b45bde0f2b9"
