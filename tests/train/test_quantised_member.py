"""Students shipped in integers: what is judged is what lies in the folder, after interruptions too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import CLASSES, FEATURES, INFO, MODEL, data, settings, task

from ensemble_kd.config import QuantizationConfig, validate
from ensemble_kd.models.package import load_package, save_package
from ensemble_kd.models.quantise import THRESHOLD, fake_quantise, quantised_weights
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages import student_checks, student_tasks
from ensemble_kd.stages.start import Basis, Sources
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.finishing import CHECKPOINT, PREDICTIONS, load_logits
from ensemble_kd.train.initial import WEIGHTS, load_network
from ensemble_kd.train.member import train_member
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.trials import Packet


def quantised(role: str = "distilled", training: dict[str, Any] | None = None, **changes: Any) -> MemberTask:
    fields = QuantizationConfig(**{"ema_decay": 0.9, **changes}).model_dump(mode="json")
    return task(role, quantization=fields, training=settings(**(training or {})).model_dump(mode="json"))


def test_the_fingerprint_is_as_before_where_it_is_off() -> None:
    plain = task("distilled")
    assert "quantization" not in plain.settings
    assert len({plain.fingerprint, quantised().fingerprint, quantised(bits=4).fingerprint}) == 3


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("distilled", {}),
        ("hard", {}),
        ("pseudo", {}),
        ("distilled", {"activations": False}),
        ("distilled", {"bits": 4, "start_fraction": 0.0}),
    ],
)
def test_what_is_judged_is_what_lies_in_the_folder(
    tmp_path: Path, role: str, changes: dict[str, Any]
) -> None:
    one = quantised(role, **changes)
    assert train_member(one, data(), tmp_path)
    receipt, folder = finished(one, tmp_path), one.folder(tmp_path)
    assert receipt is not None
    network = load_network(receipt.config, INFO, folder)
    inputs = as_tensor(data().test.inputs)
    torch.testing.assert_close(network(inputs).logits.detach(), load_logits(folder, "test"))
    # The kept epoch was judged as it is shipped.
    last = receipt.summary["history"][-1]
    assert last["validation_loss"] == pytest.approx(receipt.summary["validation_loss"], abs=1e-6)
    assert last["validation_accuracy"] == receipt.summary["validation_accuracy"]
    stored, bits = load_file(folder / WEIGHTS), changes.get("bits", 8)
    for name, (integers, step) in quantised_weights(network).items():
        assert torch.equal(stored[name], integers.float() * step)
        assert torch.equal(fake_quantise(stored[name], stored[name].abs().amax(), bits), stored[name])
        assert int(integers.abs().max()) == 2 ** (bits - 1) - 1
    thresholds = [name for name in stored if name.endswith(THRESHOLD)]
    assert len(thresholds) == (0 if changes.get("activations") is False else 2)
    assert all(stored[name] > 0 for name in thresholds)
    save_package(tmp_path / "model", network, MODEL, INFO, "# card\n", None, lineage={})
    package = load_package(tmp_path / "model")
    assert torch.equal(package.network(inputs).logits, network(inputs).logits)
    assert package.quantization is not None and package.quantization["bits"] == bits


@pytest.mark.parametrize(
    ("training", "changes"),
    [({}, {}), ({"early_stopping": 2, "gradient_accumulation": 2}, {"start_fraction": 0.6})],
)
def test_an_interrupted_one_ends_in_the_same_bits(
    tmp_path: Path, training: dict[str, Any], changes: dict[str, Any]
) -> None:
    one = quantised(training=training, **changes)
    assert train_member(one, data(), tmp_path / "whole")

    def interrupt(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_member(one, data(), tmp_path / "parts", on_epoch=interrupt)
    parts, whole = (one.folder(tmp_path / name) for name in ("parts", "whole"))
    assert any(name.endswith(THRESHOLD) for name in load_file(parts / CHECKPOINT))
    assert train_member(one, data(), tmp_path / "parts")
    for name in (WEIGHTS, PREDICTIONS):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_a_member_without_it_is_untouched(tmp_path: Path) -> None:
    one = task("distilled")
    assert train_member(one, data(), tmp_path)
    assert not any(name.endswith(THRESHOLD) for name in load_file(one.folder(tmp_path) / WEIGHTS))


def test_in_a_sweep_each_is_trained_by_itself(tmp_path: Path) -> None:
    tasks = [replace(quantised(), temperature=t) for t in (1.0, 2.0)]
    assert fuse_key(tasks[0]) is None and fuse_key(task("distilled")) is not None
    packet = Packet([[one] for one in tasks], data(), tmp_path, fuse=4)
    while not packet.done:
        standings = packet.step()
    assert [standing["state"] for standing in standings] == ["finished", "finished"]
    assert all(standing["fused"] == 1 for standing in standings)


# ----------------------------------------------------------------------------------------- configuration


def configuration(**student: Any) -> Any:
    return validate({"name": "x", "data": {"source": "digits"}, "student": student})


def test_baselines_are_quantised_as_the_student_is() -> None:
    basis = Basis([], MODEL, None, {})
    counts = {**INFO["counts"], "labelled": 50}

    def tasks(**student: Any) -> list[MemberTask]:
        return student_tasks.tasks(configuration(**student), Sources("data", "store", counts, basis))

    found = tasks(quantization={"bits": 8})
    assert {one.role for one in found} == {"distilled", "hard", "pseudo"}
    expected = {"bits": 8, "activations": True, "start_fraction": 0.3, "ema_decay": 0.9999}
    assert all(one.quantization == expected for one in found)
    assert all(one.quantization is None for one in tasks())


def test_the_stages_fingerprint_is_as_before_where_it_is_off(tmp_path: Path) -> None:
    assert "quantization" not in student_stage.plan(configuration(), tmp_path, "data", "store").config
    on = configuration(quantization={})
    assert student_stage.plan(on, tmp_path, "data", "store").config["quantization"]["bits"] == 8


def test_a_model_without_such_layers_is_told_before_training() -> None:
    custom = {"name": "custom", "callable": f"{__name__}:layerless"}
    (problem,) = student_checks.quantization_problems(configuration(model=custom, quantization={}), INFO)
    assert problem.startswith("student.quantization: the model has no torch.nn.Linear")
    assert student_checks.quantization_problems(configuration(model=custom), INFO) == []
    assert student_checks.quantization_problems(configuration(quantization={}), INFO) == []


class Layerless(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(FEATURES, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def layerless(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    return Layerless()
