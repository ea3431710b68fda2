"""The options of `run --data` and `init`, and what they print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

from ensemble_kd.errors import ConfigError

if TYPE_CHECKING:  # what takes time to import comes with the command that needs it
    from ensemble_kd.guess.command import Made

Data = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="In place of CONFIG: a recipe is chosen for this data."),
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="With --data: the column to be predicted.")]
Input = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="COLUMN", help="With --data: a column of the inputs; may be repeated."),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="With --data: how long the run may take, as in 30m or 2h."),
]
Source = Annotated[
    str | None,
    typer.Option(help="With --data: pretrained weights for texts (folder, hub name, package:...), or none."),
]


def made_for(
    path: str,
    label: str | None,
    input_: list[str] | None,
    budget: str | None,
    source: str | None,
    overrides: list[str] | None,
    *,
    screen: Rich,
    run: Callable[[str], Path | None] | None = None,
) -> Made:
    """A configuration for the data, with what was found on the screen. See `guess.command.make`."""
    from ensemble_kd.guess.command import Asked, make, plan_lines

    asked = Asked(path, label, tuple(input_ or ()), budget, source, tuple(overrides or ()))
    made = make(
        asked,
        lambda line: screen.print(escape(line)),
        lambda line: screen.print(f"[yellow]note:[/] {escape(line)}"),
        run,
    )
    columns = ("stage", "work", *(["will take about"] if made.pace else []))
    table = Table(*columns, title="plan", title_justify="left")
    for row in plan_lines(made):
        table.add_row(*map(escape, row[: len(columns)]))
    screen.print(table)
    return made


def one_of(config: str | None, data: str | None, others: Mapping[str, object]) -> None:
    """Raises ConfigError where both, or neither, of CONFIG and --data are given."""
    if config is not None and data is not None:
        raise ConfigError(f"CONFIG, --data: {config} and --data are both given; leave one of them out")
    if config is None and data is None:
        raise ConfigError(
            "CONFIG: missing; give a YAML file, the name of a recipe (ensemble-kd recipes), or your data: "
            "ensemble-kd run --data PATH"
        )
    if data is None and (given := [name for name, value in others.items() if value]):
        raise ConfigError(f"{given[0]}: goes with --data; a configuration says it in its own settings")
