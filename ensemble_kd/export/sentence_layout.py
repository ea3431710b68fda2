"""A folder that sentence-transformers loads, of a student that pools its tokens' states: an encoder as
transformers saves it, 1_Pooling, and the classifier as 2_Dense. What `encode` gives are the logits.

In the names and fields that version 2 of that library writes and version 6 reads too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ensemble_kd.artifacts import read_json, write_json
from ensemble_kd.models.pooling import MODULES, OLD_MODES, Pooled, pool

POOLING, DENSE = "1_Pooling", "2_Dense"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_modules(model: Pooled, longest: int, folder: Path) -> None:
    """All but the tokenizer; `longest` is the number of tokens that texts are cut at, the library's way."""
    model.encoder.save_pretrained(folder)
    paths = {"Transformer": "", "Pooling": POOLING, "Dense": DENSE}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(paths.items())
    ]
    write_json(folder / MODULES, modules)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer"})
    settings: dict[str, Any] = {"max_seq_length": longest, "do_lower_case": False}
    if "add_pooling_layer" in inspect.signature(type(model.encoder).__init__).parameters:
        settings["model_args"] = {"add_pooling_layer": False}  # or it would be drawn, and told of
    write_json(folder / "sentence_bert_config.json", settings)
    width, classes = model.classifier.in_features, model.classifier.out_features
    modes: dict[str, Any] = {field: mode == model.pooling for field, mode in OLD_MODES.items()}
    (folder / POOLING).mkdir()
    write_json(folder / POOLING / CONFIG, {"word_embedding_dimension": width, **modes})
    (folder / DENSE).mkdir()
    dense = {
        "in_features": width,
        "out_features": classes,
        "bias": model.classifier.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / DENSE / CONFIG, dense)
    state = {"linear.weight": model.classifier.weight, "linear.bias": model.classifier.bias}
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items() if tensor is not None}
    save_file(tensors, folder / DENSE / WEIGHTS)


def load_modules(folder: Path) -> Callable[[dict[str, Tensor]], Tensor]:
    """Arguments of the encoder -> (B, C) logits, by transformers alone; the library itself may be absent."""
    from transformers import AutoModel

    given = read_json(folder / "sentence_bert_config.json").get("model_args", {})
    encoder = AutoModel.from_pretrained(folder, **given).eval()
    said = read_json(folder / POOLING / CONFIG)
    (how,) = (mode for field, mode in OLD_MODES.items() if said[field])
    dense = load_file(folder / DENSE / WEIGHTS)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        states = encoder(**inputs).last_hidden_state
        pooled = pool(states, inputs["attention_mask"], how)
        return torch.nn.functional.linear(pooled, dense["linear.weight"], dense.get("linear.bias"))

    return run
