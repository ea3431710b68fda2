"""What a stage of the pipeline is, and how one sees the results of those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ensemble_kd.artifacts import Manifest
from ensemble_kd.config import Config
from ensemble_kd.stages.context import Context, StagePlan


class NotDone(LookupError):
    """The result of stage `name` is asked for, and is not there yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Artifact:
    """The result of a stage, made or still to be made."""

    name: str
    plan: StagePlan
    made: Manifest | None
    """None as long as the stage has not run."""
    preview: dict[str, Any] = field(default_factory=dict)
    """What is known of the summary before the stage has run."""

    @property
    def fingerprint(self) -> str:
        return self.plan.fingerprint

    @property
    def folder(self) -> Path:
        return self.plan.folder

    @property
    def manifest(self) -> Manifest:
        """Raises NotDone where the stage has not run."""
        if self.made is None:
            raise NotDone(self.name)
        return self.made

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage says of its result. Raises NotDone where it has not run."""
        return self.manifest.summary

    def known(self, key: str) -> Any:
        """An entry of the summary, or of its preview. Raises NotDone where neither has it."""
        if self.made is None and key not in self.preview:
            raise NotDone(self.name)
        return (self.preview if self.made is None else self.made.summary)[key]


class Done:
    """The results of the stages so far, by name, in the order in which they ran."""

    def __init__(self) -> None:
        self._artifacts: dict[str, Artifact] = {}

    def add(self, artifact: Artifact) -> None:
        self._artifacts[artifact.name] = artifact

    def __getitem__(self, name: str) -> Artifact:
        """Raises NotDone for a stage that has not even been planned."""
        if name not in self._artifacts:
            raise NotDone(name)
        return self._artifacts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._artifacts

    @property
    def manifests(self) -> dict[str, Manifest]:
        return {name: artifact.manifest for name, artifact in self._artifacts.items()}

    @property
    def info(self) -> dict[str, Any]:
        """`DataInfo.to_dict()` of the data set."""
        info: dict[str, Any] = self["data"].summary["info"]
        return info

    def lineage(self) -> dict[str, Any]:
        """Fingerprint of each stage that the student comes from, by its name; of the teachers each one's."""
        found: dict[str, Any] = {}
        for name in ("data", "teachers", "soft-targets", "student", *COMES_FROM):
            if name == "teachers":
                found[name] = {entry["name"]: entry["fingerprint"] for entry in self[name].summary["members"]}
            elif name in self:
                found[name.replace("-", "_")] = self[name].fingerprint
        return found


COMES_FROM = ("clusters", "specialists", "combined-targets", "sweep", "choose")
"""Stages that a student comes from in some runs only."""


@dataclass(frozen=True)
class DataFound:
    """The prepared data set, as far as settings can be held against it."""

    info: dict[str, Any]
    """`DataInfo.to_dict()`."""
    folder: Path | None = None
    """Where it lies; None where only its description is at hand."""
    misfits: set[str] = field(default_factory=set)
    """Stages whose networks do not fit the data; later ones leave out what rests on these."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows by split: transfer, labelled, validation, test."""
        counts: dict[str, int] = self.info["counts"]
        return counts


@dataclass(frozen=True)
class Work:
    """How much a stage that trains has to do."""

    members: int
    rows: int
    """Examples of an epoch of each."""
    epochs: int

    @property
    def examples(self) -> int:
        return self.members * self.rows * self.epochs

    def __str__(self) -> str:
        epochs = f"{self.epochs} epoch" + ("s" if self.epochs != 1 else "")
        return f"{self.members} x {self.rows:,} rows x {epochs}"


class Stage(ABC):
    """One stage: what it reads, when it is complete, and how it runs.

    `run` and `check` of the pipeline walk over the same stages. They differ in what they do at one that is
    not complete: the first runs it, the second says so and goes on with what can be known.
    """

    name: ClassVar[str]
    """As in `ensemble_kd.stage_list`."""
    has_members: ClassVar[bool] = False
    """Whether it trains members, which have folders of their own beside its results."""
    decides: ClassVar[bool] = False
    """Whether later stages can be planned only once it is complete."""
    postponed: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors after which the later stages run without its result, and which are raised at the end."""

    serves: ClassVar[str | None] = None
    """Name of a later stage, for one that a run which ends before that does without."""

    @abstractmethod
    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        """Settings, inputs and so the fingerprint. Raises NotDone where an input is not known yet."""

    @abstractmethod
    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        """Make the result, continuing what an interrupted run left."""

    @abstractmethod
    def describe(self, summary: dict[str, Any], size: int) -> str:
        """The result in a few words; `size` is that of its files in bytes."""

    def settings_problems(self, config: Config) -> list[str]:
        """What is wrong with the settings before anything is read, one line each with the path of a field."""
        return []

    def problems(self, config: Config, found: DataFound) -> list[str]:
        """What is wrong with the settings on this data set, one line each with the path of a field."""
        return []

    def prepare(self, config: Config, done: Done) -> None:
        """Look once more before the stage runs: raise what can be told only by trying."""
        return

    def intact(self, context: Context, plan: StagePlan) -> Manifest | None:
        """The manifest of a complete result after looking at every file; what is damaged is put aside."""
        return plan.checked(context.console)

    def complete(self, config: Config, plan: StagePlan) -> Manifest | None:
        """The manifest of a complete result; files are counted, not read."""
        return plan.done()

    def preview(self, config: Config, plan: StagePlan, done: Done) -> dict[str, Any]:
        """What is known of the summary before the stage has run."""
        return {}

    def verify(self, config: Config, artifact: Artifact, done: Done) -> None:
        """Raise what only this stage's result tells about the stages that follow, before they start."""
        return

    def demand(self, summary: dict[str, Any]) -> None:
        """Raise where the result does not bear what the user requires of it (`--require-gap`)."""
        return

    def rewrite(self, config: Config, artifact: Artifact) -> Config:
        """The configuration of the stages that follow."""
        return config

    def expected(self, config: Config, done: Done) -> int | None:
        """Bytes that the result will take; None where that cannot be told."""
        return None

    def work(self, config: Config, done: Done) -> Work | None:
        """What its members have to do, those that are finished among it; None where it trains none, or how
        many there are is not known yet."""
        return None

    def note(self, config: Config, done: Done) -> str:
        """What `check` adds to a stage that is still to do."""
        return ""
