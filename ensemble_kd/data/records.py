"""Prepared data on disk and in memory: what `prepare` writes and every later stage reads.

A split is `SPLIT-00000.parquet`, `SPLIT-00001.parquet`, ...: `transfer` (all train rows, then the extra
unlabelled ones), `validation`, `test`. Columns:

    row    int64: number in the split
    id     int64 or string: the source's id, or the row number in the source's split
    input  image, numeric: fixed-size bytes (uint8 pixels H, W, C; float32); text: list of int32 tokens
    label  int64: class number, -1 where there is none; of values float32, NaN where there is none, or
           fixed-size lists of these where there are several columns
"""

from __future__ import annotations

import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.artifacts import read_json
from ensemble_kd.data.tokenize import pad
from ensemble_kd.errors import ArtifactError
from ensemble_kd.targets import target_of

INFO_FILE = "info.json"
WEIGHTS_FILE = "weights.parquet"
"""One column `weight`, (N,) float32: how much each row of `transfer` counts; where weights are given."""
SPLITS = ("transfer", "validation", "test")


@dataclass(frozen=True)
class Arrays:
    """One split in memory."""

    inputs: np.ndarray
    """image (N, H, W, C) uint8; numeric (N, F) float32; text (N, L) int32, 0 = padding, ids 1..V."""
    labels: np.ndarray
    """(N,) int64 classes, -1 = unlabelled; or float32 values (N,) or (N, K), NaN = unlabelled."""
    ids: np.ndarray
    """(N,) int64 row numbers or fixed-width strings."""


@dataclass(frozen=True)
class DataInfo:
    """Everything a model needs to know of the data; JSON-able."""

    kind: str
    """image, text or numeric."""
    input_shape: list[int]
    """[H, W, C], [F], or [L] with L the longest kept text in tokens."""
    num_classes: int
    """Outputs of a model: of values one for each column."""
    class_names: list[str]
    mean: list[float]
    """Over the train rows: per channel of pixels / 255, per number; empty for text."""
    std: list[float]
    """Population standard deviation; 1 where a channel or number is constant."""
    vocabulary_size: int
    """Number of token ids and one for padding; 0 where there is no text."""
    preprocess: dict[str, Any]
    """What turns raw rows into inputs: columns, layout of images, tokenising; `special`: the numbers of a
    pretrained tokenizer's pad, cls, sep, mask, unk in the model's own vocabulary, not shifted by one."""
    counts: dict[str, int]
    """Rows: train, validation, test, transfer (train and unlabelled), labelled (train rows with a label)."""
    target: dict[str, Any] | None = None
    """`mean` and `std` (population) of the train labels where these are values, lists beside the columns'
    `names` where there are several columns; None for classes."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON; of classes without `target`."""
        return {name: value for name, value in asdict(self).items() if name != "target" or value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataInfo:
        """Raises ArtifactError where fields are missing."""
        missing = [f.name for f in fields(cls) if f.name not in values and f.default is MISSING]
        if missing:
            raise ArtifactError(f"description of the data lacks {', '.join(missing)}; prepare it again")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def load_info(folder: Path) -> DataInfo:
    """Raises ArtifactError where the folder holds no readable description."""
    values = read_json(folder / INFO_FILE)
    if not isinstance(values, dict):
        raise ArtifactError(f"{folder / INFO_FILE}: not a description of data; prepare it again")
    return DataInfo.from_dict(values)


# ------------------------------------------------------------------------------------------- writing


class SplitWriter:
    """Collects rows and writes a file each time `shard_rows` are there."""

    def __init__(self, folder: Path, split: str, shard_rows: int) -> None:
        self.folder, self.split, self.shard_rows = folder, split, shard_rows
        self.files: list[str] = []
        self.rows = 0
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def add(self, ids: pa.Array, inputs: pa.Array, labels: np.ndarray) -> None:
        if not len(ids):
            return
        table = pa.table({"id": ids, "input": inputs, "label": _label_column(labels)})
        self._waiting.append(table)
        self._num_waiting += len(ids)
        while self._num_waiting >= self.shard_rows:
            self._flush(self.shard_rows)

    def close(self) -> None:
        if self._num_waiting:
            self._flush(self._num_waiting)

    def _flush(self, rows: int) -> None:
        together = pa.concat_tables(self._waiting)
        shard, rest = together.slice(0, rows), together.slice(rows)
        self._waiting, self._num_waiting = ([rest], rest.num_rows) if rest.num_rows else ([], 0)
        numbers = pa.array(np.arange(self.rows, self.rows + rows))
        name = f"{self.split}-{len(self.files):05d}.parquet"
        write_parquet(self.folder / name, shard.add_column(0, "row", numbers))
        self.files.append(name)
        self.rows += rows


def _label_column(labels: np.ndarray) -> pa.Array:
    """Labels (N,), or (N, K) as fixed-size lists."""
    if labels.ndim == 1:
        return pa.array(labels)
    return pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), labels.shape[1])


def _labels(table: pa.Table) -> np.ndarray:
    """(N,) or (N, K) labels of a shard."""
    column = table["label"]
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(-1, column.type.list_size)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Atomic. Zstandard at its fastest: a fifth of the size for images, and hardly slower to read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=["row"],
            row_group_size=table.num_rows,
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- reading


def in_order(name: str) -> tuple[int, str]:
    """What shards' names are sorted by: their numbers, which have more than five digits from 100,000 on."""
    return len(name), name


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The files of a split in order. Raises ArtifactError where there are none."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}; prepared data has {', '.join(SPLITS)}")
    paths = sorted(folder.glob(f"{split}-*.parquet"), key=lambda path: in_order(path.name))
    if not paths:
        raise ArtifactError(f"{folder}: no {split}-*.parquet; prepare the data again")
    return paths


def _read(path: Path, info: DataInfo) -> tuple[np.ndarray, Arrays]:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: not a readable shard of prepared data ({error})") from error
    if table.column_names != ["row", "id", "input", "label"]:
        raise ArtifactError(f"{path}: columns row, id, input, label expected, found {table.column_names}")
    column = table["input"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    rows = len(column)
    if info.kind == "text":
        ends = column.offsets.to_numpy()
        ids = column.values.to_numpy()
        inputs = pad(ids, ends.astype(np.int64), info.input_shape[0])
    else:
        number = np.uint8 if info.kind == "image" else np.float32
        width = int(np.prod(info.input_shape)) * np.dtype(number).itemsize
        if column.type != pa.binary(width):
            raise ArtifactError(f"{path}: input holds {column.type}, {info.input_shape} takes {width} bytes")
        flat = np.frombuffer(column.buffers()[1], np.uint8)
        flat = flat[column.offset * width : (column.offset + rows) * width]
        inputs = flat.view(number).reshape(rows, *info.input_shape)
    keys = table["id"]
    names = np.array(keys.to_pylist(), dtype=str) if pa.types.is_string(keys.type) else keys.to_numpy()
    return table["row"].to_numpy(), Arrays(inputs, _labels(table), names)


def read_shard(path: Path, info: DataInfo) -> Arrays:
    """One file; the arrays may be read-only views. Raises ArtifactError, naming it, where it is broken."""
    return _read(path, info)[1]


def load_labels(folder: Path, split: str) -> np.ndarray:
    """(N,) or (N, K) labels of a split, -1 or NaN where unlabelled; nothing else is read."""
    paths = shard_paths(folder, split)
    return np.concatenate([_labels(pq.read_table(path, columns=["label"])) for path in paths])


def load_weights(folder: Path) -> np.ndarray | None:
    """(N,) float32 weights of the transfer set's rows; None where all count alike."""
    path = folder / WEIGHTS_FILE
    return pq.read_table(path)["weight"].to_numpy() if path.exists() else None


def load_split(folder: Path, split: str) -> Arrays:
    """A whole split, in one allocation. Raises ArtifactError where rows are missing or out of order."""
    info = load_info(folder)
    total = info.counts[split]
    number = {"image": np.uint8, "numeric": np.float32, "text": np.int32}[info.kind]
    inputs = np.empty((total, *info.input_shape), number)
    labels = target_of(info.target).missing(total, info.num_classes)
    ids: list[np.ndarray] = []
    begin = 0
    for path in shard_paths(folder, split):
        rows, part = _read(path, info)
        end = begin + len(rows)
        if end > total or not np.array_equal(rows, np.arange(begin, end)):
            raise ArtifactError(
                f"{path}: its rows are not {begin}..{end - 1} of {total}; prepare the data again"
            )
        inputs[begin:end], labels[begin:end] = part.inputs, part.labels
        ids.append(part.ids)
        begin = end
    if begin != total:
        raise ArtifactError(f"{folder}: {begin} of {total} {split} rows; prepare the data again")
    return Arrays(inputs, labels, np.concatenate(ids))
