"""The trials of a sweep, by Ray Tune or one packet after the other in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemble_kd.disk import DiskError
from ensemble_kd.errors import ConfigError, StoppedError
from ensemble_kd.local_training import loaded
from ensemble_kd.member_loop import LoadData
from ensemble_kd.mirror import attached
from ensemble_kd.proposals import FINISHED, Proposals
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.fused import choose_fuse
from ensemble_kd.train.process import borrowed
from ensemble_kd.train.trials import Trial
from ensemble_kd.trial_steps import TrialSteps, last_line, rungs

Make = Callable[[int], Proposals]
"""Makes the proposals, given how many students are stacked at most."""


def run_trials(
    runtime: Runtime,
    proposals: Make,
    folder: Path,
    members: Path,
    load_data: LoadData,
    arrays: Callable[[], dict[str, Any]],
    *,
    example: Trial,
    metric: str,
    sign: int,
    fuse: int | str,
    fuse_limit: int,
    replicas: int,
    epochs: int,
    asha: tuple[int, float] | None,
    warn: Callable[[str], None],
) -> None:
    """Train trials until the proposals end. `proposals(fuse)` makes these.

    `asha` is (grace epochs, reduction factor). Raises TrainingError where Tune itself fails.
    """
    where = (runtime, proposals, folder, members, load_data, arrays)
    options: dict[str, Any] = {
        "example": example,
        "metric": metric,
        "sign": sign,
        "fuse": fuse,
        "fuse_limit": fuse_limit,
        "epochs": epochs,
        "asha": asha,
        "warn": warn,
    }
    if runtime.local:
        _run_here(*where, **options)
        return
    from ensemble_kd import tuner

    tuner.run_trials(*where, replicas=replicas, **options)


def _run_here(
    runtime: Runtime,
    proposals: Make,
    folder: Path,
    members: Path,
    load_data: LoadData,
    arrays: Callable[[], dict[str, Any]],
    *,
    example: Trial,
    metric: str,
    sign: int,
    fuse: int | str,
    fuse_limit: int,
    epochs: int,
    asha: tuple[int, float] | None,
    warn: Callable[[str], None],
) -> None:
    shared = {
        "members": str(members),
        "folder": str(folder / "fused"),
        "metric": metric,
        "sign": sign,
        "rungs": rungs(asha, epochs),
    }
    (folder / "fused").mkdir(parents=True, exist_ok=True)
    stops: Callable[[str, dict[str, Any]], bool] = lambda name, result: False  # noqa: E731
    if asha is not None:
        from ensemble_kd.tuner import stopper

        stops = stopper(asha, epochs)
    with borrowed(runtime.compute.cpus_per_worker):
        data, device = loaded(load_data, arrays()), runtime.device()
        if isinstance(fuse, str):
            fuse = choose_fuse(example.tasks[0], data, fuse_limit, device=device) if fuse_limit > 1 else 1
        searcher = proposals(fuse)
        number = 0
        while True:
            name = str(number := number + 1)
            packet = searcher.suggest(name)
            if packet is None or packet == FINISHED:
                return
            assert isinstance(packet, dict)
            for attempt in range(runtime.compute.max_failures + 1):
                try:
                    steps = TrialSteps(packet["work"], shared, data, device=device, mirror=attached())
                    _train_packet(searcher, name, steps, stops)
                    break
                except (StoppedError, DiskError):  # both end the sweep
                    raise
                except Exception as error:  # of this packet alone
                    reason = searcher.reasons[name] = last_line(f"{type(error).__name__}: {error}")
                    if attempt == runtime.compute.max_failures:
                        searcher.on_trial_complete(name, None, error=True)
                    else:
                        names = ", ".join(trial.name for trial in searcher.running[name])
                        warn(f"sweep: {names} failed ({reason}); its students go on where they stand")


def _train_packet(
    searcher: Proposals, name: str, steps: TrialSteps, stops: Callable[[str, dict[str, Any]], bool]
) -> None:
    try:
        while True:
            result = steps.step()
            # Tune, too, tells a last result only once.
            if not result.get("done"):
                searcher.on_trial_result(name, result)
            if stops(name, result) or result.get("done"):
                searcher.on_trial_complete(name, result)
                return
    finally:
        steps.close()


def concurrency(runtime: Runtime, wanted: int | str, replicas: int) -> int:
    """Trials at a time. Raises ConfigError where more are wanted than fit the cluster."""
    capacity, workers = runtime.capacity(), runtime.compute.num_workers
    most = workers[1] if isinstance(workers, tuple) else workers
    fits = (capacity if most == "auto" else min(capacity, most)) // replicas
    cpus, gpus = runtime.resources()
    has = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs"
    each = "each" if replicas == 1 else f"each of {replicas} workers"
    if not capacity:
        raise ConfigError(runtime.too_much())
    if fits < 1:
        raise ConfigError(
            f"student.replicas_per_member: {replicas} workers per student, but {has}; lower it, or "
            "compute.cpus_per_worker or compute.gpus_per_worker"
        )
    if wanted == "auto":
        return fits
    if int(wanted) > fits:
        raise ConfigError(
            f"sweep.concurrent_trials: {wanted}, but {has}, room for {fits} trials, {each} with "
            f"compute.cpus_per_worker = {runtime.compute.cpus_per_worker:g}; lower one of them, or use auto"
        )
    return int(wanted)
