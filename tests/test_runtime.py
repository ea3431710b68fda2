"""How many workers fit, without a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_kd.config import ComputeConfig
from ensemble_kd.errors import ConfigError, EnsembleKDError
from ensemble_kd.runtime import Runtime, await_ray_data, fit

NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 8), "GPU": st.sampled_from([0, 1, 2])}), max_size=4
)


@given(NODES, st.sampled_from([0.5, 1, 2, 3]), st.sampled_from([0, 0.25, 0.5, 1]))
def test_each_worker_is_whole_on_one_node(nodes: list[dict[str, float]], cpus: float, gpus: float) -> None:
    bundle = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    placed = 0
    for node in nodes:  # one after another, as long as one more fits
        left = dict(node)
        while all(left.get(name, 0) >= amount for name, amount in bundle.items()):
            left = {name: left[name] - bundle.get(name, 0) for name in left}
            placed += 1
    assert fit(bundle, nodes) == placed


def test_halves_of_nodes_are_not_added_up() -> None:
    assert fit({"CPU": 1.0}, [{"CPU": 1.5}, {"CPU": 1.5}]) == 2
    assert fit({"CPU": 1.0, "GPU": 0.25}, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]) == 4
    assert fit({"CPU": 0.1}, [{"CPU": 0.3}]) == 3  # in spite of 0.3 / 0.1 < 3


class Cluster(Runtime):
    """A runtime with given nodes, and what others have left of them."""

    def __init__(self, has: list[dict[str, float]], free: int | None = None, **compute: Any) -> None:
        super().__init__(ComputeConfig(**compute), None if free is None else "auto")
        self.has_nodes, self.left = has, free

    def nodes(self) -> list[dict[str, float]]:
        return self.has_nodes

    def free(self) -> int:
        return self.capacity() if self.left is None else self.left

    def _await(self, size: int, there: Callable[[], bool], why: str) -> None:
        """Nothing comes, however long one waits."""


TWO = [{"CPU": 2.0}, {"CPU": 1.0}]


@pytest.mark.parametrize(
    ("compute", "members", "replicas", "size"),
    [
        ({}, 5, 1, 3),
        ({}, 2, 1, 2),
        ({}, 5, 2, 2),
        ({"num_workers": 2}, 5, 1, 2),
        ({"num_workers": (1, 8)}, 5, 1, 3),
        ({"num_workers": (2, 2)}, 5, 1, 2),
        ({"num_workers": (3, 4)}, 1, 1, 1),
        ({"cpus_per_worker": 2}, 5, 1, 1),
    ],
)
def test_workers_of_a_group(compute: dict[str, Any], members: int, replicas: int, size: int) -> None:
    assert Cluster(TWO, **compute).group_size(members, replicas, "teachers") == size


@pytest.mark.parametrize(
    ("compute", "replicas", "message"),
    [
        (
            {"num_workers": 4},
            1,
            r"compute.num_workers: 4, but the cluster has 3 CPUs .* on 2 nodes, room for 3",
        ),
        ({"num_workers": (4, 6)}, 1, r"compute.num_workers: \[4, 6\], but"),
        ({"cpus_per_worker": 2}, 2, r"teachers.replicas_per_member: 2 workers per member, but .* room for 1"),
        (
            {"gpus_per_worker": 1},
            1,
            r"^compute.gpus_per_worker: 1 for one worker, but no node has more than 0; set it to 0",
        ),
        (
            {"cpus_per_worker": 3},
            1,
            r"^compute.cpus_per_worker: 3 for one worker, but no node has more than 2",
        ),
    ],
)
def test_what_never_fits_is_told_before_anything_waits(
    compute: dict[str, Any], replicas: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(TWO, **compute).group_size(5, replicas, "teachers")


def test_what_others_use_is_told_or_done_without() -> None:
    assert Cluster(TWO, free=1).group_size(5, 1, "teachers") == 1
    with pytest.raises(EnsembleKDError, match="room for 1 of 2 workers of 1 CPU each.*in use by other jobs"):
        Cluster(TWO, free=1, num_workers=2).group_size(5, 1, "teachers")


def test_ray_is_not_shut_down_under_the_threads_of_a_dataset() -> None:
    """Its core would end the process without a word (tests/test_full_disk.py, where it did now and then)."""
    left = threading.Event()

    def goes_on() -> None:
        time.sleep(0.3)
        left.set()

    threading.Thread(target=goes_on, name="iter_threaded", daemon=True).start()
    await_ray_data()
    assert left.is_set()


def test_a_thread_of_a_dataset_that_never_ends_is_not_waited_for_long() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="StreamingExecutor-1", daemon=True)
    thread.start()
    began = time.monotonic()
    await_ray_data(0.2)
    assert 0.2 <= time.monotonic() - began < 5 and thread.is_alive()
    release.set()
