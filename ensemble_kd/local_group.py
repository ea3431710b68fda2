"""Workers of one machine: they find each other by a file, and talk over the loopback device.

torch's own store, through which a group meets, listens on all interfaces of its first worker's node, and no
setting binds it to one.
"""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


def loopback() -> dict[str, str]:
    """Variables that keep gloo and NCCL on the loopback device; none where its name is not known."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {key: names[0] for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} if names else {}


def stay() -> None:
    """Keep the groups that this process joins on the loopback device, unless its environment differs."""
    for name, value in loopback().items():
        os.environ.setdefault(name, value)


def meeting(folder: str) -> str:
    """The URL of a new group's file in a folder of this machine."""
    return (Path(folder) / uuid.uuid4().hex).as_uri()


@dataclass
class LocalTorchConfig(TorchConfig):
    """As Ray's, for a group whose workers all run here."""

    folder: str = ""

    @property
    def backend_cls(self) -> type:
        return _LocalBackend


class _LocalBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        url, size = meeting(backend_config.folder), len(worker_group)
        worker_group.execute(stay)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend,
                    world_rank=rank,
                    world_size=size,
                    init_method=url,
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(size)
            ]
        )
