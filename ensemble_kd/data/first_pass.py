"""All that is checked of a source before a row is written: columns, tokenizer, labels, inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ensemble_kd.config import Config, text_source
from ensemble_kd.data.columns import check_columns
from ensemble_kd.data.copies import Copies, to_drop
from ensemble_kd.data.decoding import decoded, has_no_empty_texts, reader_of
from ensemble_kd.data.oddities import Oddities
from ensemble_kd.data.problems import Problems
from ensemble_kd.data.reading import Reading
from ensemble_kd.data.scan import Scan, scan
from ensemble_kd.data.sources import open_source
from ensemble_kd.data.split_plan import plan
from ensemble_kd.data.splits import Plan
from ensemble_kd.data.tokenize import PretrainedTokenizer
from ensemble_kd.errors import InputError, ProblemsError
from ensemble_kd.pretrained import read_tokenizer

BATCH_ROWS = 8192
"""Rows decoded at once, or `data.shard_rows` where that is less."""
INSPECTED_ROWS = 100_000


def _check_tokenizer(config: Config, problems: Problems) -> None:
    """What is wrong with a pretrained tokenizer, before any row is read."""
    source, text = text_source(config), config.data.text
    if config.data.kind != "text" or source is None:
        return
    try:
        tokenizer = PretrainedTokenizer(read_tokenizer(source), text.max_length)
    except ProblemsError as error:
        for line in error.problems:
            problems.add(line)
        return
    if not isinstance(config.data.columns.input, str) and not tokenizer.takes_pairs:
        added = tokenizer.tokenizer.num_special_tokens_to_add(True)
        problems.add(
            f"data.text.max_length: {text.max_length} has no room for the {added} special tokens of a pair; "
            "raise it"
            if added > text.max_length
            else f"data.columns.input: two columns, but the tokenizer of {source} puts nothing between two "
            "texts; use one that does, or one column"
        )


def _check_inputs(reading: Reading, config: Config, problems: Problems) -> Oddities:
    """The second pass without writing: only what is wrong, or odd."""
    reader = reader_of(config, reading, problems)
    seen = Oddities(config.data, reader.table)
    for split in reading.source.splits:
        filled, rows = has_no_empty_texts(config), 0
        for begin, count, values in decoded(reading, reader, split, problems, filled):
            rows += count
            seen.add(split, begin, values)
        if not rows and split == "unlabelled" and not problems:
            problems.add("data.unlabelled: no rows")
    return seen


def _open(config: Config, problems: Problems, limit: int | None = None) -> Reading:
    """The source with its columns checked. Raises InputError where it cannot be read at all."""
    source = open_source(config.data, problems)
    problems.raise_if_any()
    check_columns(source, config, problems)
    _check_tokenizer(config, problems)
    problems.raise_if_any()
    return Reading(source, min(config.data.shard_rows, BATCH_ROWS), limit)


def ignore(line: str) -> None:
    pass


def inspect_source(config: Config, warn: Callable[[str], None] = ignore) -> list[str]:
    """What is wrong with the source, one line each; reads at most 100,000 rows and writes nothing.

    What only all rows can tell (a class that is missing, too few rows) is judged where all were read.
    `warn` takes what is odd, but no reason to stop.
    """
    problems = Problems()
    try:
        reading = _open(config, problems, INSPECTED_ROWS)
        found = scan(reading, config, problems)
        made, dropped = None, None
        if found.whole:
            dropped = _dropped(reading, found, config)
            made = plan(found, config, problems, dropped)
        _check_inputs(reading, config, problems).tell(found, made, problems)
    except InputError as error:
        lines = problems.all()
        return lines + [line for line in error.problems if line not in lines]
    finally:
        for line in problems.warnings:
            warn(line)
    return problems.all()


def _dropped(reading: Reading, found: Scan, config: Config) -> np.ndarray | None:
    """(N,) Rows of train that are left out as copies; None where all stay. One more pass over the inputs."""
    if config.data.duplicates == "keep" or "train" not in found.labels:
        return None
    problems, inputs = Problems(), Copies()
    reader = reader_of(config, reading, problems)
    for split in ("train", "validation", "test"):
        for _, _, values in decoded(reading, reader, split, problems) if split in found.labels else ():
            inputs.add(split, values)
    return None if problems else to_drop(inputs, found.labels["train"])


def planned(config: Config, problems: Problems) -> tuple[Reading, Scan, Plan]:
    """The first pass over the source. Raises InputError with everything that is wrong."""
    reading = _open(config, problems)
    found = scan(reading, config, problems)
    made = plan(found, config, problems, _dropped(reading, found, config))
    if problems or made is None:
        _check_inputs(reading, config, problems).tell(found, made, problems)
        problems.raise_if_any()
    assert made is not None
    return reading, found, made
