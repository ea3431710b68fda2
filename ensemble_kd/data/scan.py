"""The first pass over a source: labels and ids, from which classes and splits follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ensemble_kd.config import Config
from ensemble_kd.data.classes import Classes, by_value, encode, found_in, off_by_one, unified
from ensemble_kd.data.columns import without_labels
from ensemble_kd.data.decode import ColumnError, single
from ensemble_kd.data.files import FilePiece
from ensemble_kd.data.labels import (
    Span,
    integers_if_all,
    join,
    place,
    repeated_ids,
    spread,
    values,
    weights,
)
from ensemble_kd.data.pieces import Piece, Source
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.reading import Reading
from ensemble_kd.data.sources import read_class_names
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
    kind = config.data.predicts
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
        if columns.weight is not None and split == "train" and not hopeless:
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
