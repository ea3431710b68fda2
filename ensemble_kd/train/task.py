"""What decides a member's weights, as a record, and the folder that its fingerprint names."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import Manifest, fingerprint, read_manifest


@dataclass(frozen=True)
class MemberTask:
    """Everything that decides a member's weights, as JSON; its fingerprint names its folder."""

    name: str
    """For people: `teacher-003`, `distilled-seed-0`; not part of the fingerprint."""
    role: str
    """`teacher`, `specialist`, `distilled`, or a baseline: `hard`, `plain`, `pseudo`; not part of the
    fingerprint."""
    seed: int
    model: dict[str, Any]
    training: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprints of the data and, where the member reads them, of the soft targets."""
    rows: dict[str, Any] = field(
        default_factory=lambda: {"labelled": True, "bootstrap": False, "fraction": 1.0}
    )
    """Which rows of the transfer set it sees; `without` lists classes whose labelled rows it does not, and
    `drawn_by` is the seed that draws a fraction of them, where that is not its own."""
    examples_per_epoch: int = 0
    """Rows of the transfer set, so that a member that sees fewer of them still takes as many steps."""
    augment: dict[str, Any] = field(default_factory=dict)
    """AugmentConfig; empty for none."""
    views: int = 0
    """0: augment anew in every epoch; n: draw one of the n fixed views."""
    alpha: float = 0.0
    objective: dict[str, Any] | None = None
    """The soft loss and its fields; None for hard labels alone."""
    temperature: float = 1.0
    mean: str = "arithmetic"
    weights: list[float] | None = None
    calibration: list[float] | None = None
    """Temperature of each member's own, by which its logits are divided; None for logits as they are."""
    pseudo_labels: bool = False
    """A baseline: as alpha = 0, pseudo = 1."""
    pseudo: float = 0.0
    """Weight of the loss on the ensemble's most probable class, of rows without a label."""
    targets: str = "ensemble"
    """What it learns from: the `ensemble`'s members, the combination with `specialists`, or `both`."""
    specialist: dict[str, Any] | None = None
    """Fields of a Specialty, for a member that starts from a generalist."""
    class_bias: bool = False
    """Whether one bias per class is fitted on validation rows at the end."""
    initial: dict[str, Any] | None = None
    """What its network starts from (`models.transplant`): a source's weights, or those of a member."""
    terms: list[dict[str, Any]] = field(default_factory=list)
    """Further losses, that read a teacher beside the student."""
    online: dict[str, Any] | None = None
    """Teachers beside the student: `teachers` (each `stage` and `member`, or `source` and `model`),
    `shares`, and whether their `logits` take the place of the stored ones. With `stored` none of them runs:
    what was kept of them in the store is read."""
    phase: str | None = None
    """Name of the phase, for one that others start from and that is not judged itself."""
    corpus: dict[str, Any] | None = None
    """`fingerprint` of the texts to learn from, in place of the transfer set."""
    quantization: dict[str, Any] | None = None
    """Fields of a Quantiser, for a student that is shipped in integers."""
    mask_probability: float | None = None
    """Share of words to be guessed, for a masked language model; None for a classifier."""
    peers: dict[str, Any] | None = None
    """Fields of `student.peers`, for a student that learns together with other networks."""
    branches: dict[str, Any] | None = None
    """Fields of `student.branches`, for a student that is a branch of one network."""
    learner: dict[str, Any] | None = None
    """Fields of `student.learner`, for what a plug-in trains in the student's place."""
    alpha_schedule: dict[str, Any] | None = None
    """Fields of a Schedule by which the weight of the soft loss goes; `alpha` is then the largest it has."""
    temperature_schedule: dict[str, Any] | None = None
    """Fields of a Schedule by which T goes from epoch to epoch; `temperature` is then that of the first."""
    compress: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each of `student.compress`."""

    @property
    def reads_teacher(self) -> bool:
        """Whether it reads the stored soft targets."""
        online = self.online is not None and self.online["logits"]
        return (self.alpha > 0 and self.objective is not None and not online) or self.guess_weight > 0

    @property
    def guess_weight(self) -> float:
        return 1.0 if self.pseudo_labels else self.pseudo

    @property
    def masked_lm(self) -> bool:
        return self.mask_probability is not None

    @property
    def settings(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self).items() if k not in ("name", "role")}
        if not self.reads_teacher and self.online is None:  # so that a baseline outlives a change of T
            for key in ("objective", "temperature", "mean", "weights"):
                kept.pop(key)
            kept["calibration"] = None
        for key, usual in (
            ("specialist", None),
            ("pseudo", 0.0),
            ("calibration", None),
            ("targets", "ensemble"),
            ("class_bias", False),
            ("initial", None),
            ("terms", []),
            ("online", None),
            ("phase", None),
            ("corpus", None),
            ("mask_probability", None),
            ("quantization", None),
            ("peers", None),
            ("branches", None),
            ("learner", None),
            ("alpha_schedule", None),
            ("temperature_schedule", None),
            ("compress", []),
        ):
            if kept[key] == usual:
                kept.pop(key)
        if self.masked_lm:
            kept["masked_lm"] = True
        return kept

    @property
    def fingerprint(self) -> str:
        return fingerprint("member", _without_places(self.settings))

    def folder(self, members: Path) -> Path:
        return members / self.fingerprint


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the digest of a pretrained model's files alone: where they lie does not count."""

    def strip(place: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in place.items() if k != "source"} if "digest" in place else place

    kept = dict(settings)
    if kept.get("initial"):
        kept["initial"] = strip(kept["initial"])
    if kept.get("online"):
        kept["online"] = {**kept["online"], "teachers": [strip(t) for t in kept["online"]["teachers"]]}
    return kept


def finished(task: MemberTask, members: Path) -> Manifest | None:
    """The receipt of a member that is trained already."""
    return read_manifest(task.folder(members))


def discard(task: MemberTask, members: Path) -> None:
    """Remove a member's folder, finished or not."""
    shutil.rmtree(task.folder(members), ignore_errors=True)
