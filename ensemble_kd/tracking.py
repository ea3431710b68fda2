"""MLflow, behind a queue: training never waits for the tracking server and never fails with it.

One parent run; a child per stage; a child of that per member. Everything is also on disk in the run folder,
so what a server missed is not lost.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemble_kd.config import TrackingConfig
from ensemble_kd.redact import redacted

STOP = object()


class Tracker:
    """Sends runs, parameters, metrics and files to MLflow from a thread of its own."""

    def __init__(self, config: TrackingConfig, runs: Path, name: str, warn: Callable[[str], None]) -> None:
        """`runs` is the folder that holds the run folders; the default database stands beside them."""
        self.config, self.name = config, name
        self.warn: Callable[[str], None] = lambda text: warn(redacted(text))
        self.uri = config.uri or f"sqlite:///{(runs / 'mlflow.db').resolve()}"
        self.artifacts = None if config.uri else (runs / "mlartifacts").resolve().as_uri()
        self.ids: dict[str, str] = {}
        """MLflow run id by our own key: `` for the parent, `teachers`, `teachers/teacher-000`, ..."""
        self.asked: set[str] = set()
        """Keys of all runs that were asked for; `ids` follows when the thread gets there."""
        self.jobs: queue.Queue[Any] = queue.Queue()
        self.failed: str | None = None
        self.thread: threading.Thread | None = None
        if config.enabled:
            self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self.thread.start()

    # --------------------------------------------------------------------------- called by the pipeline

    def start(
        self, key: str, parameters: dict[str, Any] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        """Open the run `key`; the part before its last slash is the parent."""
        self.asked.add(key)
        shown, marked = redacted(parameters or {}), redacted(tags or {})
        self._put(lambda client: self._start(client, key, shown, marked))

    def metrics(self, key: str, values: dict[str, Any], step: int = 0) -> None:
        self._put(lambda client: self._metrics(client, key, values, step))

    def history(self, key: str, entries: list[dict[str, float]]) -> None:
        """All epochs of a member at once."""
        self._put(lambda client: self._history(client, key, entries))

    def tags(self, key: str, values: dict[str, str]) -> None:
        shown = redacted(values)
        self._put(lambda client: [client.set_tag(self.ids[key], k, v) for k, v in shown.items()])

    def file(self, key: str, path: Path) -> None:
        """Attach a file or a folder."""
        attach = "log_artifacts" if path.is_dir() else "log_artifact"
        self._put(lambda client: getattr(client, attach)(self.ids[key], str(path)))

    def register(self, key: str, folder: Path, name: str, tags: dict[str, str]) -> None:
        """Attach an MLflow model to the run, as the newest version of the registered model `name`."""
        self._put(lambda client: self._register(client, key, folder, name, tags))

    def end(self, key: str, good: bool = True) -> None:
        self._put(lambda client: client.set_terminated(self.ids[key], "FINISHED" if good else "FAILED"))

    def close(self, seconds: float = 60.0) -> None:
        """Wait until everything is sent, for at most `seconds`."""
        if self.thread is not None:
            self.jobs.put(STOP)
            self.thread.join(seconds)
            if self.thread.is_alive():
                self.warn(f"MLflow at {self.uri} did not take everything within {seconds:.0f} s")
            elif self.failed:
                self.warn(
                    f"MLflow at {self.uri}: {self.failed}; the run folder holds everything that it misses"
                )

    # ---------------------------------------------------------------------------------- in the thread

    def _put(self, job: Callable[[Any], Any]) -> None:
        if self.thread is not None:
            self.jobs.put(job)

    def _work(self) -> None:
        # A server that does not answer must not be asked for minutes, once per metric.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        client = None
        while (job := self.jobs.get()) is not STOP:
            if self.failed:
                continue
            try:
                client = client or self._connect()
                job(client)
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, training goes on
                self.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :200
                ]

    def _connect(self) -> Any:
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
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

    def _start(self, client: Any, key: str, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        from mlflow.entities import Param

        parent, _, last = key.rpartition("/")
        if key:
            tags = {"mlflow.parentRunId": self.ids[parent], **tags}
        run = client.create_run(self.experiment, run_name=last or self.name, tags=tags)
        self.ids[key] = run.info.run_id
        flat = [Param(name, str(value)[:6000]) for name, value in flatten(parameters).items()]
        for begin in range(0, len(flat), 100):  # the server takes at most 100 parameters at once
            client.log_batch(self.ids[key], params=flat[begin : begin + 100])

    def _register(self, client: Any, key: str, folder: Path, name: str, tags: dict[str, str]) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

        run = self.ids[key]
        client.log_artifacts(run, str(folder), "model")
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.create_model_version(name, source, run_id=run, tags=tags)

    def _metrics(self, client: Any, key: str, values: dict[str, Any], step: int) -> None:
        client.log_batch(self.ids[key], metrics=_entities(values, step))

    def _history(self, client: Any, key: str, entries: list[dict[str, float]]) -> None:
        metrics = [metric for entry in entries for metric in _entities(entry, int(entry["epoch"]))]
        for begin in range(0, len(metrics), 1000):  # and at most 1,000 metrics
            client.log_batch(self.ids[key], metrics=metrics[begin : begin + 1000])


def _entities(values: dict[str, Any], step: int) -> list[Any]:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return [Metric(name, float(value), now, step) for name, value in numbers.items()]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    if isinstance(value, dict) and value:
        items = ((f"{path}.{k}" if path else str(k), v) for k, v in value.items())
        return {name: leaf for key, inner in items for name, leaf in flatten(inner, key).items()}
    return {path: value} if path else {}
