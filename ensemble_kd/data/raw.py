"""Asking a user's model about raw inputs: a batch goes in, logits or probabilities come out, checked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ensemble_kd.data.answers import distributions, values_problem
from ensemble_kd.errors import ConfigError, InputError

Answer = Callable[[Any], Any]
"""Raw inputs of B rows to (B, C) numbers: numpy, torch, lists or a DataFrame."""


def load_callable(name: str, where: str) -> Answer:
    """What `module:callable` names. Raises ConfigError, starting with the field `where`."""
    module_name, attribute = name.split(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigError(
            f"{where}: {name!r} cannot be imported ({error}); the module must be on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{where}: {name!r}: {error}") from error
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"{where}: {name!r} cannot be imported: {type(error).__name__}: {error}; mend the module"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where}: {name!r} is {type(found).__name__}, not callable; name a function")
    answer: Answer = found
    return answer


def ask(teacher: Answer, inputs: Any, num_classes: int, values: str, where: str, rows: str) -> np.ndarray:
    """(B, C) float32, what `teacher` answers: `logits` or `probabilities`, as `values` says; of labels that
    are values (B, 1), which it may give as (B,).

    `where` is the field that names it, `rows` says which rows these are.
    Raises InputError where it raises, and where the answer is anything else.
    """
    try:
        answer = teacher(inputs)
    except Exception as error:  # the user's code may raise anything
        text = str(error).strip() or "no message"
        raise InputError(f"{where}: raised {type(error).__name__} on {rows}: {text}") from error
    numbers = _numbers(answer, where, rows)
    if num_classes == 1 and numbers.ndim == 1:  # values
        numbers = numbers[:, None]
    wanted = (len(inputs), num_classes)
    if numbers.shape != wanted:
        raise InputError(
            f"{where}: returned shape {numbers.shape} for {rows}, expected {wanted}: one row per input and "
            "one number per class, in class order"
        )
    if (row := _first(~np.isfinite(numbers).all(1))) is not None:
        raise InputError(
            f"{where}: a number that is not finite in row {row} of {rows}: {_shown(numbers[row])}; return "
            "finite ones"
        )
    if num_classes > 1 and (problem := values_problem(numbers, values, "teachers.values")) is not None:
        raise InputError(f"{where}: returned {problem} ({rows})")
    if values == "probabilities" and (row := _first(~distributions(numbers))) is not None:
        raise InputError(
            f"{where}: row {row} of {rows} is no distribution (sum {numbers[row].sum():.4f}, least "
            f"{numbers[row].min():.4f}): {_shown(numbers[row])}; set teachers.values=logits if these are "
            "logits"
        )
    return numbers


def _numbers(answer: Any, where: str, rows: str) -> np.ndarray:
    if isinstance(answer, torch.Tensor):
        answer = answer.detach().float().cpu().numpy()
    elif hasattr(answer, "to_numpy"):  # a DataFrame
        answer = answer.to_numpy()
    try:
        with np.errstate(over="ignore"):
            return np.asarray(answer, np.float32)
    except (TypeError, ValueError) as error:
        hint = ", its .logits" if hasattr(answer, "logits") else ""
        raise InputError(
            f"{where}: returned {type(answer).__name__} for {rows}, which are no numbers ({error}); return "
            f"(B, C) of them{hint}: numpy, torch, lists or a DataFrame"
        ) from error


def _first(mask: np.ndarray) -> int | None:
    return int(np.argmax(mask)) if mask.any() else None


def _shown(row: np.ndarray) -> str:
    more = ", ..." if len(row) > 6 else ""
    return f"[{', '.join(f'{number:.4g}' for number in row[:6])}{more}]"


def as_frame(inputs: Any, columns: str | list[str]) -> Any:
    """Raw inputs as a DataFrame with the input column(s) under their names, as a pyfunc model takes them."""
    import pandas as pd

    names = [columns] if isinstance(columns, str) else list(columns)
    if isinstance(inputs, np.ndarray) and inputs.ndim == 2 and inputs.shape[1] == len(names):
        return pd.DataFrame(inputs, columns=names)
    if len(names) == 1:
        return pd.DataFrame({names[0]: list(inputs)})
    return pd.DataFrame(list(inputs), columns=names)
