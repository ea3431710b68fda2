"""The fingerprints that the shipped recipes plan stay, so that nobody trains anew what stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from plans import GOLDEN, plans_of_recipe, stand_ins

from ensemble_kd.config import recipe_paths

RECIPES = json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch, stand_ins() as made:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(RECIPES.keys() | recipe_paths().keys()))
def test_fingerprints_of_a_shipped_recipe_stay(recipe: str, folder: Path) -> None:
    """After a change that is meant, `python -m tests.golden.plans` writes them anew."""
    assert recipe in recipe_paths(), "the recipe is gone"
    golden, found = RECIPES.get(recipe, {}), plans_of_recipe(recipe, folder)
    changed = [
        f"{override or 'as shipped'}: {name}"
        for override in sorted(golden.keys() | found.keys())
        for name in _different(golden.get(override, {}), found.get(override, {}))
    ]
    assert not changed, f"{len(changed)} plans changed: " + "; ".join(changed[:20])


def _different(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
