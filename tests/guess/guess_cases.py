"""Small data sets of many kinds, written as users have them."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = "card lost stolen pay bank transfer rate euro is it the my how can help with".split()
ROWS = 120


def text(i: int, words: int = 7) -> str:
    return " ".join(random.Random(i).choices(WORDS, k=words))


def table(path: Path, names: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if names is not None:
            writer.writerow(names)
        writer.writerows(rows)
    return path


def texts(path: Path, labels: Sequence[Any], names: Sequence[str] = ("text", "label")) -> Path:
    return table(path, names, [(text(i), label) for i, label in enumerate(labels)])
