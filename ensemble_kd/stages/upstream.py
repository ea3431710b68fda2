"""What the stages before one left to it, for those that learn from soft targets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import Manifest
from ensemble_kd.stages.base import Done
from ensemble_kd.stages.context import StagePlan
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.stages.training_data import Store


@dataclass(frozen=True)
class Upstream:
    """Results of the stages before: the data, the teachers, their soft targets."""

    data: Path
    """Folder of the prepared data."""
    info: dict[str, Any]
    """`DataInfo.to_dict()` of the data."""
    store: Store
    teachers: Manifest
    combination: Store | None = None
    """Soft targets of the ensemble combined with its specialists, in a run that has these."""

    @classmethod
    def of(cls, done: Done) -> Upstream:
        """Raises NotDone where one of them is still to be made."""
        store, combination = done["soft-targets"], None
        if "combined-targets" in done:
            combined = done["combined-targets"]
            combination = combined.folder, combined.manifest
        return cls(
            done["data"].folder,
            done.info,
            (store.folder, store.manifest),
            done["teachers"].manifest,
            combination,
        )

    def sources(self, plan: StagePlan, basis: Basis, weights: list[float] | None) -> Sources:
        """What the tasks of students are made of in the stage of this plan."""
        combined = plan.inputs["combined_targets"] if self.combination else None
        data, store = plan.inputs["data"], plan.inputs["soft_targets"]
        return Sources(data, store, self.info["counts"], basis, weights, combined)
