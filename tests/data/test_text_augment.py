"""New texts from texts: what the probabilities do, what stays, and where candidates come from."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from data_cases import make_config
from hypothesis import given
from hypothesis import strategies as st

from ensemble_kd.config import TextAugmentConfig
from ensemble_kd.data.prepared import train_texts
from ensemble_kd.data.text_augment import TextAugmenter, Unseen, split_text, uniforms, words_of
from ensemble_kd.data.word_candidates import Candidates, MaskedWords, WordVectors
from ensemble_kd.data.word_classes import WordClasses, induce, learn_word_classes
from ensemble_kd.errors import ConfigError, InputError

NONE = {"mask_probability": 0.0, "pos_probability": 0.0, "ngram_probability": 0.0}
TEXTS = [
    "A gripping, well-made film;  it doesn't let go!",
    "the plot\tis thin .",
    "No.\n",
    "  ",
    "Größe 北京 2.5 … déjà_vu",
]


def settings(**changes: Any) -> TextAugmentConfig:
    return TextAugmentConfig(**{**NONE, **changes})


def copies(text: str, row: int = 0, seed: int = 0, **changes: Any) -> list[str | None]:
    made = TextAugmenter(settings(**changes), seed).copies(row, (text,))
    return [None if fields is None else fields[0] for fields in made]


def within(successes: int, draws: int, probability: float) -> bool:
    """Inside five standard deviations of the binomial."""
    return abs(successes - draws * probability) < 5 * math.sqrt(draws * probability * (1 - probability))


def sentences(count: int = 400, seed: int = 0) -> list[list[str]]:
    """Determiner, adjective, noun, verb, by turns."""
    kinds = [
        ["the", "a", "this", "every"],
        ["old", "small", "red", "loud", "new"],
        ["dog", "cat", "car", "house", "tree", "river"],
        ["sleeps", "runs", "falls", "stands"],
    ]
    draw = random.Random(seed)
    return [[draw.choice(kind) for kind in kinds] for _ in range(count)]


@given(st.text())
def test_pieces_joined_are_the_text_again(text: str) -> None:
    assert "".join(split_text(text)) == text
    assert all(word and not word.isspace() for word in words_of(text))


def test_words_and_marks_are_told_apart() -> None:
    assert words_of("It doesn't, (really) matter.") == [
        "It", "doesn't", ",", "(", "really", ")", "matter", "."
    ]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_with_all_probabilities_at_zero_nothing_changes(text: str) -> None:
    assert copies(text, copies=4) == [text] * 4


def test_what_is_masked_altogether_is_dropped() -> None:
    assert copies(TEXTS[0], mask_probability=1.0, copies=5) == [None] * 5
    assert copies("one two three four", mask_probability=1.0, ngram_probability=1.0, copies=5) == [None] * 5
    assert copies("  ", mask_probability=1.0, copies=1) == ["  "], "no word, nothing masked"


def test_words_are_masked_as_often_as_asked_and_the_space_stays() -> None:
    text = "one two  three four five six seven eight nine ten"
    made = [copy for row in range(100) for copy in copies(text, row, mask_probability=0.3)]
    masked = Counter(word for copy in made if copy for word in copy.split() if word == "[MASK]")
    assert within(masked["[MASK]"], 100 * 20 * 10, 0.3)
    assert all("  " in copy for copy in made if copy)
    assert "<mask>" in str(copies(text, mask_probability=0.5, mask_token="<mask>"))


def test_draws_are_uniform_and_belong_to_their_place_alone() -> None:
    drawn = uniforms(3, 5, 0, 200, 100)
    assert 0 <= drawn.min() and drawn.max() < 1 and abs(drawn.mean() - 0.5) < 5 / math.sqrt(12 * drawn.size)
    assert within(int((drawn < 0.1).sum()), drawn.size, 0.1)
    assert (uniforms(3, 5, 0, 7, 9) == drawn[:7, :9]).all()
    for other in (uniforms(4, 5, 0, 200, 100), uniforms(3, 6, 0, 200, 100), uniforms(3, 5, 1, 200, 100)):
        assert not (other == drawn).any()


def test_the_same_seed_gives_the_same_texts_and_another_does_not() -> None:
    changes: dict[str, Any] = {"mask_probability": 0.2, "ngram_probability": 0.3, "copies": 20}
    first = copies(TEXTS[0], 7, **changes)
    assert first == copies(TEXTS[0], 7, **changes)
    assert first != copies(TEXTS[0], 7, seed=1, **changes) and first != copies(TEXTS[0], 8, **changes)
    fewer = copies(TEXTS[0], 7, **{**changes, "copies": 5})
    assert fewer == first[:5], "a copy does not depend on how many there are"


def test_runs_of_words_are_parts_of_the_text() -> None:
    text = "A gripping, well-made film;  it doesn't let go of anyone"
    made = [copy for row in range(200) for copy in copies(text, row, ngram_probability=1.0, ngram_max=4)]
    assert all(copy is not None and copy in text for copy in made)
    lengths = Counter(len(words_of(str(copy))) for copy in made)
    assert sorted(lengths) == [1, 2, 3, 4]
    assert all(within(lengths[n], len(made), 1 / 4) for n in lengths)
    starts = Counter(words_of(str(copy))[0] for copy in made)
    assert set(starts) == set(words_of(text)), "they begin anywhere"
    assert within(
        sum(copy != text for copy in copies(text, 0, ngram_probability=0.25, copies=1000)), 1000, 0.25
    )
    assert copies("Yes !", ngram_probability=1.0, ngram_max=1, copies=20).count(None) == 0


def test_pairs_are_changed_in_turn() -> None:
    augmenter = TextAugmenter(settings(ngram_probability=1.0, ngram_max=1, copies=6), 0)
    pair = ("one two three", "four five six")
    changed = [
        tuple(a != b for a, b in zip(copy or (), pair, strict=True)) for copy in augmenter.copies(1, pair)
    ]
    assert changed == [(True, False), (False, True), (True, True)] * 2
    masked = TextAugmenter(settings(mask_probability=1.0, copies=3), 0).copies(1, pair)
    assert masked == [None] * 3


def test_a_text_comes_through_once() -> None:
    unseen = Unseen()
    texts = [("a", "b"), ("ab", ""), ("a", "b"), ("b", "a"), ("\ud800", "")]
    assert [unseen(text) for text in texts] == [True, True, False, True, True]


# ---------------------------------------------------------------------------------------- parts of speech


def test_words_of_one_kind_fall_into_one_class() -> None:
    texts = sentences()
    classes = induce(lambda: texts, seed=0)
    kinds = [{classes[words[i]] for words in texts} for i in range(4)]
    assert not any(a & b for i, a in enumerate(kinds) for b in kinds[:i])
    assert classes == induce(lambda: texts, seed=0)
    assert induce(lambda: [], seed=0) == {}


def test_words_are_exchanged_within_their_class_by_frequency() -> None:
    classes = WordClasses(
        "induced",
        {"dog": "noun", "cat": "noun", "the": "article"},
        {"noun": ["dog", "cat"], "article": ["the"]},
        {"noun": [3, 1], "article": [5]},
    )
    augmenter = TextAugmenter(settings(pos_probability=1.0, copies=1000), 0, classes)
    made = Counter(str((copy or ("",))[0]) for copy in augmenter.copies(0, ("the cat purrs",)))
    assert set(made) == {"the dog purrs", "the cat purrs"}, "purrs has no class and stays"
    assert within(made["the dog purrs"], 1000, 0.75)
    rare = TextAugmenter(settings(pos_probability=0.2, copies=1000), 0, classes)
    changed = sum(copy != ("the cat purrs",) for copy in rare.copies(0, ("the cat purrs",)))
    assert within(changed, 1000, 0.2 * 0.75)


def test_learned_classes_hold_every_word_with_its_frequency() -> None:
    texts = sentences()
    learned = learn_word_classes(lambda: texts, "induced", 0)
    counts = Counter(word for words in texts for word in words)
    found = {
        word: count
        for tag, words in learned.words.items()
        for word, count in zip(words, learned.counts[tag], strict=True)
    }
    assert found == counts
    again = WordClasses(**learned.to_dict())
    assert again.draw(learned.classes["dog"], 0.0) == learned.words[learned.classes["dog"]][0]


def test_textblobs_lexicon_tags_english(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textblob")
    learned = learn_word_classes(lambda: [["the", "old", "dog", "sleeps", "."]], "textblob", 0)
    assert learned.tags(["the", "old", "dog"]) == ["DT", "JJ", "NN"]
    assert learned.words["NN"] == ["dog"]


def test_a_tagger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "textblob.en", None)
    with pytest.raises(ConfigError, match=r"data\.text_augment\.tagger: .*pip install textblob"):
        WordClasses("textblob")


# ------------------------------------------------------------------------------------------- candidates

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "film",
    "movie",
    "plot",
    "good",
    "great",
    "##ish",
    "the",
]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("lm")
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=23,
        initializer_range=1.0,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def test_candidates_of_a_language_model_are_its_most_probable_pieces(language_model: Path) -> None:
    import torch
    from transformers import BertForMaskedLM

    masked = MaskedWords(language_model)
    words = ["the", "film", "goodish", "alien", "plot"]
    found = masked.candidates(words, [1, 2, 3, 4], 12)
    assert set(found) == {1, 4}, "goodish is two pieces, alien unknown"
    model = BertForMaskedLM.from_pretrained(language_model).eval()
    ids = [VOCABULARY.index(piece) for piece in ["the", "film", "good", "##ish", "[UNK]", "plot"]]
    row = [2, *ids, 3, *ids, 3]
    row[6] = 4
    with torch.no_grad():
        kinds = torch.tensor([[0] * 8 + [1] * 7])
        logits = model(torch.tensor([row]), token_type_ids=kinds).logits[0, 6]
    expected = [VOCABULARY[i] for i in logits.argsort(descending=True).tolist()]
    assert found[4] == [piece for piece in expected if piece[0] not in "[#"]
    assert masked.candidates(words, [1], 1)[1] == found[1][:1] or not masked.candidates(words, [1], 1)[1]
    assert set(masked.candidates(["film"] * 12, list(range(12)), 3)) == set(range(10)), "no room for the rest"


def test_words_are_replaced_by_candidates_as_often_as_asked(language_model: Path) -> None:
    candidates = Candidates(12, MaskedWords(language_model), None)
    changes = {"word_probability": 0.4, "candidates": 12, "copies": 1000, "masked_lm": str(language_model)}
    augmenter = TextAugmenter(settings(**changes), 0, candidates=candidates)
    made = augmenter.copies(0, ("the film, alien film",))
    assert made == TextAugmenter(settings(**changes), 0, candidates=candidates).copies(
        0, ("the film, alien film",)
    )
    words = [words_of(str((copy or ("",))[0])) for copy in made]
    assert {(w[0], w[2], w[3]) for w in words} == {("the", ",", "alien")}, "function words and marks stay"
    possible = candidates.of(["the", "film", ",", "alien", "film"], [1])[1]
    assert {w[1] for w in words} == set(possible)
    others = sum(w[1] != "film" for w in words)
    assert within(others, 1000, 0.4 * (1 - possible.count("film") / len(possible)))


def write_vectors(path: Path) -> Path:
    path.write_text("film 1 0\nmovie 2 0.1\nflick 1 0.5\nriver 0 1\nsea -0.1 3\n. . 4 4\n", encoding="utf-8")
    return path


def test_nearest_words_by_cosine_take_over(tmp_path: Path, language_model: Path) -> None:
    vectors = WordVectors(write_vectors(tmp_path / "vectors.txt"))
    assert vectors.nearest("film", 2) == ["movie", "flick"]
    assert vectors.nearest("Film", 1) == ["movie"], "in lower case where the word itself is absent"
    assert vectors.nearest("river", 99)[0] == "sea" and "river" not in vectors.nearest("river", 99)
    assert vectors.nearest("plot", 3) == [] and vectors.words[-1] == ". ."
    both = Candidates(2, MaskedWords(language_model), vectors)
    found = both.of(["river", "film", "the", "unheard"], range(4))
    assert found[0][0] == "sea" and set(found) <= {0, 1}
    augmenter = TextAugmenter(settings(word_probability=1.0), 0, candidates=Candidates(1, None, vectors))
    assert set(augmenter.copies(0, ("film of the plot",))) == {("movie of the plot",)}


@pytest.mark.parametrize("content", ["", "film 1 2\nmovie 1\n", "film one two\n", "film 1 2\nmovie 3 x\n"])
def test_what_are_no_word_vectors_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(InputError, match=r"data\.text_augment\.word_vectors: .*GloVe"):
        WordVectors(tmp_path / "v.txt")


def test_what_is_no_language_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.text_augment\.masked_lm: .* holds no masked language model"):
        MaskedWords(tmp_path)


# ------------------------------------------------------------------------------------------ what is read


def test_rows_held_out_are_not_among_the_train_texts(tmp_path: Path) -> None:
    from ensemble_kd.data.prepared import prepare
    from ensemble_kd.data.records import load_split

    texts = [f"text number {i}" for i in range(60)]
    table = pa.table({"input": texts, "label": [i % 2 for i in range(60)]})
    pacsv.write_csv(table, tmp_path / "rows.csv")
    config = make_config(source="files", path=str(tmp_path / "rows.csv"), kind="text", shard_rows=7)
    read = {
        int(row): fields
        for rows, found in train_texts(config)
        for row, fields in zip(rows, found, strict=True)
    }
    prepare(config, tmp_path / "prepared")
    assert sorted(read) == sorted(load_split(tmp_path / "prepared", "transfer").ids)
    assert all(fields == (texts[row],) for row, fields in read.items()) and len(read) == 42


def test_what_is_wrong_with_the_texts_is_told(tmp_path: Path) -> None:
    table = pa.table({"input": ["a", None, "c", "d"] * 10, "label": [0, 0, 1, 1] * 10})
    pacsv.write_csv(table, tmp_path / "rows.csv")
    config = make_config(source="files", path=str(tmp_path / "rows.csv"), kind="text")
    with pytest.raises(InputError, match="no text"):
        list(train_texts(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_probability": 0.6, "pos_probability": 0.6}, "text_augment: .*add up to 1.2"),
        ({"copies": 0}, r"text_augment\.copies: .*greater than or equal to 1, got 0"),
        (NONE, "all probabilities are 0"),
        ({"word_probability": 0.4}, r"word_probability: 0\.4, but nothing gives candidates"),
        ({"word_probability": 0.4, "masked_lm": "/nowhere"}, r"masked_lm: no such folder: /nowhere"),
        ({"word_vectors": "/nowhere"}, r"word_vectors: no such file: /nowhere"),
        ({"tagger": "treebank"}, r"text_augment\.tagger: .*got 'treebank'"),
        ({"copis": 3}, r"text_augment\.copis: unknown setting; did you mean 'copies'"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(source="files", path=str(tmp_path), kind="text", text_augment=changes)


def test_it_is_for_texts_and_instead_of_other_unlabelled_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="text_augment: only for texts; data.kind is 'image'"):
        make_config(source="digits", text_augment={})
    with pytest.raises(ConfigError, match="text_augment: its texts take the place of data.unlabelled"):
        make_config(path=str(tmp_path), kind="text", text_augment={}, unlabelled=str(tmp_path))
