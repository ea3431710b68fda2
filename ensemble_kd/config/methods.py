"""Blocks that plug-ins bring: how several networks learn, how one is compressed, further stages of a run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from ensemble_kd.config.base import Block
from ensemble_kd.config.families import Family, Kind
from ensemble_kd.registry import RegistrationError
from ensemble_kd.stage_list import ADDED, OURS, StageEntry

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class LearnerConfig(Block):
    """What one optimiser trains; `LEARNERS.register` enters the block of one."""

    name: str
    """That of the plug-in's block, which narrows it to a Literal."""
    networks: ClassVar[int] = 1
    """How many networks of the student's size are in memory at most."""

    def problems(self, config: Config) -> list[str]:
        """What does not go with it: one line each, starting with the path of a field."""
        return []

    def learner(self, network: Any, loss: Any, another: Any) -> Any:
        """Make the `train.learner.Learner` that trains `network` on `loss` (a `DistillationLoss`).

        `another(k)`, k = 1, 2, ..., makes one more network of the same model. Its random weights depend on
        the student's seed and k alone.
        """
        raise NotImplementedError


class CompressorConfig(Block):
    """What makes a network smaller while it trains; `COMPRESSORS.register` enters the block of one.

    Weights keep their names and shapes, so that what is shipped loads without the plug-in.
    """

    name: str
    """That of the plug-in's block, which narrows it to a Literal."""

    def problems(self, config: Config) -> list[str]:
        """What does not go with it: one line each, starting with a field of its own."""
        return []

    def prepare(self, network: Any) -> None:
        """Before training, once `network` (`models.build.Network`) has its initial weights."""
        return

    def before_step(self, network: Any, progress: float) -> None:
        """Before each optimiser step; `progress` is the share of them that is done, 0 to 1.

        A run that is resumed comes here again at the step where it stood: what this does may depend on
        the weights and `progress` alone.
        """
        return

    def finish(self, network: Any) -> None:
        """After training, before anything is measured or written: weights as they are shipped."""
        return


class StageConfig(Block):
    """A stage of a run besides the package's own; `EXTRA_STAGES.register` enters the block of one."""

    name: str
    """That of the plug-in's block, which narrows it to a Literal: the stage's name."""
    after: ClassVar[str] = "teachers"
    """Name of the stage behind which it runs."""

    def problems(self, config: Config) -> list[str]:
        """What does not go with it: one line each, starting with a field of its own."""
        return []

    @classmethod
    def stage(cls) -> Any:
        """Its `stages.base.Stage`; `config.extra_stage(name)` is the block of a run."""
        raise NotImplementedError


class StageFamily(Family):
    """Stages of plug-ins; what one is called is no name of another, and what it comes behind exists."""

    def register(self, block: Kind) -> Kind:
        known = [entry.name for entry in OURS]
        behind = getattr(block, "after", None)
        given: type[Block] = block
        fields = given.model_fields
        names = get_args(fields["name"].annotation) if "name" in fields else ()
        where = f"registers the stage {block.__module__}.{block.__qualname__}"
        if behind not in known[:-1]:
            raise RegistrationError(f"{where} after {behind!r}; use one of {', '.join(known[:-1])}")
        for name in names:
            if name in known or not re.fullmatch("[a-z][a-z0-9-]{0,40}", name):
                raise RegistrationError(
                    f"{where}, which cannot be called {name!r}; use small letters, digits and '-', and no "
                    "name of the package's own stages"
                )
        return super().register(block)

    def entries(self) -> list[StageEntry]:
        """As `stage_list` has them."""
        return [_entry(name, block) for name, block in self.registry.items()]


def _entry(name: str, block: type[StageConfig]) -> StageEntry:
    return StageEntry(
        name,
        " ".join((block.__doc__ or "").split("\n\n")[0].split()),
        without=lambda config: config.extra_stage(name) is None,
        remedy=f"extra_stages=[{{name: {name}}}]",
        after=block.after,
        make=block.stage,
    )


LEARNERS = Family("learner", base=LearnerConfig)
COMPRESSORS = Family("compressor", base=CompressorConfig)
EXTRA_STAGES = StageFamily("stage", base=StageConfig)
ADDED.append(EXTRA_STAGES.entries)
ExtraStage = Annotated[StageConfig, EXTRA_STAGES]
Learner = Annotated[LearnerConfig, LEARNERS]
Compressor = Annotated[CompressorConfig, COMPRESSORS]


def method_problems(config: Config) -> list[str]:
    """What does not fit between the methods of plug-ins and the rest."""
    student, problems = config.student, list[str]()
    names = [stage.name for stage in config.extra_stages]
    for i, stage in enumerate(config.extra_stages):
        if stage.name in names[:i]:
            problems.append(f"extra_stages.{i}.name: {stage.name!r} is listed twice; leave one of them out")
        problems += [f"extra_stages.{i}.{line}" for line in stage.problems(config)]
    learner = student.learner
    if learner is not None:
        wrong = [
            ("student.replicas_per_member", student.replicas_per_member > 1, "set it to 1"),
            ("student.terms", bool(student.terms), "leave them out"),
            ("student.online.logits", student.online.logits, "leave it to the store"),
            ("student.peers", student.peers is not None, "leave them out"),
            ("student.branches", student.branches is not None, "leave them out"),
        ]
        problems += [
            f"{name}: does not go together with student.learner; {remedy}, or leave student.learner out"
            for name, bad, remedy in wrong
            if bad
        ]
        problems += learner.problems(config)
    for i, compressor in enumerate(student.compress):
        problems += [f"student.compress.{i}.{line}" for line in compressor.problems(config)]
    others: dict[str, Any] = {"quantization": student.quantization, "learner": learner}
    others |= {"peers": student.peers, "branches": student.branches}
    problems += [
        f"student.compress: does not go together with student.{name}; leave one of them out"
        for name, block in others.items()
        if student.compress and block is not None
    ]
    return problems
