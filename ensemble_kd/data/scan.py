"""The first pass over a source: labels and ids, from which classes and splits follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.config import Config, variants
from ensemble_kd.data.classes import Classes, by_value, encode, found_in, off_by_one, unified
from ensemble_kd.data.decode import ColumnError, single
from ensemble_kd.data.files import FilePiece
from ensemble_kd.data.labels import (
    Span,
    integers_if_all,
    join,
    labelled,
    place,
    repeated_ids,
    spread,
    values,
    weights,
)
from ensemble_kd.data.pieces import Piece, Source
from ensemble_kd.data.preprocess import missing_column
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.remarks import class_remarks, value_remarks
from ensemble_kd.data.sources import read_class_names
from ensemble_kd.data.splits import DROPPED, TEST, TRAIN, VALIDATION, Plan, plan_splits
from ensemble_kd.data.table import TableEncoder
from ensemble_kd.errors import InputError
from ensemble_kd.targets import TARGETS
from ensemble_kd.targets.columns import plain_values, value_column


@dataclass
class Scan:
    """What the first pass finds."""

    names: list[str] = field(default_factory=list)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Class numbers of the labelled splits, -1 where there is none; or values (float32)."""
    ids: dict[str, pa.Array] = field(default_factory=dict)
    """Ids where a column is named."""
    whole: bool = True
    """Whether every row was read."""
    classes: Classes = field(default_factory=lambda: Classes([]))
    spans: dict[str, list[Span]] = field(default_factory=dict)
    """Where the rows of each split lie."""
    weights: np.ndarray | None = None
    """(N,) Weights of train's rows where a column is named."""

    def train_row(self, row: int) -> str:
        return place(row, self.spans["train"])


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


def _teachers_know(config: Config) -> bool:
    """Whether teachers that are given say what a train row is, so that it needs no label."""
    return config.teachers.source != "train" and TARGETS[config.data.target].classified


def without_labels(source: Source, config: Config) -> bool:
    """Whether train has no label column and needs none: given teachers know the classes, and labelled
    validation and test rows judge them and the student."""
    if not _teachers_know(config):
        return False
    return {"validation", "test"} <= source.splits.keys() and not any(
        set(config.data.columns.labels) <= set(piece.columns()) for piece in source.splits["train"]
    )


def check_columns(source: Source, config: Config, problems: Problems) -> None:
    columns = config.data.columns
    inputs = [columns.input] if isinstance(columns.input, str) else columns.input
    if not inputs:
        problems.add("data.columns.input: an empty list; name the columns of the inputs")
    for name in dict.fromkeys(name for name in inputs if inputs.count(name) > 1):
        problems.add(f"data.columns.input: {name!r} is listed {inputs.count(name)} times; list it once")
    labels = columns.labels
    for name in dict.fromkeys(name for name in labels if labels.count(name) > 1):
        problems.add(f"data.columns.label: {name!r} is listed {labels.count(name)} times; list it once")
    for name in dict.fromkeys(labels):
        if name in inputs:
            problems.add(f"data.columns.input: {name!r} is the label; a model would only copy it")
    for what, same in (("the label", columns.id in labels), ("an input", columns.id in inputs)):
        if same:
            problems.add(
                f"data.columns.id: {columns.id!r} is {what} too; name a column that only tells rows apart, "
                "or leave it out, and row numbers do"
            )
    for what, others in (("the label", labels), ("the id", [columns.id])):
        if columns.weight is not None and columns.weight in others:
            problems.add(
                f"data.columns.weight: {columns.weight!r} is {what} too; name a column that says how much "
                "a row counts, or leave it out"
            )
    unlabelled = {"unlabelled"}
    with suppress(InputError):  # a file that cannot be read is told below
        unlabelled |= {"train"} if without_labels(source, config) else set()
    for split, pieces in source.splits.items():
        wanted = [("input", name) for name in dict.fromkeys(inputs)]
        wanted += [] if split in unlabelled else [("label", name) for name in dict.fromkeys(labels)]
        wanted += [("id", columns.id)] if columns.id is not None else []
        wanted += [("weight", columns.weight)] if columns.weight is not None and split == "train" else []
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
                elif have.count(name) > 1:
                    problems.add(
                        f"data.columns.{which}: {piece.name} has {have.count(name)} columns of the name "
                        f"{name!r}; rename or remove all but one"
                    )


Read = Callable[[pa.Array], pa.Array]
"""A column as the source has it to one of a few types; raises ColumnError."""


def _read_keys(
    reading: Reading, split: str, columns: dict[str, Read], problems: Problems, hopeless: set[tuple[str, str]]
) -> tuple[list[list[pa.Array]], list[Span]]:
    """The columns of a split, each a list with one array a piece; and where the pieces lie.

    Columns that cannot be read are told once, and go into `hopeless` with the piece.
    """
    found: list[list[pa.Array]] = [[] for _ in columns]
    spans: list[Span] = []
    chunks: list[list[pa.Array]] = [[] for _ in columns]

    def finish(piece: Piece) -> None:
        for i, (parts, read) in enumerate(zip(chunks, columns.values(), strict=True)):
            if parts:
                whole = join(parts)
                untyped = isinstance(piece, FilePiece) and piece.format == "csv" and read is plain_values
                found[i].append(
                    integers_if_all(whole) if untyped and pa.types.is_string(whole.type) else whole
                )
            parts.clear()

    current: Piece | None = None
    for piece, first, begin, table in reading.tables(split, list(columns)):
        if current is not piece:
            if current is not None:
                finish(current)
            current = piece
            spans.append(Span(piece.name, begin, begin))
        spans[-1] = Span(piece.name, begin - first, begin + table.num_rows)
        for i, (name, read) in enumerate(columns.items()):
            try:
                chunks[i].append(read(single(table[name])))
            except ColumnError as error:
                if (piece.name, name) not in hopeless:
                    problems.add(f"data.columns: {name!r} of {piece.name} {error}")
                hopeless.add((piece.name, name))  # the rows themselves are not to blame
    if current is not None:
        finish(current)
    return found, spans


def _no_label(column: pa.Array) -> pa.Array:
    return pa.nulls(len(column), pa.int64())


def scan(reading: Reading, config: Config, problems: Problems) -> Scan:
    """Labels, ids and classes of all splits, checked."""
    source, columns = reading.source, config.data.columns
    id_column = columns.id or source.id
    result = Scan()
    kind = TARGETS[config.data.target]
    given = read_class_names(config.data, problems)
    raw: dict[str, list[pa.Array]] = {}
    hopeless: set[tuple[str, str]] = set()
    no_labels = {"unlabelled", *(["train"] if without_labels(source, config) else [])}
    for split in source.splits:
        keys: dict[str, Read] = {}
        if split not in no_labels:
            keys |= dict.fromkeys(columns.labels, kind.read)
        elif split == "train":  # read for the number of its rows
            keys[columns.input if isinstance(columns.input, str) else columns.input[0]] = _no_label
        if columns.weight is not None and split == "train":
            keys[columns.weight] = value_column
        if id_column is not None:
            keys[id_column] = plain_values
        if not keys:
            continue
        parts, result.spans[split] = _read_keys(reading, split, keys, problems, hopeless)
        found = [join(each) for each in parts]
        if split != "unlabelled":
            raw[split] = found[: len(found) - (id_column is not None) - (columns.weight in keys)]
        if columns.weight is not None and split == "train":
            result.weights, bad = weights(found[len(raw[split])])
            spread(bad, result.spans[split], "a wrong weight", problems)
            if not problems and not result.weights.any():
                problems.add(
                    f"data.columns.weight: all of {columns.weight!r} are 0, so that nothing is learned"
                )
        if id_column is not None:
            result.ids[split] = found[-1]
        rows = result.spans[split][-1].end if result.spans[split] else 0
        result.whole &= not reading.cut(split, rows)
        if not rows:
            problems.add(f"{split}: no rows in {', '.join(piece.name for piece in source.splits[split])}")
    if "train" not in raw:
        return result
    if hopeless:
        return result  # what follows from rows that could not be read is no news
    if kind.classified:
        _encode(result, {split: found[0] for split, found in raw.items()}, given, source, config, problems)
    else:
        for split, label_columns in raw.items():
            result.labels[split] = _values(label_columns, columns.labels, result.spans[split], problems)
    if any(pa.types.is_string(ids.type) for ids in result.ids.values()):
        result.ids = {split: pc.cast(ids, pa.string()) for split, ids in result.ids.items()}
    _check_ids(result, problems)
    return result


def _values(found: list[pa.Array], names: list[str], spans: list[Span], problems: Problems) -> np.ndarray:
    """(N,) float32 labels of one column, or (N, K) of several."""
    labels = []
    for name, column in zip(names, found, strict=True):
        one, bad = values(column, name if len(names) > 1 else None)
        spread(bad, spans, "a wrong label", problems)
        labels.append(one)
    return labels[0] if len(labels) == 1 else np.stack(labels, 1)


def _encode(
    result: Scan,
    raw: dict[str, pa.Array],
    given: list[str] | None,
    source: Source,
    config: Config,
    problems: Problems,
) -> None:
    """Labels of classes to their numbers; what is wrong with them goes into `problems`."""
    listed = given or source.class_names
    if listed:  # truth values count as 0 and 1
        raw = {
            split: pc.cast(a, pa.int64()) if pa.types.is_boolean(a.type) else a for split, a in raw.items()
        }
    named = by_value(raw, given) if given else raw
    raw = unified(raw) if named is raw else named
    if config.data.source == "hub":
        raw = _without_withheld(raw, listed is not None, problems)
    result.classes = Classes(listed, listed=True) if listed else found_in(raw, result.whole, problems)
    result.names = result.classes.names
    shifted = off_by_one(raw, listed) if listed else None
    if shifted is not None:
        problems.add(shifted)
    for split, labels in raw.items():
        result.labels[split], bad = encode(labels, result.classes)
        if shifted is not None:  # of the rows those alone that would be wrong all the same
            bad = ((i, message) for i, message in bad if labels[i].as_py() != len(result.names))
        spread(bad, result.spans[split], "a wrong label", problems)
        if split != "train":
            nulls = ((int(i), f"no label; {split} rows need one") for i in np.flatnonzero(labels.is_null()))
            spread(nulls, result.spans[split], "no label", problems)


def _without_withheld(raw: dict[str, pa.Array], listed: bool, problems: Problems) -> dict[str, pa.Array]:
    """Integer labels of -1, by which the hub's data sets mark rows without one, as nulls.

    Not where they can only be a class: where labels are -1 and 1.
    """
    if not all(pa.types.is_integer(labels.type) for labels in raw.values()):
        return raw
    distinct = pc.drop_null(pc.unique(pa.chunked_array(list(raw.values())))).to_pylist()
    if -1 not in distinct or (not listed and sorted(distinct) == [-1, 1]):
        return raw
    marked = {split: pc.equal(labels, -1) for split, labels in raw.items()}
    count = sum(pc.sum(mask).as_py() or 0 for mask in marked.values())
    if not listed:
        problems.warn(
            f"data.columns.label: {count:,} rows with label -1 count as rows without one, as the hub's data "
            "sets mark them; if it is a class, write the labels as text"
        )
    return {s: pc.if_else(marked[s], pa.scalar(None, pa.int64()), labels) for s, labels in raw.items()}


def _check_ids(result: Scan, problems: Problems) -> None:
    spans = result.spans
    for split, ids in result.ids.items():
        if split != "unlabelled":
            spread(repeated_ids(ids), spans[split], "a repeated id", problems)
    if "unlabelled" in result.ids:  # it joins train in the transfer set
        train = len(result.ids["train"])
        both = [*spans["train"], *(Span(s.name, s.begin + train, s.end + train) for s in spans["unlabelled"])]
        bad = ((i, m) for i, m in repeated_ids(join([result.ids["train"], result.ids["unlabelled"]])))
        spread(((i, m) for i, m in bad if i >= train), both, "a repeated id", problems)


def plan(found: Scan, config: Config, problems: Problems, dropped: np.ndarray | None = None) -> Plan | None:
    """Splits and the checks that need all labels; None where classes or rows are too few.

    `dropped` (N,): rows of train that no split gets.
    """
    data, labels = config.data, found.labels.get("train", np.zeros(0, np.int64))
    if not len(labels):
        return None
    kind = TARGETS[data.target]
    classes, width = kind.classified, len(data.columns.labels)
    if dropped is not None:
        labels = labels.copy()
        labels[dropped] = kind.missing(int(dropped.sum()), width)
    known = labels[labelled(labels)]
    present = np.unique(known)
    if not len(present) and _judged_elsewhere(found, config):
        part = np.full(len(labels), TRAIN, np.int8)
        if dropped is not None:
            part[dropped] = DROPPED
        return Plan(part, labels)
    if not len(present) and problems:
        return None  # no news: the labels could not be read
    alike = _alike(known, data.columns.labels)
    if len(present) < 2 or alike:
        where, value = alike[0] if alike else ("", 0)
        only = f"only the {'class' if classes else 'value'} "
        what = only + repr(found.names[value] if classes else float(value)) + where if alike else ""
        needs = "a classifier needs at least two classes" if classes else "there is nothing to predict"
        if classes and not len(present) and config.teachers.source != "train":
            needs = (
                "with given teachers that is enough where validation and test files have labels: add these"
            )
        problems.add(f"data.columns.label: train holds {what or 'no label'}; {needs}")
        return None
    remarks = (
        class_remarks(found.classes, labels, found.train_row)
        if classes
        else value_remarks(labels, found.train_row, data.columns.labels)
    )
    for line in remarks:
        problems.warn(line)
    strata = kind.strata(labels)
    num_classes = len(found.names) if classes else 1
    held = {"validation": data.validation_fraction, "test": data.test_fraction}
    held = {split: fraction for split, fraction in held.items() if split not in found.labels}
    if sum(held.values()) >= 1:
        problems.add(
            f"data.validation_fraction: {held['validation']} and data.test_fraction {held['test']} leave "
            "nothing to train on; together they must be below 1"
        )
        return None
    made = plan_splits(
        strata, num_classes, config.seed, held.get("validation"), held.get("test"), data.label_fraction
    )
    if dropped is not None:
        made.part[dropped] = DROPPED
    for split, number in (("validation", VALIDATION), ("test", TEST)):
        if split in held and not (made.part == number).any():
            problems.add(
                f"data.{split}_fraction: {held[split]} of {int(labelled(labels).sum())} labelled train rows "
                f"leaves no {split} row; raise it, or give a {split} split"
            )
    if not classes:
        given, without = labels.copy(), ~labelled(made.labels)  # by `label_fraction`
        given[without] = kind.missing(int(without.sum()), width)
        made = Plan(made.part, given)
        judged = found.labels.get("test", made.labels[made.part == TEST])
        for where, value in _alike(judged, data.columns.labels):  # also what a benchmark that withholds has
            problems.add(
                f"data.columns.label: test holds only the value {float(value)}{where}, by which nothing can "
                "be judged; give other test rows, or none so that data.test_fraction of train is held out"
            )
    for split in ("validation", "test") if classes else ():
        theirs = np.unique(found.labels.get(split, np.zeros(0, np.int64)))
        absent = np.setdiff1d(theirs[theirs >= 0], present)
        for code in absent[:10]:
            rows = int((found.labels[split] == code).sum())
            problems.add(
                f"{split}: class {found.names[code]!r} ({rows} rows) does not occur in train; "
                "add train rows of it or remove these"
            )
    train = made.labels[made.part == TRAIN]
    kept = train[labelled(train)]
    for where, value in _alike(kept, data.columns.labels) if not classes else ():
        problems.add(
            f"data.label_fraction: the {len(kept)} labelled rows that stay in train have one value{where}, "
            f"{float(value)}; raise it, or hold out less"
        )
    _check_batches(config, len(kept), len(train), problems)
    return made


def _alike(labels: np.ndarray, names: list[str]) -> list[tuple[str, Any]]:
    """Columns of labels (N,) or (N, K) that hold one value alone: where, in words, and the value."""
    if not len(labels):
        return []
    if labels.ndim == 1:
        return [("", labels[0])] if (labels == labels[0]).all() else []
    return [
        (f" in {name!r}", column[0])
        for name, column in zip(names, labels.T, strict=True)
        if (column == column[0]).all()
    ]


def _judged_elsewhere(found: Scan, config: Config) -> bool:
    """Whether given teachers know the classes, and labelled validation and test rows judge the outcome."""
    if not _teachers_know(config):
        return False
    judging = [found.labels.get(split, np.zeros(0, np.int64)) for split in ("validation", "test")]
    return all(len(np.unique(labels[labels >= 0])) > 1 for labels in judging)


def _check_batches(config: Config, labelled: int, train: int, problems: Problems) -> None:
    """Teachers draw from labelled rows, students from all of the transfer set."""
    size = config.student.training.batch_size
    more = config.data.unlabelled or config.data.text_augment or config.data.splits.get("unlabelled")
    if size > train and not more:
        problems.add(f"student.training.batch_size: {size} is more than the {train} train rows; lower it")
    sizes: dict[str, int] = {}
    if config.teachers.source == "train":
        sizes["teachers.training.batch_size"] = config.teachers.training.batch_size
        for path, each in variants(config.teachers):
            if isinstance(own := each.training.get("batch_size"), int):
                sizes[f"{path}.training.batch_size"] = own
    for path, size in sizes.items():
        share = config.teachers.fraction
        rows = int(labelled * share)
        if size > rows:
            of = f" (teachers.fraction {share} of {labelled})" if share < 1 else ""
            problems.add(f"{path}: {size} is more than the {rows} labelled train rows{of}; lower it")
