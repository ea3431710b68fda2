"""The trials of a sweep, by Ray Tune or one packet after the other in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ensemble_kd.attached import attached
from ensemble_kd.disk import DiskError
from ensemble_kd.errors import ConfigError, StoppedError
from ensemble_kd.local_training import loaded
from ensemble_kd.proposals import FINISHED, Proposals
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.process import borrowed
from ensemble_kd.train.stack_size import choose_fuse
from ensemble_kd.trial_steps import TrialSteps, TrialWork, last_line, rungs


def run_trials(runtime: Runtime, work: TrialWork) -> None:
    """Train trials until the proposals end. Raises TrainingError where Tune itself fails."""
    if runtime.local:
        _run_here(runtime, work)
        return
    from ensemble_kd import tuner

    tuner.run_trials(runtime, work)


def _run_here(runtime: Runtime, work: TrialWork) -> None:
    shared = {
        "members": str(work.members),
        "folder": str(work.folder / "fused"),
        "metric": work.metric,
        "sign": work.sign,
        "rungs": rungs(work.asha, work.epochs),
    }
    (work.folder / "fused").mkdir(parents=True, exist_ok=True)
    stops: Callable[[str, dict[str, Any]], bool] = lambda name, result: False  # noqa: E731
    if work.asha is not None:
        from ensemble_kd.tuner import stopper

        stops = stopper(work.asha, work.epochs)
    with borrowed(runtime.compute.cpus_per_worker):
        data, device = loaded(work.load_data, work.arrays()), runtime.device()
        fuse = work.fuse
        if isinstance(fuse, str):
            task, most = work.example.tasks[0], work.fuse_limit
            fuse = choose_fuse(task, data, most, device=device) if most > 1 else 1
        searcher = work.proposals(fuse)
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
                        work.warn(f"sweep: {names} failed ({reason}); its students go on where they stand")


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
