"""Ray Tune: trials proposed by Optuna, stopped early by ASHA, trained by actors that are used again.

What Tune calls a trial is here a *packet*: the configurations that one process trains side by side, often
one. The driver's record of every configuration is kept in the run folder by the stage, not by Tune, so that
a sweep goes on after a kill without unpickling anything; Tune's own files are scratch.

Ray is imported with this module: import it only where a sweep really starts.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from ensemble_kd import disk, local_group
from ensemble_kd.attached import attach, attached, attached_spec
from ensemble_kd.carried import held, hold
from ensemble_kd.disk import DiskError, told
from ensemble_kd.errors import EnsembleKDError, TrainingError
from ensemble_kd.failures import keep, last_words
from ensemble_kd.proposals import Proposals
from ensemble_kd.redact import VARIABLES
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.process import prepare
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.trials import Entry, Epochs
from ensemble_kd.trial_steps import OBJECTIVE, TrialSteps, TrialWork, last_line, rungs

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Students(tune.Trainable):
    """The actor: trains one packet after another on data that all actors of a node share."""

    def setup(self, config: dict[str, Any], shared: dict[str, Any]) -> None:
        import torch

        prepare(shared["cpus_per_worker"])
        self.shared = shared
        self.mirror = attach(shared["mirror"])
        hold(shared["carried"])
        self.replicas: list[Any] = []
        self.options: dict[str, Any] = {"data": None, "start": self._together}
        if shared["replicas"] == 1:
            device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
            self.options = {"data": _load(shared), "device": device}
        self.steps = TrialSteps(config["work"], shared, mirror=self.mirror, **self.options)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.steps.close()
        self.steps = TrialSteps(new_config["work"], self.shared, mirror=self.mirror, **self.options)
        return True

    def step(self) -> dict[str, Any]:
        return self.steps.step()

    def cleanup(self) -> None:
        self.steps.close()
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
                    raise RuntimeError(last_line(str(error))) from error
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
        hold(shared["carried"])
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


def _load(shared: dict[str, Any]) -> Any:
    """The node's arrays, mapped and not copied."""
    arrays = {name: ray.get(reference) for name, reference in shared["references"].items()}
    return shared["load_data"](arrays)


class _Searcher(Searcher):
    """The proposals, as Tune asks for them."""

    def __init__(self, proposals: Proposals) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self.proposals = proposals

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps copies of its searcher to resume from; we resume from the run folder

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self.proposals.suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.proposals.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.proposals.on_trial_complete(trial_id, result, error)


class _Asha(AsyncHyperBandScheduler):
    """ASHA that takes no notice of packets without a number: baselines, and those that failed."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not math.isfinite(result[OBJECTIVE]):
            return str(self.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if math.isfinite(result.get(OBJECTIVE, math.nan)):
            super().on_trial_complete(tune_controller, trial, result)


def _asha(asha: tuple[int, float], epochs: int, **where: str) -> _Asha:
    grace, factor = asha
    # One epoch more than there are, so that trials in their last epoch are left to finish themselves.
    return _Asha("epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=factor, **where)


def stopper(asha: tuple[int, float], epochs: int) -> Callable[[str, dict[str, Any]], bool]:
    """ASHA without Tune: whether a packet of that name is to be stopped after this result."""
    scheduler = _asha(asha, epochs, metric=OBJECTIVE, mode="max")

    @dataclass(frozen=True)
    class Named:
        trial_id: str

    seen: set[str] = set()

    def stops(name: str, result: dict[str, Any]) -> bool:
        if name not in seen:
            seen.add(name)
            scheduler.on_trial_add(None, Named(name))
        if result["done"]:
            scheduler.on_trial_complete(None, Named(name), result)
            return False
        return scheduler.on_trial_result(None, Named(name), result) == scheduler.STOP

    return stops


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
        reason = last_line(text)
        self.searcher.reasons[trial.trial_id] = reason
        names = ", ".join(trial.name for trial in self.searcher.running.get(trial.trial_id, []))
        self.warn(f"sweep: the process of {names} failed ({reason}); its students go on in another")


def run_trials(runtime: Runtime, work: TrialWork) -> None:
    """Run Tune until the proposals end. `work.arrays()` are put into the object store once, and mapped by
    every trial's process. Raises TrainingError where Tune itself fails."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    compute = runtime.compute
    gpus = runtime.gpus_per_worker()
    shared: dict[str, Any] = {
        "references": {name: ray.put(array) for name, array in work.arrays().items()},
        "load_data": work.load_data,
        "members": str(work.members),
        "folder": str(work.folder / "fused"),
        "cpus_per_worker": compute.cpus_per_worker,
        "gpus_per_worker": gpus,
        "replicas": work.replicas,
        "max_failures": compute.max_failures,
        "metric": work.metric,
        "sign": work.sign,
        "rungs": rungs(work.asha, work.epochs),
        "mirror": attached_spec(),
        "carried": held(),
        "meeting": tempfile.mkdtemp(prefix="ensemble-kd-") if runtime.on_one_machine() else None,
    }
    (work.folder / "fused").mkdir(parents=True, exist_ok=True)
    each = {"CPU": compute.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    if work.replicas > 1:
        size, bundles = 1, [{"CPU": 0.0}, *[each] * work.replicas]
    else:
        bundles = [each]
        size = (
            work.fuse
            if isinstance(work.fuse, int)
            else _measured(shared, work.example.tasks[0], work.fuse_limit, each)
        )
    searcher = work.proposals(size)
    # Else Tune starts the second process only once the first is there, seconds later.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(searcher.concurrent)
    scheduler = FIFOScheduler() if work.asha is None else _asha(work.asha, work.epochs)
    scratch = work.folder / ".ray"
    trainable = tune.with_resources(
        tune.with_parameters(Students, shared=shared), tune.PlacementGroupFactory(bundles)
    )
    trainable.__name__ = trainable.__qualname__ = Students.__name__  # what `ps` shows
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            search_alg=_Searcher(searcher),
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
            callbacks=[_Recoveries(searcher, work.warn)],
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
        if searcher.full is not None:
            raise searcher.full from error
        if (code := disk.code_of(error)) is not None:
            raise disk.full(code, scratch).within("sweep") from error
        where = keep("".join(traceback.format_exception(error)), work.folder)
        raise TrainingError(
            f"sweep: Ray Tune failed: {last_words(str(error))}; finished trials are kept, run again to go "
            f"on{where}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if shared["meeting"] is not None:
            shutil.rmtree(shared["meeting"], ignore_errors=True)
        if (mirror := attached()) is not None:
            mirror.pull(work.members)


def _measured(shared: dict[str, Any], task: MemberTask, limit: int, resources: dict[str, float]) -> int:
    """How many students to stack, measured for some steps where the trials will run."""
    if limit < 2:
        return 1
    remote = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=2)(_choose)
    return int(ray.get(remote.remote(shared, task, limit)))


def _choose(shared: dict[str, Any], task: MemberTask, limit: int) -> int:
    import torch

    from ensemble_kd.train.stack_size import choose_fuse

    prepare(shared["cpus_per_worker"])
    hold(shared["carried"])
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    try:
        return choose_fuse(task, _load(shared), limit, device=device)
    except torch.OutOfMemoryError:
        return 1
