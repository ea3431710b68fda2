"""Classifiers that others trained, taken as they are: do their classes and inputs fit the data's?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.transformer import auto_class, pretrained_config
from ensemble_kd.pretrained import resolve_source

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody named."""


def classifier_problems(
    source: str, info: dict[str, Any], where: str, trust_remote_code: bool = False
) -> list[str]:
    """What keeps a pretrained classifier from teaching as it is: one line each, starting with `where`.

    Of local folders the headers of the weights are read. Raises ConfigError where there is no such source.
    """
    resolved = resolve_source(source, where)
    config = pretrained_config(resolved, trust_remote_code)
    count = config.num_labels
    if Path(resolved).is_dir():
        found = _classifier_rows(Path(resolved), config, info["kind"], trust_remote_code, where)
        if found == 0:
            return [_no_classifier(source, info, where)]
        count = found or count
    elif _another_task(config, info["kind"]):
        return [_no_classifier(source, info, where)]
    names = [config.id2label[i] for i in sorted(config.id2label)]
    problems = class_problems(source, count, names, info, where)
    return problems + (_image_problems(resolved, config, info, where) if info["kind"] == "image" else [])


def class_problems(source: str, count: int, names: list[str], info: dict[str, Any], where: str) -> list[str]:
    """Whether `count` classes called `names` (or LABEL_0, ...) are the data's, in its order."""
    ours = info["class_names"]
    if info.get("target"):
        if count == 1:
            return []
        return [
            f"{where}: {source} tells {count} classes apart ({_some(names)}), and the labels are values; "
            "give a model with one output (num_labels=1), or fine-tune it on these values: "
            f"teachers.source=train with teachers.model.source={source}"
        ]
    if count != len(ours):
        return [
            f"{where}: {source} tells {count} classes apart ({_some(names)}), the data has {len(ours)} "
            f"({_some(ours)}); relabel the data, or fine-tune it on these classes: teachers.source=train "
            f"with teachers.model.source={source}"
        ]
    if all(UNNAMED.fullmatch(name) for name in names):
        return []
    theirs = {name.strip().casefold(): i for i, name in enumerate(names)}
    moved = [i for i, name in enumerate(ours) if theirs.get(name.strip().casefold(), i) != i]
    if not moved:
        return []
    i = moved[0]
    return [
        f"{where}: class {i} of {source} is {names[i]!r}, of the data {ours[i]!r}: the order is "
        f"{_some(names)} there and {_some(ours)} here; reorder data.class_names as it is there, or relabel "
        "the data"
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _no_classifier(source: str, info: dict[str, Any], where: str) -> str:
    what = f"classifier for these classes ({_some(info['class_names'])})"
    return (
        f"{where}: {source} has no {'output for values' if info.get('target') else what}; fine-tune "
        f"it: teachers.source=train with teachers.model.source={source}"
    )


def _another_task(config: Any, kind: str) -> bool:
    """Whether the configuration of a hub's model says that it is no classifier."""
    ending = "ForImageClassification" if kind == "image" else "ForSequenceClassification"
    made = config.architectures or []
    return bool(made) and not any(name.endswith(ending) for name in made)


def _classifier_rows(folder: Path, config: Any, kind: str, trusted: bool, where: str) -> int | None:
    """Classes of the classifier among a folder's weights; 0 where there is none, None where unknown."""
    try:
        with torch.device("meta"):
            model = auto_class(kind, False).from_config(config, trust_remote_code=trusted)
    except ValueError:  # no such classifier in transformers; building the network says so
        return None
    inside = f"{model.base_model_prefix}."
    heads = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.ndim > 1 and len(tensor) == config.num_labels and not name.startswith(inside)
    ]
    if not heads:
        return None
    shapes = _shapes(folder, where)
    return next((shape[0] for name, shape in shapes.items() if f".{name}".endswith(f".{heads[-1]}")), 0)


def _shapes(folder: Path, where: str) -> dict[str, list[int]]:
    """Shapes of the tensors in a folder's safetensors files, from their headers."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                found |= {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{where}: {path} is not readable as safetensors ({error}); fetch it again"
            ) from error
    return found


def _image_problems(resolved: str, config: Any, info: dict[str, Any], where: str) -> list[str]:
    """A classifier of images sees the data's own size, and pixels of mean 0 by the data's own moments."""
    ours, size = list(info["input_shape"]), getattr(config, "image_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    theirs = [height or ours[0], width or ours[1], getattr(config, "num_channels", ours[2])]
    problems = []
    if theirs != ours:
        problems.append(
            f"{where}: takes images of {theirs} (height, width, channels), the data has {ours}; scale the "
            "data's images, or call it on images of its own: teachers.source=callable"
        )
    path = Path(resolved) / "preprocessor_config.json"
    if not path.is_file():
        return problems
    said = json.loads(path.read_text(encoding="utf-8"))
    if not said.get("do_normalize", True) or "image_mean" not in said or "image_std" not in said:
        return problems
    for name, own in (("mean", info["mean"]), ("std", info["std"])):
        given = (
            np.broadcast_to(said[f"image_{name}"], np.shape(own)) if np.size(said[f"image_{name}"]) else own
        )
        if not np.allclose(given, own, atol=1e-3):
            problems.append(
                f"{where}: its pixels are normalised by a {name} of {np.round(given, 4).tolist()}, here by "
                f"the data's {np.round(own, 4).tolist()}; call it as it was made: teachers.source=callable"
            )
    return problems
