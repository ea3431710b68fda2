"""Before distilling: what the ensemble knew more than the student on hard labels, as a part of the page."""

from __future__ import annotations

import html
from typing import Any

from ensemble_kd.report.pieces import table


def gap_html(check: dict[str, Any] | None) -> str:
    """The result of the stage `gap`; empty where it was left out, or found nothing that is missing."""
    if not check or check["outcome"] == "helped":
        return ""
    text = f"<h2>Before distilling</h2><p>On validation rows, {html.escape(check['finding'])}.</p>"
    if check["causes"]:
        rows = [
            ("", [html.escape(cause["found"]), html.escape(cause["remedy"])]) for cause in check["causes"]
        ]
        text += table(["likely cause", "what to change"], rows, "text")
    if check.get("settings"):
        text += f"<p class=quiet>The student: {html.escape(check['settings'])}.</p>"
    return f"<section>{text}</section>"
