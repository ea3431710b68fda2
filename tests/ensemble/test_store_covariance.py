"""Moments of predictions restored from top k, against numpy on the restored predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import Tensor

from ensemble_kd.ensemble.covariance import StreamingCovariance
from ensemble_kd.ensemble.store_covariance import SparseMoments, softened
from ensemble_kd.ensemble.top_k import TopK, compress, restore

CLASSES = 12


def member_logits(rows: int, members: int, num_classes: int = CLASSES, seed: int = 0) -> Tensor:
    """(B, M, C): members that agree on some classes, so that they often keep the same ones."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 1, num_classes, generator=generator)
    return 3 * shared + 2 * torch.randn(rows, members, num_classes, generator=generator)


def predictions(kept: TopK, temperature: float, num_classes: int = CLASSES) -> np.ndarray:
    """(B, C) float64, by hand: the mean over members of the softmax of the restored logits at T."""
    exponents = restore(kept, num_classes).double().numpy() / temperature
    p = np.exp(exponents - exponents.max(2, keepdims=True))
    return (p / p.sum(2, keepdims=True)).mean(1)


def moments(kept: TopK, temperature: float, num_classes: int = CLASSES) -> SparseMoments:
    found = SparseMoments(num_classes)
    found.update(kept, temperature)
    return found


def rows_of(kept: TopK, rows: np.ndarray) -> TopK:
    part = torch.from_numpy(rows)
    return TopK(kept.values[part], kept.indices[part], kept.rest[part])


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, 7, 11])
def test_covariance_is_numpys_on_restored_predictions(k: int, temperature: float, members: int) -> None:
    kept = compress(member_logits(200, members), k)
    found, p = moments(kept, temperature), predictions(kept, temperature)
    expected = np.cov(p.T, bias=True)
    np.testing.assert_allclose(found.covariance(), expected, rtol=0, atol=1e-6 * expected.max())
    np.testing.assert_allclose(found.mean, p.mean(0), rtol=1e-6)
    assert found.count == 200
    # What `softened` gives to a store of all logits, and the dense sums of it.
    dense = softened(restore(kept, CLASSES), temperature)
    np.testing.assert_allclose(dense.numpy(), p, atol=1e-6)
    stream = StreamingCovariance(CLASSES)
    stream.update(dense)
    np.testing.assert_allclose(found.covariance(), stream.covariance(), atol=1e-6)


def test_covariance_comes_near_the_whole_predictions_as_k_grows() -> None:
    logits = member_logits(300, 2)
    expected = np.cov(softened(logits, 1.0).double().numpy().T, bias=True)
    errors = [np.abs(moments(compress(logits, k), 1.0).covariance() - expected).max() for k in (1, 3, 6, 11)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 < errors[0]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_any_chunks_and_order_of_merging_give_the_same(data: st.DataObject, k: int, seed: int) -> None:
    kept = compress(member_logits(25, 2, seed=seed), k)
    whole = moments(kept, 2.0)
    order = np.random.default_rng(seed).permutation(25)
    cuts = sorted(data.draw(st.lists(st.integers(0, 25), max_size=4)))
    parts = []
    for chunk in np.split(order, cuts):
        part = SparseMoments(CLASSES)
        middle = data.draw(st.integers(0, len(chunk)))
        for rows in (chunk[:middle], chunk[middle:]):
            if len(rows):
                part.update(rows_of(kept, rows), 2.0)
        parts.append(part)
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        first.merge(parts.pop(data.draw(st.integers(0, len(parts) - 1))))
        parts.append(first)
    assert parts[0].count == 25
    np.testing.assert_allclose(parts[0].mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts[0].covariance(), whole.covariance(), rtol=0, atol=1e-14)


def test_merging_leaves_the_other_as_it_was() -> None:
    first, second = (moments(compress(member_logits(30, 2, seed=i), 3), 1.0) for i in (0, 1))
    before, mean = second.covariance(), second.mean.copy()
    first.merge(second)
    first.update(compress(member_logits(10, 2, seed=2), 3), 1.0)
    assert (second.covariance() == before).all() and (second.mean == mean).all() and second.count == 30


def test_classes_that_several_members_keep_are_summed() -> None:
    """Equal members say what one of them says; two that keep one class each, by hand."""
    logits = member_logits(50, 1)
    one = moments(compress(logits, 4), 2.0)
    three = moments(compress(logits.repeat(1, 3, 1), 4), 2.0)
    np.testing.assert_allclose(three.covariance(), one.covariance(), atol=1e-14)
    np.testing.assert_allclose(three.mean, one.mean, rtol=1e-12)
    # Probability 0.6 for the class kept and 0.1 for each of the four others; both members keep class 2, or
    # one of them class 0: p is (1 1 6 1 1) / 10 in the first row and (3.5 1 3.5 1 1) / 10 in the second.
    p = torch.full((2, 2, 5), 0.1)
    p[0, :, 2] = p[1, 0, 2] = p[1, 1, 0] = 0.6
    found = moments(compress(p.log(), 1), 1.0, 5)
    np.testing.assert_allclose(found.mean, [0.225, 0.1, 0.475, 0.1, 0.1], atol=1e-6)
    expected = np.zeros((5, 5))
    expected[np.ix_([0, 2], [0, 2])] = 0.125**2 * np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(found.covariance(), expected, atol=1e-6)


def test_covariance_is_symmetric_to_the_last_bit_over_any_blocks() -> None:
    found = moments(compress(member_logits(100, 3), 5), 1.5)
    found.merge(moments(compress(member_logits(77, 3, seed=1), 5), 1.5))
    whole = found.covariance()
    for rows in (1, 5, 12, 512):
        matrix = found.covariance(rows)
        assert (matrix == matrix.T).all()
        np.testing.assert_allclose(matrix, whole, rtol=0, atol=1e-15)
    # Probabilities sum to 1, so they vary with their sum not at all; no variance is below 0.
    np.testing.assert_allclose(whole.sum(1), 0, atol=1e-15)
    assert np.linalg.eigvalsh(whole).min() > -1e-15
    # Also where the products were summed in another order above the diagonal than below.
    found.d_d = found.d_d + csr_matrix(np.triu(np.full((CLASSES, CLASSES), 1e-12)))
    for rows in (1, 5, 512):
        matrix = found.covariance(rows)
        assert (matrix == matrix.T).all()


def test_many_classes_give_float32() -> None:
    size = 2100
    kept = compress(member_logits(40, 2, size), 3)
    found = moments(kept, 1.0, size).covariance()
    assert found.dtype == np.float32 and (found == found.T).all()
    expected = np.cov(predictions(kept, 1.0, size).T, bias=True)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert moments(compress(member_logits(4, 2), 3), 1.0).covariance().dtype == np.float64


def test_no_rows_are_no_covariance() -> None:
    empty = SparseMoments(CLASSES)
    assert not empty.covariance().any() and not empty.mean.any()
    found = moments(compress(member_logits(9, 2), 2), 1.0)
    before = found.covariance()
    found.merge(SparseMoments(CLASSES))
    assert found.count == 9 and (found.covariance() == before).all()
    empty.merge(found)
    assert (empty.covariance() == before).all()


def test_an_update_without_rows_changes_nothing() -> None:
    kept = compress(member_logits(9, 2), 2)
    found = moments(kept, 1.0)
    before = found.covariance()
    found.update(rows_of(kept, np.arange(0)), 1.0)
    assert found.count == 9 and (found.covariance() == before).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_softened_is_the_mean_of_the_members_softmaxes(temperature: float) -> None:
    logits = member_logits(60, 4)
    found = softened(logits, temperature)
    torch.testing.assert_close(found.sum(1), torch.ones(60))
    torch.testing.assert_close(found, (logits / temperature).softmax(2).mean(1))
    torch.testing.assert_close(softened(logits.half(), temperature), found, atol=1e-2, rtol=0)


def test_parts_from_another_process_are_merged_without_writing_to_them() -> None:
    """Ray gives arrays of another process read-only; 16 classes fill up, so that the sums are dense."""
    import pickle

    whole, parts = SparseMoments(CLASSES), SparseMoments(CLASSES)
    for seed in range(3):
        kept = compress(member_logits(300, 3), 5)
        part = SparseMoments(CLASSES)
        part.update(kept, 2.0)
        if seed != 1:  # one part that still has rows waiting
            part.settle()
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(part, protocol=5, buffer_callback=buffers.append)
        sent = pickle.loads(data, buffers=[memoryview(bytes(b)).toreadonly() for b in buffers])
        parts.merge(sent)
        whole.update(kept, 2.0)
    np.testing.assert_allclose(parts.covariance(), whole.covariance(), atol=1e-14)
