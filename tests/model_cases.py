"""Untrained model folders of every kind of student, made in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from text_cases import VOCABULARY, to_json, write_tokenizer

from ensemble_kd.config import ModelConfig, TextConfig
from ensemble_kd.data.records import DataInfo
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.package import save_package

NAMES = ["cat", "dog", "eel"]
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# So wide that untrained rows differ.
SIZES = {"initializer_range": 0.5, "vocab_size": len(VOCABULARY), "max_position_embeddings": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("image", {"name": "mlp", "hidden": [8]}),
    "numbers": ("numeric", {"name": "mlp", "hidden": [8]}),
    "cnn": ("image", {"name": "cnn", "channels": [8, 8]}),
    "resnet": ("image", {"name": "resnet", "width": 4, "blocks": 1}),
    "bottleneck": (
        "image",
        {"name": "resnet", "width": 8, "block": "bottleneck", "norm": "group", "stem": "large"},
    ),
    "depthwise": ("image", {"name": "resnet", "width": 4, "block": "depthwise", "norm": "none"}),
    "wide_shallow": ("image", {"name": "wide_shallow", "units": 8, "rank": 4}),
    "bag": ("text", {"name": "bag", "embedding": 8}),
    "bag_of_pieces": ("pieces", {"name": "bag", "embedding": 8, "hidden": [8], "piece_weights": True}),
    "text_cnn": ("pieces", {"name": "text_cnn", "embedding": 8, "filters": 6, "hidden": [5]}),
    "bilstm": ("text", {"name": "bilstm", "embedding": 8, "hidden": 6, "layers": 2, "classifier_hidden": 5}),
    "bert": ("pieces", {"name": "transformer", "architecture": {"model_type": "bert", **BERT, **SIZES}}),
    "distilbert": (
        "pieces",
        {
            "name": "transformer",
            "architecture": {
                "model_type": "distilbert",
                "dim": 16,
                "n_layers": 2,
                "n_heads": 2,
                "hidden_dim": 32,
                **SIZES,
            },
        },
    ),
    "roberta": (
        "pieces",
        {
            "name": "transformer",
            "architecture": {
                "model_type": "roberta",
                **BERT,
                **SIZES,
                "type_vocab_size": 1,
                "pad_token_id": 0,
            },
        },
    ),
    "pieces": (
        "pieces",
        {
            "name": "transformer",
            "architecture": {"model_type": "bert", **BERT, **SIZES},
            "pieces": [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 20],
        },
    ),
    "mean": (
        "pieces",
        {
            "name": "transformer",
            "architecture": {"model_type": "bert", **BERT, **SIZES},
            "pooling": "mean",
            "pieces": [0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 20],
        },
    ),
    "vit": (
        "image",
        {
            "name": "transformer",
            "architecture": {"model_type": "vit", **BERT, "patch_size": 1, "initializer_range": 0.5},
        },
    ),
}


def info_of(kind: str, **columns: Any) -> dict[str, Any]:
    """`DataInfo.to_dict()` of `numeric`, `image`, `text` (hashed words), or `pieces` of a tokenizer."""
    shape = {"numeric": [4], "image": [5, 4, 3], "text": [12], "pieces": [12]}[kind]
    preprocess: dict[str, Any] = {"columns": {"input": "input", "label": "label", "id": None, **columns}}
    size = 0
    if kind == "image":
        preprocess["image"] = {"shape": shape}
    if kind == "text":
        preprocess["text"] = TextConfig(vocabulary_size=64).model_dump(mode="json")
        size = 65
    if kind == "pieces":
        preprocess["text"] = TextConfig(tokenizer="pretrained", max_length=12).model_dump(mode="json")
        preprocess["special"] = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
        size = len(VOCABULARY) + 1
    channels = {"numeric": 4, "image": 3}.get(kind, 0)
    return DataInfo(
        kind="text" if kind == "pieces" else kind,
        input_shape=shape,
        num_classes=3,
        class_names=NAMES,
        mean=[0.4] * channels,
        std=[0.3] * channels,
        vocabulary_size=size,
        preprocess=preprocess,
        counts={"train": 9, "validation": 3, "test": 3, "transfer": 9, "labelled": 9},
    ).to_dict()


def package(
    folder: Path,
    kind: str,
    model: dict[str, Any] | None = None,
    calibration: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    **columns: Any,
) -> tuple[Path, Network]:
    """The folder of an untrained model, and its network; with `target` of a regressor."""
    info = info_of(kind, **columns)
    if target is not None:
        width = len(target["names"]) if "names" in target else 1
        info |= {"target": target, "num_classes": width, "class_names": []}
    model = model or {"text": {"name": "bag", "embedding": 8}}.get(kind, {"name": "mlp", "hidden": [8]})
    torch.manual_seed(0)
    network = build(TypeAdapter[Any](ModelConfig).validate_python(model), info).eval()
    if model["name"] != "resnet":  # initial weights are so small that all classes look alike
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(2.0)
    tokenizer = None
    if kind == "pieces":
        tokenizer = to_json(write_tokenizer(folder / "tokenizer")) / "tokenizer.json"
        _plain(tokenizer)
    save_package(
        folder / "model",
        network,
        model,
        info,
        "# card",
        tokenizer,
        lineage={"student": "s"},
        calibration=calibration,
    )
    return folder / "model", network


def _plain(tokenizer: Path) -> None:
    """As the data stage saves one: it neither cuts nor pads."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(tokenizer))
    library.no_truncation()
    library.no_padding()
    library.save(str(tokenizer))


def case(folder: Path, name: str) -> tuple[Path, Network]:
    """`package` of one of `MODELS`."""
    kind, model = MODELS[name]
    return package(folder, kind, model)


def inputs_of(info: dict[str, Any], rows: int = 40, seed: int = 0) -> np.ndarray:
    """Random inputs as the data stage writes them; texts of different lengths."""
    draw = np.random.default_rng(seed)
    shape = info["input_shape"]
    if info["kind"] == "image":
        return draw.integers(0, 256, (rows, *shape)).astype(np.uint8)
    if info["kind"] == "numeric":
        return draw.normal(size=(rows, *shape)).astype(np.float32)
    tokens = draw.integers(1, info["vocabulary_size"], (rows, *shape)).astype(np.int32)
    lengths = draw.integers(1, shape[0] + 1, (rows, 1))
    return np.where(np.arange(shape[0]) < lengths, tokens, 0).astype(np.int32)
