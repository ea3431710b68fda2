"""A folder that plain transformers loads: AutoModelFor...Classification, AutoTokenizer.

Of a student that pools its tokens' states, which no classifier of that library does, one for
sentence-transformers (`sentence_layout`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensemble_kd.artifacts import read_json, write_json
from ensemble_kd.errors import ArtifactError, ExportError
from ensemble_kd.export.sentence_layout import load_modules, write_modules
from ensemble_kd.inference.feed import feed
from ensemble_kd.models.build import Network
from ensemble_kd.models.pooling import LIBRARY, MODULES, Pooled, pooled
from ensemble_kd.models.transformer import Transformer, auto_class
from ensemble_kd.targets import target_in

PROCESSOR = "preprocessor_config.json"


@torch.no_grad()
def write_huggingface(
    network: Network, info: dict[str, Any], tokenizer: Path | None, temperature: float, folder: Path
) -> None:
    """`save_pretrained` of a transformers student, logits divided by `temperature`, and of its tokenizer.

    A student that kept some word pieces only gets a row for every one again, those left out being that of
    the unknown piece: its tokenizer cuts words as before.
    Raises ExportError for other networks.
    """
    body = network.body
    if not isinstance(body, Transformer):
        raise ExportError(
            "huggingface: this student is no transformers model; its model folder is safetensors and "
            "config.json already"
        )
    if not fits(network):
        raise ExportError(
            "huggingface: this student rounds the inputs of its layers, which those of transformers do not; "
            "leave the form out of export.forms, or set student.quantization.activations=false"
        )
    model = _whole(body, info)
    head = model.get_submodule(body._head_name)
    if temperature != 1.0:
        head.weight.div_(temperature)
        if head.bias is not None:
            head.bias.div_(temperature)
    if network.output_scale is not None and network.output_shift is not None:
        _in_units(head, network.output_scale, network.output_shift)
        model.config.problem_type = "regression"
    names = target_in(info).output_names(info["class_names"])
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    with _no_bars():
        if isinstance(model, Pooled):
            write_modules(model, info["input_shape"][0], folder)
        else:
            model.save_pretrained(folder)
    if tokenizer is not None:
        _write_tokenizer(model, info, tokenizer, folder)
    if body.kind == "image":
        write_json(folder / PROCESSOR, _image_processor(network, info))


def _in_units(head: Any, scale: Tensor, shift: Tensor) -> None:
    """Make a head of standardised values (K,) one that gives them in the labels' units."""
    if head.bias is None:
        raise ExportError(
            "huggingface: the last layer of this student has no bias to hold the labels' mean; leave the "
            "form out of export.forms"
        )
    head.weight.mul_(scale[:, None])
    head.bias.mul_(scale).add_(shift)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the library's progress bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def fits(network: Network) -> bool:
    """Whether transformers alone can compute what the network does."""
    rounds = network.quantiser is not None and network.quantiser.activations
    return isinstance(network.body, Transformer) and not rounds


def _whole(body: Transformer, info: dict[str, Any]) -> Any:
    """The model with all word pieces of its tokenizer, and its usual attention."""
    body._attend_by(body._plain)
    if body.pieces is None or body.piece_map is None:
        return copy.deepcopy(body.model)
    config = copy.deepcopy(body.model.config)
    config.vocab_size = len(body.piece_map)
    config.pad_token_id = info["preprocess"]["special"]["pad"]
    model = auto_class(body.kind, False).from_config(config)
    if body.pooling != LIBRARY:
        model = pooled(model, body.pooling, config.num_labels)
    state = dict(body.model.state_dict())
    kept = body.model.get_input_embeddings().weight
    for name, tensor in state.items():
        if tensor.shape == kept.shape and torch.equal(tensor, kept):
            state[name] = tensor[body.piece_map]
    model.load_state_dict(state)
    return model.eval()


def _write_tokenizer(model: Any, info: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    library = Tokenizer.from_file(str(tokenizer))
    special = info["preprocess"].get("special", {})
    named = {f"{role}_token": library.id_to_token(i) for role, i in special.items()}
    if "pad" not in special and model.config.pad_token_id is not None:  # what stands for it
        named["pad_token"] = library.id_to_token(model.config.pad_token_id)
    inputs = ["input_ids", *(["token_type_ids"] if _takes_types(model) else []), "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=library,
        model_max_length=info["input_shape"][0],
        model_input_names=inputs,
        **named,
    ).save_pretrained(folder)


def _takes_types(model: Any) -> bool:
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1


def _image_processor(network: Network, info: dict[str, Any]) -> dict[str, Any]:
    height, width, _ = info["input_shape"]
    mean, std = network.mean, network.std
    assert mean is not None and std is not None
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean.flatten().tolist(),
        "image_std": std.flatten().tolist(),
    }


def _classifier(folder: Path, kind: str) -> Callable[[dict[str, Tensor]], Tensor]:
    model = auto_class(kind, False).from_pretrained(folder).eval()
    return lambda inputs: model(**inputs).logits


def load_huggingface(folder: Path, info: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """(B, ...) inputs as the data stage writes them -> (B, C) logits of the plain transformers model."""
    kind = info["kind"]
    try:
        with _no_bars():
            answer = load_modules(folder) if (folder / MODULES).is_file() else _classifier(folder, kind)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{folder}: transformers cannot load it ({error})") from error

    @torch.inference_mode()
    def run(inputs: np.ndarray) -> np.ndarray:
        given = huggingface_inputs(folder, info, inputs)
        logits: np.ndarray = answer({k: torch.from_numpy(v) for k, v in given.items()}).numpy()
        return logits

    return run


def huggingface_inputs(folder: Path, info: dict[str, Any], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """(B, ...) inputs as the data stage writes them as arguments of the plain transformers model."""
    if info["kind"] == "image":
        image = read_json(folder / PROCESSOR)
        pixels = torch.from_numpy(inputs).float() * image["rescale_factor"]
        pixels = (pixels - torch.tensor(image["image_mean"])) / torch.tensor(image["image_std"])
        return {"pixel_values": pixels.permute(0, 3, 1, 2).numpy()}
    given = feed(info, inputs)
    types = read_json(folder / "config.json").get("type_vocab_size", 0) or 0
    separator = info["preprocess"]["special"].get("sep")
    if types > 1 and separator:
        ends = (given["input_ids"] == separator) * given["attention_mask"]
        given["token_type_ids"] = (ends.cumsum(1) - ends).clip(max=1) * given["attention_mask"]
    return given
