"""Ray Tune: trials proposed by Optuna, stopped early by ASHA, trained by actors that are used again.

What Tune calls a trial is here a *packet*: the configurations that one process trains side by side, often
one. The driver's record of every configuration is kept in the run folder by the stage, not by Tune, so that
a sweep goes on after a kill without unpickling anything; Tune's own files are scratch.

Ray is imported with this module: import it only where a sweep really starts.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from ensemble_kd import disk, local_group
from ensemble_kd.disk import DiskError, told
from ensemble_kd.errors import ConfigError, EnsembleKDError, TrainingError
from ensemble_kd.failures import keep, last_words
from ensemble_kd.mirror import attach, attached, attached_spec
from ensemble_kd.redact import VARIABLES
from ensemble_kd.runtime import Runtime
from ensemble_kd.secret_options import held, hold
from ensemble_kd.train.member import MemberTask
from ensemble_kd.train.process import prepare
from ensemble_kd.train.trials import JUDGED, Entry, Epochs, Packet, Trial
from ensemble_kd.workers import LoadData

OBJECTIVE = "objective"
"""What Tune maximises: the metric, or its negative."""
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
SECONDS_PER_REPORT = 0.5
"""Epochs are told to Tune together where several fit into this."""


class Students(tune.Trainable):
    """The actor: trains one packet after another on data that all actors of a node share."""

    def setup(self, config: dict[str, Any], shared: dict[str, Any]) -> None:
        import torch

        prepare(shared["cpus_per_worker"])
        self.shared = shared
        self.mirror = attach(shared["mirror"])
        hold(shared["secrets"])
        self.replicas: list[Any] = []
        self.data = None
        self.full: DiskError | None = None
        if shared["replicas"] == 1:
            self.data = _load(shared)
            self.device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.packet.close()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        work = json.loads(config["work"])
        self.kept = work["kept"]
        trials = [[MemberTask(**fields) for fields in tasks] for tasks in work["trials"]]
        names = [task.name for tasks in trials for task in tasks]
        self.name = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        try:
            with told(self.name, Path(self.shared["members"]).parents[1]):
                self._open(work, trials)
        except DiskError as error:  # told with the first step: Tune would start this process again
            self.full = error

    def _open(self, work: dict[str, Any], trials: list[list[MemberTask]]) -> None:
        members, folder = Path(self.shared["members"]), Path(self.shared["folder"])
        self.written = [folder, *(task.folder(members) for tasks in trials for task in tasks)]
        if self.mirror is not None:
            for path in self.written:
                self.mirror.pull(path)
        if self.data is None:
            self.packet = Packet(trials, None, members, start=self._together)  # type: ignore[arg-type]
            return
        self.packet = Packet(trials, self.data, members, fuse=work["fuse"], folder=folder, device=self.device)

    def step(self) -> dict[str, Any]:
        """One epoch or, since a report costs Tune tenths of a second, as many as fit into one; never past a
        rung, where ASHA compares. A full disk is told in the result's place, and ends the sweep."""
        try:
            if self.full is not None:
                raise self.full
            with told(self.name, Path(self.shared["members"]).parents[1]):
                return self._epochs()
        except DiskError as error:
            return {"full": str(error), OBJECTIVE: math.nan, "epoch": 0, "done": True}

    def _epochs(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS_PER_REPORT
        kept: list[list[Entry]] = []
        while True:
            standings = self.packet.step()
            kept = kept or [[] for _ in standings]
            for entries, standing in zip(kept, standings, strict=True):
                entries += [standing["entry"]] if standing["entry"] else []
            epoch = max(standing["epoch"] for standing in standings)
            if self.packet.done or epoch in self.shared["rungs"] or time.monotonic() > until:
                break
        for entries, standing in zip(kept, standings, strict=True):
            standing["entries"] = entries
        if self.mirror is not None:
            for path in self.written:
                self.mirror.push_soon(path)
            if self.packet.done:
                self.mirror.flush()
        metric, sign = self.shared["metric"], self.shared["sign"]
        values = [
            (s.get("values") or s["entry"] or {}).get(metric) for s in standings if s["state"] != "failed"
        ]
        known = [sign * value for value in values if value is not None]
        if self.kept:
            known = []
        return {
            "standings": json.dumps(standings),
            "epoch": epoch,
            OBJECTIVE: max(known, default=math.nan),
            "done": self.packet.done,
        }

    def cleanup(self) -> None:
        if self.full is None:
            self.packet.close()
        self._release()

    # A student that needs several workers: plain actors inside this trial's own placement group. A trainer in
    # here would bring a second placement group, which is leaked when the trial is stopped (ray #54305).

    def _together(self, task: MemberTask) -> Epochs:
        for attempt in range(self.shared["max_failures"] + 1):
            try:
                return (yield from self._in_replicas(task))
            except ray.exceptions.RayError as error:
                # The others wait for the lost one for ever: all go, and new ones start at its checkpoint.
                self._release()
                if isinstance(cause := getattr(error, "cause", None), DiskError):
                    raise cause from error
                if attempt == self.shared["max_failures"]:
                    raise RuntimeError(_last_line(str(error))) from error
        raise AssertionError("unreachable")

    def _in_replicas(self, task: MemberTask) -> Epochs:
        if not self.replicas:
            size = self.shared["replicas"]
            resources = {
                "num_cpus": self.shared["cpus_per_worker"],
                "num_gpus": self.shared["gpus_per_worker"],
            }
            actor = ray.remote(**resources)(_Replica)
            self.replicas = [actor.remote(rank, size, self.shared) for rank in range(size)]
            address = ray.get(self.replicas[0].address.remote())
            ray.get([replica.join.remote(address) for replica in self.replicas])
        fields = asdict(task)
        ray.get([replica.begin.remote(fields) for replica in self.replicas])
        while True:
            found = ray.get([replica.step.remote() for replica in self.replicas])
            if isinstance(found[0], bool):
                return found[0]
            yield found[0]

    def _release(self) -> None:
        for replica in self.replicas:
            ray.kill(replica)
        self.replicas = []


class _Replica:
    """One of the workers that train a student together (DDP)."""

    def __init__(self, rank: int, size: int, shared: dict[str, Any]) -> None:
        import torch

        prepare(shared["cpus_per_worker"])
        self.mirror = attach(shared["mirror"])
        hold(shared["secrets"])
        self.rank, self.size, self.shared = rank, size, shared
        self.device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self.data = _load(shared)
        self.epochs: Any = None

    def address(self) -> str:
        """The URL at which the others find this one."""
        from socket import socket

        if self.shared["meeting"] is not None:
            return local_group.meeting(self.shared["meeting"])
        with socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str) -> None:
        import torch.distributed as dist

        if self.shared["meeting"] is not None:
            local_group.stay()
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=self.rank, world_size=self.size)

    def begin(self, fields: dict[str, Any]) -> None:
        import torch.distributed as dist

        from ensemble_kd.train.loop import Replicas
        from ensemble_kd.train.member import member_epochs

        task, members = MemberTask(**fields), Path(self.shared["members"])
        self.name = task.name
        if self.mirror is not None:
            self.mirror.pull(task.folder(members))
        self.epochs = member_epochs(
            task,
            self.data,
            members,
            device=self.device,
            replicas=Replicas(self.rank, self.size, dist.group.WORLD),
        )

    def step(self) -> Entry | bool:
        """The next epoch's entry, or at the end whether it went well."""
        try:
            with told(self.name, Path(self.shared["members"]).parents[1]):
                entry: Entry = next(self.epochs)
                return entry
        except StopIteration as end:
            return bool(end.value)


def _last_line(text: str) -> str:
    """What an error of Ray's comes down to; the rest is advice that fills a screen."""
    line = next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "unknown")
    return line.split(". ")[0][:300]


def _load(shared: dict[str, Any]) -> Any:
    """The node's arrays, mapped and not copied."""
    arrays = {name: ray.get(reference) for name, reference in shared["references"].items()}
    return shared["load_data"](arrays)


class Proposals(Searcher):
    """Hands trials to Tune in packets and takes their results; the one place where trials change state."""

    def __init__(
        self,
        waiting: list[Trial],
        propose: Callable[[], Trial | None],
        follow_up: Callable[[], list[Trial]],
        on_change: Callable[[Trial], None],
        on_epoch: Callable[[Trial, Entry], None],
        *,
        fuse: int,
        concurrent: int,
        left: Callable[[], int],
        too_many_failed: Callable[[], bool],
        max_failures: int,
        offset: float,
        rounds: int = 1,
        apart: bool = False,
        packets: int = 0,
    ) -> None:
        """`left` says how many trials are still to be proposed; in `rounds` packets for each process, so that
        a search learns in between. `apart` keeps baselines, which are never stopped, out of others' packets.
        `packets` is the last number that an earlier run gave.
        """
        super().__init__(metric=OBJECTIVE, mode="max")
        self.waiting, self.propose, self.follow_up = deque(waiting), propose, follow_up
        self.on_change, self.on_epoch = on_change, on_epoch
        self.fuse, self.concurrent, self.left = fuse, concurrent, left
        self.too_many_failed, self.max_failures = too_many_failed, max_failures
        self.rounds, self.apart, self.packets = rounds, apart, packets
        self.offset, self.origin = offset, time.monotonic()
        self.running: dict[str, list[Trial]] = {}
        self.reasons: dict[str, str] = {}
        """By Tune's trial: why its process failed last."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps copies of its searcher to resume from; we resume from the run folder

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def clock(self) -> float:
        """Seconds since the sweep began, time in which it lay killed left out."""
        return self.offset + time.monotonic() - self.origin

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.too_many_failed():
            return str(Searcher.FINISHED)
        if len(self.running) >= self.concurrent:
            return None
        trials = self._take()
        if not trials and not self.running:
            self.waiting.extend(self.follow_up())
            trials = self._take()
        if not trials:
            return None if self.running else str(Searcher.FINISHED)
        self.running[trial_id] = trials
        if trials[0].packet is None:
            self.packets += 1
            for trial in trials:
                trial.packet = self.packets
        for trial in trials:
            if trial.began is None:
                trial.began = self.clock()
            trial.state = "running"
            self.on_change(trial)
        fuse = 1 if trials[0].alone else self.fuse
        work = {
            "trials": [[asdict(task) for task in trial.tasks] for trial in trials],
            "fuse": fuse,
            # Without a baseline there is no verdict: ASHA, which is given no number, lets it run.
            "kept": any(trial.kind == "hard" for trial in trials),
        }
        return {"work": json.dumps(work)}

    def _take(self) -> list[Trial]:
        """The next packet: at most `fuse` students, and no more than a fair share of what is left."""
        busy = {task.fingerprint for trials in self.running.values() for t in trials for task in t.tasks}

        def free() -> Trial | None:
            """The first that waits and has no student that another process trains."""
            clear = (t for t in self.waiting if not busy & {task.fingerprint for task in t.tasks})
            return next(clear, None)

        first = free()
        if first is not None and first.packet is not None and not first.alone:  # as before a kill
            again = [t for t in self.waiting if t.packet == first.packet and not t.alone]
            self.waiting = deque(t for t in self.waiting if t not in again)
            return again
        share = math.ceil((len(self.waiting) + self.left()) / self.concurrent / self.rounds)
        taken: list[Trial] = []
        while not taken or (self.fuse > 1 and len(taken) < share):
            trial = free()
            if trial is None:
                trial = self.propose()
                if trial is None:
                    break
                self.waiting.append(trial)
                if trial is not free():
                    break
            if taken and not self._fits(trial, taken):
                break
            self.waiting.remove(trial)
            taken.append(trial)
        return taken

    def _fits(self, trial: Trial, taken: list[Trial]) -> bool:
        size = sum(len(t.tasks) for t in [*taken, trial])
        if self.apart and trial.kind != taken[0].kind:
            return False
        return size <= self.fuse and trial.packet is None and not (trial.alone or taken[0].alone)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        _raise_full(result)
        for trial, standing in zip(self.running[trial_id], json.loads(result["standings"]), strict=True):
            self._follow(trial, standing)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        _raise_full(result or {})
        trials = self.running.pop(trial_id, [])
        if error and len(trials) > 1:  # which of them it was shows when each is alone
            for trial in reversed([trial for trial in trials if not trial.over]):
                trial.alone, trial.state, trial.packet = True, "waiting", None
                self.waiting.appendleft(trial)
            return
        standings: list[dict[str, Any]] = [{} for _ in trials]
        if result and "standings" in result and not error:
            standings = json.loads(result["standings"])
        for trial, standing in zip(trials, standings, strict=True):
            if error or not standing:
                reason = self.reasons.get(trial_id, "it died")
                died = f"its process failed {self.max_failures + 1} times: {reason}"
                standing = {"state": "failed", "reason": died, "entries": [], "fused": 1}
            self._follow(trial, standing)
            if not trial.over:
                trial.state, trial.reason = "stopped", f"behind the others after {trial.epochs} epochs"
                self._end(trial)

    def _follow(self, trial: Trial, standing: dict[str, Any]) -> None:
        if trial.over:
            return
        trial.fused = standing["fused"]
        for entry in standing["entries"]:
            if entry["epoch"] <= trial.epochs:  # told before its process died
                continue
            trial.history.append(entry)
            trial.epochs = int(entry["epoch"])
            trial.values = {key: entry[key] for key in JUDGED if key in entry}
            self.on_epoch(trial, entry)
        if standing["state"] != "running":
            trial.state, trial.reason = standing["state"], standing["reason"]
            trial.values = standing.get("values") or {}
            self._end(trial)

    def _end(self, trial: Trial) -> None:
        trial.ended = self.clock()
        self.on_change(trial)


def _raise_full(result: dict[str, Any]) -> None:
    if "full" in result:
        raise DiskError(result["full"]).within("sweep")


class _Asha(AsyncHyperBandScheduler):
    """ASHA that takes no notice of packets without a number: baselines, and those that failed."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not math.isfinite(result[OBJECTIVE]):
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(OBJECTIVE, math.nan)):
            super().on_trial_complete(tune_controller, trial, result)


class _Recoveries(tune.Callback):
    """Says when a trial's process failed and is started again, and keeps the reason."""

    def __init__(self, searcher: Proposals, warn: Callable[[str], None]) -> None:
        self.searcher, self.warn = searcher, warn

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as Proposals

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        try:
            text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        except (OSError, TypeError):
            text = ""
        reason = _last_line(text)
        self.searcher.reasons[trial.trial_id] = reason
        names = ", ".join(trial.name for trial in self.searcher.running.get(trial.trial_id, []))
        self.warn(f"sweep: the process of {names} failed ({reason}); its students go on in another")


def run_trials(
    runtime: Runtime,
    proposals: Callable[[int], Proposals],
    folder: Path,
    members: Path,
    load_data: LoadData,
    arrays: Callable[[], dict[str, Any]],
    example: Trial,
    *,
    metric: str,
    sign: int,
    fuse: int | str,
    fuse_limit: int,
    replicas: int,
    epochs: int,
    asha: tuple[int, float] | None,
    warn: Callable[[str], None],
) -> None:
    """Run Tune until the proposals end. `proposals(fuse)` makes the searcher.

    `arrays()` are put into the object store once and mapped by every trial's process. `asha` is (grace
    epochs, reduction factor). Raises TrainingError where Tune itself fails.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    compute = runtime.compute
    gpus = runtime.gpus_per_worker()
    shared: dict[str, Any] = {
        "references": {name: ray.put(array) for name, array in arrays().items()},
        "load_data": load_data,
        "members": str(members),
        "folder": str(folder / "fused"),
        "cpus_per_worker": compute.cpus_per_worker,
        "gpus_per_worker": gpus,
        "replicas": replicas,
        "max_failures": compute.max_failures,
        "metric": metric,
        "sign": sign,
        "rungs": _rungs(asha, epochs),
        "mirror": attached_spec(),
        "secrets": held(),
        "meeting": tempfile.mkdtemp(prefix="ensemble-kd-") if runtime.on_one_machine() else None,
    }
    (folder / "fused").mkdir(parents=True, exist_ok=True)
    each = {"CPU": compute.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    if replicas > 1:
        size, bundles = 1, [{"CPU": 0.0}, *[each] * replicas]
    else:
        bundles = [each]
        size = fuse if isinstance(fuse, int) else _measured(shared, example.tasks[0], fuse_limit, each)
    searcher = proposals(size)
    # Else Tune starts the second process only once the first is there, seconds later.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(searcher.concurrent)
    scheduler = FIFOScheduler()
    if asha is not None:
        grace, factor = asha
        # One epoch more than there are, so that trials in their last epoch are left to finish themselves.
        scheduler = _Asha("epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=factor)
    scratch = folder / ".ray"
    trainable = tune.with_resources(
        tune.with_parameters(Students, shared=shared), tune.PlacementGroupFactory(bundles)
    )
    trainable.__name__ = trainable.__qualname__ = Students.__name__  # what `ps` shows
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(scratch.resolve()),
            failure_config=tune.FailureConfig(max_failures=compute.max_failures),
            # Students keep their own checkpoints; Tune's would be copies of nothing.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[_Recoveries(searcher, warn)],
            verbose=0,
        ),
    )
    # Tune would hand the driver's keys to trials in a runtime environment, which Ray writes into its logs.
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not VARIABLES.search(name)
    }
    try:
        tuner.fit()
    except EnsembleKDError:  # a signal, or a full disk
        raise
    except Exception as error:  # whatever Tune raises, what is finished is kept
        if (code := disk.code_of(error)) is not None:
            raise disk.full(code, scratch).within("sweep") from error
        where = keep("".join(traceback.format_exception(error)), folder)
        raise TrainingError(
            f"sweep: Ray Tune failed: {last_words(str(error))}; finished trials are kept, run again to go "
            f"on{where}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if shared["meeting"] is not None:
            shutil.rmtree(shared["meeting"], ignore_errors=True)
        if (mirror := attached()) is not None:
            mirror.pull(members)


def _rungs(asha: tuple[int, float] | None, epochs: int) -> list[int]:
    """The epochs at which ASHA decides: the first at or after each of its milestones."""
    found = []
    if asha is not None:
        milestone, factor = float(asha[0]), asha[1]
        while milestone <= epochs:
            found.append(math.ceil(milestone))
            milestone *= factor
    return found


def _measured(shared: dict[str, Any], task: MemberTask, limit: int, resources: dict[str, float]) -> int:
    """How many students to stack, measured for some steps where the trials will run."""
    if limit < 2:
        return 1
    remote = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=2)(_choose)
    return int(ray.get(remote.remote(shared, task, limit)))


def _choose(shared: dict[str, Any], task: MemberTask, limit: int) -> int:
    import torch

    from ensemble_kd.train.fused import choose_fuse

    prepare(shared["cpus_per_worker"])
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    try:
        return choose_fuse(task, _load(shared), limit, device=device)
    except torch.OutOfMemoryError:
        return 1


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
