"""The `student` block; and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from ensemble_kd.config.base import Block
from ensemble_kd.config.branches import BranchesConfig
from ensemble_kd.config.image_models import MLPConfig
from ensemble_kd.config.methods import Compressor, Learner
from ensemble_kd.config.models import ModelConfig
from ensemble_kd.config.peers import PeersConfig
from ensemble_kd.config.phases import OnlineConfig, PhaseConfig
from ensemble_kd.config.quantization import QuantizationConfig
from ensemble_kd.config.teachers import num_teachers
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


Auto = Literal["auto"]
AsSchedule = Annotated[dict[str, Any], Tag("[schedule]")]
OR_SCHEDULE = Discriminator(lambda value: "[schedule]" if isinstance(value, dict) else "float")
AUTO_FIELDS = ("temperature", "alpha", "pseudo")
"""Of the student: numbers that may be `auto`."""
MOST_ASSISTANTS, MOST_GENERATIONS, MOST_COMPRESSORS = 5, 10, 10


class Numbers(NamedTuple):
    """The three weights of a student's loss; where they are still to be chosen, what stands for them."""

    temperature: float = 1.0
    alpha: float = 1.0
    pseudo: float = 0.0


class StudentConfig(Block):
    """The one model that is shipped, and how it learns."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"assistants", "generations", "peers", "branches", "learner", "compress"}
    )

    model: ModelConfig = MLPConfig(hidden=[32])
    """Architecture."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    temperature: Annotated[
        Annotated[Annotated[float, Field(gt=0, le=1000)] | Auto, Tag("float")] | AsSchedule, OR_SCHEDULE
    ] = 4.0
    """T, on both sides of the soft loss; below 1 sharpens underconfident teachers. `auto`: chosen on
    validation rows before students are trained, as the next two. A schedule from `start` to `end` changes it
    from epoch to epoch (annealing, arXiv 2104.07163); such students are trained one by one."""
    alpha: Annotated[
        Annotated[Annotated[float, Field(ge=0, le=1)] | Auto, Tag("float")] | AsSchedule, OR_SCHEDULE
    ] = 0.9
    """Weight of the soft loss; 1 - alpha weighs the hard loss. A number, or a schedule from `start` to `end`,
    both 0 to 1, as of the weights of `terms`."""
    pseudo: Annotated[float, Field(ge=0, le=1)] | Auto = 0.0
    """Weight of a hard loss on the ensemble's most probable class, on rows without a label; alpha = 0 and
    pseudo = 1 are pseudo-labels alone."""
    objective: str | dict[str, Any] | None = "kl"
    """The soft loss: its name (`kl`, `mse`), or a block with `name` and its fields; null for `terms`
    alone."""
    terms: list[dict[str, Any]] = []
    """Further losses, each a block with `name`, `weight` (a number or a schedule) and its fields; they are
    added to alpha * soft + (1 - alpha) * hard."""
    online: OnlineConfig = OnlineConfig()
    """Teachers that run beside the student where a loss needs more than stored logits."""
    peers: PeersConfig | None = None
    """Networks that learn together with the student, each from the others' predictions; null for none. The
    one that is best on validation rows is shipped."""
    branches: BranchesConfig | None = None
    """Branches over a shared trunk that learn from their own ensemble; null for none."""
    learner: Learner | None = None
    """What one optimiser trains in the student's place, of a plug-in's making: a block with `name` and its
    fields; null for the student's network."""
    compress: list[Compressor] = Field([], max_length=MOST_COMPRESSORS)
    """What makes the network smaller while it trains, of plug-ins' making, one after the other: blocks with
    `name` and their fields."""
    phases: list[PhaseConfig] = []
    """What comes before: pretraining on a corpus, hidden states before predictions."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """How the members' distributions at T are averaged."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """Weight of each member in the mean; null for equal weights."""
    targets: Literal["auto", "ensemble", "specialists", "both"] = "auto"
    """What to learn from: the `ensemble`, the ensemble with its `specialists`, or the mean of `both`; `auto`
    is `specialists` where the run has them."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the transfer set that a student sees, drawn by its seed."""
    without_classes: list[Annotated[int, Field(ge=0)]] = []
    """Numbers of classes whose labelled rows no student sees: it knows them from soft targets alone."""
    class_bias: Literal["none", "fitted"] = "none"
    """`fitted`: one bias per class, chosen on validation rows and kept in the student's weights; for classes
    that the transfer set lacks or has too few of (arXiv 1503.02531, section 3)."""
    quantization: QuantizationConfig | None = None
    """Training for integer weights, in the last phase; null for none."""
    seeds: int = Field(1, ge=1, le=1000)
    """Students trained, each with its own initialisation and order; the best on validation is shipped."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one student together (DDP)."""
    assistants: list[ModelConfig] = Field([], max_length=MOST_ASSISTANTS)
    """Networks between the ensemble and the student, the largest first (arXiv 1902.03393): each learns from
    the one before, the first from the ensemble and the student from the last, as the `student` block says."""
    generations: int = Field(1, ge=1, le=MOST_GENERATIONS)
    """Students of one architecture of which each learns from the one before (born-again networks, arXiv
    1805.04770); the last is shipped, and the ensemble of all is a row of the report."""

    @property
    def auto(self) -> tuple[str, ...]:
        """Fields that are to be chosen."""
        return tuple(name for name in AUTO_FIELDS if getattr(self, name) == "auto")

    @property
    def chained(self) -> bool:
        """Whether the student that is shipped learns from other networks than the teachers."""
        return bool(self.assistants) or self.generations > 1

    @property
    def numbers(self) -> Numbers:
        given = {name: getattr(self, name) for name in AUTO_FIELDS if name not in self.auto}
        if self.alpha_schedule is not None:  # what decides whether soft targets are read at all
            ends = [self.alpha_schedule.get(name) for name in ("start", "end")]
            given["alpha"] = max((float(end) for end in ends if isinstance(end, int | float)), default=1.0)
        if self.temperature_schedule is not None:  # that of the first epoch
            start = self.temperature_schedule.get("start")
            given["temperature"] = float(start) if isinstance(start, int | float) and start > 0 else 1.0
        return Numbers(**given)

    @property
    def alpha_schedule(self) -> dict[str, Any] | None:
        """Fields of a schedule, where `alpha` is one."""
        return self.alpha if isinstance(self.alpha, dict) else None

    @property
    def temperature_schedule(self) -> dict[str, Any] | None:
        """Fields of a schedule, where `temperature` is one."""
        return self.temperature if isinstance(self.temperature, dict) else None

    @property
    def distils(self) -> bool:
        """Whether it learns from anything but labels; else it is its own baseline."""
        together = (self.peers, self.branches, self.learner)
        return self.reads_teachers or any(block is not None for block in together)

    @property
    def reads_teachers(self) -> bool:
        """Whether it learns from teachers, by what is stored of them or beside it."""
        return self.numbers.alpha > 0 or self.numbers.pseudo > 0 or bool(self.terms)

    @property
    def objective_fields(self) -> dict[str, Any] | None:
        return {"name": self.objective} if isinstance(self.objective, str) else self.objective


def online_problems(config: Config) -> list[str]:
    """Teachers beside a student that are not there, and what their logits do not go with."""
    problems: list[str] = []
    count = num_teachers(config)
    for path, block in student_blocks(config):
        chosen = block.online.teachers
        if isinstance(chosen, list) and (
            not chosen or max(chosen) >= count or len(set(chosen)) != len(chosen)
        ):
            problems.append(
                f"{path}.online.teachers: {chosen}; name different ones of the "
                f"{count} teachers, 0 to {count - 1}"
            )
    student = config.student
    if student.online.logits and config.targets != "ensemble":
        problems.append(
            f"student.online.logits: those of the teachers alone, but student.targets is {config.targets!r}; "
            "set student.targets=ensemble, or leave the logits to the store"
        )
    if student.online.logits and student.numbers.pseudo > 0:
        problems.append(
            f"student.pseudo: {student.numbers.pseudo:g} weighs answers that the store holds, but with "
            "student.online.logits it is not read; set one of them to its default"
        )
    return problems


def student_models(student: StudentConfig) -> list[tuple[str, Any]]:
    """The student's model and those of its assistants and phases, each with its path."""
    found = [("student.model", student.model)]
    found += [(f"student.assistants.{i}", model) for i, model in enumerate(student.assistants)]
    phases = [(f"student.phases.{i}.model", phase.model) for i, phase in enumerate(student.phases)]
    return found + [(path, model) for path, model in phases if model is not None]


def student_blocks(config: Config) -> list[tuple[str, Any]]:
    """The student's block and those of its phases, each with its path: what has losses of its own."""
    phases = [(f"student.phases.{i}", phase) for i, phase in enumerate(config.student.phases)]
    return [("student", config.student), *phases]
