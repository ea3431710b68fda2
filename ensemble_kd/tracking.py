"""MLflow, behind a journal: training never waits for the tracking server and never fails with it.

One parent run; a child per stage; a child of that per member. What is to be sent is first a line in
`RUN/tracking/SESSION.jsonl`; a thread sends the lines in order and notes how far it came. What a server that
was down or late did not take stays there and goes out with the next run in the folder, under its own times.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import read_json, write_json
from ensemble_kd.config import TrackingConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.redact import redacted

JOURNALS = "tracking"
REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
"""What MLflow says of an entry that is wrong in itself."""
RETRY = 2.0, 30.0
"""Seconds between two attempts at a server that does not answer: at first, and at most."""
NOTED = 1.0
"""Seconds between two notes of how far the journal is sent."""


class Tracker:
    """Sends runs, parameters, metrics and files to MLflow from a thread of its own."""

    def __init__(
        self,
        config: TrackingConfig,
        runs: Path,
        name: str,
        warn: Callable[[str], None],
        folder: Path | None = None,
    ) -> None:
        """`runs` is the folder that holds the run folders; the default database stands beside them.

        `folder` is the run's own, where the journal is kept.
        """
        self.config, self.name = config, name
        self.warn: Callable[[str], None] = lambda text: warn(redacted(text))
        self.uri = config.uri or f"sqlite:///{(runs / 'mlflow.db').resolve()}"
        self.artifacts = None if config.uri else (runs / "mlartifacts").resolve().as_uri()
        self.folder = (folder or runs).absolute()
        self.asked: set[str] = set()
        """Keys of all runs that were asked for: `` for the parent, `teachers`, `teachers/teacher-000`, ..."""
        self.failed: str | None = None
        """Why the last attempt failed; None once one went well."""
        self.thread: threading.Thread | None = None
        if not config.enabled:
            return
        journals = self.folder / JOURNALS
        journals.mkdir(parents=True, exist_ok=True)
        self.older = sorted(journals.glob("*.jsonl"))
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.journal = Journal(journals / f"{stamp}-{uuid.uuid4().hex[:8]}.jsonl")
        self.closing, self.given_up = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    # --------------------------------------------------------------------------- called by the pipeline

    def start(
        self, key: str, parameters: dict[str, Any] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        """Open the run `key`; the part before its last slash is the parent."""
        self.asked.add(key)
        self._put("start", key, parameters=redacted(parameters or {}), tags=redacted(tags or {}))

    def metrics(self, key: str, values: dict[str, Any], step: int = 0) -> None:
        self._put("metrics", key, entries=[[step, _numbers(values)]])

    def history(self, key: str, entries: list[dict[str, float]]) -> None:
        """All epochs of a member at once."""
        self._put("metrics", key, entries=[[int(entry["epoch"]), _numbers(entry)] for entry in entries])

    def tags(self, key: str, values: dict[str, str]) -> None:
        self._put("tags", key, values=redacted(values))

    def file(self, key: str, path: Path) -> None:
        """Attach a file or a folder."""
        self._put("file", key, path=self._place(path))

    def register(self, key: str, folder: Path, name: str, tags: dict[str, str]) -> None:
        """Attach an MLflow model to the run, as the newest version of the registered model `name`.

        One that is registered already, with the same tags, is left as it is.
        """
        self._put("register", key, path=self._place(folder), name=name, tags=redacted(tags))

    def end(self, key: str, good: bool = True) -> None:
        self._put("end", key, status="FINISHED" if good else "FAILED")

    def close(self, seconds: float = 60.0) -> None:
        """Wait until everything is sent, at most `seconds`; for a server that is down not at all."""
        if self.thread is None:
            return
        self.closing.set()
        self.thread.join(seconds)
        late = self.thread.is_alive()
        self.given_up.set()
        if late or self.failed:
            left = len(self.journal.lines) - self.journal.sent
            why = (
                f"did not take everything within {seconds:.0f} s" if late and not self.failed else self.failed
            )
            self.warn(
                f"MLflow at {self.uri}: {why}; {left} entries are kept in {self.folder / JOURNALS} "
                "and sent by the next run in this folder"
            )

    def _put(self, kind: str, key: str, **fields: Any) -> None:
        if self.thread is not None:
            self.journal.add({"kind": kind, "key": key, "time": int(time.time() * 1000), **fields})

    def _place(self, path: Path) -> str:
        """Relative to the run folder, which may be elsewhere when it is sent."""
        path = path.absolute()
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    # ---------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        # A server that does not answer must not be asked for minutes, once per metric.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        client, wait = None, RETRY[0]
        journals = [*(Journal(path) for path in self.older), self.journal]
        while journals:
            journal = journals[0]
            if journal.sent == len(journal.lines):
                if journal is not self.journal:
                    journal.remove()
                elif not self.closing.is_set():
                    journal.note()
                    self.closing.wait(0.1)
                    continue
                else:
                    journal.remove()
                journals.pop(0)
                continue
            if self.given_up.is_set():
                break
            try:
                client = client or self._connect()
                self._send(client, journal)
                self.failed, wait = None, RETRY[0]
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on
                text = str(error).splitlines()[0] if str(error) else ""
                if getattr(error, "error_code", None) in REFUSED:  # it will not take this one later either
                    self.warn(f"MLflow at {self.uri}: refused an entry of {journal.path.name}: {text[:200]}")
                    journal.sent += 1
                    continue
                self.failed = f"{type(error).__name__}: {text}"[:200]
                if self.closing.is_set():  # asked once more, and left for the next run
                    break
                self.closing.wait(wait)
                wait = min(2 * wait, RETRY[1])
        for journal in journals:
            journal.note()

    def _send(self, client: Any, journal: Journal) -> None:
        """One line of the journal."""
        entry = journal.lines[journal.sent]
        kind, key = entry["kind"], entry["key"]
        run = journal.ids.get(key)
        if kind == "start":
            self._start(client, journal, entry)
        elif run is None:  # its start was refused, by a server that will not take it
            pass
        elif kind == "metrics":
            metrics = [m for step, values in entry["entries"] for m in _entities(values, step, entry["time"])]
            for begin in range(0, len(metrics), 1000):  # the server takes at most 1,000 metrics at once
                client.log_batch(run, metrics=metrics[begin : begin + 1000])
        elif kind == "tags":
            for name, value in entry["values"].items():
                client.set_tag(run, name, value)
        elif kind == "file" and (path := self.folder / entry["path"]).exists():
            attach = client.log_artifacts if path.is_dir() else client.log_artifact
            attach(run, str(path))
        elif kind == "register" and (path := self.folder / entry["path"]).exists():
            self._register(client, run, path, entry["name"], entry["tags"])
        elif kind == "end":
            client.set_terminated(run, entry["status"], end_time=entry["time"])
        journal.sent += 1
        if kind == "start" or time.monotonic() - journal.noted > NOTED:
            journal.note()

    def _connect(self) -> Any:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(self.config.experiment)
        self.experiment = (
            found.experiment_id
            if found
            else client.create_experiment(self.config.experiment, artifact_location=self.artifacts)
        )
        return client

    def _start(self, client: Any, journal: Journal, entry: dict[str, Any]) -> None:
        from mlflow.entities import Param

        key = entry["key"]
        parent, _, last = key.rpartition("/")
        tags = dict(entry["tags"])
        if key:
            tags |= {"mlflow.parentRunId": journal.ids[parent]} if parent in journal.ids else {}
        run = client.create_run(
            self.experiment, start_time=entry["time"], run_name=last or self.name, tags=tags
        )
        journal.ids[key] = run.info.run_id
        flat = [Param(name, str(value)[:6000]) for name, value in flatten(entry["parameters"]).items()]
        for begin in range(0, len(flat), 100):  # the server takes at most 100 parameters at once
            client.log_batch(run.info.run_id, params=flat[begin : begin + 100])

    def _register(self, client: Any, run: str, folder: Path, name: str, tags: dict[str, str]) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

        known = client.search_model_versions(f"name='{name}'")
        if any(tags.items() <= version.tags.items() for version in known):
            return
        client.log_artifacts(run, str(folder), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.create_model_version(name, source, run_id=run, tags=tags)


class Journal:
    """What is to be sent in one session, a line of JSON each, and how far it is sent."""

    def __init__(self, path: Path) -> None:
        """An empty one, or one that an earlier session left."""
        self.path, self.state = path, path.with_suffix(".sent.json")
        self.lines: list[dict[str, Any]] = []
        self.sent = 0
        self.ids: dict[str, str] = {}
        """MLflow's run id by our own key."""
        self.noted = time.monotonic()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.lines.append(json.loads(line))
                except json.JSONDecodeError:  # the process was killed while it wrote
                    break
            try:
                known = read_json(self.state)
                self.sent, self.ids = min(known["sent"], len(self.lines)), known["ids"]
            except (ArtifactError, KeyError, TypeError):
                pass
        self._file: Any = None

    def add(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()
        self.lines.append(entry)

    def note(self) -> None:
        if self.path.exists():
            write_json(self.state, {"sent": self.sent, "ids": self.ids})
        self.noted = time.monotonic()

    def remove(self) -> None:
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _entities(values: dict[str, float], step: int, at: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, at, step) for name, value in values.items()]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    if isinstance(value, dict) and value:
        items = ((f"{path}.{k}" if path else str(k), v) for k, v in value.items())
        return {name: leaf for key, inner in items for name, leaf in flatten(inner, key).items()}
    return {path: value} if path else {}
