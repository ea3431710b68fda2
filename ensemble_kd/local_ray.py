"""Ray on this machine alone: it listens on the loopback device only, and a start that takes too long is tried
once more, with nothing of the first one left."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_kd import disk
from ensemble_kd.errors import EnsembleKDError

LEAST_STORE = 80 * 2**20
"""Bytes of the smallest object store that Ray takes."""
SHARED = Path("/dev/shm")


def start(warn: Callable[[str], None], **options: Any) -> None:
    """`ray.init` without a cluster.

    Raises EnsembleKDError where Ray did not start twice, or once for a reason that does not pass.
    """
    import ray

    options |= store_options(warn)
    for last in (False, True):
        try:
            with on_loopback():
                ray.init(address="local", **options)
            return
        except BaseException as error:
            logs = clear(error)
            if isinstance(error, EnsembleKDError) or not isinstance(error, Exception):  # a signal
                raise
            if (code := disk.code_of(error)) is not None:
                raise no_room(code) from error
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if isinstance(error, OSError | ValueError):  # a setting or a path, no better the second time
                fix = "; set RAY_TMPDIR to a folder with a shorter path" if "AF_UNIX" in said else ""
                raise EnsembleKDError(f"Ray did not start on this machine: {said}{fix}") from error
            if last:
                where = f"; its own log is in {logs}" if logs else ""
                raise EnsembleKDError(
                    f"Ray did not start on this machine, twice: {said} A start has 30 s, which may be too "
                    f"few on a busy machine: run the same command again when it is less busy{where}"
                ) from error
            warn(f"Ray did not start ({said}); this machine may be busy, so it is tried once more")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray that starts in here takes 127.0.0.1 as its node's address, and so listens nowhere else.

    On Linux it takes the machine's address, and resolves a given 127.0.0.1 to that; on macOS and Windows,
    where several nodes are not supported, it stays on the loopback device. This is that switch of Ray's.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def serve_on_loopback() -> None:
    """In the process of a Serve replica, while it is set up: keep its gRPC server on the loopback device.

    It is there for other deployments, and takes all interfaces without a setting for that.
    """
    from ray.serve._private import replica
    from ray.util import get_node_ip_address

    if get_node_ip_address() != "127.0.0.1":  # on a cluster
        return
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]:", "127.0.0.1:")
    )


def clear(error: BaseException) -> str | None:
    """End what a failed start left running; returns the folder of its logs.

    Ray forgets a node whose start failed, and its processes would live as long as this one.
    """
    import ray
    from ray._private.node import Node

    logs = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            logs = str(Path(getattr(node, "_session_dir", session_folder())) / "logs")
            if hasattr(node, "all_processes"):
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            break
    ray.shutdown()
    return logs


def session_folder() -> str:
    """Where Ray keeps logs, sockets and what does not fit into its object store."""
    from ray._common.utils import get_default_ray_temp_dir

    return str(get_default_ray_temp_dir())


def store_options(warn: Callable[[str], None]) -> dict[str, int]:
    """Options for an object store that has room where it lies.

    Where /dev/shm is too small, as Docker's 64 MB are, Ray takes files in its folder, whatever room that has.
    Raises DiskError where neither has room for the smallest store.
    """
    if not SHARED.is_dir():
        return {}
    from ray._private.utils import estimate_available_memory, resolve_object_store_memory

    wanted = int(resolve_object_store_memory(estimate_available_memory()))
    shared = disk.free(SHARED)
    if shared >= wanted:
        return {}
    folder = Path(session_folder())
    held = min(wanted, disk.free(folder) // 2)  # the rest for logs, and for what the store has no room for
    if held < LEAST_STORE:
        held = int(0.9 * shared)
        if held < LEAST_STORE:
            raise no_room(errno.ENOSPC, LEAST_STORE)
        return {"object_store_memory": held}
    warn(
        f"{SHARED} has room for {disk.size(shared)}: Ray's object store of {disk.size(held)} lies in "
        f"{folder}, which may be slower; Docker takes --shm-size"
    )
    return {"object_store_memory": held}


def no_room(code: int, needed: int | None = None) -> disk.DiskError:
    """What to say where Ray's own folder takes no more."""
    folder = session_folder()
    text = str(disk.full(code, Path(folder), needed))
    fix = "or set RAY_TMPDIR to a folder that has it"
    if needed is not None:
        fix += f", or give {SHARED} more (Docker: --shm-size=1g)"
    return disk.DiskError(f"Ray did not start: {text.replace(disk.AGAIN, f'{fix}, {disk.AGAIN}')}", code)
