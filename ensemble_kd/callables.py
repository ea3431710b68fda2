"""What `module:callable` of a configuration names: imported, and asked whether it takes what it will get."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from ensemble_kd import own_code
from ensemble_kd.config_yaml import one_line
from ensemble_kd.errors import ConfigError


def load(name: str, where: str) -> Any:
    """The callable. Raises ConfigError, starting with the field `where`, where there is none of that name.

    The module is the user's: whatever its import raises is told, `SystemExit` included.
    """
    if (own := own_code.find(name)) is not None:
        return own.made_by
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where}: {import_problem(name, module_name, error)}") from error
    found = getattr(module, attribute, None)
    if found is None:
        names = [key for key in vars(module) if not key.startswith("_")]
        close = difflib.get_close_matches(attribute, names, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"look into {getattr(module, '__file__', module_name)}"
        )
        raise ConfigError(f"{where}: the module {module_name!r} has no {attribute!r}; {hint}")
    if not callable(found):
        raise ConfigError(
            f"{where}: {name!r} is {type(found).__name__}, not callable; name a function or class"
        )
    return found


def import_problem(name: str, module: str, error: BaseException) -> str:
    """What the import of `module`, which the user calls `name`, says went wrong, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        absent = error.name or module
        missing = f"there is no module {absent!r}"
        if absent != module and not module.startswith(f"{absent}."):
            missing = f"it imports {absent!r}, which is not installed"
        return f"{name!r} cannot be imported: {missing}; {own_code.advice(absent)}"
    return one_line(f"{name!r} cannot be imported: {type(error).__name__}: {error}; mend the module")


def model_problems(name: str, options: dict[str, Any], where: str) -> list[str]:
    """What is wrong with a custom model's callable, before it is called."""
    try:
        found = load(name, f"{where}.callable")
    except ConfigError as error:
        return error.problems
    given = {"num_classes": 2, "input_shape": (1,), **options}
    try:
        inspect.signature(found).bind(**given)
    except TypeError as error:
        return [
            f"{where}.callable: {name!r} is called with {', '.join(given)}, and does not take that: {error}; "
            f"give it these parameters, or change {where}.options"
        ]
    except ValueError:  # of a builtin, which has no signature
        return []
    return []
