"""From what Python gives (a path, a recipe's name, a dict) and keyword arguments to a configuration."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_kd.api.own_models import callable_name, is_maker
from ensemble_kd.api.problems import ConfigValueError
from ensemble_kd.config import Config, apply_override, load_config, validate
from ensemble_kd.config.recipes import read_space
from ensemble_kd.config_yaml import nothing_unforeseen

Settings = str | Path | Mapping[str, Any] | Config
"""A YAML file, the name of a shipped recipe, the same as a dict, or a configuration that is made already."""


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """`student__temperature=2`, `student={"temperature": 2}`, `**{"student.temperature": 2}` as for --set.

    A dict sets the fields that it names and leaves the others of its block; one with a `name`, which is a
    model, replaces what was there. Raises ConfigValueError for what JSON does not have.
    """
    found: list[str] = []
    for key, value in overrides.items():
        found += _flat(key.replace("__", "."), value)
    return found


def _flat(path: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value and "name" not in value and all(map(_is_field, value)):
        return [line for key, each in value.items() for line in _flat(f"{path}.{key}", each)]
    return [f"{path}={_json(path, value)}"]


def _is_field(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier()


def _json(path: str, value: Any) -> str:
    try:
        return json.dumps(_with_names(path, value), default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigValueError(
            f"{path}: {type(value).__name__} is no setting ({error}); give numbers, texts, lists or dicts"
        ) from None


def _with_names(path: str, value: Any) -> Any:
    """A class or function that is given as a model's `callable` becomes its name."""
    if isinstance(value, Mapping):
        return {
            key: callable_name(each, f"{path}.{key}")
            if key == "callable" and is_maker(each)
            else _with_names(f"{path}.{key}", each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_names(f"{path}.{i}", each) for i, each in enumerate(value)]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be written")


def check_names(overrides: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Raises ConfigValueError for a keyword that is no setting, and nearly one of the function's own."""
    own = [*inspect.signature(function).parameters][:-1]
    for name in overrides:
        if re.split(r"__|\.", name)[0] in Config.model_fields:
            continue
        close = difflib.get_close_matches(name, own, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(own)}"
        raise ConfigValueError(
            f"{name}: no argument of {function.__name__}, and no block of settings; {hint}"
        )


def configuration(config: Settings, overrides: Mapping[str, Any]) -> Config:
    """The checked configuration. Raises ConfigError with all problems, each with the path of its field."""
    said = assignments(overrides)
    if isinstance(config, str | Path):
        return load_config(config, said)
    if isinstance(config, Config):
        raw: Any = config.model_dump(mode="json")
    elif isinstance(config, Mapping):
        raw = json.loads(_json("config", deepcopy(dict(config))))
    else:
        raise ConfigValueError(
            f"config: {type(config).__name__}; give a YAML file, the name of a recipe, or a dict of settings"
        )
    with nothing_unforeseen("config"):
        read_space(raw)
        for line in said:
            apply_override(raw, line)
        read_space(raw)
        return validate(raw)
