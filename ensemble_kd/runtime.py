"""Ray is started here and nowhere else, and only once something has to run on it."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ensemble_kd import home, local_ray
from ensemble_kd.config import ComputeConfig
from ensemble_kd.errors import ConfigError, EnsembleKDError
from ensemble_kd.termination import Termination

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


RAY_DATA_THREADS = ("StreamingExecutor-", "iter_threaded")
"""How the names of Ray Data's threads begin that run a dataset's execution, and end it."""


def await_ray_data(seconds: float = 30.0) -> None:
    """Wait until Ray Data's own threads have ended an execution that was left in the middle.

    They go on after its iterator was closed. Where Ray is shut down under them, its core ends this process
    at once, with exit code 1 and without a word, so that the error that led here would never be told.
    """
    end = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name.startswith(RAY_DATA_THREADS):
            thread.join(max(0.0, end - time.monotonic()))


@dataclass
class Runtime:
    """A Ray session that starts at its first use. Use as a context manager."""

    compute: ComputeConfig
    address: str | None = None
    """`auto` or `HOST:PORT`; None starts Ray on this machine."""
    verbose: bool = False
    local: bool = False
    """Whether everything runs in this process: Ray is never started, and one worker is all there is."""
    started: bool = False
    termination: Termination = field(default_factory=Termination)
    warn: Callable[[str], None] = lambda text: None
    """Where it says what it waits for."""

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.started:
            import ray

            await_ray_data()
            ray.shutdown()
            self.started = False

    def start(self, libraries: bool = True) -> None:
        """Start Ray, or connect to the cluster at `address`; the second call does nothing.

        Without `libraries` those for data and training are not loaded, which takes seconds.
        Raises EnsembleKDError where the cluster cannot be reached.
        """
        assert not self.local, "what has to do without Ray asks for it"
        if self.started:
            return
        if self.address is None and os.environ.get("RAY_ADDRESS"):  # inside a job
            self.address = "auto"
        if self.address not in (None, "auto") and not reachable(str(self.address)):
            raise EnsembleKDError(
                f"no Ray cluster at {self.address}; check --address (HOST:PORT of the head node), "
                "or leave it out to run on this machine"
            )
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if self.address is None:
            home.provide(self.warn)
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
            with nullcontext() if self.verbose else quiet_stderr():
                self._init()
            self.started = True
            if self.termination.active:
                self.termination.install()
        if not libraries:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = self.verbose
        context.enable_operator_progress_bars = self.verbose

    def _init(self) -> None:
        import ray

        options: dict[str, Any] = {
            "log_to_driver": self.verbose,
            "logging_level": logging.INFO if self.verbose else logging.ERROR,
            "namespace": "ensemble-kd",
        }
        if self.address is None:  # else Ray would look for a cluster that `ray start` left a note of
            local_ray.start(self.warn, include_dashboard=False, **options)
            return
        try:
            ray.init(address=self.address, **options)
        except Exception as error:  # a node that is not up in time raises nothing narrower
            if isinstance(error, EnsembleKDError):  # a signal that came meanwhile
                raise
            # Ray says of a missing token only that it could not connect.
            token = (
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if it asks for a token, "
                if os.environ.get("RAY_AUTH_MODE") != "token"
                else "compare RAY_AUTH_TOKEN with the cluster's, "
            )
            raise EnsembleKDError(
                f"no Ray cluster at {self.address}: {error}; {token}check --address, or leave it out to "
                "run on this machine"
            ) from error

    def resources(self) -> tuple[float, float]:
        """CPUs and GPUs of the whole cluster."""
        nodes = self.nodes()
        return sum(node.get("CPU", 0.0) for node in nodes), sum(node.get("GPU", 0.0) for node in nodes)

    def nodes(self) -> list[dict[str, float]]:
        """What each living node has, whether it is in use or not; with `local`, what this machine has."""
        if self.local:
            return [{"CPU": float(cpus_here()), "GPU": float(gpus_here())}]
        self.start()
        import ray

        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]

    def on_one_machine(self) -> bool:
        """Whether all of Ray is here, which a program that uses us as a library may have started itself."""
        return self.address is None and len(self.nodes()) == 1

    def gpus_per_worker(self) -> float:
        wanted = self.compute.gpus_per_worker
        return (1.0 if self.resources()[1] >= 1 else 0.0) if wanted == "auto" else float(wanted)

    def bundle(self) -> dict[str, float]:
        """What one training worker claims."""
        gpus = self.gpus_per_worker()
        return {"CPU": self.compute.cpus_per_worker, **({"GPU": gpus} if gpus else {})}

    def capacity(self) -> int:
        """Training workers that fit the cluster at once, each whole on one node."""
        room = fit(self.bundle(), self.nodes())
        return min(room, 1) if self.local else room

    def device(self) -> Any:
        """The torch device of work in this process."""
        import torch

        return torch.device("cuda" if self.gpus_per_worker() else "cpu")

    def group_size(self, members: int, replicas: int, path: str) -> int:
        """Workers for `members` with `replicas` workers each.

        A cluster that may still grow or become free is waited for, at most `compute.placement_timeout`
        seconds and not without saying so. Raises ConfigError where the cluster stays too small, before
        anything waits for resources that will never come.
        """
        wanted = self.compute.num_workers
        least = replicas
        if wanted != "auto":
            low = wanted[0] if isinstance(wanted, tuple) else wanted
            least = max(least, min(low, members * replicas) if isinstance(wanted, tuple) else low)
        if self.capacity() < least:
            self._await(least, lambda: self.capacity() >= least, "the cluster is too small")
        capacity = self.capacity()
        if not capacity:
            raise ConfigError(self.too_much())
        if capacity < replicas:
            raise ConfigError(
                f"{path}.replicas_per_member: {replicas} workers per member, but {self.has()}; "
                "lower it, or compute.cpus_per_worker or compute.gpus_per_worker"
            )
        if capacity < least:
            told = list(wanted) if isinstance(wanted, tuple) else wanted
            raise ConfigError(f"compute.num_workers: {told}, but {self.has()}; lower it, or set it to auto")
        most = wanted[1] if isinstance(wanted, tuple) else wanted
        limit = capacity if most == "auto" else min(most, capacity)
        groups = max(1, min(limit // replicas, members))
        size = groups * replicas
        if self.address is None:  # nobody else is here, and what the stage before used is about to be free
            return size
        self._await(size, lambda: self.free() >= size, "its resources are in use")
        if (free := self.free()) < size:
            if free // replicas and wanted == "auto":  # rather fewer workers than none
                return free // replicas * replicas
            raise EnsembleKDError(
                f"{path}: room for {free} of {size} workers of {_words(self.bundle())} each: the rest of the "
                "cluster is in use by other jobs; wait for them, set compute.num_workers to at most "
                f"{free}, or raise compute.placement_timeout"
            )
        return size

    def too_much(self) -> str:
        """The setting that asks more for one worker than any node has, and what to lower it to."""
        nodes, told = self.nodes(), {"CPU": "cpus", "GPU": "gpus"}
        for name, amount in self.bundle().items():
            most = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if amount > most:
                lower = "; lower it" if most else f"; set it to 0 to train without {name}s"
                return (
                    f"compute.{told[name]}_per_worker: {amount:g} for one worker, but no node has more than "
                    f"{most:g}{lower}"
                )
        return (
            f"compute.cpus_per_worker: {_words(self.bundle())} for one worker, which no node has together "
            f"({self.has()}); lower it, or compute.gpus_per_worker"
        )

    def free(self) -> int:
        """Training workers that fit into what nobody uses now."""
        self.start()
        import ray

        available = ray._private.state.available_resources_per_node()
        return fit(self.bundle(), list(available.values()))

    def has(self) -> str:
        cpus, gpus = self.resources()
        nodes = self.nodes()
        where = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
        return f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs{where}, room for {self.capacity()} workers"

    def _await(self, size: int, there: Callable[[], bool], why: str) -> None:
        """Wait until `there`, at most `placement_timeout` seconds, on a cluster, which is asked to grow."""
        if there() or self.address is None:
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[self.bundle()] * size)
        end, told = time.monotonic() + self.compute.placement_timeout, time.monotonic() + 5
        try:
            while not there() and time.monotonic() < end:
                if time.monotonic() > told:
                    self.warn(
                        f"waiting for {size} workers of {_words(self.bundle())} each: {why} "
                        f"({self.has()}, {self.free()} of them free now); giving up after "
                        f"{self.compute.placement_timeout:g} s"
                    )
                    told = math.inf
                time.sleep(0.5)
        finally:
            request_resources(bundles=[])


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    import torch

    return int(torch.cuda.device_count())


def fit(bundle: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """How many bundles fit the nodes, each whole on one of them."""
    rooms = (
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in bundle.items())
        for node in nodes
    )
    return sum(rooms)


def _words(bundle: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}{'s' if amount != 1 else ''}" for name, amount in bundle.items())
