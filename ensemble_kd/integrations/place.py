"""Where a store of soft targets lies, and how its members are to be averaged: what a run's manifests say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import Manifest, damage, read_json, read_manifest
from ensemble_kd.data.records import in_order
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import ArtifactError, InputError

STORES = {"soft_targets", "combined_targets"}
"""Stages that write one."""
RESOLVED = "resolved.json"


@dataclass(frozen=True)
class Place:
    """A store, the data that its rows come from, and how the run averages its members."""

    run: Path
    folder: Path
    data: Path
    layout: StoreLayout
    shards: list[str]
    mean: str
    """`arithmetic`, `geometric` or `value`."""
    weights: list[float] | None
    calibration: list[float] | None
    """Temperature of each member's own."""
    augment: dict[str, Any]
    """AugmentConfig of the stored views."""


def find(path: str | Path) -> Place:
    """The store at `path`, a run folder or RUN/soft_targets/FINGERPRINT.

    Of a run with several it is that of its report. Raises InputError where there is none.
    """
    given = Path(path).expanduser().absolute()
    if (given / RESOLVED).is_file():
        run, folder = given, _of_run(given)
    else:
        run, folder = given.parent.parent, given
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.stage not in STORES or not (run / RESOLVED).is_file():
        raise InputError(
            f"{given}: no finished soft targets there; give a run folder (runs/digits) or one of its stores "
            "(runs/digits/soft_targets/FINGERPRINT), which `ensemble-kd soft-targets CONFIG` makes"
        )
    if problems := damage(folder, manifest, deep=False):
        raise ArtifactError("\n".join(map(str, problems)))
    data = run / "data" / manifest.inputs["data"]
    if not data.is_dir():
        raise ArtifactError(f"{data}: the data of these soft targets is missing; run soft-targets again")
    settings = read_json(run / RESOLVED)
    weights, calibration = _of_members(run, manifest, settings)
    return Place(
        run,
        folder,
        data,
        StoreLayout(**manifest.summary["layout"]),
        sorted((name for name in manifest.files if name.endswith(".parquet")), key=in_order),
        "value"
        if settings["data"].get("target") == "value"
        else settings["student"].get("mean", "arithmetic"),
        weights,
        calibration,
        manifest.config.get("augment", {}),
    )


def _of_run(run: Path) -> Path:
    """A run's only store, or that of its report."""
    stores = sorted(path.parent for path in run.glob("soft_targets/*/manifest.json"))
    if len(stores) > 1 and (run / "report.json").is_file():
        used = read_json(run / "report.json").get("lineage", {}).get("soft_targets")
        stores = [folder for folder in stores if folder.name == used] or stores
    if len(stores) > 1:
        raise InputError(
            f"{run}: has {len(stores)} stores of soft targets, and no report that says which it used; give "
            f"one of {', '.join(str(folder) for folder in stores)}"
        )
    return stores[0] if stores else run / "soft_targets"


def _of_members(
    run: Path, store: Manifest, settings: dict[str, Any]
) -> tuple[list[float] | None, list[float] | None]:
    """Weights and temperatures of the store's members, as the run's students have them."""
    names = [name for name in store.inputs if name != "data"]
    combined = store.stage == "combined_targets"
    if combined:  # calibrated when they were combined; members are those of the store behind
        behind = read_manifest(run / "soft_targets" / store.inputs["soft_targets"])
        names = [name for name in behind.inputs if name != "data"] if behind is not None else []
    fitted: dict[str, Any] = {}
    members = {name: fingerprint for name, fingerprint in store.inputs.items() if name != "data"}
    for path in sorted(run.glob("teachers/*/manifest.json")):
        manifest = read_manifest(path.parent)
        entries = manifest.summary.get("members", []) if manifest is not None else []
        if manifest is not None and {e["name"]: e["fingerprint"] for e in entries} == members:
            fitted = manifest.summary
    weights = settings["student"].get("weights")
    if weights is not None:  # of those that were left out too
        weights = [weight for i, weight in enumerate(weights) if f"teacher-{i:03d}" in names]
    elif settings["teachers"].get("weights", "equal") != "equal":
        weights = fitted.get("weights")
    calibration = None
    if (
        not combined
        and settings["teachers"].get("calibrate", True)
        and settings["data"].get("target") != "value"
    ):
        temperatures = fitted.get("calibration", {}).get("temperatures")
        calibration = temperatures if temperatures and any(t != 1 for t in temperatures) else None
    return weights, calibration
