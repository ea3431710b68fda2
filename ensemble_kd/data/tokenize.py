"""Text to token numbers 1..V; 0 is padding.

`hashed`: words, word n-grams and character n-grams into V buckets by CRC-32, which is the same on every
machine and in every process (Python's own hash is not). Nothing is learned.
`subword`: WordPiece learned on the training texts.
`pretrained`: the tokenizer of a pretrained model, with its special tokens; takes pairs of texts too.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from ensemble_kd.artifacts import write_atomic
from ensemble_kd.config import TextConfig
from ensemble_kd.errors import ArtifactError, InputError
from ensemble_kd.pretrained import read_tokenizer
from ensemble_kd.safe_files import in_one_line, kind_problem, parse_json, read_plain

TOKENIZER_FILE = "tokenizer.json"
WORD = re.compile(r"\w+|[^\w\s]")
CACHED_WORDS = 500_000
SPECIAL = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}
"""What special tokens are called in the vocabularies of BERT and of RoBERTa."""
LONGEST_WORD = 100
"""Characters of a word that is cut into pieces; a longer one is unknown, as in BERT."""
LONG_RUN = re.compile(rf"[^\s!-/:-@\[-`{{-~]{{{LONGEST_WORD + 1},}}")
"""Characters that are neither space nor ASCII's punctuation."""
MOST_CHARACTERS = 1000
"""Characters that a learned vocabulary holds at the most; the rarest are unknown."""
MOST_BYTES = 40_000_000
"""Of tokenizer.json; those of 250,000 pieces have 33 million."""
MOST_GROWTH = 1000
"""Times that a tokenizer's replacements may make a text longer."""


class Tokenizer(Protocol):
    """Turns texts into numbers."""

    size: int
    """Number of ids and one more for padding."""

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All ids in a row, int32, and where each text begins and ends, (N + 1,) int64."""
        ...


class HashedTokenizer:
    """Word and character n-grams into buckets, as in fastText (arXiv 1607.04606, 1607.01759).

    Words are in the order of the text. With n-grams a number comes once per text; single words alone are
    left as they are, repetitions included, because a model may read their order.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.size = config.vocabulary_size + 1
        self.plain = config.word_ngrams == 1 and config.char_ngrams is None
        self._words: dict[str, tuple[int, tuple[int, ...]]] = {}

    def _bucket(self, text: str) -> int:
        return crc32(text.encode("utf-8", "surrogatepass")) % self.config.vocabulary_size + 1

    def _word(self, word: str) -> tuple[int, tuple[int, ...]]:
        """Number of the word, numbers of its character n-grams (marked `#...#` from words)."""
        grams: list[int] = []
        if self.config.char_ngrams is not None:
            shortest, longest = self.config.char_ngrams
            marked = f"<{word}>"
            for n in range(shortest, longest + 1):
                # The whole marked word is the word itself once more; no bucket for that.
                if n < len(marked):
                    grams += [self._bucket("#" + marked[i : i + n]) for i in range(len(marked) - n + 1)]
        entry = self._bucket(word), tuple(grams)
        if len(self._words) >= CACHED_WORDS:
            self._words.clear()
        if len(word) <= LONGEST_WORD:
            self._words[word] = entry
        return entry

    def _text(self, text: str) -> list[int]:
        words = WORD.findall(text.lower() if self.config.lowercase else text)
        if not words:
            return [self._bucket("")]  # a text is never empty: a mean over no tokens has no value
        cache = self._words
        entries = [cache.get(word) or self._word(word) for word in words]
        ids = [entry[0] for entry in entries]
        if self.plain:
            return ids[: self.config.max_length]
        for n in range(2, self.config.word_ngrams + 1):
            ids += [self._bucket(" ".join(words[i : i + n])) for i in range(len(words) - n + 1)]
        for entry in entries:
            ids += entry[1]
        return list(dict.fromkeys(ids))[: self.config.max_length]

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, ends = array("i"), np.zeros(len(texts) + 1, dtype=np.int64)
        for i, text in enumerate(texts):
            ids.extend(self._text(text))
            ends[i + 1] = len(ids)
        return np.array(ids, dtype=np.int32), ends


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for the tokenizers library: its pool warns, and may hang, when a process forks later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class SubwordTokenizer:
    """A learned vocabulary; its numbers are shifted by one, because 0 is padding."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.size = tokenizer.get_vocab_size() + 1
        self.unknown: int = tokenizer.token_to_id("[UNK]")

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with one_thread():
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lists = [item.ids[: self.max_length] or [self.unknown] for item in encoded]
        ends = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=ends[1:])
        flat = np.fromiter((i for ids in lists for i in ids), dtype=np.int32, count=int(ends[-1]))
        return flat + 1, ends


def learn_subwords(
    batches: Callable[[], Iterable[list[str]]], config: TextConfig, folder: Path
) -> SubwordTokenizer:
    """Learn a WordPiece vocabulary (arXiv 1609.08144) and save it as `tokenizer.json`.

    `batches` gives the training texts from the beginning each time it is called; they are read twice. The
    same texts give the same file. The library alone does not promise that: it numbers the characters
    inside words in the order of a hash map, and breaks ties between merges by those numbers. So they are
    numbered beforehand, and the vocabulary is then put into a tokenizer that knows nothing of it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    steps: list[Any] = [normalizers.NFC()]
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    normalizer = normalizers.Sequence(steps)

    def empty(vocabulary: dict[str, int]) -> Any:
        model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    seen: Counter[str] = Counter()
    for texts in batches():
        seen.update(normalizer.normalize_str("\n".join(texts)))
    letters = sorted(c for c in seen if not c.isspace())
    letters.sort(key=lambda c: -seen[c])
    letters = sorted(letters[: min(MOST_CHARACTERS, config.vocabulary_size // 3)])
    first = ["[UNK]", *letters, *(f"##{c}" for c in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=2,
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learned = empty({})
    with one_thread():
        known = empty({})  # not `learned` itself, which the library locks while it learns
        shortened = ([_without_long(text, known) for text in batch] for batch in batches())
        learned.train_from_iterator(shortened, trainer)
    tokenizer = empty(learned.get_vocab(with_added_tokens=True))
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str())
    return SubwordTokenizer(tokenizer, config.max_length)


def _without_long(text: str, empty: Any) -> str:
    """The text without words that are never cut into pieces: learning from one takes the square of its
    length. The tokenizer `empty` says what a word is; only runs that may hold a long one are shown to it."""

    def mended(run: re.Match[str]) -> str:
        normal = empty.normalizer.normalize_str(run[0])
        words = [word for word, _ in empty.pre_tokenizer.pre_tokenize_str(normal)]
        kept = [word for word in words if len(word) <= LONGEST_WORD]
        return run[0] if len(kept) == len(words) else f" {' '.join(kept)} "

    return LONG_RUN.sub(mended, text)


class PretrainedTokenizer:
    """The tokenizer of a pretrained model: `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` for a pair.

    Texts are cut so that the special tokens stay, of a pair the longer one first. What looks like a special
    token in a text is plain text. Its numbers are shifted by one, because 0 is padding.
    """

    def __init__(self, tokenizer: Any, max_length: int, where: str = "data.text") -> None:
        """Raises InputError, with the path `where`, where `max_length` has no room for the special tokens."""
        self.tokenizer, self.max_length = tokenizer, max_length
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 2
        found = {
            role: [i for name in names if (i := tokenizer.token_to_id(name)) is not None]
            for role, names in SPECIAL.items()
        }
        self.special: dict[str, int] = {role: ids[0] for role, ids in found.items() if ids}
        """Numbers of pad, cls, sep, mask, unk in the model's own vocabulary: not shifted."""
        tokenizer.encode_special_tokens = True  # encode what looks like one, piece by piece
        tokenizer.no_padding()
        added = tokenizer.num_special_tokens_to_add(False)
        if max_length < added:  # the library would leave such texts uncut
            raise InputError(
                f"{where}.max_length: {max_length} has no room for the {added} special tokens of a text; "
                "raise it"
            )
        tokenizer.enable_truncation(max_length, strategy="longest_first")
        empty = tokenizer.encode("")
        around = {i for i, own in zip(empty.ids, empty.special_tokens_mask, strict=True) if own}
        named = {i for role, i in self.special.items() if role != "unk"}
        self._reserved = np.array(sorted(around | named), np.int64)

    @property
    def takes_pairs(self) -> bool:
        """Whether it separates the two texts of a pair, and has room for what does."""
        single, pair = (self.tokenizer.num_special_tokens_to_add(both) for both in (False, True))
        return single < pair <= self.max_length

    def encode(self, texts: list[str] | list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        with one_thread():
            encoded = self.tokenizer.encode_batch_fast(texts)
        lists = [item.ids or [self.special.get("unk", 0)] for item in encoded]
        ends = np.zeros(len(texts) + 1, dtype=np.int64)
        np.cumsum([len(ids) for ids in lists], out=ends[1:])
        flat = np.fromiter((i for ids in lists for i in ids), dtype=np.int32, count=int(ends[-1]))
        pairs = bool(texts) and not isinstance(texts[0], str)
        self._unmark(flat, ends, encoded, self.tokenizer.num_special_tokens_to_add(pairs))
        return flat + 1, ends

    def _unmark(self, flat: np.ndarray, ends: np.ndarray, encoded: list[Any], added: int) -> None:
        """Make special tokens that a text spells out unknown: some vocabularies hold them as words too.

        More than the `added` ones tell where; only there it is looked which are the text's.
        """
        reserved = np.isin(flat, self._reserved)
        before = np.concatenate([[0], np.cumsum(reserved)])
        counts = before[ends[1:]] - before[ends[:-1]]
        for i in np.flatnonzero(counts > added):
            own = np.array(encoded[i].special_tokens_mask, bool)
            if len(own) == ends[i + 1] - ends[i]:
                wrong = reserved[ends[i] : ends[i + 1]] & ~own
                flat[ends[i] : ends[i + 1]][wrong] = self.special.get("unk", 0)


def write_pretrained(config: TextConfig, source: str, folder: Path) -> PretrainedTokenizer:
    """Save the tokenizer of a source as `tokenizer.json`, complete in itself: the source is not needed again.

    Raises ConfigError or InputError where it cannot be read.
    """
    tokenizer = read_tokenizer(source)
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str())
    return PretrainedTokenizer(tokenizer, config.max_length)


def checked_tokenizer(path: Path) -> Any:
    """The library's tokenizer of a file that may be a stranger's; it neither cuts nor pads.

    Raises ArtifactError for a file that is too large, no tokenizer, or makes texts many times longer.
    """
    from tokenizers import Tokenizer as Library

    content = read_plain(path, MOST_BYTES)
    said = parse_json(content, f"{path}: not a tokenizer")
    growth = 1
    waiting = [said.get("normalizer") if isinstance(said, dict) else None]
    while waiting:
        step = waiting.pop()
        if isinstance(step, list):
            waiting += step
        elif isinstance(step, dict):
            waiting += step.values()
            inserted = step.get("content", step.get("prepend"))
            growth *= max(1, len(inserted)) if isinstance(inserted, str) else 1
    if growth > MOST_GROWTH:
        raise ArtifactError(f"{path}: not a tokenizer of ours (it makes texts {growth:,} times longer)")
    try:
        library = Library.from_str(content.decode("utf-8"))
    except BaseException as error:  # bare Exception for what it cannot parse; a panic is not even one
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ArtifactError(f"{path}: not a tokenizer ({in_one_line(error)})") from error
    library.no_truncation()
    library.no_padding()
    return library


def load_tokenizer(config: TextConfig, folder: Path) -> Tokenizer:
    """The tokenizer of prepared data or of a saved model.

    Raises ArtifactError where `tokenizer.json` is needed and cannot be read.
    """
    if config.tokenizer == "hashed":
        return HashedTokenizer(config)
    path = folder / TOKENIZER_FILE
    if kind_problem(path) == "missing":
        raise ArtifactError(f"{path}: missing; the texts were cut into subwords by it")
    library = checked_tokenizer(path)
    if config.tokenizer == "pretrained":
        return PretrainedTokenizer(library, config.max_length)
    return SubwordTokenizer(library, config.max_length)


def pad(ids: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Texts one after another to a matrix (N, length) int32, 0 at the end; longer texts are cut."""
    lengths = np.minimum(np.diff(ends), length)
    inside = np.arange(length) < lengths[:, None]
    matrix = np.zeros(inside.shape, dtype=np.int32)
    matrix[inside] = ids[(ends[:-1, None] + np.arange(length))[inside]]
    return matrix
