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
from ensemble_kd.config import Config, CsvConfig, text_source
from ensemble_kd.data.decoding import decoded, has_no_empty_texts, reader_of
from ensemble_kd.data.first_pass import ignore, planned
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.oddities import Oddities
from ensemble_kd.data.preprocess import InputReader
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.reading import Reading
from ensemble_kd.data.records import INFO_FILE, SPLITS, WEIGHTS_FILE, DataInfo, SplitWriter, write_parquet
from ensemble_kd.data.scan import Scan
from ensemble_kd.data.splits import TEST, TRAIN, VALIDATION, Plan
from ensemble_kd.data.statistics import NumberMoments, PixelMoments
from ensemble_kd.data.tokenize import (
    TOKENIZER_FILE,
    HashedTokenizer,
    PretrainedTokenizer,
    Tokenizer,
    learn_subwords,
    write_pretrained,
)
from ensemble_kd.errors import InputError
from ensemble_kd.targets import target_of

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


def train_texts(config: Config) -> Iterator[tuple[np.ndarray, list[tuple[str, ...]]]]:
    """Yields for the rows that stay in train their numbers in the source's split and their texts (or pairs).

    Raises InputError with everything that is wrong, before the first rows or after the last.
    """
    problems = Problems()
    reading, _, made = planned(config, problems)
    for begin, rows, texts in decoded(
        reading, reader_of(config, reading, problems), "train", problems, has_no_empty_texts(config)
    ):
        kept = np.flatnonzero(made.part[begin : begin + rows] == TRAIN)
        yield begin + kept, [(texts[i],) if isinstance(texts[i], str) else texts[i] for i in kept]
    problems.raise_if_any()


def raw_rows(config: Config) -> Iterator[tuple[str, int, Any]]:
    """Yields all rows as `prepare` writes them: the split, the number of the first row in it, and raw inputs.

    Images (B, H, W, C) uint8, numbers (B, F) float32, lists of texts or of pairs; each split is in order.
    Raises InputError with everything that is wrong, before the first rows or after the last.
    """
    problems = Problems()
    reading, _, made = planned(config, problems)
    reader = reader_of(config, reading, problems)
    given = dict.fromkeys(SPLITS, 0)
    for split in READ_IN_ORDER:
        if split not in reading.source.splits:
            continue
        for begin, rows, values in decoded(reading, reader, split, problems, has_no_empty_texts(config)):
            if problems:
                continue
            for name, mask in _destinations(split, made.part[begin : begin + rows]):
                kept = values if mask is None else _picked(values, mask)
                yield name, given[name], kept
                given[name] += len(kept)
    problems.raise_if_any()


def _picked(values: Any, mask: np.ndarray) -> Any:
    return values[mask] if isinstance(values, np.ndarray) else [values[i] for i in np.flatnonzero(mask)]


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
        for begin, rows, texts in decoded(reading, reader, "train", Problems()):
            part = made.part[begin : begin + rows]
            yield [text for text, number in zip(texts, part, strict=True) if number == TRAIN]

    return learn_subwords(train_texts, config.data.text, folder)


def prepare(config: Config, folder: Path, warn: Callable[[str], None] = ignore) -> tuple[DataInfo, list[str]]:
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
        reading, found, made = planned(config, problems)
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
    data, num_train, kind = config.data, len(made.part), config.data.predicts
    reader = reader_of(config, reading, problems)
    inputs = Inputs(data.kind, _tokenizer(reading, made, config, folder, reader, problems))
    writers = {split: SplitWriter(folder, split, data.shard_rows) for split in SPLITS}
    seen = Oddities(data, reader.table)
    for split in READ_IN_ORDER:
        if split not in reading.source.splits:
            continue
        rows_read = 0
        for begin, rows, values in decoded(reading, reader, split, problems, has_no_empty_texts(config)):
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
    target = data.predicts.describe(known, data.columns.labels)
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
