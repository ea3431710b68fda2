"""Models of the transformers library as bodies of a Network: text and image classifiers, masked language
models.

Token numbers are shifted by one, 0 being padding, as everywhere here; token types of pairs follow from the
separator. The attention that can hand out its scores is used in those forward passes that ask for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from ensemble_kd.config import TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.pooling import LIBRARY, Pooled, pooled
from ensemble_kd.models.transformer_config import config_of, in_one_line, with_dropout

SCORES = "ensemble_kd_scores"
"""Name under which transformers knows `_attend`."""


class Transformer(nn.Module):
    """A transformers model as (B, L) tokens or (B, H, W, C) pixels -> Outputs.

    Hidden states: `embedding` and `layer_1`, ..., (B, L, D) each, or (B, C, H, W) of a convolutional one.
    Deviation: positions hold what the model gives there, padding included; `Outputs.mask` says which are.
    """

    def __init__(
        self, model: Any, kind: str, num_outputs: int, masked_lm: bool, separator: int | None
    ) -> None:
        super().__init__()
        _register()
        self.model, self.kind, self.masked_lm, self.separator = model, kind, masked_lm, separator
        self.pieces: list[int] | None = None
        self.register_buffer("piece_map", None)
        taking = model.encoder if isinstance(model, Pooled) else model
        self._takes_types = "token_type_ids" in inspect.signature(taking.forward).parameters
        self._takes_types &= (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        heads = [] if masked_lm else [name for name, m in model.named_modules() if _is_head(m, num_outputs)]
        self._head_name = heads[-1] if heads else None
        self._plain = model.config._attn_implementation

    @property
    def sequential(self) -> bool:
        """Whether it costs as much as the texts are long: worth sorting them by length."""
        return self.kind == "text"

    piece_map: Tensor | None
    """(V,) int64: number of each word piece among those kept; None where all are."""

    drawn: Collection[str] = ()
    """Names of the tensors that the source did not have, where the weights are a source's."""

    first_position: int | None = None
    """Number of the first token's position, where the model would take it from padding's new number."""

    def keep_pieces(
        self, pieces: list[int], vocabulary_size: int, unknown: int, first_position: int | None = None
    ) -> None:
        """From now on take tokens of the whole vocabulary, those that are not in `pieces` as `unknown`."""
        self.pieces, self.first_position = pieces, first_position
        self.register_buffer("piece_map", piece_map(pieces, vocabulary_size, unknown))

    @property
    def head(self) -> nn.Linear | None:
        """The linear layer over the classes."""
        return None if self._head_name is None else self.model.get_submodule(self._head_name)

    @property
    def has_head(self) -> bool:
        """Of a source's weights: whether the source had the linear layer over the classes."""
        return self._head_name is not None and f"{self._head_name}.weight" not in self.drawn

    @property
    def pooling(self) -> str:
        """`mean` or `max` of the tokens' states, or `LIBRARY`: the transformers library's own classifier."""
        return self.model.pooling if isinstance(self.model, Pooled) else LIBRARY

    @property
    def encoder(self) -> nn.Module:
        """The model without what sits on top of it."""
        encoder: nn.Module = self.model.base_model
        return encoder

    def forward(
        self, x: Tensor, hidden: bool = False, attention: bool = False, masked: Tensor | None = None
    ) -> Outputs:
        """With `masked` (B, L) the logits of a masked language model at those positions, (P, V)."""
        self._attend_by(SCORES if attention else self._plain)
        wanted = {"output_hidden_states": hidden, "output_attentions": attention}
        if self.kind == "image":
            found = self.model(pixel_values=x.permute(0, 3, 1, 2), **wanted)
            return Outputs(found.logits, _named(found.hidden_states), _tuple(found, attention))
        present = x != 0  # (B, L)
        tokens = self._tokens(x, present)
        inputs = {"input_ids": tokens, "attention_mask": present.to(torch.int64)}
        if self._takes_types and self.separator is not None:
            ends = (x == self.separator + 1).to(torch.int64)
            inputs["token_type_ids"] = ((ends.cumsum(1) - ends).clamp(max=1)) * present
        if self.first_position is not None:
            inputs["position_ids"] = (present.cumsum(1) - 1).clamp(min=0) + self.first_position
        if self.masked_lm and masked is not None:
            found = self.encoder(**inputs, **wanted)
            logits = _word_logits(self.model, found.last_hidden_state[masked])
        else:
            found = self.model(**inputs, **wanted)
            logits = found.logits
        states = _named(found.hidden_states) if hidden else None
        return Outputs(logits, states, _tuple(found, attention), present)

    def _tokens(self, x: Tensor, present: Tensor) -> Tensor:
        """(B, L) int64 as the model numbers them."""
        tokens = (x.to(torch.int64) - 1).clamp(min=0)
        if self.piece_map is not None:
            tokens = self.piece_map[tokens]
        return tokens.masked_fill(~present, self.model.config.pad_token_id or 0)

    @property
    def has_scores(self) -> bool:
        """Whether its attention can be ours, which hands out scores."""
        kind: Any = type(self.encoder)
        return bool(kind._can_set_attn_implementation())

    def _attend_by(self, implementation: str) -> None:
        if self.model.config._attn_implementation == implementation:
            return
        if implementation == SCORES and not self.has_scores:
            raise ConfigError(no_scores(self.model.config.model_type))
        self.model.set_attn_implementation(implementation)


def piece_map(pieces: list[int], vocabulary_size: int, unknown: int) -> Tensor:
    """(V,) int64: each word piece's number among `pieces`, that of `unknown` for those that are not."""
    mapped = torch.full((vocabulary_size,), pieces.index(unknown))
    mapped[torch.tensor(pieces)] = torch.arange(len(pieces))
    return mapped


def no_scores(kind: str) -> str:
    """Why losses on attention cannot have a model of this type."""
    return (
        f"attention: a {kind!r} of transformers does not hand out scores; use a bert, distilbert, electra, "
        "roberta or another with exchangeable attention, or a loss on hidden states"
    )


def _is_head(module: nn.Module, num_outputs: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == num_outputs


def _named(states: Any) -> dict[str, Tensor] | None:
    if states is None:
        return None
    return {"embedding" if i == 0 else f"layer_{i}": state for i, state in enumerate(states)}


def _tuple(found: Any, attention: bool) -> tuple[Tensor, ...] | None:
    return tuple(found.attentions) if attention and found.attentions else None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as it stands in the formula; (B, A, L, d) each; also returns the scores (B, A, L, L)."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    seen = scores if attention_mask is None else scores + attention_mask
    shares = nn.functional.softmax(seen, dim=-1, dtype=torch.float32).to(query.dtype)
    shares = nn.functional.dropout(shares, dropout, module.training)
    return (shares @ value).transpose(1, 2).contiguous(), scores


def _register() -> None:
    """Make `_attend` known to transformers, once."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if SCORES not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(SCORES, _attend)
        AttentionMaskInterface.register(SCORES, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


def _word_logits(model: Any, states: Tensor) -> Tensor:
    """(P, D) states of masked positions to (P, V); only there, as V is large."""
    kind = model.config.model_type
    if kind == "distilbert":
        states = model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
        logits: Tensor = model.vocab_projector(states)
        return logits
    if kind == "electra":
        logits = model.generator_lm_head(model.generator_predictions(states))
        return logits
    for name in ("cls", "lm_head", "predictions"):
        if hasattr(model, name):
            logits = getattr(model, name)(states)
            return logits
    raise ConfigError(f"architecture: the masked language model of type {kind!r} is not known here; use bert")


def build_transformer(
    model: TransformerConfig, info: dict[str, Any], num_outputs: int, masked_lm: bool = False
) -> Transformer:
    """A body with random weights (torch's global generator) for the data that `info` describes.

    Raises ConfigError where tokens or lengths of the data do not fit, naming both sides.
    """
    config = with_dropout(config_of(model), model.dropout)
    trusted = model.trust_remote_code
    if info["kind"] == "image":
        _fit_image(config, info["input_shape"])
        return Transformer(
            _random(config, "image", num_outputs, False, trusted), "image", num_outputs, False, None
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"architecture.model_type: a {config.model_type!r} has an encoder and a decoder; use one that "
            "is an encoder alone, such as bert, distilbert, electra, roberta"
        )
    special = info["preprocess"].get("special", {})
    tokens, longest = info["vocabulary_size"] - 1, info["input_shape"][0]
    offset, positions = first_position(config), most_tokens(config)
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = special["pad"] if "pad" in special else _end(config)
    if model.pieces is not None:
        config.vocab_size = len(model.pieces)
        config.pad_token_id = model.pieces.index(special["pad"])
    elif getattr(config, "vocab_size", tokens) < tokens:
        raise ConfigError(
            f"architecture.vocab_size: {config.vocab_size}, but the data's tokenizer has {tokens} word "
            f"pieces; "
            "use the tokenizer that belongs to the model (data.text.source), or another vocab_size"
        )
    if positions is not None and longest > positions:
        raise ConfigError(
            f"architecture.max_position_embeddings: {positions} positions, but the data has texts of "
            f"{longest} tokens; lower data.text.max_length to {positions}"
        )
    network = _random(config, "text", num_outputs, masked_lm, trusted)
    if model.pooling in ("mean", "max") and not masked_lm:
        network = pooled(network, model.pooling, num_outputs)
    body = Transformer(network, "text", num_outputs, masked_lm, special.get("sep"))
    if model.pieces is not None:
        body.keep_pieces(model.pieces, tokens, special["unk"], offset or None)
    return body


def first_position(config: Any) -> int:
    """Number of the first token's position: RoBERTa and its kin count from padding's number + 1."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def most_tokens(config: Any) -> int | None:
    """Tokens that a model has positions for; None where it takes any number."""
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None or positions <= 0 else positions - first_position(config)


def _end(config: Any) -> int:
    """What stands behind the texts of a model that was trained without padding, as those of the GPT kind are.

    Its classifier reads the last token that is none; no text holds the end of a text, as what spells it out
    is encoded as words. Raises ConfigError where it has no such token either.
    """
    ends = getattr(config, "eos_token_id", None)
    end = ends[0] if isinstance(ends, list) and ends else ends
    if not isinstance(end, int):
        raise ConfigError(
            f"architecture.pad_token_id: a {config.model_type!r} without a padding token, and without one "
            "that ends a text (eos_token_id) and could stand for it; set it to the number of a token that no "
            "text has, in the config.json of a source"
        )
    return end


def auto_class(kind: str, masked_lm: bool) -> Any:
    """The class of transformers that makes such a model."""
    import transformers

    if masked_lm:
        return transformers.AutoModelForMaskedLM
    image = kind == "image"
    return (
        transformers.AutoModelForImageClassification
        if image
        else transformers.AutoModelForSequenceClassification
    )


def _random(config: Any, kind: str, num_outputs: int, masked_lm: bool, trusted: bool) -> Any:
    if not masked_lm:
        config.num_labels = num_outputs
    try:
        return auto_class(kind, masked_lm).from_config(config, trust_remote_code=trusted)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise ConfigError(f"architecture: {in_one_line(error)}") from error
        what = "masked language model" if masked_lm else f"{kind} classifier"
        raise ConfigError(
            f"architecture.model_type: transformers has no {what} of type {config.model_type!r}; use another"
        ) from error


def _fit_image(config: Any, shape: list[int]) -> None:
    height, width, channels = shape
    config.num_channels = channels
    if hasattr(config, "image_size"):
        config.image_size = [height, width]


BLOCK_LISTS: tuple[Callable[[Any], Any], ...] = (
    lambda m: m.encoder.layer,
    lambda m: m.transformer.layer,
    lambda m: m.encoder.layers,
    lambda m: m.layers,
)


def blocks_of(encoder: nn.Module) -> str:
    """Where an encoder keeps its blocks: `encoder.layer`. Raises ConfigError."""
    for get in BLOCK_LISTS:
        try:
            blocks = get(encoder)
        except AttributeError:
            continue
        return next(name for name, module in encoder.named_modules() if module is blocks)
    raise ConfigError(f"layers: no list of blocks was found in {type(encoder).__name__}; leave `layers` out")
