"""`student.temperature` as a schedule: by epochs, on both sides, in the bits of a number; what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent / "train"))
from test_fused import student
from toy import data

from ensemble_kd.config import TrainingConfig, load_config
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import OBJECTIVES, Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, at_temperature, build_terms
from ensemble_kd.objectives.schedules import parse_weight
from ensemble_kd.pipeline import check_objective
from ensemble_kd.train.batches import Targets
from ensemble_kd.train.initial import WEIGHTS
from ensemble_kd.train.loop import Interrupted
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.task import MemberTask

COOLING = {"start": 8.0, "end": 2.0}


def test_the_first_epoch_has_the_start_and_the_last_the_end() -> None:
    targets = Targets(schedule=parse_weight(COOLING, ""), epochs=5)
    assert [targets.temperature_in(epoch) for epoch in range(5)] == [8.0, 6.5, 5.0, 3.5, 2.0]
    assert Targets(schedule=parse_weight(COOLING, "")).temperature_in(0) == 8.0, "one epoch alone"
    assert Targets(3.0).temperature_in(4) == 3.0


def test_teacher_and_loss_are_at_the_temperature_of_the_epoch() -> None:
    """Against the distributions and the divergence by hand, in float64."""
    generator = torch.Generator().manual_seed(0)
    members, z = (torch.randn(shape, generator=generator) for shape in ((6, 3, 4), (6, 4)))
    targets = Targets(soft=True, schedule=parse_weight(COOLING, ""), epochs=4)
    loss = DistillationLoss(build_objective({"name": "kl"}, 8.0), 1.0)
    for epoch, t in enumerate((8.0, 6.0, 4.0, 2.0)):
        teacher = Outputs(targets.average(members, epoch))
        batch = Batch(torch.zeros(6, 1), torch.full((6,), -1), temperature=t)
        q = (members.double() / t).softmax(2).mean(1)
        p = (z.double() / t).softmax(1)
        wanted = t**2 * (q * (q / p).log()).sum(1).mean()
        found = loss(Outputs(z), teacher, batch)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(loss(Outputs(z), teacher, batch[0:6]), found)


def test_terms_follow_too() -> None:
    """A term beside the soft loss, at the batch's temperature: as one that was made with it."""
    generator = torch.Generator().manual_seed(0)
    z, v = (Outputs(torch.randn(6, 4, generator=generator)) for _ in range(2))
    term = {"name": "kl", "weight": 0.5}
    cooled, plain = (DistillationLoss(alpha=1.0, terms=build_terms([term], t, "terms")) for t in (8.0, 3.0))
    for loss in (cooled, plain):
        loss.prepare(z, [v])
    labels = torch.full((6,), -1)
    found = cooled(z, None, Batch(torch.zeros(6, 1), labels, temperature=3.0), [v])
    assert torch.equal(found, plain(z, None, Batch(torch.zeros(6, 1), labels), [v]))
    assert not torch.equal(found, cooled(z, None, Batch(torch.zeros(6, 1), labels), [v]))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_loss_that_has_a_temperature_follows(name: str) -> None:
    try:
        at_two, at_five = (build_objective({"name": name}, t) for t in (2.0, 5.0))
    except ConfigError:
        pytest.skip(f"{name} has fields without a default")
    assert at_temperature(at_two, None) is at_two
    assert at_temperature(at_two, 5.0) == at_five


def scheduled(**changes: Any) -> MemberTask:
    return student(temperature=8.0, temperature_schedule=COOLING, **changes)


def test_batches_tell_their_temperature_and_are_never_stacked() -> None:
    task = scheduled()
    training = TrainingConfig.model_validate(task.training | {"epochs": 3})
    batches = make_batches(task, data(), training, torch.device("cpu"))
    found = [{batch.temperature for batch in batches.epoch(epoch)} for epoch in range(3)]
    assert found == [{8.0}, {5.0}, {2.0}]
    assert fuse_key(task) is None and fuse_key(student()) is not None
    assert "temperature_schedule" not in student().settings, "a plain student keeps its fingerprint"


def weights(task: MemberTask, folder: Path) -> dict[str, torch.Tensor]:
    assert train_member(task, data(), folder)
    return load_file(task.folder(folder) / WEIGHTS)


def test_a_constant_has_the_bits_of_a_number(tmp_path: Path) -> None:
    constant = {"start": 3.0, "end": 3.0, "shape": "constant"}
    plain = weights(student(temperature=3.0), tmp_path / "a")
    same = weights(student(temperature=3.0, temperature_schedule=constant), tmp_path / "b")
    other = weights(scheduled(), tmp_path / "c")
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_in_the_middle_it_goes_on_in_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    whole = weights(scheduled(), tmp_path / "whole")
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen > stop_after

    with pytest.raises(Interrupted):
        train_member(scheduled(), data(), tmp_path / "cut", stop=stop)
    assert all(torch.equal(one, whole[name]) for name, one in weights(scheduled(), tmp_path / "cut").items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.temperature={start: 8}"], r"student\.temperature\.end: missing"),
        (["student.temperature={start: 0, end: 2}"], r"student\.temperature\.start: .*above 0.*got 0"),
        (
            ["student.temperature={start: 4, end: 2000}"],
            r"student\.temperature\.end: .*at most 1000, got 2000",
        ),
        (["student.temperature={start: 4, end: 2, from: 1}"], r"student\.temperature\.from: unknown setting"),
        (
            ["student.temperature={start: 4, end: 2}", "student.alpha=auto"],
            r"alpha: 'auto' is chosen",
        ),
        (
            ["student.temperature={start: 4, end: 2}", "sweep={space: {temperature: [1, 2]}}"],
            r"sweep\.space\.temperature: .*is a schedule",
        ),
        (
            ["student.temperature={start: 4, end: 2}", "student.peers={count: 2}"],
            r"does not go together with student\.peers",
        ),
        (
            ["student.temperature={start: 4, end: 2}", "student.online.logits=true"],
            r"does not go together with student\.online\.logits",
        ),
        (
            ["student.temperature={start: 4, end: 2}", "student.generations=2"],
            r"does not go together with student\.generations",
        ),
    ],
)
def test_what_is_refused(settings: list[str], message: str) -> None:
    usual = ["sweep=null", "specialists=null"] if not any("sweep" in s for s in settings) else []
    with pytest.raises(ConfigError, match=message):
        check_objective(load_config("digits", [*usual, *settings]))


def test_a_schedule_is_accepted() -> None:
    config = load_config("digits", ["sweep=null", f"student.temperature={json.dumps(COOLING)}"])
    check_objective(config)
    assert config.student.numbers.temperature == 8.0
