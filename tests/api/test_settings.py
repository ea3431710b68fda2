"""Settings from Python: files, dicts, keyword arguments; messages in Python's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import ensemble_kd
from ensemble_kd.api import distill as distill_module
from ensemble_kd.api.problems import in_python
from ensemble_kd.api.settings import assignments, configuration
from ensemble_kd.api.students import student_settings
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.mlp import MLP

DIGITS: dict[str, Any] = {"name": "mine", "data": {"source": "digits"}, "tracking": {"enabled": False}}


def test_three_ways_to_say_the_same() -> None:
    ways: list[dict[str, Any]] = [
        {"student__temperature": 2.5, "student__seeds": np.int64(2)},
        {"student": {"temperature": 2.5, "seeds": 2}},
        {"student.temperature": 2.5, "student.seeds": 2},
    ]
    found = [configuration("digits", way) for way in ways]
    assert found[0] == found[1] == found[2] and found[0].student.temperature == 2.5
    assert found[0].student.alpha == 0.9  # what is not said stays


def test_files_dicts_and_configurations(tmp_path: Path) -> None:
    made = configuration(DIGITS, {"seed": 3})
    assert made.seed == 3 and configuration(made, {"seed": 4}).seed == 4 and DIGITS == {**DIGITS}
    file = tmp_path / "my.yaml"
    file.write_text("name: mine\ndata: {source: digits}\ntracking: {enabled: false}\n")
    assert configuration(file, {"seed": 3}) == configuration(str(file), {"seed": 3}) == made


def test_a_model_is_replaced_and_a_block_is_not() -> None:
    said = assignments({"student": {"model": {"name": "cnn", "channels": [8]}, "alpha": 0.5}})
    assert said == ['student.model={"name": "cnn", "channels": [8]}', "student.alpha=0.5"]
    assert assignments({"specialists": {}}) == ["specialists={}"]


@pytest.mark.parametrize(
    ("config", "overrides", "says"),
    [
        ("digitz", {}, "did you mean 'digits'?"),
        ("digits", {"student__temprature": 2}, "did you mean 'temperature'?"),
        ("digits", {"student__alpha": object()}, "student.alpha: object is no setting"),
        (3, {}, "config: int; give a YAML file"),
        ({"name": "x", "data": {"kind": "text"}}, {}, "data.path: missing"),
        ({"name": "x", "data": {"source": "digits"}, "teachers": {"num_members": 0}}, {}, "num_members"),
    ],
)
def test_mistakes_in_settings_are_value_errors(config: Any, overrides: dict[str, Any], says: str) -> None:
    for call in (ensemble_kd.run, ensemble_kd.check):
        with pytest.raises(ValueError, match="(?s).*") as caught:
            call(config, **overrides)
        assert says in str(caught.value) and isinstance(caught.value, ConfigError | InputError)
        assert "--" not in str(caught.value)


def test_a_stage_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage: 'studnt' is none"):
        ensemble_kd.run(DIGITS, output=tmp_path, until="studnt")


def test_masked_secrets_are_not_taken_for_the_secrets(tmp_path: Path) -> None:
    raw = configuration(DIGITS, {}).model_dump(mode="json")
    raw["tracking"]["uri"] = "postgresql://user:***@host/db"
    (tmp_path / "resolved.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="hold secrets, which are not kept; give them again"):
        ensemble_kd.Run(tmp_path).resume()
    raw["tracking"]["uri"] = None
    (tmp_path / "resolved.json").write_text(json.dumps(raw))
    assert ensemble_kd.Run(tmp_path).config == configuration(DIGITS, {})


def test_check_says_what_a_run_would_do(tmp_path: Path) -> None:
    found = ensemble_kd.check(DIGITS, output=tmp_path / "run", student__seeds=1)
    assert list(found.index)[:3] == ["data", "teachers", "gap"] and found.state["data"].startswith("to do")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--data: no rows in x.csv", "train: no rows in x.csv"),
        ("say which is to be predicted: --label 'my col'", "say which is to be predicted: label='my col'"),
        ("as --label says", "as label says"),
        ("say so: --set data.target=value", "say so: data__target='value'"),
        (
            "say what it is: --set data.image.shape=[HEIGHT,WIDTH,CHANNELS]",
            "say what it is: data__image__shape=[HEIGHT,WIDTH,CHANNELS]",
        ),
        ("--run-dir: x cannot be written", "output: x cannot be written"),
        ("if you trust it: --trust my_net", "if you trust it: trust=['my_net']"),
        ("Give --budget 12m, or fewer rows", "Give budget='12m', or fewer rows"),
        ("of new ones; set data.duplicates=drop, and", "of new ones; set data__duplicates='drop', and"),
        (
            "teachers.source=train with a larger student.alpha",
            "teachers__source='train' with a larger student.alpha",
        ),
        ("teachers.training.epochs=5 is less", "teachers__training__epochs=5 is less"),
        ("s3://my.data.path=x stays", "s3://my.data.path=x stays"),
        (
            "teachers.predictions: /my runs/input/answers/4d02.parquet: teacher-001 is right on 5%",
            "teachers[1] is right on 5%",
        ),
    ],
)
def test_messages_speak_python(line: str, said: str) -> None:
    assert in_python(line) == said


def test_students() -> None:
    assert student_settings("mlp") == {"model": {"name": "mlp"}}
    assert student_settings({"name": "mlp", "hidden": [8]}) == {"model": {"name": "mlp", "hidden": [8]}}
    assert student_settings({"temperature": 2}) == {"temperature": 2}
    assert student_settings("my_nets:Net") == {"model": {"name": "custom", "callable": "my_nets:Net"}}
    assert student_settings(MLP)["model"]["callable"] == "ensemble_kd.models.mlp:MLP"

    with pytest.raises(ValueError, match="made already"):
        student_settings(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="'perceptron' is no network"):
        student_settings("perceptron")


FRAME = pd.DataFrame(
    {
        "one": [i % 9 / 2 for i in range(40)],
        "two": [i * 7 % 11 / 3 for i in range(40)],
        "kind": ["a", "b"] * 20,
    }
)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"label": "kin"}, "no column 'kin' in train; it has 'one', 'two', 'kind'; did you mean 'kind'?"),
        ({"test": FRAME.drop(columns="one")}, "test: no column 'one'; it has 'two', 'kind'; give it the"),
        (
            {"test": FRAME.assign(kind=["a", "b", "c", "d"] * 10)},
            "test: label 'c' in row 2 is no class of train (20 of 40 rows have such labels); add rows of it",
        ),
        ({"input": "thre"}, "input: no column 'thre'"),
        ({"test": FRAME.drop(columns="kind")}, "no column 'kind' in test"),
        ({"test": FRAME.assign(kind=None)}, "test: 40 of 40 rows have no label in 'kind'"),
        ({"teachers": [lambda rows: rows]}, "nothing says which class each of its 2 outputs is"),
        ({"output": "s3://bucket/run"}, "output: s3://bucket/run is in a store"),
        ({"budget": "soon"}, "budget: 'soon' is no time"),
        ({"train": "/nowhere.csv"}, "train: no such file or folder"),
        ({"train": {"train": FRAME, "test": FRAME}, "test": FRAME}, "test: given, and train has a split"),
        ({"train": 5}, "train: int cannot be read as rows"),
        ({"student": "perceptron"}, "'perceptron' is no network"),
        ({"lable": "kind"}, "lable: no argument of distill, and no block of settings; did you mean 'label'?"),
        ({"unlabelled": np.zeros((3, 2))}, "unlabelled: an array, and train is a table"),
        ({"train": FRAME["one"]}, "Series without labels; give the pair"),
    ],
)
def test_mistakes_of_a_call_are_value_errors(
    arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill_module, "execute", lambda *args, **kwargs: pytest.fail("it would have run"))
    given = {"train": FRAME, "label": "kind", "output": tmp_path / "run", "progress": False, **arguments}
    with pytest.raises(ValueError, match="(?s).*") as caught:
        ensemble_kd.distill(given.pop("train"), **given)
    assert says in str(caught.value), caught.value
