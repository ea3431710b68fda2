"""YAML with comments: what is read is what was written, and recipes keep their words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import recipe_paths
from ensemble_kd.config_yaml import parse
from ensemble_kd.guess.commented import WIDTH, Commented

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES: Any = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab_", min_size=1), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "data", "student"]), VALUES, min_size=1))
def test_what_is_written_is_read(raw: dict[str, Any]) -> None:
    comments = {path: "why: because # of [this]\u2028and \x00" for path in raw}
    text = Commented(raw, comments).text(["head"])
    assert parse(text, "made") == raw


@pytest.mark.parametrize("path", recipe_paths().values(), ids=lambda path: path.stem)
def test_a_recipe_is_the_same_after_reading_and_writing(path: Path) -> None:
    made = Commented.read(path.read_text(), path.stem).text([])
    assert parse(made, "made") == parse(path.read_text(), "shipped")
    assert yaml.safe_load(made) == yaml.safe_load(path.read_text())
    assert all(len(line) <= WIDTH for line in made.splitlines())


def test_comments_stand_above_what_they_are_about() -> None:
    read = Commented.read("# head\nname: a\ndata:\n  # of the\n  # kind\n  kind: text\n", "r")
    assert read.comments == {"data.kind": "of the kind"}
    read.set("data.path", "x", "Where.")
    assert read.text([]) == "name: a\ndata:\n  # of the kind\n  kind: text\n  # Where.\n  path: x\n"
