"""The record of a sweep's trials, in the driver: one file for each, so that a kill costs none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ensemble_kd import space as spaces
from ensemble_kd import space_problems
from ensemble_kd.artifacts import Manifest, canonical, fingerprint, read_json, write_json
from ensemble_kd.config import StudentConfig, SweepConfig
from ensemble_kd.errors import ArtifactError, ConfigError, TrainingError
from ensemble_kd.search import Search, importances
from ensemble_kd.stages.context import Context
from ensemble_kd.stages.members import all_intact, members_folder, prefixed
from ensemble_kd.stages.sweep_verdict import sweep_verdict
from ensemble_kd.train.blocks import mix
from ensemble_kd.train.statistics import mean_and_error
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.trials import Entry, Trial, mean_history, values_of

STREAM_OF_SWEEPS = 505
TRIES = 100
"""Proposals seen before, one after another, until the space counts as exhausted."""
NOT_FINITE = "loss became"
"""In the reason of a failure that training again would only repeat."""
FEWEST = 4
"""Trials that must be over before the share of failures can end a sweep."""


def sign(sweep: SweepConfig) -> int:
    """1 where more of the metric is better."""
    return -1 if sweep.metric.endswith("loss") else 1


class TrialBook:
    """The driver's side of a sweep: what was tried, what comes next, what won."""

    def __init__(
        self, context: Context, folder: Path, make: Callable[[StudentConfig, str, int], MemberTask]
    ) -> None:
        """`make(student, role, seed)` is the task of one student."""
        assert context.config.sweep is not None
        self.context, self.folder, self.make = context, folder, make
        self.settings = context.config.sweep
        self.space = spaces.parse_space(self.settings.space)
        self.members = members_folder(context.folder, "sweep")
        self.trials: dict[str, Trial] = {}
        self.seen: dict[str, Trial] = {}
        """Searched trials by their parameters."""
        self.search: Search | None = None
        self.elapsed = 0.0
        self.opened: set[str] = set()
        self.points = (
            spaces.grid(self.space, self.settings.grid_points) if self.settings.search == "grid" else None
        )
        if self.points is not None:
            self.points = self._possible(self.points)
        self.total = len(self.points) if self.points is not None else self.settings.trials
        self.exhausted = self.points is not None
        """Whether there is nothing to try beyond `total`."""
        self._recall()
        if not any(trial.kind == "hard" for trial in self.trials.values()):
            self._enter(self._hard(context.config.student))

    @property
    def _of_values(self) -> bool:
        return not self.context.config.data.predicts.classified

    # ------------------------------------------------------------------------------------- making trials

    def student(self, parameters: dict[str, Any]) -> StudentConfig:
        """Raises ConfigError where the parameters do not go together."""
        student = space_problems.apply(self.context.config.student, parameters)
        assert isinstance(student, StudentConfig)
        return student

    def _tasks(self, student: StudentConfig, role: str, name: str) -> list[MemberTask]:
        made = [self.make(student, role, seed) for seed in range(self.settings.num_seeds)]
        return [replace(task, name=f"{name}-seed-{seed}") for seed, task in enumerate(made)]

    def _searched(self, parameters: dict[str, Any]) -> Trial:
        name, student = self._name("trial"), self.student(parameters)
        return Trial(name, "searched", parameters, self._tasks(student, _role(student), name))

    def _hard(self, student: StudentConfig, parameters: dict[str, Any] | None = None) -> Trial:
        """The baseline on hard labels with a student's other settings."""
        name = self._name("hard")
        return Trial(name, "hard", parameters or {}, self._tasks(student, "hard", name))

    def _possible(self, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The points whose settings go together."""
        possible, problems = [], []
        for point in points:
            try:
                self.make(self.student(point), "hard", 0)
                possible.append(point)
            except (ConfigError, ValidationError) as error:
                problems.append(str(error).splitlines()[0])
        if problems:
            self.context.console.warning(
                f"sweep.space: {len(problems)} of {len(points)} combinations are left out ({problems[0]})"
            )
        return possible

    def _name(self, kind: str) -> str:
        """The first that is free."""
        names = (f"{kind}-{number:03d}" for number in count())
        return next(name for name in names if name not in self.trials)

    def _enter(self, trial: Trial) -> Trial:
        self.trials[trial.name] = trial
        if trial.kind == "searched":
            self.seen[canonical(trial.parameters)] = trial
        return trial

    def example(self) -> Trial:
        """A trial to measure with: the configuration's own student."""
        student = self.context.config.student
        return Trial("example", "searched", {}, self._tasks(student, "distilled", "example"))

    # --------------------------------------------------------------------------------- what Tune asks for

    def open(self) -> None:
        """Before trials are proposed: Optuna is told what is known from before."""
        if self.points is None:
            seed = mix(self.context.config.seed, STREAM_OF_SWEEPS, len(self.trials))
            kind, metric = self.settings.search, self.settings.metric
            self.search = Search(self.space, kind, seed, metric, sign(self.settings))
            for trial in self.seen.values():
                if trial.over:
                    self.search.tell(trial)

    def unfinished(self) -> bool:
        return bool(self.left() or self.waiting() or self.follow_up())

    def waiting(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if not trial.over]

    def left(self) -> int:
        """Trials that are still to be proposed."""
        return max(0, self.total - len(self.seen))

    def propose(self) -> Trial | None:
        """A new trial, entered; None when there are enough, or nothing new comes."""
        if self.points is not None:
            fresh = (point for point in self.points if canonical(point) not in self.seen)
            point = next(fresh, None)
            return None if point is None else self._enter(self._searched(point))
        assert self.search is not None
        for _ in range(TRIES if self.left() else 0):
            number, parameters = self.search.propose()
            same = self.seen.get(canonical(parameters))
            if same is not None:
                self.search.tell(same, number)
                continue
            try:
                trial = self._enter(self._searched(parameters))
            except (ConfigError, ValidationError):  # each may be, but not all of them together
                self.search.refuse(number)
                continue
            self.search.accept(number, trial)
            return trial
        if self.left():
            self.context.console.line(
                f"sweep: the space holds nothing new after {len(self.seen)} trials of {self.total}"
            )
            self.total, self.exhausted = len(self.seen), True
        return None

    def follow_up(self) -> list[Trial]:
        """When the search is over: the baseline with the winner's other settings, where it is another one."""
        winner = self.winner()
        if winner is None:
            return []
        trial = self._hard(self.student(winner.parameters), winner.parameters)
        fingerprints = [task.fingerprint for task in trial.tasks]
        for other in self.trials.values():
            if other.kind == "hard" and [task.fingerprint for task in other.tasks] == fingerprints:
                return []
        return [trial]

    def on_change(self, trial: Trial) -> None:
        self._enter(trial)
        write_json(self.folder / "trials" / f"{trial.name}.json", trial.to_json())
        self._track(trial)
        if trial.over:
            self.elapsed = max(self.elapsed, trial.ended or 0.0)
            if self.search is not None and trial.kind == "searched":
                self.search.tell(trial)
            if trial.state == "failed":
                self.context.console.warning(f"sweep: {trial.name} failed: {trial.reason}")
        over = sum(t.over for t in self.trials.values())
        best = self.winner()
        note = f"best {best.name}: {self._shown(best.values)}" if best else ""
        self.context.console.progress("sweep", over, max(over, self.total + 1), note)

    def on_epoch(self, trial: Trial, entry: Entry) -> None:
        self.context.tracker.metrics(f"sweep/{trial.name}", entry, int(entry["epoch"]))

    # ------------------------------------------------------------------------------------------ the record

    def _recall(self) -> None:
        """Trials of an earlier, killed run. Those that failed get another chance, unless they would again."""
        found = []
        for path in sorted((self.folder / "trials").glob("*.json")):
            try:
                record = read_json(path)
                trial = self._remade(record)
            except (ArtifactError, ConfigError, KeyError, TypeError, ValidationError) as error:
                self.context.console.warning(f"sweep: {path}: {error}; this trial is made anew")
                path.unlink()
                continue
            found.append(trial)
        for trial in sorted(found, key=lambda trial: trial.began or 0.0):
            self._enter(trial)
            self.elapsed = max(self.elapsed, trial.ended or 0.0)

    def _remade(self, record: dict[str, Any]) -> Trial:
        parameters, name, kind = record["parameters"], record["name"], record["kind"]
        student = self.student(parameters)
        role = "hard" if kind == "hard" else _role(student)
        trial = Trial(name, kind, parameters, self._tasks(student, role, name))
        whole = [task.folder(self.members) for task in trial.tasks if finished(task, self.members)]
        intact = all_intact(whole, self.context.console) and len(whole) == len(trial.tasks)
        state = record["state"]
        again = state == "failed" and NOT_FINITE in (record["reason"] or "")
        if state == "stopped" or again or (state == "finished" and intact):
            for key in ("state", "reason", "epochs", "values", "history", "began", "ended", "fused"):
                setattr(trial, key, record[key])
        trial.packet = record["packet"]
        return trial

    def _track(self, trial: Trial, history: list[Entry] | None = None) -> None:
        tracker, key = self.context.tracker, f"sweep/{trial.name}"
        if trial.name not in self.opened:
            self.opened.add(trial.name)
            tags = {"role": trial.kind, **prefixed(trial.tasks[0].inputs)}
            tracker.start(key, trial.parameters, tags)
            tracker.history(key, history or [])
        if trial.over:
            tracker.tags(key, {"state": trial.state, **({"reason": trial.reason} if trial.reason else {})})
            tracker.metrics(key, {f"final_{name}": value for name, value in trial.values.items()})
            tracker.end(key, trial.state != "failed")

    def too_many_failed(self) -> bool:
        """Whether the sweep is to end, counting trials of earlier runs too."""
        over = [trial for trial in self.trials.values() if trial.over]
        failed = sum(trial.state == "failed" for trial in over)
        return len(over) >= FEWEST and failed > self.settings.max_failed * len(over)

    def close(self) -> None:
        """Raises TrainingError where too many failed, or nothing is left to choose from."""
        over = [trial for trial in self.trials.values() if trial.over]
        failed = [trial for trial in over if trial.state == "failed"]
        reasons = "; ".join(f"{trial.name}: {trial.reason}" for trial in failed[:3])
        share = len(failed) > self.settings.max_failed * len(over)
        if share or self.unfinished():  # it ended before its time, though later ones may have gone well
            raise TrainingError(
                f"sweep: {len(failed)} of {len(over)} trials failed, more than sweep.max_failed = "
                f"{self.settings.max_failed:g} allows ({reasons}); narrow the space, or raise max_failed; "
                "finished trials are kept"
            )
        if self.winner() is None or self.baseline() is None:
            what = "student on soft targets" if self.winner() is None else "baseline on hard labels"
            raise TrainingError(f"sweep: no {what} finished ({reasons or 'all were stopped early'})")

    # ------------------------------------------------------------------------------------------- the result

    def winner(self) -> Trial | None:
        """The best finished trial that learned from soft targets."""
        return self._best([t for t in self.trials.values() if t.kind == "searched" and _distils(t.tasks[0])])

    def baseline(self) -> Trial | None:
        """The best finished trial on hard labels."""
        return self._best([t for t in self.trials.values() if not _distils(t.tasks[0])])

    def _best(self, trials: list[Trial]) -> Trial | None:
        judged = [trial for trial in trials if trial.state == "finished"]

        def rank(trial: Trial) -> tuple[float, float]:
            value = sign(self.settings) * trial.values[self.settings.metric]
            return -value, trial.values["validation_loss"]

        return min(judged, key=rank, default=None)

    def _shown(self, values: dict[str, float]) -> str:
        value = values[self.settings.metric]
        if not self.settings.metric.endswith("loss"):
            return f"{100 * value:.2f}%"
        return f"{value:.4f}" if self._of_values else f"{value:.4f} nats"

    def summary(self, data: Path) -> dict[str, Any]:
        winner, baseline = self.winner(), self.baseline()
        assert winner is not None and baseline is not None
        student = self.student(winner.parameters).model_dump(mode="json")
        trials = sorted(self.trials.values(), key=lambda trial: (trial.kind, trial.name))
        tried = sum(trial.over for trial in self.seen.values())
        for trial in trials:
            if trial.name not in self.opened:  # an earlier run's
                self._track(trial, trial.history)
            self.context.tracker.tags(f"sweep/{trial.name}", {"winner": str(trial is winner)})
        return {
            "metric": self.settings.metric,
            "search": self.settings.search,
            "space": {path: spaces.to_text(dimension) for path, dimension in self.space.items()},
            "trials": [self._described(trial) for trial in trials],
            "exhausted": self.exhausted,
            "winner": winner.name,
            "baseline": baseline.name,
            "student": student,
            "importances": importances(trials, self.space, self.settings.metric, sign(self.settings)),
            "verdict": sweep_verdict(winner, baseline, self.settings.metric, tried, self.members, data=data),
        }

    def _described(self, trial: Trial) -> dict[str, Any]:
        members: list[dict[str, Any]] = []
        for task in trial.tasks:
            manifest = finished(task, self.members)
            values = values_of([task], self.members) if manifest else {}
            members.append({"name": task.name, "seed": task.seed, "fingerprint": task.fingerprint, **values})
        history = trial.history
        if trial.state == "finished":  # whole, also where an earlier run trained part of it
            history = mean_history(trial.tasks, self.members)
        seeds = [m[self.settings.metric] for m in members if self.settings.metric in m]
        error = mean_and_error(seeds)[1] if trial.state == "finished" and len(seeds) > 1 else None
        keys = ["epoch", "train_loss", "validation_loss", "validation_accuracy", self.settings.metric]
        kept = {k: v for k, v in trial.to_json().items() if k not in ("values", "history")}
        return {
            **kept,
            "epochs": max(trial.epochs, len(history)),
            "value": trial.values.get(self.settings.metric),
            "standard_error": error,
            "validation_accuracy": trial.values.get("validation_accuracy"),
            "validation_loss": trial.values.get("validation_loss"),
            "members": members,
            "history": [{key: entry[key] for key in keys if key in entry} for entry in history],
        }


def _role(student: StudentConfig) -> str:
    return "distilled" if student.distils else "hard"


def _distils(task: MemberTask) -> bool:
    together = (task.peers, task.branches, task.learner)
    return task.alpha > 0 or task.guess_weight > 0 or any(block is not None for block in together)


def result_of(manifest: Manifest) -> str:
    """A fingerprint of what was found: with more trials a sweep's own stays the same."""
    return fingerprint([[t["name"], t["state"], t["value"]] for t in manifest.summary["trials"]])
