"""Mean and standard deviation in one pass over the train rows."""

from __future__ import annotations

import numpy as np


class PixelMoments:
    """Counts of each of 256 values per channel: exact whatever the order and number of images."""

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), np.int64)

    def add(self, images: np.ndarray) -> None:
        """Images (N, H, W, C) uint8."""
        for channel in range(images.shape[-1]):
            values = np.ascontiguousarray(images[..., channel]).reshape(-1)
            self.counts[channel] += np.bincount(values, minlength=256)

    def result(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, of pixels divided by 255."""
        total = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        share, value = self.counts / total, np.arange(256) / 255
        mean = share @ value
        std = np.sqrt((share * (value - mean[:, None]) ** 2).sum(axis=1))
        std[(self.counts > 0).sum(axis=1) <= 1] = 1.0
        return mean.tolist(), std.tolist()


class NumberMoments:
    """Running mean and squared deviation per number, merged batch by batch (Chan et al., 1979)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(width), np.zeros(width)
        self.least, self.most = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Rows (N, F)."""
        if not len(rows):
            return
        values = rows.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        change, total = mean - self.mean, self.count + count
        self.squares += ((values - mean) ** 2).sum(axis=0) + change**2 * (self.count * count / total)
        self.mean += change * (count / total)
        self.count = total
        self.least = np.minimum(self.least, values.min(axis=0))
        self.most = np.maximum(self.most, values.max(axis=0))

    def result(self) -> tuple[list[float], list[float]]:
        std = np.sqrt(self.squares / max(self.count, 1))
        # By range, not by std == 0: rounding leaves a constant number a tiny deviation.
        std[(self.least >= self.most) | (std == 0)] = 1.0
        return self.mean.tolist(), std.tolist()
