"""A classifier of the transformers library with its own tokenizer or image processor, asked about raw rows.

So a BERT and a RoBERTa, or vision models of other sizes, teach together, and beside a student of any kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.foreign import class_names, classifier_problems, order_by_name, own_image_shape
from ensemble_kd.models.transformer_config import pretrained_config
from ensemble_kd.pretrained import VOCABULARIES, resolve_source
from ensemble_kd.targets import target_in

ROWS_AT_ONCE = 64
"""Rows of one forward pass; texts of alike length share one."""
LONGEST = 8192
"""Tokens of a text, where neither tokenizer nor model says how many it takes."""


def load_classifier(
    source: str, info: dict[str, Any], where: str, *, named: bool = True
) -> Callable[[Any], Tensor]:
    """A function of raw rows (texts, pairs of texts, or images (B, H, W, C) uint8) to (B, C) float32 logits.

    `info` is `DataInfo.to_dict()`. With `named` the outputs are put into the order of the data's classes by
    the model's names of them. Raises ConfigError, starting with `where`, for what is no such classifier.
    """
    resolved = resolve_source(source, where)
    config = pretrained_config(resolved)
    own = {**info, "input_shape": own_image_shape(config, info)} if info["kind"] == "image" else info
    if problems := classifier_problems(source, own, where, named=named):
        raise ConfigError(problems)
    known = named and target_in(info).classified
    order = order_by_name(class_names(config), info["class_names"]) if known else None
    columns = None if order is None else np.argsort(order)
    answer = _of_texts(resolved, where) if info["kind"] == "text" else _of_images(resolved, where)

    def ask(rows: Any) -> Tensor:
        logits = answer(rows)
        return logits if columns is None else logits[:, columns]

    return ask


def _loaded(loader: Any, resolved: str, what: str, where: str) -> Any:
    """`from_pretrained`, and what it raises as one line."""
    try:
        return loader.from_pretrained(resolved)
    except Exception as error:  # the library and the network raise many kinds
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{where}: cannot load the {what} of {resolved!r}: {type(error).__name__}: {first}; give a "
            "folder with all files that save_pretrained wrote"
        ) from error


def _of_texts(resolved: str, where: str) -> Callable[[Any], Tensor]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if Path(resolved).is_dir() and not any(any(Path(resolved).glob(name)) for name in VOCABULARIES):
        raise ConfigError(  # the library makes an empty tokenizer of such a folder, silently
            f"{where}: cannot load the tokenizer of {resolved!r}: it has none of {', '.join(VOCABULARIES)}; "
            "give a folder with all files that save_pretrained wrote"
        )
    tokenizer = _loaded(AutoTokenizer, resolved, "tokenizer", where)
    model = _loaded(AutoModelForSequenceClassification, resolved, "model", where).float().eval()
    if tokenizer.pad_token is None:  # GPT-2 and others have none
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, LONGEST, _positions(model.config))

    @torch.inference_mode()
    def answer(rows: Any) -> Tensor:
        pairs = not isinstance(rows[0], str)
        parts = [list(part) for part in zip(*rows, strict=True)] if pairs else [list(rows)]
        encoded = tokenizer(*parts, truncation=True, max_length=longest)
        order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")
        logits = torch.empty(len(rows), model.config.num_labels)
        for begin in range(0, len(order), ROWS_AT_ONCE):
            some = order[begin : begin + ROWS_AT_ONCE]
            batch = tokenizer.pad(
                {key: [values[i] for i in some] for key, values in encoded.items()}, return_tensors="pt"
            )
            logits[some] = model(**batch).logits.float()
        return logits

    return answer


def _positions(config: Any) -> int:
    """Tokens that the model has positions for. RoBERTa's begin behind the padding token's number."""
    count = getattr(config, "max_position_embeddings", None) or LONGEST
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        count -= (config.pad_token_id or 0) + 1
    return int(count)


def _of_images(resolved: str, where: str) -> Callable[[Any], Tensor]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = _loaded(AutoImageProcessor, resolved, "image processor", where)
    model = _loaded(AutoModelForImageClassification, resolved, "model", where).float().eval()
    channels = getattr(model.config, "num_channels", 3)

    @torch.inference_mode()
    def answer(rows: Any) -> Tensor:
        images = np.asarray(rows)
        if images.shape[-1] == 1 and channels == 3:  # grey images, as every library shows them to such models
            images = np.repeat(images, 3, axis=-1)
        logits = [
            model(
                **processor(
                    list(images[begin : begin + ROWS_AT_ONCE]),
                    return_tensors="pt",
                    input_data_format="channels_last",
                )
            ).logits.float()
            for begin in range(0, len(images), ROWS_AT_ONCE)
        ]
        return torch.cat(logits)

    return answer
