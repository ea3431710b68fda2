"""The corpus of a phase: which texts are taken, their numbers, and what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_cases import WORDS, write_tokenizer

from ensemble_kd.config import CorpusConfig, TextConfig
from ensemble_kd.data.corpus import corpus_fingerprint, load_corpus, prepare_corpus, texts_up_to
from ensemble_kd.data.tokenize import write_pretrained
from ensemble_kd.errors import ArtifactError, InputError

TEXT = TextConfig(tokenizer="pretrained", max_length=4)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    source = write_tokenizer(tmp_path / "source")
    write_pretrained(TEXT, str(source), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def texts(rows: int = 50) -> list[Any]:
    """Of 0, 1, 2, ... 11 words, 0, ...; some null."""
    return [None if i % 17 == 16 else " ".join(WORDS[: i % 12]) for i in range(rows)]


def write(path: Path, values: list[Any], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"other": range(len(values)), column: values}), path)
    return path


def expected(values: list[Any], least: int, most: int, rows: int | None = None) -> list[list[int]]:
    """[CLS] words [SEP], each number one higher; the words begin at 5."""
    counts = [len(text.split()) for text in values if text]
    counts = [n for n in counts if min(n + 2, most) >= least][:rows]
    return [[3, *range(6, 6 + min(n, most - 2)), 4] for n in counts]


def rows_of(folder: Path, longest: int) -> list[list[int]]:
    found = load_corpus(folder, longest)
    assert found.dtype == np.int32 and found.shape[1] == longest
    return [row[row > 0].tolist() for row in found]


@pytest.mark.parametrize(("least", "most", "rows"), [(1, 64, None), (6, 10, None), (6, 64, 13), (8, 8, 1)])
@pytest.mark.parametrize("shard_rows", [4, 1000])
def test_texts_taken(
    tmp_path: Path, tokenizer: Path, least: int, most: int, rows: int | None, shard_rows: int
) -> None:
    path = write(tmp_path / "corpus.parquet", texts())
    corpus = CorpusConfig(path=str(path), min_length=least, max_length=most, rows=rows)
    found = prepare_corpus(corpus, TEXT, tokenizer, tmp_path / "out", shard_rows)
    want = expected(texts(), least, most, rows)
    assert found == {"rows": len(want), "longest": max(map(len, want))}
    assert rows_of(tmp_path / "out", found["longest"]) == want
    shards = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert shards[0] == "corpus-00000.parquet" and len(shards) == -(-len(want) // shard_rows)
    table = pq.read_table(tmp_path / "out" / shards[0])
    assert table.column_names == ["input"] and table["input"].type.value_type == pa.int32()


@pytest.mark.parametrize(("least", "rows"), [(1, None), (8, None), (6, 3), (100, None)])
def test_texts_are_counted_as_they_would_be_taken(
    tmp_path: Path, tokenizer: Path, least: int, rows: int | None
) -> None:
    path = write(tmp_path / "corpus.parquet", texts())
    corpus = CorpusConfig(path=str(path), min_length=least, rows=rows)
    taken = len(expected(texts(), least, 128, rows))
    for most in (1, 3, 4, 1000):
        assert texts_up_to(corpus, TEXT, tokenizer, most) == min(taken, most)


def test_folders_globs_and_other_formats(tmp_path: Path, tokenizer: Path) -> None:
    write(tmp_path / "many" / "a.parquet", texts(20))
    (tmp_path / "many" / "b.jsonl").write_text('{"text": "my card is lost"}\n{"text": null}\n')
    want = [
        *expected(texts(20), 1, 128),
        [3, *(i + 6 for i in map(WORDS.index, "my card is lost".split())), 4],
    ]
    for path in (tmp_path / "many", tmp_path / "many" / "*"):
        corpus = CorpusConfig(path=str(path), min_length=1)
        longest = prepare_corpus(corpus, TEXT, tokenizer, tmp_path / "out", 8)["longest"]
        assert rows_of(tmp_path / "out", longest) == want


def test_the_longest_may_be_padded_and_cut(tmp_path: Path, tokenizer: Path) -> None:
    corpus = CorpusConfig(path=str(write(tmp_path / "a.parquet", ["my card is", "lost"])), min_length=1)
    prepare_corpus(corpus, TEXT, tokenizer, tmp_path / "out", 8)
    assert load_corpus(tmp_path / "out", 6)[1].tolist()[2:] == [4, 0, 0, 0]


def test_shards_of_an_earlier_attempt_go(tmp_path: Path, tokenizer: Path) -> None:
    path = str(write(tmp_path / "a.parquet", texts()))
    prepare_corpus(CorpusConfig(path=path, min_length=1), TEXT, tokenizer, tmp_path / "out", 2)
    found = prepare_corpus(CorpusConfig(path=path, min_length=1), TEXT, tokenizer, tmp_path / "out", 1000)
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert len(load_corpus(tmp_path / "out", found["longest"])) == found["rows"]


def problem(tmp_path: Path, tokenizer: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepare_corpus(CorpusConfig(**fields), TEXT, tokenizer, tmp_path / "out", 4)
    assert not list((tmp_path / "out").glob("*"))
    (line,) = caught.value.problems
    return line


def test_problems(tmp_path: Path, tokenizer: Path) -> None:
    path = str(write(tmp_path / "a.parquet", texts()))
    assert problem(tmp_path, tokenizer, path=f"{path}x").startswith("corpus.path: no such file or folder")
    assert problem(tmp_path, tokenizer, path=path, column="txt") == (
        "corpus.column: no column 'txt' in a.parquet; it has 'other', 'text'; did you mean 'text'?"
    )
    assert problem(tmp_path, tokenizer, path=path, column="other") == (
        "corpus.column: 'other' of a.parquet holds int64, expected text"
    )
    line = problem(tmp_path, tokenizer, path=path, min_length=40)
    assert line == f"corpus.min_length: none of the 43 texts in {path} has 40 tokens; lower it"
    line = problem(tmp_path, tokenizer, path=path, min_length=40, max_length=20)
    assert line == "corpus.min_length: 40 is above corpus.max_length = 20; lower it"
    empty = str(write(tmp_path / "b.parquet", [None, " "]))
    line = problem(tmp_path, tokenizer, path=empty)
    assert line == f"corpus.path: no text in column 'text' of {empty}; give another file"


def test_broken_and_missing_shards(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ArtifactError, match="no corpus-.*.parquet; prepare the corpus again"):
        load_corpus(tmp_path, 4)
    (tmp_path / "corpus-00000.parquet").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="corpus-00000.parquet: not a readable shard of a corpus"):
        load_corpus(tmp_path, 4)
    write(tmp_path / "corpus-00000.parquet", [1])
    with pytest.raises(ArtifactError, match="not a readable shard"):
        load_corpus(tmp_path, 4)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a" / "x.parquet", texts())
    first = corpus_fingerprint(CorpusConfig(path=str(path)))
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert corpus_fingerprint(CorpusConfig(path=str(tmp_path / "b"))) == first
    write(tmp_path / "b" / "x.parquet", texts(49))
    assert corpus_fingerprint(CorpusConfig(path=str(tmp_path / "b"))) != first
    with pytest.raises(InputError, match="^corpus.path: "):
        corpus_fingerprint(CorpusConfig(path=str(tmp_path / "none.csv")))
