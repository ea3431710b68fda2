"""A stage: on how many validation rows teachers give different answers, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ensemble_kd.artifacts import Manifest, write_json
from ensemble_kd.config import Config
from ensemble_kd.config.methods import EXTRA_STAGES, StageConfig
from ensemble_kd.stages.base import Done, Stage
from ensemble_kd.stages.context import Context, StagePlan


@EXTRA_STAGES.register
class DisagreementConfig(StageConfig):
    """Count the rows on which teachers disagree."""

    name: Literal["disagreement"] = "disagreement"
    """`disagreement`"""
    after: ClassVar[str] = "teachers"
    digits: int = Field(4, ge=1, le=15)
    """Digits behind the point of a share."""

    @classmethod
    def stage(cls) -> Stage:
        return Disagreement()


class Disagreement(Stage):
    name = "disagreement"

    def plan(self, config: Config, run: Path, done: Done) -> StagePlan:
        settings = config.extra_stage(self.name).model_dump(mode="json")
        return StagePlan.of(run, self.name, settings, {"teachers": done["teachers"].fingerprint})

    def run(self, context: Context, plan: StagePlan, done: Done) -> Manifest:
        from ensemble_kd.stages.members import members_folder
        from ensemble_kd.train.finishing import load_logits

        folder = members_folder(context.folder, "teachers")
        members = done["teachers"].summary["members"]
        answers = [load_logits(folder / member["fingerprint"], "validation").argmax(1) for member in members]
        shares = [
            [round(float((a != b).float().mean()), plan.config["digits"]) for b in answers] for a in answers
        ]
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(plan.folder / "disagreement.json", shares)
        largest = max(max(row) for row in shares)
        summary = {"largest": largest}
        return plan.finish(["disagreement.json"], summary)

    def describe(self, summary: dict[str, Any], size: int) -> str:
        return f"two teachers differ on up to {summary['largest']:.1%} of the validation rows"
