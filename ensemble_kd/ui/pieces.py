"""Pieces of the pages: the frame around them, links, and what is shown of numbers and times."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from ensemble_kd.errors import ArtifactError
from ensemble_kd.redact import redacted
from ensemble_kd.report.page import CSS
from ensemble_kd.safe_files import shown

STYLE = CSS + (files("ensemble_kd.ui") / "files" / "style.css").read_text(encoding="utf-8")
SCRIPT = (files("ensemble_kd.ui") / "files" / "refresh.js").read_text(encoding="utf-8")
LONGEST = 2000
"""Characters of a text of the run."""


def esc(value: Any, most: int = LONGEST) -> str:
    """Any text of a run as HTML: on one line, masked, not for long."""
    return html.escape(shown(redacted(str(value)), most))


def url(page: str, **query: Any) -> str:
    """A link within these pages, as HTML."""
    return html.escape(f"{page}?{urlencode(query)}" if query else page)


def page(title: str, main: str, run: str | None = None, refresh: int = 0) -> str:
    """A whole page; `run` adds the links to the other pages of this run."""
    links = [("All runs", url("/"))]
    if run is not None:
        links += [
            ("Run", url("/run", name=run)),
            ("Soft targets", url("/examples", name=run)),
            ("Confused classes", url("/clusters", name=run)),
        ]
    nav = " ".join(f'<a href="{where}">{name}</a>' for name, where in links)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{esc(title, 200)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/style.css">'
        f'<script src="/refresh.js" defer></script></head>\n<body data-refresh="{refresh}">'
        f"<main><nav>{nav}</nav><h1>{esc(title, 200)}</h1>\n{main}\n</main></body></html>\n"
    )


def guarded(make: Callable[[], str], what: str) -> str:
    """A part of a page; where the folder is damaged, a line that says so, and the rest of the page stands."""
    try:
        return make()
    except (ArtifactError, OSError) as error:
        return f"<p class=wrong>{esc(what)} cannot be shown: {esc(error, 400)}</p>"
    except Exception as error:  # a stranger's report may hold anything at any place
        return f"<p class=wrong>{esc(what)} cannot be shown: damaged ({esc(type(error).__name__)})</p>"


def when(seconds: Any) -> str:
    """A time stamp as local date and time, for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(seconds))) if seconds else "–"
    except (ValueError, OverflowError, TypeError, OSError):
        return "–"


def dig(value: Any, *keys: str) -> Any:
    """An entry of nested blocks; None where one of them is absent, or no block."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
