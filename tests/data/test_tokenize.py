"""Token numbers: the same on every machine; what the features are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import TextConfig
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import load_split
from ensemble_kd.data.tokenize import HashedTokenizer, load_tokenizer, pad
from ensemble_kd.errors import ArtifactError


def encode(config: TextConfig, *texts: str) -> list[list[int]]:
    ids, ends = HashedTokenizer(config).encode(list(texts))
    return [ids[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def test_fixed_numbers() -> None:
    words = TextConfig(word_ngrams=1, char_ngrams=None)
    assert encode(words, "Hello, world") == [[9863, 879, 4420]]
    everything = TextConfig(word_ngrams=2, char_ngrams=(3, 3), vocabulary_size=1000)
    assert encode(everything, "ab cd") == [[886, 435, 142, 643, 102, 574, 822]]


def bucket(text: str, size: int) -> int:
    return crc32(text.encode()) % size + 1


@settings(deadline=None)
@given(st.lists(st.text("abcö", min_size=1, max_size=6), min_size=1, max_size=6))
def test_features_of_a_text(words: list[str]) -> None:
    """Against the features written out one by one."""
    size = 2**20
    config = TextConfig(word_ngrams=3, char_ngrams=(2, 4), vocabulary_size=size, max_length=8192)
    expected = {bucket(word, size) for word in words}
    for n in (2, 3):
        expected |= {bucket(" ".join(words[i : i + n]), size) for i in range(len(words) - n + 1)}
    for word in words:
        marked = f"<{word}>"
        for n in (2, 3, 4):
            for i in range(len(marked) - n + 1):
                if n < len(marked):
                    expected.add(bucket("#" + marked[i : i + n], size))
    found = encode(config, " ".join(words))[0]
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_words_alone_keep_order_and_repetitions() -> None:
    config = TextConfig(word_ngrams=1, char_ngrams=None)
    a, b = encode(config, "a b")[0]
    assert encode(config, "b a a b") == [[b, a, a, b]]


def test_case_length_and_empty_text() -> None:
    assert encode(TextConfig(), "ABC") == encode(TextConfig(), "abc")
    assert encode(TextConfig(lowercase=False), "ABC") != encode(TextConfig(), "abc")
    long = encode(TextConfig(max_length=5), "some longer text of many words")[0]
    assert long == encode(TextConfig(), "some longer text of many words")[0][:5]
    assert [len(ids) for ids in encode(TextConfig(), "", "   ")] == [1, 1]


def test_pad_cuts_and_fills() -> None:
    found = pad(np.array([1, 2, 3, 4], np.int32), np.array([0, 1, 1, 4]), 2)
    assert found.tolist() == [[1, 0], [0, 0], [2, 3]]


WORDS = ["card", "cards", "payment", "payments", "lost", "losing", "pay", "paying", "transfer", "account"]


def texts_file(path: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + i % 6)) for i in range(200)]
    pq.write_table(pa.table({"input": texts, "label": np.arange(200) % 2}), path)
    return path


def test_subwords_are_learned_saved_and_reloaded(tmp_path: Path) -> None:
    path = texts_file(tmp_path / "a.parquet")
    text = {"tokenizer": "subword", "vocabulary_size": 60}
    config = make_config(path=str(path), kind="text", text=text)
    info, files = prepare(config, tmp_path / "out")
    assert "tokenizer.json" in files
    assert info.vocabulary_size <= 61
    train = load_split(tmp_path / "out", "transfer")
    assert 1 not in train.inputs  # nothing is unknown: every character has its number
    assert train.inputs.min() == 0 and train.inputs.max() < info.vocabulary_size
    table = pq.read_table(path).take(pa.array(train.ids))
    inputs, problems = Preprocessor(info, tmp_path / "out").transform(table)
    assert problems == [None] * len(train.ids)
    np.testing.assert_array_equal(inputs, train.inputs)
    (tmp_path / "out" / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="not a tokenizer"):
        load_tokenizer(config.data.text, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_tokenizer(config.data.text, tmp_path / "out")


def test_subwords_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """Hash maps of the library start from another random state in every process."""
    code = (
        "import sys; from pathlib import Path; from ensemble_kd.config import TextConfig; "
        "from ensemble_kd.data.tokenize import learn_subwords; "
        f"words = {WORDS!r}; "
        "texts = [[f'{a} {b}' for a in words for b in words]]; "
        "config = TextConfig(tokenizer='subword', vocabulary_size=50); "
        "learn_subwords(lambda: texts, config, Path(sys.argv[1]))"
    )
    found = set()
    for i in range(3):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / str(i))], check=True)
        found.add((tmp_path / str(i) / "tokenizer.json").read_bytes())
    assert len(found) == 1
