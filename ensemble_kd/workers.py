"""One Ray Train worker group that trains any number of members: a mesh of members x replicas.

Workers form groups of `replicas`; each group takes the next member from the board, trains it (with DDP
where a group has several workers) and takes another, until none is left. Members and workers are thus
independent in number, and no group waits for another: a member's checkpoint is its own atomic file, so
nothing has to be reported in lockstep, and members of different cost do not hold each other up.

When a worker or node dies, Ray Train restarts the whole group; members that are finished stay finished and
the others go on at their last epoch.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemble_kd.errors import TrainingError
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.member import FAILED, MemberTask, TrainingData, finished, train_member

Event = dict[str, Any]
LoadData = Callable[[dict[str, Any]], TrainingData]


WAIT = -1
SECONDS_BETWEEN_CLAIMS = 0.2


class Board:
    """The actor that hands out members and collects what workers report."""

    def __init__(self, tasks: list[int], after: dict[int, int]) -> None:
        """`after` names, for a member that starts from another of them, that other."""
        self.tasks, self.after, self.attempt = tasks, after, ""
        self.queue: list[int] = []
        self.done: set[int] = set()
        self.lost: set[int] = set()
        self.events: list[Event] = []

    def claim(self, attempt: str) -> int | None:
        """The next member for a group; a new attempt (after a failure) starts the queue anew.

        WAIT where those that are left start from one that is still being trained; None at the end.
        """
        if attempt != self.attempt:
            self.attempt, self.queue = attempt, list(self.tasks)
        for i in list(self.queue):
            before = self.after.get(i)
            if before in self.lost or i in self.lost:
                self.lost.add(i)
                self.queue.remove(i)
            elif before is None or before in self.done:
                self.queue.remove(i)
                return i
        return WAIT if self.queue else None

    def post(self, event: Event) -> None:
        if event["kind"] in ("done", "failed"):
            (self.done if event["kind"] == "done" else self.lost).add(event["member"])
        self.events.append(event)

    def skip(self, member: int) -> None:
        """One that was finished already."""
        self.done.add(member)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker: join the mesh, then train members until the board has no more."""
    import ray
    import torch
    import torch.distributed as dist
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device
    from torch.distributed.device_mesh import init_device_mesh

    from ensemble_kd.train.loop import Replicas

    torch.set_num_threads(max(1, int(config["cpus_per_worker"])))
    context = get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    board = config["board"]
    attempt = broadcast_from_rank_zero(uuid.uuid4().hex if rank == 0 else "")
    device = get_device()
    per_member = config["replicas"]
    replicas = Replicas()
    if per_member > 1:
        mesh = init_device_mesh(
            device.type, (world // per_member, per_member), mesh_dim_names=("member", "replica")
        )
        replicas = Replicas(mesh["replica"].get_local_rank(), per_member, mesh["replica"].get_group())
    arrays = {name: ray.get(reference) for name, reference in config["references"].items()}
    data = config["load_data"](arrays)
    tasks = [MemberTask(**fields) for fields in config["tasks"]]
    members = Path(config["members"])
    while True:
        claimed = [ray.get(board.claim.remote(attempt)) if replicas.rank == 0 else None]
        if per_member > 1:
            dist.broadcast_object_list(claimed, group=replicas.group, group_src=0)
        if claimed[0] is None:
            return
        if claimed[0] == WAIT:
            time.sleep(SECONDS_BETWEEN_CLAIMS)
            continue
        task = tasks[claimed[0]]
        if finished(task, members) is not None:
            if replicas.rank == 0:
                board.skip.remote(claimed[0])
            continue

        def report(kind: str, index: int = claimed[0], **fields: Any) -> None:
            board.post.remote({"kind": kind, "member": index, **fields})

        if replicas.rank == 0:
            report("start", pid=os.getpid())
        good = train_member(
            task,
            data,
            members,
            device=device,
            replicas=replicas,
            on_epoch=lambda entry: report("epoch", entry=entry),  # noqa: B023 - called before the next turn
            on_warning=lambda text: report("warning", text=text),  # noqa: B023
        )
        if replicas.rank == 0:
            report("done" if good else "failed")


def train_members(
    runtime: Runtime,
    tasks: list[MemberTask],
    members: Path,
    load_data: LoadData,
    arrays: Callable[[], dict[str, Any]],
    *,
    replicas: int,
    path: str,
    on_event: Callable[[MemberTask, Event], None] = lambda task, event: None,
) -> None:
    """Train the tasks that are not finished yet, all in one worker group.

    `arrays()` gives the numpy arrays that every worker reads; they are put into the object store once and
    mapped into each worker without a copy. `load_data` turns them into TrainingData in the worker.
    Raises TrainingError where the workers died more often than compute.max_failures.
    """
    open_tasks = [task for task in tasks if finished(task, members) is None]
    if not open_tasks:
        return
    for task in open_tasks:
        (task.folder(members) / FAILED).unlink(missing_ok=True)
    size = runtime.group_size(len(open_tasks), replicas, path)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    references = {name: ray.put(array) for name, array in arrays().items()}
    board = ray.remote(num_cpus=0)(Board).remote(list(range(len(open_tasks))), _after(open_tasks))
    resources = {"CPU": runtime.compute.cpus_per_worker}
    gpus = runtime.gpus_per_worker()
    if gpus:
        resources["GPU"] = gpus
    scratch = members.parent / ".ray"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "tasks": [asdict(task) for task in open_tasks],
            "members": str(members),
            "replicas": replicas,
            "references": references,
            "load_data": load_data,
            "board": board,
            "cpus_per_worker": runtime.compute.cpus_per_worker,
        },
        scaling_config=ScalingConfig(num_workers=size, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(scratch.resolve()),
            failure_config=FailureConfig(max_failures=runtime.compute.max_failures),
        ),
    )
    outcome: list[BaseException | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread below
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while True:
        thread.join(timeout=0.3)
        alive = thread.is_alive()
        for event in ray.get(board.drain.remote()):
            on_event(open_tasks[event["member"]], event)
        if not alive:
            break
    ray.kill(board)
    shutil.rmtree(scratch, ignore_errors=True)
    if outcome[0] is not None:
        raise TrainingError(
            f"{path}: the worker group failed: {_reason(outcome[0])}; finished members and the last epoch "
            "of the others are kept, run again to go on (-v shows Ray's own messages)"
        ) from outcome[0]


def _after(tasks: list[MemberTask]) -> dict[int, int]:
    """For each task that starts from another of them, that other."""
    places = {task.fingerprint: i for i, task in enumerate(tasks)}
    started = {i: (task.initial or {}).get("member") for i, task in enumerate(tasks)}
    return {i: places[member] for i, member in started.items() if member in places}


def _reason(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, cause = next(iter(failures.items()))
        lines = [line for line in str(cause).strip().splitlines() if line.strip()]
        return f"worker {rank}: {lines[-1] if lines else type(cause).__name__}"
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
