"""Everything that is wrong with the input, gathered for one InputError. Rows count from 0 in their file."""

from __future__ import annotations

from collections.abc import Mapping

from ensemble_kd.errors import InputError

SHOWN = 10


class Problems:
    """Lines for the reader, in the order found; of each kind of bad row the first ten and how many more."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._rows: dict[str, tuple[list[str], int]] = {}
        self.warnings: list[str] = []
        """What is odd, but no reason to stop."""

    def add(self, line: str) -> None:
        if line not in self._lines:
            self._lines.append(line)

    def warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)

    def add_rows(self, kind: str, source: str, first: int, rows: Mapping[int, str]) -> None:
        """`rows`: what is wrong by row, counted from `first`. `kind` completes "and 5 more rows with ..."."""
        if not rows:
            return
        shown, count = self._rows.get(kind, ([], 0))
        for row, message in rows.items():
            if len(shown) == SHOWN:
                break
            shown.append(f"row {first + row} of {source}: {message}")
        self._rows[kind] = shown, count + len(rows)

    def all(self) -> list[str]:
        lines = list(self._lines)
        for kind, (shown, count) in self._rows.items():
            lines += shown
            if count > len(shown):
                lines.append(f"... and {count - len(shown)} more rows with {kind} ({count} in all)")
        return lines

    def __bool__(self) -> bool:
        return bool(self._lines or self._rows)

    def raise_if_any(self) -> None:
        if self:
            raise InputError(self.all())
