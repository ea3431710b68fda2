"""`compare` on the screen."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, as in runs/digits.")]


def compare(out: Rich, runs: list[str], as_json: bool) -> None:
    """A table, the best first. Raises InputError for what is no finished run."""
    from ensemble_kd.compare import compared

    rows = compared(runs)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    headline = list(rows[0])[2]
    head = ("run", "student", f"{headline} %", "behind the first (95%)", "parameters", "ms", "verdict")
    table = Table(*head)
    for row in rows:
        error = row["standard_error"]
        table.add_row(
            escape(row["run"]),
            f"{row['student']} x {row['seeds']}",
            f"{100 * row[headline]:.2f}" + (f" ± {100 * error:.2f}" if error is not None else ""),
            _behind(row, first=row is rows[0]),
            f"{row['parameters']:,}" if row["parameters"] else "",
            f"{row['latency_ms_batch_1']:.3f}" if row["latency_ms_batch_1"] else "",
            row["outcome"],
        )
    out.print(table)


def _behind(row: dict[str, Any], first: bool) -> str:
    if first:
        return ""
    if row["behind"] is None:
        return "other test rows"
    return f"{row['behind']:.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
