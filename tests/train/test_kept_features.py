"""Features of image teachers from the store, in the place of teachers that run beside the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_hint_phase import INFO, arrays, task

from ensemble_kd.config import TrainingConfig
from ensemble_kd.data.store import Kept, StoreLayout
from ensemble_kd.objectives.base import Batch
from ensemble_kd.stages.shards import encode
from ensemble_kd.stages.soft_targets import Labeller
from ensemble_kd.stages.start import Basis
from ensemble_kd.stages.teachers_beside import stored
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import online_networks
from ensemble_kd.train.member import train_member
from ensemble_kd.train.member_loss import loss_of, prepare_loss
from ensemble_kd.train.member_networks import initial_network
from ensemble_kd.train.online import Online
from ensemble_kd.train.stored import StoredLogits
from ensemble_kd.train.stored_states import KeptStates

CPU = torch.device("cpu")
WIDTH = 8
KEPT = Kept((), (), 0, 0, 0, 0, False, "float32", features=4 * WIDTH)
TERMS = [{"name": "rkd_distance"}, {"name": "rkd_angle"}, {"name": "crd", "size": 3}]
STUDENT = {"name": "cnn", "channels": [3, 3]}


def test_losses_and_gradients_are_those_of_a_teacher_that_runs(tmp_path: Path) -> None:
    held = TrainingData(INFO, arrays(8, 1), arrays(8, 2), arrays(32, 0), run=tmp_path)
    teacher = task("teacher", {"name": "resnet", "width": WIDTH, "blocks": 1}, 1)
    assert train_member(teacher, held, tmp_path / "teachers" / "members")
    folder = teacher.folder(tmp_path / "teachers" / "members")
    layout = StoreLayout(1, 1, 2, None, KEPT)
    inputs = torch.from_numpy(arrays(32, 0).inputs)
    labeller = Labeller(INFO, layout, [(teacher.settings, str(folder))], {}, batch_size=5)
    logits, kept = labeller.states(inputs, KEPT)
    torch.testing.assert_close(logits, labeller.logits(inputs, torch.arange(32)))
    columns = encode(logits, layout)[0] | {name: column.numpy() for name, column in kept.items()}

    place = {"stage": "teachers", "member": teacher.fingerprint}
    one = task("phase", STUDENT, 1, phase="first", terms=TERMS, online={"teachers": [place], "shares": [1.0]})
    rows = torch.tensor([3, 30, 7, 8, 21])
    found = []
    networks = online_networks([place], tmp_path, INFO, False)
    states = KeptStates(columns, layout, [teacher.fingerprint], StoredLogits(columns, layout))
    for reads in (False, True):
        network, loss = initial_network(one, held).eval(), loss_of(one, TrainingConfig())
        beside = (
            states.of([teacher.fingerprint], loss.wants, CPU)
            if reads
            else Online(networks, loss.wants, "float32", CPU)
        )
        torch.manual_seed(1)
        learned = prepare_loss(loss, network, beside if reads else networks, INFO, CPU)  # type: ignore[arg-type]
        batch = Batch(inputs[rows], torch.zeros(5, dtype=torch.int64), rows=rows)
        value = loss(network(batch.inputs, **loss.wants), None, batch, beside(batch))
        value.backward()
        parameters = [*network.parameters(), *learned.parameters()]
        found.append([value.detach(), *(p.grad for p in parameters if p.grad is not None)])
    assert len(found[0]) > 6
    for live, read in zip(*found, strict=True):
        torch.testing.assert_close(live, read, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([{"name": "rkd_angle"}, {"name": "darkrank_hard"}], True),
        ([{"name": "rkd_angle"}, {"name": "similarity_preserving"}], False),  # reads maps
        ([{"name": "rkd_angle", "states": ["pooled", "pooled"]}], False),
        ([{"name": "rkd_angle"}, {"name": "attention_transfer"}], False),
        ([], False),
    ],
)
def test_where_the_store_suffices(terms: list[dict[str, object]], expected: bool) -> None:
    basis = Basis([], STUDENT, None, {}, StoreLayout(1, 1, 2, None, KEPT), INFO)
    assert stored(basis, terms) is expected


def test_the_last_block_must_be_kept() -> None:
    """A relation reads a text's last state; the last that is kept may be another."""
    info = {"kind": "text", "input_shape": [8], "num_classes": 2, "vocabulary_size": 20, "preprocess": {}}
    model = {"name": "bag", "embedding": 4}
    for layers, expected in (((0, 2), True), ((0, 1), False)):
        layout = StoreLayout(1, 1, 2, None, Kept(layers, (), 2, 6, 1, 8))
        assert stored(Basis([], model, None, {}, layout, info), [{"name": "rkd_distance"}]) is expected


def test_float16_that_cannot_hold_them_is_told(tmp_path: Path) -> None:
    from ensemble_kd.errors import InputError
    from ensemble_kd.stages.soft_targets import _check_finite

    _check_finite({"features": torch.ones(2)})
    with pytest.raises(InputError, match="soft_targets.keep_dtype: float16 cannot hold a teacher's features"):
        _check_finite({"features": torch.tensor(np.array([1e6], np.float32)).half()})
