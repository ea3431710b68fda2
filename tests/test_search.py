"""Optuna behind the sweep: what it is told, what it makes of choices, and what mattered."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_kd.search import Search, decoded, distributions, encoded, importances
from ensemble_kd.space import parse_space
from ensemble_kd.train.trials import Trial

SPACE = parse_space({"alpha": "uniform(0, 1)", "model.hidden": [[8], [16, 16]], "k": "logintegers(1, 100)"})


def trial(name: str, parameters: dict[str, Any], value: float | None, state: str = "finished") -> Trial:
    values = {} if value is None else {"validation_loss": value}
    return Trial(name, "searched", parameters, [], state=state, values=values)


def told(search: Search) -> list[tuple[str, float | None]]:
    """What Optuna's study holds: state and value of every trial that has ended."""
    trials = search.optuna._ot_study.trials
    return [(t.state.name, t.value) for t in trials if t.state.is_finished()]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_proposals_lie_in_the_space_and_are_the_same_for_a_seed(kind: str) -> None:
    found = []
    for _ in range(2):
        search = Search(SPACE, kind, 3, "validation_loss", -1)
        found.append([search.propose()[1] for _ in range(5)])
    assert found[0] == found[1]
    for parameters in found[0]:
        assert list(parameters) == ["alpha", "model.hidden", "k"]
        assert 0 <= parameters["alpha"] <= 1 and parameters["model.hidden"] in ([8], [16, 16])
        assert isinstance(parameters["k"], int) and 1 <= parameters["k"] <= 100


def test_optuna_learns_how_each_trial_ended() -> None:
    """A loss is told as its negative, since the study maximises."""
    search = Search(SPACE, "tpe", 0, "validation_loss", -1)
    for name, value, state in (("a", 0.5, "finished"), ("b", 0.9, "stopped"), ("c", None, "failed")):
        number, parameters = search.propose()
        made = trial(name, parameters, value, state)
        search.accept(number, made)
        search.tell(made)
    assert told(search) == [("COMPLETE", -0.5), ("COMPLETE", -0.9), ("FAIL", None)]
    search.refuse(search.propose()[0])
    assert told(search)[3:] == [("FAIL", None)]


def test_trials_of_an_earlier_run_and_proposals_seen_before_are_told_too() -> None:
    search = Search(SPACE, "tpe", 0, "validation_loss", -1)
    known = trial("old", {"alpha": 0.25, "model.hidden": [8], "k": 3}, 0.4)
    search.tell(known)
    number, _ = search.propose()
    search.tell(known, number)
    assert told(search) == [("COMPLETE", -0.4), ("COMPLETE", -0.4)]
    search.tell(trial("lost", {"alpha": 0.5, "model.hidden": [8], "k": 3}, None, "failed"))
    assert len(told(search)) == 2


def test_tpe_goes_where_it_was_good() -> None:
    space = parse_space({"x": "uniform(0, 1)"})
    search = Search(space, "tpe", 1, "validation_accuracy", 1)
    for i in range(60):
        number, parameters = search.propose()
        made = Trial(str(i), "searched", parameters, [], state="finished")
        made.values = {"validation_accuracy": -((parameters["x"] - 0.8) ** 2)}
        search.accept(number, made)
        search.tell(made)
    later = [t.params["x"] for t in search.optuna._ot_study.trials[30:]]
    assert sum(abs(x - 0.8) < 0.2 for x in later) > 20


def test_encoding_round_trips() -> None:
    parameters = {"alpha": 0.5, "model.hidden": [16, 16], "k": 7}
    assert decoded(encoded(parameters, SPACE), SPACE) == parameters
    assert set(distributions(SPACE)) == set(SPACE)


def test_importances_name_what_mattered() -> None:
    space = parse_space({"x": "uniform(0, 1)", "y": "uniform(0, 1)"})
    trials = [
        trial(f"{i}-{j}", {"x": i / 5, "y": j / 5}, (i / 5) ** 2 + 0.01 * j / 5)
        for i in range(6)
        for j in range(6)
    ]
    found = importances(trials, space, "validation_loss", -1)
    assert list(found) == ["x", "y"] and found["x"] > 0.9 and sum(found.values()) == pytest.approx(1)
    assert importances(trials[:3], space, "validation_loss", -1) == {}
    alike = [trial(str(i), {"x": i / 9, "y": 0.5}, 0.3) for i in range(10)]
    assert importances(alike, space, "validation_loss", -1) == {}
