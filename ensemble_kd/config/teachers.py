"""The `teachers` block, and what each member of the ensemble is trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.base import Block, replace
from ensemble_kd.config.image_models import MLPConfig
from ensemble_kd.config.models import ModelConfig
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class MemberOverride(Block):
    """What one member of the ensemble does differently."""

    model: ModelConfig | None = None
    """Another architecture."""
    training: dict[str, Any] = {}
    """Fields of `training` to replace."""


class MemberKind(MemberOverride):
    """Further members of another kind."""

    count: int = Field(1, ge=1, le=10000)
    """Members of this kind; they differ by seed."""


class PredictionsConfig(Block):
    """Teacher outputs that the user already has: per split a list of Parquet files, one a member."""

    train: list[str] = Field(min_length=1)
    """One file per member, covering every row of the transfer set."""
    validation: list[str] = []
    """One file per member for the validation rows; empty if there are none."""
    test: list[str] = []
    """One file per member for the test rows; without them the report has no line for the ensemble."""
    id_column: str = "id"
    """Column that holds `data.columns.id`, or the row number in its file."""
    column: str = "logits"
    """Column with one list of C numbers per row."""
    values: Literal["logits", "probabilities"] = "logits"
    """What the numbers are."""


class TeachersConfig(Block):
    """The ensemble."""

    later: ClassVar[frozenset[str]] = frozenset({"kinds", "weights"})

    source: Literal["train", "pretrained", "transformers", "callable", "mlflow", "predictions"] = "train"
    """`train` the members; take `pretrained` classifiers, whose inputs are the student's, or classifiers of
    the `transformers` library, each with its own tokenizer or image processor; a `callable` or an `mlflow`
    model as they are (`given`); or use `predictions` that exist already."""
    given: list[str] = []
    """One per member. pretrained, transformers: hub name, folder or `package:MODULE/FOLDER`. callable:
    `module:callable`, called with a batch of raw inputs: images (B, H, W, C) uint8, numbers (B, F), a list of
    texts or of pairs. mlflow: a model URI or folder; nothing pickled is read."""
    values: Literal["logits", "probabilities"] = "logits"
    """What a callable or MLflow model returns."""
    class_order: str | list[str | int] | dict[int, str | list[str | int]] | None = None
    """The data's classes in the order of a given teacher's outputs: names, or a file with one a line; by
    number of the member where they differ ({0: [...]}). null: the data's own order, or of a pretrained
    classifier that names the same classes its own."""
    on_mismatch: Literal["stop", "warn"] = "stop"
    """What a given member does to the run that answers like guessing, or whose classes seem to stand in
    another order on labelled rows."""
    predictions: PredictionsConfig | None = None
    """Files of teacher outputs (source: predictions)."""
    num_members: int = Field(5, ge=1, le=10000)
    """Teachers in the ensemble; they differ by seed."""
    model: ModelConfig = MLPConfig()
    """Architecture."""
    training: TrainingConfig = TrainingConfig()
    """Training."""
    overrides: list[MemberOverride] = []
    """Differences of single members, taken in turn: member i uses overrides[i mod length]."""
    kinds: list[MemberKind] = []
    """Members of other kinds, beside the `num_members` of `model`: each with what it does differently, and
    how many there are. Kinds that err on different rows make a better mean than more of one kind."""
    bootstrap: bool = False
    """Draw each member's training rows with replacement."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows each member sees, drawn by its seed."""
    augment: bool = True
    """Apply `data.augment` anew in every epoch."""
    calibrate: bool = True
    """Divide each member's logits by a temperature fitted on validation rows before any mean is made."""
    weights: Literal["equal", "validation"] = "equal"
    """How much each member counts in the mean: as much as the others, or as it is worth on `validation` rows,
    drawn towards equal shares where these are few (then in place of `student.weights`)."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one member together (DDP)."""
    on_failure: Literal["stop", "exclude"] = "stop"
    """What a member whose loss is not finite does to the run: stop it, or leave the member out."""


def num_teachers(config: Config) -> int:
    """Members of the ensemble, trained or given."""
    if config.teachers.source == "predictions" and config.teachers.predictions is not None:
        return len(config.teachers.predictions.train)
    if config.teachers.source != "train":
        return len(config.teachers.given)
    return config.teachers.num_members + sum(kind.count for kind in config.teachers.kinds)


def variants(teachers: TeachersConfig) -> list[tuple[str, MemberOverride]]:
    """What single members or kinds do differently, each with its path."""
    found: list[tuple[str, MemberOverride]] = []
    for name in ("overrides", "kinds"):
        found += [(f"teachers.{name}.{i}", each) for i, each in enumerate(getattr(teachers, name))]
    return found


def with_variants(
    teachers: TeachersConfig, change: Callable[[MemberOverride], MemberOverride]
) -> TeachersConfig:
    """The block with every one of `variants` changed."""
    overrides, kinds = ([change(each) for each in block] for block in (teachers.overrides, teachers.kinds))
    return teachers.model_copy(update={"overrides": overrides, "kinds": kinds})


def varied(teachers: TeachersConfig, override: MemberOverride) -> tuple[Any, TrainingConfig]:
    """Architecture and training with what `override` does differently."""
    return override.model or teachers.model, replace(teachers.training, override.training)


def variant_of(teachers: TeachersConfig, index: int) -> tuple[str, MemberOverride] | None:
    """What member `index` does differently, with its path; None where that is nothing."""
    if index < teachers.num_members:
        if not teachers.overrides:
            return None
        number = index % len(teachers.overrides)
        return f"teachers.overrides.{number}", teachers.overrides[number]
    numbers = [i for i, kind in enumerate(teachers.kinds) for _ in range(kind.count)]
    number = numbers[index - teachers.num_members]
    return f"teachers.kinds.{number}", teachers.kinds[number]


def member_models(teachers: TeachersConfig) -> list[Any]:
    """Architecture of each member that is trained, whatever its training says."""
    count = teachers.num_members + sum(kind.count for kind in teachers.kinds)
    own = [variant_of(teachers, i) for i in range(count)]
    return [teachers.model if found is None else found[1].model or teachers.model for found in own]


def member_settings(teachers: TeachersConfig, index: int) -> tuple[Any, TrainingConfig]:
    """Architecture and training of member `index`, with what it does differently."""
    found = variant_of(teachers, index)
    return (teachers.model, teachers.training) if found is None else varied(teachers, found[1])
