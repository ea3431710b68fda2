"""The store of teacher outputs: float16 member logits per row and view, in Parquet, computed once.

One file per shard of the transfer set, `part-00000.parquet`, with the same rows in the same order. Columns:

    row      int64: row number in the transfer set
    logits   fixed-size bytes: (V, M, C) float16            views x members x classes
             of values (V, M, 1) float32, in the label's own units
or, with top_k,
    values   fixed-size bytes: (V, M, k) float16            the k largest logits
    indices  fixed-size bytes: (V, M, k) int16 or int32     their classes
    rest     fixed-size bytes: (V, M) float32               log of the sum of exp of the other logits
and what is kept of text transformers, padded with zeros to the data's longest text, L:
    hidden     fixed-size bytes: (V, M, K, L or 1, D)       hidden states of K layers
    attention  fixed-size bytes: (V, M, K, A, L, L)         scores of K blocks, before mask and softmax

Fixed-size bytes rather than lists: reading is a view of the file's buffer, and no list levels are stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.artifacts import checksum
from ensemble_kd.errors import ArtifactError


@dataclass(frozen=True)
class Kept:
    """What is in the store beside logits: states and attention scores of teachers that are built alike."""

    hidden: tuple[int, ...]
    """Numbers of the hidden states: 0 the embeddings' output, then the blocks."""
    attention: tuple[int, ...]
    """Numbers of the blocks whose attention scores are there, counted from 1."""
    depth: int
    """Blocks of a teacher."""
    width: int
    heads: int
    length: int
    """Tokens of the longest text."""
    first_only: bool = False
    """Whether hidden states are those of the first position alone."""
    dtype: str = "float16"
    features: int = 0
    """Width of the teachers' features, where these are there; 0 where they are not."""

    def __post_init__(self) -> None:
        for name in ("hidden", "attention"):  # lists, where read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def columns(self, views: int, members: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """As `StoreLayout.columns`."""
        found: dict[str, tuple[tuple[int, ...], Any]] = {}
        kind = np.dtype(self.dtype).type
        if self.hidden:
            positions = 1 if self.first_only else self.length
            found["hidden"] = ((views, members, len(self.hidden), positions, self.width), kind)
        if self.features:
            found["features"] = ((views, members, self.features), kind)
        if self.attention:
            scores = len(self.attention), self.heads, self.length, self.length
            found["attention"] = ((views, members, *scores), kind)
        return found


@dataclass(frozen=True)
class StoreLayout:
    """Shape of one row of the store."""

    views: int
    members: int
    classes: int
    top_k: int | None = None
    kept: Kept | None = None
    values: bool = False
    """Whether the outputs are values rather than logits."""

    def __post_init__(self) -> None:
        if isinstance(self.kept, dict):  # read from JSON
            object.__setattr__(self, "kept", Kept(**self.kept))

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `StoreLayout(**fields)` reads it."""
        return {
            name: value for name, value in asdict(self).items() if name not in ("kept", "values") or value
        }

    @property
    def logits_alone(self) -> StoreLayout:
        """The same rows without what is kept beside their logits."""
        return replace(self, kept=None)

    @property
    def index_type(self) -> type:
        return np.int16 if self.classes <= 2**15 else np.int32

    def columns(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and number type of each column but `row`."""
        views, members = self.views, self.members
        beside = self.kept.columns(views, members) if self.kept is not None else {}
        if self.top_k is None:
            kind = np.float32 if self.values else np.float16
            return {"logits": ((views, members, self.classes), kind), **beside}
        return {
            "values": ((views, members, self.top_k), np.float16),
            "indices": ((views, members, self.top_k), self.index_type),
            "rest": ((views, members), np.float32),
            **beside,
        }

    @property
    def bytes_per_row(self) -> int:
        return sum(int(np.prod(s)) * np.dtype(t).itemsize for s, t in self.columns().values())


def shard_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


class ShardWriter:
    """Writes one shard batch by batch, under a temporary name until it is complete."""

    def __init__(self, path: Path, layout: StoreLayout) -> None:
        self.path, self.layout = path, layout
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        fields = [pa.field("row", pa.int64(), nullable=False)]
        widest = 1
        for name, (shape, kind) in layout.columns().items():
            width = int(np.prod(shape)) * np.dtype(kind).itemsize
            widest = max(widest, width)
            fields.append(pa.field(name, pa.binary(width), nullable=False))
        self.schema = pa.schema(fields)
        self.writer = pq.ParquetWriter(
            self.temporary,
            self.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["row"],
            column_encoding={"row": "DELTA_BINARY_PACKED"},
            # Arrow looks at the size of a page once per batch of rows; a page must stay below 2 GB.
            write_batch_size=min(1024, max(1, 2**20 // widest)),
        )
        self.rows = 0

    def write(self, rows: np.ndarray, **columns: np.ndarray) -> None:
        """`rows` (B,); each column (B, ...) in the layout's shape."""
        arrays = [pa.array(rows, pa.int64())]
        for name, (_, kind) in self.layout.columns().items():
            values = np.ascontiguousarray(columns[name], dtype=kind)
            arrays.append(
                pa.FixedSizeBinaryArray.from_buffers(
                    self.schema.field(name).type, len(rows), [None, pa.py_buffer(values)]
                )
            )
        self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self.rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Make the shard appear; returns its manifest entry."""
        self.writer.close()
        entry = {
            "bytes": self.temporary.stat().st_size,
            "sha256": checksum(self.temporary),
            "rows": self.rows,
        }
        os.replace(self.temporary, self.path)
        return entry

    def abort(self) -> None:
        try:
            self.writer.close()  # writes a footer, for which a full disk has no room
        finally:
            self.temporary.unlink(missing_ok=True)


def read_shard(path: Path, layout: StoreLayout) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Row numbers (B,) and the columns, each (B, ...) in the layout's shape; other columns are not read.

    Raises ArtifactError, naming the file, where it is truncated or of another shape.
    """
    wanted = layout.columns()
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            table = file.read([name for name in schema.names if name == "row" or name in wanted])
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: not a readable shard of soft targets ({error})") from error
    if "row" not in table.column_names:
        raise ArtifactError(f"{path}: column 'row' expected; the schema is {schema}")
    return table["row"].to_numpy(), {
        name: _column(path, table, name, shape, kind) for name, (shape, kind) in wanted.items()
    }


def _column(path: Path, table: pa.Table, name: str, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    width = int(np.prod(shape)) * np.dtype(kind).itemsize
    if name not in table.column_names or table[name].type != pa.binary(width):
        raise ArtifactError(
            f"{path}: column {name!r} of {width} bytes expected; the schema is {table.schema}"
        )
    chunks = []
    for chunk in table[name].chunks:
        raw = np.frombuffer(chunk.buffers()[1], np.uint8)
        chunks.append(raw[chunk.offset * width : (chunk.offset + len(chunk)) * width])
    flat = chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, np.uint8)])
    return flat.view(kind).reshape(table.num_rows, *shape)


def load_columns(
    folder: Path, names: Iterable[str], layout: StoreLayout, num_rows: int
) -> dict[str, np.ndarray]:
    """The whole store as arrays (N, ...), one allocation per column.

    Raises ArtifactError where rows are missing, repeated or out of order.
    """
    arrays = {name: np.empty((num_rows, *shape), kind) for name, (shape, kind) in layout.columns().items()}
    begin = 0
    for shard in names:
        rows, columns = read_shard(folder / shard, layout)
        end = begin + len(rows)
        if end > num_rows or not np.array_equal(rows, np.arange(begin, end)):
            raise ArtifactError(
                f"{folder / shard}: holds other rows than {begin} to {end - 1}, of {num_rows} in all"
            )
        for name, values in columns.items():
            arrays[name][begin:end] = values
        begin = end
    if begin != num_rows:
        raise ArtifactError(f"{folder}: {begin} rows of soft targets for {num_rows} rows of the transfer set")
    return arrays
