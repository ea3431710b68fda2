"""python -m benchmarks [NAME] [--quick] [--threads N] [--data FOLDER] [--seconds N] [--json]"""

from __future__ import annotations

import difflib
import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import (  # noqa: F401 - each enters its benchmarks
    auto,
    demo,
    export,
    faults,
    fused,
    fuzz,
    relations,
    scale,
    scaling,
    serve,
    soft_targets,
    specialists,
    static,
    sweep,
    together,
    training,
    transformers,
)
from benchmarks.harness import BENCHMARKS, Benchmark, run
from benchmarks.peers import side_by_side, texts  # noqa: F401

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    name: Annotated[str | None, typer.Argument(help="Which benchmark; without it, list them.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small version, to see that it works; its figures mean little.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of torch, where a benchmark leaves the choice; all cores."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of a prepared data set, in place of texts that are made up.")
    ] = None,
    seconds: Annotated[
        int | None, typer.Option(min=1, help="How long each side is measured, where that is a choice.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Run one benchmark: ours, the reference, the ratio and the bound, all from one run.

    Exit code 1 where the bound does not hold, 2 for an unknown name.
    """
    console = Console(highlight=False)
    if name is None:
        console.print(_listing())
        return
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(BENCHMARKS)}"
        raise typer.BadParameter(f"no benchmark {name!r}; {hint}")
    result = run(_with_options(BENCHMARKS[name], threads=threads, data=data, seconds=seconds), quick)
    if as_json:
        print(json.dumps(result))
    else:
        console.print(_shown(result))
    raise typer.Exit(0 if result["holds"] else 1)


def _with_options(chosen: Benchmark, **options: Any) -> Benchmark:
    """The benchmark with the options that were given, each of which it must take."""
    given = {name: value for name, value in options.items() if value is not None}
    taken = inspect.signature(chosen.measure).parameters
    for name in given.keys() - taken:
        raise typer.BadParameter(f"{chosen.name!r} has no choice of --{name}; leave it out")
    measure: Any = chosen.measure
    return replace(chosen, measure=partial(measure, **given))


def _listing() -> Table:
    table = Table("name", "ours / reference", "what is compared")
    for entry in BENCHMARKS.values():
        table.add_row(entry.name, f"{entry.sense} {entry.bound:g}", escape(entry.text))
    return table


def _shown(result: dict[str, Any]) -> Table:
    unit = result["unit"]
    table = Table(result["name"], escape(BENCHMARKS[result["name"]].text), title_justify="left")
    table.add_row("ours", f"{result['ours']:,.5g} {unit}")
    table.add_row("reference", f"{result['reference']:,.5g} {unit}")
    table.add_row("ratio", f"{result['ratio']:.3f}")
    table.add_row("bound", f"{result['sense']} {result['bound']:g}")
    table.add_row("holds", "[green]yes[/]" if result["holds"] else "[red]no[/]")
    for part in ("detail", "machine"):
        lines = (f"{key}: {value}" for key, value in result[part].items())
        table.add_row(part, escape("\n".join(lines)))
    return table


if __name__ == "__main__":
    app()
