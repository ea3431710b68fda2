"""`--set PATH=VALUE`, and defaults that depend on other fields, on a configuration as it was read."""

from __future__ import annotations

import copy
import re
from typing import Any

from ensemble_kd.config_checks import shown
from ensemble_kd.config_yaml import one_line, parse
from ensemble_kd.errors import ConfigError
from ensemble_kd.targets import TARGETS

DEEPEST = 20
"""Parts of a path in `--set`."""


def drop(raw: dict[str, Any], path: str) -> None:
    """Take the setting at `path` out of `raw`, so that the rest can be checked too."""
    *parents, last = path.split(".")
    here: Any = raw
    for part in parents:
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict) and isinstance(here.get(part), dict | list):
            here = here[part]
        else:
            return
    if isinstance(here, dict):
        here.pop(last, None)


def apply_override(raw: dict[str, Any], assignment: str) -> None:
    """Apply one `--set a.b=value`; the value is read as YAML.

    Raises ConfigError where there is no `=`, or where a step of the path is not a block.
    """
    path, separator, text = assignment.partition("=")
    if not separator or not path.strip():
        raise ConfigError(
            f"--set {one_line(assignment, 200)}: expected PATH=VALUE, for example student.temperature=8"
        )
    told = f"--set {one_line(path, 200)}"
    if path.count(".") >= DEEPEST:
        raise ConfigError(f"{told}: a path of {path.count('.') + 1:,} parts; none has more than {DEEPEST}")
    value = parse(text, told)
    *parents, last = path.strip().split(".")
    here: Any = raw
    for i, part in enumerate(parents):
        if isinstance(here, list):
            following = here[_place(here, part, told)]
        else:
            following = here.setdefault(part, {})
            if following is None:
                following = here[part] = {}
        if not isinstance(following, dict | list):
            block = one_line(".".join(parents[: i + 1]), 200)
            raise ConfigError(f"{told}: {block} is {shown(following)}, not a block")
        here = following
    here[_place(here, last, told) if isinstance(here, list) else last] = value


def _place(items: list[Any], part: str, told: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(items):
        raise ConfigError(f"{told}: {one_line(part, 60)} is none of the {len(items)} entries, counted from 0")
    return int(part)


def set_defaults_of_values(raw: dict[str, Any]) -> None:
    """What the kind of target has other defaults for, where it is not set."""
    data = raw.get("data")
    kind = TARGETS.get(str(data.get("target"))) if isinstance(data, dict) else None
    for name, usual in kind.defaults.items() if kind is not None else ():
        block = raw.setdefault(name, {}) if name == "student" else raw.get(name)
        if isinstance(block, dict):
            block |= {key: copy.deepcopy(value) for key, value in usual.items() if key not in block}


def block_of(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The block of that name, made where there is none. Raises ConfigError where it is something else."""
    if raw.get(name) is None:
        raw[name] = {}
    block = raw[name]
    if not isinstance(block, dict):
        raise ConfigError(f"{name}: expected a block of settings, got {shown(block)}")
    return block
