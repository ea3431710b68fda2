"""Texts without labels as token numbers: what a phase of the student's training reads beside the data.

A folder holds `corpus-00000.parquet`, `corpus-00001.parquet`, ... with one column:

    input  list of int32 tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.artifacts import fingerprint
from ensemble_kd.config import CorpusConfig, TextConfig
from ensemble_kd.data.decode import ColumnError, decode_texts, single
from ensemble_kd.data.files import list_files
from ensemble_kd.data.preprocess import no_column
from ensemble_kd.data.records import write_parquet
from ensemble_kd.data.sources import content
from ensemble_kd.data.tokenize import load_tokenizer, pad
from ensemble_kd.errors import ArtifactError, InputError

BATCH_ROWS = 8192
"""Texts held at once, or `shard_rows` where that is less."""


def _path(corpus: CorpusConfig) -> str:
    if corpus.path is None:
        raise InputError("corpus.path: missing; a file, folder, glob or URL of texts")
    return corpus.path


def _texts(corpus: CorpusConfig, rows: int) -> Iterator[list[str]]:
    """The texts that are neither null nor blank."""
    pieces = list_files(_path(corpus), "corpus.path")[0]
    for piece in pieces:
        held = piece.columns()
        if corpus.column not in held:
            raise InputError(f"corpus.column: {no_column(corpus.column, piece.name, held)}")
    for piece in pieces:
        for table in piece.batches([corpus.column], rows):
            try:
                texts, missing = decode_texts(single(table[corpus.column]))
            except ColumnError as error:
                raise InputError(f"corpus.column: {corpus.column!r} of {piece.name} {error}") from error
            yield [text for i, text in enumerate(texts) if i not in missing and text.strip()]


def corpus_problems(corpus: CorpusConfig) -> list[str]:
    """What is wrong with the files of a corpus, one line each, starting with its field; reads no texts."""
    try:
        for piece in list_files(_path(corpus), "corpus.path")[0]:
            held = piece.columns()
            if corpus.column not in held:
                return [f"corpus.column: {no_column(corpus.column, piece.name, held)}"]
    except InputError as error:
        return error.problems
    return []


def _taken(
    corpus: CorpusConfig, text: TextConfig, tokenizer_folder: Path, rows: int
) -> Iterator[tuple[int, pa.ListArray]]:
    """How many texts were read, and the tokens of those that are long enough, up to `corpus.rows` of them."""
    tokenizer = load_tokenizer(text.model_copy(update={"max_length": corpus.max_length}), tokenizer_folder)
    left = corpus.rows
    for texts in _texts(corpus, min(rows, BATCH_ROWS)):
        ids, ends = tokenizer.encode(texts)
        kept = np.flatnonzero(np.diff(ends) >= corpus.min_length)[:left]
        column = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(ids, pa.int32()))
        yield len(texts), column.take(pa.array(kept))
        if left is not None:
            left -= len(kept)
            if not left:
                return


def texts_up_to(corpus: CorpusConfig, text: TextConfig, tokenizer_folder: Path, most: int) -> int:
    """How many texts `prepare_corpus` would take; it stops to count at `most`."""
    found = 0
    for _, kept in _taken(corpus, text, tokenizer_folder, max(1024, most)):
        found += len(kept)
        if found >= most:
            return most
    return found


def prepare_corpus(
    corpus: CorpusConfig, text: TextConfig, tokenizer_folder: Path, folder: Path, shard_rows: int
) -> dict[str, int]:
    """Write the corpus into `folder`; returns `rows` and `longest`, the tokens of the longest text.

    Lengths count the special tokens too. Raises InputError, with the path of a field of `corpus`, where there
    is nothing to be taken; nothing is left behind then.
    """
    if corpus.min_length > corpus.max_length:
        raise InputError(
            f"corpus.min_length: {corpus.min_length} is above corpus.max_length = {corpus.max_length}; "
            "lower it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder)
    writer = _Writer(folder, shard_rows)
    read, longest = 0, 0
    try:
        for count, kept in _taken(corpus, text, tokenizer_folder, shard_rows):
            read += count
            if len(kept):
                writer.add(kept)
                longest = max(longest, int(kept.value_lengths().to_numpy().max()))
        if not writer.rows:
            raise InputError(
                f"corpus.min_length: none of the {read} texts in {corpus.path} has "
                f"{corpus.min_length} tokens; lower it"
                if read
                else f"corpus.path: no text in column {corpus.column!r} of {corpus.path}; give another file"
            )
        writer.close()
    except BaseException:
        remove(folder)
        raise
    return {"rows": writer.rows, "longest": longest}


def remove(folder: Path) -> None:
    """Take away the shards, perhaps of an attempt that was killed."""
    for path in folder.glob("corpus-*.parquet"):
        path.unlink()


class _Writer:
    """Collects texts and writes a file each time `shard_rows` are there."""

    def __init__(self, folder: Path, shard_rows: int) -> None:
        self.folder, self.shard_rows = folder, shard_rows
        self.rows = self.files = 0
        self._waiting = pa.chunked_array([], pa.list_(pa.int32()))

    def add(self, inputs: pa.Array) -> None:
        self.rows += len(inputs)
        self._waiting = pa.chunked_array([*self._waiting.chunks, inputs])
        while len(self._waiting) >= self.shard_rows:
            self._flush(self.shard_rows)

    def close(self) -> None:
        if len(self._waiting):
            self._flush(len(self._waiting))

    def _flush(self, rows: int) -> None:
        shard = pa.table({"input": self._waiting.slice(0, rows)})
        write_parquet(self.folder / f"corpus-{self.files:05d}.parquet", shard)
        self._waiting = self._waiting.slice(rows)
        self.files += 1


def load_corpus(folder: Path, longest: int) -> np.ndarray:
    """(N, L) int32 token numbers, 0 = padding; L is `longest`.

    Raises ArtifactError where there are no shards or one cannot be read.
    """
    paths = sorted(folder.glob("corpus-*.parquet"))
    if not paths:
        raise ArtifactError(f"{folder}: no corpus-*.parquet; prepare the corpus again")
    parts = []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                column = single(file.read(columns=["input"], use_threads=False)["input"])
            ends, ids = column.offsets.to_numpy(), column.values.to_numpy()
        except (OSError, KeyError, AttributeError, pa.ArrowException) as error:
            raise ArtifactError(f"{path}: not a readable shard of a corpus ({error})") from error
        parts.append(pad(ids, ends.astype(np.int64), longest))
    return np.concatenate(parts)


def corpus_fingerprint(corpus: CorpusConfig) -> str:
    """16 hexadecimal digits that change with the content of the corpus's files, not with where they lie.

    The settings beside the path are not in it. Raises InputError where the files are missing.
    """
    pieces = list_files(_path(corpus), "corpus.path")[0]
    return fingerprint("corpus", *(content(piece, PurePosixPath(piece.path).name) for piece in pieces))
