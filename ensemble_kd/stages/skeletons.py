"""Networks without memory for their weights, and outputs of their shapes, to see what fits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from pydantic import TypeAdapter

from ensemble_kd.config import ModelConfig, TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build, made_up_inputs
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.transformer import Transformer, no_scores
from ensemble_kd.models.trees import Trees


def skeleton(settings: dict[str, Any], info: dict[str, Any], path: str, masked_lm: bool = False) -> Network:
    """A network, without memory for its weights where it is a text transformer.

    Raises ConfigError, with the field's path.
    """
    model: Any = TypeAdapter(ModelConfig).validate_python(settings)
    large = isinstance(model, TransformerConfig) and info["kind"] == "text"
    try:
        with torch.device("meta") if large else nullcontext():
            return build(model, info, masked_lm=masked_lm)
    except ConfigError as error:
        raise ConfigError([f"{path}.{line}" for line in error.problems]) from error


@torch.no_grad()
def sample_outputs(network: Network, info: dict[str, Any], wants: dict[str, bool]) -> Outputs:
    """Outputs of the shapes that a network returns; of a text transformer without running it."""
    body = network.body
    if wants.get("hidden") and isinstance(body, Trees):
        raise ConfigError(
            "student.terms: a loss reads a teacher's hidden states, and a teacher is of trees, which have "
            "none; use losses on logits, or leave the trees out"
        )
    if not isinstance(body, Transformer) or body.kind != "text":
        if wants.get("attention") and not isinstance(body, Transformer):
            raise ConfigError(f"a model of type {type(body).__name__} has no attention; use a transformer")
        return network.eval()(made_up_inputs(info["kind"], info["input_shape"]), **wants)
    config = body.model.config
    if wants.get("attention") and not body.has_scores:
        raise ConfigError(no_scores(config.model_type))
    names = ["embedding", *(f"layer_{i + 1}" for i in range(config.num_hidden_layers))]
    heads = tuple(torch.zeros(2, config.num_attention_heads, 8, 8) for _ in names[1:])
    return Outputs(
        torch.zeros(2, info["num_classes"]),
        {name: torch.zeros(2, 8, config.hidden_size) for name in names} if wants.get("hidden") else None,
        heads if wants.get("attention") else None,
        torch.ones(2, 8, dtype=torch.bool),
    )
