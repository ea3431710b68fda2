"""Which words may stand for each other: parts of speech, and the words of each with their frequency.

Two taggers. `textblob` looks a word up in Brill's English lexicon, which comes inside the package of that
name. `induced` needs nothing but the texts: words with like neighbours to the left and right form a class
(distributional tagging, Schuetze 1995, arXiv cmp-lg/9503009). A deviation from arXiv 1903.12136, which tags
with a trained tagger: a class is of word types, not of occurrences, so that an ambiguous word has one class.
"""

from __future__ import annotations

import importlib
import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from ensemble_kd.errors import ConfigError

NUM_CLASSES = 45
"""Classes at the most: as many as the Penn treebank has tags."""
NUM_NEIGHBOURS = 250
"""The most frequent words; how often each stands left and right of a word describes it."""
LEARNED_FROM = 5000
"""The most frequent words, between which the classes are drawn; rarer words join the nearest."""
CLASSED_WORDS = 100_000
"""Rarer words than these keep their place: their neighbours say nothing."""

Sentences = Callable[[], Iterable[list[str]]]
"""Gives the words of every text, as often as it is called."""


@dataclass
class WordClasses:
    """Tags words, and draws a word of a tag."""

    tagger: str
    classes: dict[str, str] = field(default_factory=dict)
    """Tag of each word (induced)."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """Words of each tag in the train texts, the most frequent first."""
    counts: dict[str, list[int]] = field(default_factory=dict)
    """How often each of them occurs with that tag."""

    def __post_init__(self) -> None:
        self._ends = {tag: list(accumulate(counts)) for tag, counts in self.counts.items()}
        self._find_tags = _textblob() if self.tagger == "textblob" else None

    def tags(self, words: list[str]) -> list[str | None]:
        """One tag per word, None where it has none."""
        if self._find_tags is None:
            return [self.classes.get(word) for word in words]
        return [tag for _, tag in self._find_tags(words)]

    def draw(self, tag: str, u: float) -> str:
        """A word of the tag, in proportion to its frequency; u in [0, 1)."""
        ends = self._ends[tag]
        return self.words[tag][bisect_right(ends, u * ends[-1])]

    def to_dict(self) -> dict[str, Any]:
        return {
            "tagger": self.tagger,
            "classes": self.classes,
            "words": self.words,
            "counts": self.counts,
        }


def learn_word_classes(sentences: Sentences, tagger: str, seed: int) -> WordClasses:
    """Count the words of every tag, which for `induced` are found first."""
    found = WordClasses(tagger, induce(sentences, seed) if tagger == "induced" else {})
    pools: dict[str, Counter[str]] = {}
    for words in sentences():
        for word, tag in zip(words, found.tags(words), strict=True):
            if tag is not None:
                pools.setdefault(tag, Counter())[word] += 1
    ordered = {tag: _by_count(pool) for tag, pool in sorted(pools.items())}
    return WordClasses(
        tagger,
        found.classes,
        {tag: [word for word, _ in pairs] for tag, pairs in ordered.items()},
        {tag: [count for _, count in pairs] for tag, pairs in ordered.items()},
    )


def induce(sentences: Sentences, seed: int) -> dict[str, str]:
    """Class of each word: k-means over the square roots of its neighbours' shares, weighted by frequency.

    Square roots make the distance that of Hellinger, in which a few frequent neighbours do not decide alone.
    """
    from scipy.sparse import csr_matrix
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    frequency: Counter[str] = Counter()
    for words in sentences():
        frequency.update(words)
    ranked = [word for word, _ in _by_count(frequency)[:CLASSED_WORDS]]
    if not ranked:
        return {}
    number = {word: i for i, word in enumerate(ranked)}
    border, other = NUM_NEIGHBOURS, NUM_NEIGHBOURS + 1  # the end of a text; a word that is not frequent
    width = NUM_NEIGHBOURS + 2
    pairs: Counter[tuple[int, int]] = Counter()
    for words in sentences():
        numbers = [number.get(word, -1) for word in words]
        seen = [n if 0 <= n < NUM_NEIGHBOURS else other for n in numbers]
        for n, left, right in zip(numbers, [border, *seen[:-1]], [*seen[1:], border], strict=True):
            if n >= 0:
                pairs[n, left] += 1
                pairs[n, width + right] += 1
    rows, columns = np.array(list(pairs)).T
    values = np.sqrt(np.fromiter(pairs.values(), float) / np.array([frequency[ranked[n]] for n in rows]))
    points = csr_matrix((values, (rows, columns)), shape=(len(ranked), 2 * width))
    top = min(LEARNED_FROM, len(ranked))
    clusters = max(1, min(NUM_CLASSES, top // 4))
    weights = np.array([frequency[word] for word in ranked[:top]], float)
    # Several threads would add up in another order each time; fewer points than clusters are no harm.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=3, random_state=seed).fit(points[:top], sample_weight=weights)
        labels = np.concatenate([fitted.labels_, fitted.predict(points[top:]) if top < len(ranked) else []])
    return {word: str(int(label)) for word, label in zip(ranked, labels, strict=True)}


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, equals by the alphabet: independent of the order in which they came."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _textblob() -> Callable[[list[str]], list[list[str]]]:
    try:
        return importlib.import_module("textblob.en").parser.find_tags
    except ImportError as error:
        raise ConfigError(
            "data.text_augment.tagger: 'textblob', but that package is not installed; "
            "pip install textblob, or use 'induced'"
        ) from error
