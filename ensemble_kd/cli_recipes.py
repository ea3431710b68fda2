"""`recipes` and `spaces`: what is shipped, listed, shown and copied."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

from ensemble_kd.errors import ConfigError


def completed(incomplete: str) -> list[str]:
    """Recipes that begin so, for shells; they complete files where there is none."""
    from ensemble_kd.config.recipes import recipe_paths

    return [name for name in recipe_paths() if name.startswith(incomplete)]


Show = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Print this recipe's file.", autocompletion=completed),
]
Copy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Write this recipe to NAME.yaml here, to be changed.", autocompletion=completed
    ),
]


def recipes(out: Rich, show: str | None, copy: str | None) -> None:
    """List the shipped recipes, or print or copy one. Raises ConfigError for an unknown one."""
    if show is not None and copy is not None:
        raise ConfigError("--show, --copy: both are given; leave one of them out")
    if show is not None:
        sys.stdout.write(_text(show))
    elif copy is not None:
        target = Path(f"{copy}.yaml")
        text = _text(copy)
        try:
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise ConfigError(f"--copy: {target} is there already; move it away, or use --show") from error
        out.print(escape(f"{target}: change it, then ensemble-kd check {target}"))
    else:
        out.print(_recipes())


def _text(name: str) -> str:
    from ensemble_kd.config.recipes import recipe_paths, shipped

    return recipe_paths()[shipped(name)].read_text(encoding="utf-8")


def _recipes() -> Table:
    import yaml

    from ensemble_kd.config import recipe_paths

    table = Table("recipe", "data", "teachers", "student", "file")
    for name, path in recipe_paths().items():
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        teachers_, student_ = raw.get("teachers", {}), raw.get("student", {})
        table.add_row(
            name,
            f"{raw['data'].get('kind', 'image')} ({raw['data'].get('source', 'files')})",
            escape(_ensemble(teachers_)),
            escape(_model(student_)),
            _shown(path),
        )
    return table


def _shown(path: Path) -> str:
    """From here, where it lies below here; that of an installed package as it is."""
    return escape(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _ensemble(teachers: dict[str, Any]) -> str:
    kinds = [{"count": teachers.get("num_members", 5), "model": teachers.get("model", {"name": "mlp"})}]
    kinds += [{"model": kinds[0]["model"], **kind} for kind in teachers.get("kinds", [])]
    return ", ".join(f"{kind.get('count', 1)} x {_model(kind)}" for kind in kinds)


def _model(block: dict[str, Any]) -> str:
    model = dict(block.get("model", {"name": "mlp"}))
    name = model.pop("name")
    shown = {k: v for k, v in model.items() if "dropout" not in k}
    return " ".join([name, *(f"{k}={v}" for k, v in shown.items())])


def spaces() -> Table:
    """Names of the shipped search spaces."""
    import yaml

    from ensemble_kd.config import space_paths

    table = Table("space", "fields of student", "file")
    for name, path in space_paths().items():
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        shown = "\n".join(f"{field}: {value}" for field, value in fields.items())
        table.add_row(name, escape(shown), _shown(path))
    return table
