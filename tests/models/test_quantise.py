"""Quantisation-aware training against the formula, and integers that survive the way out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import TypeAdapter
from torch import Tensor, nn

from ensemble_kd.config import ModelConfig
from ensemble_kd.errors import ConfigError, ExportError
from ensemble_kd.export.huggingface import write_huggingface
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.package import load_package, save_package
from ensemble_kd.models.quantise import (
    THRESHOLD,
    Quantiser,
    description,
    fake_quantise,
    harden_,
    largest,
    layers,
    plain_,
    quantise_,
    quantised_weights,
    step_of,
)

LENGTH, CLASSES = 6, 3
TEXT: dict[str, Any] = {
    "kind": "text",
    "input_shape": [LENGTH],
    "num_classes": CLASSES,
    "vocabulary_size": 20,
    "preprocess": {"special": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}},
}
WHOLE = {
    **TEXT,
    "class_names": ["a", "b", "c"],
    "mean": [],
    "std": [],
    "counts": {},
    "preprocess": {**TEXT["preprocess"], "columns": {"input": "text"}, "text": {"tokenizer": "subword"}},
}
"""As a model folder describes its data."""
NUMBERS = {**TEXT, "kind": "numeric", "mean": [0.0] * LENGTH, "std": [1.0] * LENGTH}
IMAGES = {**TEXT, "kind": "image", "input_shape": [8, 8, 1], "mean": [0.5], "std": [0.2]}
BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 19,
    "max_position_embeddings": LENGTH,
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # name: settings, data, number of quantised layers
    "mlp": ({"name": "mlp", "hidden": [16, 8]}, NUMBERS, 3),
    "cnn": ({"name": "cnn", "channels": [8, 8]}, IMAGES, 3),
    "resnet": ({"name": "resnet", "width": 4}, IMAGES, 10),
    "bag": ({"name": "bag", "embedding": 8, "hidden": [8]}, TEXT, 3),
    "bilstm": ({"name": "bilstm", "embedding": 8, "hidden": 6, "classifier_hidden": 8}, TEXT, 3),
    "transformer": ({"name": "transformer", "architecture": BERT}, TEXT, 11),
}
EVERY = pytest.mark.parametrize("name", list(MODELS))


def network(name: str = "mlp") -> Network:
    torch.manual_seed(0)
    model: Any = TypeAdapter(ModelConfig).validate_python(MODELS[name][0])
    return build(model, MODELS[name][1])


def inputs(name: str = "mlp", rows: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    info = MODELS[name][1]
    shape = (rows, *info["input_shape"])
    if info["kind"] == "numeric":
        return torch.randn(shape, generator=generator)
    if info["kind"] == "image":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 20, shape, generator=generator, dtype=torch.int32)
    tokens[::2, LENGTH - 2 :] = 0  # every other text ends earlier
    return tokens


def trained(name: str = "mlp", steps: int = 4, **changes: Any) -> Network:
    """A few steps of a quantised network towards made-up labels."""
    made = network(name)
    quantise_(made, Quantiser(**{"ema_decay": 0.5, **changes}))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    x = inputs(name)
    labels = torch.arange(len(x)) % CLASSES
    made.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(made(x).logits, labels).backward()
        optimizer.step()
    return made


# -------------------------------------------------------------------------------------------- formula


@pytest.mark.parametrize(("bits", "limit"), [(2, 1), (4, 7), (8, 127)])
def test_closed_form(bits: int, limit: int) -> None:
    assert largest(bits) == limit
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    threshold = 0.8 * np.abs(x).max()
    scale = limit / threshold  # as the paper writes it: Q = clamp(round(x * scale)), xhat = Q / scale
    expected = np.clip(np.round(x * scale), -limit, limit) / scale
    found = fake_quantise(torch.from_numpy(x), torch.tensor(threshold), bits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2**-15)
    inside = np.abs(x) <= threshold
    assert np.abs(found.numpy() - x)[inside].max() <= 0.5001 * threshold / limit
    assert fake_quantise(torch.zeros(3), torch.tensor(1.0), bits).tolist() == [0, 0, 0]


def test_the_gradient_passes_where_it_is_clamped_too() -> None:
    x = torch.tensor([-9.0, -0.3, 0.0, 0.2, 5.0], requires_grad=True)
    found = fake_quantise(x, torch.tensor(1.0))
    assert found.detach().abs().max() <= 1
    (found * torch.tensor([1.0, 2, 3, 4, 5])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 2, 3, 4, 5]


def test_nothing_seen_leaves_values_alone() -> None:
    x = torch.randn(4)
    assert torch.equal(fake_quantise(x, torch.tensor(0.0)), x)


def test_bfloat16_is_rounded_once() -> None:
    x = torch.linspace(-1, 1, 999).to(torch.bfloat16)
    found = fake_quantise(x, torch.tensor(1.0))
    assert found.dtype == torch.bfloat16
    exact = fake_quantise(x.float(), torch.tensor(1.0))
    assert torch.equal(found, exact.to(torch.bfloat16))


NORMAL = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)


@settings(deadline=None, max_examples=60)
@given(
    x=arrays(np.float32, array_shapes(max_dims=4, max_side=5), elements=NORMAL),
    bits=st.integers(2, 8),
    part=st.floats(0.1, 2),
)
def test_twice_is_once_and_the_step_can_be_read_off(x: np.ndarray, bits: int, part: float) -> None:
    tensor = torch.from_numpy(x.copy())
    for threshold in (tensor.abs().amax(), tensor.abs().amax() * part):
        once = fake_quantise(tensor, threshold, bits)
        assert once.shape == tensor.shape
        assert torch.equal(fake_quantise(once, threshold, bits), once)
    once = fake_quantise(tensor, tensor.abs().amax(), bits)
    assert torch.equal(fake_quantise(once, once.abs().amax(), bits), once)
    # Whoever quantises symmetrically per tensor by max|W| finds the step itself.
    step = step_of(tensor.abs().amax(), bits)
    assert float(once.abs().amax()) / largest(bits) == float(step)


# --------------------------------------------------------------------------------------------- layers


@EVERY
def test_names_and_shapes_stay(name: str) -> None:
    before = network(name).state_dict()
    made = network(name)
    heads = made.head
    quantise_(made, Quantiser())
    after = made.state_dict()
    assert len(list(layers(made))) == MODELS[name][2] and made.head is heads
    assert all(torch.equal(after[key], value) for key, value in before.items())
    more = after.keys() - before.keys()
    assert more and all(key.endswith(THRESHOLD) and after[key].shape == () for key in more)
    assert made.num_parameters == network(name).num_parameters
    quantise_(weights_only := network(name), Quantiser(activations=False))
    assert weights_only.state_dict().keys() == before.keys()


def test_thresholds_by_hand() -> None:
    made = network()
    quantise_(made, Quantiser(ema_decay=0.9))
    made.train()
    x = inputs()
    by_hand = 0.0
    for factor in (1.0, 3.0, 0.5):
        made(factor * x)
        seen = float((factor * x).abs().max())
        by_hand = 0.9 * by_hand + 0.1 * seen if by_hand else seen
    layer: Any = made.get_submodule("body.layers.0")
    assert float(layer.input_threshold) == pytest.approx(by_hand, rel=1e-6)
    made.eval()
    made(100 * x)
    assert float(layer.input_threshold) == pytest.approx(by_hand, rel=1e-6)  # evaluation moves nothing


def test_a_linear_layer_computes_with_rounded_weights_and_inputs() -> None:
    made = network()
    quantise_(made, Quantiser())
    layer: Any = made.get_submodule("body.head")
    x = torch.randn(5, 8)
    found = layer(x)
    w = layer.weight.detach()
    exact = fake_quantise(x, x.abs().max()) @ fake_quantise(w, w.abs().max()).T + layer.bias
    torch.testing.assert_close(found, exact)
    found.sum().backward()
    expected = fake_quantise(x, x.abs().max()).sum(0).expand(CLASSES, -1)  # straight through to the weights
    torch.testing.assert_close(layer.weight.grad, expected)


def test_before_its_start_training_is_in_float_and_evaluation_is_not() -> None:
    made, plain = network(), network()
    quantise_(made, Quantiser(start_fraction=0.5))
    x = inputs()
    made.quantiser.at(0.4)
    made.train()
    assert torch.equal(made(x).logits, plain(x).logits)
    made(2 * x)
    layer: Any = made.get_submodule("body.layers.0")
    assert float(layer.input_threshold) == float((2 * x).abs().max())  # that of the last batch
    judged = made.eval()(x).logits
    assert not torch.equal(judged, plain.eval()(x).logits)
    made.quantiser.at(0.5)
    made.train()
    made(x)
    assert float(layer.input_threshold) == pytest.approx(
        0.9999 * float((2 * x).abs().max()) + 0.0001 * float(x.abs().max()), rel=1e-6
    )


def test_only_layers_of_known_types() -> None:
    class Own(nn.Linear):
        pass

    made = network()
    made.body = nn.Sequential(Own(2, 2), nn.MultiheadAttention(4, 2), nn.Embedding(3, 2, max_norm=1.0))
    with pytest.raises(ConfigError, match="student.quantization: the model has no torch.nn.Linear"):
        quantise_(made, Quantiser())


def test_a_copy_has_a_quantiser_of_its_own() -> None:
    made = trained()
    other = copy.deepcopy(made)
    other.quantiser.at(-1.0)
    layer: Any = other.get_submodule("body.head")
    assert layer.quantiser is other.quantiser and other.quantiser is not made.quantiser
    assert made.quantiser.started and not other.quantiser.started


# -------------------------------------------------------------------------------- every kind of model


@EVERY
@pytest.mark.parametrize("activations", [True, False])
def test_integers_survive_the_way_out(name: str, activations: bool) -> None:
    made = trained(name, activations=activations).eval()
    assert all(torch.isfinite(p).all() for p in made.parameters())
    x = inputs(name)
    before, integers = made(x).logits, quantised_weights(made)
    harden_(made)
    # What it computed with all along is what it now holds: the same bits.
    assert torch.equal(made(x).logits, before)
    parameters = dict(made.named_parameters())
    assert len(integers) == MODELS[name][2]
    again = quantised_weights(made)
    for key, (numbers, step) in integers.items():
        weight = parameters[key].detach()
        assert numbers.dtype == torch.int8 and int(numbers.abs().max()) == 127
        assert torch.equal(weight, numbers.float() * step)
        assert torch.equal(again[key][0], numbers) and again[key][1] == step
        # Somebody else's symmetric quantisation per tensor, in numpy and float64.
        scale = np.abs(weight.double().numpy()).max() / 127
        assert scale == step
        assert np.array_equal(np.round(weight.double().numpy() / scale).astype(np.int8), numbers.numpy())
    state = {key: value.clone() for key, value in made.state_dict().items()}
    harden_(made)
    assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())


@EVERY
def test_the_quantisation_comes_off(name: str) -> None:
    made, plain = trained(name), network(name)
    harden_(made)
    described = plain_(made)
    assert described is not None and described["thresholds"]
    assert made.quantiser is None and description(made) is None
    assert [type(m) for m in made.modules()] == [type(m) for m in plain.modules()]
    plain.load_state_dict(made.state_dict())
    assert torch.equal(made.eval()(inputs(name)).logits, plain.eval()(inputs(name)).logits)


@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_a_hardened_network_exports_as_arithmetic(name: str) -> None:
    made = trained(name).eval()
    harden_(made)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = made

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x).logits

    x = inputs(name)
    with torch.no_grad():
        program = torch.export.export(Logits().eval(), (x,))
        assert torch.equal(program.module()(x), made(x).logits)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("aten.round" in target for target in called)
    assert "aten.view.dtype" not in called  # ONNX has no view of bits


def test_padding_rows_stay_zero() -> None:
    made = trained("bag")
    harden_(made)
    assert not made.get_parameter("body.embedding.weight")[0].any()


@pytest.mark.parametrize("activations", [True, False])
def test_a_model_folder_holds_thresholds_and_exact_weights(tmp_path: Path, activations: bool) -> None:
    made = trained("bag", activations=activations).eval()
    harden_(made)
    save_package(tmp_path / "model", made, MODELS["bag"][0], WHOLE, "# card\n", None, lineage={})
    package = load_package(tmp_path / "model")
    assert torch.equal(package.network(inputs("bag")).logits, made(inputs("bag")).logits)
    assert package.quantization == description(made) == description(package.network)
    assert package.quantization is not None and package.quantization["bits"] == 8
    thresholds = package.quantization["thresholds"]
    assert sorted(thresholds) == (["body.mlp.head", "body.mlp.layers.0"] if activations else [])
    for name, threshold in thresholds.items():  # in JSON and back, threshold / 127 is the step
        layer: Any = made.get_submodule(name)
        assert threshold / 127 == float(step_of(layer.input_threshold, 8))


def test_transformers_alone_cannot_round_inputs(tmp_path: Path) -> None:
    made = trained("transformer")
    harden_(made)
    with pytest.raises(ExportError, match="huggingface: this student rounds the inputs of its layers"):
        write_huggingface(made, TEXT, None, 1.0, tmp_path)
