"""What is predicted: classes, or values of one or several columns. One file a kind, in one registry."""

from __future__ import annotations

from ensemble_kd.targets import classes, values  # noqa: F401 - they register themselves
from ensemble_kd.targets.base import TARGETS, Target, register, target_in, target_of

__all__ = ["TARGETS", "Target", "register", "target_in", "target_of"]
