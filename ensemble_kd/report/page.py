"""report.json and one self-contained report.html: nothing is fetched, everything of the user's is escaped."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.report.build import ROLES
from ensemble_kd.report.choose import choose_html
from ensemble_kd.report.gap import gap_html
from ensemble_kd.report.pieces import dot, plain, rounded, table, text_of, titled_plot
from ensemble_kd.report.plots import (
    COLOURS,
    confusion_plot,
    covariance_plot,
    per_class_plot,
    reliability_diagram,
    scatter_plot,
    training_curves,
)
from ensemble_kd.report.ships import ships_html
from ensemble_kd.report.sweep_page import sweep_html
from ensemble_kd.report.teachers_calibration import teachers_calibration_html
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import Column, columns_of

MANY_TEACHERS = 10
MANY_CLASSES = 30
LARGEST_CHANGES = 15
LARGEST_CONFUSION = 120  # classes; beyond this a cell is smaller than a pixel or two

CSS = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2129; --quiet: #626a76;
  --line: #e3e5e8; --good: #1a7f4b; --bad: #b3273a; --unsure: #946200; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1b1e24; --ink: #e4e6ea;
  --quiet: #9aa2ae; --line: #30353d; --good: #57c98c; --bad: #f07f8e; --unsure: #e0ae4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
p { max-width: 72ch; } .quiet { color: var(--quiet); font-size: .9rem; }
.verdict { border-left: 4px solid var(--unsure); background: var(--card); padding: .9rem 1.2rem;
  margin: 1.4rem 0; border-radius: 0 8px 8px 0; }
.verdict.helped { border-color: var(--good); } .verdict.hurt { border-color: var(--bad); }
.verdict p { margin: 0; font-size: 1.1rem; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.facts div { flex: 1 1 10rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem 1rem; }
.facts b { display: block; font-size: 1.3rem; font-weight: 600; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.facts span { color: var(--quiet); font-size: .85rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .55rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--quiet); font-weight: 500; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
table.text td { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
table.clusters td:first-child { white-space: normal; min-width: 16rem; }
table.trials td:last-child, table.trials th:last-child { text-align: left; }
table.trials td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
table.together td:nth-child(2), table.together th:nth-child(2) { text-align: left; }
table.together td:nth-child(2) { white-space: normal; overflow-wrap: anywhere; min-width: 20rem; }
table.pairs td:nth-child(2), table.pairs th:nth-child(2) { text-align: left; }
.dot { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .55em; }
tr.shipped td { font-weight: 600; }
svg { max-width: 100%; height: auto; display: block; } .wide svg { min-width: 640px; }
.full svg { max-width: none; }
.plot { padding: .8rem; } .plot svg { margin: 0 auto; }
details { margin: 1rem 0; } summary { cursor: pointer; } code { font-size: .88em; }
"""

_escape = html.escape


def write_report(
    report: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    arrays: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Write report.json and report.html into `folder`, each whole or not at all; returns the file names."""
    report = plain(report)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / "report.json", text + "\n")
    write_atomic(folder / "report.html", render(report, plain(histories), arrays))
    return ["report.html", "report.json"]


def render(report: dict[str, Any], histories: dict[str, Any], arrays: dict[str, Any]) -> str:
    """The page as one string."""
    title = _escape(report["name"])
    verdict = report["verdict"]
    css_class = verdict["outcome"] if verdict["outcome"] in ("helped", "hurt") else "unsure"
    parts = [
        f"<h1>{title}</h1><p class=quiet>{_escape(_subtitle(report))}</p>",
        f'<section class="verdict {css_class}"><p>{_escape(verdict["text"])}</p></section>',
        _facts(report),
        gap_html(report.get("gap_check")),
        _results(report),
        ships_html(report.get("ships")),
        _reference(report),
        teachers_calibration_html(report.get("calibration")),
        _specialists(report, arrays),
        choose_html(report.get("choose")),
        sweep_html(report.get("sweep"), arrays.get("sweep")),
        titled_plot("Training", training_curves(histories), "wide"),
        _calibration_and_mistakes(report, arrays),
        _per_column(report),
        _per_class(report),
        _record("Settings", report["settings"]),
        _record("Lineage", report["lineage"], "Fingerprints of what this run was made from."),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main></body></html>\n"
    )


# ---------------------------------------------------------------------------------------------- sections


def _subtitle(report: dict[str, Any]) -> str:
    counts = " · ".join(f"{n:,} {split}" for split, n in report["counts"].items())
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(report["created"]))
    what = target_in(report).summary(report["class_names"])
    return f"{day} · {what} · {counts}"


def _facts(report: dict[str, Any]) -> str:
    gap, facts = report["gap_recovered"], []
    headline = target_in(report).measures.columns[0]
    for role in ("ensemble", "hard", "distilled"):
        if role in report["summary"]:
            entry = report["summary"][role][headline.key]
            facts.append((f"{_percent(entry)}", f"{headline.title}, {ROLES[role].lower()}"))
    if gap["value"] is not None:
        error = gap["standard_error"]
        value = f"{100 * gap['value']:.0f}%" + (f" ± {100 * error:.0f}" if error is not None else "")
        facts.append((value, "of the gap recovered"))
    else:
        facts.append(("–", f"gap recovered: {gap['reason']}"))
    cells = "".join(
        f"<div><b>{_escape(value)}</b><span>{_escape(what)}</span></div>" for value, what in facts
    )
    return f"<div class=facts>{cells}</div>"


def _results(report: dict[str, Any]) -> str:
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
    units = target_in(report).units
    text += (
        f"<p class=quiet>Mean ± standard error over members or seeds. {units}, ms for one forward pass at "
        "batch size 1 and 32. The ensemble's parameters, size and ms are those of all members.</p>"
    )
    if report["excluded"]:
        text += f"<p>Left out of the ensemble: {_escape('; '.join(report['excluded']))}.</p>"
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
            _dot(system["role"]) + _escape(name),
            *(_cell(system[column.key], column) for column in columns),
            "–" if system["parameters"] is None else f"{system['parameters']:,}",
            _size(system["bytes"]),
            rounded(system["latency_ms_batch_1"], 2),
            rounded(system["latency_ms_batch_32"], 2),
        ],
    )


def _mean_row(role: str, report: dict[str, Any]) -> tuple[str, list[str]]:
    entry = report["summary"][role]
    name = f"{ROLES[role]}, mean of {entry['n']}" if entry["n"] > 1 else ROLES[role]
    first, second, *others = columns_of(report)
    digits = 1 if second.key == "errors" else second.places(entry[second.key]["mean"])
    cells = [_dot(role) + _escape(name), _percent(entry[first.key]), _mean(entry[second.key], digits)]
    # The errors of these three are in report.json; here they would push the table off the page.
    return "", cells + [_cell(entry[column.key]["mean"], column) for column in others] + [""] * 4


def _reference(report: dict[str, Any]) -> str:
    if not report["reference"]:
        return ""
    columns = list(dict.fromkeys(key for row in report["reference"] for key in row["values"]))
    rows = [
        ("", [_escape(row["name"])] + [_escape(text_of(row["values"].get(key))) for key in columns])
        for row in report["reference"]
    ]
    return f"<section><h2>Beside published figures</h2>{table(['', *columns], rows)}</section>"


SHOWN = {
    "teacher": "teachers",
    "generalist_specialists": "one + specialists",
    "ensemble": "ensemble",
    "ensemble_specialists": "+ specialists",
    "hard": "hard labels",
    "pseudo": "pseudo-labels",
    "from_ensemble": "from ensemble",
    "from_specialists": "from specialists",
    "distilled": "distilled",
    "together": "together",
}
"""Roles in the table of clusters, and their short names there."""


def _specialists(report: dict[str, Any], arrays: dict[str, Any]) -> str:
    section = report.get("specialists")
    if not section:
        return ""
    text = f"<h2>Specialists</h2><p>{_escape(section['text'][:1].upper() + section['text'][1:])}.</p>"
    lines = []
    for difference in section["differences"]:
        what = {"generalist": section["generalist"], "ensemble": "the ensemble"}[difference["role"]]
        lines.append(
            f"{what}: {difference['points']:+.2f} points with its specialists, 95% interval "
            f"{difference['low']:+.2f} to {difference['high']:+.2f}"
        )
    text += f"<p class=quiet>{_escape('; '.join(lines))}.</p>" if lines else ""
    roles = [role for role in SHOWN if any(role in c["accuracy"] for c in section["clusters"])]
    rows = []
    for number, cluster in enumerate(section["clusters"]):
        names = ", ".join(cluster["names"][:6]) + (" …" if len(cluster["names"]) > 6 else "")
        before, after = cluster["conditional_before"], cluster["conditional_after"]
        among = "–" if after is None else f"{100 * before:.1f} → {100 * after:.1f}%"
        cells = [
            f"{number}: {_escape(names)}",
            str(len(cluster["names"])),
            f"{100 * cluster['confusion_captured']:.1f}%",
            among,
            f"{cluster['weight']:g}" if cluster["weight"] else "off",
            *(_share(cluster["accuracy"].get(role)) for role in roles),
        ]
        rows.append(("", cells))
    head = ["cluster", "classes", "confusion", "among its classes", "weight"]
    head += [SHOWN[role] for role in roles]
    text += table(head, rows, "clusters")
    text += (
        "<p class=quiet>Confusion: share of all confusion that lies inside. Among its classes: validation "
        "accuracy of generalist and specialist when only these are allowed. The other columns: test accuracy "
        "on the cluster's classes.</p>"
    )
    if section["without"]:
        names = ", ".join(section["without"][:20]) + (" …" if len(section["without"]) > 20 else "")
        text += f"<p class=quiet>Without a specialist: {_escape(names)}.</p>"
    text += _coverage(section)
    ordered = arrays.get("clusters")
    if ordered is not None:
        size = "full" if len(ordered["order"]) > 20 else ""
        plot = covariance_plot(ordered, report["class_names"])
        text += titled_plot("What the teachers confuse, by cluster", plot, size)
        text += (
            "<p class=quiet>Red: the teachers' probabilities of two classes rise together. Boxes are "
            "clusters; a class of several stands in the first.</p>"
        )
    return f"<section>{text}</section>"


def _coverage(section: dict[str, Any]) -> str:
    """The paper's table: what specialists change, by how many of them know the right class."""
    pairs = [("generalist", f"{section['generalist']}"), ("ensemble", "ensemble")]
    pairs = [pair for pair in pairs if f"{pair[0]}_specialists" in section["coverage"][0]]
    rows = []
    for line in section["coverage"]:
        cells = [line["specialists"], f"{line['rows']:,}"]
        for role, _ in pairs:
            before, after = line[role], line[f"{role}_specialists"]
            cells += [f"{before:,}", f"{after - before:+,}"]
        rows.append(("", cells))
    head = ["specialists that know the right class", "test rows"]
    for _, name in pairs:
        head += [f"right, {name}", "with specialists"]
    note = "<p class=quiet>Of all specialists, on or off (arXiv 1503.02531, table 4).</p>"
    return "<h2>By number of specialists</h2>" + table(head, rows) + note


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _calibration_and_mistakes(report: dict[str, Any], arrays: dict[str, Any]) -> str:
    text = ""
    if arrays.get("values"):
        text += titled_plot(
            f"Predictions of the shipped student, {report['shipped']}", scatter_plot(arrays["values"])
        )
        text += "<p class=quiet>A dot is a test row; on the dashed line a prediction is right.</p>"
    if arrays.get("reliability"):
        text += titled_plot("Calibration", reliability_diagram(arrays["reliability"]))
        text += (
            "<p class=quiet>The dashed line is perfect calibration; below it a model is overconfident. "
            "Dots grow with the number of test rows.</p>"
        )
    confusion = arrays.get("confusion")
    if confusion is not None and len(confusion) <= LARGEST_CONFUSION:
        plot = confusion_plot(confusion, report["class_names"])
        text += titled_plot(
            f"Mistakes of the shipped student, {report['shipped']}",
            plot,
            "full" if len(confusion) > 20 else "",
        )
        text += "<p class=quiet>Share of each true class; mistakes in red, their shade by the root.</p>"
    if report["confused"]:
        rows = [
            ("", [_escape(c["true"]), _escape(c["predicted"]), str(c["count"]), str(c["of"])])
            for c in report["confused"]
        ]
        head = ["true class", "predicted", "times", "of"]
        text += f"<h2>Most confused</h2>{table(head, rows, 'pairs')}"
    return text


def _per_column(report: dict[str, Any]) -> str:
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
            ("", [_escape(ROLES[role]), *("–" if mean is None else f"{100 * mean:.2f}%" for mean in means)])
        )
    head = ["", *(_escape(one["name"]) for one in names)]
    return f"<section><h2>R² by column</h2>{table(head, rows)}</section>"


def _per_class(report: dict[str, Any]) -> str:
    if not target_in(report).classified:
        return ""
    accuracy: dict[str, list[float | None]] = {}
    for role in ("hard", "distilled", "ensemble"):
        rows = [s["per_class_accuracy"] for s in report["systems"] if s["role"] == role]
        if rows:
            columns = zip(*rows, strict=True)
            accuracy[role] = [None if None in column else sum(column) / len(column) for column in columns]
    if not accuracy:
        return ""
    names, picked = report["class_names"], list(range(len(report["class_names"])))
    title = "Accuracy per class"
    if len(names) > MANY_CLASSES and {"hard", "distilled"} <= set(accuracy):

        def change(i: int) -> float:
            ours, theirs = accuracy["distilled"][i], accuracy["hard"][i]
            return 0.0 if ours is None or theirs is None else abs(ours - theirs)

        picked = sorted(picked, key=change, reverse=True)[:LARGEST_CHANGES]
        title += f", the {LARGEST_CHANGES} largest changes of {len(names)}"
    else:
        picked = picked[:MANY_CLASSES]
    kept = {role: [values[i] for i in picked] for role, values in accuracy.items()}
    return titled_plot(title, per_class_plot([names[i] for i in picked], kept), "wide")


def _record(title: str, record: Mapping[str, Any], note: str = "") -> str:
    lines = list(_flat(record))
    if not lines:
        return ""
    rows = [("", [f"<code>{_escape(key)}</code>", _escape(value)]) for key, value in lines]
    note = f"<p class=quiet>{_escape(note)}</p>" if note else ""
    folded = table(["", ""], rows, "text", header=False)
    opened = " open" if len(lines) <= 12 else ""
    return f"<details{opened}><summary><b>{title}</b></summary>{note}{folded}</details>"


# ------------------------------------------------------------------------------------------------- pieces


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, text_of(value)


def _dot(role: str) -> str:
    return dot(COLOURS[role])


def _percent(entry: dict[str, Any]) -> str:
    scaled = {key: None if v is None else 100 * v for key, v in entry.items()}
    return _mean(scaled, 2, "%")


def _mean(entry: dict[str, Any], digits: int, unit: str = "") -> str:
    if entry["mean"] is None:
        return "–"
    text = f"{entry['mean']:,.{digits}f}{unit}"
    error = entry["standard_error"]
    return text if error is None else f"{text} ± {error:,.{digits}f}"


def _size(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
