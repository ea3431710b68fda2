"""The results of a run on the screen: the report's summary, the forms that are handed over."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from ensemble_kd.cli_screens import out
from ensemble_kd.mirror import Mirror, is_remote

if TYPE_CHECKING:  # what takes time to import comes with the command that needs it: --help is quick
    from ensemble_kd.targets.base import Column


def print_results(folder: Path, run_dir: str | None) -> None:
    """Of the run folder or this machine's copy of it; `run_dir` is where the user put it."""
    from ensemble_kd.report.build import ROLES

    report_ = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    by_role: dict[str, list[dict[str, Any]]] = {}
    for system in report_["systems"]:
        by_role.setdefault(system["role"], []).append(system)
    from ensemble_kd.targets import target_in

    shown = target_in(report_).measures.columns[:3]
    titles = [f"{column.title} %" if column.scale == 100 else column.title for column in shown]
    table = Table("", "runs", *titles, "parameters", "ms")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for role, name in ROLES.items():
        if role in report_["summary"]:
            row = report_["summary"][role]
            cost = by_role[role][0]
            table.add_row(
                name,
                str(row["n"]),
                *(_spread(row[c.key], c) for c in shown),
                f"{cost['parameters']:,}" if cost["parameters"] else "",
                f"{cost['latency_ms_batch_1']:.3f}" if cost["latency_ms_batch_1"] else "",
            )
    out.print(table)
    for row in report_["reference"]:
        values = ", ".join(f"{k} {v}" for k, v in row["values"].items())
        out.print(escape(f"{row['name']}: {values}"))
    if report_.get("ships"):
        print_ships(report_["ships"])
    out.print(escape(report_["verdict"]["text"]), style="bold")
    where = Mirror.of(run_dir).shown if run_dir and is_remote(run_dir) else str(folder)
    out.print(escape(f"report: {where}/report.html"))
    command = f"ensemble-kd predict {shlex.quote(f'{where}/model')} INPUT"
    out.print(escape(f"model:  {where}/model   ({command})"))


def print_ships(section: dict[str, Any]) -> None:
    from ensemble_kd.report.ships import calibration_text, head_of, ship_rows

    table = Table(*head_of(section))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in ship_rows(section):
        table.add_row(*map(escape, row))
    out.print(table)
    if section.get("calibration") and (text := calibration_text(section)):
        out.print(escape(text))


def _spread(value: dict[str, Any], column: Column) -> str:
    if value["mean"] is None:
        return "–"
    digits = 1 if column.key == "errors" else column.places(value["mean"])
    text = f"{column.scale * value['mean']:.{digits}f}"
    error = value["standard_error"]
    return text if error is None else f"{text} ± {column.scale * error:.{digits}f}"


def size_text(size: int | None) -> str:
    if not size:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"
