"""Labels of several columns: standardisation, losses, metrics, bad input, trees, and a run to export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ensemble_kd import pipeline
from ensemble_kd.config import MLPConfig, TrainingConfig, TreesConfig, validate
from ensemble_kd.data.labels import labelled
from ensemble_kd.data.prepared import prepare
from ensemble_kd.data.records import load_labels, load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.build import build
from ensemble_kd.models.outputs import Outputs
from ensemble_kd.objectives.base import Batch
from ensemble_kd.objectives.hard import squared_error
from ensemble_kd.objectives.logits import LogitMSE
from ensemble_kd.objectives.mixture import DistillationLoss, StackedLoss
from ensemble_kd.predict import predict_file
from ensemble_kd.serving.answers import Question, Responder
from ensemble_kd.stages.context import Console
from ensemble_kd.targets import TARGETS, target_of
from ensemble_kd.targets.metrics import regression_metrics
from ensemble_kd.targets.values import Values
from ensemble_kd.train.teacher_weights import fit_weights
from ensemble_kd.train.trees import Rows, fit_trees_
from ensemble_kd.train.validation import validation_metrics

NAN = float("nan")
TARGET: dict[str, Any] = {"mean": [50.0, -2.0], "std": [4.0, 0.5], "names": ["price", "age"]}
INFO: dict[str, Any] = {
    "kind": "numeric",
    "input_shape": [3],
    "num_classes": 2,
    "class_names": [],
    "mean": [0.0] * 3,
    "std": [1.0] * 3,
    "vocabulary_size": 0,
    "preprocess": {"columns": {"input": "x", "label": ["price", "age"], "id": None}},
    "counts": {"train": 96, "validation": 40, "test": 40, "transfer": 96, "labelled": 96},
    "target": TARGET,
}


def table(rows: int = 240, seed: int = 0) -> pa.Table:
    """Three numbers, and two labels of very different units that both depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    price = 1e4 + 300 * (x[:, 0] - 2 * x[:, 1]) + 30 * rng.normal(size=rows)
    age = 0.002 * (x[:, 1] * x[:, 2] + x[:, 0]) + 0.0002 * rng.normal(size=rows)
    return pa.table({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "price": price, "age": age})


def config_of(path: Path, label: Any = ("price", "age"), **blocks: Any) -> dict[str, Any]:
    label = list(label) if isinstance(label, tuple) else label
    data = {
        "kind": "numeric",
        "path": str(path),
        "target": "value",
        "columns": {"input": ["a", "b", "c"], "label": label},
    }
    return {"name": "two", "data": data | blocks.pop("data", {}), **blocks}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pq.write_table(table(), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


# ------------------------------------------------------------------------------------ losses, in closed form


def test_the_squared_error_is_the_mean_over_columns() -> None:
    z = torch.tensor([[1.0, 2.0], [0.0, 4.0], [5.0, 5.0]], requires_grad=True)
    y = torch.tensor([[3.0, 2.0], [1.0, 1.0], [NAN, NAN]])
    found = squared_error(z, y)
    assert found.tolist() == [2.0, 5.0, 0.0]  # (4 + 0) / 2, (1 + 9) / 2
    found.sum().backward()
    assert z.grad is not None and z.grad.tolist() == [[-2.0, 0.0], [-1.0, 3.0], [0.0, 0.0]]
    assert squared_error(torch.stack([z, z + 1]), y)[1].tolist() == [(1 + 1) / 2, (0 + 16) / 2, 0.0]


def test_mse_to_the_teacher_has_no_mean_taken_out() -> None:
    """Of two classes it has: these outputs differ by a constant, which is no difference of classes."""
    z, v = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 3.0]])
    inputs = torch.zeros(1, 1)
    assert LogitMSE()(Outputs(z), Outputs(v), Batch(inputs, torch.zeros(1, 2))).item() == 4.0
    assert LogitMSE()(Outputs(z), Outputs(v), Batch(inputs, torch.zeros(1, dtype=torch.int64))).item() == 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_each_column_counts_in_its_own_unit(alpha: float) -> None:
    z, v = torch.tensor([[10.0, 1.0]]), torch.tensor([[12.0, 0.0]])
    batch = Batch(torch.zeros(1, 1), torch.tensor([[6.0, 1.5]]))
    soft, hard = ((2 / 4) ** 2 + (1 / 0.5) ** 2) / 2, ((4 / 4) ** 2 + (0.5 / 0.5) ** 2) / 2
    loss = DistillationLoss(LogitMSE() if alpha else None, alpha, hard=squared_error, unit=(4.0, 0.5))
    found = loss(Outputs(z), Outputs(v), batch)
    assert found.item() == pytest.approx(alpha * soft + (1 - alpha) * hard)


def test_stacked_losses_are_each_ones_own() -> None:
    torch.manual_seed(0)
    z, v, labels = torch.randn(2, 8, 2), torch.randn(2, 8, 2), torch.randn(8, 2)
    own = torch.randn(2, 8, 2)
    losses = [
        DistillationLoss(LogitMSE() if alpha else None, alpha, hard=squared_error, unit=(4.0, 0.5))
        for alpha in (0.0, 0.6)
    ]
    for given in (labels, own):  # the same rows for both members, and other ones for each
        batch = Batch(torch.zeros(8, 1) if given is labels else torch.zeros(2, 8, 1), given)
        together = StackedLoss(losses)(Outputs(z), Outputs(v), batch)
        alone = [
            loss(
                Outputs(z[i]), Outputs(v[i]), Batch(torch.zeros(8, 1), given if given is labels else given[i])
            )
            for i, loss in enumerate(losses)
        ]
        torch.testing.assert_close(together, torch.stack(alone))


# ------------------------------------------------------------------------------- standardisation and metrics


def test_each_column_has_its_own_moments() -> None:
    known = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    described = Values.describe(known, ["a", "b"])
    assert described == {"mean": [2.0, 20.0], "std": [1.0, 10.0], "names": ["a", "b"]}
    target = target_of(described)
    assert target.unit == (1.0, 10.0) and target.outputs([]) == 2 and target.label_shape == (2,)
    one = target_of(Values.describe(known[:, 0], ["a"]))
    assert one == Values((2.0,), (1.0,)) and one.unit == 1.0 and one.label_shape == ()
    assert set(TARGETS) >= {"class", "value"}


def test_a_network_answers_in_the_labels_units() -> None:
    torch.manual_seed(0)
    scaled = build(MLPConfig(hidden=[4]), INFO)
    torch.manual_seed(0)
    plain = build(MLPConfig(hidden=[4]), {**INFO, "target": None})
    x = torch.randn(6, 3)
    expected = plain(x).logits * torch.tensor(TARGET["std"]) + torch.tensor(TARGET["mean"])
    torch.testing.assert_close(scaled(x).logits, expected)
    scaled.standardise_head_()
    assert scaled.head is not None and plain.head is not None
    torch.testing.assert_close(scaled.head.weight, plain.head.weight / torch.tensor([[4.0], [0.5]]))


def test_metrics_are_means_over_columns_whatever_their_units() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal([50, -2], [4, 0.5], (80, 2)).astype(np.float32)
    outputs = (labels + rng.normal(0, [1, 0.3], (80, 2))).astype(np.float32)
    target = Values((50.0, -2.0), (4.0, 0.5), ("price", "age"))
    measures = target.measures
    found = measures.metrics(outputs, labels)
    each = [regression_metrics(outputs[:, k], labels[:, k]) for k in range(2)]
    for key in ("r2", "pearson", "spearman"):
        assert found[key] == pytest.approx(np.mean([one[key] for one in each]))
    assert found["mse"] == pytest.approx(1 - found["r2"])
    assert [one["name"] for one in found["per_column"]] == ["price", "age"]
    assert found["per_column"][1]["mse"] == each[1]["mse"]  # in the column's own units
    assert measures.scores(outputs, labels).mean() == pytest.approx(found["r2"])
    factor = np.array([1000.0, 0.01], np.float32)
    other = Values((5e4, -0.02), (4e3, 0.005), ("price", "age"))
    again = other.measures.metrics(outputs * factor, labels * factor)
    assert [again[k] for k in ("r2", "mse", "mae")] == pytest.approx(
        [found[k] for k in ("r2", "mse", "mae")], rel=1e-4
    )
    np.testing.assert_allclose(
        other.losses(outputs * factor, labels * factor), target.losses(outputs, labels), rtol=1e-4
    )


def test_validation_loss_is_the_training_loss() -> None:
    outputs, labels = torch.tensor([[50.0, 0.0], [58.0, 1.0]]), torch.tensor([[54.0, 0.5], [58.0, 0.0]])
    found = validation_metrics(outputs, labels, TARGET)
    loss = DistillationLoss(hard=squared_error, unit=(4.0, 0.5))
    expected = float(loss(Outputs(outputs), None, Batch(outputs, labels)))
    assert found["validation_loss"] == pytest.approx(expected) == pytest.approx((1 / 2 + (1 + 4) / 2) / 2)


def test_forms_are_compared_in_deviations() -> None:
    target = Values((50.0, -2.0), (4.0, 0.5), ("price", "age"))
    expected = np.array([[50.0, -2.0], [54.0, -1.0]])
    outputs = expected + np.array([[2.0, 0.0], [0.0, 0.05]])
    assert target.difference(outputs, expected) == pytest.approx(0.5)
    assert target.agreement(outputs, expected) == pytest.approx(1 - (0.5**2 + 0.1**2) / 4)
    assert target.points_lost(expected, expected, expected) == 0.0
    assert target.points_lost(outputs, expected, None) == pytest.approx(100 * (0.5**2 + 0.1**2) / 4)


def test_weights_of_teachers_do_not_depend_on_units() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(200, 2))
    outputs = [labels + s * rng.normal(size=(200, 2)) for s in (0.5, 1.0)]
    found = fit_weights(outputs, labels, [1.0, 1.0])
    assert found[0] > 0.6
    factor = np.array([1e4, 1e-3])
    assert fit_weights([v * factor for v in outputs], labels * factor, [1.0, 1.0]) == pytest.approx(
        found, abs=2e-3
    )


def test_trees_of_each_column_are_those_fitted_alone() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(120, 3)).astype(np.float32))
    y = torch.stack([50 + 4 * x[:, 0], -2 + 0.5 * x[:, 1] * x[:, 2]], 1)
    settings = TreesConfig(rounds=10, leaves=4).model_dump()
    training = TrainingConfig()

    def fitted(labels: torch.Tensor, target: dict[str, Any], width: int) -> torch.Tensor:
        network = build(TreesConfig(rounds=10, leaves=4), {**INFO, "target": target, "num_classes": width})
        held = x[:0], labels[:0]
        assert fit_trees_(network, settings, training, 0, Rows(x, labels), held, target=target) == 10
        return network(x).logits

    together = fitted(y, TARGET, 2)
    for k in range(2):
        one = {"mean": TARGET["mean"][k], "std": TARGET["std"][k]}
        torch.testing.assert_close(together[:, k : k + 1], fitted(y[:, k], one, 1))


# --------------------------------------------------------------------------------------------- prepared data


def test_labels_are_kept_by_column(file: Path, tmp_path: Path) -> None:
    small = {"training": {"batch_size": 16}}
    config = validate(config_of(file, data={"label_fraction": 0.5}, teachers=small, student=small))
    info, _ = prepare(config, tmp_path / "data")
    assert info.num_classes == 2 and info.target is not None and info.target["names"] == ["price", "age"]
    split = load_split(tmp_path / "data", "transfer")
    assert split.labels.shape == (info.counts["transfer"], 2) and split.labels.dtype == np.float32
    known = split.labels[labelled(split.labels)]
    assert len(known) == info.counts["labelled"] < info.counts["transfer"]
    assert np.isnan(split.labels[~labelled(split.labels)]).all()
    np.testing.assert_allclose(info.target["mean"], known.mean(0, dtype=np.float64))
    np.testing.assert_allclose(info.target["std"], known.std(0, dtype=np.float64))
    test = load_labels(tmp_path / "data", "test")
    truth = np.stack([table()[name].to_numpy() for name in ("price", "age")], 1).astype(np.float32)
    assert {tuple(row) for row in test.tolist()} <= {tuple(row) for row in truth.tolist()}


@pytest.mark.parametrize(
    ("label", "changes", "told"),
    [
        (["price", "size"], {}, "data.columns.label: no column 'size'"),
        (["price", "price"], {}, "data.columns.label: 'price' is listed 2 times; list it once"),
        (["price", "a"], {}, "data.columns.input: 'a' is the label; a model would only copy it"),
        (["price", "word"], {"word": ["x"] * 240}, "label 'word', 'x': a value is a finite number"),
        (["price", "list"], {"list": [[1.0]] * 240}, "data.columns: 'list' of rows.parquet holds list"),
        (["price", "flat"], {"flat": [1.5] * 240}, "train holds only the value 1.5 in 'flat'"),
        (["price", "gap"], {"gap": [None, *range(239)]}, "label 'gap', null: a value is a finite number"),
    ],
)
def test_bad_columns(label: list[str], changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    rows = table()
    for name, values in changes.items():
        rows = rows.append_column(name, pa.array(values))
    pq.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(InputError) as caught:
        prepare(validate(config_of(tmp_path / "rows.parquet", label)), tmp_path / "data")
    assert any(told in line for line in caught.value.problems), caught.value.problems


def test_an_input_with_other_values_is_told(tmp_path: Path) -> None:
    rows = table()
    again = rows.slice(0, 1).set_column(4, "age", pa.array([0.5]))
    pq.write_table(pa.concat_tables([rows, again]), tmp_path / "rows.parquet")
    small = {"training": {"batch_size": 16}}
    told: list[str] = []
    prepare(
        validate(config_of(tmp_path / "rows.parquet", teachers=small, student=small)),
        tmp_path / "data",
        told.append,
    )
    (line,) = (line for line in told if "more than one label" in line)
    price, age = (rows[name][0].as_py() for name in ("price", "age"))
    assert f"is {price:g}, {age:g}" in line and f"is {price:g}, 0.5" in line


def test_several_columns_are_for_values(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(config_of(file, data={"target": "class"}))
    assert "data.columns.label: 2 columns, and with data.target='class' a label is one" in str(caught.value)
    with pytest.raises(ConfigError, match="an empty list; name the columns of the label"):
        validate(config_of(file, ()))
    with pytest.raises(ConfigError, match="'tokens' is no kind of target; use class or value"):
        validate(config_of(file, data={"target": "tokens"}))


# ---------------------------------------------------------------------------------------------- the whole way


@pytest.mark.slow
def test_a_run_from_the_table_to_the_exported_forms(file: Path, tmp_path: Path) -> None:
    training = {"epochs": 12, "batch_size": 16, "learning_rate": 0.02}
    trees = {"count": 1, "model": {"name": "trees", "rounds": 20}}
    config = validate(
        config_of(
            file,
            teachers={
                "num_members": 1,
                "kinds": [trees],
                "model": {"name": "mlp", "hidden": [16]},
                "training": training,
            },
            student={"model": {"name": "mlp", "hidden": [8]}, "training": training, "seeds": 2},
            export={"forms": ["onnx", "int8", "program", "mlflow"], "max_accuracy_loss": 5},
            compute={"executor": "local"},
            tracking={"enabled": False},
        )
    )
    run = tmp_path / "run"
    lines: list[str] = []
    pipeline.run(config, run, console=Console(line=lines.append, warning=lines.append))
    report = json.loads((run / "report.json").read_text())
    shipped = next(s for s in report["systems"] if s["name"] == report["shipped"])
    assert [one["name"] for one in shipped["per_column"]] == ["price", "age"]
    assert shipped["r2"] == pytest.approx(np.mean([one["r2"] for one in shipped["per_column"]]))
    assert shipped["per_column"][0]["r2"] > 0.8 and shipped["per_column"][1]["r2"] > 0.5
    assert shipped["mse"] == pytest.approx(1 - shipped["r2"])
    assert set(report["ships"]["forms"]) == {"onnx", "int8", "program", "mlflow"}
    assert report["ships"]["calibration"] == {"temperature": 1.0} and report["ships"]["calibrated"] is None
    exact = report["ships"]["forms"]["onnx"]
    assert exact["r2"] == pytest.approx(shipped["r2"], abs=1e-3) and exact["agreement"] > 0.999999
    page, card = (run / "report.html").read_text(), (run / "model" / "README.md").read_text()
    assert "R² by column" in page and "2 values" in page and "regressor of 2 values" in card

    out = tmp_path / "values.jsonl"
    assert predict_file(run / "model", str(file), out, 100, print) == []
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(told[0]) == ["id", "value_price", "value_age"] and len(told) == 240
    truth = table()
    for name in ("price", "age"):
        found = np.array([row[f"value_{name}"] for row in told])
        assert np.corrcoef(found, truth[name].to_numpy())[0, 1] > 0.8
    answers = {
        form: Predictor(run / "model", form).answer(truth).probabilities for form in ("pytorch", "onnx")
    }
    np.testing.assert_allclose(answers["pytorch"], answers["onnx"], rtol=1e-3)
    (reply,) = Responder(Predictor(run / "model"), False, 64)([Question(truth.slice(0, 2))])
    assert reply.body is not None
    first = json.loads(reply.body)["rows"][0]
    assert first == pytest.approx({f"value_{n}": told[0][f"value_{n}"] for n in ("price", "age")}, rel=1e-5)
    from ensemble_kd.api.model import load

    values = load(run / "model").predict(truth.to_pandas())
    assert values.shape == (240, 2)
    np.testing.assert_allclose(values[:, 1], [row["value_age"] for row in told], rtol=1e-4)
