"""The `compute` and `tracking` blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ensemble_kd.config.base import Block

if TYPE_CHECKING:
    from ensemble_kd.config.run import Config


class ComputeConfig(Block):
    """What the run may use of the cluster."""

    later: ClassVar[frozenset[str]] = frozenset({"executor"})

    executor: Literal["auto", "local", "ray"] = "auto"
    """Where members are trained and networks run: in worker processes (`ray`), or one after the other in this
    process, without starting Ray (`local`). `auto`: Ray; but where one process is all that could work at a
    time, the command line does without it, and starts that process again should it die."""
    num_workers: int | tuple[int, int] | Literal["auto"] = "auto"
    """Training workers; `auto`: one per GPU, or per CPU where there is none, as many as have work.
    `[min, max]`: elastic, the group grows and shrinks with the cluster's nodes."""
    cpus_per_worker: float = Field(1.0, gt=0, le=10_000)
    """CPUs of one training worker, and torch threads of it when they are whole."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1000)] | Literal["auto"] = "auto"
    """GPUs of one training worker; `auto`: 1 where the cluster has GPUs, else 0."""
    max_failures: int = Field(3, ge=0)
    """Times a worker group is restarted at its last checkpoints after a worker or node died."""
    memory_budget: float = Field(4.0, gt=0)
    """GB of inputs and soft targets that may be held per node; a larger transfer set is streamed."""
    placement_timeout: float = Field(60.0, ge=0, le=10_000_000)
    """Seconds for which workers that a cluster has no room for yet are waited for."""
    grace: float = Field(20.0, ge=0, le=100_000)
    """Seconds that members have, after SIGTERM, to save where they stand."""
    scratch: str | None = None
    """Folder, the same on every node, for copies of a run folder in a store (s3://...); null for
    `ensemble-kd` in the temporary folder."""


class TrackingConfig(Block):
    """MLflow."""

    uri: str | None = None
    """Tracking server or database; null for `mlflow.db` (SQLite) beside the run folders."""
    experiment: str = "ensemble-kd"
    """Experiment that the runs are filed under."""
    enabled: bool = True
    """Whether anything is sent to MLflow."""


def executor_problems(config: Config) -> list[str]:
    """What `compute.executor: local` cannot do: anything that takes more than one process."""
    if config.compute.executor != "local":
        return []
    workers, actors = config.compute.num_workers, config.soft_targets.num_actors
    least = workers[0] if isinstance(workers, tuple) else workers
    wanted = [
        ("teachers.replicas_per_member", config.teachers.replicas_per_member, "set it to 1"),
        ("student.replicas_per_member", config.student.replicas_per_member, "set it to 1"),
        ("compute.num_workers", 1 if least == "auto" else least, "leave it at auto"),
        ("soft_targets.num_actors", 1 if actors == "auto" else actors, "leave it at auto"),
    ]
    if config.specialists is not None:
        replicas = config.specialists.replicas_per_member
        wanted.append(("specialists.replicas_per_member", replicas, "set it to 1"))
    if config.sweep is not None and config.sweep.concurrent_trials != "auto":
        wanted.append(("sweep.concurrent_trials", config.sweep.concurrent_trials, "leave it at auto"))
    return [
        f"{path}: {count}, but compute.executor is local, which is this one process; {remedy}, or set "
        "compute.executor to auto"
        for path, count, remedy in wanted
        if count > 1
    ]
