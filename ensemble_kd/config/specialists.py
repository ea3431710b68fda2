"""The `clusters` and `specialists` blocks; and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ensemble_kd.config.base import Block
from ensemble_kd.config.models import TreesConfig
from ensemble_kd.config.teachers import member_models
from ensemble_kd.config.training import TrainingConfig

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class ClustersConfig(Block):
    """Sets of classes that the teachers confuse, one for each specialist (arXiv 1503.02531, section 5.2)."""

    source: Literal["covariance", "confusion"] = "covariance"
    """`covariance` of predictions on the transfer set, or `confusion` of classes on validation rows."""
    temperature: float = Field(3.0, gt=0, le=1000)
    """T at which predictions are softened first; at 1 the clusters of good teachers tend to collapse."""
    centre: bool | Literal["auto"] = "auto"
    """Subtract the means, as a covariance does; without it the matrix is E[p p^T], which suits few classes:
    their probabilities compete, so that hardly a covariance is positive. `auto`: from 50 classes on."""
    normalise: bool = True
    """Scale the matrix's columns to length 1, so that frequent classes do not dominate."""
    method: Literal["kmeans", "online", "spectral"] = "kmeans"
    """scikit-learn's k-means, the online form of the paper, or spectral clustering."""
    num_clusters: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Clusters; `auto` weighs the confusion inside them against their size."""
    classes_per_specialist: int | None = Field(None, ge=2)
    """Classes of each, the nearest to its cluster's centre; null for as many as the cluster has."""
    overlap: bool = True
    """Whether a class may belong to several specialists."""
    min_size: int = Field(2, ge=2)
    """Least number of classes of a specialist."""
    max_size: int | None = Field(None, ge=2)
    """Largest number of classes of a specialist; null for all but one."""


class SpecialistTrainingConfig(TrainingConfig):
    """As `TrainingConfig`, but shorter; weight_decay, max_norm, label_smoothing: the teacher's if unset."""

    epochs: Literal["auto"] | Annotated[int, Field(ge=1)] = 10
    """An epoch is the specialist's rows once, and as many others as `special_fraction` asks for. `auto`: by
    `min_steps`, each specialist by its own rows."""
    early_stopping: int | None = Field(3, ge=1)
    """Epochs without a better loss on the validation rows on which it is asked; null to run to the end."""


class SpecialistsConfig(Block):
    """Experts on the clusters, trained from the teachers' weights (arXiv 1503.02531, section 5)."""

    generalists: Literal["all", "best"] = "all"
    """Teachers that get specialists: `all`, each its own, or only the `best` on validation rows."""
    output: Literal["aggregate", "row", "full"] = "aggregate"
    """`aggregate`: dustbin = log-sum-exp of the inherited rows of the other classes. `row`: one new row, the
    paper's. `full`: all classes, soft targets of the generalist outside the cluster."""
    train_outside: bool = True
    """Whether the rows behind an aggregated dustbin are trained along."""
    special_fraction: float = Field(0.5, gt=0, lt=1)
    """Share of a specialist's examples that come from its classes."""
    training: SpecialistTrainingConfig = SpecialistTrainingConfig()
    """Training."""
    correction: Literal["fitted", "formula", "none"] = "fitted"
    """Correction of the dustbin for `special_fraction`: fitted on validation rows, or the paper's formula."""
    top_n: int = Field(1, ge=1)
    """A specialist is asked where it knows one of the generalist's n most probable classes."""
    weight: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Weight of each specialist against the generalist; `auto` chooses on validation rows, 0 being off."""
    replicas_per_member: int = Field(1, ge=1)
    """Workers that train one specialist together (DDP)."""


def specialist_problems(config: Config) -> list[str]:
    """What does not fit between clusters, specialists and the rest."""
    clusters, problems = config.clusters, []
    if config.specialists is None:
        if config.student.targets in ("specialists", "both"):
            problems.append(
                f"student.targets: {config.student.targets!r}, but there are no specialists; "
                "add a `specialists` block (specialists: {} for the defaults) or use 'ensemble'"
            )
        return problems
    if config.teachers.source == "predictions":
        problems.append(
            "specialists: they start from a teacher's weights, and teachers.source=predictions has none; "
            "train the teachers or leave the specialists out"
        )
    models = member_models(config.teachers) if config.teachers.source == "train" else []
    if any(isinstance(model, TreesConfig) for model in models):
        problems.append(
            "specialists: they start from a teacher's weights, and a teacher is of trees, which have none; "
            "leave the trees or the specialists out"
        )
    if config.specialists.output == "full":
        if config.specialists.correction == "formula":
            problems.append(
                "specialists.correction: 'formula' supposes that all examples have labels, and output 'full' "
                "takes unlabelled ones too; use 'fitted'"
            )
        if config.specialists.training.label_smoothing > 0:
            problems.append(
                "specialists.training.label_smoothing: output 'full' learns from soft targets; set it to 0"
            )
    least, most, size = clusters.min_size, clusters.max_size, clusters.classes_per_specialist
    if most is not None and most < least:
        problems.append(f"clusters.max_size: {most} is below clusters.min_size = {least}; raise it")
    elif size is not None and not least <= size <= (most or size):
        problems.append(
            f"clusters.classes_per_specialist: {size} lies outside clusters.min_size = {least} and "
            f"clusters.max_size = {most}; change one of them"
        )
    return problems
