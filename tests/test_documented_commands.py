"""Commands in the pages: their sub-commands, options and settings exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from ensemble_kd.cli import app
from ensemble_kd.config import load_config
from ensemble_kd.config.recipes import recipe_paths
from ensemble_kd.errors import ConfigError

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "tune/README.md"]


def commands() -> list[tuple[str, str]]:
    """Page and command line, without what is said of it: behind `#`, `>`, or three spaces and words."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            for line in re.sub(r" *\\\n *", " ", block).splitlines():
                line = re.split(r"\s#| > |&&|   +(?!-)", line.strip())[0]
                if line.startswith("ensemble-kd "):
                    found.append((page.name, line.removeprefix("ensemble-kd ")))
    return found


@pytest.fixture(scope="module")
def my_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration that the README writes by hand."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    path: Path = tmp_path_factory.mktemp("mine") / "my.yaml"
    path.write_text(block, encoding="utf-8")
    return path


def test_there_are_many() -> None:
    assert len(commands()) > 35


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command(page: str, line: str, my_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(line)
    group: Any = typer.main.get_command(app)
    command = group.commands[name]
    monkeypatch.setenv("KD_TOKEN", "x")
    context = command.make_context(name, arguments)  # options that there are none of are an error
    overrides = list(context.params.get("set_") or [])
    target = context.params.get("config") or context.params.get("target")
    if target in recipe_paths() or target == "my.yaml":
        if name == "export":
            overrides.insert(0, "export={}")
        space = context.params.get("space") if context.params.get("space") != "my-space.yaml" else None
        path = str(my_yaml) if target == "my.yaml" else target
        try:
            load_config(path, overrides, sweep=name == "sweep", search_space=space)
        except ConfigError as error:  # all at once: only the reader's own files may be missing
            wrong = [problem for problem in error.problems if "no such file" not in problem]
            assert not wrong, wrong
