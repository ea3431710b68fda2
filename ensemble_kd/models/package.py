"""The folder that people deploy: weights, config, tokenizer, model card, and nothing that executes by itself.

weights.safetensors   the student
config.json           format version, architecture, data description, lineage
tokenizer.json        learned vocabulary, where there is one
main_1f2e3d4c.py      source of a network that a notebook or script had: to read, never run from here
README.md             the model card; the user's to edit, so it is not under a checksum
manifest.json         size and SHA-256 of the files above; written last
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ensemble_kd import own_code
from ensemble_kd.artifacts import (
    Identity,
    Manifest,
    checksum,
    fingerprint,
    finish,
    read_json,
    write_atomic,
    write_json,
)
from ensemble_kd.config import ModelConfig
from ensemble_kd.errors import ArtifactError, ConfigError, InputError
from ensemble_kd.model_folder import (
    CARD,
    CONFIG,
    EXPORT,
    PACKAGE_FORMAT,
    TOKENIZER,
    check_trust,
    checked_folder,
    import_plugins,
    plugins_for,
)
from ensemble_kd.models.build import CustomBody, Network
from ensemble_kd.models.fits import check_fits, described_network
from ensemble_kd.models.quantise import description
from ensemble_kd.models.weights import load_weights, save_weights, shapes_of
from ensemble_kd.redact import redacted_model
from ensemble_kd.safe_files import in_one_line

WEIGHTS = "weights.safetensors"
UNCALIBRATED = {"temperature": 1.0, "threshold": None}
"""What a folder without calibration answers by."""


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
    calibration: dict[str, Any] = field(default_factory=dict)
    """`temperature` that logits are to be divided by, and what else `train.calibration` finds."""
    quantization: dict[str, Any] | None = None
    """`models.quantise.description` of a student in integers, whose weights these hold exactly."""


def shipped_info(network: Network, info: dict[str, Any]) -> dict[str, Any]:
    """The data's description as a model ships with it: of texts the longest that it takes, in tokens.

    That is `data.text.max_length`, or fewer where the network has fewer positions, and not the longest text
    of train. A user's own network was made for that one, and keeps it.
    """
    if info["kind"] != "text" or isinstance(network.body, CustomBody):
        return info
    most, longest = int(info["preprocess"]["text"]["max_length"]), info["input_shape"][0]
    config = getattr(getattr(network.body, "model", None), "config", None)
    if config is not None:
        from ensemble_kd.models.transformer import most_tokens  # takes seconds to import

        most = min(most, most_tokens(config) or most)
    return {**info, "input_shape": [max(most, longest)]}


def save_package(
    folder: Path,
    network: Network,
    model_config: dict[str, Any],
    info: dict[str, Any],
    card: str,
    tokenizer: Path | None,
    *,
    lineage: dict[str, Any],
    calibration: dict[str, Any] | None = None,
    forms: Path | None = None,
) -> Manifest:
    """Write the model folder beside `folder`, then put it in its place: it is there whole or not at all.

    `forms` is a folder of exported forms that travel with it. Others that were exported from the very same
    weights and calibration stay.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):  # what a killed run left
        shutil.rmtree(stale, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.new.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}.tmp")
    new.mkdir()
    try:
        model_config = redacted_model(model_config)
        config = {"format": PACKAGE_FORMAT, "model": model_config, "info": info, "lineage": lineage}
        if calibration:
            config["calibration"] = calibration
        config |= plugins_for(model_config)
        if (quantization := description(network)) is not None:
            config["quantization"] = quantization
        save_weights(network, new / WEIGHTS)
        write_json(new / CONFIG, config)
        files = [WEIGHTS, CONFIG]
        if tokenizer is not None:
            write_atomic(new / TOKENIZER, tokenizer.read_bytes())
            files.append(TOKENIZER)
        for name, own in own_code.used(model_config).items():
            write_atomic(new / own_code.file_of(name), own.source)
            files.append(own_code.file_of(name))
        write_atomic(new / CARD, card)
        # Lineage covers the student's own fingerprint, so equal packages have equal fingerprints.
        manifest = finish(
            new,
            Identity("model", fingerprint("model", config), model_config, {}),
            files,
            {"lineage": lineage},
        )
        kept = folder / EXPORT if _same_answers(folder, new) else None
        for source in (forms, kept):
            for form in source.glob("[!.]*/") if source is not None else ():
                if not (new / EXPORT / form.name).exists():
                    shutil.copytree(form, new / EXPORT / form.name, copy_function=_link)
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


def load_package(folder: Path, trust: Collection[str] = ()) -> Package:
    """The model in a folder that `save_package` wrote, after checking every file against the manifest.

    Code of a custom model, or of a plug-in, is imported only where its module is in `trust` or in the
    environment's ENSEMBLE_KD_TRUST; no other code is run because a folder says so, and nothing outside it is
    read.
    Raises ArtifactError that names the file: missing, changed, outside the folder, a link, a pickle, of a
    newer format, or describing another network than that of the weights.
    """
    config, manifest = checked_folder(folder, "model", (WEIGHTS, CONFIG))
    check_trust(folder, config, trust)
    import_plugins(folder, config)
    info, quantization = config["info"], config.get("quantization")
    shapes = shapes_of(folder / WEIGHTS)
    try:
        model: Any = TypeAdapter(ModelConfig).validate_python(config["model"])
        check_fits(model, info, shapes, quantization)
        network = described_network(model, info, quantization)
    except (ConfigError, InputError, ArtifactError) as error:
        raise ArtifactError(
            f"{folder / CONFIG}: does not describe the model of {WEIGHTS} ({in_one_line(error, 600)})"
        ) from error
    except Exception as error:  # libraries meet fields that fit their description and not each other
        raise ArtifactError(
            f"{folder / CONFIG}: does not describe a model that can be built "
            f"({type(error).__name__}: {in_one_line(error)})"
        ) from error
    load_weights(network, folder / WEIGHTS)
    tokenizer = folder / TOKENIZER if TOKENIZER in manifest.files else None
    return Package(
        network.eval(),
        info,
        config["model"],
        config.get("lineage", {}),
        folder,
        tokenizer,
        config.get("calibration", {}),
        quantization,
    )


def _same_answers(old: Path, new: Path) -> bool:
    """Whether two model folders have the same weights and the same calibration."""
    if not (old / WEIGHTS).is_file() or checksum(old / WEIGHTS) != checksum(new / WEIGHTS):
        return False
    try:
        before, after = (read_json(folder / CONFIG).get("calibration", {}) for folder in (old, new))
    except ArtifactError:
        return False
    return all(before.get(key, none) == after.get(key, none) for key, none in UNCALIBRATED.items())


def _link(source: str, target: str) -> None:
    """The same file twice where the disk can do that: forms are never written in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
