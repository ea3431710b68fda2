"""The shipped student trained anew, with the validation rows among its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ensemble_kd.data.store import StoreLayout
from ensemble_kd.errors import TrainingError
from ensemble_kd.stages.context import Context
from ensemble_kd.stages.members import member_summary, members_folder, train_and_follow
from ensemble_kd.stages.shards import encode
from ensemble_kd.stages.training_data import arrays_and_loader
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.task import MemberTask


def _running(online: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same teachers at work: of validation rows the store keeps nothing."""
    return None if online is None else {k: v for k, v in online.items() if k != "stored"}


def refit(
    context: Context, wanted: list[MemberTask], seed: int, best_epoch: int, above: Upstream
) -> dict[str, Any]:
    """The shipped student anew, with the validation rows among its own; returns its entry.

    Nothing is left to judge it by: early stopping becomes the number of epochs that was best before. The
    teachers' logits on validation rows are those that their training ended with.
    """
    chosen = [task for task in wanted if task.role == "distilled"][seed]
    counts, (_, receipt) = above.info["counts"], above.store
    training = {**chosen.training}
    if training["early_stopping"] is not None:
        training |= {"early_stopping": None, "epochs": best_epoch}
    task = replace(
        chosen,
        name=f"refit-seed-{seed}",
        role="refit",
        training=training,
        rows={**chosen.rows, "validation": True},
        online=_running(chosen.online),
        examples_per_epoch=counts["transfer"] + counts["validation"],
    )
    teachers = members_folder(context.folder, "teachers")
    names = sorted(name for name in receipt.inputs if name.startswith("teacher-"))
    layout = StoreLayout(**receipt.summary["layout"])
    plain, load, streams = arrays_and_loader(
        above.data, above.info, context.config.compute.memory_budget, above.store, run=context.folder
    )
    assert not streams, "checked before anything is trained"

    def arrays() -> dict[str, Any]:
        shared = plain()
        folders = [teachers / receipt.inputs[name] for name in names]
        logits = torch.stack([load_logits(folder, "validation") for folder in folders], 1)  # (N, M, C)
        more = {f"ensemble/{name}": column for name, column in encode(logits[:, None], layout)[0].items()}
        more |= {f"transfer/{name}": shared[f"validation/{name}"] for name in ("inputs", "labels")}
        return {k: np.concatenate([v, more[k]]) if k in more else v for k, v in shared.items()}

    replicas = context.config.student.replicas_per_member
    if not train_and_follow(context, "student", [task], load, arrays, replicas):
        raise TrainingError(f"student: {task.name}: the loss became NaN or infinite; set sweep.refit=none")
    return member_summary(task, members_folder(context.folder, "student"))
