"""Prepare a data set: read, check, split, decode, and write shards that the other stages read.

Two passes over the source, a bounded number of rows at a time: labels and ids (`scan`), then inputs. A
learned vocabulary takes two more, over the train texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.artifacts import write_json
from ensemble_kd.config import Config, CsvConfig, DataConfig, text_source
from ensemble_kd.data.copies import Copies, to_drop
from ensemble_kd.data.decode import ColumnError, empty_texts
from ensemble_kd.data.folders import PicturePiece
from ensemble_kd.data.images import Pictures
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.oddities import Oddities
from ensemble_kd.data.preprocess import InputReader, Preprocessor
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.records import (
    INFO_FILE,
    SPLITS,
    WEIGHTS_FILE,
    Arrays,
    DataInfo,
    SplitWriter,
    load_info,
    load_labels,
    load_split,
    read_shard,
    shard_paths,
    write_parquet,
)
from ensemble_kd.data.scan import Reading, Scan, check_columns, plan, scan
from ensemble_kd.data.sources import open_source, source_fingerprint
from ensemble_kd.data.splits import TEST, TRAIN, VALIDATION, Plan
from ensemble_kd.data.statistics import NumberMoments, PixelMoments
from ensemble_kd.data.survey import survey
from ensemble_kd.data.table import TableEncoder, learn_table
from ensemble_kd.data.tokenize import (
    TOKENIZER_FILE,
    HashedTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    learn_subwords,
    write_pretrained,
)
from ensemble_kd.errors import InputError, ProblemsError
from ensemble_kd.pretrained import read_tokenizer
from ensemble_kd.targets import TARGETS, target_of

__all__ = [
    "Arrays",
    "DataInfo",
    "Preprocessor",
    "inspect_source",
    "load_info",
    "load_labels",
    "load_split",
    "prepare",
    "raw_rows",
    "read_shard",
    "shard_paths",
    "source_fingerprint",
    "train_texts",
]

BATCH_ROWS = 8192
"""Rows decoded at once, or `data.shard_rows` where that is less."""
INSPECTED_ROWS = 100_000
READ_IN_ORDER = ("train", "validation", "test", "unlabelled")
"""Splits of the source."""
PARTS = ((TRAIN, "transfer"), (VALIDATION, "validation"), (TEST, "test"))
"""What becomes of the rows of train."""


class Inputs:
    """Decoded inputs on their way to the shards: tokens or bytes, and the moments of the train rows."""

    def __init__(self, kind: str, tokenizer: Tokenizer | None) -> None:
        self.kind, self.tokenizer = kind, tokenizer
        self.longest = 1
        self.moments: PixelMoments | NumberMoments | None = None

    def arrow(self, values: Any) -> pa.Array:
        if self.tokenizer is not None:
            ids, ends = self.tokenizer.encode(values)
            self.longest = max(self.longest, int(np.diff(ends).max(initial=1)))
            return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids, pa.int32()))
        data = np.ascontiguousarray(values)
        width = data[0].nbytes
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(data), [None, pa.py_buffer(data.reshape(-1).view(np.uint8))]
        )

    def measure(self, values: np.ndarray) -> None:
        if self.kind == "image":
            self.moments = self.moments or PixelMoments(values.shape[-1])
        elif self.kind == "numeric":
            self.moments = self.moments or NumberMoments(values.shape[-1])
        if self.moments is not None:
            self.moments.add(values)


def _decoded(
    reading: Reading, reader: InputReader, split: str, problems: Problems, filled: bool = False
) -> Iterator[tuple[int, int, Any]]:
    """First row in the split, number of rows, inputs; rows that are bad go into `problems`.

    With `filled` a text of train must not be empty.
    """
    hopeless: set[str] = set()
    for piece, first, begin, table in reading.tables(split, reader.columns):
        if piece.name in hopeless:
            continue
        try:
            values, bad = reader(table)
        except ColumnError as error:
            hopeless.add(piece.name)
            columns = ", ".join(map(repr, reader.columns[:3])) + (" ..." if len(reader.columns) > 3 else "")
            problems.add(f"data.columns.input: {columns} of {piece.name} {error}")
            continue
        if isinstance(piece, PicturePiece):
            bad = {i: f"{piece.paths[first + i]}: {message}" for i, message in bad.items()}
        if filled and split == "train":
            bad = dict(sorted((empty_texts(values) | bad).items()))
        problems.add_rows("bad inputs", piece.name, first, bad)
        if bad and reader.kind == "numeric" and reader.table is None and len(reader.columns) > 1:
            problems.add(
                "data.table: where columns hold words or lack numbers, --set data.table={} makes columns of "
                "0 and 1 of words, and the mean of train of what is missing"
            )
        yield begin, table.num_rows, values


def _reader(config: Config, reading: Reading, problems: Problems) -> InputReader:
    data, layout = config.data, config.data.image
    if data.table is not None:
        return InputReader(data.kind, data.columns, table=_table(data, reading))
    if data.kind != "image":
        return InputReader(data.kind, data.columns)
    if data.source == "digits":
        return InputReader(data.kind, data.columns, [8, 8, 1])
    shape = None if layout.shape is None else list(layout.shape)
    found = survey(reading.source, data, problems) if shape is None or layout.for_encoded else None
    if shape is None and found is not None:
        shape = found.shape
    grey = found is not None and found.grey and shape == found.shape
    return InputReader(
        data.kind, data.columns, shape, Pictures(layout.resize is not None, training=True, grey=grey)
    )


def _table(data: DataConfig, reading: Reading) -> TableEncoder:
    """How columns become numbers, from all rows of the source's train. Raises InputError if they cannot."""
    assert data.table is not None
    if reading.table is not None:
        return reading.table
    names = [data.columns.input] if isinstance(data.columns.input, str) else list(data.columns.input)
    tables = (table for _, _, _, table in reading.tables("train", names))
    try:
        reading.table = learn_table(tables, names, data.table.most_values)
    except ColumnError as error:
        raise InputError([f"data.columns.input: {error}"]) from error
    return reading.table


def _filled(config: Config) -> bool:
    """Whether an empty text of train is an error: nothing but special tokens would stand for it."""
    return config.data.kind == "text" and config.data.text.tokenizer == "pretrained"


def _check_tokenizer(config: Config, problems: Problems) -> None:
    """What is wrong with a pretrained tokenizer, before any row is read."""
    source, text = text_source(config), config.data.text
    if config.data.kind != "text" or source is None:
        return
    try:
        tokenizer = PretrainedTokenizer(read_tokenizer(source), text.max_length)
    except ProblemsError as error:
        for line in error.problems:
            problems.add(line)
        return
    if not isinstance(config.data.columns.input, str) and not tokenizer.takes_pairs:
        added = tokenizer.tokenizer.num_special_tokens_to_add(True)
        problems.add(
            f"data.text.max_length: {text.max_length} has no room for the {added} special tokens of a pair; "
            "raise it"
            if added > text.max_length
            else f"data.columns.input: two columns, but the tokenizer of {source} puts nothing between two "
            "texts; use one that does, or one column"
        )


def _check_inputs(reading: Reading, config: Config, problems: Problems) -> Oddities:
    """The second pass without writing: only what is wrong, or odd."""
    reader = _reader(config, reading, problems)
    seen = Oddities(config.data, reader.table)
    for split in reading.source.splits:
        filled, rows = _filled(config), 0
        for begin, count, values in _decoded(reading, reader, split, problems, filled):
            rows += count
            seen.add(split, begin, values)
        if not rows and split == "unlabelled" and not problems:
            problems.add("data.unlabelled: no rows")
    return seen


def _open(config: Config, problems: Problems, limit: int | None = None) -> Reading:
    """The source with its columns checked. Raises InputError where it cannot be read at all."""
    source = open_source(config.data, problems)
    problems.raise_if_any()
    check_columns(source, config, problems)
    _check_tokenizer(config, problems)
    problems.raise_if_any()
    return Reading(source, min(config.data.shard_rows, BATCH_ROWS), limit)


def _ignore(line: str) -> None:
    pass


def inspect_source(config: Config, warn: Callable[[str], None] = _ignore) -> list[str]:
    """What is wrong with the source, one line each; reads at most 100,000 rows and writes nothing.

    What only all rows can tell (a class that is missing, too few rows) is judged where all were read.
    `warn` takes what is odd, but no reason to stop.
    """
    problems = Problems()
    try:
        reading = _open(config, problems, INSPECTED_ROWS)
        found = scan(reading, config, problems)
        made, dropped = None, None
        if found.whole:
            dropped = _dropped(reading, found, config)
            made = plan(found, config, problems, dropped)
        _check_inputs(reading, config, problems).tell(found, made, problems)
    except InputError as error:
        lines = problems.all()
        return lines + [line for line in error.problems if line not in lines]
    finally:
        for line in problems.warnings:
            warn(line)
    return problems.all()


def _dropped(reading: Reading, found: Scan, config: Config) -> np.ndarray | None:
    """(N,) Rows of train that are left out as copies; None where all stay. One more pass over the inputs."""
    if config.data.duplicates == "keep" or "train" not in found.labels:
        return None
    problems, inputs = Problems(), Copies()
    reader = _reader(config, reading, problems)
    for split in ("train", "validation", "test"):
        for _, _, values in _decoded(reading, reader, split, problems) if split in found.labels else ():
            inputs.add(split, values)
    return None if problems else to_drop(inputs, found.labels["train"])


def train_texts(config: Config) -> Iterator[tuple[np.ndarray, list[tuple[str, ...]]]]:
    """Of the rows that stay in train: numbers in the source's split, and texts, each one or a pair.

    Raises InputError with everything that is wrong, before the first rows or after the last.
    """
    problems = Problems()
    reading, _, made = _planned(config, problems)
    for begin, rows, texts in _decoded(
        reading, _reader(config, reading, problems), "train", problems, _filled(config)
    ):
        kept = np.flatnonzero(made.part[begin : begin + rows] == TRAIN)
        yield begin + kept, [(texts[i],) if isinstance(texts[i], str) else texts[i] for i in kept]
    problems.raise_if_any()


def raw_rows(config: Config) -> Iterator[tuple[str, int, Any]]:
    """All rows as `prepare` writes them: the split, the number of the first row in it, and raw inputs.

    Images (B, H, W, C) uint8, numbers (B, F) float32, lists of texts or of pairs; each split is in order.
    Raises InputError with everything that is wrong, before the first rows or after the last.
    """
    problems = Problems()
    reading, _, made = _planned(config, problems)
    reader = _reader(config, reading, problems)
    given = dict.fromkeys(SPLITS, 0)
    for split in READ_IN_ORDER:
        if split not in reading.source.splits:
            continue
        for begin, rows, values in _decoded(reading, reader, split, problems, _filled(config)):
            if problems:
                continue
            for name, mask in _destinations(split, made.part[begin : begin + rows]):
                kept = values if mask is None else _picked(values, mask)
                yield name, given[name], kept
                given[name] += len(kept)
    problems.raise_if_any()


def _picked(values: Any, mask: np.ndarray) -> Any:
    return values[mask] if isinstance(values, np.ndarray) else [values[i] for i in np.flatnonzero(mask)]


def _planned(config: Config, problems: Problems) -> tuple[Reading, Scan, Plan]:
    """The first pass over the source. Raises InputError with everything that is wrong."""
    reading = _open(config, problems)
    found = scan(reading, config, problems)
    made = plan(found, config, problems, _dropped(reading, found, config))
    if problems or made is None:
        _check_inputs(reading, config, problems).tell(found, made, problems)
        problems.raise_if_any()
    assert made is not None
    return reading, found, made


def _destinations(split: str, part: np.ndarray) -> list[tuple[str, np.ndarray | None]]:
    """Where rows of the source's `split` go, and which of them, as a mask; None for all. `part` is "
    "train's."""
    if split != "train":
        return [("transfer" if split == "unlabelled" else split, None)]
    masks = ((name, part == number) for number, name in PARTS)
    return [(name, None if mask.all() else mask) for name, mask in masks if mask.any()]


def _tokenizer(
    reading: Reading, made: Plan, config: Config, folder: Path, reader: InputReader, problems: Problems
) -> Tokenizer | None:
    if config.data.kind != "text":
        return None
    if config.data.text.tokenizer == "hashed":
        return HashedTokenizer(config.data.text)
    if config.data.text.tokenizer == "pretrained":
        source = text_source(config)
        assert source is not None  # the configuration is checked
        return write_pretrained(config.data.text, source, folder)

    def train_texts() -> Iterator[list[str]]:
        for begin, rows, texts in _decoded(reading, reader, "train", Problems()):
            part = made.part[begin : begin + rows]
            yield [text for text, number in zip(texts, part, strict=True) if number == TRAIN]

    return learn_subwords(train_texts, config.data.text, folder)


def prepare(
    config: Config, folder: Path, warn: Callable[[str], None] = _ignore
) -> tuple[DataInfo, list[str]]:
    """Write the prepared data into `folder`; returns its description and the names of the files.

    `warn` takes what is odd, but no reason to stop.
    Raises InputError with everything that is wrong with the source; nothing is left behind then.
    """
    problems = Problems()
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:  # of an attempt that was killed, perhaps with other bounds of shards
        for path in folder.glob(f"{split}-*.parquet"):
            path.unlink()
    try:
        reading, found, made = _planned(config, problems)
        return _write(reading, found, made, config, folder, problems)
    except InputError as error:
        lines = problems.all()
        for split in SPLITS:
            for path in folder.glob(f"{split}-*.parquet"):
                path.unlink()
        (folder / TOKENIZER_FILE).unlink(missing_ok=True)
        raise InputError(lines + [line for line in error.problems if line not in lines]) from error
    finally:
        for line in problems.warnings:
            warn(line)


def _write(
    reading: Reading, found: Scan, made: Plan, config: Config, folder: Path, problems: Problems
) -> tuple[DataInfo, list[str]]:
    data, num_train, kind = config.data, len(made.part), TARGETS[config.data.target]
    reader = _reader(config, reading, problems)
    inputs = Inputs(data.kind, _tokenizer(reading, made, config, folder, reader, problems))
    writers = {split: SplitWriter(folder, split, data.shard_rows) for split in SPLITS}
    seen = Oddities(data, reader.table)
    for split in READ_IN_ORDER:
        if split not in reading.source.splits:
            continue
        rows_read = 0
        for begin, rows, values in _decoded(reading, reader, split, problems, _filled(config)):
            rows_read += rows
            seen.add(split, begin, values)
            if problems:
                continue  # keep looking for what else is wrong; nothing will be kept
            span = slice(begin, begin + rows)
            ids = _ids(found, split, begin, rows, num_train)
            column = inputs.arrow(values)
            part = made.part[span]
            if split == "unlabelled":
                labels = kind.missing(rows, len(data.columns.labels))
            else:
                labels = made.labels[span] if split == "train" else found.labels[split][span]
            if split == "train" and data.kind != "text":
                inputs.measure(values if (part == TRAIN).all() else values[part == TRAIN])
            for name, mask in _destinations(split, part):
                if mask is None:
                    writers[name].add(ids, column, labels)
                else:
                    writers[name].add(ids.filter(pa.array(mask)), column.filter(pa.array(mask)), labels[mask])
        if not rows_read and not problems:
            problems.add(f"{split}: no rows")
    seen.tell(found, made, problems)
    problems.raise_if_any()
    for writer in writers.values():
        writer.close()
    info = _describe(config, found, made, inputs, reader, {s: w.rows for s, w in writers.items()})
    if data.columns.id is None and reading.source.id is not None:
        info.preprocess["columns"]["id"] = reading.source.id
    write_json(folder / INFO_FILE, info.to_dict())
    files = [name for writer in writers.values() for name in writer.files] + [INFO_FILE]
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    if found.weights is not None:
        weights = _weights(found.weights[made.part == TRAIN], writers["transfer"].rows)
        write_parquet(folder / WEIGHTS_FILE, pa.table({"weight": weights}))
        files.append(WEIGHTS_FILE)
    if data.kind == "text" and data.text.tokenizer != "hashed":
        files.append(TOKENIZER_FILE)
    return info, files


def _weights(train: np.ndarray, rows: int) -> np.ndarray:
    """(rows,) float32 weights of the transfer set: train's with a mean of 1, and 1 for what follows them."""
    found = np.ones(rows, np.float32)
    found[: len(train)] = train / (train.mean() or 1.0)
    return found


def _ids(found: Scan, split: str, begin: int, rows: int, num_train: int) -> pa.Array:
    """The named ids, or row numbers in the source's split; those of unlabelled rows follow train's."""
    if split in found.ids:
        return found.ids[split].slice(begin, rows)
    first = begin + (num_train if split == "unlabelled" else 0)
    return pa.array(np.arange(first, first + rows))


def _describe(
    config: Config, found: Scan, made: Plan, inputs: Inputs, reader: InputReader, counts: dict[str, int]
) -> DataInfo:
    data, train = config.data, made.part == TRAIN
    known = made.labels[train][labelled(made.labels[train])]
    target = TARGETS[data.target].describe(known, data.columns.labels)
    mean, std = inputs.moments.result() if inputs.moments is not None else ([], [])
    if reader.table is not None and mean:  # a rare word's 0 and 1, divided by its deviation, would be huge
        scaled = set(reader.table.numbers.values())
        mean = [value if j in scaled else 0.0 for j, value in enumerate(mean)]
        std = [value if j in scaled else 1.0 for j, value in enumerate(std)]
    shape = [inputs.longest] if data.kind == "text" else list(reader.shape or [])
    preprocess: dict[str, Any] = {"columns": data.columns.model_dump(mode="json")}
    if data.csv != CsvConfig():
        preprocess["csv"] = data.csv.model_dump(mode="json")
    if reader.table is not None:
        preprocess["table"] = reader.table.to_list()
    if data.kind == "image":
        preprocess["image"] = {"shape": shape}
        if data.image.resize is not None:
            preprocess["image"]["resize"] = list(data.image.resize)
    if data.kind == "text":
        # Without the source: tokenizer.json stands for it, and a deployed model should name no local folder.
        preprocess["text"] = data.text.model_dump(mode="json") | {"source": None}
    if isinstance(inputs.tokenizer, PretrainedTokenizer):
        preprocess["special"] = inputs.tokenizer.special
    return DataInfo(
        kind=data.kind,
        input_shape=shape,
        num_classes=target_of(target).outputs(found.names),
        class_names=found.names,
        mean=mean,
        std=std,
        vocabulary_size=inputs.tokenizer.size if inputs.tokenizer is not None else 0,
        preprocess=preprocess,
        counts={
            "train": int(train.sum()),
            "validation": counts["validation"],
            "test": counts["test"],
            "transfer": counts["transfer"],
            "labelled": len(known),
        },
        target=target,
    )
