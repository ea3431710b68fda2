"""The training loop: its schedule, its arithmetic, and the same bits after any interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import arrays, batches, network, settings

from ensemble_kd.models.build import Network
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train import loop
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import (
    Interrupted,
    NotFiniteError,
    Progress,
    learning_rate,
    make_optimizer,
    predict,
    train,
    train_epochs,
)

LOSS = DistillationLoss()


def state(model: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def judge(model: Network) -> dict[str, float]:
    held = arrays(30, 1)
    logits = predict(model, torch.from_numpy(held.inputs), torch.device("cpu"))
    return {
        "validation_loss": float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(held.labels)))
    }


def scripted(losses: list[float]) -> Callable[[Network], dict[str, float]]:
    """Validation losses read from a list, whatever the network does."""
    left = iter(losses)
    return lambda model: {"validation_loss": next(left)}


# --------------------------------------------------------------------------------------- learning rate


def test_warm_up_then_half_a_cosine() -> None:
    training = settings(learning_rate=2.0, warmup_fraction=0.1, schedule="cosine")
    rates = [learning_rate(training, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 11 for step in range(10)])
    for step in (10, 33, 55, 99):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 10) / 90))
    assert rates[10] == 2.0 == max(rates) and 0 < rates[-1] < 0.001
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_after_the_warm_up() -> None:
    training = settings(learning_rate=0.5, warmup_fraction=0.2, schedule="constant")
    assert [learning_rate(training, step, 10) for step in (0, 1, 2, 9)] == pytest.approx(
        [1 / 6, 1 / 3, 0.5, 0.5]
    )
    assert learning_rate(settings(learning_rate=0.5, warmup_fraction=0), 0, 1) == 0.5


# ---------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.05, "gradient_clip": 0.5},
        {"optimizer": "adamw", "early_stopping": 3, "gradient_accumulation": 2, "max_norm": 1.0},
    ],
)
@pytest.mark.parametrize("batch", [1, 8, 20])  # of 6 an epoch: in the first, second and fourth
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, changes: dict[str, Any], batch: int) -> None:
    training = settings(epochs=6, **changes)
    whole = network()
    expected = train(whole, batches(), LOSS, training, seed=3, evaluate=judge)

    class Killed(Exception):
        pass

    steps = 0

    def fragile(*args: Any) -> Tensor:
        nonlocal steps
        steps += 1
        if steps > batch * training.gradient_accumulation:
            raise Killed
        return LOSS(*args)

    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(network(), batches(), fragile, training, seed=3, evaluate=judge, checkpoint=file)  # type: ignore[arg-type]
    assert file.exists() == (batch >= 6)
    torch.rand(100)  # another process has another state of the global generator
    resumed = network()
    found = train(resumed, batches(), LOSS, training, seed=3, evaluate=judge, checkpoint=file)
    assert same(state(whole), state(resumed))
    assert found.epoch == expected.epoch and found.best_epoch == expected.best_epoch
    curves = [[(e["train_loss"], e["validation_loss"]) for e in p.history] for p in (found, expected)]
    assert curves[0] == curves[1]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("stops", [[1], [5], [6], [7, 3], [1, 1, 1, 20]])
def test_stopped_at_any_step_it_goes_on_from_that_very_step(tmp_path: Path, stops: list[int]) -> None:
    """Six steps an epoch, with dropout: the next call takes up after the step, not after the epoch."""
    training = settings(epochs=4)
    whole = network(dropout=0.3)
    expected = train(whole, batches(), LOSS, training, seed=3, evaluate=judge)
    file, taken = tmp_path / "checkpoint.safetensors", 0

    def counted(*args: Any) -> Tensor:
        nonlocal taken
        taken += 1
        return LOSS(*args)

    for allowed in stops:
        left = [allowed]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        torch.rand(7)  # another process has another state of the global generator
        with pytest.raises(Interrupted):
            for _ in train_epochs(
                Learner(network(dropout=0.3), counted),  # type: ignore[arg-type]
                batches(),
                training,
                seed=3,
                evaluate=judge,
                checkpoint=file,
                stop=stop,
            ):
                pass
    resumed = network(dropout=0.3)
    found = train(resumed, batches(), counted, training, seed=3, evaluate=judge, checkpoint=file)  # type: ignore[arg-type]
    assert same(state(whole), state(resumed))
    assert taken == 4 * batches().steps_per_epoch, "no step is taken twice"
    curves = [[(e["train_loss"], e["validation_loss"]) for e in p.history] for p in (found, expected)]
    assert curves[0] == curves[1]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    for changes in ({}, {"early_stopping": 1}):
        training = settings(epochs=3, **changes)
        losses = scripted([1.0, 2.0, 3.0])
        first, second = network(), network(seed=1)
        train(first, batches(), LOSS, training, seed=0, evaluate=losses, checkpoint=file)
        train(second, batches(), LOSS, training, seed=0, evaluate=scripted([]), checkpoint=file)
        assert same(state(first), state(second))
        file.unlink()


def damaged(file: Path, how: str) -> None:
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no progress":
        save_file(load_file(file), file)
    elif how == "unknown progress":
        save_file(load_file(file), file, metadata={"progress": '{"epoch": 1, "colour": "blue"}'})
    else:  # one tensor of another shape: what comes before it fits
        tensors = load_file(file)
        tensors["model/body.head.bias"] = torch.zeros(99)
        save_file(tensors, file, metadata={"progress": "{}"})


@pytest.mark.parametrize("how", ["truncated", "empty", "no progress", "unknown progress", "another model"])
def test_a_corrupt_checkpoint_is_named_and_the_member_starts_again(tmp_path: Path, how: str) -> None:
    whole, resumed, file = network(), network(), tmp_path / "checkpoint.safetensors"
    train(whole, batches(), LOSS, settings(), seed=3)
    train(network(), batches(), LOSS, settings(epochs=2), seed=3, checkpoint=file)
    damaged(file, how)
    warnings: list[str] = []
    train(resumed, batches(), LOSS, settings(), seed=3, checkpoint=file, on_warning=warnings.append)
    assert len(warnings) == 1 and warnings[0].endswith("starts again")
    assert str(file) in warnings[0] or how == "unknown progress"
    assert same(state(whole), state(resumed)), (
        "it starts from the initial weights, not from half a checkpoint"
    )


# ------------------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_member(value: float) -> None:
    calls = 0

    def loss(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return LOSS(*args) * (value if calls == 12 else 1.0)

    with pytest.raises(NotFiniteError, match=f"loss became {value} in epoch 2") as error:
        train(network(), batches(), loss, settings(), seed=0)  # type: ignore[arg-type]
    assert error.value.epoch == 2


def test_weights_ruined_by_the_very_last_step_are_noticed(tmp_path: Path) -> None:
    """That step's own loss was finite; only the evaluation after it is not."""
    file = tmp_path / "checkpoint.safetensors"
    steps = 0

    class Ruin(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return gradient * math.nan

    def ruined(*args: Any) -> Tensor:
        nonlocal steps
        steps += 1
        value = LOSS(*args)
        return Ruin.apply(value) if steps == 12 else value

    with pytest.raises(NotFiniteError, match="loss became nan in epoch 2"):
        train(network(), batches(), ruined, settings(epochs=2), seed=0, evaluate=judge, checkpoint=file)  # type: ignore[arg-type]
    assert all(bool(t.isfinite().all()) for t in load_file(file).values()), "the last good epoch is kept"


# ------------------------------------------------------------------------------------- steps of the loop


def test_accumulated_parts_equal_the_whole_batch() -> None:
    results = []
    for parts in (1, 2, 4):
        model = network(dropout=0.0)
        training = settings(optimizer="sgd", learning_rate=0.1, gradient_accumulation=parts)
        progress = train(model, batches(), LOSS, training, seed=0)
        results.append((state(model), progress.history[-1]["train_loss"]))
    for weights, train_loss in results[1:]:
        assert train_loss == pytest.approx(results[0][1], rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][0][name], rtol=1e-5, atol=1e-6)


def first_step(model: Network, **changes: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after one step of SGD."""
    before = state(model)
    training = settings(epochs=1, batch_size=96, optimizer="sgd", warmup_fraction=0, **changes)
    train(model, batches(96), LOSS, training, seed=0)
    return before, state(model)


def test_the_gradient_is_clipped_as_a_whole() -> None:
    def step(**changes: Any) -> Tensor:
        before, after = first_step(network(dropout=0.0), learning_rate=1.0, **changes)
        return torch.cat([(after[name] - before[name]).flatten() for name in before])

    free, clipped = step(), step(gradient_clip=1e-3)
    # Nesterov's first step: (1 + momentum) times the gradient
    assert float(clipped.norm()) == pytest.approx(1.9e-3, rel=1e-3)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-4)
    assert torch.equal(step(gradient_clip=1e6), free)


def test_max_norm_bounds_hidden_units_and_not_the_head() -> None:
    model = network()
    train(model, batches(), LOSS, settings(learning_rate=0.1, max_norm=0.3), seed=0)
    norms = {
        name: float(p.detach().norm(dim=1).max()) for name, p in model.named_parameters() if p.dim() == 2
    }
    assert norms["body.layers.0.weight"] <= 0.3 + 1e-6
    assert norms["body.head.weight"] > 0.3


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_is_on_matrices_only(optimizer: str) -> None:
    model = network()
    groups = make_optimizer(model, settings(optimizer=optimizer, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.dim() > 1 else 0.0)


def test_weight_decay_shrinks_a_weight_without_gradient() -> None:
    model = network(hidden=[4], dropout=0.0)
    head = model.head
    assert head is not None
    with torch.no_grad():
        head.weight.zero_()  # no gradient reaches the first layer
    before, after = first_step(model, learning_rate=0.1, weight_decay=0.5)
    ratio = after["body.layers.0.weight"] / before["body.layers.0.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 - 0.1 * 0.5 * 1.9))
    assert torch.equal(after["body.layers.0.bias"], before["body.layers.0.bias"])


# -------------------------------------------------------------------------------------- early stopping


def test_early_stopping_keeps_the_best_epoch() -> None:
    seen: list[dict[str, Tensor]] = []
    losses = scripted([3.0, 1.0, 2.0, 1.5, 0.1])

    def evaluate(model: Network) -> dict[str, float]:
        seen.append(state(model))
        return losses(model)

    model = network()
    progress = train(model, batches(), LOSS, settings(epochs=9, early_stopping=2), seed=0, evaluate=evaluate)
    assert (progress.epoch, progress.best_epoch, progress.best_loss) == (4, 2, 1.0) and progress.stopped
    assert same(state(model), seen[1]) and not same(seen[1], seen[3])


def test_without_early_stopping_the_last_epoch_is_kept() -> None:
    seen: list[dict[str, Tensor]] = []
    losses = scripted([1.0, 2.0, 3.0])

    def evaluate(model: Network) -> dict[str, float]:
        seen.append(state(model))
        return losses(model)

    model = network()
    progress = train(model, batches(), LOSS, settings(epochs=3), seed=0, evaluate=evaluate)
    assert progress.epoch == 3 and not progress.stopped and same(state(model), seen[2])


# ---------------------------------------------------------------------------------------------- learns


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd", "learning_rate": 0.05}])
def test_it_learns_a_line(changes: dict[str, Any]) -> None:
    model, entries = network(), []  # type: ignore[var-annotated]
    training = settings(epochs=20, **changes)
    progress = train(model, batches(), LOSS, training, seed=0, evaluate=judge, on_epoch=entries.append)
    assert entries == progress.history and [e["epoch"] for e in entries] == list(range(1, 21))
    assert entries[-1]["train_loss"] < 0.5 * entries[0]["train_loss"]
    assert entries[-1]["validation_loss"] < 0.6 * math.log(3)
    assert all(e["seconds"] > 0 and e["examples_per_second"] > 0 for e in entries)


def test_prediction_in_chunks_is_the_networks() -> None:
    model = network().eval()
    inputs = torch.from_numpy(arrays(25, 4).inputs)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, inputs, torch.device("cpu"), 7), model(inputs).logits)
    assert predict(model, inputs[:0], torch.device("cpu")).numel() == 0


def test_no_rows_is_an_error_and_not_an_endless_loop() -> None:
    empty = batches(rows=16)
    empty.source.rows = torch.arange(0)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no rows to train on"):
        train(network(), empty, LOSS, settings(), seed=0)


def test_progress_is_json() -> None:
    import json

    fields = Progress(history=[{"epoch": 1, "train_loss": 0.1 + 0.2}]).__dict__
    assert Progress(**json.loads(json.dumps(fields))) == Progress(**fields)
    assert loop.Replicas().agree(True, torch.device("cpu"))
