"""Errors in scikit-learn's manner: what cannot be used is a ValueError that says what, got, and fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ensemble_kd.errors import ConfigError, InputError, ProblemsError


class ConfigValueError(ConfigError, ValueError):
    """The settings are wrong; `problems` has one line each."""


class InputValueError(InputError, ValueError):
    """The data, the teachers or the model folder cannot be used; `problems` has one line each."""


OPTION = re.compile(r"--(label|input|budget|source|address) (?!says)('[^']*'|[\w./:-]*\w)")
SET = re.compile(r"'?--set '?([\w.]+)=((?:\[[^\]]*\]|\{[^}]*\}|[^\s;,)'])+)'?")
SETTING = re.compile(
    r"(?<![\w.'-])((?:data|teachers|soft_targets|clusters|specialists|student|compute|tracking|export)(?:\.\w+)+)="
    r"(\[[^\]]*\]|\{[^}]*\}|[\w./:-]*\w)"
)
ANSWERS = re.compile(r"^teachers\.predictions: .+?/input/answers/\w+\.parquet: teacher-(\d+)")
"""What teachers in memory said is written to files, too."""
COLUMN = re.compile(r"^data\.columns\.(input|label): no column (.+) in (\w+)\.parquet; it has (.+)$")
"""Of the files that rows in memory are written to."""
NAMES = {"data": "train", "run-dir": "output", "require-gap": "require_gap", "trust": "trust"}


def in_python(line: str) -> str:
    """A message of the command line with the names that Python's functions have for the same things."""
    line = COLUMN.sub(r"\3: no column \2; it has \4; give it the columns of train", line)
    line = SET.sub(lambda m: f"{m[1].replace('.', '__')}={_literal(m[2])}", line)
    line = SETTING.sub(lambda m: f"{m[1].replace('.', '__')}={_literal(m[2])}", line)
    line = ANSWERS.sub(lambda m: f"teachers[{int(m[1])}]", line)
    line = OPTION.sub(lambda m: f"{m[1]}={_literal(m[2])}", line)
    line = re.sub(r"--trust ([\w.]+)", r"trust=['\1']", line)
    line = re.sub(r"ensemble-kd (run )?train=PATH", "distill(PATH)", line)
    return re.sub(r"--([a-z][a-z-]*[a-z])", lambda m: NAMES.get(m[1], m[1].replace("-", "_")), line)


def _literal(text: str) -> str:
    """As Python writes it: numbers, lists and blocks as they are, words in quotes."""
    text = text.strip("'\"")
    known = {"true": "True", "false": "False", "null": "None", "none": "'none'"}
    if text in known:
        return known[text]
    return text if re.fullmatch(r"[+-]?\d[\d.e+-]*|\[.*\]|\{.*\}|\.\.\.", text) else repr(text)


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Problems of the user's settings and input leave as ValueErrors in Python's words."""
    try:
        yield
    except (ConfigValueError, InputValueError):
        raise
    except ProblemsError as error:
        kinds = {ConfigError: ConfigValueError, InputError: InputValueError}
        made = next((kind for base, kind in kinds.items() if isinstance(error, base)), None)
        if made is None:  # a form that could not be exported: no mistake of the call
            raise
        raise made([in_python(line) for line in error.problems]) from None
