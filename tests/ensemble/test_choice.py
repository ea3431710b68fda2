"""Members with their own specialists: the combination, its calibration, and which clusters are on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ensemble_kd.ensemble.choice import (
    TEMPERATURES,
    WEIGHTS,
    Choice,
    Cluster,
    calibrated,
    choose,
    with_specialists,
)
from ensemble_kd.ensemble.specialists import combine

CLASSES = 6
PAIRS = [[0, 1], [2, 3], [4, 5]]


def random_case(
    seed: int, rows: int = 30, members: int = 3, scale: float = 2.0
) -> tuple[Tensor, list[Cluster], Tensor]:
    """Members' logits, clusters with specialists of some members, and labels that fit somewhat."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    hint = torch.nn.functional.one_hot(labels, CLASSES)[:, None]
    logits = scale * torch.randn(rows, members, CLASSES, generator=generator) + 2 * hint
    clusters: list[Cluster] = []
    for classes in ([0, 1, 4], [5, 2], [3, 1]):
        some = torch.randperm(members, generator=generator)[: max(1, members - 1)].tolist()
        own = {i: scale * torch.randn(rows, len(classes) + 1, generator=generator) for i in some}
        clusters.append((classes, own))
    return logits, clusters, labels


def confused(rows: int = 600, members: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Members (N, M, C) that are sure of the pair and guess within it, each by itself; labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    pair = torch.nn.functional.one_hot(labels // 2, CLASSES // 2).repeat_interleave(2, 1)  # (N, C)
    return 5.0 * pair[:, None] + 0.5 * torch.randn(rows, members, CLASSES, generator=generator), labels


def says(labels: Tensor, classes: list[int], logit: float = 3.0) -> Tensor:
    """(N, 3) logits of a specialist of a pair that names these labels, or the dustbin."""
    outputs = torch.full((CLASSES,), len(classes))
    outputs[classes] = torch.arange(len(classes))
    return logit * torch.nn.functional.one_hot(outputs[labels], len(classes) + 1).float()


def specialists_of(classes: list[int], labels: Tensor, members: int = 2) -> Cluster:
    return classes, {i: says(labels, classes) for i in range(members)}


def log_mean(log_p: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, C) log of the mean over members of the softened distributions (B, M, C)."""
    return (log_p.double() / temperature).log_softmax(2).exp().mean(1).log()


def mistakes(log_p: Tensor, labels: Tensor) -> int:
    return int((log_p.argmax(1) != labels).sum())


# ------------------------------------------------------------------------------------------ combination


def test_weight_0_or_no_specialists_leave_every_member_as_it_is() -> None:
    logits, clusters, _ = random_case(0)
    members = logits.log_softmax(2)
    nobody: list[Cluster] = [(classes, {}) for classes, _ in clusters]
    assert torch.equal(with_specialists(logits, clusters, [0.0, 0.0, 0.0]), members)
    assert torch.equal(with_specialists(logits, nobody, [1.0, 2.0, 1.0]), members)
    assert torch.equal(with_specialists(logits, [], []), members)


@pytest.mark.parametrize("top_n", [1, 3])
def test_each_member_is_combined_with_its_own_specialists(top_n: int) -> None:
    logits, clusters, _ = random_case(1)
    weights = [0.5, 0.0, 2.0]
    found = with_specialists(logits, clusters, weights, top_n)
    for i in range(logits.shape[1]):
        own = [
            (classes, parts[i].log_softmax(1), weight)
            for (classes, parts), weight in zip(clusters, weights, strict=True)
            if i in parts
        ]
        alone = combine(
            logits[:, i].log_softmax(1), [part[:2] for part in own], top_n=top_n, weight=[w for *_, w in own]
        )
        torch.testing.assert_close(found[:, i], alone)
    torch.testing.assert_close(found.exp().sum(2), torch.ones(30, 3))
    assert not torch.allclose(found, logits.log_softmax(2))


def test_a_member_without_specialists_keeps_its_distribution() -> None:
    logits, clusters, _ = random_case(2)
    alone: list[Cluster] = [(classes, {1: next(iter(parts.values()))}) for classes, parts in clusters]
    found, members = with_specialists(logits, alone, [1.0, 1.0, 1.0]), logits.log_softmax(2)
    assert torch.equal(found[:, [0, 2]], members[:, [0, 2]])
    assert not torch.allclose(found[:, 1], members[:, 1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), top_n=st.integers(1, 3), order=st.permutations(range(3)))
def test_order_of_clusters_is_immaterial(seed: int, top_n: int, order: list[int]) -> None:
    logits, clusters, _ = random_case(seed)
    weights = [0.5, 1.0, 2.0]
    found = with_specialists(logits, clusters, weights, top_n)
    moved = with_specialists(logits, [clusters[k] for k in order], [weights[k] for k in order], top_n)
    torch.testing.assert_close(moved.exp(), found.exp(), atol=5e-6, rtol=0)


def test_logits_count_up_to_a_constant() -> None:
    logits, clusters, labels = random_case(3)
    shifted = logits + 7 * torch.randn(30, 3, 1)
    moved: list[Cluster] = [(c, {i: part - 3.0 for i, part in parts.items()}) for c, parts in clusters]
    torch.testing.assert_close(
        with_specialists(shifted, moved, [1.0, 0.5, 2.0]),
        with_specialists(logits, clusters, [1.0, 0.5, 2.0]),
        atol=1e-4,
        rtol=0,
    )
    assert choose(shifted, moved, labels).weights == choose(logits, clusters, labels).weights


# ------------------------------------------------------------------------------------------ calibration


@pytest.mark.parametrize("planted", [0.25, 0.6, 1.0, 1.9, 4.2])
def test_calibration_finds_the_planted_temperature(planted: float) -> None:
    """Labels drawn from p, logits planted * log p: dividing by `planted` gives p back."""
    generator = torch.Generator().manual_seed(int(10 * planted))
    log_p = (2 * torch.randn(20_000, 5, generator=generator)).log_softmax(1)
    labels = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
    logits = planted * log_p
    found, calibrated_log_p = calibrated(torch.stack([logits, logits + 3.0], 1), labels)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    assert abs(math.log(found / planted)) <= step
    torch.testing.assert_close(calibrated_log_p, (logits / found).log_softmax(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_members_are_softened_before_they_are_averaged(weights: list[float] | None) -> None:
    logits, _, labels = random_case(4, rows=200)
    found, log_p = calibrated(logits, labels, weights=weights)
    shares = np.array(weights or [1.0, 1.0, 1.0])

    def reference(temperature: float) -> np.ndarray:
        p = np.exp(logits.double().numpy() / temperature)
        return np.einsum("bmc,m->bc", p / p.sum(2, keepdims=True), shares / shares.sum())

    np.testing.assert_allclose(log_p.exp().numpy(), reference(found), atol=1e-5)
    losses = [-np.log(reference(t)[np.arange(200), labels]).mean() for t in TEMPERATURES]
    assert found == TEMPERATURES[int(np.argmin(losses))]


def test_calibration_stops_at_the_ends_of_the_grid() -> None:
    labels = torch.arange(4).repeat(5)
    right = torch.nn.functional.one_hot(labels, 4)[:, None].float()
    assert calibrated(right, labels)[0] == pytest.approx(0.2)  # never sharp enough
    assert calibrated(-right, labels)[0] == pytest.approx(5.0)  # never flat enough


# ----------------------------------------------------------------------------------------------- choice


def test_specialists_that_know_the_truth_are_on_and_mend_the_errors() -> None:
    logits, labels = confused()
    clusters = [specialists_of(classes, labels) for classes in PAIRS]
    choice = choose(logits, clusters, labels)
    assert choice.on and choice.weights[0] in WEIGHTS and choice.weights == [choice.weights[0]] * 3
    assert choice.text == f"specialists of 3 of 3 clusters on, weight {choice.weights[0]:g}"
    after = log_mean(with_specialists(logits, clusters, choice.weights), choice.measured["temperature"])
    measured = choice.measured
    assert 200 < mistakes(log_mean(logits), labels) < 400 and mistakes(after, labels) < 10
    assert measured["accuracy_without"] == pytest.approx(
        1 - mistakes(log_mean(logits), labels) / 600, abs=0.01
    )
    assert measured["accuracy_with"] > 0.98 and measured["rows_lost"] < -200 and measured["rows"] == 600
    assert measured["nll_gain"] == pytest.approx(measured["nll_without"] - measured["nll_with"], abs=1e-5)
    # Members that guess within the pair and are sure of it: log 2 at best.
    assert measured["nll_without"] == pytest.approx(math.log(2), abs=0.1)


def test_specialists_that_are_wrong_are_off_and_the_text_says_so() -> None:
    logits, labels = confused()
    clusters = [specialists_of(classes, labels ^ 1) for classes in PAIRS]  # the other class of the pair
    choice = choose(logits, clusters, labels)
    assert not choice.on and choice.weights == [0.0, 0.0, 0.0]
    assert choice.text == "specialists of every cluster off"


def test_only_the_harmful_cluster_is_off() -> None:
    logits, labels = confused()
    clusters = [
        specialists_of(classes, labels ^ (k == 1)) for k, classes in enumerate(PAIRS)
    ]  # the second one is wrong
    choice = choose(logits, clusters, labels)
    assert [weight > 0 for weight in choice.weights] == [True, False, True]
    assert choice.text.startswith("specialists of 2 of 3 clusters on")
    moved = choose(logits, [clusters[k] for k in (1, 2, 0)], labels)
    assert moved.weights == [choice.weights[k] for k in (1, 2, 0)]
    # Figures are those of the clusters that are on.
    on = choose(logits, [clusters[0], clusters[2]], labels, weight=choice.weights[0])
    for key in ("accuracy_with", "nll_with", "nll_gain_error"):
        assert choice.measured[key] == pytest.approx(on.measured[key], abs=1e-5)


def test_a_cluster_that_nobody_asks_about_is_off() -> None:
    logits, labels = confused()
    clusters = [specialists_of(classes, labels) for classes in PAIRS]
    last = int((labels >= 4).nonzero()[0])

    def on(rows: Tensor) -> list[bool]:
        parts: list[Cluster] = [(c, {i: own[rows] for i, own in members.items()}) for c, members in clusters]
        return [weight > 0 for weight in choose(logits[rows], parts, labels[rows]).weights]

    rows = labels < 4
    assert on(rows) == [True, True, False]
    rows[last] = True  # one row asks, and gets the right answer
    assert on(rows) == [True, True, True]


@pytest.mark.parametrize("weight", [0.7, 3.0, 0.0])
def test_a_given_weight_is_used_as_it_is(weight: float) -> None:
    logits, labels = confused()
    clusters = [specialists_of(classes, labels ^ 1) for classes in PAIRS]
    choice = choose(logits, clusters, labels, weight=weight)
    assert choice.weights == [weight] * 3 and choice.on == (weight > 0)
    assert choice.text == f"all 3 specialists at weight {weight:g}, as configured"
    assert (choice.measured["rows_lost"] > 0) == (weight > 0)  # it is not asked whether they help
    assert (choice.measured["nll_gain"] < -0.1) == (weight > 0)


def test_members_of_weight_0_have_no_say_in_the_choice() -> None:
    logits, labels = confused()
    wrong = [(classes, {0: says(labels, classes), 1: says(labels ^ 1, classes, 9.0)}) for classes in PAIRS]
    right = [(classes, {0: members[0]}) for classes, members in wrong]
    choice = choose(logits, wrong, labels, weights=[1.0, 0.0])
    alone = choose(logits[:, :1], right, labels)
    assert choice.weights == alone.weights and choice.on
    assert choice.measured == pytest.approx(alone.measured)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_either_mean_of_the_members(mean: str) -> None:
    logits, labels = confused()
    clusters = [specialists_of(classes, labels ^ (k == 1)) for k, classes in enumerate(PAIRS)]
    choice = choose(logits, clusters, labels, mean=mean)
    assert [weight > 0 for weight in choice.weights] == [True, False, True]
    log_p = logits.log_softmax(2) / choice.measured["temperature"]
    averaged = log_p.softmax(2).mean(1).log() if mean == "arithmetic" else log_p.mean(1).log_softmax(1)
    loss = -averaged.gather(1, labels[:, None]).mean()
    assert choice.measured["nll_without"] == pytest.approx(float(loss), abs=1e-5)


def test_a_lower_loss_does_not_pay_for_more_mistakes() -> None:
    """All right but unsure; the specialists make 9 of 10 rows sure and the tenth wrong."""
    labels = torch.tensor([0, 1] * 200)
    hint = torch.nn.functional.one_hot(labels, CLASSES).float()
    logits = (10.0 * (torch.arange(CLASSES) < 2) + 0.2 * hint)[:, None]
    wrong = torch.arange(400) % 10 == 0
    own = torch.where(wrong[:, None], says(labels ^ 1, [0, 1], 1.0), says(labels, [0, 1], 6.0))
    clusters: list[Cluster] = [([0, 1], {0: own})]
    choice = choose(logits, clusters, labels)
    assert not choice.on and choice.measured["nll_gain"] > 0 and choice.measured["rows_lost"] == 40
    gain, error = choice.measured["nll_gain"], choice.measured["nll_gain_error"]
    assert choice.text == (
        "specialists of every cluster off; with them, on 400 validation rows: "
        f"+40 mistakes, loss {-gain:+.4f} ± {error:.4f}"
    )
    own[wrong] = own[~wrong][:40].roll(1, 1) * 0  # silent instead of wrong: as many mistakes, less loss
    again = choose(logits, clusters, labels)
    assert again.on and again.measured["rows_lost"] == 0 and again.measured["nll_gain"] > 0


def harmless(choice: Choice, logits: Tensor, clusters: list[Cluster], labels: Tensor) -> bool:
    """Fewer mistakes at no clearly higher loss, or as many at a lower one; all figures computed anew."""
    q = with_specialists(logits, clusters, choice.weights)
    losses, wrong = [], []
    for log_p in (logits.log_softmax(2), q):
        at = [log_mean(log_p, t) for t in TEMPERATURES]
        each = [-p.gather(1, labels[:, None])[:, 0] for p in at]
        best = int(np.argmin([float(loss.mean()) for loss in each]))
        losses.append(each[best])
        wrong.append(mistakes(at[best], labels))
    gain = losses[0] - losses[1]
    error = float(gain.std()) / len(labels) ** 0.5
    assert choice.measured["nll_gain"] == pytest.approx(float(gain.mean()), abs=1e-4)
    assert choice.measured["rows_lost"] == wrong[1] - wrong[0]
    fewer = wrong[1] < wrong[0] and float(gain.mean()) > -error - 1e-4
    return fewer or (wrong[1] == wrong[0] and float(gain.mean()) > -1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), quality=st.floats(-1.0, 3.0), rows=st.integers(20, 120))
def test_whatever_is_on_did_no_harm(seed: int, quality: float, rows: int) -> None:
    """Specialists from misleading to knowing, and all between."""
    logits, clusters, labels = random_case(seed, rows, members=2, scale=1.5)
    for classes, parts in clusters:
        outputs = torch.full((CLASSES,), len(classes))
        outputs[list(classes)] = torch.arange(len(classes))
        for part in parts.values():
            part += quality * torch.nn.functional.one_hot(outputs[labels], len(classes) + 1)
    choice = choose(logits, clusters, labels)
    if choice.on:
        assert harmless(choice, logits, clusters, labels)
    else:
        assert choice.weights == [0.0] * 3 and "off" in choice.text
