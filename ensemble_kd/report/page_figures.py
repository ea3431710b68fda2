"""Numbers as the page writes them."""

from __future__ import annotations

import html
from typing import Any

from ensemble_kd.report.pieces import dot
from ensemble_kd.report.plots import COLOURS

escaped = html.escape


def role_dot(role: str) -> str:
    return dot(COLOURS[role])


def percent_text(entry: dict[str, Any]) -> str:
    scaled = {key: None if v is None else 100 * v for key, v in entry.items()}
    return mean_text(scaled, 2, "%")


def mean_text(entry: dict[str, Any], digits: int, unit: str = "") -> str:
    if entry["mean"] is None:
        return "–"
    text = f"{entry['mean']:,.{digits}f}{unit}"
    error = entry["standard_error"]
    return text if error is None else f"{text} ± {error:,.{digits}f}"


def size_text(value: float | None) -> str:
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
