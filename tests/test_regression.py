"""Values in place of classes: losses, heads, means, what is refused, metrics, the report, a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from test_given_teachers import write_classifier
from torch import Tensor

from ensemble_kd import pipeline
from ensemble_kd.config import (
    Config,
    MLPConfig,
    PredictionsConfig,
    TrainingConfig,
    cross_field_problems,
    validate,
)
from ensemble_kd.data.predictions import align
from ensemble_kd.data.raw import ask
from ensemble_kd.data.records import Arrays, load_split
from ensemble_kd.data.store import StoreLayout
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.foreign import class_problems, classifier_problems
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.models.package import load_package
from ensemble_kd.models.transplant import resolve
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.hard import squared_error
from ensemble_kd.objectives.logits import LogitMSE
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss
from ensemble_kd.predict import predict_file
from ensemble_kd.report import ReportInputs, System, build_report
from ensemble_kd.report.card import model_card
from ensemble_kd.report.page import render
from ensemble_kd.report.plots import histories_of, plot_arrays
from ensemble_kd.stages.context import Console
from ensemble_kd.stages.shards import encode
from ensemble_kd.targets.metrics import regression_metrics
from ensemble_kd.train.blocks import Block, Picked, as_tensor
from ensemble_kd.train.finishing import load_logits
from ensemble_kd.train.fused import fused_epochs
from ensemble_kd.train.group_data import TrainingData
from ensemble_kd.train.initial import load_initial
from ensemble_kd.train.loop import predict
from ensemble_kd.train.member import train_member
from ensemble_kd.train.stackable import fuse_key
from ensemble_kd.train.statistics import paired_interval
from ensemble_kd.train.task import MemberTask, finished
from ensemble_kd.train.validation import preference, validation_metrics

NAN = float("nan")
FEATURES = 5
TARGET = {"mean": 50.0, "std": 4.0}
INFO: dict[str, Any] = {
    "kind": "numeric",
    "input_shape": [FEATURES],
    "num_classes": 1,
    "class_names": [],
    "mean": [0.0] * FEATURES,
    "std": [1.0] * FEATURES,
    "vocabulary_size": 0,
    "preprocess": {"columns": {"input": "x", "label": "y", "id": None}},
    "counts": {"train": 96, "validation": 40, "test": 40, "transfer": 96, "labelled": 96},
    "target": TARGET,
}


def config_of(**blocks: Any) -> dict[str, Any]:
    data = {"kind": "numeric", "path": ".", "target": "value"} | blocks.pop("data", {})
    return {"name": "values", "data": data, **blocks}


# ----------------------------------------------------------------------------------------------- losses


def test_squared_error_in_closed_form() -> None:
    values = torch.tensor([[1.0], [2.0], [-3.0]], requires_grad=True)
    found = squared_error(values, torch.tensor([3.0, NAN, -4.0]))
    assert found.tolist() == [4.0, 0.0, 1.0]
    found.sum().backward()
    assert values.grad is not None and values.grad[:, 0].tolist() == [-4.0, 0.0, 2.0]  # 2 (z - y), not NaN
    stacked = squared_error(torch.stack([values, values + 1]), torch.tensor([3.0, NAN, -4.0]))
    assert stacked.tolist() == [[4.0, 0.0, 1.0], [1.0, 0.0, 4.0]]


def test_mse_to_the_teacher_is_that_of_the_labels() -> None:
    z, v = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [2.5]])
    batch = Batch(torch.zeros(2, 1), torch.tensor([4.0, 2.5]))
    assert LogitMSE()(Outputs(z), Outputs(v), batch).tolist() == squared_error(z, v[:, 0]).tolist()
    z, v = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 2.0]])
    assert LogitMSE()(Outputs(z), Outputs(v), batch).item() == 1.0  # of classes as before: 1/2 (1 + 1)


def loss_of(alpha: float, unit: float = 2.0) -> DistillationLoss:
    return DistillationLoss(LogitMSE() if alpha else None, alpha, hard=squared_error, unit=unit)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_whole_loss_is_in_units_of_the_labels_variance(alpha: float) -> None:
    z, v = torch.tensor([[10.0], [14.0]]), torch.tensor([[12.0], [14.0]])
    batch = Batch(torch.zeros(2, 1), torch.tensor([6.0, NAN]))
    soft, hard = (4 / 4 + 0) / 2, (16 / 4 + 0) / 2  # over all examples of the batch
    found = loss_of(alpha)(Outputs(z), Outputs(v), batch)
    assert found.item() == pytest.approx(alpha * soft + (1 - alpha) * hard)
    assert batch.labels[0] == 6.0 and v[0] == 12.0  # of the caller, and still in the label's units


def test_stacked_losses_are_each_ones_own() -> None:
    torch.manual_seed(0)
    z, v = torch.randn(3, 8, 1), torch.randn(3, 8, 1)
    labels = torch.randn(8)
    labels[2] = NAN
    batch = Batch(torch.zeros(8, 1), labels)
    losses = [loss_of(alpha) for alpha in (0.0, 0.3, 1.0)]
    alone = [loss(Outputs(a), Outputs(b), batch) for loss, a, b in zip(losses, z, v, strict=True)]
    together = StackedLoss(losses)(Outputs(z), Outputs(v), batch)
    torch.testing.assert_close(together, torch.stack(alone))


def test_the_ensemble_is_the_mean_of_its_values() -> None:
    members = torch.tensor([[[1.0], [5.0]], [[-2.0], [2.0]]])  # (B, M, 1)
    assert mean_logits(members, 4.0, "value").tolist() == [[3.0], [0.0]]
    assert mean_logits(members, 4.0, "value", [3.0, 1.0]).tolist() == [[2.0], [-1.0]]


def test_the_store_keeps_values_as_they_are() -> None:
    layout = StoreLayout(1, 2, 1, values=True)
    values = torch.tensor([[[[123456.78], [-0.001]]]])  # (B, V, M, 1); float16 ends at 65504
    columns, bound = encode(values, layout)
    np.testing.assert_array_equal(columns["logits"], values.numpy())
    assert bound == 0.0 and StoreLayout(**layout.to_dict()) == layout
    assert "values" not in StoreLayout(1, 2, 3).to_dict()


# -------------------------------------------------------------------------------------------- networks


def test_a_network_answers_in_the_labels_units() -> None:
    torch.manual_seed(0)
    scaled = build(MLPConfig(hidden=[4]), INFO)
    torch.manual_seed(0)
    plain = build(MLPConfig(hidden=[4]), {**INFO, "target": None})
    x = torch.randn(6, FEATURES)
    torch.testing.assert_close(scaled(x).logits, plain(x).logits * 4 + 50)
    assert not any(name.startswith("output") for name in plain.state_dict())  # classes: the same files


@pytest.fixture
def regressor(tmp_path: Path) -> Path:
    """A BERT with one output, as STS-B's are."""
    return write_classifier(tmp_path / "regressor", count=1)


def text_info(**changes: Any) -> dict[str, Any]:
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    info = {**INFO, "kind": "text", "input_shape": [8], "vocabulary_size": 20}
    return {**info, "mean": [], "std": [], "preprocess": {"special": special}, **changes}


def started(source: Path, info: dict[str, Any]) -> tuple[Network, Any]:
    from ensemble_kd.config import TransformerConfig

    architecture, initial = resolve(TransformerConfig(source=str(source)))
    network = build(TransformerConfig.model_validate(architecture), info)
    assert initial is not None
    load_initial(network, initial, None, info)
    return network.eval(), initial


def test_a_regressor_of_transformers_means_what_it_says(regressor: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    network, _ = started(regressor, text_info(vocabulary_size=_pieces(regressor) + 1))
    tokens = torch.tensor([[2, 6, 7, 3], [2, 8, 9, 3]])
    theirs = AutoModelForSequenceClassification.from_pretrained(regressor).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(tokens + 1).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_new_head_starts_at_the_mean(tmp_path: Path) -> None:
    source = write_classifier(tmp_path / "classes", count=3)  # not of one output: its head is left behind
    network, _ = started(source, text_info(vocabulary_size=_pieces(source) + 1))
    with torch.no_grad():
        values = network(torch.tensor([[3, 7, 8, 4]])).logits
    assert abs(float(values) - TARGET["mean"]) < 2 * TARGET["std"]


def _pieces(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def test_given_regressors_have_one_output(regressor: Path, tmp_path: Path) -> None:
    info = text_info(vocabulary_size=_pieces(regressor) + 1)
    assert classifier_problems(str(regressor), info, "teachers.given.0") == []
    (line,) = classifier_problems(
        str(write_classifier(tmp_path / "classes", count=3)), info, "teachers.given.0"
    )
    assert "tells 3 classes apart" in line and "num_labels=1" in line
    assert class_problems("x", 1, ["LABEL_0"], {**info, "target": None, "class_names": ["a", "b"]}, "w")


@pytest.mark.parametrize("lists", [False, True])
def test_given_predictions_may_be_plain_numbers(lists: bool, tmp_path: Path) -> None:
    values: list[Any] = [1.5, -2.0, 3.0]
    table = pa.table({"id": [7, 8, 9], "score": [[v] for v in values] if lists else values})
    pq.write_table(table, tmp_path / "given.parquet")
    files = PredictionsConfig(train=["given.parquet"], column="score")
    found = align(str(tmp_path / "given.parquet"), files, np.array([9, 7]), 1)
    assert found.tolist() == [[3.0], [1.5]]


def test_callables_may_return_one_number_a_row() -> None:
    ones = ask(lambda inputs: np.ones(len(inputs)), [1, 2, 3], 1, "logits", "w", "rows 0 to 2")
    assert ones.shape == (3, 1)  # and all 1 are no probabilities here


# ---------------------------------------------------------------------------------------------- config


def test_what_is_for_classes_is_refused_all_at_once() -> None:
    smoothing = {"training": {"label_smoothing": 0.1}}
    raw = config_of(
        data={"class_names": ["a", "b"]},
        teachers=smoothing | {"values": "probabilities", "overrides": [smoothing]},
        specialists={},
        clusters={"num_clusters": 3},
        export={"calibrate": True, "precision": 0.9},
        soft_targets={"top_k": 2},
        student=smoothing | {"mean": "geometric", "class_bias": "fitted", "without_classes": [1]},
        sweep={"metric": "validation_accuracy", "space": {"temperature": "uniform(1, 2)"}},
    )
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    told = {line.split(":")[0] for line in caught.value.problems if "data.target is 'value'" in line}
    assert told == {
        "data.class_names",
        "teachers.training.label_smoothing",
        "teachers.overrides.0.training.label_smoothing",
        "teachers.values",
        "specialists",
        "clusters",
        "export.calibrate",
        "export.precision",
        "soft_targets.top_k",
        "student.training.label_smoothing",
        "student.mean",
        "student.class_bias",
        "student.without_classes",
        "sweep.metric",
        "sweep.space.temperature",
    }
    wanted = (
        "sweep.metric: 'validation_accuracy' is for classes, and data.target is 'value'; set validation_loss"
    )
    assert wanted in caught.value.problems
    assert "specialists: a block is for classes, and data.target is 'value'; leave it out" in (
        caught.value.problems
    )


def test_defaults_of_values() -> None:
    config = validate(config_of(sweep={}))
    assert config.student.objective == "mse" and config.mean == "value"
    assert config.sweep is not None
    assert config.sweep.metric == "validation_loss" and list(config.sweep.space) == ["alpha"]
    assert not cross_field_problems(config)
    of_classes = validate(config_of(data={"target": "class"}, sweep={}))
    assert of_classes.student.objective == "kl" and of_classes.mean == "arithmetic"


@pytest.mark.parametrize(
    "student, path",
    [
        ({"objective": "kl"}, "student.objective"),
        ({"objective": None, "terms": [{"name": "kl"}]}, "student.terms.0"),
        ({"phases": [{"name": "first", "objective": "kl"}]}, "student.phases.0.objective"),
    ],
)
def test_objectives_for_classes_are_refused(student: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pipeline.check_objective(validate(config_of(student=student)))
    assert f"{path}: 'kl' is for classes, and data.target is 'value'; use mse" in caught.value.problems


def test_an_objective_for_classes_in_the_search_space_is_refused() -> None:
    config = validate(config_of(sweep={"space": {"objective": ["mse", "kl"]}}))
    with pytest.raises(ConfigError, match="'kl' is for classes"):
        pipeline.check_objective(config)


# --------------------------------------------------------------------------------------------- metrics


def test_metrics_against_numpy_and_scipy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(100, 5, 60).astype(np.float32)
    values = (labels + rng.normal(0, 3, 60)).round(0).astype(np.float32)  # with ties
    found = regression_metrics(values, labels)
    y, v = labels.astype(np.float64), values.astype(np.float64)
    assert found["mse"] == pytest.approx(np.mean((v - y) ** 2))
    assert found["mae"] == pytest.approx(np.mean(np.abs(v - y)))
    assert found["r2"] == pytest.approx(1 - np.sum((v - y) ** 2) / np.sum((y - y.mean()) ** 2))
    assert found["pearson"] == pytest.approx(np.corrcoef(v, y)[0, 1])
    assert found["spearman"] == pytest.approx(stats.spearmanr(v, y).statistic)


def test_metrics_of_constants() -> None:
    labels = np.arange(4.0)
    found = regression_metrics(np.full(4, 1.5), labels)
    assert (found["r2"], found["pearson"], found["spearman"]) == (0.0, 0.0, 0.0)
    assert np.isnan(regression_metrics(labels, np.full(4, 2.0))["r2"])
    with pytest.raises(ValueError, match="leave unlabelled rows out"):
        regression_metrics(labels, np.array([1.0, NAN, 2.0, 3.0]))


def test_validation_loss_is_the_training_loss() -> None:
    outputs, labels = torch.tensor([[50.0], [58.0]]), torch.tensor([54.0, 58.0])
    found = validation_metrics(outputs, labels, TARGET)
    loss = DistillationLoss(hard=squared_error, unit=TARGET["std"])
    assert found["validation_loss"] == pytest.approx(
        float(loss(Outputs(outputs), None, Batch(outputs, labels)))
    )
    assert found["validation_pearson"] == pytest.approx(1.0) and "validation_accuracy" not in found
    entries = [{"validation_loss": 0.4}, {"validation_loss": 0.2}, {"validation_loss": 0.3}]
    assert min(entries, key=preference) == entries[1]


def test_scores_that_are_no_counts_have_no_continuity_correction() -> None:
    a, b = np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.6, 0.8])
    exact = paired_interval(a, b, counts=False)
    assert exact.low == pytest.approx(10) and exact.high == pytest.approx(10)
    assert paired_interval(a, b).low == pytest.approx(10 - 100 / 3)


# --------------------------------------------------------------------------------------------- members


def arrays(rows: int, seed: int, size: float = 1.0, offset: float = 0.0) -> Arrays:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(rows, FEATURES)).astype(np.float32)
    labels = inputs[:, 0] - 2 * inputs[:, 1] + 0.3 * generator.normal(size=rows)
    return Arrays(inputs, (size * labels + offset).astype(np.float32), np.arange(rows))


class Members:
    """Two teachers that know the value, one of them too large by 1 in the label's units."""

    num_views = 1

    def __init__(self, labels: np.ndarray) -> None:
        own = torch.from_numpy(labels)[:, None]
        self.values = torch.stack([own, own + 1], 1)  # (N, M, 1)

    def pick(self, rows: Tensor, views: Tensor) -> Tensor:
        return self.values[rows]


def problem(size: float = 1.0, offset: float = 0.0, unlabelled: int = 0) -> TrainingData:
    transfer = arrays(96, 0, size, offset)
    target = {"mean": float(transfer.labels.mean()), "std": float(transfer.labels.std())}
    members, labels = Members(transfer.labels), transfer.labels.copy()
    labels[:unlabelled] = NAN
    transfer = Arrays(transfer.inputs, labels, transfer.ids)
    held = arrays(40, 1, size, offset), arrays(40, 2, size, offset)
    return TrainingData({**INFO, "target": target}, *held, transfer, members)


def task(alpha: float = 0.0, **changes: Any) -> MemberTask:
    training = {"epochs": 8, "batch_size": 16, "learning_rate": 0.02, "precision": "float32"}
    fields: dict[str, Any] = {
        "name": "student-seed-0",
        "role": "distilled" if alpha else "hard",
        "seed": 3,
        "model": {"name": "mlp", "hidden": [16]},
        "training": TrainingConfig.model_validate(training).model_dump(mode="json"),
        "inputs": {"data": "01"},
        "rows": {"labelled": not alpha, "bootstrap": False, "fraction": 1.0},
        "examples_per_epoch": 96,
        "alpha": alpha,
        "objective": {"name": "mse"} if alpha else None,
        "mean": "value",
    }
    return MemberTask(**{**fields, **changes})


def trained(task: MemberTask, data: TrainingData, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    assert train_member(task, data, folder)
    manifest = finished(task, folder)
    assert manifest is not None
    return manifest.summary, load_logits(task.folder(folder), "test").numpy()[:, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_a_member_learns_whatever_the_labels_unit(alpha: float, tmp_path: Path) -> None:
    small, large = problem(unlabelled=20), problem(1e5, -3e6, unlabelled=20)
    summary, values = trained(task(alpha), small, tmp_path / "small")
    assert summary["validation_loss"] < 0.2 and summary["validation_pearson"] > 0.9
    assert summary["validation_loss"] == pytest.approx(summary["history"][-1]["validation_loss"])
    other, far = trained(task(alpha), large, tmp_path / "large")
    if alpha == 0:  # the teacher's error of 1 is one of another unit
        np.testing.assert_allclose((far + 3e6) / 1e5, values, atol=0.02)
    assert regression_metrics(far, large.test.labels)["pearson"] > 0.9


def test_rows_without_a_value_are_no_hard_examples(tmp_path: Path) -> None:
    """They differ in the labels of unlabelled rows alone, which nobody reads."""
    data = problem(unlabelled=30)
    assert data.transfer is not None
    summary, _ = trained(task(), data, tmp_path)
    assert np.isfinite(summary["history"][-1]["train_loss"])
    _, mixed = trained(task(0.5), data, tmp_path)
    assert np.isfinite(mixed).all()


def test_a_streamed_student_sees_the_same_rows(tmp_path: Path) -> None:
    data = problem(unlabelled=30)
    assert data.transfer is not None and data.teacher is not None
    inputs, labels, teacher = as_tensor(data.transfer.inputs), as_tensor(data.transfer.labels), data.teacher

    def stream(targets: str | None, seed: int, views: int) -> Callable[[int], Iterator[Block]]:
        def open_epoch(epoch: int) -> Iterator[Block]:
            for rows in torch.arange(96).split(24):
                members = Picked(teacher, rows, torch.zeros_like(rows)) if targets else None
                yield Block(rows, inputs[rows], labels[rows], members, torch.zeros_like(rows))

        return open_epoch

    streamed = replace(data, transfer=None, teacher=None, stream=stream)
    for alpha in (0.0, 0.8):  # of labelled rows alone, and of all
        summary, _ = trained(task(alpha), streamed, tmp_path)
        assert summary["validation_loss"] < 0.3


def test_stacked_students_are_those_trained_alone(tmp_path: Path) -> None:
    data = problem(unlabelled=20)
    tasks = [task(0.3), task(0.9), replace(task(0.9), seed=5)]
    assert len({fuse_key(one) for one in tasks}) == 1
    epochs = fused_epochs(tasks, data, tmp_path / "together")
    entries = list(epochs)
    assert all("validation_loss" in entry for entry in entries[-1] if entry is not None)
    for one in tasks:
        _, alone = trained(one, data, tmp_path / "alone")
        together = load_logits(one.folder(tmp_path / "together"), "test").numpy()[:, 0]
        np.testing.assert_allclose(together, alone, atol=1e-3)


# ---------------------------------------------------------------------------------------------- report


def report_inputs(seeds: int = 3) -> ReportInputs:
    rng = np.random.default_rng(0)
    labels = rng.normal(50, 4, 300).astype(np.float32)

    def system(name: str, role: str, noise: float, seed: int) -> System:
        values = labels + rng.normal(0, noise, len(labels))
        history = [{"epoch": 1, "train_loss": 1.0, "validation_loss": 0.9, "validation_pearson": 0.3}]
        return System(name, role, seed, values[:, None].astype(np.float32), 10, 40, None, 0.3, history)

    teachers = [system(f"teacher-{i:03d}", "teacher", 1.0, i) for i in range(3)]
    students = [system(f"hard-seed-{s}", "hard", 2.5, s) for s in range(seeds)]
    students += [system(f"distilled-seed-{s}", "distilled", 1.2, s) for s in range(seeds)]
    return ReportInputs(
        name="scores",
        created=1.75e9,
        info=INFO,
        labels=labels,
        teachers=teachers,
        ensemble_log_probs=np.mean([t.logits for t in teachers], axis=0),
        students=students,
        shipped="distilled-seed-0",
        temperature=4.0,
        alpha=0.9,
        objective="mse",
        mean="value",
    )


def test_the_gap_is_that_of_the_squared_error() -> None:
    report = build_report(report_inputs())
    mse = {role: report["summary"][role]["mse"]["mean"] for role in ("hard", "distilled", "ensemble")}
    gap = (mse["hard"] - mse["distilled"]) / (mse["hard"] - mse["ensemble"])
    assert report["gap_recovered"]["value"] == pytest.approx(gap)
    assert report["gap_recovered"]["standard_error"] > 0
    assert report["verdict"]["outcome"] == "helped"
    assert "more variance explained than the same student on hard labels" in report["verdict"]["text"]
    points = 100 * (report["summary"]["distilled"]["r2"]["mean"] - report["summary"]["hard"]["r2"]["mean"])
    assert report["difference"]["points"] == pytest.approx(points)
    assert report["target"] == TARGET and report["confused"] == []


def test_page_and_card_show_values() -> None:
    inputs = report_inputs()
    report = build_report(inputs)
    page = render(report, histories_of(inputs), plot_arrays(inputs))
    for shown in ("R²", "MAE", "Spearman", "Predicted against true values", "Validation, Pearson"):
        assert shown in page
    for absent in ("ECE", "Brier", "Most confused", "accuracy"):
        assert absent not in page
    card = model_card(report, INFO, {})
    assert "tabular-regression" in card and "type: pearson" in card and "MSE" in card
    assert "classes" not in card and "accuracy" not in card


# ---------------------------------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_a_run_with_a_sweep_on_numbers(tmp_path: Path) -> None:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    columns = {name: bunch.data[:, i] for i, name in enumerate(bunch.feature_names)}
    pq.write_table(pa.table({**columns, "progression": bunch.target}), tmp_path / "diabetes.parquet")
    training = {"epochs": 6, "batch_size": 16, "learning_rate": 0.02}
    raw = config_of(
        data={
            "path": str(tmp_path / "diabetes.parquet"),
            "columns": {"input": list(columns), "label": "progression"},
            "label_fraction": 0.7,
        },
        teachers={"num_members": 2, "model": {"name": "mlp", "hidden": [16]}, "training": training},
        student={"model": {"name": "mlp", "hidden": [8]}, "training": training},
        sweep={"trials": 2, "search": "random", "scheduler": "none"},
        compute={"executor": "local"},
        tracking={"enabled": False},
    )
    config: Config = validate(raw)
    lines: list[str] = []
    manifests = pipeline.run(
        config, tmp_path / "run", console=Console(line=lines.append, warning=lines.append)
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {s["role"] for s in report["systems"]} == {"teacher", "ensemble", "hard", "distilled"}
    assert report["summary"]["ensemble"]["pearson"]["mean"] > 0.4
    assert report["sweep"]["metric"] == "validation_loss" and "of loss" in report["sweep"]["verdict"]["text"]
    shipped = next(s for s in report["systems"] if s["name"] == report["shipped"])
    package = load_package(tmp_path / "run" / "model")
    (data,) = (tmp_path / "run" / "data").glob("*/info.json")
    test = load_split(data.parent, "test")
    values = predict(package.network, torch.from_numpy(test.inputs), torch.device("cpu"))[:, 0].numpy()
    assert regression_metrics(values, test.labels)["mse"] == pytest.approx(shipped["mse"], rel=1e-4)
    assert manifests["data"].summary["info"]["target"] == package.info["target"]
    out = tmp_path / "values.jsonl"
    assert predict_file(tmp_path / "run" / "model", str(tmp_path / "diabetes.parquet"), out, 100, print) == []
    told = np.array([json.loads(line)["value"] for line in out.read_text().splitlines()])
    assert len(told) == 442 and np.corrcoef(told, bunch.target)[0, 1] > 0.4
