"""Networks that learn together: losses and updates against a reference, the same bits after a stop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import CLASSES, FEATURES, INFO, arrays, batches, data, network, settings, task

from ensemble_kd.data.records import Arrays
from ensemble_kd.models.build import Network
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.train.finishing import PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import WEIGHTS, load_network
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import Interrupted, make_optimizer, train_epochs
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_networks import logits_of
from ensemble_kd.train.peers import PEERS, Peers, mutual_term, with_peers
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.task import finished

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {
    "count": 2,
    "models": [],
    "weight": 1.0,
    "objective": "kl",
    "temperature": 1.0,
    "updates": "simultaneous",
    "refresh_steps": None,
}


def mutual(count: int, loss: DistillationLoss | None = None, **changes: Any) -> DistillationLoss:
    return with_peers(loss or DistillationLoss(), mutual_term({**PLAIN, **changes}), count)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def evaluate(model: Network) -> dict[str, float]:
    logits = logits_of(model, data(), CPU)["validation"]
    labels = torch.from_numpy(data().validation.labels)
    return {
        "validation_loss": float(nn.functional.cross_entropy(logits, labels)),
        "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
    }


# -------------------------------------------------------------------------- a reference in float64, by hand


class Linear(nn.Module):
    """z = x W + b in float64: its gradients can be written down."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(FEATURES, CLASSES, generator=generator, dtype=torch.float64)
        self.weight, self.bias = nn.Parameter(start), nn.Parameter(torch.zeros(CLASSES, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Outputs:
        return Outputs(inputs @ self.weight + self.bias)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    found: np.ndarray = e / e.sum(1, keepdims=True)
    return found


class Reference:
    """SGD with Nesterov momentum 0.9 on CE + w / (K - 1) sum_l T^2 KL(p_l || p_k), gradients by hand.

    d CE / dz_k = softmax(z_k) - y and d T^2 KL(p_l || p_k) / dz_k = T (p_k - p_l), p at T.
    """

    def __init__(self, networks: list[Linear], temperature: float, weight: float) -> None:
        self.weights = [[p.detach().numpy().copy() for p in (n.weight, n.bias)] for n in networks]
        self.moments = [[np.zeros_like(w) for w in own] for own in self.weights]
        self.temperature, self.weight = temperature, weight
        self.old = copy.deepcopy(self.weights)

    def answers(self, x: np.ndarray, weights: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [x @ w + b for w, b in weights]

    def move(self, k: int, x: np.ndarray, labels: np.ndarray, targets: list[np.ndarray], rate: float) -> None:
        z, t = x @ self.weights[k][0] + self.weights[k][1], self.temperature
        others = [target for j, target in enumerate(targets) if j != k]
        gradient = softmax(z) - np.eye(CLASSES)[labels]
        for target in others:
            gradient += self.weight / len(others) * t * (softmax(z / t) - softmax(target / t))
        gradient /= len(x)
        for i, own in enumerate((x.T @ gradient, gradient.sum(0))):
            self.moments[k][i] = 0.9 * self.moments[k][i] + own
            self.weights[k][i] = self.weights[k][i] - rate * (own + 0.9 * self.moments[k][i])

    def step(self, x: np.ndarray, labels: np.ndarray, updates: str, refresh: int | None, number: int) -> None:
        if refresh is not None and number % refresh == 0:
            self.old = copy.deepcopy(self.weights)
        targets = self.answers(x, self.weights if refresh is None else self.old)
        for k in range(len(self.weights)):
            if updates == "sequential":
                targets = self.answers(x, self.weights)
            self.move(k, x, labels, targets, 0.3)


def some(number: int, rows: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    return Batch(inputs, torch.randint(CLASSES, (rows,), generator=generator))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("updates", "refresh"), [("sequential", None), ("simultaneous", None), ("simultaneous", 3)]
)
def test_updates_are_those_of_a_reference_in_float64(count: int, updates: Any, refresh: int | None) -> None:
    networks = [Linear(seed) for seed in range(count)]
    reference = Reference(networks, 1.5, 0.7)
    loss = mutual(count, temperature=1.5, weight=0.7)
    learner = Peers(networks, loss, updates=updates, refresh_steps=refresh)  # type: ignore[arg-type]
    training = settings(optimizer="sgd", learning_rate=0.3)
    optimizer = make_optimizer(learner.trained, training)
    for number in range(7):
        batch = some(number)
        learner.step(learner.trained, optimizer, batch, training, number)
        reference.step(batch.inputs.numpy(), batch.labels.numpy(), updates, refresh, number)
    for model, (weight, bias) in zip(networks, reference.weights, strict=True):
        np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(model.bias.detach().numpy(), bias, rtol=1e-12, atol=1e-13)


def test_sequential_is_not_simultaneous() -> None:
    """The reference above would not tell if both were one of them."""
    found = []
    for updates in ("sequential", "simultaneous"):
        reference = Reference([Linear(0), Linear(1)], 1.0, 1.0)
        reference.step(some(0).inputs.numpy(), some(0).labels.numpy(), updates, None, 0)
        found.append(reference.weights)
    assert np.array_equal(found[0][0][0], found[1][0][0])  # the first moves before anything differs
    assert not np.allclose(found[0][1][0], found[1][1][0], atol=1e-4)


# ------------------------------------------------------------------------------------------------ the loss


def test_the_term_is_not_symmetrical_and_zero_between_equals() -> None:
    term = mutual_term(PLAIN).objective
    one, two, batch = Outputs(torch.tensor([[2.0, 0, 0]])), Outputs(torch.tensor([[0.0, 1, 0]])), some(0, 1)
    there, back = term(one, two, batch), term(two, one, batch)
    p, q = (torch.softmax(each.logits[0], 0) for each in (two, one))
    torch.testing.assert_close(there[0], (p * (p / q).log()).sum())
    assert abs(float(there - back)) > 0.05
    assert float(term(one, one, batch)) == pytest.approx(0, abs=1e-7)


def test_what_a_peer_predicts_is_a_constant() -> None:
    networks = [network(seed).train() for seed in range(3)]
    learner = Peers(networks, mutual(3))
    batch = next(iter(batches().epoch(0)))
    outputs = [net(batch.inputs) for net in networks]
    loss = learner._loss(1, outputs[1], outputs, batch)
    loss.backward()
    assert all(p.grad is not None for p in networks[1].parameters())
    assert all(p.grad is None for net in (networks[0], networks[2]) for p in net.parameters())


def test_soft_targets_and_peers_add_up() -> None:
    from ensemble_kd.objectives.logits import KL

    own, peer, teacher = (Outputs(torch.randn(5, CLASSES)) for _ in range(3))
    batch = Batch(torch.zeros(5, 1), torch.tensor([0, 1, 2, -1, 1]))
    soft = DistillationLoss(KL(temperature=2.0), 0.6)
    together = mutual(2, soft, weight={"start": 0.0, "end": 2.0})
    batch.progress = 0.25
    extra = 0.5 * KL(temperature=1.0)(own, peer, batch).mean()
    torch.testing.assert_close(together(own, teacher, batch, [peer]), soft(own, teacher, batch) + extra)


# --------------------------------------------------------------------------------------------- the learner


def run(learner: Learner, **options: Any) -> list[dict[str, float]]:
    return list(train_epochs(learner, batches(), settings(epochs=3), seed=3, evaluate=evaluate, **options))


def test_one_peer_is_plain_training_in_the_same_bits() -> None:
    plain, alone = network(1), network(1)
    expected = run(Learner(plain, DistillationLoss()))
    for updates in ("simultaneous", "sequential"):
        alone = network(1)
        found = run(Peers([alone], mutual(1), updates=updates))
        assert same(state(plain), state(alone))
        drop = ("seconds", "examples_per_second")
        assert [{k: v for k, v in e.items() if k not in drop} for e in found] == [
            {k: v for k, v in e.items() if k not in drop} for e in expected
        ]


def test_equal_peers_stay_equal_and_learn_as_one_alone() -> None:
    """Their KL is 0 for good: that is why each starts from weights of its own."""
    plain = network(1, dropout=0.0)
    run(Learner(plain, DistillationLoss()))
    networks = [network(1, dropout=0.0) for _ in range(2)]
    run(Peers(networks, mutual(2)))
    assert same(state(networks[0]), state(networks[1]))
    for name, tensor in state(plain).items():
        torch.testing.assert_close(tensor, state(networks[0])[name], rtol=1e-5, atol=1e-6)


def test_simultaneous_peers_are_symmetrical() -> None:
    first, second = ([network(seed, dropout=0.0) for seed in order] for order in ((1, 2), (2, 1)))
    run(Peers(first, mutual(2)))
    run(Peers(second, mutual(2)))
    assert same(state(first[0]), state(second[1])) and same(state(first[1]), state(second[0]))
    assert not same(state(first[0]), state(first[1]))


def test_codistillation_refreshed_at_every_step_is_simultaneous_mutual_learning() -> None:
    found = {}
    for refresh in (None, 1, 4):
        networks = [network(seed, dropout=0.0) for seed in (1, 2)]
        run(Peers(networks, mutual(2), refresh_steps=refresh))
        found[refresh] = state(networks[0]) | {f"2/{k}": v for k, v in state(networks[1]).items()}
    assert same(found[None], found[1])
    assert not same(found[None], found[4])


@pytest.mark.parametrize("stops", [[1], [5], [6], [7, 3]])
@pytest.mark.parametrize(
    "how", [{"updates": "sequential"}, {"updates": "simultaneous"}, {"refresh_steps": 4}]
)
def test_stopped_at_any_step_they_go_on_from_it_in_the_same_bits(
    tmp_path: Path, how: dict[str, Any], stops: list[int]
) -> None:
    training = settings(epochs=4, early_stopping=3, gradient_clip=0.5, max_norm=2.0)
    file = tmp_path / "checkpoint.safetensors"

    def peers() -> Peers:
        models = [network(1, dropout=0.3), network(2, dropout=0.3), network(3, hidden=[8])]
        return Peers(models, mutual(3), candidates=2, **how)

    whole = peers()
    expected = list(train_epochs(whole, batches(), training, seed=3, evaluate=evaluate))
    for allowed in stops:
        left = [allowed]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        torch.rand(7)  # another process has another state of the global generator
        with pytest.raises(Interrupted):
            for _ in train_epochs(
                peers(), batches(), training, seed=3, evaluate=evaluate, checkpoint=file, stop=stop
            ):
                pass
    held = load_file(file)
    assert sum(name.startswith("model/peers.") for name in held) == 18
    assert sum(name.startswith("model/stale.") for name in held) == (18 if "refresh_steps" in how else 0)
    resumed = peers()
    epochs = train_epochs(resumed, batches(), training, seed=3, evaluate=evaluate, checkpoint=file)
    found = list(epochs)
    assert same(state(whole.trained), state(resumed.trained))
    assert [e["train_loss"] for e in expected][-len(found) :] == [e["train_loss"] for e in found]


def test_each_network_is_clipped_by_itself() -> None:
    """A peer with a large gradient does not slow the others down."""
    training = settings(optimizer="sgd", learning_rate=0.1, gradient_clip=0.5)
    learner = Peers([Linear(0), Linear(1)], mutual(2, weight=0.0))  # type: ignore[list-item]
    loud = some(0)
    with torch.no_grad():
        learner.networks[1].weight.mul_(100)  # type: ignore[operator]
    before = [state(net) for net in learner.networks]
    learner.step(learner.trained, make_optimizer(learner.trained, training), loud, training, 0)
    for net, old in zip(learner.networks, before, strict=True):
        moved = torch.cat([(net.state_dict()[name] - old[name]).flatten() for name in old])
        assert float(moved.norm()) <= 0.1 * 1.9 * 0.5 * (1 + 1e-6)  # Nesterov's first step is 1.9 gradients


# ---------------------------------------------------------------------------------------------- the member


def test_a_member_with_peers_leaves_all_networks_and_ships_the_best(tmp_path: Path) -> None:
    held, asked = data(), task("distilled", alpha=0.0, peers={**PLAIN, "count": 3, "updates": "sequential"})
    assert train_member(asked, held, tmp_path)
    folder, receipt = asked.folder(tmp_path), finished(asked, tmp_path)
    assert receipt is not None and set(receipt.files) == {WEIGHTS, PREDICTIONS, PEERS}
    peers, best = receipt.summary["peers"], receipt.summary["peer"]
    assert len(peers) == 3
    assert best == min(
        range(3), key=lambda k: (-peers[k]["validation_accuracy"], peers[k]["validation_loss"])
    )
    assert receipt.summary["validation_loss"] == peers[best]["validation_loss"]
    assert f"peer_{best}_validation_loss" in receipt.summary["history"][0]
    tensors, weights = load_file(folder / PREDICTIONS), load_file(folder / PEERS)
    logits = [tensors[f"peers/{k}/test"] for k in range(3)]
    assert torch.equal(logits[best], tensors["test"])
    mean = torch.stack([each.softmax(1) for each in logits]).mean(0)
    torch.testing.assert_close(tensors["together/test"].softmax(1), mean)
    shipped = load_network(receipt.config, held.info, folder)
    assert all(
        torch.equal(weights[f"{best}.{name}"], tensor) for name, tensor in shipped.state_dict().items()
    )
    others = [k for k in range(3) if k != best]
    assert not torch.equal(logits[others[0]], logits[others[1]])
    assert not (folder / "checkpoint.safetensors").exists()


def test_one_peer_is_the_student_itself(tmp_path: Path) -> None:
    held = data()
    plain, alone = (task("distilled", alpha=0.0, peers=peers) for peers in (None, {**PLAIN, "count": 1}))
    assert train_member(plain, held, tmp_path) and train_member(alone, held, tmp_path)
    first, second = (load_file(one.folder(tmp_path) / WEIGHTS) for one in (plain, alone))
    assert plain.fingerprint != alone.fingerprint and same(first, second)


def test_a_network_of_another_model_teaches_and_is_not_shipped(tmp_path: Path) -> None:
    wide = {"name": "mlp", "hidden": [64, 64]}
    asked = task("distilled", peers={**PLAIN, "models": [wide]}, seed=3)
    assert train_member(asked, data(), tmp_path)
    receipt = finished(asked, tmp_path)
    assert receipt is not None and receipt.summary["peer"] == 0
    own, other = (peer["parameters"] for peer in receipt.summary["peers"])
    assert receipt.summary["parameters"] == own < other


def test_fingerprints() -> None:
    plain = task("distilled")
    assert "peers" not in plain.settings
    assert fuse_key(plain) is not None and fuse_key(replace(plain, peers=PLAIN)) is None
    other = {**PLAIN, "updates": "sequential"}
    names = {replace(plain, peers=peers).fingerprint for peers in (None, PLAIN, other)}
    assert len(names) == 3


def test_texts_whose_tables_are_cut(tmp_path: Path) -> None:
    """Every network trains on the rows of its table that any text has, and leaves the whole table."""
    generator = np.random.default_rng(0)

    def texts(rows: int) -> Arrays:
        labels = generator.integers(0, 3, rows)
        tokens = 1 + labels[:, None] * 10 + generator.integers(0, 10, (rows, 5))
        return Arrays(tokens.astype(np.int32), labels.astype(np.int64), np.arange(rows))

    info = {**INFO, "kind": "text", "input_shape": [5], "vocabulary_size": 200}
    held = TrainingData(info, texts(30), texts(30), texts(96))
    peers = {**PLAIN, "models": [{"name": "text_cnn", "embedding": 8, "filters": 4}], "refresh_steps": 3}
    longer = settings(epochs=12, learning_rate=0.03).model_dump(mode="json")
    bag = {"name": "bag", "embedding": 8}
    asked = task("distilled", model=bag, alpha=0.0, peers=peers, training=longer)
    assert train_member(asked, held, tmp_path)
    tables = load_file(asked.folder(tmp_path) / PEERS)
    assert {len(tables[f"{k}.body.embedding.weight"]) for k in (0, 1)} == {200}
    receipt = finished(asked, tmp_path)
    assert receipt is not None
    assert all(peer["validation_accuracy"] > 0.6 for peer in receipt.summary["peers"])


def test_values(tmp_path: Path) -> None:
    """Peers of regressors learn from each other's values; their ensemble is the mean."""
    target = {"kind": "value", "mean": 500.0, "std": 20.0}
    info = {**INFO, "num_classes": 1, "target": target}

    def values(rows: int, seed: int) -> Arrays:
        given = arrays(rows, seed)
        return Arrays(given.inputs, (500 + 20 * given.inputs[:, 0]).astype(np.float32), given.ids)

    held = TrainingData(info, values(30, 1), values(30, 2), values(96, 0))
    asked = task("distilled", alpha=0.0, objective=None, peers={**PLAIN, "objective": "mse"})
    assert train_member(asked, held, tmp_path)
    tensors = load_file(asked.folder(tmp_path) / PREDICTIONS)
    mean = (tensors["peers/0/test"] + tensors["peers/1/test"]) / 2
    torch.testing.assert_close(tensors["together/test"], mean)
    assert 400 < float(mean.mean()) < 600
