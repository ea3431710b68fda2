"""Modules of the user's that bring methods: networks, objectives and others, each from one file.

A configuration lists them under `plugins`, and installed packages name theirs as entry points of the group
`ensemble_kd.plugins`. They are imported before anything else of a configuration is read, in every process of
the run. A model folder has none imported that the user does not trust (`model_folder.check_trust`).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ensemble_kd.callables import import_problem
from ensemble_kd.config.base import MODULE
from ensemble_kd.config.families import rebuild
from ensemble_kd.config_yaml import one_line
from ensemble_kd.errors import ConfigError
from ensemble_kd.registry import LOADED, RegistrationError, loading

GROUP = "ensemble_kd.plugins"
"""Of the entry points."""


def load(names: Sequence[str], where: str = "plugins") -> None:
    """Import the plug-ins of these names, and have the configuration know what they register.

    `where` is what the list is called in messages. Raises ConfigError with what is wrong with each: a module
    that is not there, or fails on import, or registers a name that another has.
    """
    problems = []
    for i, name in enumerate(names):
        problems += _problems_of(name, f"{where}.{i}")
    rebuild()
    if problems:
        raise ConfigError(problems)


def load_all(listed: Any) -> None:
    """The plug-ins of installed packages, and those that a configuration lists: `plugins` as it was read,
    whose types are looked at later. Raises ConfigError with all problems."""
    problems = []
    for point in _installed():
        path = f"entry point {point.name!r} of {GROUP}"
        problems += _problems_of(point.value, f"{path}{_of(point)}")
    names = [listed] if isinstance(listed, str) else listed
    for i, name in enumerate(names if isinstance(names, list) else []):
        if isinstance(name, str) and re.match(MODULE, name):
            problems += _problems_of(name, f"plugins.{i}")
    rebuild()
    if problems:  # what else is wrong can be told only with them
        raise ConfigError(problems)


@cache
def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _of(point: EntryPoint) -> str:
    return f" (package {point.dist.name})" if point.dist is not None else ""


def _problems_of(name: str, where: str) -> list[str]:
    if name in LOADED and name in sys.modules:
        return []
    try:
        with loading(name):
            importlib.import_module(name)
    except RegistrationError as error:
        sys.modules.pop(name, None)
        return [f"{where}: {name!r} {line}" for line in error.problems]
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        return [one_line(f"{where}: {import_problem(name, name, error)}", 1000)]
    if name not in LOADED:
        LOADED.append(name)
    return []


def loaded() -> list[str]:
    """What this process has imported, for another of this run."""
    return list(LOADED)


def provide(names: Iterable[str]) -> None:
    """Import what another process of this run has. Raises ConfigError where that is not possible here."""
    load([name for name in names if name not in LOADED])
