"""The pieces of a source in bounded tables."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ensemble_kd.data.pieces import Piece, Source
from ensemble_kd.data.table import TableEncoder


class Reading:
    """Reads the pieces of a source in bounded tables, up to a limit of rows in all."""

    def __init__(self, source: Source, rows: int, limit: int | None = None) -> None:
        self.source, self.rows = source, rows
        self.table: TableEncoder | None = None
        """How columns become numbers, once train was read for it."""
        self.limits = dict.fromkeys(source.splits, limit)
        if limit is not None:  # no split goes without; train is the largest as a rule
            self.limits = dict.fromkeys(source.splits, limit // 5)
            self.limits["train"] = limit - (len(source.splits) - 1) * (limit // 5)

    def tables(self, split: str, columns: list[str]) -> Iterator[tuple[Piece, int, int, pa.Table]]:
        """Yields tables, each with its piece and its first row's number in the piece and in the split."""
        begin, limit = 0, self.limits[split]
        for piece in self.source.splits[split]:
            first = 0
            for table in piece.batches(columns, self.rows):
                if limit is not None and begin + table.num_rows > limit:
                    table = table.slice(0, limit - begin)
                if not table.num_rows:
                    break
                yield piece, first, begin, table
                first, begin = first + table.num_rows, begin + table.num_rows

    def cut(self, split: str, rows: int) -> bool:
        return self.limits[split] is not None and rows == self.limits[split]
