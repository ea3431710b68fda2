"""The folder that people deploy: weights, config, tokenizer, model card, and nothing that executes.

weights.safetensors   the student
config.json           format version, architecture, data description, lineage
tokenizer.json        learned vocabulary, where there is one
README.md             the model card; the user's to edit, so it is not under a checksum
manifest.json         size and SHA-256 of the files above; written last
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ensemble_kd.artifacts import (
    MANIFEST,
    Manifest,
    damage,
    fingerprint,
    finish,
    read_json,
    read_manifest,
    write_atomic,
    write_json,
)
from ensemble_kd.config import ModelConfig
from ensemble_kd.errors import ArtifactError, ConfigError, InputError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.weights import load_weights, save_weights

PACKAGE_FORMAT = 1
"""Raised when a folder's layout or meaning changes; an older version then refuses newer folders."""

WEIGHTS, CONFIG, TOKENIZER, CARD = "weights.safetensors", "config.json", "tokenizer.json", "README.md"
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}


@dataclass(frozen=True)
class Package:
    """A loaded model folder."""

    network: Network
    """In evaluation mode; takes raw inputs."""
    info: dict[str, Any]
    """`DataInfo.to_dict()`: classes, shapes, preprocessing."""
    model: dict[str, Any]
    lineage: dict[str, Any]
    folder: Path
    tokenizer: Path | None


def save_package(
    folder: Path,
    network: Network,
    model_config: dict[str, Any],
    info: dict[str, Any],
    card: str,
    tokenizer: Path | None,
    lineage: dict[str, Any],
) -> Manifest:
    """Write the model folder beside `folder`, then put it in its place: it is there whole or not at all."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # what a killed run left
        shutil.rmtree(stale, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.new.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}.tmp")
    new.mkdir()
    try:
        config = {"format": PACKAGE_FORMAT, "model": model_config, "info": info, "lineage": lineage}
        save_weights(network, new / WEIGHTS)
        write_json(new / CONFIG, config)
        files = [WEIGHTS, CONFIG]
        if tokenizer is not None:
            write_atomic(new / TOKENIZER, tokenizer.read_bytes())
            files.append(TOKENIZER)
        write_atomic(new / CARD, card)
        # Lineage covers the student's own fingerprint, so equal packages have equal fingerprints.
        manifest = finish(
            new, "model", fingerprint("model", config), model_config, {}, files, {"lineage": lineage}
        )
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def load_package(folder: Path) -> Package:
    """The model in a folder that `save_package` wrote, after checking every file against the manifest.

    Raises ArtifactError that names the file: missing, changed, outside the folder, a pickle, or of a newer
    format.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; expected a model folder (RUN/model)")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise ArtifactError(f"{path}: a pickle can run code and is never read; remove it from the folder")
    _check_format(folder / CONFIG)
    manifest = read_manifest(folder)
    if manifest is None or manifest.stage != "model":
        raise ArtifactError(f"{folder / MANIFEST}: missing or not a model's; the folder is incomplete")
    try:
        problems = damage(folder, manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: the list of files cannot be read ({error!r})") from error
    problems += [f"{folder / n}: not in the manifest" for n in (WEIGHTS, CONFIG) if n not in manifest.files]
    if (folder / TOKENIZER).exists() and TOKENIZER not in manifest.files:
        problems.append(f"{folder / TOKENIZER}: not in the manifest")
    if problems:
        raise ArtifactError("\n".join(problems) + "\ncopy the model folder again, or run again")
    config = read_json(folder / CONFIG)
    try:
        model: Any = TypeAdapter(ModelConfig).validate_python(config["model"])
        network = build(model, config["info"])
    except (ValidationError, KeyError, TypeError, ValueError, ConfigError, InputError) as error:
        raise ArtifactError(f"{folder / CONFIG}: does not describe a model ({error})") from error
    load_weights(network, folder / WEIGHTS)
    tokenizer = folder / TOKENIZER if TOKENIZER in manifest.files else None
    return Package(
        network.eval(), config["info"], config["model"], config.get("lineage", {}), folder, tokenizer
    )


def _check_format(path: Path) -> None:
    """Before anything else, so that a newer folder is told apart from a damaged one."""
    config = read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found != PACKAGE_FORMAT:
        raise ArtifactError(
            f"{path}: format {found}, this version reads format {PACKAGE_FORMAT}; upgrade ensemble-kd"
        )
