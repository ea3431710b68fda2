"""What is odd about labels and numbers, though nothing forbids it: told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ensemble_kd.data.classes import Classes, shortened
from ensemble_kd.data.labels import labelled

SHOWN = 5
FAR = 1e6
"""Times the scale of all but a thousandth of a column's numbers, beyond which one is told."""
MISSING = frozenset(("", "nan", "na", "n/a", "none", "null", "?", "-"))
"""What other programs write where there is no label."""

Place = Callable[[int], str]
"""`row 3 of train.csv`, for the number of a row of train."""


def class_remarks(classes: Classes, codes: np.ndarray, place: Place) -> list[str]:
    """Of train's labels: `codes` (N,) are the numbers of their classes, -1 for none."""
    counts = np.bincount(codes[codes >= 0], minlength=len(classes.names))
    single = np.flatnonzero(counts == 1)
    rows = {c: int(np.flatnonzero(codes == c)[0]) for c in single[:SHOWN]}
    lines = _gaps(classes, single, rows, place) if classes.numbers is not None else []
    far = _far(classes, single)
    if len(single):
        told = [f"{classes.names[c]!r} ({place(row)})" for c, row in rows.items() if c not in far]
        more = len(single) - len(far) - len(told)
        if told:
            lines.append(
                f"data.columns.label: {'a class' if len(single) == 1 else f'{len(single)} classes'} with a "
                f"single train row: {', '.join(told)}{f' and {more} more' if more > 0 else ''}; it stays in "
                "train, so that nothing judges what is learned of it"
            )
    if classes.listed and len(empty := np.flatnonzero(counts == 0)):
        names = ", ".join(shortened([repr(classes.names[c]) for c in empty]))
        lines.append(
            f"data.class_names: no train row for {len(empty)} of {len(counts)} classes ({names}), which are "
            "learned from teachers at best; are they spelt, and counted from 0, as the labels are?"
        )
    return lines + _spellings(classes, counts)


def _far(classes: Classes, single: np.ndarray) -> list[int]:
    """Classes of one row whose numbers lie further from all others than these lie apart."""
    if classes.numbers is None or not 0 < len(single) < len(classes.numbers) - 1:
        return []
    others = np.delete(classes.numbers, single).astype(np.float64)
    if not len(others):
        return []
    low, high = others.min(), others.max()
    room = max(high - low, 1.0)
    numbers = classes.numbers[single].astype(np.float64)
    return [int(c) for c, n in zip(single, numbers, strict=True) if n > high + room or n < low - room]


def _gaps(classes: Classes, single: np.ndarray, rows: dict[int, int], place: Place) -> list[str]:
    numbers, lines = classes.numbers, []
    assert numbers is not None
    far = _far(classes, single)
    for c in far[:SHOWN]:
        at = place(rows[c]) if c in rows else "one row"
        lines.append(
            f"data.columns.label: label {numbers[c]} occurs once ({at}), far from all others: a typo? It is "
            "a class of its own; mend or remove the row"
        )
    near = np.delete(numbers, far)
    if len(near) < 2:
        return lines
    absent = int(near[-1]) - int(near[0]) + 1 - len(near)
    if absent and list(near) != [-1, 1]:  # signs are no range
        after = np.flatnonzero(np.diff(near) > 1)[:SHOWN]
        spans = [(int(near[i]) + 1, int(near[i + 1]) - 1) for i in after]
        holes = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
        more = f" and more, {absent:,} in all" if absent > sum(b - a + 1 for a, b in spans) else ""
        lines.append(
            f"data.columns.label: labels run from {near[0]} to {near[-1]}, and none is {holes}{more}; "
            f"the {len(numbers):,} values that occur are the classes"
        )
    if near[0] == -1 and absent == 0 and len(near) > 2:
        lines.append(
            "data.columns.label: label -1 is a class like the others; where it marks rows without a label, "
            "leave these empty (null)"
        )
    return lines


def _spellings(classes: Classes, counts: np.ndarray) -> list[str]:
    lines: list[str] = []
    if classes.listed or classes.numbers is not None:
        return lines
    for name, count in zip(classes.names, counts, strict=True):
        if name.strip().casefold() in MISSING:
            lines.append(
                f"data.columns.label: {name!r} is a class of {count:,} rows; where it marks rows without a "
                "label, leave these empty (null)"
            )
    first: dict[str, str] = {}
    for name in classes.names:
        other = first.setdefault(" ".join(name.casefold().split()), name)
        if other is not name:
            lines.append(
                f"data.columns.label: {other!r} and {name!r} are two classes, and differ in case or spaces "
                "alone; write them alike if they are one"
            )
    return lines[:SHOWN]


def value_remarks(values: np.ndarray, place: Place, names: list[str]) -> list[str]:
    """Of train's labels that are values, (N,) float32 or (N, K) of the columns `names`; NaN for none."""
    rows = np.flatnonzero(labelled(values))
    watch = FarNumbers(len(names))
    watch.add(values[rows].reshape(-1, len(names)), 0)
    return [
        f"data.columns.label: {value:g} ({place(int(rows[row]))}"
        + (f", {names[column]!r}" if len(names) > 1 else "")
        + f") is more than {FAR:,.0f} times as far out "
        "as nearly all others, so that the mean and the error are of this row alone; mend or remove it"
        for column, row, value in watch.found()
    ]


class FarNumbers:
    """The number of each column (F of them) that lies furthest out, against the scale of a sample.

    The scale is the 99.9th percentile of the distances from the median, or, where that is 0, the median.
    """

    SAMPLE = 2**22
    """Numbers kept."""

    def __init__(self, width: int) -> None:
        self.bounds = np.stack([np.full(width, np.inf), np.full(width, -np.inf)])
        """(2, F): least and largest number."""
        self.rows = np.zeros((2, width), np.int64)
        self.sample: list[np.ndarray] = []
        self.kept, self.stride = 0, 1
        self.room = max(1024, self.SAMPLE // max(width, 1))

    def add(self, numbers: np.ndarray, first: int) -> None:
        """Numbers (N, F), of which the first is row `first`; rows come in order, and from 0."""
        if not len(numbers):
            return
        for i, at in enumerate((numbers.argmin(0), numbers.argmax(0))):
            value = np.take_along_axis(numbers, at[None], 0)[0].astype(np.float64)
            won = value < self.bounds[0] if i == 0 else value > self.bounds[1]
            self.rows[i][won], self.bounds[i][won] = at[won] + first, value[won]
        self.sample.append(numbers[-first % self.stride :: self.stride].copy())
        self.kept += len(self.sample[-1])
        while self.kept > self.room:  # every second one, so that all parts of the column count alike
            self.sample = [np.concatenate(self.sample)[::2]]
            self.kept, self.stride = len(self.sample[0]), 2 * self.stride

    def found(self) -> list[tuple[int, int, float]]:
        """Column, row and number of each that is far out."""
        if self.kept < 20:  # no scale to hold them against
            return []
        sample = np.concatenate(self.sample).astype(np.float64)
        middle = np.median(sample, axis=0)
        scale = _high(np.abs(sample - middle))
        scale = np.where(scale > 0, scale, np.maximum(np.abs(middle), 1.0))
        return sorted(
            (int(j), int(self.rows[i, j]), float(self.bounds[i, j]))
            for i in range(2)
            for j in np.flatnonzero(np.abs(self.bounds[i] - middle) > FAR * scale)
        )

    def too_wide(self) -> list[int]:
        """Columns whose numbers lie further apart than a 32-bit number can say."""
        return [int(j) for j in np.flatnonzero(self.bounds[1] - self.bounds[0] > np.finfo(np.float32).max)]


def _high(distances: np.ndarray) -> np.ndarray:
    """(F,) The 99.9th percentile, and never the largest: a single row must not set the scale."""
    rank = min(int(0.999 * len(distances)), len(distances) - 2)
    return np.partition(distances, rank, axis=0)[rank]
