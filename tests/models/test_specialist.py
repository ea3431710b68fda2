"""A specialist starts as its generalist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ensemble_kd.config import BagConfig, BiLSTMConfig, CNNConfig, MLPConfig, ResNetConfig
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.models.build import CustomBody, Network, build
from ensemble_kd.models.specialist import DustbinHead, specialise
from ensemble_kd.models.weights import load_weights, max_norm_, save_weights

IMAGE = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 6, "mean": [0.3], "std": [0.2]}
TEXT = {"kind": "text", "input_shape": [5], "num_classes": 6, "mean": [], "std": [], "vocabulary_size": 30}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (MLPConfig(hidden=[7], dropout=0.5), IMAGE),
    (MLPConfig(hidden=[]), IMAGE),
    (CNNConfig(channels=[8, 6]), IMAGE),
    (ResNetConfig(width=2), IMAGE),
    (BagConfig(embedding=5, hidden=[4]), TEXT),
    (BiLSTMConfig(embedding=5, hidden=3), TEXT),
]
CLASSES = [4, 1, 2]
OTHERS = [0, 3, 5]


def inputs(info: dict[str, Any], batch: int = 9) -> Tensor:
    if info["kind"] == "image":
        return torch.randint(0, 256, (batch, *info["input_shape"]), dtype=torch.uint8)
    return torch.randint(0, 30, (batch, *info["input_shape"]))


def generalist(model: Any, info: dict[str, Any]) -> Network:
    network = build(model, info).eval()
    head = network.head
    assert head is not None
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_()
    return network


@pytest.mark.parametrize(("model", "info"), CASES)
def test_aggregate_reproduces_the_generalist(model: Any, info: dict[str, Any]) -> None:
    network, x = generalist(model, info), inputs(info)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    specialist = specialise(network, CLASSES)
    full, outputs = network(x).logits.double(), specialist(x, hidden=True)
    torch.testing.assert_close(outputs.logits[:, :3].double(), full[:, CLASSES], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        outputs.logits[:, 3].double(), full[:, OTHERS].logsumexp(1), atol=1e-5, rtol=1e-5
    )
    p = outputs.logits.softmax(1).double()
    torch.testing.assert_close(p[:, 3], full.softmax(1)[:, OTHERS].sum(1), atol=1e-6, rtol=1e-5)
    assert outputs.hidden is not None and not specialist.training

    with torch.no_grad():  # a copy: training it leaves the generalist alone
        for parameter in specialist.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("model", "info"), CASES)
def test_row_has_one_new_row_with_the_mass_outside(model: Any, info: dict[str, Any]) -> None:
    network, x = generalist(model, info), inputs(info, 40)
    full = network(x).logits.detach()
    specialist = specialise(network, CLASSES, "row", logits=full)
    logits = specialist(x).logits
    assert logits.shape == (40, 4) and type(specialist.head) is nn.Linear
    torch.testing.assert_close(logits[:, :3], full[:, CLASSES], atol=1e-5, rtol=1e-5)
    assert not specialist.head.weight[-1].any()
    torch.testing.assert_close(
        logits.softmax(1)[:, 3].mean(), full.softmax(1)[:, OTHERS].sum(1).mean(), atol=1e-5, rtol=0
    )
    plain = specialise(network, CLASSES, "row")
    assert not plain(x).logits[:, 3].any()


@pytest.mark.parametrize("train_outside", [True, False])
def test_gradient_reaches_what_is_trained(train_outside: bool) -> None:
    network = generalist(*CASES[0])
    specialist = specialise(network, CLASSES, train_outside=train_outside)
    specialist(inputs(IMAGE)).logits[:, 3].sum().backward()
    head = specialist.head
    assert isinstance(head, DustbinHead)
    assert (head.outside_weight.grad is not None) == train_outside
    body_weight = specialist.get_parameter("body.layers.0.weight")
    assert body_weight.grad is not None and bool(body_weight.grad.any())


@pytest.mark.parametrize("dustbin", ["aggregate", "row"])
@pytest.mark.parametrize(("model", "info"), CASES)
def test_weights_go_to_disk_and_back(tmp_path: Path, model: Any, info: dict[str, Any], dustbin: str) -> None:
    first, x = specialise(generalist(model, info), CLASSES, dustbin), inputs(info)
    save_weights(first, tmp_path / "weights.safetensors")
    second = specialise(build(model, info).eval(), CLASSES, dustbin)
    load_weights(second, tmp_path / "weights.safetensors")
    assert torch.equal(first(x).logits, second(x).logits)
    with pytest.raises(ArtifactError, match="belongs to another model"):
        load_weights(specialise(build(model, info), CLASSES[:2], dustbin), tmp_path / "weights.safetensors")


def test_max_norm_takes_it_for_the_output_layer() -> None:
    specialist = specialise(generalist(*CASES[0]), CLASSES)
    head = specialist.head
    assert isinstance(head, DustbinHead)
    with torch.no_grad():
        head.weight.fill_(9.0)
    max_norm_(specialist, 0.5)
    assert (head.weight == 9.0).all()


class Own(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 6, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("dustbin", ["aggregate", "row"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_custom_model(dustbin: str, bias: bool) -> None:
    network, x = Network(CustomBody(Own(bias), 6), "image", [8, 8, 1], [0.3], [0.2]), inputs(IMAGE)
    specialist = specialise(network, CLASSES, dustbin)
    logits, full = specialist(x).logits, network(x).logits
    assert logits.shape == (9, 4) and specialist.head is not network.head
    torch.testing.assert_close(logits[:, :3], full[:, CLASSES])
    assert network(x).logits.shape == (9, 6)


def test_no_output_layer_to_copy() -> None:
    body = CustomBody(nn.Sequential(nn.Flatten(), nn.Bilinear(1, 1, 6)), 6)
    network = Network(body, "image", [8, 8, 1], [0.3], [0.2])
    with pytest.raises(ConfigError, match="this model shows none; give its body a `head` that is a torch.nn"):
        specialise(network, CLASSES)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([1, 6], r"lie within 0 .. 5, got \[6\]"),
        ([1, 1], "different ones"),
        ([1], "2 to 5 of 6 classes, got 1"),
        (list(range(6)), "got 6"),
    ],
)
def test_impossible_classes(classes: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        specialise(generalist(*CASES[0]), classes)
    with pytest.raises(ValueError, match="output: aggregate, row, full, got 'bin'"):
        specialise(generalist(*CASES[0]), [1, 2], "bin")
