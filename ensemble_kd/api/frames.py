"""Tables from this process as Parquet files under the run folder, named by their content.

    RUN/input/DIGEST/train.parquet (validation, test, unlabelled)     the rows
    RUN/input/answers/DIGEST.parquet                                  what a teacher says of them

The same rows give the same files, and so the same run; nothing is written twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.api.problems import InputValueError
from ensemble_kd.api.tables import SPLITS, Rows
from ensemble_kd.artifacts import checksum
from ensemble_kd.data.files import list_files
from ensemble_kd.data.pieces import Piece
from ensemble_kd.guess.inspect import inspect

FOLDER = "input"
BATCH = 8192


def write_rows(run: Path, splits: dict[str, Rows]) -> Path:
    """A folder with a Parquet file a split."""
    digest, new = hashlib.sha256(), run / FOLDER / f".rows.{os.getpid()}.tmp"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name in SPLITS:
            if name not in splits:
                continue
            path = new / f"{name}.parquet"
            try:
                pq.write_table(splits[name].table, path, compression="zstd")
            except (pa.ArrowException, NotImplementedError) as error:
                raise InputValueError(f"{name}: cannot be written as Parquet: {error}") from None
            digest.update(f"{name} {checksum(path)}\n".encode())
        folder = run / FOLDER / digest.hexdigest()[:16]
        if not folder.is_dir():
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder.absolute()


def write_answers(run: Path, parts: list[np.ndarray]) -> str:
    """A file of predictions: `id` numbers the rows of all parts from 0, `logits` (C,) float32 each."""
    answers = np.concatenate(parts)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(answers.reshape(-1)), answers.shape[1])
    folder = run / FOLDER / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".answers.{os.getpid()}.tmp"
    pq.write_table(pa.table({"id": np.arange(len(answers)), "logits": lists}), partial, compression="zstd")
    path = folder / f"{checksum(partial)[:16]}.parquet"
    partial.replace(path)
    return str(path.absolute())


def read_splits(path: str) -> dict[str, Rows]:
    """All rows of files, for teachers in this process. Raises ValueError for folders of pictures."""
    facts = inspect(path)
    if facts.folders:
        raise InputValueError(
            "train: folders of pictures are read by the run itself, and teachers in this process would not "
            "see them; give arrays (X, y), or run(...) with teachers={'source': 'callable', 'given': "
            "['module:function']}"
        )
    return {name: Rows(_whole(pieces)) for name, pieces in facts.source.splits.items() if pieces}


def read_file(path: str, where: str) -> Rows:
    """All rows of the files behind one path, as one split."""
    pieces, _ = list_files(path, where)
    return Rows(_whole(list(pieces)))


def _whole(pieces: list[Piece]) -> pa.Table:
    tables = [table for piece in pieces for table in piece.batches(piece.columns(), BATCH)]
    return _typed(pa.concat_tables(tables, promote_options="permissive"))


def _typed(table: pa.Table) -> pa.Table:
    """Columns of text that are numbers throughout as numbers, as every reader of CSV has them."""
    for i, field in enumerate(table.schema):
        if not pa.types.is_string(field.type):
            continue
        for kind in (pa.int64(), pa.float64()):
            try:
                table = table.set_column(i, field.name, table[field.name].cast(kind))
                break
            except pa.ArrowInvalid:
                continue
    return table
