"""`compare`: the shipped students of several runs side by side, paired where test rows are the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ensemble_kd.artifacts import read_manifest
from ensemble_kd.data.records import load_labels
from ensemble_kd.errors import InputError
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import Measures
from ensemble_kd.train.finishing import PREDICTIONS
from ensemble_kd.train.statistics import Interval, combined_interval


@dataclass(frozen=True)
class Finished:
    """One run that has a report."""

    folder: Path
    report: dict[str, Any]

    @property
    def measures(self) -> Measures:
        return target_in(self.report).measures

    @property
    def role(self) -> str:
        """Of the shipped student: `distilled`, `hard`, ..."""
        shipped = self.report["shipped"]
        return str(next(s["role"] for s in self.report["systems"] if s["name"] == shipped))

    @property
    def rows(self) -> dict[str, str]:
        """Checksums of the prepared test rows; equal where two runs were judged by the same."""
        manifest = read_manifest(self.folder / "data" / self.report["lineage"]["data"])
        files = manifest.files if manifest is not None else {}
        return {name: entry["sha256"] for name, entry in files.items() if name.startswith("test-")}

    def scores(self) -> dict[int, np.ndarray]:
        """By seed (N,): what each test row adds to the headline metric, of all students of the shipped role.

        Raises InputError where their predictions were cleared away.
        """
        stage = self.folder / "student"
        manifest = read_manifest(stage / self.report["lineage"]["student"])
        labels = load_labels(self.folder / "data" / self.report["lineage"]["data"], "test")
        found = {}
        for member in manifest.summary["members"] if manifest is not None else ():
            if member["role"] == self.role:
                path = stage / "members" / member["fingerprint"] / PREDICTIONS
                if not path.is_file():
                    raise InputError(f"{self.folder}: {path} is gone; run it again to compare it row by row")
                outputs = self.measures.prepare(load_file(path)["test"])
                found[int(member["name"].rsplit("-", 1)[1])] = self.measures.scores(outputs, labels)
        if not found:
            raise InputError(f"{self.folder}: its students are gone; run it again to compare it row by row")
        return found


def finished(folders: list[str]) -> list[Finished]:
    """The runs, the best first. Raises InputError for a folder without a report, and for unlike targets."""
    problems, runs = [], []
    for name in folders:
        path = Path(name).expanduser() / "report.json"
        if path.is_file():
            runs.append(Finished(path.parent, json.loads(path.read_text(encoding="utf-8"))))
        else:
            problems.append(f"{name}: no report.json there; give folders of runs that have ended")
    if problems:
        raise InputError(problems)
    kinds = {run.measures.headline for run in runs}
    if len(kinds) > 1:
        raise InputError("RUN: some predict classes, some values; compare like with like")
    headline = kinds.pop()
    return sorted(runs, key=lambda run: -run.report["summary"][run.role][headline]["mean"])


def paired(first: Finished, other: Finished) -> Interval | None:
    """How much better the first is, in points of the headline metric; None where the test rows differ."""
    if not first.rows or first.rows != other.rows:
        return None
    ours, theirs = first.scores(), other.scores()
    seeds = sorted(set(ours) & set(theirs))
    counts = first.measures.counts
    if seeds:
        return combined_interval([ours[s] for s in seeds], [theirs[s] for s in seeds], counts=counts)
    mean, other_mean = (np.mean(list(each.values()), axis=0) for each in (ours, theirs))
    return combined_interval([mean], [other_mean], counts=counts)


def compared(folders: list[str]) -> list[dict[str, Any]]:
    """A row a run, the best first: its shipped student's figures, and the interval against the best run's."""
    runs = finished(folders)
    headline, found = runs[0].measures.headline, []
    for run in runs:
        value = run.report["summary"][run.role][headline]
        shipped = next(s for s in run.report["systems"] if s["name"] == run.report["shipped"])
        interval = None if run is runs[0] else paired(runs[0], run)
        found.append(
            {
                "run": str(run.folder),
                "student": run.role,
                headline: value["mean"],
                "standard_error": value["standard_error"],
                "seeds": run.report["summary"][run.role]["n"],
                "test_rows": shipped["count"],
                "parameters": shipped["parameters"],
                "latency_ms_batch_1": shipped["latency_ms_batch_1"],
                "outcome": run.report["verdict"]["outcome"],
                "behind": None if interval is None else interval.points,
                "low": None if interval is None else interval.low,
                "high": None if interval is None else interval.high,
            }
        )
    return found
