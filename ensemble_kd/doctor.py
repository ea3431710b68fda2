"""`doctor`: what this machine has, and what is missing, with the line that installs it. Starts nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ensemble_kd import __version__

PACKAGE = "ensemble-kd"
LEAST_SHARED = 2**30
"""Bytes of /dev/shm below which Ray's object store lies in a slower place."""
LEAST_FREE = 5 * 2**30
"""Bytes of disk for a run folder and Ray's session."""


@dataclass(frozen=True)
class Finding:
    """The result of one check of `ensemble-kd doctor`."""

    what: str
    found: str
    good: bool = True
    fix: str = ""
    """What to do; empty where nothing is."""
    needed: bool = True
    """False of an extra, which only some commands need."""


def examine() -> list[Finding]:
    """Versions, extras, cores, memory, GPU, disk and Ray, in that order."""
    found = [
        Finding("python", f"{platform.python_version()} ({sys.executable})"),
        Finding(PACKAGE, __version__),
    ]
    return [*found, *_packages(), *_machine(), *_ray()]


def as_json(findings: list[Finding]) -> dict[str, object]:
    """For programs: whether all that is needed is there, and each finding."""
    return {"good": all(f.good or not f.needed for f in findings), "findings": [asdict(f) for f in findings]}


def _packages() -> list[Finding]:
    """The declared requirements, then each extra."""
    try:
        declared = [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return [Finding("packages", "not installed", False, "pip install -e . in the checkout")]
    extras: dict[str, list[Requirement]] = {}
    found = []
    for each in declared:
        extra = next((name for name in _extras(each)), None)
        if extra is None:
            found.append(_package(each))
        elif extra not in ("dev", "bench", "docs"):
            extras.setdefault(extra, []).append(each)
    for extra, needed in sorted(extras.items()):
        wanted = [each for one in needed for each in (one, *_brought_in(one))]
        missing = [f.what for f in map(_package, wanted) if not f.good]
        said = f"missing {', '.join(missing)}" if missing else ", ".join(each.name for each in needed)
        fix = f"pip install '{PACKAGE}[{extra}]'" if missing else ""
        found.append(Finding(f"extra {extra}", said, not missing, fix, needed=False))
    return found


def _extras(requirement: Requirement) -> list[str]:
    """Extras by which a requirement comes in; none of one that always does."""
    marker = requirement.marker
    if marker is None or marker.evaluate({"extra": ""}):
        return []
    return re.findall(r"extra == ['\"]([^'\"]+)['\"]", str(marker))


def _brought_in(requirement: Requirement) -> list[Requirement]:
    """What a requirement's own extras add: `ray[serve]` is more than ray."""
    try:
        theirs = [Requirement(line) for line in requires(requirement.name) or []]
    except PackageNotFoundError:
        return []
    extras = requirement.extras
    return [
        each
        for each in theirs
        if _extras(each) and any(each.marker and each.marker.evaluate({"extra": name}) for name in extras)
    ]


def _package(requirement: Requirement) -> Finding:
    fix = f"pip install '{str(requirement).split(';')[0].strip()}'"
    try:
        there = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "not installed", False, fix)
    good = requirement.specifier.contains(there, prereleases=True)
    return Finding(
        requirement.name,
        there + ("" if good else f", wanted {requirement.specifier}"),
        good,
        fix * (not good),
    )


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [Finding("cores", f"{cores} for this process, {os.cpu_count()} in all")]
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        import torch

        good = torch.cuda.is_available()
        said = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        remedy = "install the torch build for this driver's CUDA: https://pytorch.org/get-started"
        fix = "" if good else remedy
        unseen = f"there, but torch {torch.__version__} does not see it"
        found.append(Finding("gpu", said or unseen, good, fix))
    else:
        found.append(Finding("gpu", "none; training runs on the CPUs"))
    free = shutil.disk_usage(Path.cwd()).free
    fix = "" if free >= LEAST_FREE else "give --run-dir a folder on a larger disk"
    found.append(Finding("disk here", f"{free / 2**30:.1f} GiB free", not fix, fix))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        fix = "" if free >= LEAST_SHARED else "Docker: --shm-size=2g; without it Ray's store is slower"
        found.append(Finding("/dev/shm", f"{free / 2**30:.1f} GiB free", not fix, fix, needed=False))
    return found


def _ray() -> list[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    local = "starts on this machine at need"
    said = f"runs go to the cluster at {address} (RAY_ADDRESS)" if address else local
    return [Finding("ray cluster", said)]
