"""The mirror of this process: the run folder in a store that it works on, if it is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_kd.mirror import Mirror

_attached: Mirror | None = None


def attach(spec: dict[str, Any] | Mirror | None) -> Mirror | None:
    """Make this process's run folder a mirror, by `Mirror.spec`; None for a folder that all nodes see.

    The second call with the same gives the same mirror.
    """
    global _attached
    if spec is None or isinstance(spec, Mirror):
        _attached = spec
    elif _attached is None or _attached.spec() != spec:
        _attached = Mirror(spec["uri"], Path(spec["root"]), spec["patience"])
    return _attached


def attached() -> Mirror | None:
    return _attached


def attached_spec() -> dict[str, Any] | None:
    return None if _attached is None else _attached.spec()


def ensure(path: Path) -> None:
    """Fetch a file or folder of the run that this node does not have, where the run is in a store."""
    if _attached is not None:
        _attached.ensure(path)


def forget(path: Path) -> None:
    """Remove a file or folder that is damaged from the store, too, where the run is in one."""
    if _attached is not None and path.absolute().is_relative_to(_attached.root):
        _attached.remove(path.absolute())
