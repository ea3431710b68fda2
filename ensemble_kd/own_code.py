"""Networks whose class stands in no module that others can import: in a notebook's cell or in a script.

`ensemble_kd.distill` takes the class itself. A configuration then names it by a module that is called after
the class's source, `main_1f2e3d4c:Net`, so that another source is another model with another fingerprint.
Processes of the run are given the class by value; the source lies as `main_1f2e3d4c.py` in the run folder
(`code/`) and in the model folder, for people to read and to import. Nothing is run because it lies there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MODULE = re.compile(r"main_[0-9a-f]{8}")
"""What the modules of such classes are called."""
FOLDER = "code"
"""Below a run folder: the sources."""


@dataclass(frozen=True)
class OwnCode:
    """A class or function that makes a network, and where it comes from."""

    made_by: Any
    source: str
    """A module that stands alone: the definition with all that it uses of the notebook or script."""


Known = dict[str, OwnCode]
"""By `module:name`."""

_held: Known = {}


def hold(known: Known) -> None:
    """Take over what this process, or another of its run, was given."""
    _held.update(known)


def held() -> Known:
    """What this process knows, for another of this run."""
    return dict(_held)


def find(name: Any) -> OwnCode | None:
    """What `module:name` stands for in this process; None where nobody gave it."""
    return _held.get(str(name))


def file_of(name: str) -> str:
    """`main_1f2e3d4c.py` of `main_1f2e3d4c:Net`."""
    return f"{name.partition(':')[0]}.py"


def used(settings: Any) -> Known:
    """Of settings as dicts and lists: what their models' callables stand for in this process."""
    return {name: own for name in _callables(settings) if (own := find(name)) is not None}


def _callables(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        if isinstance(name := settings.get("callable"), str):
            yield name
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for each in settings:
            yield from _callables(each)


def advice(module: str) -> str:
    """How to make a module importable that cannot be imported here."""
    if MODULE.fullmatch(module):
        return (
            f"it was a class of a notebook's cell or of a script; its source is {module}.py, in {FOLDER}/ of "
            f"the run folder and in the model folder: read it, copy it to where your own modules lie "
            "(PYTHONPATH), or run the notebook that has it"
        )
    return "the module must be on PYTHONPATH of every process"
