"""Reading a configuration: one YAML file, `--set` overrides, and all problems at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ensemble_kd.config.between_blocks import cross_field_problems
from ensemble_kd.config.overrides import apply_override, block_of, drop, set_defaults_of_values
from ensemble_kd.config.plugins import load_all
from ensemble_kd.config.readable import SHOWN_PROBLEMS, UNTYPED, readable
from ensemble_kd.config.recipes import file_of, read_space
from ensemble_kd.config.run import Config
from ensemble_kd.config_checks import read_otherwise, shown
from ensemble_kd.config_yaml import nothing_unforeseen, one_line, parse, read, with_booleans
from ensemble_kd.errors import ConfigError, Problem


def _some(problems: list[str]) -> list[str]:
    """Each in one paragraph, and no more than a reader takes in."""
    return [one_line(problem, 1000) for problem in problems[:SHOWN_PROBLEMS]]


def validate(raw: dict[str, Any]) -> Config:
    """A checked configuration from plain data.

    Raises ConfigError with every problem found: wrong values, unknown keys, and what does not fit together.
    """
    problems: list[Problem] = []
    raw = json.loads(json.dumps(raw, default=str))  # a copy; YAML dates and the like become strings
    load_all(raw.get("plugins") if isinstance(raw, dict) else None)
    set_defaults_of_values(raw)
    config = None
    for _ in range(5):  # each round drops what is wrong, so that cross-field problems come out as well
        try:
            config = Config.model_validate(raw)
            break
        except ValidationError as error:
            if (more := error.error_count() - SHOWN_PROBLEMS) > 0:  # not a configuration with a mistake
                lines = [*map(str, readable(error, Config)), *map(str, problems)]
                raise ConfigError(_some(lines) + [f"... and {more:,} more problems"]) from error
            told = {problem.path for problem in problems}  # what was dropped is missing now
            new = [problem for problem in readable(error, Config) if problem.path not in told]
            problems += new
            before = json.dumps(raw)
            for problem in new:
                drop(raw, problem.path)
            if json.dumps(raw) == before:
                break
    if config is not None:
        problems += read_otherwise(config, raw)
    lines = [str(problem) for problem in problems]
    if config is not None:
        missed = tuple(f"{path}:" for problem in problems for path in _around(problem.path))
        lines += [line for line in cross_field_problems(config) if not line.startswith(missed)]
    if lines or config is None:
        raise ConfigError(_some(lines))
    return config


def _around(path: str) -> list[str]:
    """A field and the blocks that it lies in: what is said of these follows from what was dropped."""
    parts = path.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts) + 1)]


def load_config(
    path: str | Path,
    overrides: list[str] | None = None,
    sweep: bool = False,
    search_space: str | None = None,
    export: list[str] | None = None,
) -> Config:
    """Read a YAML file (or a shipped recipe by its name), apply `--set` overrides, check everything.

    With `sweep` a file without a `sweep` block gets the default one. `search_space`, the name or path of one,
    takes the place of the file's. `export` does as `sweep` for an `export` block, and
    gives it these forms if there are any.

    Raises ConfigError, with all problems, each starting with the path of its field.
    """
    with nothing_unforeseen(str(path)):
        raw = read(file_of(path))
        if not isinstance(raw, dict):
            got = "nothing" if raw is None else shown(raw)
            raise ConfigError(f"{one_line(str(path), 300)}: expected a block of settings, got {got}")
        if search_space is not None:
            block_of(raw, "sweep")["space"] = search_space
        read_space(raw)  # first, so that an override may change a part of it
        for assignment in overrides or []:
            apply_override(raw, assignment)
        read_space(raw)
        if raw.get("sweep") is None and sweep:
            raw["sweep"] = {}
        if export is not None:
            block_of(raw, "export").update({"forms": export} if export else {})
        return validate(with_booleans(raw, UNTYPED))


def read_config(text: str, name: str) -> Config:
    """A configuration from the text of a YAML file; `name` is what messages call it. Raises ConfigError."""
    with nothing_unforeseen(name):
        raw = parse(text, name)
        read_space(raw)
        return validate(with_booleans(raw, UNTYPED))


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file, for editors; what plug-ins have registered is part of it."""
    return Config.model_json_schema()
