"""`distill` with several columns of labels: numbers that one student predicts together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.ensemble import RandomForestRegressor
from torch import nn
from typer.testing import CliRunner

import ensemble_kd
from ensemble_kd.api import distill as distill_module
from ensemble_kd.api.arrays import label_columns
from ensemble_kd.cli import app
from ensemble_kd.cli_results import print_results
from ensemble_kd.config import Config
from ensemble_kd.errors import ConfigError
from ensemble_kd.guess.command import Asked, request_of

INPUTS = ["area", "rooms"]
LABELS = ["price", "rent"]
X = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
Y = np.stack([1e4 + 300 * (X[:, 0] - X[:, 1]), 0.002 * X[:, 0] * X[:, 1]], 1).astype(np.float64)
FRAME = pd.DataFrame(X, columns=INPUTS).assign(price=Y[:, 0], rent=Y[:, 1])
QUICK: dict[str, Any] = {
    "compute__executor": "local",
    "tracking__enabled": False,
    "progress": False,
    "student": {"seeds": 1, "alpha": 0.5, "training": {"epochs": 8, "min_steps": 1}},
}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that would have been run."""
    seen: list[Config] = []
    monkeypatch.setattr(distill_module, "execute", lambda config, *args, **kwargs: seen.append(config))
    return seen


def test_two_columns_of_a_frame_are_learned_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my run"
    forest = RandomForestRegressor(5, random_state=0).fit(FRAME[INPUTS][:100], FRAME[LABELS][:100])
    mine, test = FRAME[100:200], FRAME[200:]
    run = ensemble_kd.distill(
        mine, test=test, label=("price", "rent"), teachers=forest, output=folder, **QUICK
    )
    columns = run.config.data.columns
    assert columns.labels == LABELS and columns.input == INPUTS and run.config.data.target == "value"
    model = ensemble_kd.load(folder)
    assert model.predict(test).shape == (100, 2) and model.predict(test)[:, 0].mean() > 5000
    assert model.score(test, test[LABELS]) == pytest.approx(
        run.leaderboard.set_index("name").r2["distilled-seed-0"], abs=1e-4
    )
    # On the command line the run folder stands for its model, and its blank is quoted.
    test.to_csv(tmp_path / "new rows.csv")
    done = CliRunner().invoke(app, ["predict", str(folder), str(tmp_path / "new rows.csv")])
    assert done.exit_code == 0 and '"value_rent"' in done.stdout.splitlines()[0]
    print_results(folder, None)
    assert f"(ensemble-kd predict '{folder}/model' INPUT)" in capsys.readouterr().out.replace("\n", "")


def test_arrays_of_several_values_say_the_same(planned: list[Config], tmp_path: Path) -> None:
    """A network is asked for two numbers a row; the answers stand in the labels' order."""
    network = nn.Linear(2, 2)
    for data in ((X, Y), (X, FRAME[LABELS]), (torch.tensor(X), torch.tensor(Y))):
        ensemble_kd.distill(data, teachers=network, output=tmp_path, **QUICK)
    labels = [config.data.columns.labels for config in planned]
    assert labels == [["label_0", "label_1"], LABELS, ["label_0", "label_1"]]
    assert planned[0].data == planned[2].data and planned[0].data.target == "value"
    for config in planned:
        assert config.teachers.predictions is not None
        found = np.stack(pq.read_table(config.teachers.predictions.train[0])["logits"].to_numpy())
        with torch.no_grad():
            assert np.allclose(found, network(torch.tensor(X)).numpy())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"label": ["price", "rnt"]}, "no column 'rnt' in train; .* did you mean 'rent'"),
    ({"label": LABELS, "input": ["area", "rent"]}, "input: 'rent' is a label; a model would only copy it"),
    ({"label": LABELS, "teachers": nn.Linear(2, 1)}, r"\(300, 1\), expected \(300, 2\).*'price', 'rent'"),
]


@pytest.mark.parametrize(("wrong", "says"), BAD)
def test_mistakes_are_told(wrong: dict[str, Any], says: str, planned: list[Config], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        ensemble_kd.distill(FRAME, output=tmp_path, **{"teachers": nn.Linear(2, 2), **wrong}, **QUICK)
    assert not planned


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_one_hot_rows_are_no_values(kind: type) -> None:
    with pytest.raises(ValueError, match=r"of one-hot rows give y.argmax\(1\)"):
        label_columns(np.eye(3)[[0, 1, 2, 0]].astype(kind), 4, "train")


def test_a_list_and_one_label_are_not_both_taken() -> None:
    wanted = {"data": {"columns": {"label": LABELS}}}
    request = request_of(Asked("x.csv"), wanted)
    assert (request.label, request.further, request.target) == ("price", ("rent",), "value")
    with pytest.raises(ConfigError, match="leave one of them out"):
        request_of(Asked("x.csv", "price"), wanted)
