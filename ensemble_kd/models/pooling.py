"""Classifiers that read the mean or the maximum of all tokens' states (arXiv 1908.10084), and what a source
says of how its states are to be read.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensemble_kd.config import TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.transformer_config import pretrained_config
from ensemble_kd.pretrained import resolve_source, source_file

MODULES = "modules.json"
"""In a folder of the sentence-transformers library: its modules in order."""
Pooling = Literal["auto", "mean", "max"]
LIBRARY: Pooling = "auto"
"""What a resolved model's `pooling` says where the classifier is the transformers library's own."""
MODES = ("cls", "mean", "max")
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
"""Fields of a pooling's config.json that older versions of sentence-transformers write."""
NOT_BY_TOKEN = ("funnel", "perceiver", "reformer")
"""Types of transformers whose last states are not one for each token, of the model's width."""
DROPOUTS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "hidden_dropout_prob",
    "dropout",
)
"""Where configurations keep the probability of dropping what the classifier reads; the first that is set."""


def pool(states: Tensor, present: Tensor, how: str) -> Tensor:
    """Mean or maximum of states (B, L, D) over the positions that are `present` (B, L) -> (B, D).

    A text without tokens gives zeros.
    """
    inside = present.unsqueeze(-1).to(torch.bool)  # (B, L, 1)
    if how == "mean":
        return states.masked_fill(~inside, 0).sum(1) / inside.sum(1).clamp(min=1)
    highest = states.masked_fill(~inside, float("-inf")).amax(1)
    return highest.masked_fill(~inside.any(1), 0)


@dataclass
class Answer:
    """The fields of a transformers classifier's output that are read here."""

    logits: Tensor
    hidden_states: Any
    attentions: Any


class Pooled(nn.Module):
    """An encoder, `pool`, dropout and one linear layer: what a transformers classifier looks like to us.

    There is no layer in between, which would have to be learned from nothing: the states of a sentence
    encoder were trained to be read so.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, pooling: str, num_outputs: int) -> None:
        super().__init__()
        self.encoder, self.pooling, self.config = encoder, pooling, encoder.config
        rates = (getattr(self.config, name, None) for name in DROPOUTS)
        self.dropout = nn.Dropout(next((rate for rate in rates if isinstance(rate, int | float)), 0.0))
        self.classifier = nn.Linear(self.config.hidden_size, num_outputs)
        nn.init.normal_(self.classifier.weight, std=getattr(self.config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    @property
    def base_model(self) -> Any:
        return self.encoder

    def get_input_embeddings(self) -> Any:
        return self.encoder.get_input_embeddings()

    def set_attn_implementation(self, implementation: str) -> None:
        self.encoder.set_attn_implementation(implementation)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Answer:
        """(B, L) numbers of tokens and which of them are some -> logits (B, C)."""
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        pooled = pool(found.last_hidden_state, attention_mask, self.pooling)
        logits = self.classifier(self.dropout(pooled))
        states, scores = (getattr(found, name, None) for name in ("hidden_states", "attentions"))
        return Answer(logits, states, scores)


def pooled(classifier: Any, pooling: str, num_outputs: int) -> Pooled:
    """The encoder of a transformers classifier under a new linear layer; its pooler, if any, is gone.

    Raises ConfigError for a model without states to pool.
    """
    encoder, kind = classifier.base_model, classifier.config.model_type
    if encoder is classifier or kind in NOT_BY_TOKEN:
        raise ConfigError(
            f"pooling: {pooling!r}, but a {kind!r} shows no state for each token; set pooling: cls, the "
            "library's own classifier"
        )
    if getattr(encoder, "pooler", None) is not None:
        # Where the library can leave it out by itself, its forward looks for None.
        optional = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
        encoder.pooler = None if optional else nn.Identity()
    return Pooled(encoder, pooling, num_outputs)


def resolved_pooling(model: TransformerConfig, said: str | None) -> Pooling:
    """`mean`, `max` or `LIBRARY` for what a model asks for; `said` is what it starts from says, if anything.

    Raises ConfigError for a pooler that would have no place.
    """
    wanted = model.pooling if model.pooling != "auto" else said
    if wanted not in ("mean", "max"):
        return LIBRARY
    if model.pooler == "fresh":
        raise ConfigError(
            f"pooler: 'fresh', but with pooling {wanted} there is no pooler; leave it out, or set pooling: "
            "cls"
        )
    return "mean" if wanted == "mean" else "max"


def said_by(source: str, config: Any) -> str | None:
    """How a source of sentence-transformers' layout pools its states: `cls`, `mean` or `max`.

    None for a source of another layout; for one that pools otherwise: by weights, by the last token, by
    several ways at once; and for a trained classifier, as the transformers `config` has it, which goes on
    reading what it was trained on. Raises ConfigError for files that cannot be read.
    """
    if any(str(name).endswith("ForSequenceClassification") for name in config.architectures or []):
        return None
    path = source_file(source, MODULES)
    modules = _json(path) if path is not None else None
    for module in modules if isinstance(modules, list) else []:
        if not isinstance(module, dict) or not str(module.get("type")).endswith("Pooling"):
            continue
        path = source_file(source, f"{module.get('path')}/config.json")
        said = _json(path) if path is not None else None
        return _mode(said) if isinstance(said, dict) else None
    return None


def source_pooling(model: Any) -> Pooling:
    """What the source says, of a model whose pooling is left to it; `LIBRARY` of all others."""
    if getattr(model, "source", None) is None or model.pooling != "auto":
        return LIBRARY
    source = resolve_source(model.source)
    return resolved_pooling(model, said_by(source, pretrained_config(source, model.trust_remote_code)))


def _mode(said: dict[str, Any]) -> str | None:
    mode: Any = said.get("pooling_mode")
    if mode is None:
        on = [name for name, value in said.items() if name.startswith("pooling_mode_") and value]
        mode = [OLD_MODES.get(name) for name in on]
    if isinstance(mode, list):
        mode = mode[0] if len(mode) == 1 else None
    return mode if mode in MODES else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"source: {path} is not readable as JSON ({error}); fetch it again, or set pooling"
        ) from error
