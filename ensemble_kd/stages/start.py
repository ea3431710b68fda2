"""What students start from: pretrained weights, a teacher's layers, a table of vectors, a smaller network."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ensemble_kd.artifacts import Manifest, read_manifest
from ensemble_kd.config import Config, ModelConfig
from ensemble_kd.config.growth import GrowthConfig, growth_problems
from ensemble_kd.config.start import InitialiserConfig
from ensemble_kd.data.records import load_info, load_split
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.models.transplant import resolve, used_pieces
from ensemble_kd.stages.calibrated import calibration_of
from ensemble_kd.stages.corpora import corpora, corpus_name
from ensemble_kd.stages.members import best, members_folder
from ensemble_kd.stages.skeletons import skeleton
from ensemble_kd.stages.vectors import VectorsPlan, vectors_plan


@dataclass(frozen=True)
class Basis:
    """What is known when students are planned: the trained teachers, and where the data lies."""

    teachers: list[dict[str, Any]]
    """Per trained teacher: name, fingerprint, validation_loss, model; none where predictions were given."""
    model: dict[str, Any]
    """The student's architecture by itself."""
    initial: dict[str, Any] | None
    """The weights that it starts from; None for random ones."""
    corpora: dict[str, str]
    """Fingerprint of each phase's corpus, by the phase's name."""
    store: StoreLayout | None = None
    """Layout of the teachers' store, where what it keeps beside logits is held for the students."""
    info: dict[str, Any] = field(default_factory=dict)
    """Of the data."""
    calibration: list[float] | None = None
    """Temperature of each member in the store; None where means are made of logits as they are."""
    vectors: VectorsPlan | None = None
    """The table that `initial` names, to be made before members are trained."""

    @cached_property
    def student(self) -> Network:
        """Without memory for its weights, to ask for shapes."""
        return skeleton(self.model, self.info, "student.model")

    @classmethod
    def alone(cls, config: Config) -> Basis:
        """A student that starts from random weights, whose teachers left nothing but soft targets."""
        return cls([], resolve(config.student.model, path="student.model")[0], None, {})


@dataclass(frozen=True)
class Sources:
    """What the tasks of students are made of, beside the settings."""

    data: str
    """Fingerprint of the data."""
    store: str
    """Fingerprint of the soft targets; empty where there are none yet."""
    counts: dict[str, int]
    """Rows by split: transfer, labelled, validation, test."""
    basis: Basis
    weights: list[float] | None = None
    """Of the teachers in the store; None for one each."""
    combined: str | None = None
    """Fingerprint of the combination with specialists; then students of both kinds of targets are
    trained."""


def basis_of(
    config: Config, run: Path, data: Path, teachers: Manifest, store: StoreLayout | None = None
) -> Basis:
    """Raises ConfigError where what the student's model asks for does not fit. `store` as in `Basis`."""
    found = []
    if teachers.summary["source"] != "predictions":
        for entry in teachers.summary["members"]:
            manifest = read_manifest(members_folder(run, "teachers") / entry["fingerprint"])
            assert manifest is not None, "the teachers stage has just looked after its members"
            found.append({**entry, "model": manifest.config["model"]})
    teacher = None
    if found:
        transformers = [entry for entry in found if entry["model"]["name"] == "transformer"]
        starts = getattr(config.student.model, "weights", None) == "teacher"
        chosen = best(transformers if starts and transformers else found)
        teacher = {"model": chosen["model"], "initial": place(chosen)}
    pieces = None
    vocabulary = getattr(config.student.model, "vocabulary", "all")
    if vocabulary != "all":
        texts = [load_split(data, "transfer").inputs, *corpora(config, run, data).values()]
        pieces = used_pieces(texts, _special(data), vocabulary if isinstance(vocabulary, int) else None)
    model, initial = resolve(config.student.model, teacher, pieces, "student.model")
    names = {phase.name: corpus_name(phase.corpus) for phase in config.student.phases if phase.corpus}
    calibration = calibration_of(config, run, data, teachers)
    vectors = vectors_plan(config, data, found)
    if vectors is not None:
        initial = vectors.place
    start = getattr(config.student.model, "start", None)
    if isinstance(start, GrowthConfig):
        initial = {**place(best(growable(start, model, found))), "noise": start.noise}
    if isinstance(start, InitialiserConfig):
        initial = {
            "start": start.model_dump(mode="json"),
            **(place(best(found)) if start.reads == "teacher" else {}),
        }
    return Basis(found, model, initial, names, store, load_info(data).to_dict(), calibration, vectors)


def growable(
    start: GrowthConfig, model: dict[str, Any], teachers: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The trained teachers that a network of settings `model` can start from.

    Raises ConfigError where none of those that finished is left.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(ModelConfig)
    new, found = adapter.validate_python(model), []
    for teacher in teachers:
        old = adapter.validate_python(teacher["model"])
        if not growth_problems(start, old, new):
            found.append(teacher)
    if not found:
        raise ConfigError(
            f"student.model.start: none of the teachers that finished can be grown by {start.name}; leave "
            "it out"
        )
    return found


def _special(data: Path) -> dict[str, int]:
    special: dict[str, int] = load_info(data).preprocess.get("special", {})
    if not special:
        raise ConfigError(
            "student.model.vocabulary: drops word pieces of a pretrained tokenizer; set "
            "data.text.tokenizer=pretrained"
        )
    if absent := [role for role in ("pad", "unk") if role not in special]:
        raise ConfigError(
            "student.model.vocabulary: the pieces that are dropped become the unknown one, and this "
            f"tokenizer has no special token for {' and '.join(absent)}; set it to all"
        )
    return special


def place(teacher: dict[str, Any]) -> dict[str, Any]:
    return {"stage": "teachers", "member": teacher["fingerprint"]}
