"""Mixup and word dropout: what is mixed with what, labels, and that store and student agree."""

from __future__ import annotations

import pytest
import torch

from ensemble_kd.config import AugmentConfig, validate
from ensemble_kd.data.augment import view
from ensemble_kd.data.mixing import Pool, mixed_view
from ensemble_kd.errors import ConfigError

ROWS = torch.arange(4000)
NUMBERS = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
MIXED = AugmentConfig(mixup=1.0)


def test_a_mixture_lies_between_two_rows_evenly() -> None:
    pool = Pool(torch.eye(4000))
    seen, _ = mixed_view(pool.inputs, None, ROWS, 3, 5, MIXED, pool=pool)
    assert torch.allclose(seen.sum(1), torch.ones(4000))
    own = seen.diagonal()
    other = seen - torch.diag(own)
    apart = own < 1
    assert apart.float().mean() > 0.99
    assert torch.equal((other > 0).sum(1)[apart], torch.ones(int(apart.sum()), dtype=torch.int64))
    quarters = torch.tensor([0.25, 0.5, 0.75])
    assert torch.allclose(torch.quantile(own, quarters), quarters, atol=0.03)
    drawn = other.argmax(1)
    assert len(drawn.unique()) > 2300  # of 4,000 draws with replacement 63% differ
    assert abs(torch.corrcoef(torch.stack([own.double(), drawn.double()]))[0, 1]) < 0.05


def test_it_is_a_function_of_seed_row_and_view() -> None:
    pool = Pool(NUMBERS)
    seen, _ = mixed_view(NUMBERS, None, ROWS, 2, 0, MIXED, pool=pool)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:100]
    again, _ = mixed_view(NUMBERS[order], None, order, torch.full((100,), 2), 0, MIXED, pool=pool)
    assert torch.equal(again, seen[order])
    for views, seed in ((3, 0), (2, 1)):
        other, _ = mixed_view(NUMBERS, None, ROWS, views, seed, MIXED, pool=pool)
        assert (other != seen).any(1).float().mean() > 0.99


def test_view_0_and_the_share_that_is_not_asked_for_stay() -> None:
    pool, labels = Pool(NUMBERS, ROWS), ROWS.clone()
    seen, own = mixed_view(NUMBERS, labels, ROWS, 0, 0, MIXED, pool=pool)
    assert torch.equal(seen, NUMBERS) and own is not None and torch.equal(own, labels)
    seen, own = mixed_view(NUMBERS, labels, ROWS, 1, 0, AugmentConfig(mixup=0.3), pool=pool)
    changed = (seen != NUMBERS).any(1)
    assert 0.26 < changed.float().mean() < 0.34
    assert own is not None and torch.equal(own[~changed], labels[~changed])


def test_a_class_is_either_row_s_by_their_shares() -> None:
    inputs = torch.stack([ROWS.float(), torch.zeros(4000)], 1)
    labels = (ROWS >= 2000).long()
    seen, own = mixed_view(inputs, labels, ROWS, 1, 0, MIXED, pool=Pool(inputs, labels))
    assert own is not None and set(own.tolist()) == {0, 1}
    # The mean label is, on average over mixtures, the mean of the two by their shares.
    values, mean = mixed_view(inputs, labels.float(), ROWS, 1, 0, MIXED, pool=Pool(inputs, labels.float()))
    assert torch.equal(values, seen) and mean is not None
    low, high = mean < 0.3, mean > 0.7
    assert own[low].float().mean() < 0.25 and own[high].float().mean() > 0.75
    middle = (mean > 0.4) & (mean < 0.6)
    assert 0.4 < own[middle].float().mean() < 0.6


def test_without_a_label_of_either_there_may_be_none() -> None:
    labels = torch.where(ROWS < 2000, 1, -1)
    _, own = mixed_view(NUMBERS, labels, ROWS, 1, 0, MIXED, pool=Pool(NUMBERS, labels))
    assert own is not None and 0.45 < (own == 1).float().mean() < 0.55
    values = torch.where(ROWS < 2000, 1.0, torch.nan)
    _, mean = mixed_view(NUMBERS, values, ROWS, 1, 0, MIXED, pool=Pool(NUMBERS, values))
    assert mean is not None and 0.2 < mean.isfinite().float().mean() < 0.3  # both have one


def test_rows_that_are_not_the_member_s_are_not_mixed_in() -> None:
    pool = Pool(torch.eye(4000), rows=torch.arange(10))
    seen, _ = mixed_view(pool.inputs, None, ROWS, 1, 0, MIXED, pool=pool)
    assert not (seen - torch.diag(seen.diagonal()))[:, 10:].any()


def test_pixels_are_rounded_and_both_are_shifted_first() -> None:
    images = torch.randint(0, 256, (50, 6, 6, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows, config = torch.arange(50), AugmentConfig(shift=2, mixup=1.0)
    seen, _ = mixed_view(images, None, rows, 4, 0, config, pool=Pool(images))
    assert seen.dtype == torch.uint8
    shifted = view(images, rows, 4, 0, AugmentConfig(shift=2)).float()
    ones = mixed_view(torch.eye(50), None, rows, 4, 0, MIXED, pool=Pool(torch.eye(50)))[0]
    wanted = (ones @ shifted.flatten(1)).view_as(shifted)
    assert (seen.float() - wanted).abs().max() <= 0.51


def test_words_are_left_out_but_the_first_and_the_last() -> None:
    tokens = torch.arange(1, 21).repeat(4000, 1)
    tokens[:, 15:] = 0
    config = AugmentConfig(word_dropout=0.2)
    seen = view(tokens, ROWS, 1, 0, config)
    left_out = (seen == 0) & (tokens != 0)
    assert torch.equal(seen[~left_out], tokens[~left_out])
    assert not left_out[:, 0].any() and not left_out[:, 14].any()
    assert torch.allclose(left_out[:, 1:14].float().mean(0), torch.tensor(0.2), atol=0.03)
    assert torch.equal(view(tokens, ROWS, 0, 0, config), tokens)
    # A shard whose longest text is shorter gives the same.
    assert torch.equal(view(tokens[:, :15], ROWS, 1, 0, config), seen[:, :15])


@pytest.mark.parametrize(
    ("kind", "augment", "told"),
    [
        ("text", {"mixup": 0.5}, "data.augment.mixup: tokens cannot be mixed"),
        ("numeric", {"word_dropout": 0.5}, "data.augment.word_dropout: only for texts"),
        ("numeric", {"shift": 1}, "only for images"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(kind: str, augment: dict[str, float], told: str) -> None:
    raw = {"name": "mixed", "data": {"kind": kind, "path": ".", "augment": augment}}
    with pytest.raises(ConfigError, match=told):
        validate(raw)


def test_settings_without_them_are_what_they_were() -> None:
    assert set(AugmentConfig().model_dump()) == {"shift", "horizontal_flip"}
