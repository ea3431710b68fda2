"""Which trials run next and what came of them, whether Ray Tune asks or this process.

What Tune calls a trial is here a *packet*: the configurations that one process trains side by side, often
one.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ensemble_kd.disk import DiskError
from ensemble_kd.train.trials import JUDGED, Entry, Trial

FINISHED = "FINISHED"
"""In a packet's place: there is no more; Ray Tune's own word for it."""


class Proposals:
    """Hands out trials in packets and takes their results; the one place where trials change state."""

    def __init__(
        self,
        waiting: list[Trial],
        propose: Callable[[], Trial | None],
        follow_up: Callable[[], list[Trial]],
        on_change: Callable[[Trial], None],
        on_epoch: Callable[[Trial, Entry], None],
        *,
        fuse: int,
        concurrent: int,
        left: Callable[[], int],
        too_many_failed: Callable[[], bool],
        max_failures: int,
        offset: float,
        rounds: int = 1,
        apart: bool = False,
        packets: int = 0,
    ) -> None:
        """`left` says how many trials are still to be proposed; in `rounds` packets for each process, so that
        a search learns in between. `apart` keeps baselines, which are never stopped, out of others' packets.
        `packets` is the last number that an earlier run gave.
        """
        self.waiting, self.propose, self.follow_up = deque(waiting), propose, follow_up
        self.on_change, self.on_epoch = on_change, on_epoch
        self.fuse, self.concurrent, self.left = fuse, concurrent, left
        self.too_many_failed, self.max_failures = too_many_failed, max_failures
        self.rounds, self.apart, self.packets = rounds, apart, packets
        self.offset, self.origin = offset, time.monotonic()
        self.running: dict[str, list[Trial]] = {}
        self.full: DiskError | None = None
        """What a trial said of a full disk, which ends the sweep: Tune may swallow what is raised."""
        self.reasons: dict[str, str] = {}
        """By packet: why its process failed last."""

    def clock(self) -> float:
        """Seconds since the sweep began, time in which it lay killed left out."""
        return self.offset + time.monotonic() - self.origin

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.too_many_failed():
            return FINISHED
        if len(self.running) >= self.concurrent:
            return None
        trials = self._take()
        if not trials and not self.running:
            self.waiting.extend(self.follow_up())
            trials = self._take()
        if not trials:
            return None if self.running else FINISHED
        self.running[trial_id] = trials
        if trials[0].packet is None:
            self.packets += 1
            for trial in trials:
                trial.packet = self.packets
        for trial in trials:
            if trial.began is None:
                trial.began = self.clock()
            trial.state = "running"
            self.on_change(trial)
        fuse = 1 if trials[0].alone else self.fuse
        work = {
            "trials": [[asdict(task) for task in trial.tasks] for trial in trials],
            "fuse": fuse,
            # Without a baseline there is no verdict: ASHA, which is given no number, lets it run.
            "kept": any(trial.kind == "hard" for trial in trials),
        }
        return {"work": json.dumps(work)}

    def _take(self) -> list[Trial]:
        """The next packet: at most `fuse` students, and no more than a fair share of what is left."""
        busy = {task.fingerprint for trials in self.running.values() for t in trials for task in t.tasks}

        def free() -> Trial | None:
            """The first that waits and has no student that another process trains."""
            clear = (t for t in self.waiting if not busy & {task.fingerprint for task in t.tasks})
            return next(clear, None)

        first = free()
        if first is not None and first.packet is not None and not first.alone:  # as before a kill
            again = [t for t in self.waiting if t.packet == first.packet and not t.alone]
            self.waiting = deque(t for t in self.waiting if t not in again)
            return again
        share = math.ceil((len(self.waiting) + self.left()) / self.concurrent / self.rounds)
        taken: list[Trial] = []
        while not taken or (self.fuse > 1 and len(taken) < share):
            trial = free()
            if trial is None:
                trial = self.propose()
                if trial is None:
                    break
                self.waiting.append(trial)
                if trial is not free():
                    break
            if taken and not self._fits(trial, taken):
                break
            self.waiting.remove(trial)
            taken.append(trial)
        return taken

    def _fits(self, trial: Trial, taken: list[Trial]) -> bool:
        size = sum(len(t.tasks) for t in [*taken, trial])
        if self.apart and trial.kind != taken[0].kind:
            return False
        return size <= self.fuse and trial.packet is None and not (trial.alone or taken[0].alone)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._raise_full(result)
        for trial, standing in zip(self.running[trial_id], json.loads(result["standings"]), strict=True):
            self._follow(trial, standing)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._raise_full(result or {})
        trials = self.running.pop(trial_id, [])
        if error and len(trials) > 1:  # which of them it was shows when each is alone
            for trial in reversed([trial for trial in trials if not trial.over]):
                trial.alone, trial.state, trial.packet = True, "waiting", None
                self.waiting.appendleft(trial)
            return
        standings: list[dict[str, Any]] = [{} for _ in trials]
        if result and "standings" in result and not error:
            standings = json.loads(result["standings"])
        for trial, standing in zip(trials, standings, strict=True):
            if error or not standing:
                reason = self.reasons.get(trial_id, "it died")
                died = f"its process failed {self.max_failures + 1} times: {reason}"
                standing = {"state": "failed", "reason": died, "entries": [], "fused": 1}
            self._follow(trial, standing)
            if not trial.over:
                trial.state, trial.reason = "stopped", f"behind the others after {trial.epochs} epochs"
                self._end(trial)

    def _follow(self, trial: Trial, standing: dict[str, Any]) -> None:
        if trial.over:
            return
        trial.fused = standing["fused"]
        for entry in standing["entries"]:
            if entry["epoch"] <= trial.epochs:  # told before its process died
                continue
            trial.history.append(entry)
            trial.epochs = int(entry["epoch"])
            trial.values = {key: entry[key] for key in JUDGED if key in entry}
            self.on_epoch(trial, entry)
        if standing["state"] != "running":
            trial.state, trial.reason = standing["state"], standing["reason"]
            trial.values = standing.get("values") or {}
            self._end(trial)

    def _end(self, trial: Trial) -> None:
        trial.ended = self.clock()
        self.on_change(trial)

    def _raise_full(self, result: dict[str, Any]) -> None:
        if "full" in result:
            self.full = DiskError(result["full"]).within("sweep")
            raise self.full
