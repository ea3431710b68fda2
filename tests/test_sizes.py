"""The sizes that files and functions keep, so that each holds one idea."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ensemble_kd"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_CONFIG = 400, 200
MOST_PARAMETERS = 6
"""Keyword-only ones aside, and what a method is called on."""


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_above_its_bound() -> None:
    bounds = {path: MOST_LINES for path in FILES}
    bounds |= {path: MOST_LINES_OF_CONFIG for path in FILES if path.parent == PACKAGE / "config"}
    above = {str(path.relative_to(PACKAGE)): lines(path) for path in FILES if lines(path) > bounds[path]}
    assert not above, "split each into files of one idea"


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the parameters that can be given by position."""
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("def f(a, b, /, c, *, d): ...", ["a", "b", "c"]),
        ("def f(self, a, *rest, b): ...", ["a"]),
        ("async def f(a=1): ...", ["a"]),
    ],
)
def test_parameters_are_counted_as_they_can_be_given(code: str, names: list[str]) -> None:
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert positional(function) == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_takes_more_parameters_than_a_reader_keeps_apart(path: Path) -> None:
    many = {
        each.name: positional(each) for each in functions(path) if len(positional(each)) > MOST_PARAMETERS
    }
    assert not many, "put what belongs together into a record, or make options keyword-only"
