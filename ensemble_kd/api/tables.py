"""Rows in whatever a Python user has them (frames, arrays, data sets) as one Arrow table a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ensemble_kd.api.arrays import from_arrays, from_torch, is_torch_dataset, label_columns
from ensemble_kd.api.problems import InputValueError
from ensemble_kd.data.preprocess import no_column

TAKEN = (
    "a pandas, polars or pyarrow table, a datasets.Dataset, a pair (X, y) of arrays, a torch Dataset, or a "
    "path"
)
FEATURES = b"huggingface"
"""Metadata in which the library `datasets` names the classes of a column."""
SPLITS = ("train", "validation", "test", "unlabelled")


@dataclass
class Rows:
    """The rows of one split."""

    table: pa.Table
    frame: Any = None
    """The pandas DataFrame that the user gave, which scikit-learn's estimators are asked about."""
    inputs: Any = None
    """(N, ...) X as it was given, where it was an array: what teachers in this process are called with."""
    shape: tuple[int, int, int] | None = None
    """Height, width and channels of images that were given as an array."""
    labels: list[str] = field(default_factory=list)
    """The columns of the labels, where these were given as y."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def columns(self, names: list[str]) -> Any:
        """These columns as a pandas DataFrame."""
        if self.frame is not None:
            return self.frame[names] if set(names) <= set(self.frame.columns) else self._plain(names)
        return self._plain(names)

    def _plain(self, names: list[str]) -> Any:
        return self.table.select(names).to_pandas()


def rows_of(data: Any, where: str, labelled: bool = True) -> Rows:
    """`data` as a table; `where` is the argument that messages name, `labelled` whether (X, y) is expected.

    Raises ValueError for what has no rows, columns that hold several types, and arrays that do not fit.
    """
    if isinstance(data, tuple) and len(data) == 2 and labelled:
        return _with_labels(data[0], data[1], where)
    if is_torch_dataset(data):
        X, y = from_torch(data, where, labelled)
        return _arrays(X, y, where)
    if _is_pandas(data):
        return _nonempty(Rows(_from_pandas(data, where), frame=data), where)
    series = hasattr(data, "iloc") and getattr(data, "ndim", None) == 1
    if not series and (table := _as_arrow(data, where)) is not None:
        return _nonempty(Rows(table), where)
    if hasattr(data, "__array__") or (isinstance(data, list | tuple) and len(data)):
        if labelled:
            raise InputValueError(
                f"{where}: {type(data).__name__} without labels; give the pair ({where}_X, {where}_y), or a "
                "table with a column of labels"
            )
        return _arrays(data, None, where)
    raise InputValueError(f"{where}: {type(data).__name__} cannot be read as rows; give {TAKEN}")


def _arrays(X: Any, y: Any, where: str) -> Rows:
    table, inputs, shape = from_arrays(X, y, where)
    return _nonempty(Rows(table, None, inputs, shape, table.column_names[1:]), where)


def _with_labels(X: Any, y: Any, where: str) -> Rows:
    """(X, y), where X is an array or a table."""
    if not (_is_pandas(X) or hasattr(X, "__arrow_c_stream__") or isinstance(X, pa.Table)):
        return _arrays(X, y, where)
    rows = rows_of(X, f"{where}: X", labelled=False)
    for name, column in label_columns(y, len(rows), where).items():
        if name in rows.table.column_names:
            raise InputValueError(
                f"{where}: X has a column {name!r}, and y is given too; leave one of them out"
            )
        rows.table = rows.table.append_column(name, column)
        rows.labels.append(name)
    return rows


def _is_pandas(data: Any) -> bool:
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def _from_pandas(frame: Any, where: str) -> pa.Table:
    names = [str(name) for name in frame.columns]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputValueError(f"{where}: several columns are called {twice[0]!r}; rename them")
    arrays = []
    for name, position in zip(names, range(len(names)), strict=True):
        column = frame.iloc[:, position]
        check_one_type(column, f"{where}: column {name!r}")
        try:
            arrays.append(pa.Array.from_pandas(column))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InputValueError(
                f"{where}: column {name!r} ({column.dtype}) cannot be read: {_first(error)}; make it "
                "numbers, "
                f"texts, bytes or lists, or leave it out: {where}.drop(columns={name!r})"
            ) from None
    return pa.table(arrays, names=names)


def check_one_type(values: Any, what: str) -> None:
    """Raises ValueError for a column of Python objects that are some numbers, some texts."""
    if getattr(getattr(values, "dtype", None), "kind", None) != "O":
        return
    kinds = Counter(type(value).__name__ for value in values if not _is_missing(value))
    alike = {"int": "number", "float": "number", "int64": "number", "float64": "number"}
    if len({alike.get(kind, kind) for kind in kinds}) > 1:
        shown = " and ".join(f"{kind} ({count:,} rows)" for kind, count in kinds.most_common(3))
        raise InputValueError(
            f"{what}: mixed types, {shown}; make them one, for example .astype(str) on the column"
        )


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or bool(value is getattr(value, "NA", 0))
        or (isinstance(value, float) and value != value)
    )


def _as_arrow(data: Any, where: str) -> pa.Table | None:
    """A table of pyarrow, of `datasets`, or of a library that hands over Arrow streams; None for others."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if type(data).__module__.partition(".")[0] == "datasets":
        if not hasattr(data, "with_format"):
            raise InputValueError(
                f"{where}: {type(data).__name__}; give one of its splits, as in data['train']"
            )
        if not hasattr(data, "num_rows"):
            raise InputValueError(f"{where}: a stream of unknown length; load it without streaming=True")
        return data.with_format("arrow")[:]
    if hasattr(data, "__arrow_c_stream__"):  # polars, DuckDB and others
        try:
            return pa.table(data)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise InputValueError(
                f"{where}: {type(data).__name__} cannot be read: {_first(error)}; try {where}.to_pandas()"
            ) from None
    return None


def splits_of(data: Any, where: str = "train") -> Mapping[str, Any] | None:
    """The splits of a `datasets.DatasetDict` or a dict of tables by our names; None for anything else.

    Raises ValueError where there is no `train`.
    """
    if not isinstance(data, Mapping) or type(data).__name__ == "DataFrame":
        return None
    known = {"valid": "validation", "val": "validation", "dev": "validation", "unsupervised": "unlabelled"}
    found = {known.get(str(name), str(name)): rows for name, rows in data.items()}
    if "train" not in found:
        raise InputValueError(
            f"{where}: a dict of {', '.join(map(repr, list(data)[:5])) or 'nothing'}, without 'train'; give "
            "splits by name, or a table"
        )
    return {name: found[name] for name in SPLITS if name in found}


def _nonempty(rows: Rows, where: str) -> Rows:
    if not len(rows):
        raise InputValueError(f"{where}: no rows; give some")
    if not rows.table.column_names:
        raise InputValueError(f"{where}: no columns; give a table with inputs and labels")
    own = rows.table.schema.metadata or {}
    kept = {FEATURES: own[FEATURES]} if FEATURES in own else None  # others differ by version of a library
    rows.table = rows.table.replace_schema_metadata(kept)
    return rows


def check_label(rows: Rows, label: str | None, where: str) -> None:
    """Raises ValueError where a split has no labels: its column is missing, or values in it."""
    if label is None:
        return
    if label not in rows.table.column_names:
        said = no_column(label, where, rows.table.column_names)
        fix = "" if said.endswith("?") else "; name the column of the classes"
        raise InputValueError(f"label: {said}{fix}")
    if where == "train":
        return  # rows without a label are unlabelled ones
    column = rows.table[label]
    if missing := column.null_count:
        raise InputValueError(
            f"{where}: {missing:,} of {len(rows):,} rows have no label in {label!r}; only rows of train and "
            "of unlabelled may have none"
        )


def check_classes(train: Rows, rows: Rows, label: str | None, where: str) -> None:
    """Raises ValueError where texts are labels that no row of train has."""
    if label is None or label not in train.table.column_names or label not in rows.table.column_names:
        return
    known, found = train.table[label], rows.table[label]
    if not all(
        pa.types.is_string(each.type) or pa.types.is_large_string(each.type) for each in (known, found)
    ):
        return
    classes = set(known.unique().to_pylist()) - {None}
    odd = [i for i, each in enumerate(found.to_pylist()) if each is not None and each not in classes]
    if odd:
        raise InputValueError(
            f"{where}: label {found[odd[0]].as_py()!r} in row {odd[0]} is no class of train "
            f"({len(odd):,} of {len(rows):,} rows have such labels); add rows of it to train, or drop these"
        )


def _first(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
