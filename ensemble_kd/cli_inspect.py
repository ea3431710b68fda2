"""`inspect` and `clean` on the screen."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

from ensemble_kd.disk import size

Place = Annotated[
    str, typer.Argument(metavar="PATH", help="A run, model, store, or any other finished folder of a run.")
]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, as in runs/digits.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")]
MOST_LETTERS = 90
"""Of what a stage says of its result."""
MOST_LINES = 12
"""Of settings, summaries and files."""


def inspect(out: Rich, path: str, as_json: bool) -> None:
    """Print what is there. Raises InputError where it is nothing of ours."""
    from ensemble_kd.contents import contents

    found = contents(path)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    show = {"run": _run, "model": _model, "store": _store}.get(found["what"], _other)
    show(out, found)
    for problem in found.get("problems", []):
        out.print(f"[red]damaged:[/] {escape(problem)}")


def _run(out: Rich, found: dict[str, Any]) -> None:
    state = "finished" if found["finished"] else "not finished; the same command goes on"
    out.print(escape(f"{found['folder']}: run {found['name']}, {state}, {size(found['bytes'])}"))
    table = Table("stage", "fingerprint", "made", "on disk", "", "")
    table.columns[3].justify = "right"
    for stage in found["stages"]:
        state = "" if stage.get("used", True) else "[dim]other settings[/]"
        cells = (stage["stage"], stage["fingerprint"], _when(stage.get("created")), size(stage["bytes"]))
        text = "" if stage["stage"] == "report" else _short(stage["text"], MOST_LETTERS)
        table.add_row(*cells, escape(text), state)
    for stage in found["members"]:
        parts = [f"{stage['finished']} finished"]
        parts += [f"{stage['unfinished']} unfinished"] if stage["unfinished"] else []
        others = stage["finished"] - stage["used"]
        state = f"[dim]{others} of other settings[/]" if others else ""
        where = f"{stage['stage']}: members"
        table.add_row(where, "", "", size(stage["bytes"]), ", ".join(parts), state)
    out.print(table)
    if found["model"] is not None:
        _model(out, found["model"])
    if found["verdict"] is not None:
        out.print(escape(found["verdict"]), style="bold")
    if found["bytes_to_clean"]:
        command = f"ensemble-kd clean {shlex.quote(str(found['folder']))}"
        line = f"{size(found['bytes_to_clean'])} are of other settings: {command}"
        out.print(escape(line))


def _model(out: Rich, found: dict[str, Any]) -> None:
    if found["model"] is None:
        out.print(escape(f"{found['folder']}: a model folder"))
        return
    name = found["model"]["name"]
    given = ", ".join(f"{k}={v}" for k, v in found["model"].items() if k != "name" and v not in (None, 0.0))
    takes = f"{found['kind']} {found['input_shape']}"
    if found["columns"] not in (None, "input"):
        takes += f" from {_some(found['columns'])}"
    gives = f"{len(found['classes'])} classes: {_some(found['classes'])}"
    gives = gives if found["values"] is None else "values"
    forms = ", ".join(f"{form['form']} ({size(form['bytes'])})" for form in found["forms"])
    for line in (
        f"{found['folder']}: model {name} ({given}), {size(found['bytes'])}",
        f"  takes {takes}",
        f"  gives {gives}",
        f"  exported as {forms or 'nothing else'}",
    ):
        out.print(escape(line))


def _store(out: Rich, found: dict[str, Any]) -> None:
    shape = f"{found['rows']:,} rows x {found['views']} views x {found['members']} members"
    kept = f"the largest {found['top_k']} of {found['classes']}" if found["top_k"] else f"{found['classes']}"
    bound = f", error at most {found['error_bound_at_temperature_1']:.3g} at T = 1" if found["top_k"] else ""
    columns = ", ".join(f"{name} {shape} {kind}" for name, (shape, kind) in found["columns"].items())
    teachers = [f"{name} {of}" for name, of in found["inputs"].items()]
    for line in (
        f"{found['folder']}: soft targets, {shape} x {kept} classes{bound}",
        f"  {found['bytes_per_row']:,} bytes a row, {found['shards']} shards, {size(found['bytes'])}, made "
        f"{_when(found['created'])}",
        f"  columns: row, {columns}",
        f"  from {_some(teachers)}",
        "  in a loop of your own: ensemble_kd.integrations.SoftTargets (docs/integrations.md)",
    ):
        out.print(escape(line))


def _other(out: Rich, found: dict[str, Any]) -> None:
    said = f": {found['text']}" if found["text"] else ""
    line = f"{found['folder']}: {found['what']} {found['fingerprint']}{said}, {size(found['bytes'])}, made "
    out.print(escape(line + _when(found["created"])))
    for title in ("settings", "inputs", "summary", "files"):
        block = found[title]
        for name, value in list(block.items())[:MOST_LINES]:
            text = size(value) if title == "files" else json.dumps(value, ensure_ascii=False)
            out.print(escape(f"  {title[:-1] if title != 'summary' else title} {name}: {_short(text)}"))
        if len(block) > MOST_LINES:
            out.print(f"  and {len(block) - MOST_LINES} more {title}; --json has all")


def clean(out: Rich, run: str, yes: bool, as_json: bool) -> None:
    """Say what can go, ask, and delete it. Raises InputError where there is no run."""
    from ensemble_kd.leftovers import delete, leftovers

    folder = Path(run).expanduser()
    found = leftovers(folder)
    if as_json:
        lines = [
            {"path": str(each.path), "reason": each.reason, "bytes": each.size, "settings": each.settings}
            for each in found
        ]
        freed = delete(folder, found) if yes else 0
        told = {"leftovers": lines, "bytes": sum(each.size for each in found), "deleted_bytes": freed}
        print(json.dumps(told, indent=2))
        return
    if not found:
        out.print(escape(f"{folder}: nothing to delete; all of it is read by what the run finished last"))
        return
    table = Table("folder or file", "on disk", "why", "settings")
    table.columns[1].justify = "right"
    for each in found:
        inside = each.path.relative_to(folder)
        table.add_row(escape(str(inside)), size(each.size), each.reason, escape(each.settings))
    out.print(table)
    total = size(sum(each.size for each in found))
    places = "1 place" if len(found) == 1 else f"{len(found)} places"
    out.print(
        f"{places}, {total}. Reports, the model and all that the last finished run reads stay; "
        "going back to the other settings makes these anew."
    )
    if not yes and not sys.stdin.isatty():
        out.print("nothing deleted; --yes deletes")
        return
    if yes or typer.confirm("Delete them?"):
        out.print(f"deleted {size(delete(folder, found))}")
    else:
        out.print("nothing deleted")


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _some(values: Any) -> str:
    values = [values] if isinstance(values, str) else list(values)
    return ", ".join(map(str, values[:6])) + (f", ... ({len(values)})" if len(values) > 6 else "")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
