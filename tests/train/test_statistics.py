import numpy as np
import pytest
from scipy import stats

from ensemble_kd.train.statistics import (
    Interval,
    combined_interval,
    gap_error,
    gap_reason,
    gap_recovered,
    mean_and_error,
    paired_interval,
    seed_interval,
)
from ensemble_kd.train.verdict import Gap, verdict

HELPED = Interval(0.4, 0.1, 0.7, "3 seeds, 10,000 test examples")
UNSURE = Interval(0.1, -0.2, 0.4, "one seed, 360 test examples")
HURT = Interval(-0.5, -0.9, -0.1, "one seed, 360 test examples")


def test_mean_and_error_against_scipy() -> None:
    values = [0.91, 0.94, 0.92]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(stats.sem(values))
    assert mean_and_error([0.5]) == (0.5, None)


def test_seed_interval_against_scipy() -> None:
    values = [0.001, 0.004, 0.0025]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    got = seed_interval(values)
    assert (got.low, got.high) == pytest.approx((100 * low, 100 * high))
    assert got.over == "3 seeds"
    with pytest.raises(ValueError, match="at least 2"):
        seed_interval([0.1])


@pytest.mark.parametrize("changed, shown", [(0, False), (5, False), (6, True), (12, True)])
def test_paired_interval_agrees_with_exact_mcnemar(changed: int, shown: bool) -> None:
    """`changed` examples become right and none wrong; exact McNemar: p = 2 / 2^changed."""
    before = np.zeros(1000, dtype=bool)
    after = before.copy()
    after[:changed] = True
    got = paired_interval(after, before)
    assert got.points == pytest.approx(changed / 10)
    assert (got.low > 0) == shown
    if changed:
        assert (stats.binomtest(changed, changed).pvalue < 0.05) == shown


def test_paired_interval_covers_the_truth() -> None:
    """Two systems, right with 0.90 and 0.87, made dependent: 95% of the intervals hold 3 points."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        u = rng.random(400)
        a, b = u < 0.90, np.where(rng.random(400) < 0.7, u < 0.87, rng.random(400) < 0.87)
        interval = paired_interval(a, b)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.935 <= hits / 2000 <= 0.985


def test_seed_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    intervals = [seed_interval(rng.normal(0.01, 0.003, size=3).tolist()) for _ in range(2000)]
    assert 0.935 <= np.mean([i.low <= 1.0 <= i.high for i in intervals]) <= 0.965


def test_seeds_that_agree_do_not_hide_a_small_test_set() -> None:
    hard, distilled = np.zeros(100), np.zeros(100)
    distilled[:3] = 1
    got = combined_interval([distilled] * 3, [hard] * 3)
    assert got.points == pytest.approx(3) and got.outcome == "no difference shown"
    assert got.over == "3 seeds, 100 test examples"


def test_seeds_that_differ_widen_the_interval() -> None:
    hard = np.zeros(1000)
    distilled = [np.arange(1000) < n for n in (10, 200, 390)]
    got = combined_interval(distilled, [hard] * 3)
    assert got.low == pytest.approx(seed_interval([0.01, 0.2, 0.39]).low)
    assert combined_interval(distilled[:1], [hard]).over == "one seed, 1,000 test examples"


def test_gap_recovered() -> None:
    assert gap_recovered(0.98, 0.96, 0.985) == pytest.approx(0.8)
    assert gap_recovered(0.95, 0.96, 0.985) == pytest.approx(-0.4)
    assert gap_recovered(0.98, 0.96, 0.96) is None
    assert gap_recovered(0.98, 0.96, 0.95) is None
    assert gap_reason(0.96, 0.985) is None
    assert "no gap to recover" in (gap_reason(0.96, 0.96) or "")
    assert "not known" in (gap_reason(0.96, None) or "")


def test_gap_error_against_simulation() -> None:
    rng = np.random.default_rng(2)
    hard = rng.normal(0.96, 0.002, size=(4000, 8))
    distilled = rng.normal(0.98, 0.001, size=(4000, 8))
    ratio = (distilled.mean(1) - hard.mean(1)) / (0.985 - hard.mean(1))
    errors = [gap_error(d.tolist(), h.tolist(), 0.985) or 0.0 for d, h in zip(distilled, hard, strict=True)]
    assert np.mean(errors) == pytest.approx(ratio.std(), rel=0.1)
    assert gap_error([0.98], [0.96], 0.985) is None


def test_the_verdicts() -> None:
    text = verdict(HELPED, Gap(0.82), HELPED)
    assert text.startswith("Distillation helped: 0.40 points")
    assert "+0.10 to +0.70; 3 seeds, 10,000 test examples" in text
    assert "82% of the gap" in text and "Soft targets add 0.40 points" in text
    assert "did not help" not in text

    text = verdict(UNSURE, Gap(reason="the ensemble is no better"))
    assert text.startswith("A gain from distillation is not shown: 0.10 points more accuracy")
    assert "did not help" not in text and "within the noise" in text
    assert "-0.20 to +0.40; one seed, 360 test examples" in text
    assert "not defined, the ensemble is no better" in text

    text = verdict(HURT, Gap(-0.5), UNSURE)
    assert "did not help here: it cost 0.50 points" in text and "-0.90 to -0.10" in text
    assert "pseudo-labels: +0.10 points, within the noise" in text
    assert [i.outcome for i in (HELPED, UNSURE, HURT)] == ["helped", "no difference shown", "hurt"]

    text = verdict(Interval(0.05, -0.15, 0.2, "5 seeds, 10,000 test examples"), Gap())
    assert "did not help here: 0.05 points more accuracy" in text and "0.2 points either way" in text
    assert "not shown" in verdict(Interval(0.05, -0.15, 0.21, "one seed"), Gap())


def test_the_verdict_says_what_limits_the_gain() -> None:
    large = Interval(4.0, 3.0, 5.0, "3 seeds")

    def limit(gap: Gap, pseudo: Interval | None = None) -> str:
        return verdict(HELPED, gap, pseudo).partition("What limits the gain: ")[2]

    assert limit(Gap(0.5)) == ""  # the ensemble is not known
    weak = limit(Gap(0.5, advantage=UNSURE, causes=["no labels", "same kind", "a third"]))
    assert weak.startswith("the ensemble, which is not shown to know more") and "+0.10 points" in weak
    assert weak.endswith("Likely: no labels; same kind.")
    assert limit(Gap(0.95, advantage=large)).startswith("the ensemble, 4.00 points above hard labels")
    assert "still falling at the end (by 30%" in limit(Gap(0.5, advantage=large, falling=0.3))
    assert "choose temperature and alpha" in limit(Gap(-0.2, advantage=large), HURT)
    assert limit(Gap(0.5, advantage=large), UNSURE).startswith("the softness")
    assert "(auto)" in limit(Gap(0.5, advantage=large), UNSURE)
    assert "auto" not in limit(Gap(0.5, advantage=large, chosen=True), UNSURE), "it was chosen already"
    assert "temperature" not in limit(Gap(0.5, advantage=large, softened=False), HELPED), "values have none"
    assert limit(Gap(0.5, advantage=large), HELPED).startswith("the student, which takes 50%")
