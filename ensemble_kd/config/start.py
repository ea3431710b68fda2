"""What a student starts from: a table of word pieces, a smaller network, what a plug-in says; and what is
wrong with that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.families import Family
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


class InitialiserConfig(Block):
    """What a plug-in gives a network to start from; `INITIALISERS.register` enters the block of one."""

    name: str
    """That of the plug-in's block, which narrows it to a Literal."""
    reads: ClassVar[Literal["nothing", "teacher"]] = "nothing"
    """`teacher`: the trained teacher that is best on validation rows is handed over."""

    def problems(self, model: Any, config: Config) -> list[str]:
        """What is wrong with it for a student of block `model`: one line each, starting with a field of
        `start`, or with a colon for all of it."""
        return []

    def initialise(self, network: Any, source: Any, info: dict[str, Any]) -> None:
        """Give `network`, a freshly made `models.build.Network`, its weights, in place.

        `source` is the teacher's `Network`, None where it `reads` nothing; `info` is `DataInfo.to_dict()`.
        Random numbers are torch's own, seeded by the student's seed. Raises ConfigError where the two do not
        fit.
        """
        raise NotImplementedError


INITIALISERS = Family("initialiser", GrowthConfig, StaticEmbeddingConfig)
"""What networks can start from by the name of its block."""


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
    if isinstance(start, InitialiserConfig):
        return _problems_of_plugin(path, start, model, config)
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


def _problems_of_plugin(path: str, start: InitialiserConfig, model: Any, config: Config) -> list[str]:
    if start.reads == "teacher" and config.teachers.source != "train":
        return [
            f"{path}: {start.name!r} starts from a teacher that the run has trained, and teachers.source is "
            f"{config.teachers.source!r}; set it to train, or leave start out"
        ]
    return [f"{path}{line if line.startswith(':') else f'.{line}'}" for line in start.problems(model, config)]


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
