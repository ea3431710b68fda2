"""Methods by the names that configurations give them, and which module of the user's brought each."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ensemble_kd.errors import ConfigError

_loading: ContextVar[str | None] = ContextVar("loading", default=None)
"""The plug-in that is being imported."""
PACKAGE = __name__.partition(".")[0]
REGISTRIES: list[Registry] = []
LOADED: list[str] = []
"""Plug-ins that this process has imported, by the names of their modules."""


class RegistrationError(ConfigError):
    """What a plug-in registers cannot be registered."""


class Registry(dict[str, Any]):
    """Classes by name; one name is given once."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        """What its classes are called in messages: `network`, `objective`."""
        self.origins: dict[str, str] = {}
        """By name, the plug-in that brought the class; the package's own classes have no entry."""
        REGISTRIES.append(self)

    def enter(self, name: str, entry: Any) -> None:
        """Give a class its name. Raises RegistrationError where another class has it.

        The same class of a module that is imported once more takes the place of the old one.
        """
        known = self.get(name)
        if known is not None and _place(known) != _place(entry):
            raise RegistrationError(
                f"registers the {self.what} {name!r} ({_place(entry)}), and {_place(known)} has that name "
                "already; rename one of them"
            )
        self[name] = entry
        module = str(entry.__module__)
        if module.partition(".")[0] != PACKAGE:
            self.origins[name] = _loading.get() or module

    def added(self) -> list[Any]:
        """Classes that plug-ins brought, in the order of their registration."""
        return [entry for name, entry in self.items() if name in self.origins]


def _place(entry: Any) -> str:
    return f"{entry.__module__}.{entry.__qualname__}"


@contextmanager
def loading(plugin: str) -> Iterator[None]:
    """In here `plugin` is imported; should that fail, nothing of what it registered stays."""
    token = _loading.set(plugin)
    before = {id(registry): set(registry) for registry in REGISTRIES}
    try:
        yield
    except BaseException:
        for registry in REGISTRIES:
            for name, origin in list(registry.origins.items()):
                if origin == plugin and name not in before.get(id(registry), ()):
                    del registry[name], registry.origins[name]
        raise
    finally:
        _loading.reset(token)


def noted(plugins: Iterable[str]) -> list[dict[str, str]]:
    """Plug-ins as a manifest and a model folder note them: `module`, and the `sha256` of its file."""
    found = []
    for name in plugins:
        file = getattr(sys.modules.get(name), "__file__", None)
        content = Path(file).read_bytes() if file and Path(file).is_file() else b""
        found.append({"module": name, "sha256": hashlib.sha256(content).hexdigest()})
    return found
