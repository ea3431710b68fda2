"""What the inputs are watched for while they are read: rows that occur twice, numbers that are far out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemble_kd.config import DataConfig
from ensemble_kd.data.copies import Copies, copy_remarks
from ensemble_kd.data.labels import place
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.remarks import FAR, SHOWN, FarNumbers
from ensemble_kd.data.scan import Scan
from ensemble_kd.data.splits import DROPPED, TEST, TRAIN, VALIDATION, Plan
from ensemble_kd.data.table import TableEncoder


class Oddities:
    """Takes the inputs of each split in order, and tells in the end."""

    def __init__(self, data: DataConfig, table: TableEncoder | None = None) -> None:
        """Of an encoded `table` only the columns of numbers can be far out."""
        self.data = data
        self.numbers = None if table is None else table.numbers
        self.copies = Copies()
        self.far: dict[str, FarNumbers] = {}

    def add(self, split: str, begin: int, values: Any) -> None:
        """Take rows of `split` from number `begin` on; `values` is None where none could be read."""
        if values is None:
            return
        if split != "unlabelled":
            self.copies.add(split, values)
        if self.data.kind == "numeric":
            if self.numbers is not None:
                values = values[:, list(self.numbers.values())]
            far = self.far.setdefault(split, FarNumbers(values.shape[1]))
            if values.shape[1] == far.rows.shape[1]:
                far.add(values, begin)

    def tell(self, found: Scan, made: Plan | None, problems: Problems) -> None:
        """Into `problems`, as warnings but for numbers that a model cannot take."""
        for split, far in self.far.items():
            self._tell_far(far, split, found, problems)
        if made is None or problems:
            return
        train, labels = self.copies.of("train"), found.labels["train"]
        if len(train) != len(made.part):
            return
        rows = {"train": np.flatnonzero(made.part == TRAIN)}
        inputs, known = {"train": train[rows["train"]]}, {"train": labels[rows["train"]]}
        for split, number in (("validation", VALIDATION), ("test", TEST)):
            if split in found.labels:
                inputs[split], known[split] = self.copies.of(split), found.labels[split]
            else:
                rows[split] = np.flatnonzero(made.part == number)
                inputs[split], known[split] = train[rows[split]], labels[rows[split]]

        def where(split: str, row: int) -> str:
            source, row = ("train", int(rows[split][row])) if split in rows else (split, row)
            return place(row, found.spans[source])

        for line in copy_remarks(inputs, known, where, found.names):
            problems.warn(line)
        if count := int((made.part == DROPPED).sum()):
            problems.warn(
                f"train: {count:,} of {len(train):,} rows left out as copies (data.duplicates: drop)"
            )

    def _tell_far(self, far: FarNumbers, split: str, found: Scan, problems: Problems) -> None:
        columns = self.data.columns.input if self.numbers is None else list(self.numbers)
        names = columns if isinstance(columns, list) and len(columns) == far.rows.shape[1] else None

        def name(j: int) -> str:
            whole = columns if isinstance(columns, str) else columns[0]
            return f"column {(names[j] if names else whole)!r}" + (
                f", value {j}," if names is None and far.rows.shape[1] > 1 else ""
            )

        def at(row: int) -> str:
            return place(row, found.spans[split]) if split in found.spans else f"row {row} of {split}"

        wide = far.too_wide()
        for j in wide[:SHOWN]:
            low, high = far.bounds[:, j]
            problems.add(
                f"data.columns.input: {name(j)} of {split} runs from {low:g} ({at(int(far.rows[0, j]))}) to "
                f"{high:g} ({at(int(far.rows[1, j]))}), further apart than 32-bit numbers reach; mend or "
                "remove these rows, or scale the column"
            )
        out = [entry for entry in far.found() if entry[0] not in wide]
        for j, row, value in out[:SHOWN]:
            problems.warn(
                f"data.columns.input: {name(j)} holds {value:g} ({at(row)}), more than {FAR:,.0f} times as "
                "far out as nearly all others, so that these become one and the same; mend or remove the row"
            )
        if len(out) > SHOWN:
            problems.warn(
                f"data.columns.input: {len(out) - SHOWN} more columns of {split} hold such a number"
            )
