"""How long one forward pass takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = (1, 32)


def latency(
    run: Callable[[np.ndarray], Any], inputs: np.ndarray, text: bool, seconds: float = 0.1
) -> dict[str, dict[str, float]]:
    """Milliseconds of `run` on 1 and on 32 inputs: `batch_1` and `batch_32`, each the median and the 99th
    percentile, `p50` and `p99`.

    Texts are cut to the longest of the batch. The caller sees to it that one thread is used.
    """
    found = {}
    for size in SIZES:
        batch = np.resize(inputs[:size], (size, *inputs.shape[1:])).copy()
        if text:
            batch = batch[:, : int(np.flatnonzero((batch != 0).any(0)).max(initial=0)) + 1]
        run(batch)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 3:
            began = time.perf_counter()
            run(batch)
            times.append(1000 * (time.perf_counter() - began))
        p50, p99 = np.percentile(times, [50, 99])
        found[f"batch_{size}"] = {"p50": float(p50), "p99": float(p99)}
    return found
