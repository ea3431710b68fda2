"""The phases of a student's training, and the teachers that run beside it; and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.base import PHASE_NAME, Block
from ensemble_kd.config.data_files import path_problems
from ensemble_kd.config.growth import GROWN, GrowthConfig, growth_problems
from ensemble_kd.config.models import ModelConfig, TransformerConfig, model_problems
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class OnlineConfig(Block):
    """Teachers that run beside the student, for what the soft targets do not hold: hidden states,
    attention."""

    teachers: Literal["best", "all"] | list[Annotated[int, Field(ge=0)]] = "best"
    """Of the run's teachers: the best on validation rows, all, or those of these numbers."""
    source: str | None = None
    """A pretrained transformer to learn from instead: hub name, folder or `package:MODULE/FOLDER`."""
    logits: bool = False
    """Compute their logits beside the student too, instead of reading the stored ones."""


class CorpusConfig(Block):
    """Texts without labels for one phase of the student's training."""

    path: str | None = None
    """File, folder, glob or URL."""
    column: str = "text"
    """Column of the texts."""
    max_length: int = Field(128, ge=8, le=8192)
    """Tokens kept per text."""
    min_length: int = Field(16, ge=1)
    """Tokens that a text needs to be taken."""
    rows: int | None = Field(None, ge=1)
    """Texts taken, from the beginning; null for all."""


class PhaseConfig(Block):
    """What a student learns before its last phase, which the `student` block itself describes."""

    later: ClassVar[frozenset[str]] = frozenset({"model"})

    name: str = Field(pattern=PHASE_NAME)
    """What it is called."""
    model: ModelConfig | None = None
    """A smaller network for this phase, from which the next one grows (as `net2net`); null for the
    student's."""
    task: Literal["classify", "mlm"] = "classify"
    """`classify`: the classes of the data. `mlm`: words that were masked."""
    corpus: CorpusConfig | None = None
    """Texts to learn from; null for the transfer set."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    temperature: float = Field(1.0, gt=0, le=1000)
    """T, on both sides of the soft loss."""
    alpha: float = Field(1.0, ge=0, le=1)
    """Weight of the soft loss; 1 - alpha weighs the hard loss (labels, or the masked words)."""
    objective: str | dict[str, Any] | None = None
    """The soft loss; null for the `terms` alone."""
    terms: list[dict[str, Any]] = []
    """Further losses; as `student.terms`."""
    online: OnlineConfig = OnlineConfig()
    """Teachers that run beside the student."""
    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens to be masked (task: mlm)."""
    shared: bool = False
    """Whether the baselines go through this phase too, as pretraining that any student would have."""

    @property
    def objective_fields(self) -> dict[str, Any] | None:
        return {"name": self.objective} if isinstance(self.objective, str) else self.objective


def phase_problems(config: Config) -> list[str]:
    """What does not fit between the student's phases and the rest."""
    problems = _growing_problems(config)
    student, seen = config.student, set[str]()
    own_phase = False
    for i, phase in enumerate(student.phases):
        path = f"student.phases.{i}"
        if phase.name in seen:
            problems.append(f"{path}.name: {phase.name!r} comes twice; name each phase differently")
        seen.add(phase.name)
        if phase.shared and own_phase:
            problems.append(
                f"{path}.shared: baselines go through shared phases alone, so these come first; move it up"
            )
        own_phase = own_phase or not phase.shared
        if phase.shared and phase.corpus is None:
            problems.append(
                f"{path}.shared: pretraining that any student would have needs a corpus; on the transfer "
                f"set it is "
                "a part of distilling, so set shared to false"
            )
        if phase.corpus is not None and config.data.kind != "text":
            problems.append(f"{path}.corpus: texts, but data.kind is {config.data.kind!r}; leave it out")
        if phase.corpus is not None:
            problems += path_problems(f"{path}.corpus.path", phase.corpus.path)
        if phase.task == "mlm" and (
            not isinstance(student.model, TransformerConfig) or config.data.text.tokenizer != "pretrained"
        ):
            problems.append(
                f"{path}.task: 'mlm' takes a transformer and data.text.tokenizer=pretrained; use classify"
            )
        if phase.task == "mlm" and phase.online.source is None and (phase.terms or phase.objective):
            problems.append(
                f"{path}.online.source: missing; the run's teachers are classifiers, and in phase "
                f"{phase.name!r} words are guessed; name a pretrained model"
            )
        if phase.task == "mlm" and phase.corpus is None:
            problems.append(f"{path}.corpus: missing; words to be guessed come from a corpus")
        if phase.task == "classify" and phase.corpus is not None:
            if phase.alpha < 1:
                problems.append(f"{path}.alpha: {phase.alpha}, but a corpus has no labels; set it to 1")
        if phase.alpha > 0 and phase.objective is None and not phase.terms:
            hard = "the masked words" if phase.task == "mlm" else "labels"
            problems.append(
                f"{path}.terms: none, and no objective, so that alpha = {phase.alpha} weighs nothing; name "
                f"one, or set {path}.alpha=0 for {hard} alone"
            )
        unjudged = phase.corpus is not None or (phase.alpha == 1 and phase.objective is None)
        if phase.training.early_stopping is not None and unjudged:
            problems.append(
                f"{path}.training.early_stopping: validation rows judge the classifier, which does not learn "
                "in this phase; leave it out"
            )
        if phase.corpus is not None and phase.corpus.min_length > phase.corpus.max_length:
            problems.append(
                f"{path}.corpus.min_length: {phase.corpus.min_length} is above max_length = "
                f"{phase.corpus.max_length}; lower it"
            )
        if phase.training.batch_size % (student.replicas_per_member * phase.training.gradient_accumulation):
            problems.append(
                f"{path}.training.batch_size: {phase.training.batch_size} cannot be cut into "
                f"{student.replicas_per_member} replicas x {phase.training.gradient_accumulation} parts"
            )
    return problems


def _growing_problems(config: Config) -> list[str]:
    """Phases with networks of their own that the next one cannot grow from."""
    student, problems = config.student, []
    if not any(phase.model for phase in student.phases):
        return []
    if getattr(student.model, "start", None) is not None:
        problems.append(
            "student.model.start: the student grows from the network of a phase; leave start out, or the "
            "phases' models"
        )
    found: list[tuple[str, Any]] = []
    for i, phase in enumerate(student.phases):
        path = f"student.phases.{i}.model"
        found.append((path, phase.model or student.model))
        if phase.model is None:
            continue
        problems += model_problems(path, phase.model, config.data.kind)
        if phase.model.name not in GROWN:
            problems.append(f"{path}.name: {phase.model.name!r} cannot be grown; use {' or '.join(GROWN)}")
        elif getattr(phase.model, "start", None) is not None:
            problems.append(f"{path}.start: is for the student itself; leave it out of a phase")
    if problems:
        return problems
    found.append(("student.model", student.model))
    how = GrowthConfig(name="net2net")
    for (_, old), (path, new) in zip(found, found[1:], strict=False):
        if old != new:
            problems += [f"{path}.{line}" for line in growth_problems(how, old, new, "the phase before")]
    return problems
