"""Pieces that several parts of the report are made of: plain values, and HTML of tables and plots."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """The value as strict JSON has it: no numpy scalars, tuples, NaN or infinities."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def titled_plot(title: str, plot: str, size: str = "") -> str:
    """`size`: empty shrinks the plot to the screen, `wide` down to 640 pixels, `full` not at all."""
    if not plot:
        return ""
    return f'<h2>{html.escape(title)}</h2><div class="scroll plot {size}">{plot}</div>'


def table(
    head: Sequence[str], rows: Iterable[tuple[str, list[str]]], css_class: str = "", header: bool = True
) -> str:
    """`rows` are (attributes of the row, cells that are HTML already)."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr{attributes}><td>{'</td><td>'.join(cells)}</td></tr>" for attributes, cells in rows)
    top = f"<thead><tr>{top}</tr></thead>" if header else ""
    return f'<div class=scroll><table class="{css_class}">{top}<tbody>{body}</tbody></table></div>'


def text_of(value: Any) -> str:
    return (
        "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def dot(colour: str) -> str:
    return f'<span class=dot style="background:{colour}"></span>'


def rounded(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
