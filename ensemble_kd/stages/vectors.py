"""Tables of word vectors that students start from: made once in a run's folder, and shared.

RUN/vectors/FINGERPRINT/states.safetensors   of every word piece, by transformer and tokenizer
RUN/vectors/FINGERPRINT/table.safetensors    of those, by width, frequencies and weight
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save

from ensemble_kd.artifacts import Identity, checksum, damage, fingerprint, finish, read_manifest, write_atomic
from ensemble_kd.attached import attached
from ensemble_kd.config import Config, ModelConfig, TransformerConfig, text_source
from ensemble_kd.config.start import StaticEmbeddingConfig
from ensemble_kd.data.records import load_info, read_shard, shard_paths
from ensemble_kd.data.tokenize import TOKENIZER_FILE
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.models.init.static_embedding import piece_states, piece_vectors, too_wide
from ensemble_kd.models.transformer_config import config_of
from ensemble_kd.models.transplant import resolve
from ensemble_kd.redact import redacted
from ensemble_kd.stages.context import Console
from ensemble_kd.stages.members import best
from ensemble_kd.train.device import autocast
from ensemble_kd.train.initial import VECTORS, VECTORS_FOLDER, online_networks

STATES = "states.safetensors"
PATH = "student.model.start"


@dataclass(frozen=True)
class VectorsPlan:
    """Where a table comes from and what is done to it; its fingerprint names its folder."""

    transformer: dict[str, Any]
    """A place as `online_networks` takes it: a member of the run, or a source."""
    tokenizer: str
    """Checksum of the data's."""
    data: str
    """Fingerprint of the data, whose transfer set says how frequent a piece is."""
    width: int
    frequency: float

    @property
    def states(self) -> str:
        """Fingerprint of the states, which other widths and frequencies share."""
        place = {
            k: v for k, v in self.transformer.items() if k != "source" or "digest" not in self.transformer
        }
        return fingerprint("states", place, self.tokenizer)

    @property
    def fingerprint(self) -> str:
        return fingerprint("vectors", self.states, self.data, self.width, self.frequency)

    @property
    def place(self) -> dict[str, Any]:
        """What a student starts from, as its task says it."""
        return {"vectors": self.fingerprint}


def vectors_plan(config: Config, data: Path, teachers: list[dict[str, Any]]) -> VectorsPlan | None:
    """None where the student's table starts from random numbers.

    `teachers` are the trained ones (see `StudentInputs`): name, fingerprint, validation_loss, model.
    Raises ConfigError where there is no transformer.
    """
    model: Any = config.student.model
    start = getattr(model, "start", None)
    if not isinstance(start, StaticEmbeddingConfig):
        return None
    if start.weights == "teacher":
        if not (known := [teacher for teacher in teachers if teacher["model"]["name"] == "transformer"]):
            raise ConfigError(
                f"{PATH}.weights: 'teacher' takes a trained transformer's, and no teacher of the run is one; "
                "use pretrained"
            )
        place: dict[str, Any] = {"stage": "teachers", "member": best(known)["fingerprint"]}
    else:
        place = _pretrained(config)
    tokenizer = checksum(data / TOKENIZER_FILE)[:16]
    return VectorsPlan(place, tokenizer, data.name, model.embedding, start.frequency)


def _pretrained(config: Config) -> dict[str, Any]:
    model: Any = config.student.model
    source = model.start.source or text_source(config)
    wanted = TypeAdapter[Any](ModelConfig).validate_python({"name": "transformer", "source": source})
    settings, initial = resolve(wanted, path=PATH)
    assert initial is not None
    return {**initial, "model": settings}


def table_problems(config: Config, teachers: list[dict[str, Any]]) -> list[str]:
    """A table that is wider than what it is to come from; `teachers` are their models' settings."""
    model: Any = config.student.model
    start = getattr(model, "start", None)
    if not isinstance(start, StaticEmbeddingConfig):
        return []
    if start.weights == "teacher":
        settings = [teacher for teacher in teachers if teacher["name"] == "transformer"]
    else:
        settings = [_pretrained(config)["model"]]
    known = [config_of(TransformerConfig.model_validate(one)) for one in settings]
    widest = min((getattr(one, "hidden_size", model.embedding) for one in known), default=model.embedding)
    return [f"student.model.{too_wide(model.embedding, widest)}"] if widest < model.embedding else []


def make_vectors(wanted: VectorsPlan | None, run: Path, data: Path, console: Console) -> None:
    """Make the table, if it is not there. Raises ConfigError for one that is wider than the transformer."""
    if wanted is None or _whole(run, wanted.fingerprint):
        return
    info = load_info(data).to_dict()
    states = _states(wanted, run, info, console)
    counts = piece_counts(data)
    try:
        table = piece_vectors(states, counts, wanted.width, wanted.frequency)
    except ConfigError as error:
        raise ConfigError([f"student.model.{line}" for line in error.problems]) from error
    settings = {"width": wanted.width, "frequency": wanted.frequency}
    inputs = {"states": wanted.states, "data": wanted.data}
    _write(run, wanted.fingerprint, VECTORS, table, settings, inputs)


def _states(wanted: VectorsPlan, run: Path, info: dict[str, Any], console: Console) -> torch.Tensor:
    """u of every piece, from the run's folder, or anew: a minute at the most, for a small transformer."""
    if not _whole(run, wanted.states):
        pieces = info["vocabulary_size"] - 1
        console.line(f"student: {pieces:,} word pieces through the transformer, for the table to start from")
        (network,) = online_networks([wanted.transformer], run, info, masked_lm=False)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with autocast(device, "auto"):
            states = piece_states(network.to(device), info)
        place = {key: value for key, value in wanted.transformer.items() if key != "model"}
        _write(run, wanted.states, STATES, states, redacted(place), {"tokenizer": wanted.tokenizer})
    return load_file(run / VECTORS_FOLDER / wanted.states / STATES)["states"]


def _whole(run: Path, name: str) -> bool:
    folder = run / VECTORS_FOLDER / name
    try:
        manifest = read_manifest(folder)
        return manifest is not None and not damage(folder, manifest)
    except ArtifactError:
        return False


def _write(
    run: Path, name: str, file: str, tensor: torch.Tensor, settings: dict[str, Any], inputs: dict[str, str]
) -> None:
    folder = run / VECTORS_FOLDER / name
    write_atomic(folder / file, save({file.split(".")[0]: tensor.contiguous()}))
    finish(folder, Identity("vectors", name, settings, inputs), [file], {"shape": list(tensor.shape)})
    if (mirror := attached()) is not None:  # workers on other nodes read it
        mirror.push(folder)


def piece_counts(data: Path) -> np.ndarray:
    """(V,) int64: how often each word piece occurs in the transfer set."""
    info = load_info(data)
    counts = np.zeros(info.vocabulary_size, np.int64)
    for path in shard_paths(data, "transfer"):
        tokens = read_shard(path, info).inputs
        counts += np.bincount(tokens.ravel(), minlength=info.vocabulary_size)
    return counts[1:]  # padding is none
