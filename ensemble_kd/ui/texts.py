"""The words of rows that a run has as hashed n-grams: from the rows that `distill` wrote into its folder.

A path outside the run folder is never read because a folder names it; those rows are shown by their ids.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.errors import ArtifactError
from ensemble_kd.leftovers import INPUT, RESOLVED
from ensemble_kd.safe_files import problem_inside
from ensemble_kd.ui.pieces import dig
from ensemble_kd.ui.said import LARGEST, Setting

WRITTEN = re.compile(rf"{INPUT}/[0-9a-f]{{16}}")
"""Below a run folder: rows in memory that `distill` was given, a file a split."""
ABOUT = {True: ("test",), False: ("train", "unlabelled")}
"""Files that test rows, and those of the transfer set, are numbered through."""


def texts_of(found: Setting, ids: np.ndarray, test: bool) -> list[str | None]:
    """The text of each row by its id, of pairs both; None where the run folder does not hold it."""
    columns = found.info.preprocess.get("columns", {})
    names = columns.get("input")
    names = [names] if isinstance(names, str) else names
    nothing: list[str | None] = [None] * len(ids)
    if columns.get("id") is not None or not isinstance(names, list):  # ids of the user's own
        return nothing
    try:
        path = str(dig(found.run.json(RESOLVED), "data", "path"))
    except ArtifactError:
        return nothing
    folder = "/".join(Path(path).parts[-2:])  # the run may have been moved since
    if not WRITTEN.fullmatch(folder):
        return nothing
    rows: list[tuple[Any, ...]] = []
    for split in ABOUT[test]:
        name = f"{folder}/{split}.parquet"
        if problem_inside(found.run.folder, name) is not None:
            continue
        file = found.run.folder / name
        if file.stat().st_size > LARGEST:
            return nothing
        rows += _columns(file, file.stat().st_mtime_ns, tuple(map(str, names)))
    numbers = [int(str(each)) if re.fullmatch(r"\d{1,12}", str(each)) else len(rows) for each in ids]
    return [" / ".join(map(str, rows[n])) if n < len(rows) else None for n in numbers]


@lru_cache(maxsize=4)
def _columns(path: Path, stamp: int, names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Rows of some columns; none where the file has others. `stamp` tells a file that was written anew."""
    try:
        table = pq.read_table(path, columns=list(names))
    except (OSError, ValueError, pa.ArrowException):
        return []
    if table.num_columns != len(names):
        return []
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
