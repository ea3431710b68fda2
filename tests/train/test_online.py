"""Teachers that run beside a student, and what the loss trains along with it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import CLASSES, INFO, MODEL, arrays, batches, data, network, settings, task

from ensemble_kd.config import TrainingConfig
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.models.build import Network
from ensemble_kd.objectives.base import Batch, build_objective
from ensemble_kd.objectives.mixture import DistillationLoss, build_terms
from ensemble_kd.train.batches import Targets
from ensemble_kd.train.finishing import CHECKPOINT, PREDICTIONS
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED, WEIGHTS, load_network
from ensemble_kd.train.learner import Learner
from ensemble_kd.train.loop import train, train_epochs
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import beside, loss_of, prepare_loss
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.online import Online
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
WIDE = {"hidden": [24]}
"""A teacher of another width than the student's 16, so that a projection is needed."""


def batch(rows: int = 12, progress: float = 0.0) -> Batch:
    held = arrays(rows, 4)
    return Batch(torch.from_numpy(held.inputs), torch.from_numpy(held.labels), progress=progress)


def online(networks: list[Network], hidden: bool = True, targets: Targets | None = None) -> Online:
    return Online(networks, {"hidden": True} if hidden else {}, "float32", CPU, targets)


def loss_on(terms: list[dict[str, Any]], shares: tuple[float, ...] = (1.0,)) -> DistillationLoss:
    return DistillationLoss(alpha=1.0, terms=build_terms(terms, 1.0, "student.terms"), shares=shares)


# ----------------------------------------------------------------------------------------------- teachers


def test_teachers_are_frozen_and_evaluate() -> None:
    teacher, student = network(1, **WIDE).train(), network(2).train()
    one = online([teacher])
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    before = copy.deepcopy(teacher.state_dict())
    loss = loss_on([{"name": "hidden_mse"}])
    learned = prepare_loss(loss, student, [teacher], INFO, CPU)
    assert student.training and len(list(learned.parameters())) == 2
    training = settings(epochs=2)
    for _ in train_epochs(Learner(student, loss, online=one, learned=learned), batches(), training, seed=1):
        assert not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    (found,) = one(batch())
    assert not found.logits.requires_grad and found.hidden is not None
    assert not any(state.requires_grad for state in found.hidden.values())


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_their_logits_are_averaged_as_stored_ones_are(mean: str) -> None:
    teachers = [network(seed, **WIDE) for seed in range(3)]
    weights = [0.5, 2.0, 1.0]
    one = online(teachers, hidden=False, targets=Targets(3.0, mean, weights))
    seen = batch()
    found = one(seen)
    logits = torch.stack([net(seen.inputs).logits for net in teachers], 1)
    assert [tuple(outputs.logits.shape) for outputs in found] == [(12, CLASSES)] * 3
    assert seen.teacher is not None
    torch.testing.assert_close(seen.teacher.logits, mean_logits(logits, 3.0, mean, weights))
    # A closed form: the distribution at T, of the members' distributions at T.
    shares = torch.tensor(weights) / 3.5
    logs = (logits / 3).log_softmax(-1)
    if mean == "arithmetic":
        expected = (logs.exp() * shares[None, :, None]).sum(1)
    else:
        expected = (logs * shares[None, :, None]).sum(1).softmax(-1)
    torch.testing.assert_close((seen.teacher.logits / 3).softmax(-1), expected)


def test_without_targets_the_stored_logits_stay() -> None:
    seen = batch()
    online([network(1)], hidden=False)(seen)
    assert seen.teacher is None


def test_the_soft_loss_reads_the_logits_of_the_teacher_beside() -> None:
    """In every accumulated part, and with the same steps as if they had been stored."""
    teacher = network(1, **WIDE).eval()
    soft = build_objective({"name": "kl"}, 2.0)

    class Stored:
        num_views = 1

        def pick(self, rows: Tensor, views: Tensor) -> Tensor:
            with torch.no_grad():
                return teacher(torch.from_numpy(arrays(96, 0).inputs)[rows]).logits[:, None]

    found = []
    for beside_it in (True, False):
        student, fed = network(2, dropout=0.0), batches()
        fed.targets = Targets(2.0, soft=True)
        if not beside_it:
            fed.source.teacher = Stored()  # type: ignore[attr-defined]
        train(
            student,
            fed,
            DistillationLoss(soft, 0.7),
            settings(epochs=2, gradient_accumulation=4),
            seed=1,
            online=online([teacher], hidden=False, targets=fed.targets) if beside_it else None,
        )
        found.append(student.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------- terms


@torch.no_grad()
def test_terms_are_averaged_over_the_teachers() -> None:
    """By their shares; each teacher with a projection of its own."""
    student, teachers = network(2), [network(seed, **WIDE) for seed in (0, 1)]
    shares = (0.3, 0.7)
    terms: list[dict[str, Any]] = [{"name": "hidden_mse", "weight": 2.0}, {"name": "hidden_cosine"}]
    loss = loss_on(terms, shares)
    torch.manual_seed(0)
    learned = prepare_loss(loss, student, teachers, INFO, CPU)
    assert len(list(learned.parameters())) == 8  # two teachers, two terms: weight and bias
    seen = batch()
    ours = student(seen.inputs, hidden=True)
    outputs = online(teachers)(seen)
    values = []
    for k, theirs in enumerate(outputs):
        one = replace(loss_on(terms), learned=[loss.learned[k]])
        values.append(float(one(ours, None, seen, [theirs])))
    assert abs(values[0] - values[1]) > 1e-3
    both = float(loss(ours, None, seen, outputs))
    assert both == pytest.approx(0.3 * values[0] + 0.7 * values[1], rel=1e-5)
    # Of one teacher: the projected state's distance from its own, by hand.
    linear = [m for m in learned.modules() if isinstance(m, nn.Linear)]
    assert ours.hidden is not None and outputs[0].hidden is not None
    mse = (linear[0](ours.hidden["layer_1"]) - outputs[0].hidden["layer_1"]).square().mean()
    cosine = 1 - nn.functional.cosine_similarity(
        linear[1](ours.hidden["layer_1"]), outputs[0].hidden["layer_1"]
    )
    assert values[0] == pytest.approx(float(2 * mse + cosine.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["hidden_mse", "hidden_cosine"])
@torch.no_grad()
def test_identical_networks_have_no_loss(name: str) -> None:
    student = network(3).eval()
    teacher = copy.deepcopy(student)
    loss = loss_on([{"name": name}])
    learned = prepare_loss(loss, student, [teacher], INFO, CPU)
    assert not list(learned.parameters())
    seen = batch()
    value = loss(student(seen.inputs, hidden=True), None, seen, online([teacher])(seen))
    assert float(value) == 0.0


@torch.no_grad()
def test_weights_follow_the_progress_of_the_training() -> None:
    student, teacher = network(2).eval(), network(1)
    schedule = {"start": 4.0, "end": 0.0, "shape": "linear"}
    loss, constant = loss_on([{"name": "hidden_mse", "weight": schedule}]), loss_on([{"name": "hidden_mse"}])
    for each in (loss, constant):
        prepare_loss(each, student, [teacher], INFO, CPU)
    values, one = [], online([teacher])
    for progress in (0.0, 0.25, 0.5, 1.0):
        seen = batch(progress=progress)
        values.append(float(loss(student(seen.inputs, hidden=True), None, seen, one(seen))))
    plain = float(constant(student(seen.inputs, hidden=True), None, seen, one(seen)))
    assert plain > 0 and values == pytest.approx([4 * plain, 3 * plain, 2 * plain, 0.0])


def test_the_loop_says_how_far_it_is() -> None:
    found: list[float] = []

    class Spy(DistillationLoss):
        def __call__(self, student: Any, teacher: Any, batch: Batch, beside: Any = ()) -> Tensor:
            found.append(batch.progress)
            return super().__call__(student, teacher, batch, beside)

    train(network(), batches(48), Spy(), settings(epochs=3, batch_size=48, gradient_accumulation=2), seed=0)
    assert found == pytest.approx([k / 6 for k in range(6) for _ in range(2)])


def test_networks_that_do_not_fit() -> None:
    loss = loss_on([{"name": "hidden_mse", "projection": "none"}])
    with pytest.raises(ConfigError, match=r"student\.terms\.0\.projection: .*width 16.*width 24"):
        prepare_loss(loss, network(0), [network(1, **WIDE)], INFO, CPU)


# ---------------------------------------------------------------------------------------------- members


def with_teachers(run: Path, seeds: tuple[int, ...] = (1, 2)) -> tuple[TrainingData, dict[str, Any]]:
    """A run's folder with trained teachers, and how a task names them."""
    places = []
    model = {**MODEL, **WIDE}
    for seed in seeds:
        one = task("teacher", seed=seed, model=model, training=short(1))
        assert train_member(one, data(), run / "teachers" / "members")
        places.append({"stage": "teachers", "member": one.fingerprint})
    shares = [0.25, 0.75][: len(seeds)] if len(seeds) > 1 else [1.0]
    return replace(data(), run=run), {"teachers": places, "shares": shares, "logits": False}


def short(epochs: int = 3, **changes: Any) -> dict[str, Any]:
    return settings(epochs=epochs, **changes).model_dump(mode="json")


def student(beside_it: dict[str, Any], **changes: Any) -> MemberTask:
    fields: dict[str, Any] = {
        "online": beside_it,
        "terms": [{"name": "hidden_mse", "weight": 0.5}],
        "training": short(),
    }
    return task("distilled", **{**fields, **changes})


def test_projections_are_trained_saved_and_not_shipped(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path)
    one = student(places)
    members = tmp_path / "student" / "members"
    assert train_member(one, held, members)
    folder = one.folder(members)
    assert {p.name for p in folder.iterdir()} == {WEIGHTS, LEARNED, PREDICTIONS, "manifest.json"}
    shipped, learned = load_file(folder / WEIGHTS), load_file(folder / LEARNED)
    plain = network().state_dict()
    assert {name: t.shape for name, t in shipped.items()} == {name: t.shape for name, t in plain.items()}
    assert sorted(tuple(t.shape) for t in learned.values()) == [(24,), (24,), (24, 16), (24, 16)]
    # They have moved from what they started with, a small normal and zeros, and further than by its spread.
    training = TrainingConfig.model_validate(one.training)
    loss = loss_of(one, training)
    fed = make_batches(one, held, training, CPU)
    _, begun = beside(one, held, initial_network(one, held), loss, fed, "float32")
    assert begun is not None
    for name, tensor in begun.state_dict().items():
        assert (learned[name] - tensor).abs().max() > 0.01
    assert load_network({"model": one.model}, INFO, folder).num_parameters == network().num_parameters


def test_terms_matter_to_the_weights(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path, (1,))
    tasks = [
        student(places, terms=[{"name": "hidden_mse", "weight": weight}])
        for weight in (0.0, 0.5, {"start": 0.0, "end": 0.5}, {"start": 0.5, "end": 0.0})
    ]
    assert len({one.fingerprint for one in tasks}) == 4
    found = []
    for one in tasks:
        train_member(one, held, tmp_path / "members")
        found.append(load_file(one.folder(tmp_path / "members") / WEIGHTS)["body.layers.0.weight"])
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(found) for b in found[:i])


def test_an_interrupted_member_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Projections and what the optimiser knows of them are a part of the checkpoint."""
    held, places = with_teachers(tmp_path)
    one = student(places)
    train_member(one, held, tmp_path / "whole")

    def interrupt(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_member(one, held, tmp_path / "broken", on_epoch=interrupt)
    saved = load_file(one.folder(tmp_path / "broken") / CHECKPOINT)
    assert any(name.startswith("model/learned.") for name in saved)
    epochs: list[dict[str, float]] = []
    train_member(one, held, tmp_path / "broken", on_epoch=epochs.append)
    assert [entry["epoch"] for entry in epochs] == [3]
    for name in (WEIGHTS, LEARNED, PREDICTIONS):
        whole, broken = (one.folder(tmp_path / part) / name for part in ("whole", "broken"))
        assert whole.read_bytes() == broken.read_bytes(), name


def test_early_stopping_keeps_the_best_weights_with_projections(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path, (1,))
    # Steps so large that later epochs ruin what the first one found.
    one = student(places, training=short(8, early_stopping=2, learning_rate=0.3))
    assert train_member(one, held, tmp_path / "members")
    receipt = finished(one, tmp_path / "members")
    assert receipt is not None
    history = receipt.summary["history"]
    best = min(entry["validation_loss"] for entry in history)
    assert receipt.summary["validation_loss"] == pytest.approx(best, rel=1e-4)
    assert receipt.summary["best_epoch"] < len(history) < 8


def test_a_later_phase_goes_on_with_the_projections(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path, (1,))
    members = tmp_path / "student" / "members"
    first = student(places, phase="first", alpha=1.0, objective=None)
    assert train_member(first, held, members)
    after = {"stage": "student", "member": first.fingerprint}
    second = student(places, initial=after, training=short(0))
    assert train_member(second, held, members)
    given = load_file(first.folder(members) / LEARNED)
    found = load_file(second.folder(members) / LEARNED)
    assert given.keys() == found.keys() and all(torch.equal(t, found[name]) for name, t in given.items())
    # Where shapes differ they start anew.
    other = student(
        places, initial=after, training=short(0), terms=[{"name": "hidden_mse", "projection": "linear"}] * 2
    )
    assert train_member(other, held, members)
    fresh = load_file(other.folder(members) / LEARNED)
    assert len(fresh) == 4 and not any(torch.equal(fresh[name], t) for name, t in given.items())


def test_a_teacher_that_is_not_finished(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path, (1,))
    missing = {**places, "teachers": [{"stage": "teachers", "member": "0000"}]}
    with pytest.raises(ArtifactError, match="not finished; run the teachers stage again"):
        train_member(student(missing), held, tmp_path / "members")


def test_online_logits_need_no_stored_ones(tmp_path: Path) -> None:
    held, places = with_teachers(tmp_path)
    one = student({**places, "logits": True}, terms=[], weights=[0.25, 0.75])
    assert not one.reads_teacher and one.settings["temperature"] == 2.0
    assert train_member(one, replace(held, teacher=None), tmp_path / "members")
    assert replace(one, temperature=3.0).fingerprint != one.fingerprint
    assert replace(one, weights=[0.5, 0.5]).fingerprint != one.fingerprint


def test_logits_beside_are_averaged_by_the_chosen_teachers_shares() -> None:
    """Not by the weights of all teachers of the store, which may be others and in another order."""
    teachers = [network(1), network(2)]
    shared = {"teachers": [{}, {}], "shares": [0.25, 0.75], "logits": True}
    one = task("distilled", online=shared, temperature=2.0)
    own, loss, made = network(3), DistillationLoss(build_objective({"name": "kl"}, 2.0), 1.0), batches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensemble_kd.train.member_loss.online_networks", lambda *arguments: teachers)
        found, _ = beside(one, data(), own, loss, made, "float32")
    assert found is not None
    seen = batch()
    found(seen)
    with torch.no_grad():
        logits = torch.stack([teacher(seen.inputs).logits for teacher in teachers], 1)
    assert seen.teacher is not None
    torch.testing.assert_close(seen.teacher.logits, mean_logits(logits, 2.0, "arithmetic", [0.25, 0.75]))


def test_words_that_the_student_does_not_know_are_left_out_of_the_teachers_logits() -> None:
    one = online([network(1)], hidden=False, targets=Targets(1.0))
    one.pieces = [2, 0]
    seen = batch()
    (outputs,) = one(seen)
    assert seen.teacher is not None
    wanted = torch.log_softmax(outputs.logits[:, [2, 0]], 1)
    torch.testing.assert_close(torch.log_softmax(seen.teacher.logits, 1), wanted)
