"""Students that learn in phases: words, hidden states, classes; each from where the last ended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM

from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import TrainingConfig, TransformerConfig
from ensemble_kd.data.records import Arrays
from ensemble_kd.models.build import build
from ensemble_kd.models.transplant import resolve
from ensemble_kd.train.batches import length_order
from ensemble_kd.train.finishing import CHECKPOINT, PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED, WEIGHTS, load_network
from ensemble_kd.train.loop import TOKENS_AT_ONCE, Replicas, predict
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
PIECES, LENGTH, CLASSES = 30, 12, 3
INFO: dict[str, Any] = {
    "kind": "text",
    "input_shape": [LENGTH],
    "num_classes": CLASSES,
    "class_names": ["a", "b", "c"],
    "vocabulary_size": PIECES + 1,
    "preprocess": {"special": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}},
    "counts": {"train": 48, "validation": 20, "test": 20, "transfer": 48, "labelled": 48},
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": PIECES,
    "max_position_embeddings": 16,
}
STUDENT = {"name": "transformer", "architecture": BERT}
CORPUS = "c0ffee"


def texts(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, L) shifted tokens of many lengths; all words of a text are those of its class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    found = np.zeros((rows, LENGTH), np.int32)
    for text, label, length in zip(found, labels, generator.integers(4, LENGTH + 1, rows), strict=True):
        text[:length] = 7 + 8 * label + generator.integers(0, 8, length)
        text[0], text[length - 1] = 3, 4
    return found, labels.astype(np.int64)


def arrays(rows: int, seed: int) -> Arrays:
    inputs, labels = texts(rows, seed)
    return Arrays(inputs, labels, np.arange(rows))


def data(run: Path) -> TrainingData:
    corpus = {CORPUS: texts(64, 9)[0]}
    return TrainingData(INFO, arrays(20, 1), arrays(20, 2), arrays(48, 0), run=run, corpora=corpus)


def training(epochs: int = 2, **changes: Any) -> dict[str, Any]:
    fields = {"epochs": epochs, "batch_size": 16, "learning_rate": 0.01, "precision": "float32", **changes}
    return TrainingConfig.model_validate(fields).model_dump(mode="json")


def task(role: str = "hard", **changes: Any) -> MemberTask:
    fields: dict[str, Any] = {
        "name": f"{role}-seed-0",
        "role": role,
        "seed": 7,
        "model": STUDENT,
        "training": training(),
        "inputs": {"data": "0123"},
        "examples_per_epoch": 48,
    }
    return MemberTask(**{**fields, **changes})


def words(initial: dict[str, Any] | None = None, **changes: Any) -> MemberTask:
    """A phase that guesses masked words of the corpus."""
    fields = {
        "phase": "words",
        "corpus": {"fingerprint": CORPUS},
        "inputs": {"data": "0123", "corpus": CORPUS},
        "mask_probability": 0.3,
        "initial": initial,
    }
    return task("phase", **{**fields, **changes})


def states(online: dict[str, Any], initial: dict[str, Any], **changes: Any) -> MemberTask:
    """A phase that learns hidden states and attention of a teacher, on the transfer set."""
    fields: dict[str, Any] = {
        "phase": "states",
        "alpha": 1.0,
        "online": online,
        "terms": [{"name": "hidden_mse"}, {"name": "attention_mse"}],
        "initial": initial,
    }
    return task("phase", **{**fields, **changes})


def place(one: MemberTask, stage: str = "student") -> dict[str, Any]:
    return {"stage": stage, "member": one.fingerprint}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained masked language model of 4 blocks."""
    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(3)
    fields = {k: v for k, v in BERT.items() if k != "model_type"}
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model("bert", **{**fields, "num_hidden_layers": 4})
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one teacher, wider than the student."""
    folder = tmp_path_factory.mktemp("run")
    wide = {**BERT, "hidden_size": 24, "num_hidden_layers": 4}
    teacher = teacher_task({"name": "transformer", "architecture": wide})
    assert train_member(teacher, data(folder), folder / "teachers" / "members")
    return folder


def teacher_task(model: dict[str, Any]) -> MemberTask:
    return task("teacher", model=model, training=training(1))


def online_of(run: Path) -> dict[str, Any]:
    (member,) = (run / "teachers" / "members").iterdir()
    return {"teachers": [{"stage": "teachers", "member": member.name}], "shares": [1.0], "logits": False}


def members_of(run: Path) -> Path:
    return run / "student" / "members"


def encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in weights.items() if ".bert." in name and "pooler" not in name}


# ------------------------------------------------------------------------------------------------- chain


def test_a_chain_of_phases(tmp_path: Path, run: Path, source: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    held, members = data(run), members_of(run)
    settings, initial = resolve(TransformerConfig(source=str(source), layers="every_second"))
    assert initial is not None and settings["architecture"]["num_hidden_layers"] == 2
    first = words(initial, model=settings, training=training(4))
    second = states(online_of(run), place(first), model=settings)
    third = task(model=settings, initial=place(second), training=training(8))
    started: list[dict[str, Tensor]] = []
    for one in (first, second, third):
        started.append(initial_network(one, held).state_dict())
        assert train_member(one, held, members)
    # From chosen blocks of the source, and then always from where the phase before ended.
    given = load_file(source / "model.safetensors")
    begun_with = encoder(started[0])
    for name, tensor in begun_with.items():
        old = name.removeprefix("body.model.").replace("layer.1.", "layer.2.")
        assert torch.equal(tensor, given[old]), name
    for before, begun in zip((first, second), started[1:], strict=True):
        ended = load_file(before.folder(members) / WEIGHTS)
        found = encoder(begun)
        assert found and all(torch.equal(tensor, ended[name]) for name, tensor in found.items())
    # Each has moved them.
    for one, begun in zip((first, second, third), started, strict=True):
        ended = load_file(one.folder(members) / WEIGHTS)
        assert all(
            (ended[name] - t).abs().max() > 1e-4
            for name, t in encoder(begun).items()
            if "query.weight" in name
        )
    receipts = [finished(one, members) for one in (first, second, third)]
    losses = [[e["train_loss"] for e in r.summary["history"]] for r in receipts if r is not None]
    assert losses[0][-1] < losses[0][0] and losses[1][-1] < losses[1][0] and losses[2][-1] < losses[2][0]
    assert receipts[2] is not None and receipts[2].summary["validation_accuracy"] > 0.6
    # A phase leaves weights, and what it learned along; it is not judged.
    files = [{path.name for path in one.folder(members).iterdir()} for one in (first, second, third)]
    assert files[0] == {WEIGHTS, "manifest.json"}
    assert files[1] == {WEIGHTS, LEARNED, "manifest.json"}
    assert files[2] == {WEIGHTS, PREDICTIONS, "manifest.json"}
    assert "validation_loss" not in (receipts[0].summary["history"][0] if receipts[0] else {})
    words_left = load_file(first.folder(members) / WEIGHTS)
    assert any(".cls.predictions." in name for name in words_left)
    assert not any(".cls." in name for name in load_file(third.folder(members) / WEIGHTS))
    guessing = load_network(receipts[0].config if receipts[0] else {}, INFO, first.folder(members))
    assert guessing.body.masked_lm and guessing(torch.full((1, 5), 9)).logits.shape == (1, 5, PIECES)


def test_a_finished_phase_is_not_redone(tmp_path: Path) -> None:
    """Its manifest says so, and a later phase reads what it left."""
    one = words(training=training(1))
    held, members = data(tmp_path), members_of(tmp_path)
    assert finished(one, members) is None
    train_member(one, held, members)
    receipt = finished(one, members)
    assert receipt is not None and receipt.summary["epochs"] == 1
    assert not (one.folder(members) / CHECKPOINT).exists()
    before = (one.folder(members) / WEIGHTS).stat().st_mtime_ns
    after = task(initial=place(one), training=training(1))
    train_member(after, held, members)
    assert (one.folder(members) / WEIGHTS).stat().st_mtime_ns == before


def test_an_interrupted_phase_ends_in_the_same_bits(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run / "teachers", tmp_path / "teachers")
    held = data(tmp_path)
    one = words(
        online=online_of(tmp_path),
        terms=[{"name": "hidden_cosine", "weight": {"start": 2.0, "end": 0.5}}],
        alpha=0.0,
        training=training(2, gradient_accumulation=2),
    )

    def interrupt(entry: dict[str, float]) -> None:
        raise KeyboardInterrupt

    train_member(one, held, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_member(one, held, tmp_path / "broken", on_epoch=interrupt)
    train_member(one, held, tmp_path / "broken")
    for name in (WEIGHTS, LEARNED):
        whole, broken = (one.folder(tmp_path / part) / name for part in ("whole", "broken"))
        assert whole.read_bytes() == broken.read_bytes(), name


def test_what_an_earlier_phase_is_given_changes_all_later_ones(run: Path) -> None:
    def chain(**changes: Any) -> list[MemberTask]:
        first = words(**changes)
        second = states(online_of(run), place(first))
        return [first, second, task(initial=place(second))]

    usual = [one.fingerprint for one in chain()]
    for changes in (
        {"mask_probability": 0.2},
        {"training": training(3)},
        {"seed": 8},
        {"corpus": {"fingerprint": "decaf"}},
        {"initial": {"source": "x", "digest": "1"}},
        {"terms": [{"name": "hidden_cosine"}]},
    ):
        assert all(a != b.fingerprint for a, b in zip(usual, chain(**changes), strict=True)), changes
    assert [one.fingerprint for one in chain(name="x")] == usual
    assert len(set(usual)) == 3


def test_guessing_words_teaches_what_stands_beside_what(tmp_path: Path) -> None:
    """Better than the words' own frequencies: neighbours tell the class of a word."""
    one = words(training=training(12, learning_rate=0.02), mask_probability=0.2)
    held, members = data(tmp_path), members_of(tmp_path)
    assert train_member(one, held, members)
    receipt = read_manifest(one.folder(members))
    assert receipt is not None
    last = receipt.summary["history"][-1]["train_loss"]
    assert last < 0.93 * np.log(24)  # 24 words, 8 in each class: log 8 would be all there is


# ---------------------------------------------------------------------------------------------- no epochs


def test_no_epochs_leave_the_initial_weights(tmp_path: Path, source: Path) -> None:
    settings, initial = resolve(TransformerConfig(source=str(source)))
    one = task(model=settings, initial=initial, training=training(0))
    held, members = data(tmp_path), members_of(tmp_path)
    assert train_member(one, held, members)
    begun, left = initial_network(one, held).state_dict(), load_file(one.folder(members) / WEIGHTS)
    assert begun.keys() == left.keys() and all(torch.equal(t, left[name]) for name, t in begun.items())
    receipt = finished(one, members)
    assert receipt is not None and receipt.summary["epochs"] == 0 and receipt.summary["history"] == []
    network = load_network(receipt.config, INFO, one.folder(members))
    logits = load_file(one.folder(members) / PREDICTIONS)["test"]
    assert torch.equal(logits, predict(network, torch.from_numpy(held.test.inputs), CPU))
    phase = words(initial, model=settings, training=training(0))
    assert train_member(phase, held, members)
    given, left = load_file(source / "model.safetensors"), load_file(phase.folder(members) / WEIGHTS)
    for name, tensor in given.items():
        assert torch.equal(left[f"body.model.{name}"], tensor), name


# ------------------------------------------------------------------------------------------------- length


def test_every_row_comes_once_and_padding_shrinks() -> None:
    inputs = torch.from_numpy(texts(64, 4)[0])
    order = length_order(inputs, 8, seed=5)
    assert sorted(order.tolist()) == list(range(64))
    lengths = (inputs != 0).sum(1)
    batches = lengths[order].view(8, 8)
    # Each batch covers a range of lengths that none of another reaches into.
    spans = sorted((int(batch.min()), int(batch.max())) for batch in batches)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
    padded = int((batches.amax(1) * 8).sum() - lengths.sum())
    unsorted = int((lengths.view(8, 8).amax(1) * 8).sum() - lengths.sum())
    assert padded < unsorted / 3
    # Batches in an order that the seed decides, not shortest first.
    means = batches.float().mean(1)
    assert not torch.equal(means, means.sort().values)
    assert torch.equal(order, length_order(inputs, 8, seed=5))
    assert not torch.equal(order, length_order(inputs, 8, seed=6))


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_epoch_of_batches_by_length(replicas: int) -> None:
    held, one = data(Path()), task()
    assert held.transfer is not None
    inputs = held.transfer.inputs
    seen, sizes = [], []
    for rank in range(replicas):
        fed = make_batches(
            one, held, TrainingConfig.model_validate(one.training), CPU, Replicas(rank, replicas)
        )
        assert fed.by_length
        for batch in fed.epoch(0):
            assert (batch.inputs != 0).any(0).all()  # cut to the longest of the batch
            sizes.append(batch.inputs.numel())
            for text, label in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
                seen.append((tuple(n for n in text if n), label))
    expected = [
        (tuple(int(n) for n in text if n), int(label))
        for text, label in zip(inputs, held.transfer.labels, strict=True)
    ]
    assert sorted(seen) == sorted(expected)
    plain = replace(fed, by_length=False, rank=0, replicas=1)
    assert sum(sizes) < sum(batch.inputs.numel() for batch in plain.epoch(0))
    orders = [[batch.inputs.tolist() for batch in fed.epoch(epoch)] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_predictions_of_texts_of_all_lengths(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 40)
    torch.manual_seed(0)
    network = build(TransformerConfig(architecture=BERT), INFO)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs = torch.from_numpy(texts(33, 6)[0])
    inputs[5] = 0
    inputs[5, 0] = 3  # the shortest there is
    passes: list[tuple[int, ...]] = []
    handle = network.body.register_forward_pre_hook(
        lambda module, given: passes.append(tuple(given[0].shape))
    )
    found = predict(network, inputs, CPU, batch_size)
    handle.remove()
    alone = [network(text[text != 0][None]).logits.detach() for text in inputs]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert sum(rows for rows, _ in passes) == 33 and all(rows <= batch_size for rows, _ in passes)
    assert all(rows * width <= 40 for rows, width in passes)
    widths = [width for _, width in passes]
    assert widths == sorted(widths) and widths[-1] == LENGTH and (batch_size > 1 or widths[0] == 1)
    assert predict(network, inputs[:0], CPU).shape == (0, 0)
