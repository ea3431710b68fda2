"""Ray is started here and nowhere else, and only once something has to run on it."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ensemble_kd.config import ComputeConfig
from ensemble_kd.errors import ConfigError, EnsembleKDError

SETTINGS = {
    # Ray's local workers run at niceness 15, and starve beside anything else that computes.
    "RAY_worker_niceness": "0",
    # The controller notices the end of a run at its next poll; 2 s apart by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A process of its own that only a spot cluster needs; set it to 1 there.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Ray's compiled core announces its own log level on the file descriptor, past every logger."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def reachable(address: str) -> bool:
    """Whether something listens there; Ray itself would keep trying for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10):
            return True
    except (OSError, ValueError):
        return False


@dataclass
class Runtime:
    """A Ray session that starts at its first use. Use as a context manager."""

    compute: ComputeConfig
    address: str | None = None
    """`auto` or `HOST:PORT`; None starts Ray on this machine."""
    verbose: bool = False
    started: bool = False

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.started:
            import ray

            ray.shutdown()
            self.started = False

    def start(self, libraries: bool = True) -> None:
        """Start Ray, or connect to the cluster at `address`; the second call does nothing.

        Without `libraries` those for data and training are not loaded, which takes seconds.
        Raises EnsembleKDError where the cluster cannot be reached.
        """
        if self.started:
            return
        if self.address not in (None, "auto") and not reachable(str(self.address)):
            raise EnsembleKDError(
                f"no Ray cluster at {self.address}; check --address (HOST:PORT of the head node), "
                "or leave it out to run on this machine"
            )
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if not self.verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if libraries:
            import ray.data
            import ray.train

        if not self.verbose:  # after the imports, which set these levels themselves
            for name in ("ray", "ray.data", "ray.train", "ray.tune"):
                logging.getLogger(name).setLevel(logging.ERROR)
        if not ray.is_initialized():
            try:
                with nullcontext() if self.verbose else quiet_stderr():
                    ray.init(
                        address=self.address,
                        log_to_driver=self.verbose,
                        logging_level=logging.INFO if self.verbose else logging.ERROR,
                        include_dashboard=None if self.address else False,
                        namespace="ensemble-kd",
                    )
            except Exception as error:  # a node that is not up in time raises nothing narrower
                raise EnsembleKDError(
                    f"no Ray cluster at {self.address}: {error}; check --address, or leave it out to run on "
                    "this machine"
                    if self.address
                    else f"Ray did not start on this machine: {error}; if it is busy, try again later"
                ) from error
            self.started = True
        if not libraries:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = self.verbose
        context.enable_operator_progress_bars = self.verbose

    def resources(self) -> tuple[float, float]:
        """CPUs and GPUs of the whole cluster."""
        self.start()
        import ray

        total: dict[str, Any] = ray.cluster_resources()
        return float(total.get("CPU", 0)), float(total.get("GPU", 0))

    def gpus_per_worker(self) -> float:
        wanted = self.compute.gpus_per_worker
        return (1.0 if self.resources()[1] >= 1 else 0.0) if wanted == "auto" else float(wanted)

    def capacity(self) -> int:
        """Training workers that fit the cluster at once."""
        cpus, gpus = self.resources()
        fits = math.floor(cpus / self.compute.cpus_per_worker + 1e-9)
        if self.gpus_per_worker() > 0:
            fits = min(fits, math.floor(gpus / self.gpus_per_worker() + 1e-9))
        return fits

    def group_size(self, members: int, replicas: int, path: str) -> int:
        """Workers for `members` with `replicas` workers each.

        Raises ConfigError where the cluster is too small, before anything waits for resources that will
        never come.
        """
        capacity = self.capacity()
        cpus, gpus = self.resources()
        has = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, room for {capacity} workers"
        if capacity < replicas:
            raise ConfigError(
                f"{path}.replicas_per_member: {replicas} workers per member, but {has}; "
                "lower it, or compute.cpus_per_worker or compute.gpus_per_worker"
            )
        wanted = self.compute.num_workers
        if wanted != "auto" and wanted > capacity:
            raise ConfigError(f"compute.num_workers: {wanted}, but {has}; lower it, or set it to auto")
        limit = capacity if wanted == "auto" else wanted
        groups = max(1, min(limit // replicas, members))
        return groups * replicas
