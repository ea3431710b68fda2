"""Whether the network that a config.json describes is the one whose weights lie beside it.

Told from the header of the weights alone, before anything of the network's size is allocated: a description
of 128 bytes can ask for more memory than there is, or for 100,000 layers. So a network has no more layers,
and no wider ones, than the file has room for; then it is built without memory (torch's device `meta`), which
ends as soon as it has more tensors than the file, and its shapes are compared with the file's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ensemble_kd.config import (
    CustomModelConfig,
    ModelConfig,
    TransformerConfig,
    TreesConfig,
)
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.quantise import Quantiser, quantise_
from ensemble_kd.models.weights import Shapes, misfits
from ensemble_kd.safe_files import shown

SPARE = 1000
"""Tensors and modules beyond those of the file: some are made and thrown away, or hold nothing."""
MOST_LAYERS = 1000
"""Of a transformers model; ALBERT's one block is applied so many times."""
LARGEST = 1 << 20
"""Of other numbers of a transformers architecture, where no dimension of the weights is larger."""
COUNTS = re.compile(r"layer|depth|block|group|repeat|iter|step")
"""Fields of a transformers architecture that say how often something is done."""
REFUSED = re.compile(
    r"_name_or_path|_commit_hash|auto_map|trust_remote_code|.*_implementation.*|quantization_config"
    r"|use_.*backbone|backbone(_kwargs)?|num_labels|id2label|label2id|(torch_)?dtype|use_kernels"
)
"""Fields by which transformers would read, fetch or run something else, or that are the data's to say."""
FOREIGN_KINDS = ("timm_wrapper", "timm_backbone")
"""Types of transformers whose networks another library makes by name."""


def check_fits(
    model: ModelConfig, info: dict[str, Any], shapes: Shapes, quantization: dict[str, Any] | None = None
) -> None:
    """Raises ArtifactError, on one line, with what the file of weights has no room for.

    A custom model is the user's own code, and is not tried.
    """
    if isinstance(model, CustomModelConfig):
        return
    if problem := _too_large(model, shapes):
        raise ArtifactError(problem)
    with _no_larger_than(shapes), torch.device("meta"), _without_drawing(model):
        network = described_network(model, info, quantization)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if problem := misfits(shapes, wanted):
        raise ArtifactError(f"belongs to another model: {problem}")


def described_network(
    model: ModelConfig, info: dict[str, Any], quantization: dict[str, Any] | None
) -> Network:
    """The network of a model folder, without its weights. Raises ConfigError."""
    network = build(model, info)
    if quantization is not None:
        quantise_(network, Quantiser(quantization["bits"], quantization["activations"], hard=True))
    return network


def _too_large(model: ModelConfig, shapes: Shapes) -> str | None:
    widest, tensors = max((size for shape in shapes.values() for size in shape), default=0), len(shapes)
    if isinstance(model, TransformerConfig):
        return next(_architecture_problems(model.architecture, max(widest, LARGEST)), None)
    if isinstance(model, TreesConfig):
        return "model.name: 'trees' is for teachers, which no model folder holds"
    assert not isinstance(model, CustomModelConfig)
    layers, widths = model.depth, model.sizes
    if layers > tensors:
        return (
            f"model: {layers:,} layers, but the weights are {tensors:,} tensors; it belongs to another model"
        )
    if (width := max(widths, default=0)) > widest:
        return (
            f"model: a layer of {shown(width)} units, but the largest tensor has {widest:,}; "
            "it belongs to another model"
        )
    return None


def _architecture_problems(architecture: dict[str, Any], largest: int) -> Iterator[str]:
    waiting: list[tuple[str, Any]] = [("", architecture)]
    while waiting:
        path, value = waiting.pop()
        name = path.rpartition(".")[2]
        if isinstance(value, dict):
            for key, inner in value.items():
                if REFUSED.fullmatch(key) and inner is not None and inner is not False:
                    yield f"model.architecture.{shown(key)}: not taken from a model folder"
                waiting.append((f"{path}.{shown(key)}", inner))
        elif isinstance(value, list):
            if len(value) > MOST_LAYERS:
                yield f"model.architecture{path}: a list of {len(value):,}; at most {MOST_LAYERS:,}"
            waiting += [(path, inner) for inner in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            most = MOST_LAYERS if COUNTS.search(name) else largest
            if abs(value) > most:
                yield f"model.architecture{path}: {shown(value)}; at most {most:,} with these weights"
        elif isinstance(value, str):
            if len(value) > MOST_LAYERS or (name == "model_type" and value in FOREIGN_KINDS):
                yield f"model.architecture{path}: {shown(repr(value))} is not taken from a model folder"


class _TooManyError(ArtifactError):
    pass


@contextmanager
def _no_larger_than(shapes: Shapes) -> Iterator[None]:
    """Stop a network from being built that has more tensors, or more numbers in them, than a file."""
    room = {
        "tensors": 4 * len(shapes) + SPARE,
        "numbers": 4 * sum(map(math.prod, shapes.values())) + 1000 * SPARE,
        "modules": 50 * len(shapes) + 10 * SPARE,
    }

    def use(what: str, count: int) -> None:
        room[what] -= count
        if room[what] < 0:
            raise _TooManyError(
                f"the model is larger than its weights, which are {len(shapes):,} tensors of "
                f"{sum(map(math.prod, shapes.values())):,} numbers; it belongs to another model"
            )

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        if value is not None:
            use("tensors", 1)
            use("numbers", value.numel())

    def inner(module: nn.Module, name: str, value: nn.Module | None) -> None:
        use("modules", 1)

    hooks = [
        register_module_parameter_registration_hook(parameter),
        register_module_module_registration_hook(inner),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_drawing(model: ModelConfig) -> Iterator[None]:
    """Without initial weights of transformers' models: some are loops over all positions."""
    if not isinstance(model, TransformerConfig):
        yield
        return
    from transformers import initialization

    with initialization.no_init_weights():
        yield
