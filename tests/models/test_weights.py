"""Weights on disk, and the bound on their norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ensemble_kd.config import BagConfig, BiLSTMConfig, MLPConfig, ResNetConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import build
from ensemble_kd.models.weights import load_weights, max_norm_, save_weights

IMAGE = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 4, "mean": [0.3], "std": [0.2]}
TEXT = {"kind": "text", "input_shape": [5], "num_classes": 4, "mean": [], "std": [], "vocabulary_size": 30}


@pytest.mark.parametrize(
    ("model", "info"),
    [
        (MLPConfig(hidden=[6]), IMAGE),
        (ResNetConfig(width=2), IMAGE),
        (BagConfig(embedding=3), TEXT),
        (BiLSTMConfig(embedding=3, hidden=2), TEXT),
    ],
)
def test_round_trip_gives_the_same_bits(tmp_path: Path, model: Any, info: dict[str, Any]) -> None:
    first, second = build(model, info), build(model, {**info, "mean": [0.0] * len(info["mean"])})
    save_weights(first, tmp_path / "weights.safetensors")
    load_weights(second, tmp_path / "weights.safetensors")
    for name, tensor in first.state_dict().items():  # normalisation included
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    network, path = build(MLPConfig(), IMAGE), tmp_path / "weights.safetensors"
    save_weights(network, path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-100], "garbage": b"x" * 500, "empty": b""}[damage])
    with pytest.raises(ArtifactError, match="weights.safetensors"):
        load_weights(network, path)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(build(MLPConfig(hidden=[6]), IMAGE), path)
    other = build(MLPConfig(hidden=[7, 6]), IMAGE)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        load_weights(other, path)
    assert "body.layers.1.weight is missing" in str(caught.value)
    assert "body.layers.0.weight has shape (6, 64), the model wants (7, 64)" in str(caught.value)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in before.items())
    with pytest.raises(ArtifactError, match="body.layers.1.weight is unknown"):
        save_weights(other, path)
        load_weights(build(MLPConfig(hidden=[6]), IMAGE), path)


def test_max_norm_bounds_hidden_units_only() -> None:
    network = build(MLPConfig(hidden=[6, 5]), IMAGE)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=3)
        layers[0].weight[0] = 0.01
        layers[0].weight[1] = 0.0
    before = [(layer.weight.clone(), layer.bias.clone()) for layer in layers]
    max_norm_(network, 1.5)
    for layer, (weight, bias) in zip(layers[:-1], before[:-1], strict=True):
        norms = weight.norm(dim=1, keepdim=True)
        expected = torch.where(norms > 1.5, weight * 1.5 / norms, weight)
        torch.testing.assert_close(layer.weight.detach(), expected)
        assert torch.equal(layer.bias, bias)
    assert torch.equal(layers[0].weight[:2], before[0][0][:2])  # small and zero rows to the bit
    assert torch.equal(layers[-1].weight, before[-1][0])
    assert layers[0].weight.requires_grad and layers[0].weight.grad is None


def test_max_norm_leaves_embeddings_alone() -> None:
    network = build(BagConfig(embedding=3, hidden=[4]), TEXT)
    before = network.body.embedding.weight.clone()  # type: ignore[union-attr, operator]
    max_norm_(network, 0.01)
    assert torch.equal(network.body.embedding.weight, before)  # type: ignore[union-attr, arg-type]
    assert network.body.mlp.layers[0].weight.norm(dim=1).max() <= 0.01001  # type: ignore[union-attr, index]
