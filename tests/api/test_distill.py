"""From rows and teachers in this process to a student, through the whole pipeline."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from torch import nn

import ensemble_kd
from ensemble_kd.api import distill as distill_module
from ensemble_kd.config import Config

DOCS = Path(__file__).parents[2] / "docs" / "python.md"
X, Y = load_digits(return_X_y=True)
NAMES = np.array(["zero one two three four five six seven eight nine".split()[label] for label in Y])
QUICK: dict[str, Any] = {
    "student": {"training": {"epochs": 3}, "seeds": 1, "temperature": 2, "alpha": 0.9, "pseudo": 0},
    "tracking__enabled": False,
    "progress": False,
}


def script() -> str:
    found = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_scripts_length() -> None:
    assert len([line for line in script().splitlines() if line.strip()]) <= 12


@pytest.mark.slow
@pytest.mark.long
def test_the_script_of_the_docs_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", script()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.strip().splitlines()[-1]) > 0.85


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that would have been run."""
    seen: list[Config] = []
    monkeypatch.setattr(distill_module, "execute", lambda config, *args, **kwargs: seen.append(config))
    return seen


def test_predictions_are_numbered_as_the_run_numbers_rows(planned: list[Config], tmp_path: Path) -> None:
    """Train's rows and those without labels behind them in one file; other splits in theirs."""
    import pyarrow.parquet as pq

    ensemble_kd.distill(
        (X[:300], Y[:300]),
        (X[300:500], Y[300:500]),
        unlabelled=X[500:600],
        teachers=lambda rows: rows[:, :10] + np.arange(10),
        output=tmp_path,
        **QUICK,
    )
    (config,) = planned
    files = config.teachers.predictions
    assert files is not None and files.test == files.train != files.validation
    table = pq.read_table(files.train[0])
    assert table["id"].to_pylist() == list(range(400))
    rows = np.concatenate([X[:300], X[500:600]])
    assert np.allclose(np.stack(table["logits"].to_numpy()), rows[:, :10] + np.arange(10))
    assert pq.read_table(files.validation[0]).num_rows == 200


def test_the_same_call_makes_the_same_configuration(planned: list[Config], tmp_path: Path) -> None:
    network = nn.Linear(64, 10)
    for _ in range(2):
        ensemble_kd.distill((X, Y), teachers=[network], output=tmp_path, **QUICK)
    assert planned[0] == planned[1]
    with torch.no_grad():
        network.bias.add_(torch.arange(10.0))
    ensemble_kd.distill((X, Y), teachers=[network], output=tmp_path, **QUICK)
    assert planned[2].teachers != planned[0].teachers and planned[2].data == planned[0].data


def test_rows_held_out_of_train_are_warned_of(
    planned: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble_kd.distill(
        (X, Y), test=(X, Y), teachers=[nn.Linear(64, 10)], output=tmp_path, **{**QUICK, "progress": True}
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: validation rows are held out of train" in said and "(validation=...)" in said


def test_images_texts_paths_and_trained_teachers(planned: list[Config], tmp_path: Path) -> None:
    pictures = X.reshape(-1, 8, 8)
    ensemble_kd.distill((pictures, Y), teachers=["cnn", "mlp"], output=tmp_path / "a", **QUICK)
    texts = [f"the number {name} of {i}" for i, name in enumerate(NAMES)]
    ensemble_kd.distill((texts, NAMES), teachers=2, source="none", output=tmp_path / "b", **QUICK)
    path = tmp_path / "rows.csv"
    pd.DataFrame(X[:, 18:22], columns=list("pqrs")).assign(label=Y % 3).to_csv(path, index=False)
    forest = RandomForestClassifier(5, random_state=0).fit(X[:, 18:22], Y % 3)
    ensemble_kd.distill(path, teachers=forest, output=tmp_path / "c", **QUICK)
    ensemble_kd.distill(str(path), output=tmp_path / "d", **QUICK)
    images, words, given, trained = planned
    assert images.data.kind == "image" and images.data.image.shape == (8, 8, 1)
    assert [override.model.name for override in images.teachers.overrides if override.model] == ["cnn", "mlp"]
    assert words.data.kind == "text" and words.teachers.num_members == 2
    assert given.teachers.source == "predictions" and given.data.kind == "numeric"
    assert trained.teachers.source == "train" and trained.data.path == str(path)


@pytest.mark.slow
def test_a_frame_a_forest_and_a_network(tmp_path: Path) -> None:
    features = [f"pixel {i}" for i in range(64)]
    frame = pd.DataFrame(X, columns=features).assign(digit=NAMES)
    theirs, mine, test = frame[:900], frame[900:1400], frame[1400:]
    forest = RandomForestClassifier(30, random_state=0).fit(theirs[features], theirs.digit)
    weights = {
        name: frame[features][frame.digit == name].mean().to_numpy() / 8 for name in sorted(set(NAMES))
    }
    network = nn.Linear(64, 10)
    with torch.no_grad():  # nearest mean: w.x - |w|^2 * 4, which tells digits apart well enough
        means = torch.tensor(np.stack(list(weights.values())), dtype=torch.float32)
        network.weight.copy_(means / 8)
        network.bias.copy_(-(means**2).sum(1) / 2)
    arguments: dict[str, Any] = {
        "test": test,
        "unlabelled": theirs[features],
        "label": "digit",
        "input": features,
        "teachers": [forest, network],
        "classes": {1: sorted(set(NAMES))},
        "output": tmp_path / "run",
        "compute__executor": "local",  # over Ray: the next test
        **QUICK,
    }
    run = ensemble_kd.distill(mine, **arguments)
    board = run.leaderboard
    assert {"teacher", "ensemble", "hard", "distilled"} <= set(board.role) and board.shipped.sum() == 1
    ensemble = board[board.role == "ensemble"].accuracy.item()
    truth = forest.score(test[features], test.digit)
    assert abs(board[board.name == "teacher-000"].accuracy.item() - truth) < 1e-9 and ensemble > 0.8
    assert run.report["counts"]["transfer"] > 1200 and run.teachers == {}
    assert "Calibration" in run._repr_html_() and all("<svg" in f.svg for f in run.figures.values())
    assert next(iter(run.figures.values())).save(tmp_path / "plot.svg").stat().st_size > 1000
    model = ensemble_kd.load(tmp_path / "run")
    score = board[board.shipped].accuracy.item()
    assert abs(model.score(test, test.digit) - score) < 1e-9 and list(model.classes_) == sorted(set(NAMES))
    assert model.to_torch()(torch.zeros(2, 64)).logits.shape == (2, 10)

    again = ensemble_kd.distill(mine, **arguments)
    assert again.report == run.report  # kept: it has the time of its making in it
    other = ensemble_kd.Run(tmp_path / "run").resume(progress=False, student__temperature=4)
    assert other.report["temperature"] == 4 and "teachers" in repr(other.report["lineage"])


@pytest.mark.slow
def test_a_run_from_a_dict_and_its_teachers(ray_session: None, tmp_path: Path) -> None:
    small = {"training": {"epochs": 1}, "model": {"name": "mlp", "hidden": [8]}}
    config = {
        "name": "small",
        "data": {"source": "digits"},
        "teachers": {**small, "num_members": 2},
        "student": {**small, "seeds": 1},
        "tracking": {"enabled": False},
    }
    run = ensemble_kd.run(config, output=tmp_path / "run", until="data", progress=False)
    with pytest.raises(ValueError, match="the run has not ended, go on with resume"):
        _ = run.report
    assert "not finished" in repr(run) and "not finished" in run._repr_html_()
    run = run.resume(progress=False)
    assert sorted(run.teachers) == ["teacher-000", "teacher-001"]
    pixels = torch.from_numpy(X.reshape(-1, 8, 8, 1).astype(np.uint8))
    assert run.teachers["teacher-000"](pixels).logits.shape == (len(X), 10)
    assert ensemble_kd.check(config, output=run.folder).state["report"].startswith("done")
    onnx = pytest.importorskip("onnxruntime")
    path = run.model.to_onnx(tmp_path / "student.onnx")
    session = onnx.InferenceSession(str(path))
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()[:5]})
    assert np.allclose(found, run.student(pixels[:5]).logits.detach().numpy(), atol=1e-3)
