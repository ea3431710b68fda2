"""What a stage makes of members whose workers are done."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_kd.artifacts import write_json
from ensemble_kd.attached import attach
from ensemble_kd.config import Config
from ensemble_kd.errors import TrainingError
from ensemble_kd.mirror import Mirror
from ensemble_kd.runtime import Runtime
from ensemble_kd.stages import members as stage
from ensemble_kd.stages.context import Context
from ensemble_kd.tracking import Tracker
from ensemble_kd.train.finishing import FAILED
from ensemble_kd.train.task import MemberTask


def followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[MemberTask], failed: list[MemberTask]
) -> list[MemberTask]:
    """As after workers of which only failures came back."""

    def train_members(*_: object, **__: object) -> None:
        for task in failed:
            place = task.folder(folder / "teachers/members")
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / FAILED, {"name": task.name, "reason": "the loss was nan"})

    monkeypatch.setattr(stage, "train_members", train_members)
    config = Config.model_validate(
        {"name": "x", "data": {"source": "digits"}, "tracking": {"enabled": False}}
    )
    context = Context(config, folder, Runtime(config.compute), Tracker(config.tracking, folder, "x", print))
    return stage.train_and_follow(context, "teachers", tasks, lambda arrays: None, dict, 1)  # type: ignore[arg-type, return-value]


def member(name: str, initial: MemberTask | None = None) -> MemberTask:
    start = {"stage": "teachers", "member": initial.fingerprint} if initial else None
    return MemberTask(name, "teacher", 7, {"name": name}, {"epochs": 4}, {"data": "0123"}, initial=start)


def test_one_of_which_nothing_came_back_is_not_said_to_have_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = member("first"), member("second")
    with pytest.raises(TrainingError, match="teachers: second: neither weights nor a failure came back"):
        followed(tmp_path, monkeypatch, [first, second], failed=[first])


def test_those_that_start_from_one_that_diverged_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = member("first")
    second = member("second", first)
    third = member("third", second)
    assert followed(tmp_path, monkeypatch, [first, second, third], failed=[first]) == []


def test_a_failure_of_an_earlier_run_says_nothing_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = member("one")
    assert followed(tmp_path / "run", monkeypatch, [one], failed=[one]) == []
    one.folder(tmp_path / "store/teachers/members").mkdir(parents=True)
    other = Mirror((tmp_path / "store").as_uri(), tmp_path / "run")
    other.push(other.root)
    attach(other)
    try:
        with pytest.raises(TrainingError, match="neither weights nor a failure"):
            followed(tmp_path / "run", monkeypatch, [one], failed=[])
    finally:
        attach(None)
    assert not other.listed(one.folder(tmp_path / "run/teachers/members"))
