"""Prepare a data set: read, check, split, decode, and write shards that the other stages read.

Two passes over the source, a bounded number of rows at a time: labels and ids, from which splits and
classes follow; then inputs. A learned vocabulary takes a third, over the train texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.artifacts import write_json
from ensemble_kd.config import Config
from ensemble_kd.data.decode import ColumnError, single
from ensemble_kd.data.labels import (
    UNLABELLED,
    Span,
    encode,
    integers_if_all,
    join,
    names_from,
    plain_values,
    repeated_ids,
    spread,
)
from ensemble_kd.data.preprocess import InputReader, Preprocessor, missing_column
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.records import (
    INFO_FILE,
    SPLITS,
    Arrays,
    DataInfo,
    SplitWriter,
    load_info,
    load_split,
    read_shard,
    shard_paths,
)
from ensemble_kd.data.sources import (
    FilePiece,
    Piece,
    Source,
    open_source,
    read_class_names,
    source_fingerprint,
)
from ensemble_kd.data.splits import TEST, TRAIN, VALIDATION, Plan, plan_splits
from ensemble_kd.data.statistics import NumberMoments, PixelMoments
from ensemble_kd.data.tokenize import TOKENIZER_FILE, HashedTokenizer, Tokenizer, learn_subwords
from ensemble_kd.errors import InputError

__all__ = [
    "Arrays",
    "DataInfo",
    "Preprocessor",
    "inspect_source",
    "load_info",
    "load_split",
    "prepare",
    "read_shard",
    "shard_paths",
    "source_fingerprint",
]

BATCH_ROWS = 8192
"""Rows decoded at once, or `data.shard_rows` where that is less."""
INSPECTED_ROWS = 100_000


@dataclass
class Scan:
    """What the first pass finds."""

    names: list[str] = field(default_factory=list)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Class numbers of the labelled splits, -1 where there is none."""
    ids: dict[str, pa.Array] = field(default_factory=dict)
    """Ids where a column is named."""
    whole: bool = True
    """Whether every row was read."""


class Reading:
    """Reads the pieces of a source in bounded tables, up to a limit of rows in all."""

    def __init__(self, source: Source, rows: int, limit: int | None = None) -> None:
        self.source, self.rows = source, rows
        self.limits = dict.fromkeys(source.splits, limit)
        if limit is not None:  # no split goes without; train is the largest as a rule
            self.limits = dict.fromkeys(source.splits, limit // 5)
            self.limits["train"] = limit - (len(source.splits) - 1) * (limit // 5)

    def tables(self, split: str, columns: list[str]) -> Iterator[tuple[Piece, int, int, pa.Table]]:
        """The piece, the first row in it and in the split, and the table."""
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


# -------------------------------------------------------------------------------------- first pass


def check_columns(source: Source, config: Config, problems: Problems) -> None:
    columns = config.data.columns
    inputs = [columns.input] if isinstance(columns.input, str) else columns.input
    if len(inputs) > 1 and config.data.kind == "text":
        problems.add("data.columns.input: one column for text, got a list")
    if not inputs:
        problems.add("data.columns.input: an empty list; name the columns of the inputs")
    if columns.label in inputs:
        problems.add(f"data.columns.input: {columns.label!r} is the label; a model would only copy it")
    for split, pieces in source.splits.items():
        wanted = [("input", name) for name in inputs]
        wanted += [] if split == "unlabelled" else [("label", columns.label)]
        wanted += [("id", columns.id)] if columns.id is not None else []
        for piece in pieces:
            try:
                have = piece.columns()
            except InputError as error:
                for line in error.problems:
                    problems.add(line)
                continue
            for which, name in wanted:
                if name not in have:
                    problems.add(missing_column(which, name, piece.name, have))


def _read_keys(
    reading: Reading, split: str, columns: list[str], problems: Problems
) -> tuple[list[list[pa.Array]], list[Span]]:
    """Label and id columns of a split, each a list with one array a piece; and where the pieces lie."""
    found: list[list[pa.Array]] = [[] for _ in columns]
    spans: list[Span] = []
    chunks: list[list[pa.Array]] = [[] for _ in columns]

    def finish(piece: Piece) -> None:
        for i, parts in enumerate(chunks):
            if parts:
                whole = join(parts)
                untyped = isinstance(piece, FilePiece) and piece.format == "csv"
                found[i].append(
                    integers_if_all(whole) if untyped and pa.types.is_string(whole.type) else whole
                )
            parts.clear()

    current: Piece | None = None
    for piece, first, begin, table in reading.tables(split, columns):
        if current is not piece:
            if current is not None:
                finish(current)
            current = piece
            spans.append(Span(piece.name, begin, begin))
        spans[-1] = Span(piece.name, begin - first, begin + table.num_rows)
        for i, name in enumerate(columns):
            try:
                chunks[i].append(plain_values(single(table[name])))
            except ColumnError as error:
                problems.add(f"data.columns: {name!r} of {piece.name} {error}")
                chunks[i].append(pa.nulls(table.num_rows, pa.int64()))
    if current is not None:
        finish(current)
    return found, spans


def scan(reading: Reading, config: Config, problems: Problems) -> Scan:
    """Labels, ids and classes of all splits, checked."""
    source, columns = reading.source, config.data.columns
    result = Scan()
    listed = read_class_names(config.data, problems) or source.class_names
    raw: dict[str, pa.Array] = {}
    spans: dict[str, list[Span]] = {}
    for split in source.splits:
        names = [] if split == "unlabelled" else [columns.label]
        names += [columns.id] if columns.id is not None else []
        if not names:
            continue
        found, spans[split] = _read_keys(reading, split, names, problems)
        if split != "unlabelled":
            raw[split] = labels = join(found[0])
            if config.data.source == "hub" and pa.types.is_integer(labels.type):  # -1: withheld
                raw[split] = pc.if_else(pc.equal(labels, -1), pa.scalar(None, pa.int64()), labels)
        if columns.id is not None:
            result.ids[split] = join(found[-1])
        rows = spans[split][-1].end if spans[split] else 0
        result.whole &= not reading.cut(split, rows)
        if not rows:
            problems.add(f"{split}: no rows in {', '.join(piece.name for piece in source.splits[split])}")
    if "train" not in raw:
        return result
    result.names = listed or names_from(raw["train"], problems)
    for split, labels in raw.items():
        result.labels[split], bad = encode(labels, result.names, listed is not None)
        spread(bad, spans[split], "a wrong label", problems)
        if split != "train":
            nulls = ((int(i), f"no label; {split} rows need one") for i in np.flatnonzero(labels.is_null()))
            spread(nulls, spans[split], "no label", problems)
    if any(pa.types.is_string(ids.type) for ids in result.ids.values()):
        result.ids = {split: pc.cast(ids, pa.string()) for split, ids in result.ids.items()}
    for split, ids in result.ids.items():
        if split != "unlabelled":
            spread(repeated_ids(ids), spans[split], "a repeated id", problems)
    if "unlabelled" in result.ids:  # it joins train in the transfer set
        train = len(result.ids["train"])
        both = [*spans["train"], *(Span(s.name, s.begin + train, s.end + train) for s in spans["unlabelled"])]
        bad = ((i, m) for i, m in repeated_ids(join([result.ids["train"], result.ids["unlabelled"]])))
        spread(((i, m) for i, m in bad if i >= train), both, "a repeated id", problems)
    return result


def plan(found: Scan, config: Config, problems: Problems) -> Plan | None:
    """Splits and the checks that need all labels; None where classes or rows are too few."""
    data, labels = config.data, found.labels.get("train", np.zeros(0, np.int64))
    num_classes, present = len(found.names), np.unique(labels[labels >= 0])
    if not len(labels):
        return None
    if len(present) < 2:
        what = f"only the class {found.names[present[0]]!r}" if len(present) else "no label"
        problems.add(f"data.columns.label: train holds {what}; a classifier needs at least two classes")
        return None
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    held = {split: fraction for split, fraction in held.items() if split not in found.labels}
    if sum(held.values()) >= 1:
        problems.add(
            f"data.validation_fraction: {held['validation']} and data.test_fraction {held['test']} leave "
            "nothing to train on; together they must be below 1"
        )
        return None
    made = plan_splits(
        labels, num_classes, config.seed, held.get("validation"), held.get("test"), data.label_fraction
    )
    for split, number in (("validation", VALIDATION), ("test", TEST)):
        if split in held and not (made.part == number).any():
            problems.add(
                f"data.{split}_fraction: {held[split]} of {int((labels >= 0).sum())} labelled train rows "
                f"leaves no {split} row; raise it, or give a {split} split"
            )
    for split in ("validation", "test"):
        theirs = np.unique(found.labels.get(split, np.zeros(0, np.int64)))
        absent = np.setdiff1d(theirs[theirs >= 0], present)
        for code in absent[:10]:
            rows = int((found.labels[split] == code).sum())
            problems.add(
                f"{split}: class {found.names[code]!r} ({rows} rows) does not occur in train; "
                "add train rows of it or remove these"
            )
    _check_batches(config, int((made.labels[made.part == TRAIN] >= 0).sum()), problems)
    return made


def _check_batches(config: Config, labelled: int, problems: Problems) -> None:
    sizes = {"student.training.batch_size": config.student.training.batch_size}
    if config.teachers.source == "train":
        sizes["teachers.training.batch_size"] = config.teachers.training.batch_size
        for i, override in enumerate(config.teachers.overrides):
            if isinstance(size := override.training.get("batch_size"), int):
                sizes[f"teachers.overrides.{i}.training.batch_size"] = size
    for path, size in sizes.items():
        share = config.teachers.fraction if path.startswith("teachers") else 1.0
        rows = int(labelled * share)
        if size > rows:
            of = f" (teachers.fraction {share} of {labelled})" if share < 1 else ""
            problems.add(f"{path}: {size} is more than the {rows} labelled train rows{of}; lower it")


# ------------------------------------------------------------------------------------- second pass


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
    reading: Reading, reader: InputReader, split: str, problems: Problems
) -> Iterator[tuple[int, int, Any]]:
    """First row in the split, number of rows, inputs; rows that are bad go into `problems`."""
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
        problems.add_rows("bad inputs", piece.name, first, bad)
        yield begin, table.num_rows, values


def _reader(config: Config) -> InputReader:
    shape = config.data.image.shape
    image = list(shape) if shape is not None and config.data.kind == "image" else None
    if config.data.source == "digits":
        image = [8, 8, 1]
    return InputReader(config.data.kind, config.data.columns, image)


def _check_inputs(reading: Reading, config: Config, problems: Problems) -> None:
    """The second pass without writing: only what is wrong."""
    reader = _reader(config)
    for split in reading.source.splits:
        rows = sum(count for _, count, _ in _decoded(reading, reader, split, problems))
        if not rows and split == "unlabelled" and not problems:
            problems.add("data.unlabelled: no rows")


def _open(config: Config, problems: Problems, limit: int | None = None) -> Reading:
    """The source with its columns checked. Raises InputError where it cannot be read at all."""
    source = open_source(config.data, problems)
    problems.raise_if_any()
    check_columns(source, config, problems)
    problems.raise_if_any()
    return Reading(source, min(config.data.shard_rows, BATCH_ROWS), limit)


def inspect_source(config: Config) -> list[str]:
    """What is wrong with the source, one line each; reads at most 100,000 rows and writes nothing.

    What only all rows can tell (a class that is missing, too few rows) is judged where all were read.
    """
    problems = Problems()
    try:
        reading = _open(config, problems, INSPECTED_ROWS)
        found = scan(reading, config, problems)
        if found.whole:
            plan(found, config, problems)
        _check_inputs(reading, config, problems)
    except InputError as error:
        lines = problems.all()
        return lines + [line for line in error.problems if line not in lines]
    return problems.all()


def _tokenizer(
    reading: Reading, made: Plan, config: Config, folder: Path, reader: InputReader, problems: Problems
) -> Tokenizer | None:
    if config.data.kind != "text":
        return None
    if config.data.text.tokenizer == "hashed":
        return HashedTokenizer(config.data.text)

    def train_texts() -> Iterator[list[str]]:
        for begin, rows, texts in _decoded(reading, reader, "train", Problems()):
            part = made.part[begin : begin + rows]
            yield [text for text, number in zip(texts, part, strict=True) if number == TRAIN]

    return learn_subwords(train_texts(), config.data.text, folder)


def prepare(config: Config, folder: Path) -> tuple[DataInfo, list[str]]:
    """Write the prepared data into `folder`; returns its description and the names of the files.

    Raises InputError with everything that is wrong with the source; nothing is left behind then.
    """
    problems = Problems()
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:  # of an attempt that was killed, perhaps with other bounds of shards
        for path in folder.glob(f"{split}-*.parquet"):
            path.unlink()
    try:
        reading = _open(config, problems)
        found = scan(reading, config, problems)
        made = plan(found, config, problems)
        if problems or made is None:
            _check_inputs(reading, config, problems)
            problems.raise_if_any()
        assert made is not None
        return _write(reading, found, made, config, folder, problems)
    except InputError as error:
        lines = problems.all()
        for split in SPLITS:
            for path in folder.glob(f"{split}-*.parquet"):
                path.unlink()
        raise InputError(lines + [line for line in error.problems if line not in lines]) from error


def _write(
    reading: Reading, found: Scan, made: Plan, config: Config, folder: Path, problems: Problems
) -> tuple[DataInfo, list[str]]:
    data, num_train = config.data, len(made.part)
    reader = _reader(config)
    inputs = Inputs(data.kind, _tokenizer(reading, made, config, folder, reader, problems))
    writers = {split: SplitWriter(folder, split, data.shard_rows) for split in SPLITS}
    targets = {"train": "transfer", "unlabelled": "transfer", "validation": "validation", "test": "test"}
    for split in ("train", "validation", "test", "unlabelled"):
        if split not in reading.source.splits:
            continue
        rows_read = 0
        for begin, rows, values in _decoded(reading, reader, split, problems):
            rows_read += rows
            if problems:
                continue  # keep looking for what else is wrong; nothing will be kept
            span = slice(begin, begin + rows)
            ids = _ids(found, split, begin, rows, num_train)
            column = inputs.arrow(values)
            if split != "train":
                none = np.full(rows, UNLABELLED)
                labels = none if split == "unlabelled" else found.labels[split][span]
                writers[targets[split]].add(ids, column, labels)
                continue
            part, labels = made.part[span], made.labels[span]
            if data.kind != "text":
                inputs.measure(values if (part == TRAIN).all() else values[part == TRAIN])
            for number, name in ((TRAIN, "transfer"), (VALIDATION, "validation"), (TEST, "test")):
                mask = part == number
                if mask.all():
                    writers[name].add(ids, column, labels)
                elif mask.any():
                    writers[name].add(ids.filter(pa.array(mask)), column.filter(pa.array(mask)), labels[mask])
        if not rows_read and not problems:
            problems.add(f"{split}: no rows")
    problems.raise_if_any()
    for writer in writers.values():
        writer.close()
    info = _describe(config, found, made, inputs, reader, {s: w.rows for s, w in writers.items()})
    write_json(folder / INFO_FILE, info.to_dict())
    files = [name for writer in writers.values() for name in writer.files] + [INFO_FILE]
    if data.kind == "text" and data.text.tokenizer == "subword":
        files.append(TOKENIZER_FILE)
    return info, files


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
    mean, std = inputs.moments.result() if inputs.moments is not None else ([], [])
    shape = [inputs.longest] if data.kind == "text" else list(reader.shape or [])
    preprocess: dict[str, Any] = {"columns": data.columns.model_dump(mode="json")}
    if data.kind == "image":
        preprocess["image"] = {"shape": shape}
    if data.kind == "text":
        preprocess["text"] = data.text.model_dump(mode="json")
    return DataInfo(
        kind=data.kind,
        input_shape=shape,
        num_classes=len(found.names),
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
            "labelled": int((made.labels[train] >= 0).sum()),
        },
    )
