"""Words to be guessed: how many, which, and what stands in their place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.models.transformer import piece_map
from ensemble_kd.objectives.base import Batch
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import TensorSource
from ensemble_kd.train.masking import Masking, uniform

VOCABULARY = 1001
"""1000 tokens and padding; tokens 1 to 5 are special, 5 the mask."""
SPECIAL = (1, 2, 3, 4, 5)
MASK = 5


def masking(probability: float = 0.15, seed: int = 11, mapped: Tensor | None = None) -> Masking:
    return Masking(probability, seed, MASK, SPECIAL, VOCABULARY, mapped)


def texts(rows: int, longest: int = 40, seed: int = 0) -> Tensor:
    """(N, L) int32: a start, words from 6 on, an end, padding."""
    generator = np.random.default_rng(seed)
    found = np.zeros((rows, longest), np.int32)
    for text, length in zip(found, generator.integers(3, longest + 1, rows), strict=True):
        text[:length] = generator.integers(6, VOCABULARY, length)
        text[0], text[length - 1] = 3, 4
    return torch.from_numpy(found)


def masked_of(batch: Batch) -> Tensor:
    assert batch.masked is not None
    return batch.masked


def within(count: int, total: int, share: float) -> bool:
    """Five standard deviations of a binomial."""
    return abs(count - total * share) < 5 * math.sqrt(total * share * (1 - share))


def test_shares_are_those_of_bert() -> None:
    inputs = texts(4000)
    batch = masking()(inputs, torch.arange(4000), 0)
    open_ = inputs > 5
    masked = masked_of(batch)
    # Short texts have one masked word at least; long ones show the share by itself.
    long = open_.sum(1) > 30
    assert within(int(masked[long].sum()), int(open_[long].sum()), 0.15)
    before, after = inputs[masked], batch.inputs[masked]
    total = len(before)
    assert total > 10_000
    hidden, kept = after == MASK, after == before
    assert within(int(hidden.sum()), total, 0.8)
    assert within(int(kept.sum()), total, 0.1 + 0.1 / 1000)
    other = after[~hidden & ~kept]
    assert within(len(other), total, 0.1)
    # Any word may stand there, none beyond the vocabulary and never padding.
    assert 1 <= int(other.min()) < 50 and 950 < int(other.max()) < VOCABULARY
    assert len(other.unique()) > 600
    assert torch.equal(batch.inputs[~masked], inputs[~masked]) and batch.inputs.dtype == inputs.dtype


@pytest.mark.parametrize("probability", [1e-6, 0.4, 0.999])
def test_special_tokens_stay_and_every_text_has_a_word_to_guess(probability: float) -> None:
    inputs = texts(500, longest=12)
    masked = masked_of(masking(probability)(inputs, torch.arange(500), 3))
    assert not masked[inputs <= 5].any()
    assert masked.any(1).all()
    if probability < 1e-3:
        assert masked.sum(1).tolist() == [1] * 500
        # Not always the same place of the text.
        assert len(masked.float().argmax(1).unique()) > 5


def test_a_text_of_special_tokens_alone_has_nothing_to_guess() -> None:
    inputs = torch.tensor([[3, 4, 0], [3, 9, 4]], dtype=torch.int32)
    batch = masking(1e-9)(inputs, torch.arange(2), 0)
    assert masked_of(batch).tolist() == [[False] * 3, [False, True, False]]
    assert batch.labels.tolist() == [8]


def test_masks_follow_from_seed_epoch_and_row_alone() -> None:
    inputs, rows = texts(300), torch.arange(300)
    whole = masking()(inputs, rows, 2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:50]
    wider = torch.nn.functional.pad(inputs[order], (0, 9))
    part = masking()(wider, rows[order], 2)
    assert torch.equal(masked_of(part)[:, :40], masked_of(whole)[order])
    assert torch.equal(part.inputs[:, :40], whole.inputs[order])
    assert not masked_of(part)[:, 40:].any() and not part.inputs[:, 40:].any()
    # Another epoch, seed, or number of the row: other words.
    for other in (
        masking()(inputs, rows, 3),
        masking(seed=12)(inputs, rows, 2),
        masking()(inputs, rows + 1, 2),
    ):
        same = (masked_of(other) & masked_of(whole)).sum() / masked_of(whole).sum()
        assert same < 0.3


def test_labels_are_the_words_row_by_row() -> None:
    inputs = texts(30)
    batch = masking(0.3)(inputs, torch.arange(30), 0)
    expected = [
        int(inputs[i, j]) - 1 for i in range(30) for j in range(inputs.shape[1]) if masked_of(batch)[i, j]
    ]
    assert batch.labels.tolist() == expected and batch.labels.dtype == torch.int64
    assert len(batch) == 30


def test_labels_are_called_as_the_student_calls_them() -> None:
    """Of a student that keeps some word pieces; the others are its unknown one."""
    kept = [0, 1, 2, 3, 4, *range(5, 1000, 2)]
    mapped = piece_map(kept, VOCABULARY - 1, unknown=1)
    inputs = texts(60)
    plain, named = (masking(0.3, mapped=m)(inputs, torch.arange(60), 0) for m in (None, mapped))
    assert torch.equal(plain.inputs, named.inputs)
    expected = [kept.index(word) if word in kept else 1 for word in plain.labels.tolist()]
    assert named.labels.tolist() == expected and 1 in expected and max(expected) > 400


def test_parts_of_a_batch_have_their_own_words() -> None:
    """Gradient accumulation cuts batches; words belong to their texts."""
    inputs = texts(24)
    batch = masking(0.3)(inputs, torch.arange(24), 0)
    batch.progress = 0.25
    parts = [batch[begin : begin + 8] for begin in range(0, 24, 8)]
    for begin, part in zip(range(0, 24, 8), parts, strict=True):
        alone = masking(0.3)(inputs[begin : begin + 8], torch.arange(begin, begin + 8), 0)
        assert torch.equal(part.labels, alone.labels) and torch.equal(part.inputs, alone.inputs)
        assert torch.equal(masked_of(part), masked_of(alone)) and part.progress == 0.25
    assert torch.cat([part.labels for part in parts]).tolist() == batch.labels.tolist()
    assert torch.equal(batch[3:].labels, torch.cat([batch[3:8].labels, *(p.labels for p in parts[1:])]))


def test_batches_mask_what_they_cut() -> None:
    """Replicas, lengths and padding change nothing about which words are masked."""
    inputs = texts(64)
    inputs[:, -1] = 0

    def found(**changes: object) -> dict[tuple[int, ...], tuple[list[int], list[int]]]:
        source = TensorSource(inputs, torch.full((64,), -1), torch.arange(64), seed=3)
        batches = Batches(
            source,
            16,
            4,
            Targets(),
            AugmentConfig(),
            trim_padding=True,
            masking=masking(),
            **changes,  # type: ignore[arg-type]
        )
        seen = {}
        for batch in batches.epoch(1):
            for i in range(len(batch)):
                text = batch[i : i + 1]
                words, places = text.inputs[0].clone(), masked_of(text)[0].nonzero()[:, 0].tolist()
                words[places] = (text.labels + 1).to(words.dtype)
                key = tuple(n for n in words.tolist() if n)
                seen[key] = (places, text.inputs[0][: len(key)].tolist())
        return seen

    plain = found()
    assert set(plain) == {tuple(n for n in text if n) for text in inputs.tolist()}
    assert found(by_length=True) == plain
    shares = [found(by_length=True, rank=rank, replicas=2) for rank in range(2)]
    assert {**shares[0], **shares[1]} == plain and len(shares[0]) == len(shares[1]) == 32


def test_uniform_numbers() -> None:
    drawn = uniform(np.arange(50_000), 5)
    assert 0 <= drawn.min() and drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert abs(counts - 2500).max() < 5 * math.sqrt(2500)
    # Neighbours, and the same numbers under neighbouring seeds, say nothing about each other.
    for other in (uniform(np.arange(50_000) + 1, 5), uniform(np.arange(50_000), 6)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / math.sqrt(50_000)
