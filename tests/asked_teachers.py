"""Teachers that are asked about raw inputs: what users write themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

DIGITS = load_digits()
CENTRES = np.stack([DIGITS.data[DIGITS.target == digit].mean(0) / 16 for digit in range(10)])
CALLS: list[int] = []
"""Sizes of the batches that `linear` was asked about."""
NOT_A_FUNCTION = 3
FAILING: Path | None = None
"""While this file exists, `fragile` fails."""


def linear(images: np.ndarray) -> torch.Tensor:
    """Digits (B, 8, 8, 1) uint8 to logits (B, 10): which class's mean is nearest."""
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 1)
    CALLS.append(len(images))
    pixels = images.reshape(len(images), 64) / 255
    return torch.from_numpy(8 * (pixels @ CENTRES.T - (CENTRES**2).sum(1) / 2))


def backwards(images: np.ndarray) -> torch.Tensor:
    return linear(images).flip(1)


def probabilities(images: np.ndarray) -> list[list[float]]:
    found: list[list[float]] = torch.softmax(linear(images), 1).tolist()
    return found


def lengths(texts: list[Any]) -> np.ndarray:
    """Texts or pairs to logits of two classes: which are long."""
    joined = [text if isinstance(text, str) else " ".join(text) for text in texts]
    return np.array([[0.0, len(text) - 12.0] for text in joined])


def of_money(texts: list[str]) -> np.ndarray:
    """Texts to logits of two classes: whether a word of money is in it."""
    money = {"card", "stolen", "pay", "payment", "bank"}
    return np.array([[0.0, 4.0 if money & set(text.split()) else -4.0] for text in texts])


def fragile(images: np.ndarray) -> torch.Tensor:
    if FAILING is not None and FAILING.exists():
        raise RuntimeError("the server is down")
    return linear(images)


def three(images: np.ndarray) -> np.ndarray:
    return np.zeros((len(images), 3))
