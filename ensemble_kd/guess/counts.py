"""How many rows each split will have, by class: one pass over the labels, as the data stage makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_kd.config import Config, validate
from ensemble_kd.data.columns import check_columns
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.reading import Reading
from ensemble_kd.data.scan import scan
from ensemble_kd.data.sources import open_source
from ensemble_kd.data.split_plan import plan
from ensemble_kd.data.splits import TEST, TRAIN, VALIDATION

BATCH_ROWS = 8192
MOST_CLASSES = 10_000


@dataclass(frozen=True)
class Rows:
    """Rows as a run will have them."""

    train: int
    labelled: int
    """Of train, with a label."""
    validation: int
    test: int
    unlabelled: int
    """In files of their own."""
    held: tuple[str, ...] = ()
    """Splits that are held out of train."""
    classes: tuple[str, ...] = ()
    per_class: tuple[int, ...] = ()
    """Labelled train rows of each class."""

    @property
    def transfer(self) -> int:
        return self.train + self.unlabelled


def count(data: dict[str, Any], seed: int = 0) -> Rows:
    """`data` is the block of the configuration. Raises InputError, ConfigError with all that is wrong."""
    tiny = {"training": {"batch_size": 1}}
    model = {"model": {"name": "bag"}} if data.get("kind") == "text" else {}
    raw = {"name": "count", "seed": seed, "data": _plain(data)}
    config: Config = validate({**raw, "teachers": {**tiny, **model}, "student": {**tiny, **model}})
    problems = Problems()
    source = open_source(config.data, problems)
    problems.raise_if_any()
    check_columns(source, config, problems)
    problems.raise_if_any()
    found = scan(Reading(source, BATCH_ROWS), config, problems)
    made = plan(found, config, problems)
    problems.raise_if_any()
    assert made is not None, "without a plan there are problems"
    train = made.labels[made.part == TRAIN]
    known = train[labelled(train)]
    spans = found.spans.get("unlabelled", [])
    held = [split for split in ("validation", "test") if split not in found.labels]
    per_class = np.bincount(known, minlength=len(found.names)) if found.names else np.zeros(0, np.int64)
    return Rows(
        train=len(train),
        labelled=len(known),
        validation=len(found.labels.get("validation", ())) or int((made.part == VALIDATION).sum()),
        test=len(found.labels.get("test", ())) or int((made.part == TEST).sum()),
        unlabelled=spans[-1].end if spans else _lengths(source.splits.get("unlabelled", []), config),
        held=tuple(held),
        classes=tuple(found.names),
        per_class=tuple(per_class.tolist()),
    )


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Without what needs a pretrained tokenizer, which labels do not."""
    found = {key: value for key, value in data.items() if key not in ("text", "augment", "text_augment")}
    columns = dict(found.get("columns", {}))
    if found.get("kind") == "text" and isinstance(columns.get("input"), list):
        columns["input"] = columns["input"][0]
    return {**found, "columns": columns}


def _lengths(pieces: list[Any], config: Config) -> int:
    inputs = config.data.columns.input
    column = inputs if isinstance(inputs, str) else inputs[0]
    return sum(table.num_rows for piece in pieces for table in piece.batches([column], BATCH_ROWS))
