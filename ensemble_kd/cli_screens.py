"""The two screens of the command line: results on one, what is wrong on the other."""

from __future__ import annotations

import sys

from rich.console import Console as Rich

WIDTH = None if sys.stdout.isatty() else 120
"""Columns: the terminal's, or enough for the tables where there is none."""
out = Rich(highlight=False, soft_wrap=True, width=WIDTH)
err = Rich(stderr=True, highlight=False, soft_wrap=True, width=WIDTH)
