"""The tables of results in the page: systems, means, references."""

from __future__ import annotations

from typing import Any

from ensemble_kd.report.build import ROLES
from ensemble_kd.report.page_figures import escaped, mean_text, percent_text, role_dot, size_text
from ensemble_kd.report.pieces import rounded, table, text_of
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import Column, columns_of

MANY_TEACHERS = 10


def results_section(report: dict[str, Any]) -> str:
    columns = columns_of(report)
    head = ["", *(column.title for column in columns), "parameters", "size", "ms at 1", "ms at 32"]
    teachers = [s for s in report["systems"] if s["role"] == "teacher"]
    shown = [s for s in report["systems"] if s["role"] != "teacher"]
    rows = []
    if teachers:
        rows.append(_mean_row("teacher", report))
    for i, system in enumerate(shown):
        rows.append(_system_row(system, report["shipped"], columns))
        role = system["role"]
        last = i + 1 == len(shown) or shown[i + 1]["role"] != role
        if last and report["summary"][role]["n"] > 1:
            rows.append(_mean_row(role, report))
    text = "<h2>Results on the test rows</h2>" + table(head, rows)
    text += (
        f"<p class=quiet>Mean ± standard error over members or seeds. {target_in(report).units}, ms "
        "for one forward pass at batch size 1 and 32. The ensemble's parameters, size and ms are those of "
        "all members.</p>"
    )
    if report["excluded"]:
        text += f"<p>Left out of the ensemble: {escaped('; '.join(report['excluded']))}.</p>"
    if teachers:
        inner = table(head, [_system_row(system, report["shipped"], columns) for system in teachers])
        opened = " open" if len(teachers) <= MANY_TEACHERS else ""
        title = "The teacher" if len(teachers) == 1 else f"Each of the {len(teachers)} teachers"
        text += f"<details{opened}><summary>{title}</summary>{inner}</details>"
    return f"<section>{text}</section>"


def _cell(value: float | None, column: Column) -> str:
    if value is None:
        return "–"
    return f"{column.scale * value:,.{column.places(value)}f}{'%' if column.scale == 100 else ''}"


def _system_row(system: dict[str, Any], shipped: str, columns: tuple[Column, ...]) -> tuple[str, list[str]]:
    name = system["name"] + (" (shipped)" if system["name"] == shipped else "")
    return (
        ' class="shipped"' if system["name"] == shipped else "",
        [
            role_dot(system["role"]) + escaped(name),
            *(_cell(system[column.key], column) for column in columns),
            "–" if system["parameters"] is None else f"{system['parameters']:,}",
            size_text(system["bytes"]),
            rounded(system["latency_ms_batch_1"], 2),
            rounded(system["latency_ms_batch_32"], 2),
        ],
    )


def _mean_row(role: str, report: dict[str, Any]) -> tuple[str, list[str]]:
    entry = report["summary"][role]
    name = f"{ROLES[role]}, mean of {entry['n']}" if entry["n"] > 1 else ROLES[role]
    first, second, *others = columns_of(report)
    digits = 1 if second.key == "errors" else second.places(entry[second.key]["mean"])
    cells = [
        role_dot(role) + escaped(name),
        percent_text(entry[first.key]),
        mean_text(entry[second.key], digits),
    ]
    # The errors of these three are in report.json; here they would push the table off the page.
    return "", cells + [_cell(entry[column.key]["mean"], column) for column in others] + [""] * 4


def column_section(report: dict[str, Any]) -> str:
    """R² of each label column, where there are several."""
    by_role: dict[str, list[list[float | None]]] = {}
    for system in report["systems"]:
        if each := system.get("per_column"):
            by_role.setdefault(system["role"], []).append([one["r2"] for one in each])
    if not by_role:
        return ""
    names = next(s["per_column"] for s in report["systems"] if s.get("per_column"))
    rows = []
    for role, found in by_role.items():
        columns = list(zip(*found, strict=True))
        means = [None if None in column else sum(column) / len(column) for column in columns]
        rows.append(
            ("", [escaped(ROLES[role]), *("–" if mean is None else f"{100 * mean:.2f}%" for mean in means)])
        )
    head = ["", *(escaped(one["name"]) for one in names)]
    return f"<section><h2>R² by column</h2>{table(head, rows)}</section>"


def reference_section(report: dict[str, Any]) -> str:
    if not report["reference"]:
        return ""
    columns = list(dict.fromkeys(key for row in report["reference"] for key in row["values"]))
    rows = [
        ("", [escaped(row["name"])] + [escaped(text_of(row["values"].get(key))) for key in columns])
        for row in report["reference"]
    ]
    return f"<section><h2>Beside published figures</h2>{table(['', *columns], rows)}</section>"
