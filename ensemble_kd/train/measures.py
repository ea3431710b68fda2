"""Measures by their former address; they live in `ensemble_kd.targets`."""

from __future__ import annotations

from typing import Any

from ensemble_kd.targets.base import Column as Column
from ensemble_kd.targets.base import Measures as Measures
from ensemble_kd.targets.base import columns_of as columns_of
from ensemble_kd.targets.base import target_of


def measures_of(target: Any) -> Measures:
    """`target` is that of a DataInfo, or of a report: None for classes."""
    return target_of(target).measures
