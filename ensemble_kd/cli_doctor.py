"""`doctor` on the screen."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def doctor(out: Rich, as_json: bool) -> int:
    """Print what was found; returns the exit code: 1 where something needed is missing."""
    from ensemble_kd import doctor

    findings = doctor.examine()
    told = doctor.as_json(findings)
    if as_json:
        print(json.dumps(told, indent=2))
        return 0 if told["good"] else 1
    table = Table("", "found", "")
    for finding in findings:
        colour = "green" if finding.good else "red" if finding.needed else "yellow"
        table.add_row(f"[{colour}]{escape(finding.what)}[/]", escape(finding.found), escape(finding.fix))
    out.print(table)
    return 0 if told["good"] else 1
