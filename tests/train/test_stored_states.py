"""Hidden states and attention read from the store, in the place of teachers that run beside the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_phases import BERT, INFO, LENGTH, arrays, data, place, task, texts, training

from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.store import Kept, StoreLayout
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.stages.shards import encode
from ensemble_kd.stages.soft_targets import Labeller
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import LEARNED, online_networks
from ensemble_kd.train.loop import Replicas
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_batches import make_batches
from ensemble_kd.train.member_loss import beside, loss_of, prepare_loss
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.online import Online
from ensemble_kd.train.stored import StoredLogits
from ensemble_kd.train.stored_states import KeptStates, StoredStates
from ensemble_kd.train.task import MemberTask, finished

CPU = torch.device("cpu")
WIDTH, DEPTH, HEADS = 24, 4, 2
TEACHER = {**BERT, "hidden_size": WIDTH, "num_hidden_layers": DEPTH}
ALL = Kept((0, 1, 2, 3, 4), (1, 2, 3, 4), DEPTH, WIDTH, HEADS, LENGTH)
BOTH = {"hidden": True, "attention": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two trained teachers."""
    folder = tmp_path_factory.mktemp("run")
    for seed in (7, 8):
        assert train_member(teacher(seed), data(folder), folder / "teachers" / "members")
    return folder


def teacher(seed: int) -> MemberTask:
    model = {"name": "transformer", "architecture": TEACHER}
    return task("teacher", model=model, training=training(1), seed=seed)


TEACHERS = [teacher(seed) for seed in (7, 8)]


def labeller(run: Path, layout: StoreLayout) -> Labeller:
    folders = [str(one.folder(run / "teachers" / "members")) for one in TEACHERS[: layout.members]]
    settings = [(one.settings, folder) for one, folder in zip(TEACHERS, folders, strict=False)]
    return Labeller(INFO, layout, settings, {}, batch_size=16)


def filled(run: Path, kept: Kept = ALL, members: int = 2) -> tuple[StoreLayout, dict[str, np.ndarray]]:
    """The store's columns for the transfer set of `data`."""
    layout = StoreLayout(1, members, 3, None, kept)
    logits, columns = labeller(run, layout).states(torch.from_numpy(arrays(48, 0).inputs), kept)
    return layout, encode(logits, layout)[0] | {name: column.numpy() for name, column in columns.items()}


def store(run: Path, kept: Kept = ALL, members: int = 2) -> KeptStates:
    layout, columns = filled(run, kept, members)
    names = [one.fingerprint for one in TEACHERS[:members]]
    return KeptStates(columns, layout, names, StoredLogits(columns, layout))


def stored(run: Path, members: list[int], kept: Kept = ALL, **wants: bool) -> StoredStates:
    return store(run, kept).of([TEACHERS[m].fingerprint for m in members], wants or BOTH, CPU)


def running(run: Path, members: list[int], **wants: bool) -> Online:
    places = [place(TEACHERS[m], "teachers") for m in members]
    return Online(online_networks(places, run, INFO, False), wants or BOTH, "float32", CPU)


def batch(rows: list[int]) -> Batch:
    """Some texts of the transfer set, cut to the longest of them."""
    inputs = torch.from_numpy(arrays(48, 0).inputs)[rows]
    longest = int((inputs != 0).sum(1).max())
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return Batch(inputs[:, :longest], labels, rows=torch.tensor(rows))


def places(members: list[int], shares: list[float] | None = None, **more: Any) -> dict[str, Any]:
    found = [place(TEACHERS[m], "teachers") for m in members]
    shares = shares or [1 / len(members)] * len(members)
    return {"teachers": found, "shares": shares, "logits": False, **more}


def student(online: dict[str, Any], terms: list[dict[str, Any]], **changes: Any) -> MemberTask:
    model = {"name": "transformer", "architecture": {**BERT, "num_hidden_layers": 2}}
    return task("distilled", model=model, online=online, terms=terms, alpha=0.0, **changes)


def with_states(run: Path, kept: Kept = ALL) -> TrainingData:
    return replace(data(run), states=store(run, kept))


def value(one: MemberTask, held: TrainingData, rows: list[int]) -> tuple[float, torch.Tensor]:
    """The task's loss for these rows at the student's initial weights, and its gradient there."""
    loss = loss_of(one, settings := make_settings(one))
    network = initial_network(one, held).eval()
    fed = make_batches(one, held, settings, CPU)
    online, _ = beside(one, held, network, loss, fed, "float32")
    assert online is not None
    seen = batch(rows)
    found = loss(network(seen.inputs, **loss.wants), None, seen, online(seen))
    found.backward()
    gradient = network.get_parameter("body.model.bert.encoder.layer.0.output.dense.weight").grad
    assert gradient is not None
    return float(found.detach()), gradient


def make_settings(one: MemberTask) -> TrainingConfig:
    return TrainingConfig.model_validate(one.training)


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("rows", [[5, 3, 40], list(range(48)), [17]])
@torch.no_grad()
def test_what_is_read_is_what_the_teachers_return(run: Path, rows: list[int]) -> None:
    seen = batch(rows)
    read, ran = stored(run, [0, 1])(seen), running(run, [0, 1])(seen)
    assert len(read) == len(ran) == 2
    for ours, theirs in zip(read, ran, strict=True):
        present = seen.inputs != 0
        assert ours.mask is not None and torch.equal(ours.mask, present)
        assert ours.hidden is not None and theirs.hidden is not None
        assert ours.hidden.keys() == theirs.hidden.keys()
        for name, state in theirs.hidden.items():
            found = ours.hidden[name]
            assert found.dtype == torch.float32 and found.shape == state.shape
            torch.testing.assert_close(found[present], state[present], rtol=1e-3, atol=2e-3)
            assert not found[~present].any()
        assert ours.attention is not None and theirs.attention is not None
        both = (present[:, None, :, None] & present[:, None, None, :]).expand_as(theirs.attention[0])
        for found, scores in zip(ours.attention, theirs.attention, strict=True):
            torch.testing.assert_close(found[both], scores[both], rtol=1e-3, atol=2e-3)
            assert not found[~both].any()
        shifted = theirs.logits - theirs.logits.amax(1, keepdim=True)
        torch.testing.assert_close(ours.logits, shifted, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_teachers_come_in_the_order_asked_for(run: Path) -> None:
    seen = batch([1, 2])
    first, second = stored(run, [0, 1])(seen)
    (alone,) = stored(run, [1])(seen)
    turned = stored(run, [1, 0])(seen)
    for expected, found in ((second, alone), (second, turned[0]), (first, turned[1])):
        assert expected.hidden is not None and found.hidden is not None
        assert torch.equal(expected.hidden["layer_2"], found.hidden["layer_2"])
    assert first.hidden is not None and second.hidden is not None
    assert not torch.allclose(first.hidden["layer_2"], second.hidden["layer_2"], atol=1e-2)


def test_padding_does_not_depend_on_the_neighbours(run: Path) -> None:
    """Whatever shares a forward pass with a text, the store's padding is 0."""
    _, columns = filled(run)
    inputs = arrays(48, 0).inputs
    absent = inputs == 0
    assert columns["hidden"].shape == (48, 1, 2, DEPTH + 1, LENGTH, WIDTH)
    assert columns["attention"].shape == (48, 1, 2, DEPTH, HEADS, LENGTH, LENGTH)
    assert not columns["hidden"][:, 0, 0, 1][absent].any() and columns["hidden"][:, 0, 0, 1][~absent].any()
    assert not columns["attention"][:, 0, 1, 2].transpose(0, 2, 3, 1)[absent].any()
    assert not columns["attention"][:, 0, 1, 2].transpose(0, 3, 2, 1)[absent].any()


def test_float32_is_exact_where_asked_for(run: Path) -> None:
    seen = batch([0, 1, 2])
    with torch.no_grad():
        (read,), (ran,) = stored(run, [0], replace(ALL, dtype="float32"))(seen), running(run, [0])(seen)
    assert read.hidden is not None and ran.hidden is not None
    present = seen.inputs != 0
    torch.testing.assert_close(read.hidden["layer_4"][present], ran.hidden["layer_4"][present])


def test_numbers_that_do_not_fit_are_told(run: Path) -> None:
    layout = StoreLayout(1, 1, 3, None, ALL)
    one = labeller(run, layout)
    norm = one.networks[0][0].get_parameter("body.model.bert.encoder.layer.0.output.LayerNorm.weight")
    with torch.no_grad():
        norm.mul_(1e6)
    with pytest.raises(InputError, match=r"soft_targets\.keep_dtype: float16 cannot hold a teacher's hidden"):
        one.states(torch.from_numpy(texts(4, 0)[0]), ALL)


def test_a_part_of_a_batch_keeps_its_rows(run: Path) -> None:
    whole = batch([4, 5, 6, 7])
    rows = whole[1:3].rows
    assert rows is not None and rows.tolist() == [5, 6]
    (read,), (part,) = stored(run, [0])(whole), stored(run, [0])(whole[1:3])
    assert read.hidden is not None and part.hidden is not None
    assert torch.equal(read.hidden["layer_1"][1:3], part.hidden["layer_1"])


@pytest.mark.parametrize("replicas", [1, 2])
def test_batches_say_which_rows_they_hold(run: Path, replicas: int) -> None:
    held = data(run)
    assert held.transfer is not None
    inputs = torch.from_numpy(held.transfer.inputs)
    one = student(places([0]), [{"name": "patient"}])
    seen: list[int] = []
    for rank in range(replicas):
        fed = make_batches(one, held, make_settings(one), CPU, Replicas(rank, replicas))
        for part in fed.epoch(0):
            assert part.rows is not None and len(part.rows) == len(part.inputs) == 16 // replicas
            assert torch.equal(inputs[part.rows, : part.inputs.shape[1]], part.inputs)
            seen += part.rows.tolist()
    assert sorted(seen) == list(range(48))


# ------------------------------------------------------------------------------------------------- losses

SOME = replace(ALL, hidden=(2, 4), attention=(2, 4))
FIRST = replace(ALL, attention=(), first_only=True)


@pytest.mark.parametrize(
    ("kept", "terms"),
    [
        (ALL, [{"name": "hidden_mse"}, {"name": "attention_mse", "weight": 0.1}]),
        (ALL, [{"name": "hidden_cosine"}, {"name": "attention_kl"}, {"name": "kl"}]),
        (ALL, [{"name": "embedding_mse"}, {"name": "hidden_mse", "layers": "last"}]),
        (SOME, [{"name": "hidden_mse"}, {"name": "attention_mse"}]),
        (SOME, [{"name": "hidden_cosine"}, {"name": "attention_kl", "layers": "final"}]),
        (SOME, [{"name": "hidden_mse", "layers": [[1, 2]]}, {"name": "attention_mse", "layers": [[2, 4]]}]),
        (replace(ALL, hidden=(2,), attention=()), [{"name": "patient"}]),
        (FIRST, [{"name": "patient"}]),
        (FIRST, [{"name": "patient", "reduction": "sum", "layers": "last"}]),
        (replace(FIRST, hidden=(2, 4)), [{"name": "patient", "skip_last": False}]),
    ],
)
def test_losses_and_gradients_are_those_of_teachers_that_run(
    run: Path, kept: Kept, terms: list[dict[str, Any]]
) -> None:
    """Teachers of another width: projections are drawn alike. Two teachers by their shares."""
    held, rows, shares = with_states(run, kept), [3, 9, 27, 31], [0.25, 0.75]
    ran, gradient = value(student(places([0, 1], shares), terms), replace(held, states=None), rows)
    read, found = value(student(places([0, 1], shares, stored=True), terms), held, rows)
    assert ran > 0 and read == pytest.approx(ran, rel=5e-3)
    torch.testing.assert_close(found, gradient, rtol=0.05, atol=2e-2 * float(gradient.abs().max()))


def test_states_that_are_not_there_are_named(run: Path) -> None:
    held = with_states(run, SOME)
    one = student(places([0], stored=True), [{"name": "hidden_mse", "layers": "last"}])
    with pytest.raises(ConfigError, match=r"teacher's layer_3; .*the teacher layer_2, layer_4; choose"):
        value(one, held, [0, 1])
    one = student(places([0], stored=True), [{"name": "attention_mse", "layers": "last"}])
    with pytest.raises(ConfigError, match=r"\[1, 3\] is not a pair of blocks.*of 2 blocks, the teacher of 2"):
        value(one, held, [0, 1])
    one = student(places([0], stored=True), [{"name": "hidden_mse"}])
    with pytest.raises(ConfigError, match="pair states that differ in their width at most"):
        value(one, with_states(run, FIRST), [0, 1])


# ----------------------------------------------------------------------------------------------- training


def test_a_student_learns_without_a_teacher_beside(run: Path, tmp_path: Path) -> None:
    """The same as with one, and no weights of a teacher are read: there are none here."""
    terms: list[dict[str, Any]] = [
        {"name": "hidden_mse"},
        {"name": "patient", "weight": {"start": 2, "end": 0}},
    ]
    histories = []
    for folder, online in ((run, places([0, 1])), (tmp_path, places([0, 1], stored=True))):
        one = student(online, terms, training=training(2, gradient_accumulation=2))
        held = replace(with_states(run), run=folder)
        assert train_member(one, held, tmp_path / "student" / "members")
        receipt = finished(one, tmp_path / "student" / "members")
        assert receipt is not None
        assert (one.folder(tmp_path / "student" / "members") / LEARNED).exists()
        histories.append([entry["train_loss"] for entry in receipt.summary["history"]])
    assert histories[1] == pytest.approx(histories[0], rel=1e-2)


def test_the_fingerprint_tells_reading_from_running() -> None:
    terms = [{"name": "patient"}]
    ran, read = student(places([0]), terms), student(places([0], stored=True), terms)
    assert ran.fingerprint != read.fingerprint
    assert read.settings["online"]["stored"] is True and "stored" not in ran.settings["online"]


def test_learned_projections_have_the_same_names(run: Path) -> None:
    held = with_states(run)
    one = student(places([0], stored=True), [{"name": "hidden_mse"}])
    loss, network = loss_of(one, make_settings(one)), initial_network(one, held)
    read = prepare_loss(loss, network, stored(run, [0], hidden=True), INFO, CPU)
    ran = prepare_loss(loss, network, running(run, [0], hidden=True).networks, INFO, CPU)
    names = [{name: tensor.shape for name, tensor in made.state_dict().items()} for made in (read, ran)]
    assert names[0] == names[1] and names[0]


def test_outputs_keep_what_they_say_of_their_blocks() -> None:
    found = Outputs(torch.zeros(4, 3), None, (torch.zeros(4, 2, 5, 5),), None, 4, (3,))[1:3]
    assert found.depth == 4 and found.blocks == (3,) and len(found.logits) == 2
