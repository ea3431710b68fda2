"""One Ray Train worker group that trains any number of members: a mesh of members x replicas.

Workers form groups of `replicas`; each group takes the next member from the board, trains it (with DDP
where a group has several workers) and takes another, until none is left. Members and workers are thus
independent in number, and no group waits for another: a member's checkpoint is its own atomic file, so
nothing has to be reported in lockstep, and members of different cost do not hold each other up.

When a worker or node dies, Ray Train restarts the whole group; members that are finished stay finished and
the others go on at their last epoch.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ensemble_kd import disk
from ensemble_kd.attached import attach, attached_spec
from ensemble_kd.board import Board, Event
from ensemble_kd.carried import held, hold
from ensemble_kd.disk import DiskError
from ensemble_kd.errors import TrainingError
from ensemble_kd.failures import keep, last_words
from ensemble_kd.local_training import train_here
from ensemble_kd.member_loop import LoadData, Work, after, left_of, train_next
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.loop import Replicas
from ensemble_kd.train.process import WORKER, prepare
from ensemble_kd.train.task import MemberTask

SECONDS_BETWEEN_LOOKS = 0.5
"""How often a worker asks whether it is to stop."""
SECONDS_BETWEEN_RESIZES = 15.0
"""How often an elastic group looks for nodes that came."""
SECONDS_OF_CLAIM = 60
"""For how long an elastic group claims its part of a cluster unless it says so again, every 20 s.
With Ray's own 180 the group of a run whose driver was killed keeps the next one's waiting for so long."""
SECONDS_TO_END = 10.0
"""Given to a group that is ended in the middle, before it is killed."""


def _worker(config: dict[str, Any]) -> None:
    """Runs in every worker: join the mesh, then train members until the board has no more."""
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device
    from torch.distributed.device_mesh import init_device_mesh

    prepare(config["cpus_per_worker"])
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
    mirror = attach(config["mirror"])
    hold(config["carried"])
    stop = threading.Event()
    threading.Thread(target=_look, args=(board, stop), name="stop", daemon=True).start()
    arrays = {name: ray.get(reference) for name, reference in config["references"].items()}
    data = config["load_data"](arrays)
    queue, members = _Remote(board), Path(config["members"])
    stacks = {int(place): _tasks(stack) for place, stack in config["stacks"].items()}
    work = Work(_tasks(config["tasks"]), stacks)
    try:
        while train_next(
            queue,
            work,
            members,
            data,
            device=device,
            mirror=mirror,
            stop=stop.is_set,
            attempt=attempt,
            replicas=replicas,
        ):
            pass
    except DiskError as error:  # Ray would start the group again, into the same full disk
        ray.get(board.post.remote({"kind": "disk", "member": 0, "text": str(error)}))
        ray.get(board.stop.remote())
        if replicas.size > 1:  # the others of this member wait for it, and end with the group
            raise


def _tasks(fields: list[dict[str, Any]]) -> list[MemberTask]:
    return [MemberTask(**each) for each in fields]


class _Remote:
    """The board, which lives in an actor."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def claim(self, attempt: str) -> int | None:
        import ray

        claimed: int | None = ray.get(self.board.claim.remote(attempt))
        return claimed

    def post(self, event: Event) -> None:
        self.board.post.remote(event)

    def skip(self, member: int) -> None:
        self.board.skip.remote(member)


def _look(board: Any, stop: threading.Event) -> None:
    """Until the board says that the workers are to stop."""
    import ray

    while True:
        try:
            if ray.get(board.is_stopping.remote()):
                stop.set()
                return
        except ray.exceptions.ActorDiedError:  # the driver is gone
            return
        except ray.exceptions.RayError:  # of the network, which may come back
            pass
        time.sleep(SECONDS_BETWEEN_LOOKS)


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
    stacks: Sequence[list[MemberTask]] = (),
) -> None:
    """Train the tasks that are not finished yet, all in one worker group, or in this process.

    `arrays()` gives the numpy arrays that every worker reads; they are put into the object store once and
    mapped into each worker without a copy. `load_data` turns them into TrainingData in the worker.
    Each of `stacks` holds tasks that one process trains as stacked parameters.
    Raises TrainingError where the workers died more often than compute.max_failures.
    """
    work = left_of(tasks, stacks, members)
    if not work.tasks:
        return
    claims = work.claims
    size = runtime.group_size(len(claims), replicas, path)
    if runtime.local:
        train_here(runtime, work, members, load_data, arrays, path=path, on_event=on_event)
        return
    elastic = _elastic(runtime, size, len(claims), replicas)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ensemble_kd.local_group import LocalTorchConfig

    references = {name: ray.put(array) for name, array in arrays().items()}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # On the driver's node: with any other it would die while the run goes on.
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Board)
    board = actor.remote(claims, after(work.tasks))
    resources = runtime.bundle()
    scratch = members.parent / ".ray"
    meeting = tempfile.mkdtemp(prefix="ensemble-kd-") if runtime.on_one_machine() else None
    trainer = _trainer_class()(
        _worker,
        train_loop_config={
            "tasks": [asdict(task) for task in work.tasks],
            "stacks": {f"{place}": [asdict(t) for t in stack] for place, stack in work.stacks.items()},
            "members": str(members),
            "replicas": replicas,
            "references": references,
            "load_data": load_data,
            "board": board,
            "cpus_per_worker": runtime.compute.cpus_per_worker,
            "mirror": attached_spec(),
            "carried": held(),
        },
        torch_config=None if meeting is None else LocalTorchConfig(folder=meeting),
        scaling_config=ScalingConfig(
            num_workers=elastic or size,
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(scratch.resolve()),
            failure_config=FailureConfig(max_failures=runtime.compute.max_failures),
            callbacks=[_introduce(board)],
            worker_runtime_env={"env_vars": WORKER},
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
    try:
        full = _attend(
            runtime,
            thread,
            board,
            work.tasks,
            least=elastic[0] if elastic else size,
            path=path,
            on_event=on_event,
        )
    finally:
        _end(thread, board)
        if meeting is not None:
            shutil.rmtree(meeting, ignore_errors=True)
    if runtime.termination.asked.is_set():
        raise runtime.termination.error()
    shutil.rmtree(scratch, ignore_errors=True)
    if full is not None:
        raise DiskError(full).within(path)
    if (error := outcome[0]) is not None:
        said = _said(error)
        if (code := disk.code_of(said)) is not None:  # Ray Train's own files, which lie in the stage's folder
            raise disk.full(code, scratch).within(path) from error
        raise TrainingError(
            f"{path}: the worker group failed: {_reason(error)}; finished members and the last epoch of the "
            f"others are kept, run again to go on{keep(said, members.parent)}"
        ) from error


def _attend(
    runtime: Runtime,
    thread: threading.Thread,
    board: Any,
    tasks: list[MemberTask],
    *,
    least: int,
    path: str,
    on_event: Callable[[MemberTask, Event], None],
) -> str | None:
    """Pass on what the workers report until the group is done, or its time to leave is over.

    Returns what a worker said of a full disk, after which the others save where they stand, if they can.
    Raises TrainingError where fewer than `least` workers have had a place for too long.
    """
    import ray

    leave, lost = math.inf, math.inf
    full: str | None = None
    with runtime.termination.graceful():
        while True:
            thread.join(timeout=0.3)
            alive = thread.is_alive()
            for event in ray.get(board.drain.remote()):
                if event["kind"] == "disk":
                    full = full or event["text"]
                    leave = min(leave, time.monotonic() + runtime.compute.grace)
                else:
                    on_event(tasks[event["member"]], event)
            if not alive or time.monotonic() > leave:
                return full
            if runtime.address is not None:  # a group that fits no more would wait for ever
                short = runtime.capacity() < least
                lost = min(lost, time.monotonic() + runtime.compute.placement_timeout) if short else math.inf
                if time.monotonic() > lost:
                    raise TrainingError(
                        f"{path}: {least} workers are needed, but {runtime.has()} for "
                        f"{runtime.compute.placement_timeout:g} s now; every member's last epoch is kept, "
                        "run again to go on once there are nodes, or with a lower compute.num_workers"
                    )
            if runtime.termination.asked.is_set() and leave == math.inf:
                board.stop.remote()
                leave = time.monotonic() + runtime.compute.grace


def _introduce(board: Any) -> Any:
    """A callback of Ray Train's that tells the board who leads the group, so that it can be ended.

    It also has the group's claim on the cluster expire sooner, see SECONDS_OF_CLAIM.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Introduce(ControllerCallback):
        def __init__(self, board: Any, seconds_of_claim: int) -> None:
            self.board, self.seconds_of_claim = board, seconds_of_claim

        def __setstate__(self, state: dict[str, Any]) -> None:  # in the controller, before its first claim
            from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client

            self.__dict__.update(state)
            autoscaling_coordinator_client.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = self.seconds_of_claim

        def after_controller_start(self, train_run_context: Any) -> None:
            import ray

            ray.get(self.board.led_by.remote(ray.get_runtime_context().current_actor))

    return Introduce(board, SECONDS_OF_CLAIM)


def _end(thread: threading.Thread, board: Any) -> None:
    """See the group's end: Ray that shuts down under a thread that waits in it takes the process with it."""
    import ray

    try:
        controller, end = None, time.monotonic() + SECONDS_TO_END
        while thread.is_alive() and controller is None and time.monotonic() < end:
            controller = ray.get(board.leader.remote())
            thread.join(timeout=0.1)
        if thread.is_alive() and controller is not None:
            controller.abort.remote()
            thread.join(SECONDS_TO_END)
            if thread.is_alive():
                ray.kill(controller)
                thread.join(SECONDS_TO_END)
        ray.kill(board)
    except ray.exceptions.RayError:  # the cluster is gone, and the group with it
        pass


def _trainer_class() -> type:
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Without two processes that Ray Train 2.60 starts for every run, seconds each.

        One serves data sets, of which there are none; the other removes the placement group of a controller
        that died, which Ray does by itself.
        """

        def _create_default_callbacks(self) -> list[Any]:
            unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")
            callbacks: list[Any] = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in unused]

    return Trainer


def _elastic(runtime: Runtime, size: int, members: int, replicas: int) -> tuple[int, int] | None:
    """Fewest and most workers of a group that may shrink and grow; None for one of a fixed size.

    On a cluster `auto` shrinks, too: with a node gone, the group goes on with what is left.
    """
    wanted = runtime.compute.num_workers
    if isinstance(wanted, tuple):
        most = min(wanted[1], members)
        return min(wanted[0], most), most
    if wanted == "auto" and runtime.address is not None and replicas == 1 and size > 1:
        return 1, size
    return None


def _said(error: BaseException) -> str:
    """All that is known of a failed group: its workers' tracebacks, or Ray's own."""
    failures = getattr(error, "worker_failures", None) or {}
    each = [f"worker {rank}:\n{cause}" for rank, cause in failures.items()]
    return "\n".join([*each, "".join(traceback.format_exception(error))])


def _reason(error: BaseException) -> str:
    """In a worker's own last words, where one of them failed."""
    for rank, cause in (getattr(error, "worker_failures", None) or {}).items():
        return f"worker {rank}: {last_words(str(cause)) or type(cause).__name__}"
    return last_words(str(error)) or type(error).__name__
