"""What must hold of a model folder, or of an exported form's, before anything in it is read. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import MANIFEST, Manifest, damage, read_json, read_manifest
from ensemble_kd.errors import ArtifactError

PACKAGE_FORMAT = 1
"""Raised when a folder's layout or meaning changes; an older version then refuses newer folders."""

CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
EXPORT = "export"
"""Below a model folder: the forms that were exported from it, a folder each."""
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}


def checked_folder(folder: Path, stage: str, needed: tuple[str, ...]) -> tuple[dict[str, Any], Manifest]:
    """The folder's config.json and manifest, after comparing every file with the manifest of that `stage`.

    Raises ArtifactError that names the file: missing, changed, outside the folder, a pickle, not among the
    manifest's although in `needed`, or of a newer format.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; expected a model folder (RUN/model)")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise ArtifactError(f"{path}: a pickle can run code and is never read; remove it from the folder")
    config = read_format(folder)
    manifest = read_manifest(folder)
    if manifest is None or manifest.stage != stage:
        raise ArtifactError(f"{folder / MANIFEST}: missing or not a model's; the folder is incomplete")
    try:
        problems = damage(folder, manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: the list of files cannot be read ({error!r})") from error
    problems += [f"{folder / n}: not in the manifest" for n in needed if n not in manifest.files]
    if (folder / TOKENIZER).exists() and TOKENIZER not in manifest.files:
        problems.append(f"{folder / TOKENIZER}: not in the manifest")
    if problems:
        raise ArtifactError("\n".join(problems) + "\ncopy the model folder again, or run again")
    return config, manifest


def read_format(folder: Path) -> dict[str, Any]:
    """config.json; before anything else, so that a newer folder is told apart from a damaged one."""
    config = read_json(folder / CONFIG)
    found = config.get("format") if isinstance(config, dict) else None
    if found != PACKAGE_FORMAT:
        raise ArtifactError(
            f"{folder / CONFIG}: format {found}, this version reads format {PACKAGE_FORMAT}; upgrade "
            "ensemble-kd"
        )
    return dict(config)
