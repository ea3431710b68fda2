"""What was chosen on validation rows: every candidate against the choice, and how sure that is."""

from __future__ import annotations

import html
from typing import Any

from ensemble_kd.report.pieces import rounded, table


def choose_section(summary: dict[str, Any] | None, seconds: float) -> dict[str, Any] | None:
    """The stage's summary, and what it cost beside the students' `seconds`."""
    if summary is None:
        return None
    return {**summary, "student_seconds": seconds, "cost": summary["seconds"] / seconds if seconds else None}


def choose_html(section: dict[str, Any] | None) -> str:
    """The section of the page; empty where numbers were given."""
    if section is None:
        return ""
    text = f"<h2>Chosen on validation rows</h2><p>{html.escape(section['text'])}.</p>"
    rows = []
    for number, entry in enumerate(section["candidates"]):
        chosen = number == section["choice"]
        accuracy = entry.get("accuracy")
        cells = [
            html.escape(entry["name"]) + (" (the default)" if number == section["default"] else ""),
            "–" if accuracy is None else f"{100 * accuracy:.2f}%",
            "" if chosen else _difference(entry, "accuracy_gain", 100, 2),
            rounded(entry.get("loss")),
            "" if chosen else _difference(entry, "likelihood_gain", 1, 4),
        ]
        rows.append((' class="shipped"' if chosen else "", cells))
    if rows:
        head = ["", "accuracy", "the choice gains", "loss", "the choice gains"]
        text += f"<details><summary>All {len(rows)} candidates</summary>{table(head, rows)}</details>"
    cost = section.get("cost")
    how = "stacked, each trained in full" if section["stacked"] else "trained one by one"
    if section["steps"] < 1:
        how += f" on {100 * section['steps']:.0f}% of the steps"
    text += (
        f"<p class=quiet>Candidates were {how}; {section['seconds']:.1f} s"
        + (f", {cost:.2f} times what the students took" if cost is not None else "")
        + ". Differences over the same validation rows, ± standard error; losses at the temperature that "
        "suits each. What the best of many gains on the rows that it was chosen by is more than on "
        "others.</p>"
    )
    return f"<section>{text}</section>"


def _difference(entry: dict[str, Any], key: str, scale: float, digits: int) -> str:
    value, error = entry.get(key), entry.get(f"{key}_error")
    if value is None:
        return "–"
    text = f"{scale * value:+.{digits}f}"
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"
