"""Shared by all tests: one Ray session, and the data sets beside the repository where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["durations"]

# Before torch is imported anywhere: two threads each on two busy cores are far slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Ray's workers import modules of this folder too: models of the tests' own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
)


def pytest_configure() -> None:
    """oneDNN's convolutions of a few channels (torch 2.13) write past their buffers on processors without
    AVX-512: the gradient of a test's 4-channel network ended whole test runs at some later allocation."""
    import torch

    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        torch._C._set_mkldnn_enabled(False)


@pytest.hookimpl(tryfirst=True)  # before markers select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: with one of them last, the other process would have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray, started once for all tests that run a pipeline in this process."""
    import ray

    from ensemble_kd.config import ComputeConfig
    from ensemble_kd.runtime import Runtime

    with Runtime(ComputeConfig()) as runtime:
        runtime.start()
        yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `shared/data` beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here: no folder {folder}")
    return folder
