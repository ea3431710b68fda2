"""The stages by name, in the order in which they run. The only place where that order stands; that of a
plug-in says behind which of ours it comes.

The command line, `--until`, `check` and `run` follow from this list. It imports nothing of ours, so that
`--help` answers at once; `pipeline.stage` imports a stage's class when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageEntry:
    """One stage, as far as it is known without importing it."""

    name: str
    text: str
    """What the sub-command of this name does."""
    block: str | None = None
    """Block of the configuration without which a run leaves the stage out."""
    without: Callable[[Any], bool] = lambda config: False
    """Whether a run of a configuration leaves it out for another reason."""
    remedy: str | None = None
    """What to set for a run to have the stage, where a block with defaults is not it."""
    after: str | None = None
    """Of a plug-in's stage: the one behind which it comes."""
    make: Callable[[], Any] | None = None
    """Of a plug-in's stage: what gives its `Stage`."""

    @property
    def module(self) -> str:
        """The module that has the stage's class as `STAGE`."""
        return f"ensemble_kd.stages.{self.name.replace('-', '_')}"

    def enabled(self, config: Any) -> bool:
        """Whether a run of this configuration has the stage."""
        value = config
        for part in (self.block or "").split("."):
            value = getattr(value, part) if part else value
        return value is not None and not self.without(config)


def _no_validation(config: Any) -> bool:
    """Teachers that are files of predictions, and none of validation rows."""
    given = config.teachers.predictions
    return config.teachers.source == "predictions" and not (given and given.validation)


OURS = (
    StageEntry("augment", "Make further texts for the transfer set.", "data.text_augment"),
    StageEntry("data", "Prepare the data set."),
    StageEntry("teachers", "Train the ensemble."),
    StageEntry("gap", "Hold the ensemble against the student on hard labels.", without=_no_validation),
    StageEntry("soft-targets", "Run the teachers over the transfer set, once."),
    StageEntry("clusters", "Find the classes that the teachers confuse.", "specialists"),
    StageEntry("specialists", "Train a specialist for every cluster.", "specialists"),
    StageEntry("combined-targets", "Combine the ensemble with its specialists, once.", "specialists"),
    StageEntry("sweep", "Search the student's settings on validation rows.", "sweep"),
    StageEntry(
        "choose",
        "Choose what is `auto`: T, alpha, pseudo-labels.",
        "choosing",
        remedy="student.temperature=auto",
    ),
    StageEntry("student", "Train the students: distilled, and on hard labels alone."),
    StageEntry("export", "Hand the student over as ONNX, int8 and others.", "export"),
    StageEntry("report", "Write the report and the model folder."),
)
ADDED: list[Callable[[], list[StageEntry]]] = []
"""What gives the stages of plug-ins, in the order of their registration."""


class _Entries(Sequence[StageEntry]):
    """All stages, those of plug-ins in their places."""

    def _all(self) -> list[StageEntry]:
        found = list(OURS)
        for entry in (entry for each in ADDED for entry in each()):
            place = max(i for i, other in enumerate(found) if entry.after in (other.name, other.after))
            found.insert(place + 1, entry)
        return found

    def __getitem__(self, place: Any) -> Any:
        return self._all()[place]

    def __len__(self) -> int:
        return len(self._all())


class _Names(Sequence[str]):
    """Their names."""

    def __getitem__(self, place: Any) -> Any:
        return [entry.name for entry in ENTRIES][place]

    def __len__(self) -> int:
        return len(ENTRIES)

    def __iter__(self) -> Iterator[str]:
        return iter([entry.name for entry in ENTRIES])


ENTRIES = _Entries()
STAGES = _Names()


def entry_of(name: str) -> StageEntry:
    return next(entry for entry in ENTRIES if entry.name == name)


def stages_of(config: Any) -> tuple[str, ...]:
    """The stages of a run with this configuration, in order."""
    return tuple(entry.name for entry in ENTRIES if entry.enabled(config))
