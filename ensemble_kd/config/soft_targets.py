"""The `soft_targets` block; and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.models import TransformerConfig
from ensemble_kd.config.teachers import member_models

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class SoftTargetsConfig(Block):
    """The store of teacher outputs, computed once."""

    views: int = Field(1, ge=1, le=1000)
    """Versions of each transfer example in the store: itself and views-1 fixed augmentations."""
    top_k: int | None = Field(None, ge=1)
    """Keep the k largest logits and the log-mass of the rest, per member; null keeps all classes."""
    batch_size: int = Field(1024, ge=1)
    """Examples per forward pass."""
    num_actors: int | Literal["auto"] = "auto"
    """Processes that run the teachers; `auto`: one per CPU or GPU of the cluster."""
    keep: list[Literal["hidden", "attention", "features"]] = []
    """What to keep beside logits, so that no teacher runs beside the student for it: of text transformers
    `hidden` states and `attention` scores; of networks for images or numbers `features`, the state that the
    classifier reads, for losses on relations."""
    keep_layers: list[Annotated[int, Field(ge=0)]] | None = None
    """Numbers of the teachers' blocks to keep, 0 being the embeddings' output; null for all."""
    keep_positions: Literal["all", "first"] = "all"
    """Hidden states of all tokens, or of the `first` alone, [CLS], which is what `patient` reads."""
    keep_dtype: Literal["float16", "float32"] = "float16"
    """Numbers that they are kept in."""
    keep_at_most: float = Field(4.0, gt=0)
    """GB on disk that they may take; where it would be more, nothing is started."""


def keep_problems(config: Config) -> list[str]:
    """What is wrong with keeping more than logits, as far as it can be told without the data."""
    settings, teachers, problems = config.soft_targets, config.teachers, []
    path = "soft_targets.keep"
    layers = settings.keep_layers
    if not settings.keep:
        unused = [("layers", layers is not None), ("positions", settings.keep_positions != "all")]
        return [
            f"{path}_{name}: set, but {path} is empty, which leaves it unused; set {path}: [hidden], or "
            f"leave {path}_{name} out"
            for name, given in unused
            if given
        ]
    remedy = "set keep: [], so that the teacher runs beside the student"
    if config.data.kind != "text" and settings.keep != ["features"]:
        problems.append(
            f"{path}: {settings.keep} of text transformers alone, and data.kind is {config.data.kind!r}; "
            f"set keep: [features] for losses on relations, or {remedy}"
        )
    elif config.data.kind == "text" and "features" in settings.keep:
        problems.append(
            f"{path}: 'features' are kept of networks for images or numbers, and data.kind is 'text'; set it "
            "to [hidden], which has them"
        )
    elif "features" in settings.keep and any(m.name == "trees" for m in member_models(teachers)):
        problems.append(
            f"{path}: 'features' are kept of networks, and a teacher is 'trees'; leave these out of "
            f"teachers.kinds, or {remedy}"
        )
    elif teachers.source not in ("train", "pretrained"):
        problems.append(
            f"{path}: {settings.keep}, but teachers.source={teachers.source} gives numbers and no states; "
            "train the teachers, take pretrained ones, or set keep: []"
        )
    elif teachers.source == "train" and config.data.kind == "text":
        used = member_models(teachers)
        if others := sorted({model.name for model in used if not isinstance(model, TransformerConfig)}):
            problems.append(
                f"{path}: {settings.keep} of text transformers alone, and a teacher is {others[0]!r}; "
                f"{remedy}"
            )
    if config.soft_targets.views > 1:
        problems.append(
            f"{path}: {settings.keep}, but soft_targets.views is {settings.views}; keep takes the rows as "
            "they are, so set views to 1"
        )
    if len(set(settings.keep)) < len(settings.keep):
        problems.append(f"{path}: {settings.keep} names something twice; name each once")
    if "features" in settings.keep and (layers is not None or settings.keep_positions != "all"):
        problems.append(
            f"{path}_layers, keep_positions: for hidden states and attention, and {path} is {settings.keep}; "
            "leave them out"
        )
    elif settings.keep_positions == "first" and "attention" in settings.keep:
        problems.append(
            f"{path}_positions: 'first' is for hidden states, and {path} has attention too; set it to all, "
            "or keep: [hidden]"
        )
    if layers is not None and (not layers or len(set(layers)) < len(layers)):
        problems.append(f"{path}_layers: different numbers of blocks, at least one, got {layers}")
    elif layers == [0] and "attention" in settings.keep:
        problems.append(
            f"{path}_layers: [0] is the embeddings' output, which has no attention; add a block, or set "
            "keep: [hidden]"
        )
    return problems
