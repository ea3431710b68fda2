"""What is in a folder of ours: a run, a model, a store of soft targets, data, any stage or member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ensemble_kd import pipeline
from ensemble_kd.artifacts import MANIFEST, Manifest, damage, read_json, read_manifest, size_on_disk
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ArtifactError, EnsembleKDError, InputError
from ensemble_kd.leftovers import MEMBERS, MODEL, REPORT, RESOLVED, leftovers, used
from ensemble_kd.mirror import is_remote
from ensemble_kd.model_folder import CONFIG, EXPORT, checked_folder
from ensemble_kd.stage_list import STAGES

STORES = ("soft_targets", "combined_targets")


def contents(path: str) -> dict[str, Any]:
    """What is there, as JSON; `what` is run, model, store, data or the name of a stage.

    Raises InputError for anything else, and ArtifactError for what cannot be read.
    """
    if is_remote(path):
        raise InputError(f"{path}: lies in a store; copy it here, or give this machine's copy of the run")
    folder = Path(path).expanduser()
    if (folder / RESOLVED).is_file():
        return _run(folder)
    if (folder / CONFIG).is_file() and (folder / MANIFEST).is_file():
        return _model(folder)
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise InputError(
            f"{path}: no run (runs/NAME), model (runs/NAME/model), store of soft targets "
            "(runs/NAME/soft_targets/FINGERPRINT) or other finished folder of a run there"
        )
    return _store(folder, manifest) if manifest.stage in STORES else _other(folder, manifest)


def _run(folder: Path) -> dict[str, Any]:
    needed = used(folder)
    report = read_json(folder / REPORT) if (folder / REPORT).is_file() else None
    stages, members = [], []
    for name in STAGES:
        place = folder / name.replace("-", "_")
        for each in sorted(place.glob(f"*/{MANIFEST}")):
            if each.parent.name != MEMBERS and not each.parent.name.startswith("."):
                stages.append(_stage(name, each.parent, needed))
        if (place / MEMBERS).is_dir():
            members.append(_members(name, place / MEMBERS, needed))
    return {
        "what": "run",
        "folder": str(folder),
        "name": read_json(folder / RESOLVED)["name"],
        "finished": report is not None,
        "verdict": report["verdict"]["text"] if report is not None else None,
        "stages": stages,
        "members": members,
        "model": _model(folder / MODEL) if (folder / MODEL / CONFIG).is_file() else None,
        "bytes": size_on_disk(folder),
        "bytes_to_clean": sum(each.size for each in leftovers(folder)),
    }


def _stage(name: str, folder: Path, needed: set[str]) -> dict[str, Any]:
    manifest = _manifest(folder)
    if manifest is None:
        return {
            "stage": name,
            "fingerprint": folder.name,
            "bytes": size_on_disk(folder),
            "text": "unreadable",
        }
    size = sum(entry["bytes"] for entry in manifest.files.values())
    try:
        text = pipeline.stage(name).describe(manifest.summary, size)
    except (KeyError, TypeError):  # of a version that summed up something else
        text = ""
    return {
        "stage": name,
        "fingerprint": folder.name,
        "created": manifest.created,
        "bytes": size_on_disk(folder),
        "text": text,
        "used": folder.name in needed,
    }


def _members(name: str, folder: Path, needed: set[str]) -> dict[str, Any]:
    there = [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    finished = [each for each in there if (each / MANIFEST).is_file()]
    return {
        "stage": name,
        "finished": len(finished),
        "unfinished": len(there) - len(finished),
        "used": sum(each.name in needed for each in finished),
        "bytes": size_on_disk(folder),
    }


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except ArtifactError:
        return None


def _model(folder: Path) -> dict[str, Any]:
    """Of a folder that may be a stranger's: nothing in it is run, and what is wrong with it is told."""
    problems: list[str] = []
    try:
        config, _ = checked_folder(folder, "model", ())
    except EnsembleKDError as error:
        problems = str(error).splitlines()
        config = {}
    info = config.get("info", {})
    forms = [
        {"form": each.name, "bytes": size_on_disk(each)}
        for each in sorted((folder / EXPORT).glob("*"))
        if each.is_dir() and not each.is_symlink()
    ]
    return {
        "what": "model",
        "folder": str(folder),
        "model": config.get("model"),
        "kind": info.get("kind"),
        "input_shape": info.get("input_shape"),
        "columns": info.get("preprocess", {}).get("columns", {}).get("input"),
        "classes": info.get("class_names"),
        "values": info.get("target"),
        "lineage": config.get("lineage"),
        "forms": forms,
        "bytes": size_on_disk(folder),
        "problems": problems,
    }


def _store(folder: Path, manifest: Manifest) -> dict[str, Any]:
    layout, summary = StoreLayout(**manifest.summary["layout"]), manifest.summary
    return {
        "what": "store",
        "folder": str(folder),
        "stage": manifest.stage,
        "rows": summary["rows"],
        "views": layout.views,
        "members": layout.members,
        "classes": layout.classes,
        "top_k": layout.top_k,
        "error_bound_at_temperature_1": summary.get("error_bound_at_temperature_1", 0.0),
        "columns": {name: [list(shape), kind.__name__] for name, (shape, kind) in layout.columns().items()},
        "bytes_per_row": layout.bytes_per_row,
        "shards": sum(name.endswith(".parquet") for name in manifest.files),
        "inputs": manifest.inputs,
        "created": manifest.created,
        "bytes": size_on_disk(folder),
        "problems": list(map(str, damage(folder, manifest, deep=False))),
    }


def _other(folder: Path, manifest: Manifest) -> dict[str, Any]:
    name = manifest.stage.replace("_", "-")
    text = ""
    if name in STAGES:
        text = _stage(name, folder, set())["text"]
    summary = {key: value for key, value in manifest.summary.items() if len(json.dumps(value)) < 1000}
    return {
        "what": manifest.stage,
        "folder": str(folder),
        "text": text,
        "fingerprint": manifest.fingerprint,
        "settings": manifest.config,
        "inputs": manifest.inputs,
        "summary": summary,
        "files": {file: entry["bytes"] for file, entry in manifest.files.items()},
        "created": manifest.created,
        "bytes": size_on_disk(folder),
        "problems": list(map(str, damage(folder, manifest, deep=False))),
    }
