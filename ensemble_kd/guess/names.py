"""Names that say what a column is for: labels, ids, texts, pairs of texts, pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable

LABELS = (
    "label labels target targets class classes y category categories intent intents sentiment emotion topic "
    "output outcome response answer_class label_name label_text class_name coarse_label fine_label polarity "
    "stars rating score grade species diagnosis survived income churn fraud is_spam spam toxic"
).split()
"""Names of columns to be predicted, those that can mean nothing else first."""
LABEL_WORDS = frozenset("label labels target class category intent".split())
"""Words inside such a name."""
NOT_LABELS = frozenset(
    "id ids index idx uid uuid guid key row rowid number no url uri link path file filename filepath source "
    "split fold date time datetime timestamp created year month day author user username speaker lang "
    "language version unnamed:0 text_length length".split()
)
"""Names of columns that tell where a row comes from: never guessed to be the label."""
IDS = frozenset("id ids index idx uid uuid guid key row rowid row_id unnamed:0".split())
TEXTS = (
    "text sentence content utterance query tweet review comment message document body post question title "
    "headline description abstract"
).split()
"""Names of the one column of texts, the surest first."""
LEADS = frozenset("title headline subject".split())
"""What stands above another text, and is read with it."""
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
    ("question", "answer"),
)
"""Two texts of which one is held against the other."""
PICTURES = ("image", "img", "picture", "photo", "pixels", "x", "input")
CLASS_FILES = ("labels.txt", "classes.txt", "class_names.txt", "label_names.txt")
"""One name a line, in class order."""
TARGET_FILES = ("targets.txt",)
"""Names of the columns to be predicted, where there are several."""


def plain(name: str) -> str:
    """A name in small letters with `_` between its words: `Label Name` and `label-name` give `label_name`."""
    return re.sub(r"[\s\-.]+", "_", name.strip().casefold())


def words(name: str) -> set[str]:
    return set(plain(name).split("_"))


def is_id(name: str) -> bool:
    return plain(name) in IDS or plain(name).endswith(("_id", "_idx", "_uuid"))


def label_rank(name: str) -> int | None:
    """How sure a name is that of a label, 0 being the surest; None where it is not."""
    if plain(name) in LABELS:
        return LABELS.index(plain(name))
    return len(LABELS) if words(name) & LABEL_WORDS else None


def first_of(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """The first of `wanted` among the names, as it is spelt there."""
    have = {plain(name): name for name in names}
    return next((have[name] for name in wanted if name in have), None)


def pair_of(names: list[str]) -> tuple[str, str] | None:
    """Two columns whose names say that one text is held against the other."""
    have = {plain(name): name for name in names}
    for first, second in PAIRS:
        if first in have and second in have:
            return have[first], have[second]
    for name in have:
        for one, two in (("1", "2"), ("a", "b"), ("left", "right")):
            other = re.sub(f"{one}$", two, name)
            if name.endswith(one) and other != name and other in have:
                return have[name], have[other]
    return None
