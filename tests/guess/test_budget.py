"""What fits into a time: parsed, planned, and cut where it costs least."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from ensemble_kd.errors import InputError
from ensemble_kd.guess import pace
from ensemble_kd.guess.budget import fit, plan, seconds_of, total
from ensemble_kd.guess.commented import Commented
from ensemble_kd.guess.counts import Rows
from ensemble_kd.guess.pace import Pace
from ensemble_kd.guess.steps import epochs_of

RAW: dict[str, Any] = {
    "data": {},
    "teachers": {"num_members": 4, "model": {"name": "mlp"}, "training": {"epochs": 10, "batch_size": 10}},
    "soft_targets": {"views": 20},
    "student": {"seeds": 3, "model": {"name": "mlp"}, "training": {"epochs": 40, "batch_size": 10}},
}
ROWS = Rows(train=1000, labelled=1000, validation=0, test=0, unlabelled=0)
PACE = Pace(0.02, 0.004, 0.002, 0.0, workers=2)


@pytest.mark.parametrize(("said", "seconds"), [("30m", 1800), ("90s", 90), ("1.5h", 5400), ("1h30m", 5400)])
def test_times_are_read(said: str, seconds: float) -> None:
    assert seconds_of(said) == seconds


@pytest.mark.parametrize("said", ["30", "m", "half an hour", "-3m", "0s", "3 m 4", ""])
def test_what_is_no_time_is_told(said: str) -> None:
    with pytest.raises(InputError, match="--budget: .*as in 30m"):
        seconds_of(said)


def test_a_number_without_a_unit_is_told() -> None:
    with pytest.raises(InputError, match="--budget: 60 has no unit; give a text with one, as in 30m"):
        seconds_of(60)  # type: ignore[arg-type]


def test_a_plan_counts_rounds_of_workers() -> None:
    """By hand: 4 teachers on 2 workers are 2 rounds of 10 x 1000 x 0.02 s."""
    lines = {line.stage: line for line in plan(RAW, ROWS, PACE)}
    assert lines["teachers"].seconds == pytest.approx(1.15 * 2 * 10 * 1000 * 0.02 + 10)
    assert lines["soft-targets"].seconds == pytest.approx(1.15 * 1000 * 20 * 4 * 0.004 / 2 + 10)
    # Three seeds on hard labels on 2 workers: 2 rounds; three of distilled and plain: 3.
    assert lines["gap"].seconds == pytest.approx(1.15 * 2 * 40 * 1000 * 0.002 + 10)
    assert lines["student"].seconds == pytest.approx(1.15 * 3 * 40 * 1000 * 0.002 + 10)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
def test_what_is_cut_fits_and_says_so(share: float) -> None:
    settings = Commented(deepcopy(RAW))
    budget = share * total(plan(RAW, ROWS, PACE))
    fit(settings, ROWS, PACE, budget, set(), "Xm")
    assert share * budget / 2 < total(plan(settings.raw, ROWS, PACE)) <= budget
    assert settings.get("teachers.num_members") >= 2, "an ensemble stays one as long as it can"
    changed = [path for path in settings.comments if "--budget" in settings.comments[path]]
    assert changed and all(settings.get(path) != Commented(RAW).get(path) for path in changed)


def test_what_the_user_has_set_stays() -> None:
    settings = Commented(deepcopy(RAW))
    budget = 0.5 * total(plan(RAW, ROWS, PACE))
    fit(settings, ROWS, PACE, budget, {"teachers.num_members", "student.training"}, "Xm")
    assert settings.get("teachers.num_members") == 4
    assert settings.get("student.training.epochs") == 40


def test_enough_time_changes_nothing() -> None:
    settings = Commented(deepcopy(RAW))
    fit(settings, ROWS, PACE, 1e6, set(), "Xm")
    assert settings.raw == RAW and not settings.comments


def test_too_short_for_one_teacher_is_told_with_what_is_enough() -> None:
    with pytest.raises(InputError, match=r"1m is too short for one teacher.*Give --budget \d+m") as caught:
        fit(Commented(deepcopy(RAW)), ROWS, PACE, 60, set(), "1m")
    enough = str(caught.value).split("Give --budget ")[1].split(",")[0]
    fit(Commented(deepcopy(RAW)), ROWS, PACE, seconds_of(enough), set(), enough)


def test_smaller_pictures_and_narrower_teachers_cost_by_area_and_square() -> None:
    raw = deepcopy(RAW)
    raw["data"] = {"image": {"resize": [64, 64]}}
    raw["teachers"]["model"] = {"name": "resnet", "width": 32}
    pace = replace(PACE, side=64, width=32)
    before = {line.stage: line.seconds - 10 for line in plan(raw, ROWS, pace)}
    raw["data"]["image"]["resize"] = [32, 32]
    raw["teachers"]["model"]["width"] = 16
    after = {line.stage: line.seconds - 10 for line in plan(raw, ROWS, pace)}
    assert after["teachers"] == pytest.approx(before["teachers"] / 16)
    assert after["student"] == pytest.approx(before["student"] / 4)


def test_texts_are_cut_where_all_else_is_not_enough_and_cost_by_their_tokens() -> None:
    raw = deepcopy(RAW) | {"data": {"text": {"max_length": 128}}}
    pace = replace(PACE, tokens=128, lengths=[10, 50, 100, 200, 400])
    assert pace.share_of(128) == 1 and pace.share_of(48) == pytest.approx((10 + 4 * 48) / (160 + 2 * 128))
    assert PACE.share_of(48) == 1, "where lengths are not known"
    whole = total(plan(raw, ROWS, pace))
    for share, cut in ((0.5, False), (0.1, True)):
        settings = Commented(deepcopy(raw))
        fit(settings, ROWS, pace, share * whole, set(), "Xm")
        assert (settings.get("data.text.max_length") < 128) is cut
    with pytest.raises(InputError):  # the same without lengths
        fit(Commented(deepcopy(raw)), ROWS, PACE, 0.1 * whole, set(), "Xm")
    short = replace(pace, lengths=[10, 20, 30, 40])
    settings = Commented(deepcopy(raw))
    fit(settings, ROWS, short, 0.15 * whole, set(), "Xm")
    assert settings.get("data.text.max_length") == 128, "nothing would be saved"


def test_nothing_is_cut_to_so_few_steps_that_it_learns_nothing() -> None:
    settings = Commented(deepcopy(RAW))
    least = 0.0
    for seconds in range(1000, 60, -20):
        try:
            fit(settings, ROWS, PACE, seconds, set(), "Xm")
        except InputError:
            break
        least = seconds
    assert least and settings.get("teachers.training.epochs") * 1000 / 10 >= 150


def test_epochs_that_are_auto_are_planned_and_cut_only_where_need_be() -> None:
    raw = deepcopy(RAW)
    raw["teachers"]["training"]["epochs"] = raw["student"]["training"]["epochs"] = "auto"
    assert epochs_of(raw, ROWS) == (20, 20), "2,000 steps of 100 an epoch"
    before = total(plan(raw, ROWS, PACE))
    raw["student"]["temperature"] = "auto"
    stages = [line.stage for line in plan(raw, ROWS, PACE)]
    assert stages == ["data", "teachers", "gap", "soft-targets", "choose", "student", "report"]
    assert total(plan(raw, ROWS, PACE)) > before
    settings = Commented(deepcopy(raw))
    fit(settings, ROWS, PACE, 1e6, set(), "Xm")
    assert settings.raw == raw
    fit(settings, ROWS, PACE, 0.3 * total(plan(raw, ROWS, PACE)), set(), "Xm")
    assert settings.get("teachers.training.epochs") < 20


def test_teachers_whose_predictions_are_given_cost_nothing() -> None:
    raw = deepcopy(RAW)
    raw["teachers"] |= {"source": "predictions", "predictions": {"train": ["a", "b"]}}
    raw["soft_targets"] = {"views": 1}
    before, after = ({line.stage: line for line in plan(each, ROWS, PACE)} for each in (RAW, raw))
    assert after["teachers"].work == "2 given" and after["teachers"].seconds == 0
    assert after["soft-targets"].seconds == pytest.approx(10)
    assert after["gap"].seconds == before["gap"].seconds


def test_nothing_is_tried_where_the_time_does_not_suffice_else() -> None:
    raw = deepcopy(RAW)
    raw["student"] |= {"temperature": "auto", "alpha": "auto", "pseudo": "auto"}
    names = ("temperature", "alpha", "pseudo")
    chosen = []
    for seconds in range(800, 100, -10):
        settings = Commented(deepcopy(raw))
        try:
            fit(settings, ROWS, PACE, seconds, set(), "Xm")
        except InputError as error:
            assert "choose" not in str(error), "what is said to be the least tries nothing"
            break
        assert total(plan(settings.raw, ROWS, PACE)) <= seconds
        chosen.append([settings.get(f"student.{name}") for name in names])
        cut = settings.get("student.training.epochs") / RAW["student"]["training"]["epochs"]
        assert cut >= 0.4 or "auto" not in chosen[-1], "steps of the student are worth more than choosing"
    assert chosen[0] == ["auto"] * 3 and chosen[-1] == [2, 1, 0]
    some = replace(ROWS, labelled=100, unlabelled=900)
    settings = Commented(deepcopy(raw))
    with pytest.raises(InputError):
        fit(settings, some, PACE, 20, {"student.alpha"}, "20s")
    assert [settings.get(f"student.{name}") for name in names] == [1, "auto", 0.5], "the user's own stays"


@pytest.mark.parametrize("student", [0.00005, 0.002])
def test_no_time_is_left_that_would_suffice_for_more(student: float) -> None:
    """Nothing that was cut could be a step larger; nothing is more than it was."""
    pace = Pace(0.05, 0.01, student, 0.0, workers=1)
    raw = {**deepcopy(RAW), "soft_targets": {"views": 1}}
    raw["student"] |= {"temperature": "auto", "alpha": "auto", "pseudo": "auto"}
    paths = ("teachers.num_members", "teachers.training.epochs", "student.seeds", "student.training.epochs")
    compared = 0
    for seconds in range(1800, 100, -25):
        settings = Commented(deepcopy(raw))
        try:
            fit(settings, ROWS, pace, seconds, set(), "Xm")
        except InputError:
            break
        assert total(plan(settings.raw, ROWS, pace)) <= seconds
        for path in paths:
            now, first = settings.get(path), Commented(raw).get(path)
            assert now <= first and ("--budget" in settings.comments.get(path, "")) == (now < first)
            if now < first:
                more = Commented(deepcopy(settings.raw))
                more.set(path, now + max(1, now // 10))
                assert total(plan(more.raw, ROWS, pace)) > seconds, f"{path} at {seconds} s: time was left"
                compared += 1
    assert compared > 50


def test_a_run_without_ray_waits_for_no_worker_and_has_one() -> None:
    raw = {**deepcopy(RAW), "compute": {"executor": "local"}}
    lines = {line.stage: line for line in plan(raw, ROWS, replace(PACE, workers=1))}
    assert lines["teachers"].seconds == pytest.approx(1.15 * 4 * 10 * 1000 * 0.02)
    assert pace._workers(raw) == 1 < pace._workers({"compute": {"num_workers": 3}})


def test_trees_are_counted_among_the_teachers_that_are_asked() -> None:
    raw = deepcopy(RAW)
    raw["teachers"]["kinds"] = [{"model": {"name": "trees"}, "count": 2}]
    lines = {line.stage: line for line in plan(raw, ROWS, PACE)}
    assert lines["soft-targets"].work.startswith("6 teachers on")
