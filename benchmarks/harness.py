"""What a benchmark is, the registry, and what they share.

A benchmark compares ours with a reference measured in the same run. The machines these run on are shared,
so ours and the reference take turns, several times, and the medians count; torch has one thread. The
list of all rounds is in the result's `detail`.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Measured:
    """What one run of a benchmark found."""

    ours: float
    reference: float
    detail: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """A condition beside the bound that does not hold."""


@dataclass(frozen=True)
class Benchmark:
    """One claim: ours / reference is at least, or at most, the bound."""

    name: str
    text: str
    """One line: what is compared with what."""
    unit: str
    sense: Literal["at least", "at most"]
    bound: float
    measure: Callable[[bool], Measured]
    """Takes `quick`: fewer rows and rounds, to see that it works; the figures mean little."""

    def holds(self, ratio: float) -> bool:
        return ratio >= self.bound if self.sense == "at least" else ratio <= self.bound


BENCHMARKS: dict[str, Benchmark] = {}
"""By name; filled by `benchmark` when benchmarks.__main__ imports the modules."""


def benchmark(
    name: str, text: str, unit: str, sense: Literal["at least", "at most"], bound: float
) -> Callable[[Callable[[bool], Measured]], Callable[[bool], Measured]]:
    """Enter a measuring function."""

    def enter(measure: Callable[[bool], Measured]) -> Callable[[bool], Measured]:
        assert name not in BENCHMARKS, f"two benchmarks are called {name!r}"
        BENCHMARKS[name] = Benchmark(name, text, unit, sense, bound, measure)
        return measure

    return enter


def run(chosen: Benchmark, quick: bool) -> dict[str, Any]:
    """Measure; the result as JSON."""
    before = machine()  # first, because of the load
    found = chosen.measure(quick)
    ratio = found.ours / found.reference
    detail = {**found.detail, "quick": quick}
    if found.problem:
        detail["problem"] = found.problem
    return {
        "name": chosen.name,
        "ours": found.ours,
        "reference": found.reference,
        "ratio": ratio,
        "sense": chosen.sense,
        "bound": chosen.bound,
        "holds": chosen.holds(ratio) and found.problem is None,
        "unit": chosen.unit,
        "detail": detail,
        "machine": before,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was before."""
    from importlib.metadata import version

    import torch

    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def rounded(values: Sequence[float], digits: int = 3) -> list[float]:
    return [round(value, digits) for value in values]


def say(text: str) -> None:
    """Progress, on standard error: standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def fresh_processes(count: int) -> ProcessPoolExecutor:
    """Processes that share nothing with this one: own torch, own Ray, own memory."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
