"""How fast this machine trains and predicts: measured in processes of their own, kept for the next time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemble_kd.artifacts import fingerprint, write_json
from ensemble_kd.data.folders import PicturePiece
from ensemble_kd.data.pieces import Piece
from ensemble_kd.errors import EnsembleKDError
from ensemble_kd.guess.choice import Choice
from ensemble_kd.guess.inspect import spread
from ensemble_kd.guess.networks import has_gpu

ROWS = 640
"""Of train that are timed."""
FILE = "pace.json"
"""In the run folder, so that the same command gives the same plan when it is repeated after a stop."""
PATIENCE = 300
"""Seconds after which timing is given up."""
MOST_AT_ONCE = 4


@dataclass(frozen=True)
class Pace:
    """Seconds per example on one worker, and how many workers there are."""

    teacher_train: float
    teacher_predict: float
    student_train: float
    student_predict: float
    workers: int
    busy: float = 1.0
    """Wall clock over processor time: above 1 where other work took the cores."""
    side: int = 0
    """To which pictures were scaled; 0 where they are taken as they are."""
    width: int = 0
    """Of the teacher, where it is a residual network; else 0."""
    tokens: int = 0
    """At which texts were cut; 0 where their length says nothing of the time."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of some texts before that."""

    def share_of(self, tokens: int) -> float:
        """What a text takes that is cut at so many tokens, against one as it was timed."""
        if not self.lengths or not self.tokens:
            return 1.0
        kept, timed = (np.minimum(self.lengths, most).mean() for most in (tokens, self.tokens))
        return float(kept / timed)


def measure(choice: Choice, folder: Path | None = None) -> Pace:
    """`folder` is that of the run, in which an earlier measurement of the same networks may lie.

    Raises EnsembleKDError where the networks cannot be tried.
    """
    raw = choice.settings.raw
    alone = ["local"] if local(raw) else []  # other workers, and nothing timed beside
    key = fingerprint(
        raw["teachers"]["model"], raw["student"]["model"], _data(choice, Path("rows")), _threads(raw), *alone
    )
    if folder is not None and (found := _kept(folder / FILE, key)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="ensemble-kd-pace-") as name:
        rows = Path(name) / "train.parquet"
        _write_rows(choice, rows)
        config = {**raw, "data": _data(choice, rows)}
        workers = _workers(raw)
        job = {"config": config, "threads": _threads(raw), "pieces": choice.pieces}
        jobs = [_start({**job, "folder": f"{name}/{i}"}) for i in range(min(workers, MOST_AT_ONCE))]
        paces = [_answer(job) for job in jobs]
    slowest: dict[str, Any] = {key: max(pace[key] for pace in paces) for key in paces[0]}
    found = Pace(**slowest, workers=workers, side=side_of(raw), width=width_of(raw))
    if choice.lengths:
        found = replace(found, tokens=tokens_of(raw), lengths=choice.lengths)
    if folder is not None:
        with suppress(OSError):  # a folder that cannot be written is told by the run
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FILE, {"key": key, **asdict(found)})
    return found


def side_of(raw: dict[str, Any]) -> int:
    resize = (raw["data"].get("image") or {}).get("resize")
    return int(min(resize)) if resize else 0


def width_of(raw: dict[str, Any]) -> int:
    model = raw["teachers"]["model"]
    return int(model.get("width", 16)) if model["name"] == "resnet" else 0


def tokens_of(raw: dict[str, Any]) -> int:
    """At which texts are cut, 0 for other data."""
    return int((raw["data"].get("text") or {}).get("max_length", 0))


def _kept(path: Path, key: str) -> Pace | None:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Pace(**{k: v for k, v in held.items() if k != "key"}) if held["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def local(raw: dict[str, Any]) -> bool:
    """Whether the settings say that members are trained one after the other in this process."""
    return bool((raw.get("compute") or {}).get("executor") == "local")


def _threads(raw: dict[str, Any]) -> int:
    return max(1, int(raw.get("compute", {}).get("cpus_per_worker", 1)))


def _workers(raw: dict[str, Any]) -> int:
    """As many as a run here has: one per GPU, or per CPU where there is none; one without Ray."""
    if local(raw):
        return 1
    wanted = raw.get("compute", {}).get("num_workers", "auto")
    if isinstance(wanted, int):
        return max(1, wanted)
    if has_gpu():
        gpus = [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]
        return max(1, len(gpus))
    return max(1, (os.cpu_count() or 1) // _threads(raw))


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ensemble_kd.guess.timing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    process.stdin = None
    return process


def _answer(process: subprocess.Popen[str]) -> dict[str, float]:
    try:
        said, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise EnsembleKDError(f"timing took more than {PATIENCE} s; run without --budget") from error
    if process.returncode:
        last = (errors.strip().splitlines() or ["no reason given"])[-1]
        raise EnsembleKDError(f"the networks could not be timed: {last}")
    found: dict[str, float] = json.loads(said.strip().splitlines()[-1])
    return found


# ------------------------------------------------------------------------------------------------ rows


def _data(choice: Choice, rows: Path) -> dict[str, Any]:
    """The block `data` for some of the rows, whose labels are made up."""
    data = choice.settings.raw["data"]
    kept = {k: v for k, v in data.items() if k in ("kind", "target", "table", "image", "text", "augment")}
    columns = {"input": choice.inputs.names, "label": _label(choice)}
    shares = {"validation_fraction": 0.1, "test_fraction": 0.1}
    return {**kept, **shares, "path": str(rows), "columns": columns}


def _label(choice: Choice) -> str:
    return "label" if choice.label is None else choice.label.column.name


def _write_rows(choice: Choice, path: Path) -> None:
    names = [choice.inputs.names] if isinstance(choice.inputs.names, str) else list(choice.inputs.names)
    pieces = choice.facts.source.splits["train"]
    tables = [t for piece in pieces for t in _some(piece, names, -(-ROWS // len(pieces))) if t.num_rows]
    table = pa.concat_tables(tables, promote_options="permissive").slice(0, ROWS)
    number = np.arange(table.num_rows)
    if choice.label is not None and choice.label.target == "value":
        labels = pa.array(number * 0.1)
    else:
        labels = pa.array(number % max(2, min(len(choice.rows.classes), table.num_rows // 4)))
    pq.write_table(table.append_column(_label(choice), labels), path)


def _some(piece: Piece, names: list[str], rows: int) -> list[pa.Table]:
    if isinstance(piece, PicturePiece):
        chosen = np.unique(np.linspace(0, len(piece.paths) - 1, min(rows, len(piece.paths))).astype(int))
        return list(piece.part(chosen).batches(names, rows))
    return list(spread(piece, names, rows))
