"""docs/configuration.md is what the typed models say."""

from __future__ import annotations

import re
from pathlib import Path

from ensemble_kd.config.reference import reference

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: ensemble-kd schema --markdown > docs/configuration.md"
    )


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    for row in rows:
        _, name, values, default, meaning, _ = re.split(r"(?<!\\)\|", row)
        assert meaning.strip().endswith(".") or name.strip() == "`name`", f"{name}: {meaning}"
        assert values.strip() and default.strip()


def test_bounds_and_choices_are_words() -> None:
    page = reference()
    assert "| `epochs` | `auto` or whole number, at least 0 | `20` |" in page
    assert "| `temperature` | number, above 0, at most 1000 or `auto` or block | `4.0` |" in page
    assert "`uniform(" not in page.split("## `sweep`")[0]
