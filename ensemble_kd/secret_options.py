"""Options of custom models that are secrets: used in this run's processes, and written nowhere.

Folders hold `***` in their place. A process that read the configuration, or was told by one that did, puts
the value back where a network is built; any other cannot, and says so. What a model needs in order to be
built elsewhere is named by the user: `public_options: [key]` beside `options`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ensemble_kd.errors import ConfigError
from ensemble_kd.redact import MASK, mask_everywhere, redacted_options

Held = list[tuple[str, dict[str, Any], tuple[str, ...]]]
"""Callable, options as they are, names of those that are public."""

_held: Held = []


def remember(callable_: str, options: dict[str, Any], public: Collection[str]) -> None:
    """Keep the options of a configuration, if they have a secret among them; none of it is printed then."""
    if redacted_options(options, public) != options and not any(map(_is_masked, options.values())):
        hold([(callable_, options, tuple(public))])


def held() -> Held:
    """What this process knows, for another of this run."""
    return list(_held)


def hold(known: Held) -> None:
    """What another process of this run knows."""
    for entry in known:
        _, options, public = entry
        if entry not in _held:
            _held.append(entry)
            mask_everywhere({k: v for k, v in options.items() if k not in public})


def revealed(callable_: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options as a custom model is called with. Raises ConfigError for a secret that nobody here knows."""
    hidden = [name for name, value in options.items() if _is_masked(value)]
    if not hidden:
        return options
    found: list[dict[str, Any]] = []
    for known, whole, _ in _held:
        same = known == callable_ and whole.keys() == options.keys()
        if same and all(whole[k] == v or k in hidden for k, v in options.items()) and whole not in found:
            found.append(whole)
    if len(found) == 1:
        return found[0]
    names = ", ".join(hidden[:5]) + (f" and {len(hidden) - 5} more" if len(hidden) > 5 else "")
    if found:
        raise ConfigError(
            f"custom model {callable_!r}: several models of this run differ in the secret options {names} "
            "alone, and folders hold none; give them another option that tells them apart"
        )
    raise ConfigError(
        f"custom model {callable_!r}: options {names} are secrets, which are written to no folder, so that "
        "the model cannot be built from it; name what is none in the model's public_options and run again, "
        "or let the callable read it from the environment"
    )


def _is_masked(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_masked(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_is_masked(inner) for inner in value)
    return isinstance(value, str) and MASK in value
