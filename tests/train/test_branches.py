"""ONE: branches over a shared trunk, the gate, the loss against a reference, and what is shipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_hint_phase import INFO, arrays, task
from torch import Tensor

from ensemble_kd.config import ResNetConfig, TrainingConfig
from ensemble_kd.models.branched import Branched
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.fits import check_fits
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.resnet import ResNet
from ensemble_kd.models.weights import shapes_of
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.mixture import DistillationLoss
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.train.branches import Branches, branched, gate_term
from ensemble_kd.train.finishing import PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import WEIGHTS, load_network
from ensemble_kd.train.loop import Interrupted
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_networks import branch_view, initial_network
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.task import finished

MODEL: dict[str, Any] = {"name": "resnet", "width": 4, "blocks": 1}
ONE: dict[str, Any] = {"count": 3, "section": 3, "weight": 1.0, "temperature": 3.0, "ship": "branch"}
DATA = TrainingData(INFO, arrays(8, 1), arrays(8, 2), arrays(32, 0))


def student(epochs: int = 2, **changes: Any) -> Any:
    model = {**MODEL, **changes.pop("model", {})}
    return task("distilled", model, epochs, **{"branches": {**ONE, **changes.pop("one", {})}, **changes})


def learner(**one: Any) -> Branches:
    settings = {**ONE, **one}
    asked = student(one=one)
    network = initial_network(asked, DATA)
    views = [branch_view(asked, DATA, network, i) for i in range(settings["count"])]
    return Branches(network, views, DistillationLoss(), gate_term(settings), settings["ship"])


def batch(rows: int = 8) -> Batch:
    held = arrays(rows, 5)
    return Batch(torch.from_numpy(held.inputs), torch.from_numpy(held.labels))


def gated(network: Network, inputs: Tensor) -> Tensor:
    outputs = network(inputs, hidden=True)
    gate: Tensor = outputs.hidden["gate"]
    return gate


# --------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("section", [2, 3])
def test_gate_and_branches(section: int) -> None:
    network = build(ResNetConfig(width=4, branches=3, branch_section=section), INFO)
    assert isinstance(network.body, Branched)
    outputs = network(batch().inputs, hidden=True)
    assert outputs.hidden is not None
    gate = outputs.hidden["gate"]
    torch.testing.assert_close(gate.sum(1), torch.ones(8))
    answers = torch.stack([outputs.hidden[f"branch_{i}"] for i in (1, 2, 3)], 1)  # (B, m, C)
    torch.testing.assert_close(outputs.logits, (gate[:, :, None] * answers).sum(1))
    assert len(network.body.trunk) == section - 1 and len(network.body.tails) == 3
    names = list(network.state_dict())
    assert not any("_networks" in name for name in names)


def test_a_branch_is_the_students_own_network() -> None:
    """The first starts from the very weights of the student alone, and all share the trunk."""
    one = learner()
    alone = initial_network(task("hard", MODEL, 2), DATA)
    assert {n: t.shape for n, t in one.views[1].state_dict().items()} == {
        n: t.shape for n, t in alone.state_dict().items()
    }
    for name, tensor in alone.state_dict().items():
        assert torch.equal(one.views[0].state_dict()[name], tensor), name
    one.network.eval()
    outputs = one.network(batch().inputs, hidden=True)
    assert outputs.hidden is not None
    for i, view in enumerate(one.views, start=1):
        torch.testing.assert_close(view.eval()(batch().inputs).logits, outputs.hidden[f"branch_{i}"])
    first, second = one.views[0].body, one.views[1].body
    assert isinstance(first, ResNet) and isinstance(second, ResNet)
    assert first.stem is second.stem and first.stages[1] is second.stages[1]
    assert first.stages[2] is not second.stages[2] and first.head is not second.head


# ------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_a_reference_in_float64() -> None:
    one = learner(temperature=2.5, weight=0.7)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    g = torch.softmax(torch.randn(6, 3, generator=generator, dtype=torch.float64), 1)
    v, labels = torch.einsum("bm,mbc->bc", g, z), torch.tensor([0, 1, 1, 0, 1, 0])
    outputs = Outputs(v, {f"branch_{i + 1}": z[i] for i in range(3)})
    losses = one.losses(outputs, Batch(torch.zeros(6, 1), labels))
    p = torch.softmax(v / 2.5, 1)
    for i in range(3):
        hard = -torch.log_softmax(z[i], 1)[torch.arange(6), labels].mean()
        soft = (p * (p.log() - torch.log_softmax(z[i] / 2.5, 1))).sum(1).mean()
        torch.testing.assert_close(losses[i], hard + 0.7 * 2.5**2 * soft)
    torch.testing.assert_close(losses[3], F.cross_entropy(v, labels))
    assert len(losses) == 4


def test_the_ensemble_is_a_constant_for_its_branches() -> None:
    """No branch's loss moves the gate or another branch; the ensemble's own moves all."""
    one, seen = learner(), batch()
    one.network.train()
    losses = one.losses(one.network(seen.inputs, hidden=True), seen)
    body = one.network.body
    assert isinstance(body, Branched)
    gate, others = list(body.gate.parameters()), list(body.heads[1].parameters())
    own, trunk = list(body.heads[0].parameters()), list(body.trunk.parameters())
    for parameters, reached in ((gate, False), (others, False), (own, True), (trunk, True)):
        found = torch.autograd.grad(losses[0], parameters, retain_graph=True, allow_unused=True)
        assert all((each is not None) == reached for each in found)
    found = torch.autograd.grad(losses[3], [*gate, *own, *others], allow_unused=True)
    assert all(each is not None for each in found)


def test_the_weight_rises_as_a_sigmoid() -> None:
    schedule = parse_weight({"start": 0.0, "end": 1.0, "shape": "sigmoid", "finish": 0.5}, "w")
    assert schedule.at(0.0) == 0.0 and schedule.at(0.5) == 1.0 == schedule.at(1.0)
    published = [math.exp(-5 * (1 - t) ** 2) for t in (0.1, 0.5, 0.9)]
    assert [schedule.at(t / 2) for t in (0.1, 0.5, 0.9)] == pytest.approx(published, abs=math.exp(-5))


# ----------------------------------------------------------------------------------------------- the member


def test_a_branch_is_shipped_as_the_students_network(tmp_path: Path) -> None:
    asked = student(epochs=3)
    assert train_member(asked, DATA, tmp_path)
    folder, receipt = asked.folder(tmp_path), finished(asked, tmp_path)
    assert receipt is not None and len(receipt.summary["branches"]) == 3
    network = load_network(receipt.config, INFO, folder)
    alone = initial_network(task("hard", MODEL, 2), DATA)
    assert network.num_parameters == alone.num_parameters < receipt.summary["together_parameters"]
    tensors = load_file(folder / PREDICTIONS)
    inputs = torch.from_numpy(DATA.test.inputs)
    torch.testing.assert_close(network(inputs).logits, tensors["test"])
    assert not torch.allclose(tensors["together/test"], tensors["test"])
    entry = receipt.summary["history"][-1]
    assert {"branch_3_validation_accuracy", "gated_validation_loss"} <= entry.keys()
    chosen = receipt.summary["branches"][receipt.summary["branch"] - 1]
    assert receipt.summary["validation_loss"] == chosen["validation_loss"]


def test_the_ensemble_is_shipped_if_asked(tmp_path: Path) -> None:
    asked = student(model=branched(ONE), one={"ship": "ensemble"})
    assert train_member(asked, DATA, tmp_path)
    folder, receipt = asked.folder(tmp_path), finished(asked, tmp_path)
    assert receipt is not None
    network = load_network(receipt.config, INFO, folder)
    assert isinstance(network.body, Branched)
    tensors = load_file(folder / PREDICTIONS)
    torch.testing.assert_close(network(torch.from_numpy(DATA.test.inputs)).logits, tensors["test"])
    assert "together/test" not in tensors
    check_fits(ResNetConfig(width=4, branches=3), INFO, shapes_of(folder / WEIGHTS))


def test_stopped_in_the_middle_it_goes_on_in_the_same_bits(tmp_path: Path) -> None:
    training = TrainingConfig(
        epochs=4, batch_size=8, learning_rate=0.01, precision="float32", early_stopping=3
    )
    asked = student(model={"dropout": 0.2}, training=training.model_dump(mode="json"))
    assert train_member(asked, DATA, tmp_path / "whole")
    for allowed in (3, 6):
        left = [allowed]

        def stop(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] <= 0

        torch.rand(5)
        with pytest.raises(Interrupted):
            train_member(asked, DATA, tmp_path / "cut", stop=stop)
    assert train_member(asked, DATA, tmp_path / "cut")
    first, second = (load_file(asked.folder(tmp_path / name) / WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fingerprints() -> None:
    plain, own = task("distilled", MODEL, 2), student()
    assert "branches" not in plain.settings and plain.fingerprint != own.fingerprint
    assert fuse_key(plain) is not None and fuse_key(own) is None
    assert ResNetConfig().model_dump().keys() == {"name", "width", "blocks", "dropout"}
