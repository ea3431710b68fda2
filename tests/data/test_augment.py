"""Views: a pure function of row, view and seed, equal to a naive shift of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_cases import make_images
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.augment import draws, hash_numbers, random_augment, uniform, view


def naive(image: np.ndarray, down: int, right: int, mirror: bool) -> np.ndarray:
    """Pixel by pixel."""
    height, width, _ = image.shape
    if mirror:
        image = image[:, ::-1]
    moved = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                moved[i, j] = image[i - down, j - right]
    return moved


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    shift=st.integers(0, 8),
    flip=st.booleans(),
    seed=st.integers(0, 2**40),
    number=st.integers(1, 1000),
)
def test_views_equal_the_naive_shift(
    shape: tuple[int, int, int], shift: int, flip: bool, seed: int, number: int
) -> None:
    images, rows = make_images(12, shape), torch.arange(12) * 1000
    config = AugmentConfig(shift=shift, horizontal_flip=flip)
    found = view(torch.from_numpy(images), rows, number, seed, config)
    down, right, mirror = draws(hash_numbers(rows, torch.full_like(rows, number), seed), config)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(
            found[i].numpy(), naive(image, int(down[i]), int(right[i]), bool(mirror[i]))
        )


def test_view_depends_on_row_view_and_seed_alone() -> None:
    images, config = (
        torch.from_numpy(make_images(64, (8, 8, 1))),
        AugmentConfig(shift=2, horizontal_flip=True),
    )
    rows, views = torch.arange(64), torch.arange(64) % 5
    whole = view(images, rows, views, 3, config)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view(images[order], rows[order], views[order], 3, config), whole[order])
    parts = [view(images[i : i + 7], rows[i : i + 7], views[i : i + 7], 3, config) for i in range(0, 64, 7)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole[views == 0], images[views == 0])
    assert not torch.equal(view(images, rows, views, 4, config), whole)
    assert not torch.equal(view(images, rows + 64, views, 3, config), whole)
    assert torch.equal(view(images, rows, 0, 3, config), images)
    assert whole.dtype == torch.uint8 and whole.is_contiguous()


def test_numbers_are_fixed() -> None:
    """A store written on one machine is read on another."""
    assert hash_numbers(torch.tensor([0, 1, 2**40]), torch.tensor([1, 1, 2]), 7).tolist() == [
        4535856587901137307,
        578500204027671606,
        2227091992958313585,
    ]


def test_draws_are_even() -> None:
    config = AugmentConfig(shift=2, horizontal_flip=True)
    rows = torch.arange(100_000)
    down, right, mirror = draws(hash_numbers(rows, torch.ones_like(rows), 0), config)
    for values in (down, right):
        share = torch.bincount(values + 2, minlength=5) / len(rows)
        assert share.sub(0.2).abs().max() < 0.01
    assert mirror.float().mean().item() == pytest.approx(0.5, abs=0.01)
    pairs = torch.stack([down, right, mirror.long()]).double()
    assert torch.corrcoef(pairs).fill_diagonal_(0).abs().max() < 0.02
    next_view, _, _ = draws(hash_numbers(rows, torch.full_like(rows, 2), 0), config)
    assert (down == next_view).double().mean().item() == pytest.approx(0.2, abs=0.01)


def naive_erasing(image: np.ndarray, u: np.ndarray, probability: float) -> np.ndarray:
    """The paper's algorithm for one image; the uniform numbers `u` (6 + C,) stand for its generator."""
    height, width, channels = image.shape
    if u[0] >= probability:
        return image
    area = (0.02 + (0.4 - 0.02) * u[1]) * height * width
    ratio = 0.3 + 0.7 * u[2]
    ratio = ratio if u[3] < 0.5 else 1 / ratio
    h = min(height, max(1, int(np.rint(np.sqrt(area * ratio)))))
    w = min(width, max(1, int(np.rint(np.sqrt(area / ratio)))))
    top, left = int(u[4] * (height - h + 1)), int(u[5] * (width - w + 1))
    erased = image.copy()
    erased[top : top + h, left : left + w] = [int(u[6 + c] * 256) for c in range(channels)]
    return erased


@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 3), (1, 1, 3)])
def test_erasing_equals_the_paper_image_by_image(shape: tuple[int, int, int]) -> None:
    images, rows = torch.from_numpy(make_images(200, shape)), torch.arange(200)
    config = AugmentConfig(erase=0.6)
    found = view(images, rows, 3, 5, config)
    numbers = uniform(hash_numbers(rows, torch.full_like(rows, 3), 5), 6 + shape[2]).numpy()
    for i in range(200):
        np.testing.assert_array_equal(found[i].numpy(), naive_erasing(images[i].numpy(), numbers[:, i], 0.6))
    assert found.dtype == torch.uint8


def test_erasing_comes_after_the_shift_and_leaves_view_0_alone() -> None:
    images, rows = torch.from_numpy(make_images(64, (8, 8, 1))), torch.arange(64)
    views = torch.arange(64) % 3
    shifted = view(images, rows, views, 0, AugmentConfig(shift=2))
    erased = view(images, rows, views, 0, AugmentConfig(shift=2, erase=1))
    assert torch.equal(erased[views == 0], images[views == 0])
    share = (erased != shifted)[views > 0].float().mean((1, 2, 3))
    assert 0.1 < share.mean() < 0.3 and share.max() <= 0.5
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    again = view(images[order], rows[order], views[order], 0, AugmentConfig(shift=2, erase=1))
    assert torch.equal(again, erased[order])


def test_what_erasing_draws_is_even_and_independent() -> None:
    rows = torch.arange(20_000)
    numbers = uniform(hash_numbers(rows, torch.ones_like(rows), 0), 7)
    assert (numbers.mean(1) - 0.5).abs().max() < 0.01 and (numbers.var(1) - 1 / 12).abs().max() < 0.003
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < 0.03


def test_settings_without_erasing_are_what_they_were() -> None:
    assert AugmentConfig(shift=1).model_dump(mode="json") == {"shift": 1, "horizontal_flip": False}
    assert AugmentConfig.model_validate(AugmentConfig(erase=0.5).model_dump()).erase == 0.5


def test_random_augment_follows_its_generator() -> None:
    images, config = torch.from_numpy(make_images(32, (8, 8, 3))), AugmentConfig(shift=2)
    first, again, other = (
        random_augment(images, config, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.dtype == images.dtype
    assert random_augment(images, AugmentConfig(), torch.Generator()) is images
