"""What may be given as `student`, as settings of the block of that name."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from ensemble_kd.api.own_models import callable_name
from ensemble_kd.api.problems import ConfigValueError
from ensemble_kd.api.teachers import NETWORKS
from ensemble_kd.config.base import CALLABLE

TAKEN = (
    f"a network's name ({', '.join(NETWORKS)}), a dict of settings, 'module:callable', or a torch module's "
    "class"
)


def student_settings(student: Any) -> dict[str, Any]:
    """The block `student`. Raises ConfigValueError for a module, or a class that workers could not import.

    A class is called with num_classes and input_shape, in processes that import it by its module's name.
    """
    if isinstance(student, str):
        if student in NETWORKS:
            return {"model": {"name": student}}
        if re.fullmatch(CALLABLE, student):
            return {"model": {"name": "custom", "callable": student}}
        raise ConfigValueError(f"student: {student!r} is no network; give {TAKEN}")
    if isinstance(student, Mapping):
        return {"model": dict(student)} if "name" in student else dict(student)
    if isinstance(student, type) or callable(student) and not _is_module(student):
        return {"model": {"name": "custom", "callable": callable_name(student, "student")}}
    if _is_module(student):
        raise ConfigValueError(
            f"student: a {type(student).__name__} that is made already; each student of a run starts from "
            "its own "
            f"seed, so give what makes one: {TAKEN}"
        )
    raise ConfigValueError(f"student: {type(student).__name__}; give {TAKEN}")


def _is_module(student: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(student, torch.nn.Module)
