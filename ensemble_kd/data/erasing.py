"""Random erasing of Zhong et al. (arXiv 1708.04896): a rectangle of an image becomes one random colour.

Shapes: B examples, H x W pixels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

AREA = (0.02, 0.4)
"""Least and largest share of the image's pixels, the paper's s_l and s_h."""
ASPECT = 0.3
"""Least ratio of the rectangle's sides, the paper's r_1; the largest is its inverse."""
NUMBERS = 6
"""Uniform numbers that an example takes, beside one for each channel."""


def rectangles(numbers: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rectangles to erase: first row, first column, height and width, (B,) each.

    `numbers` (5, B) are uniform. Deviation: the paper draws again where a side is longer than the image's.
    Here the side is cut, so that each example takes the same number of draws. All operations are such as
    IEEE rounds exactly, so that every device gives the same.
    """
    area, ratio, turned, top, left = numbers
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * (height * width)
    ratio = ASPECT + (1 - ASPECT) * ratio
    ratio = torch.where(turned < 0.5, ratio, 1 / ratio)
    h = (area * ratio).sqrt().round().clamp(1, height)
    w = (area / ratio).sqrt().round().clamp(1, width)
    return (top * (height - h + 1)).long(), (left * (width - w + 1)).long(), h.long(), w.long()


def erase(images: Tensor, numbers: Tensor, probability: float) -> Tensor:
    """Images (B, H, W, C) uint8, each erased with `probability`; uniform numbers (NUMBERS + C, B) decide.

    Deviation: one random value per channel, where the paper draws one for every pixel.
    """
    _, height, width, _ = images.shape
    erased = numbers[0] < probability
    top, left, h, w = (value[:, None] for value in rectangles(numbers[1:NUMBERS], height, width))
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside_rows = (rows >= top) & (rows < top + h) & erased[:, None]  # (B, H)
    inside_columns = (columns >= left) & (columns < left + w)  # (B, W)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]  # (B, H, W, 1)
    colour = (numbers[NUMBERS:].T * 256).to(images.dtype)[:, None, None, :]  # (B, 1, 1, C)
    return torch.where(inside, colour, images)
