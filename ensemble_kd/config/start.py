"""What a student starts from: a table of word pieces, a smaller network; and what is wrong with that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.growth import GrowthConfig, growth_problems

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class StaticEmbeddingConfig(Block):
    """Vectors that a transformer gives each word piece by itself, on their first principal axes."""

    name: Literal["static_embedding"] = "static_embedding"
    """`static_embedding`"""
    weights: Literal["pretrained", "teacher"] = "pretrained"
    """The transformer: that of `source` as it is, or the run's best transformer among the teachers."""
    source: str | None = None
    """Hub name, local folder, or `package:MODULE/FOLDER`; null for that of the tokenizer."""
    frequency: float = Field(1e-3, gt=0, le=1)
    """a in a / (a + f), by which a piece that is a share f of all in the transfer set is multiplied."""


def start_of(value: Any) -> Any:
    """`start: static_embedding` is short for a block with this name; `random` for none."""
    if isinstance(value, str):
        return None if value == "random" else {"name": value}
    return value


def start_problems(path: str, model: Any, config: Config) -> list[str]:
    """`path` is that of the model's block."""
    start = getattr(model, "start", None)
    if start is None:
        return []
    path = f"{path}.start"
    if not path.startswith("student"):
        return [f"{path}: {start.name!r} is for students; leave it out"]
    if isinstance(start, GrowthConfig):
        return _growth_problems(path, start, model, config)
    if config.data.kind != "text":
        return []  # told of the model itself
    if (tokenizer := config.data.text.tokenizer) != "pretrained":
        return [
            f"{path}: sends the word pieces of a pretrained tokenizer through its model, and "
            f"data.text.tokenizer is {tokenizer!r}; set it to pretrained"
        ]
    if start.weights == "pretrained":
        return []
    if start.source is not None:
        return [f"{path}.source: not read with weights: teacher; leave one out"]
    from ensemble_kd.config.teachers import variants  # which imports the models, and these this file

    teachers = config.teachers
    models = [teachers.model, *(each.model for _, each in variants(teachers) if each.model)]
    if teachers.source == "pretrained" or (
        teachers.source == "train" and any(model.name == "transformer" for model in models)
    ):
        return []
    return [
        f"{path}.weights: 'teacher' takes a transformer of the run, and no teacher is one; use pretrained, "
        "with a source"
    ]


def _growth_problems(path: str, start: GrowthConfig, model: Any, config: Config) -> list[str]:
    """`path` is that of `start`."""
    from ensemble_kd.config.teachers import variants  # as above

    teachers = config.teachers
    if teachers.source != "train":
        return [
            f"{path}: {start.name!r} starts from a teacher that the run has trained, and teachers.source is "
            f"{teachers.source!r}; set it to train, or leave start out"
        ]
    models = [teachers.model, *(each.model for _, each in variants(teachers) if each.model)]
    found = [growth_problems(start, old, model) for old in models]
    if not all(found):
        return []
    own = [lines for lines, old in zip(found, models, strict=True) if old.name == model.name]
    block = path.rpartition(".")[0]
    return [f"{block}.{line}" for line in (own or found)[0]]
