"""`soft_targets.keep`: what the store holds of the teachers beside logits, and what does not fit."""

from __future__ import annotations

from typing import Any

from ensemble_kd.config import Config, num_teachers
from ensemble_kd.data.store import Kept, StoreLayout
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.models.transplant import resolve
from ensemble_kd.stages.fit import teacher_model
from ensemble_kd.stages.skeletons import sample_outputs, skeleton


def kept_of(config: Config, info: dict[str, Any]) -> Kept | None:
    """What is kept of each teacher; None for logits alone.

    Raises ConfigError where the teachers are not built alike, or lack what is asked for.
    """
    settings = config.soft_targets
    if not settings.keep:
        return None
    if "features" in settings.keep:
        return Kept((), (), 0, 0, 0, 0, False, settings.keep_dtype, _features(config, info))
    shapes: dict[tuple[int, int, int], int] = {}  # depth, width, heads -> number of a teacher
    known: set[str] = set()
    for i in range(num_teachers(config)):
        model, path = teacher_model(config, i)
        if (text := model.model_dump_json()) not in known:
            known.add(text)
            network = skeleton(resolve(model, path=path)[0], info, path)
            shapes.setdefault(_shape(network, info, "attention" in settings.keep), i)
    if len(shapes) > 1:
        told = [
            f"teacher {i} has {depth} blocks of width {width}" + (f" and {heads} heads" if heads else "")
            for (depth, width, heads), i in shapes.items()
        ]
        raise ConfigError(
            f"soft_targets.keep: teachers that are built alike, and {', '.join(told[:3])}; give all the same "
            "architecture, or set keep: [], so that the teacher runs beside the student"
        )
    ((depth, width, heads),) = shapes
    layers = range(depth + 1) if settings.keep_layers is None else sorted(settings.keep_layers)
    if unknown := [number for number in layers if number > depth]:
        raise ConfigError(
            f"soft_targets.keep_layers: {unknown}, but the teachers have {depth} blocks; choose from 0, the "
            f"embeddings' output, to {depth}"
        )
    return Kept(
        tuple(layers) if "hidden" in settings.keep else (),
        tuple(number for number in layers if number) if "attention" in settings.keep else (),
        depth,
        width,
        heads,
        info["input_shape"][0],
        settings.keep_positions == "first",
        settings.keep_dtype,
    )


def _features(config: Config, info: dict[str, Any]) -> int:
    """Width of the teachers' features; ConfigError where they have none, or differ."""
    widths: dict[int, int] = {}  # width -> number of a teacher
    for i in range(num_teachers(config)):
        model, path = teacher_model(config, i)
        try:
            states = sample_outputs(
                skeleton(resolve(model, path=path)[0], info, path), info, {"hidden": True}
            )
        except ConfigError as error:
            raise ConfigError([f"soft_targets.keep: {line}" for line in error.problems]) from error
        last = list((states.hidden or {}).values())[-1:]
        if not last or last[0].dim() != 2:
            shape = f"{tuple(last[0].shape[1:])}" if last else "missing"
            raise ConfigError(
                f"soft_targets.keep: features are the last hidden state, as numbers in a row, and that of "
                f"teacher {i} is {shape}; set keep: [], so that the teacher runs beside the student"
            )
        widths.setdefault(last[0].shape[1], i)
    if len(widths) > 1:
        told = ", ".join(f"teacher {i} has {width}" for width, i in list(widths.items())[:3])
        raise ConfigError(
            f"soft_targets.keep: features of one width, and {told}; give all teachers the same, or set keep: "
            "[], so that the teacher runs beside the student"
        )
    return next(iter(widths))


def _shape(network: Network, info: dict[str, Any], attention: bool) -> tuple[int, int, int]:
    """Blocks, width, and heads, which are 0 where attention is not asked for."""
    try:
        found = sample_outputs(network, info, {"hidden": True, "attention": attention})
    except ConfigError as error:
        raise ConfigError([f"soft_targets.keep: {line}" for line in error.problems]) from error
    states, scores = found.hidden or {}, found.attention
    return len(states) - 1, states["embedding"].shape[-1], scores[0].shape[1] if scores else 0


def kept_problems(config: Config, info: dict[str, Any]) -> list[str]:
    """What cannot be kept of these teachers on this data, too many bytes among it."""
    settings, members = config.soft_targets, num_teachers(config)
    try:
        kept = kept_of(config, info)
    except ConfigError as error:
        return [line for line in error.problems if line.startswith("soft_targets.")]  # others are known
    if kept is None:
        return []
    layout = StoreLayout(1, members, info["num_classes"], None, kept)
    rows = info["counts"]["transfer"]
    size = (layout.bytes_per_row - layout.logits_alone.bytes_per_row) * rows
    if size <= settings.keep_at_most * 1e9:
        return []
    if kept.features:
        return [
            f"soft_targets.keep_at_most: {settings.keep_at_most:g} GB, but features of {members} teachers "
            f"for {rows} rows take {size / 1e9:.3g} GB; raise the limit, or set soft_targets.keep: [], so "
            "that the teacher runs beside the student"
        ]
    first = "" if kept.first_only or kept.attention else ", set soft_targets.keep_positions: first"
    return [
        f"soft_targets.keep_at_most: {settings.keep_at_most:g} GB, but {' and '.join(settings.keep)} of "
        f"{members} teachers for {rows} rows of {kept.length} tokens take {size / 1e9:.3g} GB; keep fewer "
        f"layers (soft_targets.keep_layers){first}, raise the limit, or set soft_targets.keep: [], so that "
        "the teacher runs beside the student"
    ]
