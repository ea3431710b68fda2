"""Networks grown from smaller ones: the same function, copies that part, and what cannot be grown."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import ModelConfig, load_config, validate
from ensemble_kd.config.growth import places
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.init.net2net import copies, grow_, spread
from ensemble_kd.train.initial import load_network

IMAGE: dict[str, Any] = {"kind": "image", "input_shape": [8, 9, 3], "num_classes": 5}
MLP, RESNET = {"name": "mlp", "hidden": [7, 5]}, {"name": "resnet", "width": 4, "blocks": 1}


def network(settings: dict[str, Any], seed: int) -> Network:
    torch.manual_seed(seed)
    made = build(TypeAdapter[Any](ModelConfig).validate_python(settings), IMAGE)
    with torch.no_grad():  # as after training: nothing is at its initial value
        for name, tensor in [*made.body.named_parameters(), *made.body.named_buffers()]:
            if "running_var" in name:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return made


def images(count: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (count, 8, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


GROWTHS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (MLP, {"hidden": [12, 11]}),
    (MLP, {"hidden": [7, 7, 5]}),
    (MLP, {"hidden": [9, 9, 9, 5, 5]}),
    ({"name": "mlp", "hidden": []}, {}),
    (RESNET, {"width": 9}),
    (RESNET, {"blocks": 3}),
    *(
        ({**RESNET, **kind}, {"width": 8, "blocks": 2})
        for kind in (
            {},
            {"norm": "none"},
            {"block": "bottleneck", "reduction": 2, "blocks": 2},
            {"block": "depthwise", "blocks": 2},
            {"block": "depthwise", "norm": "none", "stem": "large"},
        )
    ),
    ({**RESNET, "norm": "group"}, {"blocks": 2}),
    ({**RESNET, "block": "grouped", "groups": 2}, {"blocks": 2}),
]


@pytest.mark.parametrize(("small", "larger"), GROWTHS)
@pytest.mark.parametrize("training", [False, True])
def test_the_function_is_preserved(small: dict[str, Any], larger: dict[str, Any], training: bool) -> None:
    old, new = network(small, 0), network({**small, **larger}, 1)
    grow_(new, old, 0.0)
    old.train(training)
    new.train(training)
    with torch.no_grad():
        found, wanted = new(images()).logits, old(images()).logits
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    if larger:
        assert new.num_parameters > old.num_parameters


def test_a_layer_that_is_grown_is_a_sum_of_its_parts() -> None:
    """W g and V / c by hand, from the paper's formula, in float64."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(4, 3)), generator.normal(size=(2, 4))
    torch.manual_seed(0)
    units = copies(4, 7)
    assert units[:4].tolist() == [0, 1, 2, 3] and set(units.tolist()) <= {0, 1, 2, 3}
    counts = [units.tolist().count(unit) for unit in units.tolist()]
    grown = np.stack([second[:, unit] / count for unit, count in zip(units, counts, strict=True)], 1)
    np.testing.assert_allclose(spread(torch.from_numpy(second), units).numpy(), grown)
    np.testing.assert_allclose(grown @ first[units.numpy()], second @ first, atol=1e-12)


def test_noise_parts_copies_and_leaves_originals() -> None:
    old = network(MLP, 0)
    body: Any = old.body.requires_grad_(False)
    for noise, differ in ((0.0, False), (0.05, True)):
        new = network({**MLP, "hidden": [12, 5]}, 1)
        torch.manual_seed(3)
        grow_(new, old, noise)
        grown: Any = new.body.requires_grad_(False)
        assert torch.equal(grown.layers[0].weight[:7], body.layers[0].weight)
        torch.manual_seed(3)
        units = copies(7, 12)
        change = grown.layers[0].weight[7:] - body.layers[0].weight[units[7:]]
        assert bool(change.abs().max() > 0) is differ
        if differ:
            assert 0.5 < float(change.std() / (0.05 * body.layers[0].weight.std())) < 1.5


def test_copies_learn_apart_with_noise_and_never_without() -> None:
    def after_steps(noise: float) -> Tensor:
        old, new = (network({"name": "mlp", "hidden": [units]}, units) for units in (4, 8))
        torch.manual_seed(3)
        grow_(new, old, noise)
        optimizer = torch.optim.SGD(new.parameters(), 0.1)
        labels = torch.arange(16) % 5
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(new(images()).logits, labels).backward()
            optimizer.step()
        torch.manual_seed(3)
        body: Any = new.body
        weights = body.layers[0].weight.detach()
        return weights[4:] - weights[copies(4, 8)[4:]]

    assert after_steps(0.0).abs().max() < 1e-5 < 1e-3 < after_steps(0.01).abs().max()


def test_seeds_copy_other_units() -> None:
    torch.manual_seed(0)
    one = copies(10, 30)
    assert not torch.equal(one, copies(10, 30))


def test_what_is_grown_deeper_learns_in_its_new_blocks() -> None:
    new = network({**RESNET, "blocks": 2}, 1)
    grow_(new, network(RESNET, 0), 0.0)
    body: Any = new.body
    before = copy.deepcopy(body.stages[0][1].state_dict())
    optimizer = torch.optim.SGD(new.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(new(images()).logits, torch.arange(16) % 5).backward()
        optimizer.step()
    after = body.stages[0][1].state_dict()
    assert not torch.equal(before["norm_2.weight"], after["norm_2.weight"])
    assert not torch.equal(before["conv_1.weight"], after["conv_1.weight"])


def test_networks_of_two_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="a ResNet cannot be grown from a MLP"):
        grow_(network(RESNET, 0), network(MLP, 0), 0.0)


# ---------------------------------------------------------------------- which layer is which


def brute_force(old: list[int], new: list[int], how: str) -> bool:
    """Whether there is a way, by trying all."""
    if not new:
        return not old

    def go(i: int, k: int) -> bool:
        if k == len(new):
            return i == len(old)
        take = i < len(old) and (old[i] == new[k] or (old[i] < new[k] and how != "net2deeper"))
        return (take and go(i + 1, k + 1)) or (i > 0 and new[k] == new[k - 1] and go(i, k + 1))

    return go(0, 0) and not (how == "net2wider" and len(old) != len(new))


@given(
    old=st.lists(st.integers(1, 4), max_size=4),
    new=st.lists(st.integers(1, 4), max_size=6),
    how=st.sampled_from(["net2wider", "net2deeper", "net2net"]),
)
def test_places_against_all_ways(old: list[int], new: list[int], how: str) -> None:
    found = places(old, new, how)
    assert (found is not None) == brute_force(old, new, how)
    if found is None:
        return
    taken = [place for place in found if place is not None]
    assert taken == list(range(len(old))) and len(found) == len(new)
    for k, place in enumerate(found):
        if place is None:
            assert k and new[k] == new[k - 1]
        else:
            assert new[k] >= old[place] and (how != "net2deeper" or new[k] == old[place])


def test_long_lists_of_layers_are_no_deep_recursion() -> None:
    assert places([3] * 1000, [4] * 1200) == [*range(1000), *[None] * 200]


# ---------------------------------------------------------------------- bad settings


def raw(teacher: dict[str, Any], student: dict[str, Any], **teachers: Any) -> dict[str, Any]:
    data = {"source": "digits", "kind": "image"}
    return {
        "name": "t",
        "data": data,
        "teachers": {"num_members": 1, "model": teacher, **teachers},
        "student": {"model": student},
    }


@pytest.mark.parametrize(
    ("teacher", "student", "says"),
    [
        (
            MLP,
            {**MLP, "hidden": [6, 5], "start": "net2wider"},
            "student.model.hidden: [6, 5], but the teacher has [7, 5], and net2wider takes as many layers",
        ),
        (
            MLP,
            {**MLP, "hidden": [7, 6, 5], "start": "net2deeper"},
            "student.model.hidden: [7, 6, 5], but the teacher has [7, 5], and net2deeper takes those layers",
        ),
        (
            MLP,
            {**MLP, "hidden": [7], "start": "net2net"},
            "student.model.hidden: [7], but the teacher has [7, 5]",
        ),
        (
            RESNET,
            {**RESNET, "width": 2, "blocks": 2, "start": "net2net"},
            "student.model.width: 2, but the teacher has 4, and a network grows; raise it",
        ),
        (
            {**RESNET, "blocks": 3},
            {**RESNET, "start": "net2deeper"},
            "student.model.blocks: 1, but the teacher has 3, and a network grows; raise it",
        ),
        (
            RESNET,
            {**RESNET, "width": 8, "start": "net2deeper"},
            "student.model.width: 8, but the teacher has 4, and net2deeper adds blocks alone",
        ),
        (
            RESNET,
            {**RESNET, "blocks": 2, "start": "net2wider"},
            "student.model.blocks: 2, but the teacher has 1, and net2wider adds channels alone",
        ),
        (
            RESNET,
            {**RESNET, "norm": "none", "start": "net2net"},
            "student.model.norm: 'none', but the teacher has 'batch'; make them the same",
        ),
        (
            {**RESNET, "norm": "group"},
            {**RESNET, "norm": "group", "width": 8, "start": "net2wider"},
            "student.model.width: 8, but the teacher has 4, and with norm: group a copied channel changes",
        ),
        (
            RESNET,
            {**MLP, "start": "net2net"},
            "student.model.start: 'net2net' grows a network of one kind, and the teacher is 'resnet'",
        ),
    ],
)
def test_growth_to_something_else_is_told_before_anything_trains(
    teacher: dict[str, Any], student: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(raw(teacher, student))
    assert any(line.startswith(says) for line in caught.value.problems), caught.value.problems


def test_one_teacher_that_can_be_grown_is_enough() -> None:
    kinds = [{"model": {**MLP, "hidden": [9]}, "count": 1}]
    validate(raw(RESNET, {**MLP, "hidden": [20], "start": "net2wider"}, kinds=kinds))


def test_what_starts_has_a_trained_teacher() -> None:
    with pytest.raises(ConfigError, match=r"teachers.model.start: 'net2wider' is for students; leave it out"):
        validate(raw({**MLP, "start": "net2wider"}, MLP))
    given = raw(MLP, {**MLP, "start": "net2wider"}, source="callable", given=["os:getcwd"])
    with pytest.raises(
        ConfigError, match=r"student.model.start: .*starts from a teacher that the run has trained"
    ):
        validate(given)
    with pytest.raises(ConfigError, match=r"student.assistants.0.start: is for the student itself"):
        settings = raw(MLP, MLP)
        settings["student"]["assistants"] = [{**MLP, "start": "net2wider"}]
        validate(settings)


# ---------------------------------------------------------------------- a whole run


@pytest.mark.parametrize("start", ["{name: net2net, noise: 0}", "random"])
def test_a_run_whose_student_is_grown_from_its_teacher(start: str, tmp_path: Path) -> None:
    overrides = [
        "compute.executor=local",
        "tracking.enabled=false",
        "specialists=null",
        "sweep=null",
        "teachers.num_members=2",
        "teachers.training.epochs=8",
        "teachers.model={name: mlp, hidden: [16]}",
        "student.seeds=1",
        "student.training.epochs=0",
        f"student.model={{name: mlp, hidden: [24, 24], start: {start}}}",
    ]
    pipeline.run(load_config("digits", overrides), tmp_path)
    (teachers,) = (read_manifest(path.parent) for path in (tmp_path / "teachers").glob("*/manifest.json"))
    (students,) = (read_manifest(path.parent) for path in (tmp_path / "student").glob("*/manifest.json"))
    (data,) = (read_manifest(path.parent) for path in (tmp_path / "data").glob("*/manifest.json"))
    assert teachers is not None and students is not None and data is not None
    best = min(teachers.summary["members"], key=lambda entry: entry["validation_loss"])
    entries = {entry["name"]: entry for entry in students.summary["members"]}
    info, inputs = data.summary["info"], torch.randint(0, 17, (20, 8, 8, 1), dtype=torch.uint8)

    def answers(stage: str, fingerprint: str) -> Tensor:
        folder = tmp_path / stage / "members" / fingerprint
        manifest = read_manifest(folder)
        assert manifest is not None and "start" not in manifest.config["model"]
        return load_network(manifest.config, info, folder)(inputs).logits.detach()

    wanted = answers("teachers", best["fingerprint"])
    for role in ("distilled", "hard"):  # the baseline starts where the student starts
        found = answers("student", entries[f"{role}-seed-0"]["fingerprint"])
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4) is (start != "random")
