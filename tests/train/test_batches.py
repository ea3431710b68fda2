"""Batches: every example once an epoch, the same whoever asks, whatever the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ensemble_kd.config import AugmentConfig
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.objectives.base import Batch
from ensemble_kd.stages.shards import encode
from ensemble_kd.train import blocks as module
from ensemble_kd.train.batches import Batches, Targets
from ensemble_kd.train.blocks import Block, Source, StreamSource, TensorSource, as_tensor, mix
from ensemble_kd.train.stored import StoredLogits, StoredPart, restore

NONE = AugmentConfig()


def source(n: int = 100, views: int = 1, teacher: object = None, seed: int = 1) -> TensorSource:
    inputs = torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3)
    labels = torch.arange(n) % 5
    return TensorSource(inputs, labels, torch.arange(n), seed, teacher, views)  # type: ignore[arg-type]


def collect(batches: Batches, epoch: int = 0) -> list[Batch]:
    return list(batches.epoch(epoch))


def rows(found: list[Batch]) -> list[float]:
    return [float(x) for batch in found for x in batch.inputs[:, 0]]


def test_an_epoch_holds_every_row_once() -> None:
    found = collect(Batches(source(), 20, 5, Targets(), NONE))
    assert sorted(rows(found)) == list(range(100))
    assert all(int(x) % 5 == int(y) for b in found for x, y in zip(b.inputs[:, 0], b.labels, strict=True))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = rows(collect(Batches(source(), 20, 5, Targets(), NONE), 3))
    assert first == rows(collect(Batches(source(), 20, 5, Targets(), NONE), 3))
    assert first != rows(collect(Batches(source(), 20, 5, Targets(), NONE), 4))
    assert first != rows(collect(Batches(source(seed=2), 20, 5, Targets(), NONE), 3))


def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(collect(Batches(source(), 20, 5, Targets(), NONE)))
    monkeypatch.setattr(module, "BLOCK_EXAMPLES", 33)  # no multiple of the batch
    assert rows(collect(Batches(source(), 20, 5, Targets(), NONE))) == whole


def test_few_rows_fill_many_steps_evenly() -> None:
    found = collect(Batches(source(10), 8, 5, Targets(), NONE))
    assert [len(batch) for batch in found] == [8] * 5
    assert set(Counter(rows(found)).values()) == {4}


def test_replicas_share_each_batch() -> None:
    whole = collect(Batches(source(), 20, 5, Targets(), NONE))
    parts = [collect(Batches(source(), 20, 5, Targets(), NONE, rank=r, replicas=2)) for r in (0, 1)]
    for i, batch in enumerate(whole):
        assert torch.equal(torch.cat([parts[0][i].inputs, parts[1][i].inputs]), batch.inputs)


class Members:
    """Logits that say which row and view they belong to."""

    num_views = 3

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return torch.stack([rows.float() / 10, views.float(), torch.zeros(len(rows))], 1)[:, None]


def test_soft_targets_belong_to_the_row_and_view() -> None:
    batches = Batches(source(views=3, teacher=Members()), 20, 5, Targets(temperature=1.0, soft=True), NONE)
    seen = set()
    for batch in collect(batches):
        assert batch.teacher is not None
        v = batch.teacher.logits - batch.teacher.logits[:, 2:]
        torch.testing.assert_close(v[:, 0], batch.inputs[:, 0] / 10, atol=1e-4, rtol=1e-4)
        seen |= {round(float(x)) for x in v[:, 1]}
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_replica_restores_the_soft_targets_of_its_own_share(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    layout = StoreLayout(1, 2, 6, top_k=3)
    columns, _ = encode(torch.randn(100, 1, 2, 6), layout)
    store, one_view = StoredLogits(columns, layout), {n: as_tensor(c[:, 0]) for n, c in columns.items()}

    def open_epoch(epoch: int) -> Iterator[Block]:
        for begin in range(0, 100, 30):  # what is left of one batch of 20 opens the next
            at = torch.arange(begin, min(begin + 30, 100))
            part = StoredPart([({name: column[at] for name, column in one_view.items()}, layout)])
            yield Block(at, at[:, None].float(), at % 5, part)

    restored: list[int] = []

    def counted(columns: dict[str, Tensor], layout: StoreLayout) -> Tensor:
        restored.append(len(columns["rest"]))
        return restore(columns, layout)

    monkeypatch.setattr("ensemble_kd.train.stored.restore", counted)
    one: Source = StreamSource(open_epoch) if streamed else source(teacher=store)

    def soft(rank: int, replicas: int) -> list[Tensor]:
        restored.clear()
        targets = Targets(temperature=1.0, soft=True)
        found = collect(Batches(one, 20, 5, targets, NONE, rank=rank, replicas=replicas))
        assert sum(n for n in restored if n > 1) == 100 // replicas  # single ones tell how large they are
        return [batch.teacher.logits for batch in found if batch.teacher is not None]

    for whole, *shares in zip(soft(0, 1), *(soft(rank, 4) for rank in range(4)), strict=True):
        assert torch.equal(torch.cat(shares), whole)


def test_guesses_are_for_missing_labels_alone() -> None:
    one = source(50, teacher=Members())
    one.labels = torch.where(torch.arange(50) < 25, one.labels, -1)
    for batch in collect(Batches(one, 10, 5, Targets(guesses=True), NONE)):
        number, none = batch.inputs[:, 0], torch.full((10,), -1)
        assert torch.equal(batch.labels, torch.where(number < 25, number.long() % 5, none))
        assert batch.guesses is not None
        assert torch.equal(batch.guesses, torch.where(number < 25, none, torch.zeros_like(none)))
        assert batch.teacher is None


def test_stream_gives_every_row_once_and_carries_leftovers() -> None:
    def open_epoch(epoch: int) -> Iterator[Block]:
        for begin in range(0, 100, 30):
            numbers = torch.arange(begin, min(begin + 30, 100))
            yield Block(numbers, numbers[:, None].float(), numbers % 5)

    found = collect(Batches(StreamSource(open_epoch), 20, 5, Targets(), NONE))
    assert sorted(rows(found)) == list(range(100))
    more = collect(Batches(StreamSource(open_epoch), 20, 8, Targets(), NONE))
    assert len(more) == 8


def test_stream_without_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        collect(Batches(StreamSource(lambda epoch: iter(())), 4, 1, Targets(), NONE))


def test_padding_is_trimmed_to_the_batch() -> None:
    inputs = torch.zeros(8, 10, dtype=torch.int32)
    inputs[:, 0] = 1
    inputs[3, 4] = 7
    one = TensorSource(inputs, torch.zeros(8, dtype=torch.long), torch.arange(8), 0)
    widths = {b.inputs.shape[1] for b in collect(Batches(one, 2, 4, Targets(), NONE, trim_padding=True))}
    assert widths == {1, 5}


def test_augmentation_follows_the_row_not_the_batch() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (40, 6, 6, 1), dtype=np.uint8))
    shift = AugmentConfig(shift=2)

    def views(batch_size: int) -> dict[int, Tensor]:
        one = TensorSource(images, torch.arange(40), torch.arange(40), 5)
        batches = Batches(one, batch_size, 40 // batch_size, Targets(), shift, fresh_views=True, seed=9)
        return {int(y): x for b in batches.epoch(2) for x, y in zip(b.inputs, b.labels, strict=True)}

    small, large = views(4), views(20)
    assert all(torch.equal(small[i], large[i]) for i in range(40))
    assert any(not torch.equal(small[i], images[i]) for i in range(40))


def test_mix_separates_its_numbers() -> None:
    seeds = {mix(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
