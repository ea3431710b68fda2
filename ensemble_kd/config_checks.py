"""What is wrong with single texts and numbers of a configuration, whatever block they stand in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ensemble_kd.config_yaml import one_line
from ensemble_kd.errors import ConfigError, Problem
from ensemble_kd.paths import expanded

LONGEST = 4096
"""Characters of a text: what a path may have, and more than any name needs."""
LARGEST = 2**53
"""Of whole numbers: what a float, and so JSON, still holds exactly."""
MOST, LEAST = 1e30, 1e-30
"""Of other numbers: in float32 squares of larger ones are infinite, and of smaller ones 0."""
FREE = {"architecture", "options", "training", "objective", "terms", "space", "values", "pieces"}
"""Blocks of fields that the configuration has no types for."""
PATHS = {
    "path",
    "train",
    "validation",
    "test",
    "unlabelled",
    "class_names",
    "hub_name",
    "source",
    "given",
    "masked_lm",
    "word_vectors",
    "scratch",
}
"""Fields that may name a file or folder."""


def single_problems(config: BaseModel) -> list[Problem]:
    """Texts that are empty, too long or no paths, and numbers too large for what computes with them."""
    problems = []
    for path, name, value in _plain(config, "", ""):
        if isinstance(value, str):
            problems += _text_problems(path, name, value)
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
            problems.append(Problem(path, f"{shown(value)} is too large a number; at most {LARGEST:,}"))
        elif isinstance(value, float) and abs(value) > MOST:
            problems.append(Problem(path, f"{value:g} is infinite in the arithmetic of the models; lower it"))
        elif isinstance(value, float) and 0 < abs(value) < LEAST:
            problems.append(Problem(path, f"{value:g} is 0 in the arithmetic of the models; raise it"))
    return problems


def read_otherwise(config: BaseModel, raw: Any) -> list[Problem]:
    """Where `true` or `false` was taken as the number 1 or 0; `raw` is what `config` was read from."""
    problems = []
    for path, _, value in _plain(config, "", ""):
        given = raw
        for part in path.split("."):
            if isinstance(given, dict):
                given = given.get(part)
            elif isinstance(given, list) and part.isdigit() and int(part) < len(given):
                given = given[int(part)]
        if isinstance(given, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            problems.append(Problem(path, f"input should be a number, got {str(given).lower()}"))
    return problems


def _plain(value: Any, path: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """Each text and number with its path, and the name of the field that it belongs to."""
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            inner = getattr(value, field)
            if not (field in FREE and isinstance(inner, dict | list)):
                yield from _plain(inner, f"{path}.{field}" if path else field, field)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _plain(inner, f"{path}.{key}", str(key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _plain(inner, f"{path}.{i}", name)
    else:
        yield path, name, value


def _text_problems(path: str, name: str, text: str) -> list[Problem]:
    if not text.strip():
        return [Problem(path, "empty; give a value, or leave it out")]
    if "\0" in text:
        return [Problem(path, f"has a NUL character, got {shown(text)}; take it out")]
    if len(text) > LONGEST:
        return [Problem(path, f"a text of {len(text):,} characters, at most {LONGEST:,}; shorten it")]
    if name in PATHS and text.startswith("~"):
        try:
            expanded(text, path)
        except ConfigError as error:
            return [Problem(path, line.removeprefix(f"{path}: ")) for line in error.problems]
    return []


def compute_problems(compute: Any) -> list[Problem]:
    """What Ray does not take of `compute`."""
    gpus = compute.gpus_per_worker
    if gpus == "auto" or gpus <= 1 or float(gpus).is_integer():
        return []
    message = (
        f"{gpus:g}, but a worker has a share of one GPU, or whole ones; set it to {math.floor(gpus)} or "
        f"{math.ceil(gpus)}"
    )
    return [Problem("compute.gpus_per_worker", message)]


def shown(value: Any, most: int = 120) -> str:
    """A value as a message quotes it: on one line, and cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {math.floor(math.log10(abs(value))) + 1:,} digits"
    try:
        text = one_line(repr(value), 4 * most)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits inside
        text = f"{type(value).__name__} ({type(error).__name__})"
    return text if len(text) <= most else f"{text[: most - 30]} ... {text[-20:]}"
