"""Several configurations in one process: what each does, and that none disturbs the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy

from ensemble_kd.train import trials
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.member import train_member
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.trials import Packet, mean_entry, mean_history, values_of

MODEL = {"name": "mlp", "hidden": [8]}


def student(seed: int = 7, epochs: int = 3, **changes: Any) -> MemberTask:
    training = toy.settings(epochs=epochs, **changes.pop("training", {})).model_dump(mode="json")
    return toy.task("distilled", name=f"seed-{seed}", seed=seed, model=MODEL, training=training, **changes)


def drained(packet: Packet) -> list[list[dict[str, Any]]]:
    """The standings of every step."""
    steps = []
    while not packet.done:
        steps.append(packet.step())
    return steps


def weights(folder: Path, task: MemberTask) -> bytes:
    return (task.folder(folder) / WEIGHTS).read_bytes()


def test_trials_side_by_side_end_as_each_alone(tmp_path: Path) -> None:
    tasks = [student(temperature=2.0), student(temperature=5.0), student(seed=8, temperature=5.0)]
    steps = drained(Packet([[tasks[0]], tasks[1:]], toy.data(), tmp_path / "together"))
    assert [[s["epoch"] for s in step] for step in steps] == [[1, 1], [2, 2], [3, 3]]
    assert [s["state"] for s in steps[-1]] == ["finished", "finished"]
    for task in tasks:
        train_member(task, toy.data(), tmp_path / "alone")
        assert weights(tmp_path / "together", task) == weights(tmp_path / "alone", task)


def test_a_trial_s_numbers_are_means_over_its_seeds(tmp_path: Path) -> None:
    tasks = [student(seed=1), student(seed=2)]
    steps = drained(Packet([tasks], toy.data(), tmp_path))
    histories = []
    for task in tasks:
        manifest = finished(task, tmp_path)
        assert manifest is not None
        histories.append(manifest.summary["history"])
    for epoch, step in enumerate(steps):
        mean = sum(history[epoch]["validation_loss"] for history in histories) / 2
        assert step[0]["entry"]["validation_loss"] == pytest.approx(mean)
    told = [step[0]["entry"]["train_loss"] for step in steps]
    assert [entry["train_loss"] for entry in mean_history(tasks, tmp_path)] == pytest.approx(told)
    assert steps[-1][0]["values"] == values_of(tasks, tmp_path)


def test_a_loss_that_is_not_finite_is_that_trial_s_alone(tmp_path: Path) -> None:
    bad = student(training={"learning_rate": 1e30})
    steps = drained(Packet([[bad], [student(), student(seed=8)]], toy.data(), tmp_path))
    assert steps[0][0]["state"] == "failed" and "nan" in steps[0][0]["reason"]
    assert steps[-1][1]["state"] == "finished" and steps[-1][1]["epoch"] == 3


def test_whatever_a_trial_raises_is_its_reason(tmp_path: Path) -> None:
    def start(task: MemberTask) -> Iterator[dict[str, float]]:
        if task.seed == 7:
            raise MemoryError("no room for 1 TB")
        yield {"epoch": 3.0}

    packet = Packet([[student()]], toy.data(), tmp_path, start=start)  # type: ignore[arg-type]
    (standing,) = packet.step()
    assert standing["state"] == "failed" and standing["reason"] == "seed-7: MemoryError: no room for 1 TB"
    assert packet.done


def test_stacked_students_that_cannot_run_together_run_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tasks: list[MemberTask], *args: Any, **options: Any) -> Iterator[list[Any]]:
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(trials, "fused_epochs", broken)
    steps = drained(Packet([[student(temperature=t)] for t in (1.0, 2.0)], toy.data(), tmp_path, fuse=2))
    assert [s["state"] for s in steps[-1]] == ["finished", "finished"]
    assert [s["fused"] for s in steps[-1]] == [1, 1]


def test_students_that_differ_in_numbers_are_stacked_and_others_are_not(tmp_path: Path) -> None:
    wide = student(seed=7)
    wide = MemberTask(**{**wide.__dict__, "model": {"name": "mlp", "hidden": [12]}})
    packet = Packet(
        [[student(temperature=t)] for t in (1.0, 2.0, 3.0)] + [[wide]], toy.data(), tmp_path, fuse=2
    )
    steps = drained(packet)
    assert [s["fused"] for s in steps[-1]] == [2, 2, 1, 1]
    assert all(s["state"] == "finished" for s in steps[-1])


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    train_member(student(), toy.data(), tmp_path)
    manifest = finished(student(), tmp_path)
    packet = Packet([[student()], [student(seed=8)]], toy.data(), tmp_path)
    first = packet.step()
    assert first[0]["state"] == "finished" and first[0]["entry"] is None and first[0]["values"]
    assert first[1]["state"] == "running"
    assert finished(student(), tmp_path) == manifest


def test_a_packet_that_was_closed_goes_on_where_it_stood(tmp_path: Path) -> None:
    packet = Packet([[student()]], toy.data(), tmp_path)
    packet.step()
    packet.close()
    assert packet.done
    again = Packet([[student()]], toy.data(), tmp_path)
    assert again.step()[0]["epoch"] == 2
    drained(again)
    train_member(student(), toy.data(), tmp_path / "undisturbed")
    assert weights(tmp_path, student()) == weights(tmp_path / "undisturbed", student())


def test_means_of_what_all_have() -> None:
    assert mean_entry([]) is None
    assert mean_entry([{"epoch": 1.0, "a": 2.0, "b": 1.0}, {"epoch": 1.0, "a": 4.0}]) == {
        "epoch": 1.0,
        "a": 3.0,
    }


def test_trials_that_ask_for_the_same_student_share_it(tmp_path: Path) -> None:
    begun: list[int] = []

    def start(task: MemberTask) -> Any:
        begun.append(task.seed)
        return trials.member_epochs(task, toy.data(), tmp_path)

    steps = drained(Packet([[student()], [student()]], toy.data(), tmp_path, start=start))
    assert begun == [7]
    assert [s["state"] for s in steps[-1]] == ["finished", "finished"]
    assert steps[0][0]["entry"] == steps[0][1]["entry"]


def test_seeds_that_resume_at_different_epochs_are_brought_level(tmp_path: Path) -> None:
    tasks = [student(seed=1, epochs=4), student(seed=2, epochs=4)]
    ahead = trials.member_epochs(tasks[0], toy.data(), tmp_path)
    for _ in range(2):
        next(ahead)
    behind = trials.member_epochs(tasks[1], toy.data(), tmp_path)
    next(behind)
    steps = drained(Packet([tasks], toy.data(), tmp_path))
    told = [step[0]["entry"] for step in steps if step[0]["entry"]]
    assert [entry["epoch"] for entry in told] == [3.0, 4.0]  # of the second, one seed's is not known here
    undisturbed = drained(Packet([tasks], toy.data(), tmp_path / "undisturbed"))
    last = undisturbed[-1][0]["entry"]
    assert told[-1]["validation_loss"] == last["validation_loss"]
    assert steps[-1][0]["values"] == undisturbed[-1][0]["values"]
