"""The fingerprints that the shipped recipes plan stay, so that nobody trains anew what stands."""

from __future__ import annotations

import json

import pytest
from plans import GOLDEN, all_plans


@pytest.mark.slow
def test_fingerprints_of_the_shipped_recipes_stay() -> None:
    """After a change that is meant, `python -m tests.golden.plans` writes them anew."""
    golden, found = json.loads(GOLDEN.read_text()), all_plans()
    changed = [
        f"{recipe} {override or 'as shipped'}: {name}"
        for recipe in sorted(golden.keys() | found.keys())
        for override in sorted(golden.get(recipe, {}).keys() | found.get(recipe, {}).keys())
        for name in _different(
            golden.get(recipe, {}).get(override, {}), found.get(recipe, {}).get(override, {})
        )
    ]
    assert not changed, f"{len(changed)} plans changed: " + "; ".join(changed[:20])


def _different(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
