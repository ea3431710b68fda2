"""The whole configuration of a run."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ensemble_kd.config.auto import to_choose
from ensemble_kd.config.base import MODULE, RUN_NAME, Block
from ensemble_kd.config.compute import ComputeConfig, TrackingConfig
from ensemble_kd.config.data import DataConfig
from ensemble_kd.config.export import ExportConfig, ReportConfig
from ensemble_kd.config.methods import ExtraStage
from ensemble_kd.config.models import TransformerConfig
from ensemble_kd.config.soft_targets import SoftTargetsConfig
from ensemble_kd.config.specialists import ClustersConfig, SpecialistsConfig
from ensemble_kd.config.student import StudentConfig, student_models
from ensemble_kd.config.sweep import SweepConfig
from ensemble_kd.config.teachers import TeachersConfig, variants
from ensemble_kd.stage_list import stages_of


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Config(Block):
    """One run: (augment,) data, teachers, gap, soft targets, (clusters, specialists,) (sweep,) (choose,)
    student, (export,) report."""

    later: ClassVar[frozenset[str]] = frozenset({"plugins", "extra_stages"})

    name: str = Field(pattern=RUN_NAME)
    """Name of the run and of its folder under `runs/`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of splits, initialisations, orders and augmentations."""
    plugins: Annotated[list[Annotated[str, Field(pattern=MODULE)]], BeforeValidator(_listed)] = []
    """Modules of yours that bring methods (networks, objectives and others): each registers them on import,
    and must be on PYTHONPATH of every process."""
    data: DataConfig
    """The data set."""
    teachers: TeachersConfig = TeachersConfig()
    """The ensemble."""
    soft_targets: SoftTargetsConfig = SoftTargetsConfig()
    """The store of teacher outputs."""
    clusters: ClustersConfig = ClustersConfig()
    """Sets of confusable classes."""
    specialists: SpecialistsConfig | None = None
    """Experts on the clusters; null for a run without."""
    student: StudentConfig = StudentConfig()
    """The student."""
    sweep: SweepConfig | None = None
    """Search for the student's settings; null to take them as they are."""
    compute: ComputeConfig = ComputeConfig()
    """Use of the cluster."""
    tracking: TrackingConfig = TrackingConfig()
    """MLflow."""
    export: ExportConfig | None = None
    """Forms to hand the student over in; null for the model folder alone."""
    report: ReportConfig = ReportConfig()
    """The report."""
    extra_stages: list[ExtraStage] = Field([], max_length=20)
    """Further stages, of plug-ins' making: blocks with `name` and their fields."""

    def extra_stage(self, name: str) -> Any:
        """The block of a plug-in's stage; None where this run does without it."""
        return next((stage for stage in self.extra_stages if stage.name == name), None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return stages_of(self)

    @property
    def choosing(self) -> tuple[str, ...] | None:
        """Fields of the student that are chosen on validation rows; None for none."""
        return to_choose(self) or None

    @property
    def mean(self) -> str:
        """How the members are averaged: `student.mean` of distributions, or that of `value`s."""
        return self.data.predicts.mean(self.student.mean)

    @property
    def targets(self) -> str:
        """`student.targets` with `auto` resolved."""
        if self.student.targets != "auto":
            return self.student.targets
        return "ensemble" if self.specialists is None else "specialists"


def text_source(config: Config) -> str | None:
    """Where the pretrained tokenizer comes from; None without one, or where nothing names a source."""
    if config.data.text.tokenizer != "pretrained":
        return None
    teachers, student = config.teachers, config.student
    models = [teachers.model, *(each.model for _, each in variants(teachers))]
    models += [model for _, model in student_models(student)]
    sources = [
        config.data.text.source,
        *(teachers.given[:1] if teachers.source == "pretrained" else []),
        *(model.source for model in models if isinstance(model, TransformerConfig)),
        student.online.source,
        *(phase.online.source for phase in student.phases),
        getattr(getattr(student.model, "start", None), "source", None),
    ]
    return next((source for source in sources if source), None)
