"""What the searcher hands to Tune, and what it makes of the answers. No Ray process is started."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from ensemble_kd import trial_steps
from ensemble_kd.proposals import Proposals
from ensemble_kd.runtime import Runtime
from ensemble_kd.train.task import MemberTask
from ensemble_kd.train.trials import Trial
from ensemble_kd.trial_runs import concurrency

pytest.importorskip("ray.tune")
tuner = pytest.importorskip("ensemble_kd.tuner")


def trial(name: str, seeds: int = 1, kind: str = "searched") -> Trial:
    tasks = [
        MemberTask(f"{name}-seed-{s}", "distilled", s, {"name": name}, {"epochs": 3}, {})
        for s in range(seeds)
    ]
    return Trial(name, kind, {}, tasks)


class Driver:
    """A searcher, what it asked for and what it told."""

    def __init__(self, waiting: list[Trial], total: int = 0, **options: Any) -> None:
        self.told: list[tuple[str, str]] = []
        self.made = 0
        self.total = total
        self.later: list[Trial] = []
        self.over: list[Trial] = []
        self.too_many_failed = False
        settings: dict[str, Any] = {"fuse": 1, "concurrent": 2, "max_failures": 3}
        self.searcher: Any = Proposals(
            waiting,
            self.propose,
            self.follow_up,
            self.on_change,
            lambda t, entry: None,
            left=lambda: self.total - self.made,
            too_many_failed=lambda: self.too_many_failed,
            offset=100.0,
            **{**settings, **options},
        )

    def on_change(self, trial: Trial) -> None:
        self.told.append((trial.name, trial.state))
        if trial.over:
            self.over.append(trial)

    def propose(self) -> Trial | None:
        if self.made == self.total:
            return None
        self.made += 1
        return trial(f"new-{self.made}")

    def follow_up(self) -> list[Trial]:
        later, self.later = self.later, []
        return later

    def names(self, tune_id: str) -> list[str]:
        return [t.name for t in self.searcher.running[tune_id]]


def standing(state: str = "finished", epochs: int = 1, value: float = 0.5, **more: Any) -> dict[str, Any]:
    values = {"validation_accuracy": value, "validation_loss": 1 - value}
    entries = [{"epoch": float(e + 1), **values} for e in range(epochs)]
    return {"state": state, "entries": entries, "values": values, "reason": None, "fused": 1, **more}


def result(*standings: dict[str, Any]) -> dict[str, Any]:
    return {"standings": json.dumps(standings), "objective": 0.5}


def test_as_many_at_a_time_as_asked_then_finished() -> None:
    driver = Driver([trial("hard", kind="hard")], total=2)
    suggest = driver.searcher.suggest
    first = json.loads(suggest("a")["work"])
    assert first["kept"] and first["trials"][0][0]["name"] == "hard-seed-0"
    assert not json.loads(suggest("b")["work"])["kept"]
    assert suggest("c") is None  # two are running
    driver.searcher.on_trial_complete("a", result(standing()))
    assert driver.names("b") == ["new-1"] and suggest("c") is not None and driver.names("c") == ["new-2"]
    driver.searcher.on_trial_complete("b", result(standing()))
    assert suggest("d") is None  # nothing more to propose, one is running
    driver.searcher.on_trial_complete("c", result(standing()))
    driver.later = [trial("hard-1", kind="hard")]  # the winner's own baseline, asked for at the end
    assert suggest("d") is not None and driver.names("d") == ["hard-1"]
    driver.searcher.on_trial_complete("d", result(standing()))
    assert suggest("e") == "FINISHED"
    assert [state for _, state in driver.told] == ["running", "running", "finished", "running"] + [
        "finished", "finished", "running", "finished"
    ]  # fmt: skip


def test_stacks_are_filled_with_a_fair_share() -> None:
    driver = Driver([trial("hard", kind="hard")], total=9, fuse=16)
    driver.searcher.suggest("a")
    assert driver.names("a") == ["hard", "new-1", "new-2", "new-3", "new-4"]  # half of ten
    driver.searcher.suggest("b")
    assert len(driver.names("b")) == 3  # half of the five that are left
    seeds = Driver([trial(f"t{i}", seeds=3) for i in range(8)], fuse=7, concurrent=1)
    seeds.searcher.suggest("a")
    assert seeds.names("a") == ["t0", "t1"]  # six students; a third trial would make nine


def test_a_stopped_trial_keeps_its_last_numbers() -> None:
    driver = Driver([trial("t")])
    driver.searcher.suggest("a")
    driver.searcher.on_trial_result("a", result(standing("running", epochs=2, value=0.3)))
    driver.searcher.on_trial_complete("a", result(standing("running", epochs=2, value=0.3)))
    (found,) = driver.over
    assert found.state == "stopped" and found.epochs == 2 and found.values["validation_accuracy"] == 0.3
    assert found.reason == "behind the others after 2 epochs" and (found.ended or 0) >= 100


def test_epochs_that_are_told_twice_count_once() -> None:
    driver = Driver([trial("t")])
    driver.searcher.suggest("a")
    driver.searcher.on_trial_result("a", result(standing("running", epochs=2)))
    again = standing("running", epochs=3)  # its process died, and the last epoch was trained again
    driver.searcher.on_trial_result("a", result({**again, "entries": again["entries"][1:]}))
    assert [e["epoch"] for e in driver.searcher.running["a"][0].history] == [1, 2, 3]


def test_trials_whose_common_process_dies_are_tried_one_by_one() -> None:
    driver = Driver([trial("t0"), trial("t1")], fuse=2, concurrent=1)
    driver.searcher.suggest("a")
    assert driver.names("a") == ["t0", "t1"]
    driver.searcher.on_trial_complete("a", error=True)
    assert not driver.over
    assert json.loads(driver.searcher.suggest("b")["work"])["fuse"] == 1
    assert driver.names("b") == ["t0"]
    driver.searcher.reasons["b"] = "killed"
    driver.searcher.on_trial_complete("b", error=True)
    (failed,) = driver.over
    assert failed.state == "failed" and failed.reason == "its process failed 4 times: killed"
    driver.searcher.suggest("c")
    assert driver.names("c") == ["t1"]


def test_what_was_over_when_its_process_died_stays_so() -> None:
    driver = Driver([trial("t0"), trial("t1")], fuse=2, concurrent=1)
    driver.searcher.suggest("a")
    driver.searcher.on_trial_result("a", result(standing("failed", reason="nan"), standing("running")))
    driver.searcher.on_trial_complete("a", error=True)
    assert [t.name for t in driver.over] == ["t0"]
    driver.searcher.suggest("b")
    assert driver.names("b") == ["t1"]


def test_too_many_failures_end_the_search() -> None:
    driver = Driver([], total=100, concurrent=1)
    assert driver.searcher.suggest("a") is not None
    driver.too_many_failed = True
    driver.searcher.on_trial_complete("a", result(standing("failed")))
    assert driver.searcher.suggest("b") == "FINISHED"


def test_packets_of_a_killed_run_come_together_again() -> None:
    waiting = [trial(f"t{i}") for i in range(4)]
    for number, packet in zip(range(4), (2, 1, 2, None), strict=True):
        waiting[number].packet = packet
    driver = Driver(waiting, total=2, fuse=8, concurrent=1, packets=2)
    driver.searcher.suggest("a")
    assert driver.names("a") == ["t0", "t2"]
    driver.searcher.on_trial_complete("a", result(standing(), standing()))
    driver.searcher.suggest("b")
    assert driver.names("b") == ["t1"]
    driver.searcher.on_trial_complete("b", result(standing()))
    driver.searcher.suggest("c")
    assert driver.names("c") == ["t3", "new-1", "new-2"]
    assert {t.packet for t in driver.searcher.running["c"]} == {3}


def test_a_search_that_learns_gets_its_trials_in_rounds() -> None:
    driver = Driver([], total=12, fuse=16, rounds=2)
    driver.searcher.suggest("a")
    driver.searcher.suggest("b")
    assert len(driver.names("a")) == 3 and len(driver.names("b")) == 3  # of 12, and of 9


def test_baselines_stay_apart_where_others_may_be_stopped() -> None:
    driver = Driver([trial("hard", kind="hard")], total=3, fuse=16, apart=True, concurrent=1)
    driver.searcher.suggest("a")
    assert driver.names("a") == ["hard"]


def test_no_student_is_trained_by_two_processes() -> None:
    one, same, other = trial("t"), trial("t"), trial("other")
    driver = Driver([one, same, other], concurrent=3)
    assert driver.searcher.suggest("a") is not None
    assert driver.searcher.suggest("b") is not None and driver.names("b") == ["other"]
    assert driver.searcher.suggest("c") is None
    driver.searcher.on_trial_complete("a", result(standing()))
    assert driver.searcher.suggest("c") is not None and driver.names("c") == ["t"]


@pytest.mark.parametrize(
    ("asha", "epochs", "rungs"),
    [(None, 9, []), ((1, 3.0), 9, [1, 3, 9]), ((5, 3.0), 20, [5, 15]), ((2, 1.5), 5, [2, 3, 5])],
)
def test_reports_stop_at_every_rung(asha: Any, epochs: int, rungs: list[int]) -> None:
    assert trial_steps.rungs(asha, epochs) == rungs


def test_asha_takes_no_notice_of_what_has_no_number() -> None:
    scheduler = tuner._Asha("epoch", metric="objective", mode="max", max_t=10, grace_period=1)

    class Named:
        def __init__(self, name: str) -> None:
            self.trial_id = name

    act: Callable[[str, float], str] = lambda name, value: scheduler.on_trial_result(  # noqa: E731
        None, Named(name), {"epoch": 1, "objective": value}
    )
    for name in "abc":
        scheduler.on_trial_add(None, Named(name))
    assert act("a", 0.9) == "CONTINUE"
    assert act("b", math.nan) == "CONTINUE"
    assert act("c", 0.1) == "STOP"


@pytest.mark.parametrize(
    ("wanted", "replicas", "fits", "says"),
    [
        ("auto", 1, 4, None),
        (3, 1, 4, None),
        (5, 1, 4, "sweep.concurrent_trials: 5, but the cluster has 4 CPUs and 0 GPUs, room for 4 trials"),
        (3, 2, 4, "room for 2 trials, each of 2 workers with compute.cpus_per_worker = 1"),
        ("auto", 5, 4, "student.replicas_per_member: 5 workers per student, but the cluster has 4 CPUs"),
    ],
)
def test_concurrency_is_held_against_the_cluster(
    wanted: Any, replicas: int, fits: int, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble_kd.config import ComputeConfig
    from ensemble_kd.errors import ConfigError

    runtime = Runtime(ComputeConfig())
    monkeypatch.setattr(Runtime, "nodes", lambda self: [{"CPU": 4.0}])
    if says is None:
        assert concurrency(runtime, wanted, replicas) == (fits if wanted == "auto" else wanted)
    else:
        with pytest.raises(ConfigError) as error:
            concurrency(runtime, wanted, replicas)
        assert says in str(error.value)
