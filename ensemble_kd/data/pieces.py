"""What every source gives: per split a list of pieces (files), each giving Arrow tables of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
}


class Piece(Protocol):
    """One file, or one split of a data set that is not in files."""

    name: str
    """What messages call it."""

    def columns(self) -> list[str]: ...

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        """Yields tables of the columns, each of at most `rows` rows."""
        ...


@dataclass
class Source:
    """The pieces of each split (train, validation, test, unlabelled) and the names that the source knows."""

    splits: dict[str, list[Piece]] = field(default_factory=dict)
    class_names: list[str] | None = None
    id: str | None = None
    """The column of ids that all pieces have by themselves."""


def slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for begin in range(0, table.num_rows, rows):
        yield table.slice(begin, rows)


@dataclass
class TablePiece:
    """A table in memory."""

    name: str
    table: pa.Table

    def columns(self) -> list[str]:
        return self.table.column_names

    def batches(self, columns: list[str], rows: int) -> Iterator[pa.Table]:
        return slices(self.table.select(columns), rows)
