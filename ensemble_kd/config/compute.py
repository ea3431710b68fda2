"""The `compute` and `tracking` blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ensemble_kd.config.base import Block


class ComputeConfig(Block):
    """What the run may use of the cluster."""

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
