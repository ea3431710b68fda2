"""New texts from texts: words masked or exchanged, runs of words cut out.

Per word of a copy one number u in [0, 1) decides (Tang et al., arXiv 1903.12136, section 3.3):

    u < p_mask                        the mask token
    u < p_mask + p_pos                a word of the same part of speech, drawn by its frequency
    u < p_mask + p_pos + p_word       a candidate for it, drawn uniformly (TinyBERT, arXiv 1909.10351)
    else                              the word itself

Then with probability p_ng only a random run of n words is kept, n uniform in 1..5. In the papers each
method has u to itself; together they are one draw, so that at most one thing happens to a word. Marks of
punctuation are words too, and the space between words stays as it is. A text whose words are all masked is
dropped. Pairs of texts are changed in turn: the first, the second, both.

What is drawn is a function of (seed, row, field, copy, word), so that a row gives the same texts alone, in
any company, and in any order.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from ensemble_kd.config import TextAugmentConfig
from ensemble_kd.data.splitmix import GOLDEN, scramble, unit_interval
from ensemble_kd.data.word_candidates import Candidates
from ensemble_kd.data.word_classes import WordClasses

PIECE = re.compile(r"\s+|\w+(?:['’]\w+)*|[^\w\s]")
"""White space, a word (don't is one), or a mark: every character belongs to a piece."""
OF_TEXT, PER_WORD = 3, 2
"""Numbers drawn for the run of words (whether, how long, from where), and for each word (what, which)."""


def split_text(text: str) -> list[str]:
    """Words, marks and the space between them; joined they are the text again."""
    return PIECE.findall(text)


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order."""
    return [piece for piece in split_text(text) if not piece.isspace()]


def uniforms(seed: int, row: int, field: int, copies: int, count: int) -> np.ndarray:
    """(copies, count) numbers in [0, 1): splitmix64 of seed, row, field, copy and place."""
    state = np.broadcast_to(np.arange(count, dtype=np.uint64), (copies, count))
    keys: list[np.ndarray] = [np.array([[number]], np.uint64) for number in (seed, row, field)]
    for key in (*keys, np.arange(copies, dtype=np.uint64)[:, None]):
        state = scramble(state + key + np.uint64(GOLDEN))
    return unit_interval(state)


@dataclass(frozen=True)
class Drawn:
    """The random numbers in [0, 1) that one copy of a text is made by."""

    cut: np.ndarray
    """Whether it is cut to a few words, to how many, and where they begin."""
    what: np.ndarray
    """(words,) What happens to each word."""
    which: np.ndarray
    """(words,) Which word takes its place."""


class TextAugmenter:
    """Makes the copies of a row."""

    def __init__(
        self,
        settings: TextAugmentConfig,
        seed: int,
        classes: WordClasses | None = None,
        candidates: Candidates | None = None,
    ) -> None:
        """`classes` is needed where `pos_probability`, `candidates` where `word_probability` is above 0."""
        assert classes is not None or not settings.pos_probability
        assert candidates is not None or not settings.word_probability
        self.settings, self.seed, self.classes, self.candidates = settings, seed, classes, candidates
        self.masked_below = settings.mask_probability
        self.exchanged_below = self.masked_below + settings.pos_probability
        self.replaced_below = self.exchanged_below + settings.word_probability

    def copies(self, row: int, fields: tuple[str, ...]) -> list[tuple[str, ...] | None]:
        """The copies of row number `row`, in order; None where every word of a field is masked."""
        changed = [self._field(row, i, text) for i, text in enumerate(fields)]
        if len(fields) == 1:
            return [None if text is None else (text,) for text in changed[0]]
        found: list[tuple[str, ...] | None] = []
        for copy in range(self.settings.copies):
            turn = copy % (len(fields) + 1)  # one field after the other, then all of them
            texts = [changed[i][copy] if turn in (i, len(fields)) else text for i, text in enumerate(fields)]
            whole = tuple(text for text in texts if text is not None)
            found.append(whole if len(whole) == len(fields) else None)
        return found

    def _field(self, row: int, field: int, text: str) -> list[str | None]:
        pieces = split_text(text)
        places = [i for i, piece in enumerate(pieces) if not piece.isspace()]
        if not places:
            return [text] * self.settings.copies
        words = [pieces[i] for i in places]
        drawn = uniforms(self.seed, row, field, self.settings.copies, OF_TEXT + PER_WORD * len(words))
        what, which = drawn[:, OF_TEXT::PER_WORD], drawn[:, OF_TEXT + 1 :: PER_WORD]  # (copies, words)
        tags: list[str | None] = []
        if self.classes is not None and self.settings.pos_probability:
            tags = self.classes.tags(words)
        candidates: dict[int, list[str]] = {}
        if self.candidates is not None and self.settings.word_probability:
            asked = (what >= self.exchanged_below) & (what < self.replaced_below)
            candidates = self.candidates.of(words, np.flatnonzero(asked.any(axis=0)).tolist())
        return [
            self._copy(pieces, places, Drawn(drawn[i, :OF_TEXT], what[i], which[i]), tags, candidates)
            for i in range(self.settings.copies)
        ]

    def _copy(
        self,
        pieces: list[str],
        places: list[int],
        drawn: Drawn,
        tags: list[str | None],
        candidates: dict[int, list[str]],
    ) -> str | None:
        changed, cut, what, which = list(pieces), drawn.cut, drawn.what, drawn.which
        masked = what < self.masked_below  # (words,)
        for i in np.flatnonzero(what < self.replaced_below).tolist():
            if masked[i]:
                changed[places[i]] = self.settings.mask_token
            elif what[i] < self.exchanged_below:
                tag = tags[i]
                if self.classes is not None and tag is not None and tag in self.classes.words:
                    changed[places[i]] = self.classes.draw(tag, float(which[i]))
            elif i in candidates:
                changed[places[i]] = candidates[i][int(which[i] * len(candidates[i]))]
        if cut[0] >= self.settings.ngram_probability:
            return None if masked.all() else "".join(changed)
        length = min(1 + int(cut[1] * self.settings.ngram_max), len(places))
        first = int(cut[2] * (len(places) - length + 1))
        last = first + length - 1
        if masked[first : last + 1].all():
            return None
        return "".join(changed[places[first] : places[last] + 1])


class Unseen:
    """Lets every text (or pair) through once; remembers 8 bytes of a hash of each."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, fields: tuple[str, ...]) -> bool:
        """Whether it has not been seen before; from now on it has."""
        text = "\0".join(fields).encode("utf-8", "surrogatepass")
        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        new = key not in self._seen
        self._seen.add(key)
        return new
