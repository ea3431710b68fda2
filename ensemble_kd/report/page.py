"""report.json and one self-contained report.html: nothing is fetched, everything of the user's is escaped."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.report.build import ROLES
from ensemble_kd.report.choose import choose_html
from ensemble_kd.report.gap import gap_html
from ensemble_kd.report.page_figures import escaped, percent_text
from ensemble_kd.report.page_results import column_section, reference_section, results_section
from ensemble_kd.report.page_specialists import specialists_section
from ensemble_kd.report.pieces import plain, table, text_of, titled_plot
from ensemble_kd.report.plots import (
    confusion_plot,
    per_class_plot,
    reliability_diagram,
    scatter_plot,
    training_curves,
)
from ensemble_kd.report.ships import ships_html
from ensemble_kd.report.sweep_page import sweep_html
from ensemble_kd.report.teachers_calibration import teachers_calibration_html
from ensemble_kd.targets import target_in

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
    title = escaped(report["name"])
    verdict = report["verdict"]
    css_class = verdict["outcome"] if verdict["outcome"] in ("helped", "hurt") else "unsure"
    parts = [
        f"<h1>{title}</h1><p class=quiet>{escaped(_subtitle(report))}</p>",
        f'<section class="verdict {css_class}"><p>{escaped(verdict["text"])}</p></section>',
        _facts(report),
        gap_html(report.get("gap_check")),
        results_section(report),
        ships_html(report.get("ships")),
        reference_section(report),
        teachers_calibration_html(report.get("calibration")),
        specialists_section(report, arrays),
        choose_html(report.get("choose")),
        sweep_html(report.get("sweep"), arrays.get("sweep")),
        titled_plot("Training", training_curves(histories), "wide"),
        _calibration_and_mistakes(report, arrays),
        column_section(report),
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
            facts.append((f"{percent_text(entry)}", f"{headline.title}, {ROLES[role].lower()}"))
    if gap["value"] is not None:
        error = gap["standard_error"]
        value = f"{100 * gap['value']:.0f}%" + (f" ± {100 * error:.0f}" if error is not None else "")
        facts.append((value, "of the gap recovered"))
    else:
        facts.append(("–", f"gap recovered: {gap['reason']}"))
    cells = "".join(
        f"<div><b>{escaped(value)}</b><span>{escaped(what)}</span></div>" for value, what in facts
    )
    return f"<div class=facts>{cells}</div>"


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
            ("", [escaped(c["true"]), escaped(c["predicted"]), str(c["count"]), str(c["of"])])
            for c in report["confused"]
        ]
        head = ["true class", "predicted", "times", "of"]
        text += f"<h2>Most confused</h2>{table(head, rows, 'pairs')}"
    return text


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
    rows = [("", [f"<code>{escaped(key)}</code>", escaped(value)]) for key, value in lines]
    note = f"<p class=quiet>{escaped(note)}</p>" if note else ""
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
