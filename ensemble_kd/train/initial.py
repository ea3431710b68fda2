"""What a member's network starts from, and the teachers that run beside it, from the task's description."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import nn

from ensemble_kd.artifacts import read_manifest
from ensemble_kd.attached import ensure
from ensemble_kd.config import ModelConfig
from ensemble_kd.config.growth import GrowthConfig
from ensemble_kd.config.start import INITIALISERS
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.init.net2net import grow_
from ensemble_kd.models.init.static_embedding import start_table_
from ensemble_kd.models.quantise import Quantiser, quantise_
from ensemble_kd.models.specialist import specialise
from ensemble_kd.models.trees import Trees
from ensemble_kd.models.weights import load_weights, shapes_of
from ensemble_kd.train.specialist import Specialty

WEIGHTS = "weights.safetensors"
VECTORS_FOLDER, VECTORS = "vectors", "table.safetensors"
"""Of a run: where tables of word vectors lie, each in a folder named by its fingerprint."""
LEARNED = "learned.safetensors"
"""In a member's folder: what its loss trained along (projections), for a later phase; never shipped."""


def load_network(task_settings: dict[str, Any], info: dict[str, Any], folder: Path) -> Network:
    """A finished member's network, from its manifest's settings and its weights."""
    model: Any = TypeAdapter(ModelConfig).validate_python(task_settings["model"])
    network = build(model, info, masked_lm=task_settings.get("masked_lm", False))
    if task_settings.get("specialist"):
        specialty = Specialty(**task_settings["specialist"])
        network = specialise(
            network, specialty.classes, specialty.output, train_outside=specialty.train_outside
        )
    if task_settings.get("quantization"):
        quantise_(network, Quantiser(**task_settings["quantization"], hard=True))
    ensure(folder)
    if isinstance(network.body, Trees):
        network.body.make_room_(shapes_of(folder / WEIGHTS))
    load_weights(network, folder / WEIGHTS)
    return network.eval()


def member_folder(run: Path | None, place: dict[str, Any]) -> Path:
    """The folder of the member that `place` names: `stage`, `member`."""
    assert run is not None, "the stage says where its run is"
    return run / str(place["stage"]) / "members" / str(place["member"])


def load_member(run: Path | None, place: dict[str, Any], info: dict[str, Any]) -> Network:
    """The network of the member that `place` names. Raises ArtifactError where it is not finished."""
    folder = member_folder(run, place)
    ensure(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder}: this member is not finished; run the {place['stage']} stage again")
    return load_network(manifest.config, info, folder)


def load_initial(network: Network, initial: dict[str, Any], run: Path | None, info: dict[str, Any]) -> None:
    """Put what `initial` describes into a fresh network: a `source`'s weights, a member's of this run,
    as they are or with `noise` spread over a larger network, a table of this run's `vectors`, or what the
    block of an initialiser (`start`) makes of a member's.

    Raises ConfigError or ArtifactError where they cannot be read or do not fit.
    """
    from ensemble_kd.models.transformer import Transformer
    from ensemble_kd.models.transplant import pretrained_body, transplant_

    body = network.body
    if "vectors" in initial:
        assert run is not None, "the stage says where its run is"
        folder = run / VECTORS_FOLDER / str(initial["vectors"])
        ensure(folder)
        if not (folder / VECTORS).exists():
            raise ArtifactError(
                f"{folder}: the table of word vectors is missing; run the student stage again"
            )
        start_table_(network, load_file(folder / VECTORS)["table"])
        return
    if "source" in initial:
        assert isinstance(body, Transformer)
        source = pretrained_body(initial, body)
        transplant_(body, source, initial)
        if source.has_head:
            network.standardise_head_()
        if "classes" in initial and not body.masked_lm:
            network.reorder_head_(initial["classes"])
        if "pixels" in initial:
            network.set_pixels_(**initial["pixels"])
        return
    if "start" in initial:
        start: Any = TypeAdapter(Annotated[GrowthConfig, INITIALISERS]).validate_python(initial["start"])
        start.initialise(network, load_member(run, initial, info) if "member" in initial else None, info)
        return
    donor = load_member(run, initial, info)
    if "noise" in initial:
        grow_(network, donor, initial["noise"])
        return
    if isinstance(body, Transformer) and isinstance(donor.body, Transformer):
        transplant_(body, donor.body, initial)
        network.set_pixels_(donor.input_scale, donor.input_shift)  # a teacher may have its own
        return
    try:
        network.load_state_dict(donor.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"the weights in {member_folder(run, initial)} do not fit the model: {error}"
        ) from error


def load_learned(learned: nn.Module, initial: dict[str, Any] | None, run: Path | None) -> None:
    """Projections of the phase before, where they have the same shapes; else they start anew."""
    if initial is None or "member" not in initial:
        return
    path = member_folder(run, initial) / LEARNED
    ensure(path.parent)
    if path.exists():
        found = load_file(path)
        own = learned.state_dict()
        if {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in own.items()}:
            learned.load_state_dict(found)


def online_networks(
    places: list[dict[str, Any]], run: Path | None, info: dict[str, Any], masked_lm: bool
) -> list[Network]:
    """The teachers to run beside a student: members of this run, or pretrained models (`source`, `model`)."""
    found = []
    for place in places:
        if "source" not in place:
            found.append(load_member(run, place, info))
            continue
        torch.manual_seed(0)  # a classifier that the source does not have, and that no loss reads
        network = build(TypeAdapter(ModelConfig).validate_python(place["model"]), info, masked_lm=masked_lm)
        load_initial(network, place, run, info)
        found.append(network)
    return found
