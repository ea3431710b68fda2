"""Rows that occur more than once: inputs as hashes, what is told of them, and which to drop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemble_kd.data.labels import labelled
from ensemble_kd.data.splitmix import GOLDEN, scramble

REMEDY = "set data.duplicates=drop, and train goes without them"


def hashes(values: Any) -> np.ndarray:
    """(N,) int64 of images or numbers (N, ...), texts or pairs; equal where inputs are, in this process."""
    if not isinstance(values, np.ndarray):
        return np.fromiter(map(hash, values), np.int64, len(values))
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    if rows.dtype.kind == "f":
        rows = rows + np.zeros(1, rows.dtype)  # -0.0 is 0.0
    rows = rows.view(np.uint8)
    width = -(-rows.shape[1] // 8) * 8
    padded = rows if width == rows.shape[1] else np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
    words = padded.view(np.uint64)  # (N, W)
    total = np.zeros(len(rows), np.uint64)
    for j, key in enumerate(scramble(np.arange(words.shape[1], dtype=np.uint64) + np.uint64(GOLDEN))):
        total += scramble(words[:, j] ^ key)
    return total.view(np.int64)


@dataclass
class Copies:
    """Hashes of the inputs of each split of the source, in order."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, split: str, values: Any) -> None:
        self.parts.setdefault(split, []).append(hashes(values))

    def of(self, split: str) -> np.ndarray:
        return np.concatenate(self.parts.get(split, [np.zeros(0, np.int64)]))


def to_drop(inputs: Copies, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: rows of train that are in validation or test as well, and all but one of those that repeat.

    The first with a label stays, or else the first. `labels` (N,) are train's.
    """
    train = inputs.of("train")
    order = np.lexsort((np.arange(len(train)), ~labelled(labels), train))
    again = np.zeros(len(train), bool)
    again[order[1:]] = train[order[1:]] == train[order[:-1]]
    held = np.sort(np.concatenate([inputs.of("validation"), inputs.of("test")]))
    return again | _among(train, held)


def _among(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """(N,) bool: which keys occur. numpy's `isin` and `unique` take ten times as long over such."""
    if not len(ordered):
        return np.zeros(len(keys), bool)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def copy_remarks(
    inputs: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    place: Callable[[str, int], str],
    names: list[str],
) -> list[str]:
    """Of train, validation and test as they will be used: hashes of inputs, labels, where a row is.

    `names` are those of the classes, none where labels are values.
    """
    lines, ordered = [], {split: np.sort(keys) for split, keys in inputs.items()}
    for split, other in (("test", "train"), ("validation", "train"), ("test", "validation")):
        ours, theirs = inputs[split], inputs[other]
        both = _among(ours, ordered[other])
        if count := int(both.sum()):
            row = int(np.argmax(both))
            twin = int(np.argmax(theirs == ours[row]))
            lines.append(
                f"{split}: {count:,} of {len(ours):,} rows have an input that is in {other} too (first: "
                f"{place(split, row)}, as {place(other, twin)}), so that they say nothing of new ones"
                + (f"; {REMEDY}" if other == "train" else "; remove them from one of the two")
            )
    train = ordered["train"]
    if count := int((train[1:] == train[:-1]).sum()):
        lines.append(f"train: {count:,} of {len(train):,} rows have the input of another; {REMEDY}")
    return lines + _contradictions(inputs, labels, place, names)


def _contradictions(
    inputs: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    place: Callable[[str, int], str],
    names: list[str],
) -> list[str]:
    splits = list(inputs)
    known = {split: np.flatnonzero(labelled(labels[split])) for split in splits}
    keys = np.concatenate([inputs[split][known[split]] for split in splits])
    values = np.concatenate([labels[split][known[split]] for split in splits])
    if len(keys) < 2:
        return []
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1]))
    least, most = (f.reduceat(values[order], starts) for f in (np.minimum, np.maximum))
    torn = np.flatnonzero((least != most).reshape(len(starts), -1).any(1))
    if not len(torn):
        return []
    group = torn[np.argmin([order[starts[i]] for i in torn[:10_000]])]
    begin = starts[group]
    end = starts[group + 1] if group + 1 < len(starts) else len(keys)
    members = order[begin:end]
    differs = (values[members] != values[members[0]]).reshape(len(members), -1).any(1)
    other = members[np.argmax(differs)]
    split_of = np.repeat(np.arange(len(splits)), [len(known[split]) for split in splits])
    offsets = np.cumsum([0, *(len(known[split]) for split in splits)])

    many = "1 input occurs" if len(torn) == 1 else f"{len(torn):,} inputs occur"

    def told(at: int) -> str:
        split = splits[split_of[at]]
        label = repr(names[int(values[at])]) if names else ", ".join(f"{x:g}" for x in np.ravel(values[at]))
        return f"{place(split, int(known[split][at - offsets[split_of[at]]]))} is {label}"

    return [
        f"data.columns.label: {many} with more than one label (first: "
        f"{told(int(members[0]))}, {told(int(other))}), which no model can get right"
    ]
