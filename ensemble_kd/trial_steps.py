"""A packet of trials at work: an epoch or several at each step, in a process of Ray Tune's or in this one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensemble_kd.disk import DiskError, told
from ensemble_kd.member_loop import LoadData
from ensemble_kd.mirror import Mirror
from ensemble_kd.proposals import Proposals
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.trials import Entry, Epochs, Packet, Trial

OBJECTIVE = "objective"
"""What is maximised: the metric, or its negative."""
SECONDS_PER_REPORT = 0.5
"""Epochs are told together where several fit into this."""


@dataclass(frozen=True)
class TrialWork:
    """Trials to be trained, by Ray Tune or in this process."""

    proposals: Callable[[int], Proposals]
    """Makes the proposals, given how many students are stacked at most."""
    folder: Path
    members: Path
    load_data: LoadData
    arrays: Callable[[], dict[str, Any]]
    example: Trial
    metric: str
    sign: int
    fuse: int | str
    """Students that are stacked at most, or `auto`: measured, up to `fuse_limit`."""
    fuse_limit: int
    replicas: int
    epochs: int
    asha: tuple[int, float] | None
    """Grace epochs and reduction factor; None for no early end."""
    warn: Callable[[str], None]


class TrialSteps:
    """One packet: the students of some trials."""

    def __init__(
        self,
        work: str,
        shared: dict[str, Any],
        data: TrainingData | None,
        *,
        device: torch.device | None = None,
        mirror: Mirror | None = None,
        start: Callable[[MemberTask], Epochs] | None = None,
    ) -> None:
        """`work` is a packet of the proposals'; `shared` has `members`, `folder`, `metric`, `sign` and
        `rungs`. Without `data`, `start` trains a student somewhere else."""
        found = json.loads(work)
        self.shared, self.kept, self.mirror = shared, found["kept"], mirror
        self.packet: Packet | None = None
        self.full: DiskError | None = None
        trials = [[MemberTask(**fields) for fields in tasks] for tasks in found["trials"]]
        names = [task.name for tasks in trials for task in tasks]
        self.name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        members, folder = Path(shared["members"]), Path(shared["folder"])
        try:
            with told(self.name, members.parents[1]):
                self.written = [folder, *(task.folder(members) for tasks in trials for task in tasks)]
                for path in self.written if mirror is not None else []:
                    assert mirror is not None
                    mirror.pull(path)
                options: dict[str, Any] = {"start": start}
                if data is not None:
                    options = {"fuse": found["fuse"], "folder": folder, "device": device}
                self.packet = Packet(trials, data, members, **options)  # type: ignore[arg-type]
        except DiskError as error:  # told with the first step: Tune would start this process again
            self.full = error

    def step(self) -> dict[str, Any]:
        """One epoch or, since a report costs Tune tenths of a second, as many as fit into one; never past a
        rung, where ASHA compares. A full disk is told in the result's place, and ends the sweep."""
        try:
            if self.full is not None:
                raise self.full
            with told(self.name, Path(self.shared["members"]).parents[1]):
                return self._epochs()
        except DiskError as error:
            return {"full": str(error), OBJECTIVE: math.nan, "epoch": 0}

    def _epochs(self) -> dict[str, Any]:
        assert self.packet is not None
        until = time.monotonic() + SECONDS_PER_REPORT
        kept: list[list[Entry]] = []
        while True:
            standings = self.packet.step()
            kept = kept or [[] for _ in standings]
            for entries, standing in zip(kept, standings, strict=True):
                entries += [standing["entry"]] if standing["entry"] else []
            epoch = max(standing["epoch"] for standing in standings)
            if self.packet.done or epoch in self.shared["rungs"] or time.monotonic() > until:
                break
        for entries, standing in zip(kept, standings, strict=True):
            standing["entries"] = entries
        if self.mirror is not None:
            for path in self.written:
                self.mirror.push_soon(path)
            if self.packet.done:
                self.mirror.flush()
        metric, sign = self.shared["metric"], self.shared["sign"]
        values = [
            (s.get("values") or s["entry"] or {}).get(metric) for s in standings if s["state"] != "failed"
        ]
        known = [sign * value for value in values if value is not None]
        if self.kept:
            known = []
        return {
            "standings": json.dumps(standings),
            "epoch": epoch,
            OBJECTIVE: max(known, default=math.nan),
            "done": self.packet.done,
        }

    def close(self) -> None:
        """Let go of what is not finished."""
        if self.packet is not None and self.full is None:
            self.packet.close()


def rungs(asha: tuple[int, float] | None, epochs: int) -> list[int]:
    """The epochs at which ASHA decides: the first at or after each of its milestones."""
    found = []
    if asha is not None:
        milestone, factor = float(asha[0]), asha[1]
        while milestone <= epochs:
            found.append(math.ceil(milestone))
            milestone *= factor
    return found


def last_line(text: str) -> str:
    """What an error of Ray's comes down to; the rest is advice that fills a screen."""
    line = next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "unknown")
    return line.split(". ")[0][:300]
