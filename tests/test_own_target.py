"""A kind of target of somebody's own: one file's worth of code, and no line changed elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_several_values import config_of, table
from torch import Tensor

from ensemble_kd import pipeline
from ensemble_kd.config import validate
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.objectives.targets import HALVES, TorchHalf, register_half
from ensemble_kd.stages.context import Console
from ensemble_kd.targets import TARGETS, Target, register, target_of
from ensemble_kd.targets.values import Values


class Absolute(Values):
    """Values whose loss on labels is the absolute error, so that single wrong labels count less."""

    @classmethod
    def describe(cls, known: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
        return super().describe(known, columns) | {"kind": cls.name}


def absolute_error(values: Tensor, labels: Tensor, label_smoothing: float | Tensor = 0.0) -> Tensor:
    """|z - y|; (B, 1), (B,) -> (B,)."""
    return (values.float().squeeze(-1) - labels).masked_fill(torch.isnan(labels), 0.0).abs()


@pytest.fixture
def absolute() -> Iterator[type[Target]]:
    try:
        register_half("absolute", TorchHalf(absolute_error))
        yield register("absolute")(Absolute)
    finally:
        TARGETS.pop("absolute", None)
        HALVES.pop("absolute", None)


def test_its_description_leads_back_to_it(absolute: type[Target]) -> None:
    described = absolute.describe(np.array([1.0, 3.0], np.float32), ["y"])
    assert described == {"mean": 2.0, "std": 1.0, "kind": "absolute"}
    assert isinstance(target_of(described), Absolute) and not isinstance(target_of(None), Values)
    with pytest.raises(AssertionError, match="two targets are called 'absolute'"):
        register("absolute")(Values)


@pytest.mark.slow
def test_it_runs_from_the_configuration_to_the_report(absolute: type[Target], tmp_path: Path) -> None:
    rows = table()
    wrong = rows["price"].to_numpy().copy()
    wrong[::20] += 3e4  # a hundred deviations of the others
    noisy = rows.set_column(3, "price", [wrong])
    splits = {"train": noisy.slice(0, 160), "validation": rows.slice(160, 40), "test": rows.slice(200)}
    (tmp_path / "rows").mkdir()
    for name, each in splits.items():
        pq.write_table(each, tmp_path / "rows" / f"{name}.parquet")
    training = {"epochs": 10, "batch_size": 16, "learning_rate": 0.02}
    found = {}
    for target in ("value", "absolute"):
        config = validate(
            config_of(
                tmp_path / "rows",
                "price",
                data={"target": target},
                teachers={"num_members": 2, "model": {"name": "mlp", "hidden": [16]}, "training": training},
                student={"model": {"name": "mlp", "hidden": [8]}, "training": training, "objective": "mse"},
                compute={"executor": "local"},
                tracking={"enabled": False},
            )
        )
        console = Console(line=lambda text: None, warning=lambda text: None)
        pipeline.run(config, tmp_path / target, console=console)
        found[target] = json.loads((tmp_path / target / "report.json").read_text())
    mae = {target: report["summary"]["ensemble"]["mae"]["mean"] for target, report in found.items()}
    assert mae["absolute"] < mae["value"] / 2
    predictor = Predictor(tmp_path / "absolute" / "model")
    assert isinstance(predictor.target, Absolute)
    assert predictor.answer(rows.slice(200)).probabilities.shape == (40, 1)
