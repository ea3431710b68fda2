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
from ensemble_kd.models.transformer import auto_class
from ensemble_kd.models.transformer_config import pretrained_config
from ensemble_kd.pretrained import resolve_source, source_file, source_folder
from ensemble_kd.targets import target_in

PROCESSOR = "preprocessor_config.json"

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class that nobody named."""


def classifier_problems(
    source: str, info: dict[str, Any], where: str, trust_remote_code: bool = False, named: bool = True
) -> list[str]:
    """What keeps a pretrained classifier from teaching as it is: one line each, starting with `where`.

    Of local folders, and of what is in the hub's cache, the headers of the weights are read. `named`: its
    own names say in which order its classes stand, and not the user.
    Raises ConfigError where there is no such source.
    """
    config = pretrained_config(resolve_source(source, where), trust_remote_code)
    count = config.num_labels
    folder = source_folder(source, where)
    if folder is not None and any(folder.glob("*.safetensors")):
        found = _classifier_rows(folder, config, info["kind"], trust_remote_code, where)
        if found == 0:
            return [_no_classifier(source, info, where)]
        count = found or count
    elif _another_task(config, info["kind"]):
        return [_no_classifier(source, info, where)]
    names = class_names(config) if named else [f"LABEL_{i}" for i in range(count)]
    problems = class_problems(source, count, names, info, where)
    return problems + (_image_problems(source, config, info, where) if info["kind"] == "image" else [])


def class_names(config: Any) -> list[str]:
    """What a transformers configuration calls the classes, in order."""
    return [str(config.id2label[i]) for i in sorted(config.id2label)]


def called_by(model: Any) -> list[str]:
    """A pretrained classifier's own names of its classes; none where nobody named them."""
    names = class_names(pretrained_config(resolve_source(model.source), model.trust_remote_code))
    return [] if all(UNNAMED.fullmatch(name) for name in names) else names


def taken_over(
    source: str, info: dict[str, Any], order: list[int] | None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """What a classifier needs to answer here as where it comes from, as fields of a member's `initial`.

    `classes`: the data's class of each of its outputs, where the order is another: as the user says in
    `order`, or by its own names of the same classes. `pixels`: factor and shift that it normalises by, where
    these are not the data's. Raises ConfigError where there is no such source.
    """
    found: dict[str, Any] = {}
    if order is None and target_in(info).classified:
        names = class_names(pretrained_config(resolve_source(source), trust_remote_code))
        order = order_by_name(names, info["class_names"])
    if order is not None and order != sorted(order):
        found["classes"] = order
    if info["kind"] == "image" and (own := pixels_of(source)) is not None and not _same(own, info):
        found["pixels"] = {name: list(values) for name, values in zip(("scale", "shift"), own, strict=True)}
    return found


def class_problems(source: str, count: int, names: list[str], info: dict[str, Any], where: str) -> list[str]:
    """Whether `count` classes called `names` (or LABEL_0, ...) are the data's, in its order."""
    ours = info["class_names"]
    if not target_in(info).classified:
        if count == (wanted := info["num_classes"]):
            return []
        outputs = "one output" if wanted == 1 else f"{wanted} outputs"
        return [
            f"{where}: {source} tells {count} classes apart ({_some(names)}), and the labels are values; "
            f"give a model with {outputs} (num_labels={wanted}), or fine-tune it on these values: "
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
    theirs = {_plain(name): i for i, name in enumerate(names)}
    moved = [i for i, name in enumerate(ours) if theirs.get(_plain(name), i) != i]
    if not moved or order_by_name(names, ours) is not None:
        return []
    i = moved[0]
    return [
        f"{where}: class {i} of {source} is {names[i]!r}, of the data {ours[i]!r}, and not all names occur "
        f"on both sides: the order is {_some(names)} there and {_some(ours)} here; list the data's classes "
        "in the order of its outputs: teachers.class_order"
    ]


def order_by_name(names: list[str], ours: list[str]) -> list[int] | None:
    """The data's class of each of a source's classes, where both have the same names in another order."""
    theirs, here = [_plain(name) for name in names], [_plain(name) for name in ours]
    if theirs == here or sorted(theirs) != sorted(here) or len(set(here)) != len(here):
        return None
    return [here.index(name) for name in theirs]


def _plain(name: str) -> str:
    """Without what spellings of a name differ in."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _no_classifier(source: str, info: dict[str, Any], where: str) -> str:
    what = f"classifier for these classes ({_some(info['class_names'])})"
    return (
        f"{where}: {source} has no {what if target_in(info).classified else 'output for values'}; fine-tune "
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


def own_image_shape(config: Any, info: dict[str, Any]) -> list[int]:
    """[H, W, C] that a classifier of images takes; the data's own where its configuration says nothing."""
    ours, size = info["input_shape"], getattr(config, "image_size", None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return [height or ours[0], width or ours[1], getattr(config, "num_channels", ours[2])]


def _image_problems(source: str, config: Any, info: dict[str, Any], where: str) -> list[str]:
    """A classifier of images sees the data's own size, and pixels as it normalises them itself."""
    ours, theirs, problems = list(info["input_shape"]), own_image_shape(config, info), []
    if theirs != ours:
        problems.append(
            f"{where}: takes images of {theirs} (height, width, channels), the data has {ours}; scale the "
            "data's images, or ask it with its own image processor: teachers.source=transformers"
        )
    own = pixels_of(source)
    if own is not None and len(own[0]) not in (1, ours[2]):
        problems.append(
            f"{where}: its pixels are normalised in {len(own[0])} channels, the data has {ours[2]}; ask it "
            "with its own image processor: teachers.source=transformers"
        )
    return problems


def pixels_of(source: str) -> tuple[list[float], list[float]] | None:
    """(scale, shift) by channel that a source makes pixels of 0 to 255 its inputs by: x * scale + shift.

    As its image processor says; None where it has none. Raises ConfigError for what cannot be done so.
    """
    whole, alone = (source_file(source, name) for name in ("processor_config.json", PROCESSOR))
    said = _json(whole).get("image_processor") if whole is not None else None
    if not isinstance(said, dict):
        if alone is None:
            return None
        said = _json(alone)
    usual = _processor_class(str(said.get("image_processor_type", "")))

    def field(name: str, default: Any) -> Any:
        return said[name] if said.get(name) is not None else getattr(usual, name, default)

    if field("rescale_offset", False):
        raise ConfigError(
            f"source: the pixels of {source} are moved before they are normalised (rescale_offset); ask it "
            "with its own image processor: teachers.source=transformers"
        )
    factor = float(field("rescale_factor", 1 / 255)) if field("do_rescale", True) else 1.0
    mean, std = field("image_mean", None), field("image_std", None)
    if not field("do_normalize", True):
        mean, std = [0.0], [1.0]
    if mean is None or std is None:
        return None
    mean, std = np.atleast_1d(np.array(mean, float)), np.atleast_1d(np.array(std, float))
    mean, std = np.broadcast_arrays(mean, std)
    return (factor / std).tolist(), (-mean / std).tolist()


def _processor_class(name: str) -> Any:
    """transformers' class of an image processor, whose attributes are the defaults; None for none."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it tells which backend it falls back to
    try:
        return getattr(transformers, name.removesuffix("Fast"), None) if name else None
    except ImportError:
        return None
    finally:
        transformers.logging.set_verbosity(before)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"source: {path} is not readable as JSON ({error}); fetch it again") from error
    return found if isinstance(found, dict) else {}


def _same(own: tuple[list[float], list[float]], info: dict[str, Any]) -> bool:
    """Whether that is what the data's own moments do."""
    mean, std = np.array(info["mean"], float), np.array(info["std"], float)
    if len(own[0]) not in (1, len(mean)):
        return False
    # As moments of pixels from 0 to 1, in which a thousandth is nothing.
    scale, shift = np.array(own[0]) * 255, np.array(own[1])
    return bool(np.allclose(1 / scale, std, atol=1e-3) and np.allclose(-shift / scale, mean, atol=1e-3))
