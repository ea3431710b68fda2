"""Random changes of images that keep their class: shifts filled with 0, mirror images, erasing. Of texts:
tokens left out. What mixes several rows is in `mixing`.

`view` numbers the augmented versions of an example: version v of row r is a pure function of (r, v, seed),
so the soft-target store and the student agree on it without the images being stored.

Shapes: B examples, H x W pixels, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.erasing import NUMBERS, erase
from ensemble_kd.data.token_dropout import drop_tokens


def random_augment(inputs: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """A new random version of each image (B, H, W, C), drawn from the generator."""
    if not config.active:
        return inputs
    # Drawn on the generator's device, so that the result does not depend on where the images are.
    bits = torch.randint(0, 2**62, (inputs.shape[0],), generator=generator, device=generator.device)
    return _apply(inputs, bits.to(inputs.device), config)


def view(inputs: Tensor, rows: Tensor, view: Tensor | int, seed: int, config: AugmentConfig) -> Tensor:
    """Version `view` of the images (B, H, W, C) whose row numbers are `rows` (B,); view 0 is the identity.

    `view` is one number for all or (B,). Batching, order and device make no difference.
    """
    views = torch.as_tensor(view, dtype=torch.int64, device=inputs.device).expand(inputs.shape[0])
    if not config.active:
        return inputs
    bits = hash_numbers(rows.to(device=inputs.device, dtype=torch.int64), views, seed)
    return _apply(inputs, bits, config, identity=views == 0)


def hash_numbers(rows: Tensor, views: Tensor, seed: int) -> Tensor:
    """(B,) int64 in 0..2^62-1: three splitmix64 steps (Steele et al., OOPSLA 2014) over the numbers."""
    state = torch.full_like(rows, _signed(seed))
    for number in (rows, views, torch.zeros_like(rows)):
        state = state + number + _signed(0x9E3779B97F4A7C15)  # int64 wraps around, as the algorithm wants
        state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shift_right(state, 31)
    return _shift_right(state, 2)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def _shift_right(numbers: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own repeats the sign."""
    return (numbers >> bits) & (2 ** (64 - bits) - 1)


def draws(bits: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """What random bits (B,) mean: pixels down, pixels to the right, whether to mirror; each (B,).

    20 bits go into each shift: with at most 129 values the bias is below 0.02%.
    """
    span = 2 * config.shift + 1
    down = (bits & 0xFFFFF) % span - config.shift
    right = ((bits >> 20) & 0xFFFFF) % span - config.shift
    mirror = ((bits >> 40) & 1).bool() if config.horizontal_flip else torch.zeros_like(bits, dtype=torch.bool)
    return down, right, mirror


def uniform(bits: Tensor, count: int) -> Tensor:
    """(count, B) float64 in [0, 1), from random bits (B,): 53 of each hash, as many as a float64 holds."""
    hashes = [hash_numbers(bits, torch.full_like(bits, k), 0) for k in range(count)]
    return (torch.stack(hashes) >> 9).double() / 2**53


def _apply(inputs: Tensor, bits: Tensor, config: AugmentConfig, identity: Tensor | None = None) -> Tensor:
    down, right, mirror = draws(bits, config)
    if identity is not None:
        down, right = down.masked_fill(identity, 0), right.masked_fill(identity, 0)
        mirror = mirror & ~identity
    if config.horizontal_flip:
        inputs = torch.where(mirror[:, None, None, None], inputs.flip(2), inputs)
    if config.shift:
        inputs = shift_images(inputs, down, right, config.shift)
    if config.erase:
        numbers = uniform(bits, NUMBERS + inputs.shape[3])
        if identity is not None:
            numbers[0].masked_fill_(identity, 1.0)
        inputs = erase(inputs, numbers, config.erase)
    if config.word_dropout:
        numbers = uniform(bits, inputs.shape[1])
        if identity is not None:
            numbers = numbers.masked_fill(identity, 1.0)
        inputs = drop_tokens(inputs, numbers, config.word_dropout)
    return inputs


def shift_images(images: Tensor, down: Tensor, right: Tensor, limit: int) -> Tensor:
    """Images (B, H, W, C) moved by (B,) pixels, |shift| <= limit; what comes in is 0.

    With `limit` zeros after each row and `limit` zero rows around each image, a shifted image is one
    contiguous run of the padded memory. So an example costs one copy, not an index per pixel.
    """
    batch, height, width, channels = images.shape
    row = (width + limit) * channels  # numbers in a padded row
    image = (height + 2 * limit) * row  # numbers in a padded image
    before = limit * channels  # a shift to the right starts this much earlier at the most
    # The last run ends within `limit` zeros of its image's end, or `before` further.
    flat = images.new_zeros(before + batch * image + before)
    padded = flat[before : before + batch * image].view(batch, height + 2 * limit, width + limit, channels)
    padded[:, limit : limit + height, :width] = images
    starts = torch.arange(batch, device=images.device) * image + before
    starts = starts + (limit - down) * row - right * channels
    moved = flat.unfold(0, height * row, 1)[starts]  # (B, H * (W + limit) * C)
    return moved.view(batch, height, width + limit, channels)[:, :, :width].contiguous()
