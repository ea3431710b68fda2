"""The recipes and search spaces that come with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ensemble_kd import space
from ensemble_kd.config_yaml import one_line
from ensemble_kd.errors import ConfigError
from ensemble_kd.paths import exists

PACKAGE = Path(__file__).parent.parent


def _folder(inside: str, beside: str) -> Path:
    """A folder of the installed package; in a checkout it lies beside the package, at the top.

    What is inside comes first: beside an installed package lie those of others, one called `jobs` perhaps.
    """
    folder = PACKAGE / inside
    return folder if folder.is_dir() else PACKAGE.parent / beside


def recipe_paths() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(_folder("recipes", "jobs/recipes").glob("*.yaml"))}


def _spaces() -> Path:
    return _folder("spaces", "tune/spaces")


def space_paths() -> dict[str, Path]:
    """The shipped search spaces by name."""
    return {path.stem: path for path in sorted(_spaces().glob("*.yaml"))}


def read_space(raw: dict[str, Any]) -> None:
    """Put the content of a search space in the place of its name."""
    block = raw.get("sweep")
    if isinstance(block, dict) and isinstance(block.get("space"), str):
        block["space"] = space.read_space(block["space"], _spaces())


def file_of(path: str | Path) -> Path:
    """A configuration's file, or that of the shipped recipe of this name, which a folder so called (data, a
    run) does not hide. Raises ConfigError."""
    recipe = recipe_paths().get(str(path))
    if recipe is not None and Path(path).is_dir():
        return recipe
    if str(path) and exists(path):
        return Path(path).expanduser()
    return recipe_paths()[shipped(str(path), "configuration file or recipe")]


def shipped(name: str, what: str = "recipe") -> str:
    """The name of a shipped recipe. Raises ConfigError for another."""
    recipes = recipe_paths()
    if name not in recipes:
        close = difflib.get_close_matches(name, recipes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped recipes: {', '.join(recipes)}"
        raise ConfigError(f"no such {what}: {one_line(name, 300)}; {hint}")
    return name
