"""What a student reads of a set larger than memory, without Ray: shards mixed as they are stored."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_kd.data.store import StoreLayout
from ensemble_kd.stages.shards import encode
from ensemble_kd.streaming import _block, _blocks, mixed_rows
from ensemble_kd.train.blocks import Block, join_blocks, slice_block


def shards(layouts: list[StoreLayout], widths: list[int], text: bool) -> list[dict[str, np.ndarray]]:
    """One batch of a stream per width of its inputs."""
    generator, found, first = np.random.default_rng(0), [], 0
    for count, width in enumerate(widths, start=5):
        inputs: Any = (
            generator.integers(1, 9, (count, width)) if text else generator.normal(size=(count, width))
        )
        batch = {
            "rows": np.arange(first, first + count),
            "inputs": inputs.astype(np.int32 if text else np.float32),
            "labels": generator.integers(0, 6, count),
            "views": np.zeros(count, np.int64),
        }
        for number, layout in enumerate(layouts):
            logits = torch.randn(count, 1, layout.members, layout.classes)
            columns, _ = encode(logits, layout)
            batch |= {f"store{number}/{name}": column[:, 0] for name, column in columns.items()}
        first += count
        found.append(batch)
    return found


def logits(block: Block) -> torch.Tensor | None:
    return None if block.member_logits is None else block.member_logits.logits()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(
    "layouts",
    [[], [StoreLayout(1, 3, 6)], [StoreLayout(1, 3, 6, 2)], [StoreLayout(1, 3, 6, 2), StoreLayout(1, 1, 6)]],
)
def test_mixing_before_restoring_gives_what_mixing_after_it_gave(
    layouts: list[StoreLayout], text: bool
) -> None:
    window = shards(layouts, [4, 7, 3] if text else [4, 4, 4], text)
    found = _block(mixed_rows(window, 11), layouts)
    whole = reduce(join_blocks, (_block(batch, layouts) for batch in window))
    order = torch.randperm(len(whole.rows), generator=torch.Generator().manual_seed(11))
    expected = slice_block(whole, order)
    assert not torch.equal(found.rows, torch.arange(len(found.rows)))
    for name in ("rows", "inputs", "labels", "views"):
        one, two = getattr(found, name), getattr(expected, name)
        assert one.dtype == two.dtype and torch.equal(one, two), name
    each = [logits(_block(batch, layouts)) for batch in window]  # restored shard by shard, and mixed then
    for two in (logits(expected), torch.cat(each)[order] if layouts else None):  # type: ignore[arg-type]
        one = logits(found)
        if one is None or two is None:
            assert one is two
        else:
            assert one.dtype == two.dtype and torch.equal(one, two)


def test_large_shards_are_restored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = [StoreLayout(1, 3, 6, 2)]
    batch = mixed_rows(shards(layouts, [4, 4, 4], text=False), 11)
    whole = _block(batch, layouts)
    monkeypatch.setattr("ensemble_kd.streaming.ROWS_AT_ONCE", 7)
    parts = list(_blocks(batch, layouts))
    assert [len(part.rows) for part in parts] == [7, 7, 4]
    joined = reduce(join_blocks, parts)
    for name in ("rows", "inputs", "labels", "views"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    assert whole.member_logits is not None and joined.member_logits is not None
    assert torch.equal(joined.member_logits.logits(), whole.member_logits.logits())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("top_k", [None, 2])
def test_logits_that_are_not_finite_are_refused(bad: float, top_k: int | None) -> None:
    from ensemble_kd.errors import InputError

    logits = torch.randn(4, 1, 3, 6)
    logits[2, 0, 1, 5] = bad
    with pytest.raises(InputError, match="not finite"):
        encode(logits, StoreLayout(1, 3, 6, top_k))
    logits[0, 0, 0, 0] = -bad  # together not a number
    with pytest.raises(InputError, match="not finite"):
        encode(logits, StoreLayout(1, 3, 6, top_k))
    logits = torch.full((4, 1, 3, 6), 3e38)  # only their sum is infinite
    assert encode(logits, StoreLayout(1, 3, 6, top_k))[1] < 1
