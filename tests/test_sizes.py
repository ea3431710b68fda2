"""The sizes that files keep, so that each holds one idea."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ensemble_kd"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_CONFIG = 400, 200


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_above_its_bound() -> None:
    bounds = {path: MOST_LINES for path in FILES}
    bounds |= {path: MOST_LINES_OF_CONFIG for path in FILES if path.parent == PACKAGE / "config"}
    above = {str(path.relative_to(PACKAGE)): lines(path) for path in FILES if lines(path) > bounds[path]}
    assert not above, "split each into files of one idea"
