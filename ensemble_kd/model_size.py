"""How many parameters the configured networks have, and whether this machine can hold them; without torch.

A network trained in float32 takes 4 bytes a parameter for its weights, 4 for the gradient and, by the
optimiser, 8 (AdamW's two moments) or 4 (momentum). Teachers are trained as many at a time as there are
workers, and are all held by a process that computes soft targets.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemble_kd.config import (
    Config,
    NetworkConfig,
    TrainingConfig,
    TransformerConfig,
    member_settings,
    num_teachers,
    student_models,
    variants,
)
from ensemble_kd.config_checks import shown

MOST_LAYERS = 10_000
WEIGHTS, GRADIENT = 4, 4
STATE = {"adamw": 8, "sgd": 4}
"""Bytes a parameter."""
GPUS = ("/dev/nvidia0", "/dev/kfd", "/dev/dri/renderD128")
LARGEST_NODE = 64 * 10**12
"""Bytes that no node of a cluster has."""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

SMALLER = "make the model smaller (for a cluster with larger nodes, set RAY_ADDRESS)"

WIDTH = ("hidden_size", "d_model", "dim", "n_embd")
DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
INNER = ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim")
"""Names that configurations of transformers have for the same things."""


def size_of(info: dict[str, Any]) -> tuple[int, int, int]:
    """Features, classes and vocabulary of prepared data."""
    shape = [1] if info["kind"] == "text" else info["input_shape"]
    return math.prod(shape), info["num_classes"], info.get("vocabulary_size") or 1


def least_size(config: Config) -> tuple[int, int, int]:
    """The same as far as the configuration says it, before the data is read; else 1."""
    data = config.data
    if data.source == "digits":
        return 64, 10, 1
    features = math.prod(data.image.shape) if data.image.shape and data.kind == "image" else 1
    classes = len(data.class_names) if isinstance(data.class_names, list) else 1
    hashed = data.kind == "text" and data.text.tokenizer == "hashed"
    return max(features, 1), max(classes, 1), data.text.vocabulary_size + 1 if hashed else 1


def parameters(model: Any, features: int, classes: int, vocabulary: int) -> int | None:
    """Of a network; of a transformer the largest part, and None for what only building it would tell."""
    if isinstance(model, NetworkConfig):
        return model.parameters(features, classes, vocabulary)
    if isinstance(model, TransformerConfig) and model.source is None:
        width, depth, inner = (_field(model, names) for names in (WIDTH, DEPTH, INNER))
        words = max(vocabulary, _field(model, ("vocab_size",)))
        return words * width + depth * (4 * width * width + 2 * width * inner)
    return None


def _field(model: TransformerConfig, names: tuple[str, ...]) -> int:
    values = [model.architecture.get(name) for name in names]
    return max((v for v in values if isinstance(v, int) and not isinstance(v, bool)), default=1)


def layers(model: Any) -> int:
    """Layers that are built one after another."""
    if isinstance(model, TransformerConfig):
        return _field(model, DEPTH)
    return model.depth if isinstance(model, NetworkConfig) else 0


def memory_at_hand() -> int:
    """Bytes that a process of this machine may have: its memory, or the container's limit."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdigit() and int(text) > 0:
            found.append(int(text))
    return min(found)


def size_problems(config: Config, sizes: tuple[int, int, int], memory: int | None) -> list[str]:
    """Networks that are too deep to be built, or larger than `memory` in bytes; None for a cluster's.

    One line each, starting with the field of the model.
    """
    problems = []
    for path, model, _ in _networks(config):
        if (depth := layers(model)) > MOST_LAYERS:
            told = f"{depth:,}" if depth < 10**18 else shown(depth)
            problems.append(f"{path}: {told} layers, at most {MOST_LAYERS:,} can be built; lower it")
    if problems:
        return problems
    has = f"and this machine has {_gigabytes(memory)}" if memory is not None else "which no machine has"
    return list(_memory_problems(config, sizes, LARGEST_NODE if memory is None else memory, has))


def _networks(config: Config) -> Iterator[tuple[str, Any, TrainingConfig]]:
    """Each configured network with its field and its training; members that are alike once."""
    teachers = config.teachers
    if teachers.source == "train":
        yield "teachers.model", teachers.model, teachers.training
        for path, each in variants(teachers):
            if each.model is not None:
                yield f"{path}.model", each.model, teachers.training
    for path, model in student_models(config.student):
        yield path, model, config.student.training
    for i, model in enumerate(config.student.peers.models if config.student.peers is not None else []):
        yield f"student.peers.models.{i}", model, config.student.training


def _memory_problems(config: Config, sizes: tuple[int, int, int], memory: int, has: str) -> Iterator[str]:
    on_gpu = config.compute.gpus_per_worker != 0 and any(Path(name).exists() for name in GPUS)

    def bytes_of(count: int, training: TrainingConfig) -> int:
        """While it is trained; on a GPU only what is read and written passes through this machine."""
        idle = on_gpu or not training.epochs
        return count * (WEIGHTS + (0 if idle else GRADIENT + STATE[training.optimizer]))

    for path, model, training in _networks(config):
        count = parameters(model, *sizes)
        if count is not None and (needed := bytes_of(count, training)) > memory:
            yield f"{path}: {_count(count)} parameters, {_room(needed, training, on_gpu)}, {has}; {SMALLER}"
            return
    teachers, student = config.teachers, config.student
    if teachers.source == "train":
        num_members = num_teachers(config)
        members = [member_settings(teachers, i) for i in range(num_members)]
        counts = [(parameters(model, *sizes) or 0, training) for model, training in members]
        at_a_time = min(_workers(config), num_members * teachers.replicas_per_member)
        trained = sorted((bytes_of(*each) for each in counts), reverse=True)
        copies = teachers.replicas_per_member
        needed = sum(trained[: max(1, at_a_time // copies)]) * copies
        total = sum(count for count, _ in counts)
        what = f"teachers.model: {num_members:,} teachers of {_count(total)} parameters in all"
        if needed > memory:
            yield (
                f"{what}, {at_a_time:,} trained at a time take {_gigabytes(needed)} with gradients and the "
                f"optimiser's state, {has}; make the model smaller, or lower compute.num_workers"
            )
        elif total * WEIGHTS > memory:
            yield (
                f"{what}, which are all held while soft targets are computed: {_gigabytes(total * WEIGHTS)}, "
                f"{has}; lower teachers.num_members, or make the model smaller"
            )
    count = (parameters(student.model, *sizes) or 0) * _networks_of_one(student)
    at_a_time = min(_workers(config), student.seeds * student.replicas_per_member + 1)
    if (needed := bytes_of(count, student.training) * at_a_time) > memory:
        yield (
            f"student.model: {_count(count)} parameters, and {at_a_time:,} students trained at a time take "
            f"{_gigabytes(needed)} with gradients and the optimiser's state, {has}; make the model smaller, "
            "or lower compute.num_workers"
        )


def _networks_of_one(student: Any) -> int:
    """How many networks of its size a student that learns together with others has in memory, at most."""
    if student.learner is not None:
        return int(student.learner.networks)
    together = student.peers or student.branches
    return together.count if together is not None else 1


def _workers(config: Config) -> int:
    """Training workers at a time on this machine."""
    wanted, each = config.compute.num_workers, config.compute.cpus_per_worker
    fit = max(1, int((os.cpu_count() or 1) / each))
    if wanted == "auto":
        return fit
    return max(1, min(fit, wanted[1] if isinstance(wanted, tuple) else wanted))


def _room(needed: int, training: TrainingConfig, on_gpu: bool) -> str:
    if on_gpu or not training.epochs:
        return f"whose weights take {_gigabytes(needed)}"
    return f"which take {_gigabytes(needed)} with gradients and {training.optimizer}'s state"


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**18 else f"{float(number) if number < 10**300 else math.inf:.1e}"


def _gigabytes(size: int) -> str:
    """`12.3 GB`, or a power of ten."""
    if size >= 10**15:
        return f"{float(size) / 1e9 if size < 10**300 else math.inf:.1e} GB"
    return f"{size / 1e9:,.1f} GB"
