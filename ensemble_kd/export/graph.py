"""What is exported: a network as plain tensors in, logits out, in operators that every format knows."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ensemble_kd.errors import ExportError
from ensemble_kd.inference.feed import feed, input_names
from ensemble_kd.models.build import Network
from ensemble_kd.models.text import Bag, BiLSTM, shares


class Graph(nn.Module):
    """A copy of a network, with logits (B, C) / `temperature` as its one output.

    Inputs by kind, as `inference.feed` makes them: `pixels` (B, H, W, C) uint8, `numbers` (B, F) float32,
    `input_ids` and `attention_mask` (B, L) int64 of a pretrained tokenizer, or `tokens` (B, L) int64.
    """

    def __init__(
        self, network: Network, info: dict[str, Any], temperature: float = 1.0, onnx: bool = True
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.network.body = portable(self.network.body, onnx)
        self.temperature = temperature
        self.masked = "attention_mask" in input_names(info)

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if attention_mask is not None:
            inputs = (inputs + 1) * attention_mask  # numbers of tokens start at 1 here, 0 is padding
        logits: Tensor = self.network(inputs).logits
        return logits if self.temperature == 1.0 else logits / self.temperature


def portable(body: nn.Module, onnx: bool) -> nn.Module:
    """The same function without operators that exporters do not know."""
    if isinstance(body, Bag):
        return PortableBag(body)
    if isinstance(body, BiLSTM):
        return OnnxBiLSTM(body) if onnx else UnrolledBiLSTM(body)
    return body


class PortableBag(nn.Module):
    """A Bag whose mean is written out; ONNX has no bag of embeddings with padding."""

    def __init__(self, bag: Bag) -> None:
        super().__init__()
        self.weight, self.piece_weight, self.mlp = bag.embedding.weight, bag.piece_weight, bag.mlp

    def forward(self, tokens: Tensor, hidden: bool = False) -> Any:
        share = shares(tokens, self.piece_weight).unsqueeze(-1)  # (B, L, 1)
        return self.mlp((nn.functional.embedding(tokens, self.weight) * share).sum(1))


class OnnxBiLSTM(nn.Module):
    """A BiLSTM as the LSTM operator of ONNX, which takes the length of each text. Only for the exporter."""

    def __init__(self, model: BiLSTM) -> None:
        super().__init__()
        self.embedding, self.mlp, self.size = model.embedding, model.mlp, model.lstm.hidden_size
        self.weights = nn.ParameterList()  # three a layer: (2, 4H, D), (2, 4H, H), (2, 8H)
        for layer in range(model.lstm.num_layers):
            ends = (f"_l{layer}", f"_l{layer}_reverse")
            get = [lambda name, end=end: _reordered(getattr(model.lstm, name + end)) for end in ends]
            for names in (("weight_ih",), ("weight_hh",), ("bias_ih", "bias_hh")):
                both = torch.stack([torch.cat([half(name) for name in names]) for half in get])
                self.weights.append(nn.Parameter(both, requires_grad=False))

    def forward(self, tokens: Tensor, hidden: bool = False) -> Any:
        batch, length = tokens.shape
        inside, lengths = _inside(tokens)
        states = self.embedding(tokens).transpose(0, 1)  # (L, B, E)
        for layer in range(0, len(self.weights), 3):
            states = torch.onnx.ops.symbolic(
                "LSTM",
                (states, *self.weights[layer : layer + 3], lengths[:, 0].to(torch.int32)),
                {"direction": "bidirectional", "hidden_size": self.size},
                dtype=states.dtype,
                shape=(length, 2, batch, self.size),
            )
            states = states.transpose(1, 2).reshape(length, batch, 2 * self.size)
        outside = ~inside.transpose(0, 1).unsqueeze(-1)
        return self.mlp(states.masked_fill(outside, float("-inf")).amax(0))


def _reordered(weight: Tensor) -> Tensor:
    """From torch's order of gates (input, forget, cell, output) to ONNX's (input, output, forget, cell)."""
    i, f, g, o = weight.detach().chunk(4)
    return torch.cat([i, o, f, g])


def _inside(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions of (B, L) belong to the text, and the lengths (B, 1); an empty text has one."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    lengths = ((tokens != 0) * (positions + 1)).amax(1, keepdim=True).clamp(min=1)
    return positions < lengths, lengths


class UnrolledBiLSTM(nn.Module):
    """A BiLSTM without packed sequences: the backward half reads each text turned round inside its length.

    torch.export unrolls it, so that the number of positions is fixed.
    """

    def __init__(self, model: BiLSTM) -> None:
        super().__init__()
        self.embedding, self.mlp = model.embedding, model.mlp
        self.halves = nn.ModuleList()
        for layer in range(model.lstm.num_layers):
            for suffix in ("", "_reverse"):
                weights = {
                    f"{name}_l0": getattr(model.lstm, f"{name}_l{layer}{suffix}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                half = nn.LSTM(weights["weight_ih_l0"].shape[1], model.lstm.hidden_size, batch_first=True)
                half.load_state_dict(weights)
                self.halves.append(half)

    def forward(self, tokens: Tensor, hidden: bool = False) -> Any:
        states = self.embedding(tokens)  # (B, L, E)
        inside, lengths = _inside(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        turned = torch.where(inside, lengths - 1 - positions, positions).unsqueeze(-1)  # (B, L, 1)
        for forward, backward in zip(self.halves[::2], self.halves[1::2], strict=True):
            left = forward(states)[0]
            right = backward(states.gather(1, turned.expand(-1, -1, states.shape[2])))[0]
            right = right.gather(1, turned.expand(-1, -1, right.shape[2]))
            states = torch.cat([left, right], 2)
        return self.mlp(states.masked_fill(~inside.unsqueeze(-1), float("-inf")).amax(1))


def fixed_length(graph: Graph) -> bool:
    """Whether the graph takes only texts of one length: the longest that the model reads."""
    return isinstance(graph.network.body, UnrolledBiLSTM)


def example(info: dict[str, Any], longest: bool = False) -> tuple[Tensor, ...]:
    """Made-up inputs of a graph: two rows, texts of a few tokens, or of as many as there may be."""
    shape = list(info["input_shape"])
    if info["kind"] == "text" and not longest:
        shape = [max(2, min(7, shape[0]))]
    kind = {"image": np.uint8, "numeric": np.float32, "text": np.int32}[info["kind"]]
    inputs = np.ones((2, *shape), kind)
    return tuple(torch.from_numpy(array) for array in feed(info, inputs).values())


def dynamic_shapes(info: dict[str, Any], longest: bool = False) -> tuple[dict[int, Any], ...]:
    """Which sizes of the graph's inputs may vary: the rows, and the tokens up to the longest text."""
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if info["kind"] == "text" and not longest and info["input_shape"][0] > 2:
        sizes[1] = torch.export.Dim("length", min=1, max=info["input_shape"][0])
    return tuple(sizes for _ in input_names(info))


def exported(graph: Graph, info: dict[str, Any]) -> torch.export.ExportedProgram:
    """The graph as torch.export has it. Raises ExportError where an operator stands in the way."""
    longest = fixed_length(graph)
    shapes = dynamic_shapes(info, longest)
    try:
        with quiet():
            return torch.export.export(
                graph.eval(), example(info, longest), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # the exporter raises errors of many kinds, about the user's code too
        raise ExportError(f"torch.export cannot follow this model: {first_words(error)}") from error


def first_words(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings about itself."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
