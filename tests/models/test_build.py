"""Networks: shapes, normalisation inside, padding, custom models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ensemble_kd.config import (
    BagConfig,
    BiLSTMConfig,
    CNNConfig,
    CustomModelConfig,
    MLPConfig,
    ResNetConfig,
    TextCNNConfig,
    WideShallowConfig,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.outputs import Outputs

IMAGE = {
    "kind": "image",
    "input_shape": [8, 10, 3],
    "num_classes": 5,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.5, 0.25, 1.0],
    "vocabulary_size": 0,
}
NUMERIC = {
    "kind": "numeric",
    "input_shape": [4],
    "num_classes": 3,
    "mean": [1.0, 2.0, 3.0, 4.0],
    "std": [1.0, 2.0, 0.0, 4.0],
    "vocabulary_size": 0,
}
TEXT = {
    "kind": "text",
    "input_shape": [12],
    "num_classes": 4,
    "mean": [],
    "std": [],
    "vocabulary_size": 50,
}
CASES: list[tuple[Any, dict[str, Any], set[str]]] = [
    (MLPConfig(hidden=[7, 6]), IMAGE, {"layer_1", "layer_2"}),
    (MLPConfig(hidden=[]), NUMERIC, set()),
    (CNNConfig(channels=[8, 9]), IMAGE, {"layer_1", "layer_2", "pooled"}),
    (
        ResNetConfig(width=8),
        IMAGE,
        {"pooled", *(f"stage_{i}{end}" for i in (1, 2, 3) for end in ("", "_first"))},
    ),
    *(
        (
            ResNetConfig(width=8, blocks=2, block=block, norm=norm, stem=stem),
            IMAGE,
            {"pooled", *(f"stage_{i}{end}" for i in (1, 2, 3) for end in ("", "_first"))},
        )
        for block, norm, stem in (
            ("bottleneck", "batch", "small"),
            ("grouped", "group", "large"),
            ("depthwise", "none", "small"),
        )
    ),
    (WideShallowConfig(units=9, rank=4), IMAGE, {"layer_1"}),
    (WideShallowConfig(units=9, rank=None, dropout=0.1), NUMERIC, {"layer_1"}),
    (BagConfig(embedding=6, hidden=[5]), TEXT, {"pooled", "layer_1"}),
    (BagConfig(embedding=6, piece_weights=True), TEXT, {"pooled"}),
    (TextCNNConfig(embedding=6, filters=5, hidden=[4], dropout=0.1), TEXT, {"pooled", "layer_1"}),
    (BiLSTMConfig(embedding=6, hidden=5, layers=2, dropout=0.1), TEXT, {"pooled", "classifier"}),
]


def raw_inputs(info: dict[str, Any], batch: int = 3) -> torch.Tensor:
    shape = (batch, *info["input_shape"])
    if info["kind"] == "image":
        return torch.randint(0, 256, shape, dtype=torch.uint8)
    if info["kind"] == "text":
        return torch.randint(1, info["vocabulary_size"], shape, dtype=torch.int32)
    return torch.randn(shape)


@pytest.mark.parametrize(("model", "info", "names"), CASES, ids=lambda case: getattr(case, "name", None))
def test_outputs_hidden_head_and_gradient(model: Any, info: dict[str, Any], names: set[str]) -> None:
    network = build(model, info)
    inputs = raw_inputs(info)
    outputs = network(inputs)
    assert outputs.logits.shape == (3, info["num_classes"]) and outputs.hidden is None
    with_hidden = network.eval()(inputs, hidden=True)
    assert set(with_hidden.hidden) == names
    assert with_hidden[1:].hidden.keys() == names and with_hidden[1:].logits.shape[0] == 2
    torch.testing.assert_close(with_hidden.logits, network(inputs).logits)
    assert network.head is not None and network.head.out_features == info["num_classes"]
    assert network.num_parameters == sum(p.numel() for p in network.parameters())
    outputs.logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(("model", "info", "names"), CASES, ids=lambda case: getattr(case, "name", None))
def test_num_outputs_replaces_the_number_of_classes(
    model: Any, info: dict[str, Any], names: set[str]
) -> None:
    network = build(model, info, num_outputs=2)
    assert network(raw_inputs(info)).logits.shape == (3, 2)


def test_images_are_normalised_inside_and_statistics_recoverable() -> None:
    network = build(MLPConfig(hidden=[]), IMAGE)
    x = raw_inputs(IMAGE)
    mean, std = np.array(IMAGE["mean"]), np.array(IMAGE["std"])
    expected = (x.numpy() / 255.0 - mean) / std
    np.testing.assert_allclose(network.normalise(x).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert network.mean is not None and network.std is not None
    np.testing.assert_allclose(network.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(network.std.numpy(), std, rtol=1e-5)
    assert network.head is not None
    by_hand = network.head(torch.from_numpy(expected.reshape(3, -1)).float())
    torch.testing.assert_close(network(x).logits, by_hand, rtol=1e-4, atol=1e-4)


def test_numbers_are_normalised_and_left_as_they_were() -> None:
    network = build(MLPConfig(hidden=[]), NUMERIC)
    x = raw_inputs(NUMERIC)
    before = x.clone()
    std = np.array([1.0, 2.0, 1.0, 4.0])  # the constant feature is only centred
    np.testing.assert_allclose(
        network.normalise(x).numpy(), (x.numpy() - np.array(NUMERIC["mean"])) / std, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "model",
    [
        ResNetConfig(width=4, blocks=2),
        ResNetConfig(width=8, block="bottleneck", norm="group", stem="large"),
        CNNConfig(channels=[8, 8, 8]),
    ],
)
@pytest.mark.parametrize("side", [1, 8, 13, 32])
def test_any_image_size_does(side: int, model: Any) -> None:
    info = {**IMAGE, "input_shape": [side, side, 3]}
    network = build(model, info)
    assert network(raw_inputs(info, 4)).logits.shape == (4, 5)


def test_a_cnn_by_hand() -> None:
    torch.manual_seed(0)
    network = build(CNNConfig(channels=[6, 7, 8], dropout=0.5), IMAGE).eval()
    body: Any = network.body
    inputs = raw_inputs(IMAGE)
    x = network.normalise(inputs).permute(0, 3, 1, 2)
    sizes = []
    for i, (convolution, norm) in enumerate(zip(body.convolutions, body.norms, strict=True)):
        with torch.no_grad():
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        x = nn.functional.conv2d(x, convolution.weight, padding=1)
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        x = ((x - mean) / (var + 1e-5).sqrt()).relu()
        x = nn.MaxPool2d(2, ceil_mode=True)(x) if i < 2 else x
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(6, 4, 5), (7, 2, 3), (8, 2, 3)], "a side of 5 becomes 3, the last layer is not pooled"
    assert network.head is not None
    by_hand = x.mean((2, 3)) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(inputs).logits, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        BagConfig(hidden=[4]),
        BagConfig(piece_weights=True),
        TextCNNConfig(embedding=6, filters=5, widths=[1, 2, 5]),
        BiLSTMConfig(embedding=6, hidden=5, layers=2),
    ],
)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    padding=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_padding_changes_nothing(model: Any, lengths: list[int], padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = build(model, TEXT).eval()
    tokens = torch.randint(1, 50, (len(lengths), 6))
    tokens[torch.arange(6) >= torch.tensor(lengths)[:, None]] = 0
    padded = torch.nn.functional.pad(tokens, (0, padding))
    logits = network(tokens).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits, network(padded).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, network(padded.int()).logits, rtol=1e-5, atol=1e-6)
    for row, length in enumerate(lengths):  # a text alone, without any padding
        alone = network(tokens[row : row + 1, : max(length, 1)]).logits
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model", [BagConfig(piece_weights=True), TextCNNConfig(), BiLSTMConfig(embedding=6, hidden=5)]
)
def test_texts_without_tokens_have_finite_gradients(model: Any) -> None:
    network = build(model, TEXT)
    network(torch.zeros(2, 3, dtype=torch.int32)).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_wrong_kind_is_told() -> None:
    with pytest.raises(ConfigError, match="'resnet' takes image inputs, the data is text"):
        build(ResNetConfig(), TEXT)


CUSTOM = """
import torch
from torch import nn
from ensemble_kd.models.outputs import Outputs

class Net(nn.Module):
    def __init__(self, num_classes, input_shape, extra=0):
        super().__init__()
        self.inner = nn.Linear(input_shape[0], 8)
        self.out = nn.Linear(8, num_classes + extra)
    def forward(self, x, hidden=False):
        inner = self.inner(x)
        return Outputs(self.out(inner), {"inner": inner} if hidden else None)

def plain(num_classes, input_shape):
    return nn.Linear(input_shape[0], num_classes)

def not_module(num_classes, input_shape):
    return 3

def raising(num_classes, input_shape):
    raise RuntimeError("no luck")

number = 3
"""


@pytest.fixture
def custom_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_nets.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_nets", None)


def custom(name: str, **options: Any) -> Network:
    return build(CustomModelConfig(name="custom", callable=name, options=options), NUMERIC)


def test_custom_models(custom_module: None) -> None:
    network = custom("my_nets:Net")
    outputs = network(raw_inputs(NUMERIC), hidden=True)
    assert isinstance(outputs, Outputs) and outputs.hidden is not None and set(outputs.hidden) == {"inner"}
    assert network.head is network.body.module.out  # type: ignore[union-attr]
    assert network(raw_inputs(NUMERIC)).hidden is None
    assert network.training
    plain = custom("my_nets:plain")
    assert isinstance(plain.head, nn.Linear)
    assert plain(raw_inputs(NUMERIC), hidden=True).logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module_here:Net", {}, "cannot be imported"),
        ("my_nets:absent", {}, "has no attribute 'absent'"),
        ("my_nets:number", {}, "is int, not callable"),
        ("my_nets:not_module", {}, "returned int, not a torch.nn.Module"),
        ("my_nets:raising", {}, "raised RuntimeError: no luck"),
        ("my_nets:Net", {"nope": 1}, "raised TypeError"),
        ("my_nets:Net", {"extra": 2}, r"logits of shape \(2, 3\) for two examples, got shape \(2, 5\)"),
    ],
)
def test_custom_model_problems_are_told(
    custom_module: None, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        custom(name, **options)
