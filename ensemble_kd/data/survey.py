"""What a set of encoded pictures is like: the size of the first, and colour or grey by a sample of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.config import DataConfig
from ensemble_kd.data import images
from ensemble_kd.data.decode import single
from ensemble_kd.data.decode_images import holds_pictures
from ensemble_kd.data.files import FilePiece
from ensemble_kd.data.folders import PicturePiece
from ensemble_kd.data.hub import HubPiece
from ensemble_kd.data.images import CHANNELS, PictureError, Pictures
from ensemble_kd.data.pieces import Piece, Source
from ensemble_kd.data.problems import Problems

SAMPLED = 1000
"""Pictures of each split whose headers are read."""
MOST_GROUPS = 64
"""Row groups of a Parquet file that are read for that."""
BATCH_ROWS = 1024


@dataclass(frozen=True)
class Survey:
    """What a sample of the pictures says of the set."""

    shape: list[int]
    """[H, W, C] that all are to have."""
    grey: bool
    """Whether grey was concluded from the sample, rather than asked for."""


class _Counts:
    """Of the sampled pictures."""

    def __init__(self) -> None:
        self.total = self.grey = self.transparent = 0
        self.size: list[int] | None = None
        """Height and width of the first."""

    def add(self, raw: bytes) -> None:
        found = images.header(raw)
        if found is None or found.deep:
            return
        if self.size is None:
            measured = images.size(raw)
            if measured is None:
                return
            self.size = list(measured[:2])
        self.total += 1
        self.grey += found.grey
        self.transparent += found.transparent


def survey(source: Source, data: DataConfig, problems: Problems) -> Survey | None:
    """None where the column holds no encoded pictures, or none that can be read."""
    column = data.columns.input if isinstance(data.columns.input, str) else data.columns.input[0]
    pictures, counts = Pictures(training=True), _Counts()
    for pieces in source.splits.values():
        each = -(-SAMPLED // max(1, len(pieces)))
        for piece in pieces:
            for array in sample(piece, column, each):
                if not holds_pictures(array.type):
                    for name in data.image.for_encoded:
                        problems.add(
                            f"data.image.{name}: {column!r} of {piece.name} holds {array.type}, which is raw "
                            "pixels; it is for encoded images, leave it out"
                        )
                    return None
                for row in array.to_pylist():
                    try:
                        counts.add(pictures.bytes_of(row) or b"")
                    except PictureError:
                        continue  # told with its row, when all are read
    if counts.size is None:
        return None
    size = counts.size if data.image.resize is None else list(data.image.resize)
    if data.image.mode != "auto":
        return Survey([*size, CHANNELS[data.image.mode]], False)
    grey = counts.grey == counts.total
    if counts.grey and not grey:
        problems.warn(
            f"data.image.mode: {counts.grey:,} of {counts.total:,} sampled images are grey; read as RGB"
        )
    if counts.transparent:
        problems.warn(
            f"data.image.mode: {counts.transparent:,} of {counts.total:,} sampled images have transparency, "
            "which is dropped; set data.image.mode=RGBA to keep it"
        )
    return Survey([*size, 1 if grey else 3], grey)


# ---------------------------------------------------------------------------------------------- sampling


def sample(piece: Piece, column: str, rows: int) -> Iterator[pa.Array]:
    """About `rows` values of the column, spread evenly over the piece; the first is always among them."""
    if isinstance(piece, FilePiece) and piece.format == "parquet":
        with piece.readable():
            yield from _of_parquet(piece, column, rows)
    elif isinstance(piece, HubPiece):
        chosen = piece.dataset.select(_evenly(len(piece.dataset), rows))
        yield from (
            single(table[column]) for table in HubPiece(piece.name, chosen).batches([column], BATCH_ROWS)
        )
    elif isinstance(piece, PicturePiece):
        chosen = piece.part(_evenly(len(piece.paths), rows))
        yield from (single(table[column]) for table in chosen.batches([column], BATCH_ROWS))
    else:
        yield from _thinned((single(table[column]) for table in piece.batches([column], BATCH_ROWS)), rows)


def _evenly(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` of the numbers 0..count-1, ends included."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, wanted)).round().astype(np.int64))


def _of_parquet(piece: FilePiece, column: str, rows: int) -> Iterator[pa.Array]:
    with piece.fs.open_input_file(piece.path) as opened, pq.ParquetFile(opened) as file:
        groups = _evenly(file.num_row_groups, MOST_GROUPS)
        for group in groups:
            wanted = _evenly(file.metadata.row_group(group).num_rows, -(-rows // len(groups)))
            batches = file.iter_batches(BATCH_ROWS, [int(group)], [column], use_threads=False)
            yield from _taken((single(pa.table(batch)[column]) for batch in batches), wanted)


def _picked(array: pa.Array, places: np.ndarray) -> pa.Array:
    """`array.take`, which structs of views have not."""
    parts = [array.slice(int(place), 1) for place in places]
    return pa.concat_arrays(parts) if parts else array.slice(0, 0)


def _taken(arrays: Iterable[pa.Array], wanted: np.ndarray) -> Iterator[pa.Array]:
    begin = 0
    for array in arrays:
        here = wanted[(wanted >= begin) & (wanted < begin + len(array))] - begin
        yield _picked(array, here)
        begin += len(array)


def _thinned(arrays: Iterable[Any], rows: int) -> Iterator[pa.Array]:
    """Of a piece whose length is unknown: all of the first quarter, then every second, every fourth, ..."""
    step, taken, begin = 1, 0, 0
    for array in arrays:
        here = np.arange(-begin % step, len(array), step)
        yield _picked(array, here)
        begin, taken = begin + len(array), taken + len(here)
        if taken >= rows // 4:
            step, taken = step * 2, 0
