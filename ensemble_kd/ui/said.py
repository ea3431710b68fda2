"""What teachers, ensemble and student say of single rows, read from a run folder piece by piece.

Of rows of the transfer set: the store of soft targets, one shard at a time. Of test rows: the predictions
that members keep beside their weights, the only rows for which the student's are there too.
N rows, M teachers, C classes; of values C = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open

from ensemble_kd.artifacts import Manifest
from ensemble_kd.data.records import Arrays, DataInfo, in_order
from ensemble_kd.data.records import read_shard as read_rows
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.data.store import read_shard as read_store
from ensemble_kd.ensemble import top_k
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError
from ensemble_kd.leftovers import RESOLVED
from ensemble_kd.safe_files import problem_inside
from ensemble_kd.targets import target_of
from ensemble_kd.ui.folders import FINGERPRINT, Run
from ensemble_kd.ui.pieces import dig, number

TEMPERATURES = (1.0, 2.0, 4.0)
LARGEST = 1_000_000_000
"""Bytes of a shard, as numbers, or of a file of predictions."""
BLOCK = 2**22
"""Numbers that are softened at once."""
STORE, PREDICTIONS = "soft_targets", "predictions.safetensors"


@dataclass(frozen=True)
class Mean:
    """How this run averages its teachers."""

    how: str
    weights: list[float] | None
    calibration: list[float] | None

    def __call__(self, logits: np.ndarray, temperature: float) -> np.ndarray:
        """(N, M, C) -> (N, C), whose softmax at T is the ensemble's distribution; of values their mean."""
        found = mean_logits(
            torch.from_numpy(np.ascontiguousarray(logits, np.float32)),
            temperature,
            self.how,
            self.weights,
            self.calibration,
        )
        return found.numpy()


@dataclass(frozen=True)
class Setting:
    """What all rows of a run share."""

    run: Run
    info: DataInfo
    data: str
    """Folder of the prepared data, below the run."""
    teachers: list[str]
    mean: Mean

    @property
    def values(self) -> bool:
        return not target_of(self.info.target).classified


@dataclass(frozen=True)
class Said:
    """Some rows and what is said of them."""

    rows: list[int]
    """Numbers in the split."""
    names: list[str]
    """Who says it: the teachers, `ensemble`, and of test rows `student`."""
    logits: np.ndarray
    """(N, names, C); the ensemble's are those at T = 1, see `at`."""
    ensemble: dict[float, np.ndarray]
    """(N, C) by temperature."""
    inputs: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    total: int
    """Rows that these were chosen from."""
    values: bool = False
    """Whether these are values."""

    def at(self, row: int, who: int, temperature: float) -> np.ndarray:
        """(C,) probabilities, or values."""
        logits = self.logits[row, who]
        if self.names[who] == "ensemble":
            logits = self.ensemble[temperature][row]
        return logits if self.values else softmax(logits / temperature)


def setting(run: Run) -> Setting:
    """Raises ArtifactError where the run has no store yet, or it cannot be read."""
    store = run.stage("soft-targets")
    if store is None:
        raise ArtifactError("no soft targets yet; they come after the teachers")
    manifest = store[1]
    data = manifest.inputs.get("data")
    if not isinstance(data, str) or not FINGERPRINT.fullmatch(data):
        raise ArtifactError("the soft targets do not name their data")
    info = DataInfo.from_dict(run.manifest("data", data).summary["info"])
    names = [name for name in manifest.inputs if name != "data"]
    count = StoreLayout(**manifest.summary["layout"]).members
    names = names if len(names) == count else [f"teacher-{i:03}" for i in range(count)]
    return Setting(run, info, f"data/{data}", names, _mean(run, info, names))


def _mean(run: Run, info: DataInfo, names: list[str]) -> Mean:
    try:
        settings = run.json(RESOLVED)
    except ArtifactError:
        settings = {}
    stage = run.stage("teachers")
    summary = stage[1].summary if stage is not None else {}
    how = dig(settings, "student", "mean")
    how = target_of(info.target).mean(how if how in ("arithmetic", "geometric") else "arithmetic")
    weights = dig(summary, "weights")
    if weights is None and isinstance(every := dig(settings, "student", "weights"), list):
        weights = [w for i, w in enumerate(every) if f"teacher-{i:03}" in names]
    calibration = dig(summary, "calibration", "temperatures")
    if dig(settings, "teachers", "calibrate") is False:
        calibration = None
    return Mean(how, _numbers(weights, len(names)), _numbers(calibration, len(names)))


def _numbers(values: Any, count: int) -> list[float] | None:
    """So many numbers above 0 or equal to it, not all 0; None for anything else."""
    if not isinstance(values, list) or len(values) != count:
        return None
    found = [number(value) for value in values]
    good = [value for value in found if value is not None and value >= 0]
    return good if len(good) == count and sum(good) > 0 else None


# ------------------------------------------------------------------------------------------ rows of the store


def shards(run: Run) -> tuple[str, Manifest, list[str]]:
    """Folder of the store below the run, its manifest, and its shards in order."""
    store = run.stage("soft-targets")
    if store is None:
        raise ArtifactError("no soft targets yet; they come after the teachers")
    names = [name for name in store[1].files if name.startswith("part-") and name.endswith(".parquet")]
    return store[0], store[1], sorted(names, key=in_order)


def of_store(found: Setting, shard: int, seed: int | None, first: int, count: int) -> Said:
    """`count` rows of a shard from the `first` on: those that the teachers disagree on most come first, or,
    with a `seed`, in its random order.

    Raises ArtifactError where the store or the data cannot be read.
    """
    folder, manifest, names = shards(found.run)
    layout = StoreLayout(**manifest.summary["layout"]).logits_alone
    path = _plain(found.run, f"{folder}/{names[shard]}")
    _check_size(path, layout.bytes_per_row)
    numbers, columns = read_store(path, layout)
    if seed is None:
        order = np.array(_ranking(path, path.stat().st_mtime_ns, layout))
    else:
        order = np.random.default_rng(seed).permutation(len(numbers))
    index = order[first : first + count]
    logits = _logits({name: column[index, 0] for name, column in columns.items()}, layout)
    part = f"{found.data}/transfer-{names[shard].removeprefix('part-')}"
    rows = _read(found, part)
    if len(rows.labels) != len(numbers):
        raise ArtifactError(f"{part}: {len(rows.labels)} rows, the store has {len(numbers)}")
    picked = Arrays(rows.inputs[index], rows.labels[index], rows.ids[index])
    return _said(found, [int(n) for n in numbers[index]], logits, picked, len(numbers))


def _logits(columns: dict[str, np.ndarray], layout: StoreLayout) -> np.ndarray:
    """(N, M, C) float32 of one view."""
    if layout.top_k is None:
        return columns["logits"].astype(np.float32)
    kept = top_k.TopK(*(torch.from_numpy(columns[name].copy()) for name in ("values", "indices", "rest")))
    restored: np.ndarray = top_k.restore(kept, layout.classes).numpy()
    return restored


@lru_cache(maxsize=16)
def _ranking(path: Path, stamp: int, layout: StoreLayout) -> tuple[int, ...]:
    """Rows of a shard, the most disputed first; `stamp` makes a file that was written anew another one."""
    _, columns = read_store(path, layout)
    count = len(next(iter(columns.values())))
    block = max(1, BLOCK // (layout.members * layout.classes))
    parts = [
        disagreement(_logits({n: c[i : i + block, 0] for n, c in columns.items()}, layout), layout.values)
        for i in range(0, count, block)
    ]
    scores = np.concatenate(parts) if parts else np.empty(0)
    return tuple(int(i) for i in np.argsort(-scores, kind="stable"))


def disagreement(logits: np.ndarray, values: bool = False) -> np.ndarray:
    """(N,) of (N, M, C): the Jensen-Shannon divergence of the teachers' distributions at T = 1, in nats: the
    mean's entropy less the mean entropy. Of `values` their standard deviation, of several columns the mean of
    each column's over its typical one."""
    if values or logits.shape[2] == 1:
        spread: np.ndarray = logits.std(axis=1)  # (N, C)
        typical = spread.mean(axis=0)
        several = spread / np.where(typical > 0, typical, 1.0)
        return spread[:, 0] if spread.shape[1] == 1 else np.asarray(several.mean(axis=1))
    p = softmax(logits.astype(np.float64))
    divergence: np.ndarray = _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)
    return divergence


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares


def _entropy(p: np.ndarray) -> np.ndarray:
    found: np.ndarray = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)
    return found


# -------------------------------------------------------------------------------------------------- test rows


def of_test(found: Setting, first: int, count: int) -> Said:
    """Test rows: those on which the shipped student and the ensemble differ most come first.

    Raises ArtifactError where the student is not trained yet, or predictions are gone.
    """
    student = found.run.stage("student")
    if student is None:
        raise ArtifactError("no student yet; it comes last")
    summary = student[1].summary
    shipped = next((m for m in summary["members"] if m["name"] == summary["shipped"]), None)
    if shipped is None:
        raise ArtifactError(f"{student[0]}: does not say which student is shipped")
    said = [_test_logits(found.run, path) for path in _teachers(found)]
    own = _test_logits(found.run, f"student/members/{_fingerprint(shipped)}/{PREDICTIONS}")
    if any(each.shape != own.shape for each in said):
        raise ArtifactError("predictions of teachers and student are of other rows, or other classes")
    logits = np.stack([*said, own], axis=1)  # (N, M + 1, C)
    mean = found.mean(logits[:, :-1], 1.0)
    order = np.argsort(-disagreement(np.stack([mean, own], axis=1), found.values), kind="stable")
    index = order[first : first + count]
    return _said(found, [int(n) for n in index], logits[index], _test_rows(found, index), len(order))


def _teachers(found: Setting) -> list[str]:
    """The file of each teacher's predictions, below the run, in the store's order."""
    stage = found.run.stage("teachers")
    if stage is None:
        raise ArtifactError("the teachers are gone")
    entries = {str(entry["name"]): entry for entry in stage[1].summary["members"]}
    paths = []
    for name in found.teachers:
        entry = entries.get(name)
        if entry is None:
            raise ArtifactError(f"{stage[0]}: has no {name}")
        if "predictions" in entry:  # given ones, with what they were asked in the stage's own folder
            paths.append(f"{stage[0]}/{entry['predictions']}")
        else:
            paths.append(f"teachers/members/{_fingerprint(entry)}/{PREDICTIONS}")
    return paths


def _fingerprint(entry: dict[str, Any]) -> str:
    name = str(entry.get("fingerprint"))
    if not FINGERPRINT.fullmatch(name):
        raise ArtifactError("a member without a fingerprint")
    return name


def _test_logits(run: Run, name: str) -> np.ndarray:
    """(N, C) float32."""
    path = _plain(run, name)
    if path.stat().st_size > LARGEST:
        raise ArtifactError(f"{name}: {path.stat().st_size:,} bytes; at most {LARGEST:,} are read")
    try:
        with safe_open(path, framework="np") as file:
            logits = file.get_tensor("test").astype(np.float32)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{name}: no predictions of test rows ({error})") from error
    if logits.ndim != 2:
        raise ArtifactError(f"{name}: no table of predictions")
    return logits


def _test_rows(found: Setting, index: np.ndarray) -> Arrays:
    """These rows of the test split; shards with none of them are not read."""
    manifest = found.run.manifest(*found.data.split("/"))
    names = sorted((n for n in manifest.files if n.startswith("test-")), key=in_order)
    inputs: dict[int, Any] = {}
    begin = 0
    for name in names:
        part = f"{found.data}/{name}"
        end = begin + _rows_in(_plain(found.run, part))
        wanted = [int(i) for i in index if begin <= i < end]
        if wanted:
            rows = _read(found, part)
            inputs |= {
                i: (rows.inputs[i - begin], rows.labels[i - begin], rows.ids[i - begin]) for i in wanted
            }
        begin = end
    if len(inputs) < len(index):
        raise ArtifactError(f"{found.data}: has fewer test rows than were predicted")
    columns = zip(*(inputs[int(i)] for i in index), strict=True)
    return Arrays(*(np.array(list(column)) for column in columns))


# ------------------------------------------------------------------------------------------------- both


def _said(found: Setting, rows: list[int], logits: np.ndarray, arrays: Arrays, total: int) -> Said:
    """`logits` are the teachers', and a student's where there is one more."""
    count = len(found.teachers)
    ensemble = {t: found.mean(logits[:, :count], t) for t in TEMPERATURES}
    names = [*found.teachers, "ensemble", *(["student"] if logits.shape[1] > count else [])]
    together = np.concatenate([logits[:, :count], ensemble[1.0][:, None], logits[:, count:]], axis=1)
    given = (arrays.inputs, arrays.labels, arrays.ids)
    return Said(rows, names, together, ensemble, *given, total, found.values)


def _plain(run: Run, name: str) -> Path:
    """Raises ArtifactError for what is not a plain file of the run."""
    if (problem := problem_inside(run.folder, name)) is not None:
        raise ArtifactError(f"{name}: {problem}")
    return run.folder / name


def _rows_in(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path.name}: not a readable shard ({error})") from error


def _check_size(path: Path, bytes_per_row: int) -> None:
    """Before memory is asked for."""
    asked = max(path.stat().st_size, _rows_in(path) * bytes_per_row)
    if asked > LARGEST:
        raise ArtifactError(f"{path.name}: {asked:,} bytes; at most {LARGEST:,} are read for a page")


def _read(found: Setting, name: str) -> Arrays:
    """A shard of the prepared data."""
    path = _plain(found.run, name)
    width = 4 * int(np.prod(found.info.input_shape)) + 8
    _check_size(path, width)
    return read_rows(path, found.info)
