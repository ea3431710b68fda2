"""The generator behind choices that depend on numbers alone: splitmix64 (Steele et al., OOPSLA 2014)."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
"""What the state grows by from step to step."""


def scramble(state: np.ndarray) -> np.ndarray:
    """The output of states, uint64 of any shape; wraps around, as the algorithm wants."""
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """uint64 to float64 in [0, 1), by the 53 upper bits."""
    return (bits >> np.uint64(11)) * 2.0**-53
