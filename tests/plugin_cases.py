"""Plug-ins in a test, and nothing of them after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd.config import families
from ensemble_kd.registry import LOADED, REGISTRIES

TINY = [
    "teachers.num_members=2",
    "teachers.training.epochs=2",
    "teachers.model={name: mlp, hidden: [16]}",
    "student.training.epochs=2",
    "student.model={name: mlp, hidden: [8]}",
    "student.seeds=1",
    "tracking.enabled=false",
    "specialists=null",
    "sweep=null",
    "compute.executor=local",
]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a test's plug-ins register is forgotten after it."""
    import ensemble_kd.objectives  # noqa: F401 - so that its registry is there before

    before = [(registry, dict(registry), dict(registry.origins)) for registry in REGISTRIES]
    loaded = list(LOADED)
    yield
    for registry, entries, origins in before:
        registry.clear()
        registry.update(entries)
        registry.origins.clear()
        registry.origins.update(origins)
    for name in set(LOADED) - set(loaded):
        sys.modules.pop(name, None)
    LOADED[:] = loaded
    families.rebuild()


def written(folder: Path, name: str, text: str, patch: Any) -> str:
    """A module of this name on the path; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    patch.syspath_prepend(folder)
    patch.delitem(sys.modules, name, raising=False)
    return name
