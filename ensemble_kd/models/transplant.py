"""What a network starts from: pretrained weights, a teacher's, or those of an earlier phase.

`resolve` turns what a configuration asks for into an architecture that stands by itself and a description of
the weights, both JSON; `transplant_` copies weights of one network into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.config import TransformerConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.pooling import LIBRARY, Pooling, pooled, resolved_pooling, said_by
from ensemble_kd.models.transformer import Transformer, auto_class, blocks_of
from ensemble_kd.models.transformer_config import (
    comes_with_code,
    make_config,
    pretrained_config,
    settings_of,
    with_dropout,
)
from ensemble_kd.pretrained import resolve_source, source_files_problems, weights_digest

DISTILBERT_LAYERS = [0, 2, 4, 7, 9, 11]
"""Blocks of a 12-layer BERT that DistilBERT starts from (arXiv 1910.01108, its published script)."""

DISTILBERT_NAMES = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
)
DISTILBERT_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "pad_token_id": "pad_token_id",
}


def pick_layers(layers: list[int] | str | None, wanted: int | None, available: int) -> list[int]:
    """Numbers of the blocks to take over, from 0. Raises ConfigError where there are not so many."""
    if layers is None:
        chosen = list(range(wanted if wanted is not None else available))
    elif layers == "every_second":
        chosen = list(range(0, available, 2))
    elif layers == "distilbert":
        chosen = DISTILBERT_LAYERS
    elif isinstance(layers, str):
        how, count = layers.split(":")
        chosen = list(range(int(count))) if how == "first" else list(range(available - int(count), available))
    else:
        chosen = list(layers)
    if wanted is not None and len(chosen) != wanted:
        raise ConfigError(
            f"layers: {len(chosen)} blocks are chosen, but architecture.num_hidden_layers is {wanted}; "
            f"leave one out"
        )
    if not chosen or min(chosen) < 0 or max(chosen) >= available:
        raise ConfigError(
            f"layers: {chosen}, but what it starts from has {available} blocks, 0 to {available - 1}; "
            f"choose others"
        )
    return chosen


def resolve(
    model: Any, teacher: dict[str, Any] | None = None, pieces: list[int] | None = None, path: str = "model"
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The architecture by itself (a ModelConfig as JSON), and what weights it starts from; None for random
    ones.

    `teacher` are the settings and place of the teacher that `weights: teacher` means: `model`, `initial`.
    `pieces` are the word pieces that occur, for `vocabulary: used`.
    Raises ConfigError, each line starting with a field of the model.
    """
    if not isinstance(model, TransformerConfig):
        return model.model_dump(mode="json", exclude={"start"}), None  # what a table starts from is no part
    try:
        return _resolve(model, teacher, pieces)
    except ConfigError as error:
        raise ConfigError([f"{path}.{line}" for line in error.problems]) from error


def _resolve(
    model: TransformerConfig, teacher: dict[str, Any] | None, pieces: list[int] | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    source = resolve_source(model.source) if model.source else None
    weights = model.weights
    if weights == "auto":
        weights = "pretrained" if source else "random"
    base: dict[str, Any] | None = None
    initial: dict[str, Any] | None = None
    said: str | None = None  # of its pooling, by what it starts from
    if weights == "teacher":
        if teacher is None or teacher["model"]["name"] != "transformer":
            raise ConfigError(
                "weights: 'teacher' takes a trained transformer's; the run's best teacher is "
                f"{'none that it has weights of' if teacher is None else teacher['model']['name']}; use a "
                f"source"
            )
        if source:
            raise ConfigError("weights: 'teacher', but a source is given too; leave one out")
        base, initial = dict(teacher["model"]["architecture"]), dict(teacher["initial"])
        said = teacher["model"].get("pooling")
    elif source:
        local = weights == "pretrained" and Path(source).is_dir()
        if problems := source_files_problems(source) if local else []:
            raise ConfigError(problems)
        if weights == "pretrained":
            digest = weights_digest(source) if Path(source).is_dir() else source
            initial = {"source": source, "digest": digest, "trust_remote_code": model.trust_remote_code}
        found = pretrained_config(source, model.trust_remote_code)
        said = said_by(source, found) if model.pooling == "auto" else None
        if comes_with_code(found):
            return _with_code(model, source, pieces, resolved_pooling(model, said)), initial
        base = settings_of(found)
    elif weights == "pretrained":
        raise ConfigError("weights: 'pretrained', but there is no source; name a folder or a hub model")
    changes = dict(model.architecture)
    if model.fold_token_types:
        _check_foldable(base if initial is not None else None)
    if initial is not None and base is not None:
        kind = changes.get("model_type", base["model_type"])
        if kind != base["model_type"]:
            base = _as_distilbert(base, kind)
        depth = "n_layers" if kind == "distilbert" else "num_hidden_layers"
        available = getattr(make_config({}, base), "num_hidden_layers", None)
        asked = changes.pop("num_hidden_layers", changes.get(depth))
        if kind == "albert" and model.layers is None:  # one block, used as often as asked
            changes |= {} if asked is None else {depth: asked}
        elif model.layers is not None or (asked is not None and asked != available):
            if available is None or kind == "albert":
                raise ConfigError(f"layers: a {kind!r} has no list of blocks to choose from; leave it out")
            initial["layers"] = pick_layers(model.layers, asked, available)
            changes[depth] = len(initial["layers"])
        if model.fold_token_types:
            initial["fold_token_types"] = True
        if model.pooler != "keep":
            initial["pooler"] = model.pooler
    elif model.layers is not None:
        raise ConfigError(
            "layers: blocks are taken over, but the weights are random; set weights or a source"
        )
    config = with_dropout(make_config(changes, base), model.dropout)
    if initial is not None and base is not None:
        _check_widths(config, make_config({}, base))
    resolved = TransformerConfig(
        architecture=settings_of(config),
        pooling=resolved_pooling(model, said),
        pieces=pieces if model.vocabulary != "all" else None,
    )
    return resolved.model_dump(mode="json", exclude_defaults=True) | {"name": "transformer"}, initial


def _with_code(
    model: TransformerConfig, source: str, pieces: list[int] | None, pooling: Pooling
) -> dict[str, Any]:
    """A model whose code lies with its source: it is needed wherever the network is built."""
    if model.layers is not None or model.fold_token_types:
        raise ConfigError(
            "layers, fold_token_types: not for a model that comes with its own code; leave them out"
        )
    fields: dict[str, Any] = {"source": source, "architecture": model.architecture, "dropout": model.dropout}
    fields |= {"pooling": pooling, "pieces": pieces if model.vocabulary != "all" else None}
    kept = TransformerConfig.model_validate({**fields, "trust_remote_code": True})
    return kept.model_dump(mode="json", exclude_defaults=True) | {"name": "transformer"}


def _as_distilbert(base: dict[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a BERT as those of a DistilBERT."""
    if (base["model_type"], kind) != ("bert", "distilbert"):
        raise ConfigError(
            f"architecture.model_type: weights of a {base['model_type']!r} do not fit a {kind!r}; a "
            f"bert's fit a "
            "distilbert; for others set weights: random"
        )
    usual = make_config({}, base)
    return {"model_type": "distilbert"} | {new: getattr(usual, old) for new, old in DISTILBERT_FIELDS.items()}


def _check_foldable(base: dict[str, Any] | None) -> None:
    """Refuses where token types are not added to the word embeddings themselves. Raises ConfigError."""
    if base is None:
        raise ConfigError("fold_token_types: there are no weights to start from; leave it out")
    kind = base["model_type"]
    types = getattr(make_config({}, base), "type_vocab_size", None)
    if kind == "mobilebert" or not types:
        why = "has no token types" if not types else "adds token types behind a layer of its own"
        raise ConfigError(f"fold_token_types: a {kind!r} {why}; leave it out")


def _check_widths(config: Any, base: Any) -> None:
    names = (
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "hidden_dim",
        "embedding_size",
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
    )
    problems = [
        f"architecture.{name}: {getattr(config, name)}, but the weights to start from have "
        f"{getattr(base, name)}; "
        "set weights: random (with the source's or teacher's configuration), or leave it as it is"
        for name in names
        if hasattr(base, name) and hasattr(config, name) and getattr(config, name) != getattr(base, name)
    ]
    if problems:
        raise ConfigError(problems)


# ------------------------------------------------------------------------------------------------ weights


@torch.no_grad()
def transplant_(target: Transformer, donor: Transformer, initial: dict[str, Any]) -> list[str]:
    """Copy the donor's weights where they have a place; returns the names of the target's that found none.

    Blocks as `initial["layers"]` says, and all else by name. Of what there is per word piece the pieces kept
    are picked; the classifier comes along where it has as many classes.
    Raises ConfigError where tensors of the encoder differ in shape.
    """
    into, given = target.encoder.state_dict(), donor.encoder.state_dict()
    layers: list[int] | None = initial.get("layers")
    where = blocks_of(target.encoder) if layers else ""
    translate = target.model.config.model_type == "distilbert" and donor.model.config.model_type == "bert"
    if translate or initial.get("fold_token_types"):
        given = _folded(given)
    if translate:
        given = {_renamed(name): tensor for name, tensor in given.items()}
    if initial.get("pooler") == "fresh":
        given = {name: tensor for name, tensor in given.items() if not name.startswith("pooler.")}
    missed: list[str] = []
    problems: list[str] = []
    for name, tensor in into.items():
        old = given.get(_from_block(name, where, layers) if layers else name)
        old = _picked(old, tensor, target, donor)
        if old is None:
            missed.append(name)
        elif old.shape == tensor.shape:
            tensor.copy_(old)
        else:
            problems.append(
                f"weights: {name} is {tuple(old.shape)} in what the model starts from, and "
                f"{tuple(tensor.shape)} in the model; give it the same shape, or set weights: random"
            )
    if problems:
        raise ConfigError(problems)
    # The output layer of a masked language model is its table of words, which is filled by now.
    tied = {tensor.data_ptr() for tensor in into.values()}
    top, donor_top = _top(target, translate), _top(donor, translate)
    if target.pooling != donor.pooling:  # a classifier of other numbers than the target's reads
        donor_top = {}
    for name, tensor in top.items():
        if tensor.data_ptr() in tied:
            continue
        old = _picked(donor_top.get(name), tensor, target, donor)
        fresh = initial.get("pooler") == "fresh" and "pre_classifier" in name
        if old is not None and old.shape == tensor.shape and not fresh:
            tensor.copy_(old)
        else:
            missed.append(name)
    return missed


def _picked(old: Tensor | None, like: Tensor, target: Transformer, donor: Transformer) -> Tensor | None:
    """A tensor of the donor, with the word pieces alone that the target keeps, on whatever axis they are."""
    if old is None or target.pieces is None or donor.pieces is not None:
        return old
    for axis, sizes in enumerate(zip(old.shape, like.shape, strict=False)):
        if sizes == (donor.model.config.vocab_size, len(target.pieces)):
            old = old.index_select(axis, torch.tensor(target.pieces, device=old.device))
    return old


def _top(body: Transformer, translate: bool) -> dict[str, Tensor]:
    """What sits on the encoder, by name; a BERT's as a DistilBERT has it, where that is to be filled."""
    prefix = body.model.base_model_prefix + "."
    names = body.model.state_dict()
    found = {name: tensor for name, tensor in names.items() if not name.startswith(prefix)}
    if not translate or body.model.config.model_type == "distilbert":
        return found
    renamed = {
        "cls.predictions.transform.dense": "vocab_transform",
        "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
        "cls.predictions.decoder": "vocab_projector",
    }
    for name in list(found):
        stem, _, kind = name.rpartition(".")
        if stem in renamed:
            found[f"{renamed[stem]}.{kind}"] = found[name]
    for kind in ("weight", "bias"):
        pooler = names.get(f"{prefix}pooler.dense.{kind}")
        if pooler is not None:
            found[f"pre_classifier.{kind}"] = pooler
    return found


def _folded(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The token-type embedding of a single text moved into the word embeddings: the same sum, one table
    less."""
    types = given.get("embeddings.token_type_embeddings.weight")
    if types is None:
        return given
    words = given["embeddings.word_embeddings.weight"] + types[0]
    return {
        **given,
        "embeddings.word_embeddings.weight": words,
        "embeddings.token_type_embeddings.weight": torch.zeros_like(types),
    }


def _renamed(name: str) -> str:
    for old, new in DISTILBERT_NAMES:
        name = name.replace(old, new)
    return name


def _from_block(name: str, where: str, layers: list[int]) -> str:
    """The donor's name of a target's tensor."""
    prefix = f"{where}."
    if not name.startswith(prefix):
        return name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{layers[int(number)]}.{rest}"


def pretrained_body(initial: dict[str, Any], like: Transformer) -> Transformer:
    """The pretrained model of a source, whole, as a body of the same kind as `like`.

    Raises ConfigError where it cannot be read.
    """
    import transformers

    source, num_outputs = initial["source"], like.model.config.num_labels
    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # it tells at length that the classifier is new
    transformers.logging.disable_progress_bar()
    try:
        model, told = auto_class(like.kind, like.masked_lm).from_pretrained(
            source,
            num_labels=num_outputs,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            trust_remote_code=initial.get("trust_remote_code", False),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"source: the weights of {source!r} cannot be read "
            f"({str(error).strip().splitlines()[0][:160]}); on a "
            "cluster every node needs the folder at the same path"
        ) from error
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
    drawn = {name if isinstance(name, str) else name[0] for name in told["mismatched_keys"]}
    drawn |= set(told["missing_keys"])
    if like.pooling != LIBRARY:
        model, drawn = pooled(model, like.pooling, num_outputs), {"classifier.weight", "classifier.bias"}
    body = Transformer(model, like.kind, num_outputs, like.masked_lm, like.separator)
    body.drawn = drawn
    return body


def used_pieces(texts: Sequence[np.ndarray], special: dict[str, int], most: int | None = None) -> list[int]:
    """Word pieces that occur in arrays of tokens (N, L), and the special ones, in order.

    At the most `most` of them: the more frequent, those of an earlier array before those of a later one.
    """
    chosen = dict.fromkeys(sorted(special.values()))
    for tokens in texts:
        pieces, counts = np.unique(tokens[tokens > 0], return_counts=True)
        order = np.lexsort((pieces, -counts))
        chosen |= dict.fromkeys(int(piece) for piece in pieces[order] - 1 if int(piece) not in chosen)
    return sorted(list(chosen)[:most])
