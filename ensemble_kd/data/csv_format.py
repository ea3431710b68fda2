"""What delimits the cells of a CSV file, found from its header and first rows."""

from __future__ import annotations

import csv
import io

DELIMITERS = ",;\t|"
SAMPLE = 2**18
"""Bytes that are looked at."""
SAMPLE_ROWS = 100


def first_rows(sample: str, delimiter: str, cut: bool) -> list[list[str]]:
    """Rows of a text's beginning; `cut`: the last one may lack its end. Blank lines do not count."""
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter):
            if row:
                rows.append(row)
            if len(rows) > SAMPLE_ROWS:
                return rows
    except csv.Error:  # a cell longer than the module takes, or a zero byte
        return rows
    return rows[:-1] if cut else rows


def find_delimiter(sample: str, cut: bool, preferred: str) -> str:
    """The delimiter that cuts the rows as the header; `preferred` where none cuts the header."""
    best, chosen = (0.0, 1), preferred
    for delimiter in (preferred, *DELIMITERS.replace(preferred, "")):
        rows = first_rows(sample, delimiter, cut)
        width = len(rows[0]) if rows else 0
        if width < 2:
            continue
        alike = [len(row) == width for row in rows[1:]] or [True]
        score = round(sum(alike) / len(alike), 1), width
        if score > best:
            best, chosen = score, delimiter
    return chosen


def sample_of(file: io.BufferedReader, longest: int) -> tuple[str, bool]:
    """The beginning of a text in UTF-8, its first line whole if that has at most `longest` bytes; and whether
    there is more."""
    data = file.read(SAMPLE)
    while len(data) >= SAMPLE and b"\n" not in data and len(data) < longest and (more := file.read(SAMPLE)):
        data += more
    return data.decode("utf-8", "replace"), bool(file.read(1))
