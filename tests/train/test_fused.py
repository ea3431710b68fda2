"""Students trained together against the same students trained one by one, and when they may be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toy import CLASSES, FEATURES, INFO, Members, arrays, data, settings, streamed, task

from ensemble_kd.artifacts import read_json
from ensemble_kd.config import BagConfig, BiLSTMConfig, MLPConfig, ModelConfig, ResNetConfig
from ensemble_kd.data.records import Arrays
from ensemble_kd.models.build import build
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import OBJECTIVES, STRICT, Batch, register
from ensemble_kd.train import shared_batches, stack_size, stackable
from ensemble_kd.train.finishing import FAILED, PREDICTIONS
from ensemble_kd.train.fused import fused_epochs
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.member import train_member
from ensemble_kd.train.stack import Stack, deterministic
from ensemble_kd.train.stack_size import choose_fuse, measure
from ensemble_kd.train.stackable import fusable, fuse_key
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
PLAIN = {"name": "mlp", "hidden": [16]}
Entries = list[list[dict[str, float] | None]]


def student(
    alpha: float = 0.5, seed: int = 7, training: dict[str, Any] | None = None, **changes: Any
) -> MemberTask:
    """A task of a small network without dropout; alpha = 0 for a baseline on hard labels."""
    fields = {"model": PLAIN, "seed": seed, "training": settings(**training or {}).model_dump(mode="json")}
    if alpha > 0:
        fields["alpha"] = alpha
    return task("distilled" if alpha > 0 else "hard", **{**fields, **changes})


def together(
    tasks: list[MemberTask], held: TrainingData, folder: Path, **options: Any
) -> tuple[Entries, list[bool]]:
    epochs = fused_epochs(tasks, held, folder, **options)
    entries: Entries = []
    while True:
        try:
            entries.append(next(epochs))
        except StopIteration as end:
            return entries, end.value


def check(tasks: list[MemberTask], held: TrainingData, folder: Path) -> None:
    """Trained together they leave what they leave one by one."""
    assert len({fuse_key(one) for one in tasks}) == 1
    entries, good = together(tasks, held, folder / "together")
    assert good == [True] * len(tasks)
    for i, one in enumerate(tasks):
        assert train_member(one, held, folder / "alone")
        wanted, found = (finished(one, folder / name) for name in ("alone", "together"))
        assert wanted is not None and found is not None
        assert found.config == wanted.config and found.inputs == wanted.inputs
        assert found.files.keys() == wanted.files.keys() and found.summary.keys() == wanted.summary.keys()
        for name in (WEIGHTS, PREDICTIONS):
            ours, theirs = (load_file(one.folder(folder / way) / name) for way in ("together", "alone"))
            assert ours.keys() == theirs.keys()
            for key in theirs:
                torch.testing.assert_close(ours[key], theirs[key], rtol=2e-4, atol=2e-5, msg=f"{i}: {key}")
        for key in ("role", "seed", "epochs", "best_epoch", "parameters", "bytes"):
            assert found.summary[key] == wanted.summary[key]
        told = [row[i] for row in entries if row[i] is not None]
        assert found.summary["history"] == told and len(told) == len(wanted.summary["history"])
        for ours, theirs in zip(found.summary["history"], wanted.summary["history"], strict=True):
            assert ours.keys() == theirs.keys()
            for key in ("epoch", "train_loss", "validation_loss", "validation_accuracy", "learning_rate"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


# ------------------------------------------------------------------------------------ the same as alone


GRID: list[dict[str, Any]] = [
    {"temperature": 1.0, "alpha": 0.3},
    {"temperature": 4.0, "alpha": 1.0},
    {"temperature": 4.0, "alpha": 0.7, "training": {"learning_rate": 0.03, "weight_decay": 0.2}},
    {"temperature": 0.7, "alpha": 0.5, "training": {"weight_decay": 0.05, "label_smoothing": 0.1}},
    {"alpha": 0.0, "training": {"label_smoothing": 0.3}},
]


def grid(**training: Any) -> list[MemberTask]:
    return [
        student(**{**changes, "training": {**changes.get("training", {}), **training}}) for changes in GRID
    ]


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 5},
        {"optimizer": "sgd", "schedule": "constant"},
        {"gradient_clip": 0.3, "batch_size": 20},
        {"optimizer": "sgd", "gradient_clip": 0.5, "warmup_fraction": 0.0},
        {"class_weights": [3.0, 1.0, 0.2], "focal_gamma": 1.5},
    ],
)
def test_numbers_that_differ(tmp_path: Path, training: dict[str, Any]) -> None:
    check(grid(**training), data(), tmp_path)


def test_seeds_that_differ(tmp_path: Path) -> None:
    """Each with its own initialisation, order and, where only half the rows are drawn, rows."""
    half = {"labelled": False, "bootstrap": False, "fraction": 0.5}
    tasks = [student(seed=seed, temperature=t, rows=half) for seed in (7, 8, 9) for t in (1.0, 3.0)]
    check(tasks[:5], data(), tmp_path)


def test_dropout_draws_what_each_would_draw_alone(tmp_path: Path) -> None:
    """One that stops early leaves the stack, and the others go on with theirs."""
    model = {"name": "mlp", "hidden": [16, 8], "dropout": 0.5, "input_dropout": 0.2}
    training = {"epochs": 8, "early_stopping": 1}
    tasks = [
        student(seed=seed, temperature=t, model=model, training=training)
        for seed, t in ((7, 1.0), (8, 1.0), (7, 3.0), (9, 1.0))
    ]
    check(tasks, data(), tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_without_a_label(tmp_path: Path, stream: bool) -> None:
    """The baseline sees the labelled rows alone, so it has batches of its own."""
    held = data(unlabelled=40)
    tasks = [student(alpha, seed) for alpha, seed in ((1.0, 7), (0.4, 7), (0.0, 7), (0.0, 8))]
    check(tasks, streamed(held) if stream else held, tmp_path)


def test_baselines_alone(tmp_path: Path) -> None:
    check([student(0.0, seed) for seed in (7, 8)], data(), tmp_path)


def test_other_objectives_means_and_weights(tmp_path: Path) -> None:
    tasks = [
        student(objective={"name": "mse"}),
        student(objective={"name": "mse"}, alpha=0.02),
        student(objective={"name": "mse"}, alpha=0.01, weights=[1.0, 3.0]),
        student(temperature=3.0, mean="geometric"),
        student(temperature=3.0, weights=[1.0, 0.0]),
        student(0.0),
    ]
    check(tasks, data(), tmp_path)


def test_high_temperatures_are_float64_for_all(tmp_path: Path) -> None:
    check([student(temperature=t, alpha=0.9) for t in (2.0, 32.0, 500.0)], data(), tmp_path)


def test_specialists_targets_beside_the_ensembles(tmp_path: Path) -> None:
    held = data()
    held.combined = Members(arrays(96, 3).labels)
    check([student(targets=t) for t in ("ensemble", "specialists", "both")] + [student(0.0)], held, tmp_path)


@pytest.mark.parametrize("by", ["loss", "calibrated_loss"])
def test_early_stopping_is_each_ones_own(tmp_path: Path, by: str) -> None:
    rates = (0.003, 0.1, 0.2, 0.3)
    training = {"epochs": 9, "early_stopping": 2, "early_stopping_by": by, "schedule": "constant"}
    tasks = [student(0.0, 7, {**training, "learning_rate": rate}) for rate in rates]
    check(tasks, data(), tmp_path)
    epochs = {manifest.summary["epochs"] for one in tasks if (manifest := finished(one, tmp_path / "alone"))}
    assert len(epochs) > 1


class Words:
    """Two members' opinions of texts and of views of images."""

    def __init__(self, rows: int, views: int = 1) -> None:
        self.num_views = views
        self.logits = torch.randn(rows, views, 2, CLASSES, generator=torch.Generator().manual_seed(1))

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return self.logits[rows, views]


def texts() -> TrainingData:
    """Texts of 1 to 9 words."""
    parts = []
    for seed, rows in ((1, 30), (2, 30), (0, 96)):
        generator = np.random.default_rng(seed)
        tokens = generator.integers(1, 30, (rows, 9)).astype(np.int32)
        tokens[np.arange(9) >= generator.integers(1, 10, (rows, 1))] = 0
        parts.append(Arrays(tokens, generator.integers(0, CLASSES, rows), np.arange(rows)))
    info = {**INFO, "kind": "text", "input_shape": [9], "vocabulary_size": 30, "mean": None, "std": None}
    return TrainingData(info, parts[0], parts[1], parts[2], Words(96))


def images(views: int = 1) -> TrainingData:
    parts = []
    for seed, rows in ((1, 30), (2, 30), (0, 96)):
        generator = np.random.default_rng(seed)
        pixels = generator.integers(0, 256, (rows, 5, 5, 1), dtype=np.uint8)
        parts.append(Arrays(pixels, generator.integers(0, CLASSES, rows), np.arange(rows)))
    info = {**INFO, "kind": "image", "input_shape": [5, 5, 1], "mean": [0.5], "std": [0.3]}
    return TrainingData(info, parts[0], parts[1], parts[2], Words(96, views))


@pytest.mark.parametrize(
    "model",
    [
        {"name": "bag", "embedding": 6, "hidden": [8], "dropout": 0.3},
        {"name": "bag", "embedding": 6, "piece_weights": True},
        {"name": "text_cnn", "embedding": 6, "filters": 5, "widths": [1, 3], "dropout": 0.3},
    ],
)
def test_texts_of_several_lengths(tmp_path: Path, model: dict[str, Any]) -> None:
    """Batches are cut to their longest text; those of two seeds to that of both.

    Most of the vocabulary occurs nowhere, and is left out of training.
    """
    held = texts()
    held.info["vocabulary_size"] = 100
    check(
        [student(seed=seed, temperature=t, model=model) for seed, t in ((7, 1.0), (7, 2.0), (8, 2.0))],
        held,
        tmp_path,
    )


@pytest.mark.parametrize("views", [0, 3])
def test_views_of_images(tmp_path: Path, views: int) -> None:
    """Fixed ones, each with soft targets of its own, and fresh ones."""
    fields: dict[str, Any] = {"augment": {"shift": 1}, "views": views, "training": {"epochs": 6}}
    tasks = [student(seed=seed, temperature=t, **fields) for seed, t in ((7, 1.0), (7, 2.0), (8, 2.0))]
    check(tasks, images(max(1, views)), tmp_path)


class Projected(nn.Module):
    """Has a frozen layer and a buffer of its own, drawn with the weights, and tied weights."""

    projection: Tensor

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(input_shape[-1], 8))
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(x @ self.projection))
        return self.head(torch.tanh(self.second(torch.relu(self.first(x)))))


def test_what_is_not_trained_stays_each_ones_own(tmp_path: Path) -> None:
    model = {"name": "custom", "callable": f"{__name__}:Projected"}
    training = {"weight_decay": 0.1, "early_stopping": 1, "epochs": 6, "learning_rate": 0.1}
    check([student(0.5, seed, training, model=model) for seed in (7, 8, 9)], data(), tmp_path)


@pytest.fixture
def unstacked() -> Any:
    """An objective that does not say that it can be stacked; it reads the batch, too."""

    @register("unstacked")
    @dataclass(frozen=True, config=STRICT)
    class Unstacked:
        needs: ClassVar[frozenset[str]] = frozenset({"logits"})
        margin: float = 0.0

        def __call__(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
            assert student.logits.dim() == 2 and batch.inputs.dim() == 2 and batch.labels.dim() == 1
            weight = 1 + self.margin * batch.inputs[:, 0].abs() * (batch.labels >= 0)
            return weight * (student.logits - teacher.logits).abs().sum(1)

    yield
    del OBJECTIVES["unstacked"]


@pytest.mark.usefixtures("unstacked")
@pytest.mark.parametrize("seeds", [(7, 7, 7), (7, 8, 7)])
def test_an_objective_that_does_not_stack(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    objectives = [{"name": "unstacked"}, {"name": "unstacked", "margin": 2.0}, {"name": "kl"}]
    tasks = [student(seed=s, objective=o) for s, o in zip(seeds, objectives, strict=True)]
    check(tasks, data(), tmp_path)


def test_averages_in_every_epoch_are_those_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [student(temperature=t) for t in (1.0, 2.0, 3.0)]
    together(tasks, data(), tmp_path / "kept")
    monkeypatch.setattr(shared_batches, "KEPT_BYTES", 0)
    monkeypatch.setattr(shared_batches, "AT_ONCE_BYTES", 0)
    together(tasks, data(), tmp_path / "anew")
    for one in tasks:
        first, second = (load_file(one.folder(tmp_path / name) / WEIGHTS) for name in ("kept", "anew"))
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------- disturbances


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    training = {"optimizer": "sgd", "warmup_fraction": 0.0, "learning_rate": 0.05}
    tasks = [
        student(0.5, 7, training),
        student(0.6, 7, {**training, "learning_rate": 1e30}),
        student(0.0, 7, training),
    ]
    entries, good = together(tasks, data(), tmp_path)
    assert good == [True, False, True] and len(entries) == 4
    assert all(row[1] is None and row[0] is not None and row[2] is not None for row in entries)
    lost = tasks[1].folder(tmp_path)
    assert (
        "loss became" in read_json(lost / FAILED)["reason"]
        and read_json(lost / FAILED)["name"] == tasks[1].name
    )
    assert {path.name for path in lost.iterdir()} == {FAILED} and finished(tasks[1], tmp_path) is None
    check([tasks[0], tasks[2]], data(), tmp_path / "others")


def test_all_that_diverge(tmp_path: Path) -> None:
    training = {"optimizer": "sgd", "warmup_fraction": 0.0, "learning_rate": 1e30}
    entries, good = together([student(0.5, 7, training), student(0.0, 7, training)], data(), tmp_path)
    assert entries == [[None, None]] and good == [False, False]


def same_files(tasks: list[MemberTask], first: Path, second: Path) -> bool:
    return all(
        (one.folder(first) / name).read_bytes() == (one.folder(second) / name).read_bytes()
        for one in tasks
        for name in (WEIGHTS, PREDICTIONS)
    )


@pytest.mark.parametrize(
    "training",
    [{"weight_decay": 0.1}, {"optimizer": "sgd"}, {"early_stopping": 2, "schedule": "constant", "epochs": 8}],
)
@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, training: dict[str, Any], after: int) -> None:
    """Also where by then one has stopped early, and one has failed."""
    rates = (0.003, 0.3, 0.01, 1.0, 1e30)
    tasks = [
        student(a, s, {**training, "learning_rate": r})
        for a, s, r in zip((0.5, 0.0, 1.0, 0.3, 0.5), (7, 7, 8, 9, 8), rates, strict=True)
    ]
    entries, good = together(tasks, data(), tmp_path / "whole")
    file = tmp_path / "state" / "checkpoint.safetensors"
    epochs = fused_epochs(tasks, data(), tmp_path / "parts", checkpoint=file)
    before = [next(epochs) for _ in range(after)]
    epochs.close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    for one in tasks:
        (one.folder(tmp_path / "parts") / FAILED).unlink(missing_ok=True)
    stale = (
        tasks[0].folder(tmp_path / "parts") / ".weights.safetensors.123.tmp",
        file.parent / f".{file.name}.4.tmp",
    )
    for path in stale:
        path.write_bytes(b"half")
    torch.rand(100)  # another process has another state of the global generator
    rest, found = together(tasks, data(), tmp_path / "parts", checkpoint=file)
    assert found == good == [True, True, True, True, False]
    assert same_files(tasks[:4], tmp_path / "whole", tmp_path / "parts") and not file.exists()
    assert not any(path.exists() for path in stale)
    assert (tasks[4].folder(tmp_path / "parts") / FAILED).exists()
    losses = [
        [[e and e["validation_loss"] for e in row] for row in rows] for rows in (entries, before + rest)
    ]
    assert losses[0] == losses[1]


def test_resuming_what_is_trained_finishes_the_folders(tmp_path: Path) -> None:
    tasks, file = [student(), student(0.0)], tmp_path / "checkpoint.safetensors"
    epochs = fused_epochs(tasks, data(), tmp_path / "parts", checkpoint=file)
    for _ in range(4):
        next(epochs)
    epochs.close()
    assert not any(finished(one, tmp_path / "parts") for one in tasks)
    assert together(tasks, data(), tmp_path / "parts", checkpoint=file) == ([], [True, True])
    together(tasks, data(), tmp_path / "whole")
    assert same_files(tasks, tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    "how", ["truncated", "empty", "no progress", "unknown progress", "weights", "others"]
)
def test_a_damaged_checkpoint_is_named_and_all_start_again(tmp_path: Path, how: str) -> None:
    tasks, file = [student(), student(0.0)], tmp_path / "checkpoint.safetensors"
    together(tasks, data(), tmp_path / "whole")
    epochs = fused_epochs(tasks, data(), tmp_path / "parts", checkpoint=file)
    next(epochs)
    epochs.close()
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no progress":
        save_file(load_file(file), file)
    elif how == "unknown progress":
        save_file(load_file(file), file, metadata={"progress": json.dumps({"members": [{"colour": "blue"}]})})
    elif how == "weights":
        progress = {
            "numbers": [0, 1],
            "members": [{"fingerprint": one.fingerprint, "progress": {}, "reason": None} for one in tasks],
        }
        save_file(
            load_file(file) | {"model/weights": torch.zeros(1, 3)},
            file,
            metadata={"progress": json.dumps(progress)},
        )
    else:
        others = [student(seed=8), student(0.0)]
        epochs = fused_epochs(others, data(), tmp_path / "others", checkpoint=file)
        file.unlink()
        next(epochs)
        epochs.close()
    warnings: list[str] = []
    _, good = together(tasks, data(), tmp_path / "parts", checkpoint=file, on_warning=warnings.append)
    assert good == [True, True]
    assert len(warnings) == 1 and str(file) in warnings[0] and warnings[0].endswith("start again")
    assert same_files(tasks, tmp_path / "whole", tmp_path / "parts")


# ------------------------------------------------------------------------------------- what may be fused


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"temperature": 9.0},
        {"alpha": 1.0},
        {"pseudo": 0.3},
        {"pseudo_labels": True},
        {"objective": {"name": "mse"}},
        {"training": {"learning_rate": 0.5, "weight_decay": 0.5, "label_smoothing": 0.5}},
    ],
)
def test_numbers_do_not_keep_apart(changes: dict[str, Any]) -> None:
    assert fuse_key(student(**changes)) == fuse_key(student()) is not None
    assert fuse_key(student(0.0)) == fuse_key(student())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "mlp", "hidden": [17]}},
        {"training": {"batch_size": 8}},
        {"training": {"epochs": 5}},
        {"training": {"schedule": "constant"}},
        {"training": {"optimizer": "sgd"}},
        {"training": {"gradient_clip": 1.0}},
        {"training": {"early_stopping": 3}},
        {"training": {"class_weights": [2.0, 1.0, 1.0]}},
        {"training": {"focal_gamma": 2.0}},
        {"training": {"precision": "bfloat16"}},
        {"inputs": {"data": "4567"}},
        {"rows": {"labelled": False, "bootstrap": True, "fraction": 1.0}},
        {"examples_per_epoch": 48},
        {"augment": {"shift": 1}},
        {"views": 2},
    ],
)
def test_anything_else_does(changes: dict[str, Any]) -> None:
    assert fuse_key(student(**changes)) not in (None, fuse_key(student()))


@pytest.mark.parametrize(
    "changes",
    [
        {"specialist": {"generalist": "0123"}},
        {"quantization": {"bits": 8}},
        {"training": {"gradient_accumulation": 2}},
        {"training": {"max_norm": 1.0}},
    ],
)
def test_some_are_trained_by_themselves(changes: dict[str, Any]) -> None:
    assert fuse_key(student(**changes)) is None


class Unused(nn.Module):
    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(input_shape[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Mean(nn.Module):
    """Counts padding, so a text's logits depend on its neighbours' lengths."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.float().mean(1, keepdim=True))


class Drawn(nn.Module):
    """Draws by itself, of which the stack knows nothing."""

    def __init__(self, num_classes: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(input_shape[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x))


class Odd(Unused):
    """Looks at its values, which vmap cannot."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x) + self.unused.weight.sum() + self.unused.bias.sum()
        return y if y.sum() > 0 else -y


def test_which_networks_can_be_stacked() -> None:
    def can(model: ModelConfig, held: TrainingData) -> bool:
        return deterministic(build(model, held.info), stackable.random_inputs(held.info))

    state = torch.get_rng_state()
    assert can(MLPConfig(hidden=[8, 8]), data()) and can(MLPConfig(hidden=[]), images())
    assert can(BagConfig(embedding=4, hidden=[8]), texts())
    torch.set_rng_state(state)
    assert can(MLPConfig(hidden=[8], dropout=0.5), data())
    assert can(MLPConfig(hidden=[8, 8], input_dropout=0.5, dropout=0.1), data())
    assert not can(ResNetConfig(width=4, blocks=1), images())
    assert not can(BiLSTMConfig(embedding=4, hidden=4), texts())
    assert fusable(student(), data()) and fusable(student(model={**PLAIN, "dropout": 0.2}), data())
    for name, held in (("Unused", data()), ("Odd", data()), ("Mean", texts()), ("Drawn", data())):
        assert not fusable(student(model={"name": "custom", "callable": f"{__name__}:{name}"}), held)


def test_probing_leaves_network_and_generator_as_they_were() -> None:
    network = build(MLPConfig(hidden=[8]), INFO)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    assert deterministic(network, torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    for tasks in (
        [student(), student(training={"batch_size": 8})],
        [student(model={"name": "custom", "callable": f"{__name__}:Drawn"})] * 2,
    ):
        with pytest.raises(ValueError, match="cannot be trained together"):
            next(fused_epochs(tasks, data(), tmp_path))


def test_rows_of_a_stack_are_its_networks() -> None:
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(build(MLPConfig(hidden=[4]), INFO))
    stack, inputs = Stack(networks), torch.randn(5, FEATURES)
    assert (
        stack.weights.shape == (3, networks[0].num_parameters)
        and stack.num_decayed == 4 * FEATURES + 4 * CLASSES
    )
    stack.keep([2, 0])
    alone = torch.stack([network.eval()(inputs).logits for network in networks])
    torch.testing.assert_close(stack.predict(inputs, CPU), alone[[2, 0]].detach())
    stack.copy_to(networks[1], stack.weights[0], 2)
    assert torch.equal(networks[1](inputs).logits, networks[2](inputs).logits)


# ------------------------------------------------------------------------------------------- how many


def scripted(monkeypatch: pytest.MonkeyPatch, per_student: dict[int, float]) -> list[int]:
    """`measure` from a table of milliseconds per student; the numbers that were asked for."""
    asked: list[int] = []

    def measured(task: MemberTask, data: TrainingData, n: int, steps: int, **_: Any) -> tuple[float, float]:
        asked.append(n)
        return per_student[1], n * per_student[n]

    monkeypatch.setattr(stack_size, "measure", measured)
    return asked


@pytest.mark.parametrize(
    ("per_student", "limit", "chosen", "asked"),
    [
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3, 16: 0.2}, 16, 16, [2, 4, 8, 16]),
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.39, 16: 0.2}, 16, 8, [2, 4, 8]),  # hardly better: enough
        ({1: 1.0, 2: 0.6, 4: 0.4, 8: 0.5, 16: 0.2}, 16, 4, [2, 4, 8]),
        ({1: 1.0, 2: 1.3, 4: 0.9, 8: 0.7, 11: 0.5}, 11, 11, [2, 4, 8, 11]),
        ({1: 1.0, 2: 1.3, 4: 1.4}, 16, 1, [2, 4]),
        ({1: 1.0, 2: 1.3, 4: 1.2}, 16, 1, [2, 4]),  # on the way to 1.1
        ({1: 1.0, 2: 0.96, 4: 0.97}, 16, 1, [2, 4]),  # by less than 5%
        ({1: 1.0}, 1, 1, []),
    ],
)
def test_as_many_as_pay(
    monkeypatch: pytest.MonkeyPatch, per_student: dict[int, float], limit: int, chosen: int, asked: list[int]
) -> None:
    found = scripted(monkeypatch, per_student)
    assert choose_fuse(student(), data(), limit) == chosen and found == asked


def test_as_many_as_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, {1: 1.0, 2: 0.6, 4: 0.4, 5: 0.3})
    one = 4 * build(MLPConfig(hidden=[16]), INFO).num_parameters
    monkeypatch.setattr(stack_size, "_free_memory", lambda device: 4 * stack_size.COPIES * one * 5)
    assert choose_fuse(student(), data(), 16) == 5 and found == [2, 4, 5]


def test_networks_that_cannot_be_stacked_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, {})
    assert choose_fuse(student(model={"name": "custom", "callable": f"{__name__}:Drawn"}), data(), 16) == 1
    assert choose_fuse(student(training={"max_norm": 1.0}), data(), 16) == 1 and found == []


@pytest.mark.parametrize("stream", [False, True])
def test_steps_are_measured(stream: bool) -> None:
    held = streamed(data()) if stream else data()
    for one in (student(), student(0.0)):
        alone, stacked = measure(one, held, 4, 8)  # of 6 an epoch
        assert 0 < alone < 1 and 0 < stacked < 1
    assert choose_fuse(student(), held, 4) in (1, 2, 4)
    assert stack_size._free_memory(CPU) > 2**20


def test_a_task_is_not_changed(tmp_path: Path) -> None:
    one = student()
    before = replace(one, training=dict(one.training))
    together([one, student(0.0)], data(), tmp_path)
    assert one == before
