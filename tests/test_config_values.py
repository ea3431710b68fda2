"""Single settings at the edges of what can be written: the field at fault is named, with what to do."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble_kd.config import load_config, recipe_paths, validate
from ensemble_kd.config_yaml import read
from ensemble_kd.errors import ConfigError

EDGES: list[Any] = [
    *(0, -1, 1e308, -1e308, 1e-320, math.inf, math.nan, True, 2**62, 10**400),
    *("", " ", "no", "x" * 5000, "~nosuchuser/x", "a\0b", "é\n☃", "a" * 300 + "/b"),
    *([], {}, None, [[]], [""], [1e308], {"a": 1}),
]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", list(overrides))
    return caught.value.problems


def whole(name: str, folder: Path) -> dict[str, Any]:
    """A recipe with every setting written out."""
    raw = read(recipe_paths()[name])
    if raw["data"].get("source") != "digits":
        raw["data"]["path"] = str(folder)
    for phase in raw.get("student", {}).get("phases", []):
        if phase.get("corpus") is not None:
            phase["corpus"]["path"] = str(folder)
    return validate(raw).model_dump(mode="json")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "digits",
        *(pytest.param(name, marks=pytest.mark.long) for name in sorted(recipe_paths()) if name != "digits"),
    ],
)
def test_every_setting_at_every_edge_is_valid_or_named(name: str, tmp_path: Path) -> None:
    """A message starts with the changed field, a block around it or a field inside it; or it names the field
    beside another that it no longer fits."""
    base = whole(name, tmp_path)
    edges = EDGES if name != "digits" else EDGES[::3]
    for place in places(base):
        path = ".".join(map(str, place))
        for edge in edges:
            raw = copy.deepcopy(base)
            here: Any = raw
            for key in place[:-1]:
                here = here[key]
            here[place[-1]] = edge
            try:
                validate(raw)
            except ConfigError as error:
                fields = [line.split(":", 1)[0] for line in error.problems]
                started = any(path.startswith(f) or f.startswith(path) for f in fields)
                assert started or path in str(error), (path, edge, fields)
                assert all("\n" not in line and len(line) <= 1100 for line in error.problems), (path, edge)


def number_fields(model: Any, path: str = "") -> list[str]:
    """Every field that holds a float."""
    found: list[str] = []
    for name in type(model).model_fields:
        value, here = getattr(model, name), f"{path}.{name}" if path else name
        if hasattr(type(value), "model_fields"):
            found += number_fields(value, here)
        elif isinstance(value, float):
            found.append(here)
    return found


@pytest.mark.parametrize("field", number_fields(load_config("digits")))
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e5000"])
def test_no_number_is_infinite(field: str, value: str) -> None:
    (line, *_) = problems(f"{field}={value}")
    assert line.startswith(f"{field}: ") and "finite" in line


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "student.training.weight_decay=.inf",
            "student.training.weight_decay: input should be a finite number",
        ),
        (
            "student.training.learning_rate=1e308",
            r"student.training.learning_rate: 1e\+308 is infinite in the arithmetic",
        ),
        (
            "student.training.learning_rate=1e-320",
            "student.training.learning_rate: .* is 0 in the arithmetic",
        ),
        (
            "student.training.max_norm=1e38",
            r"student.training.max_norm: 1e\+38 is infinite in the arithmetic",
        ),
        ("student.weights=[1, .inf, 1, 1, 1]", "student.weights.1: input should be a finite number"),
        ("specialists.weight=.nan", "specialists.weight: .* a finite number"),
        ("compute.gpus_per_worker=-1", "compute.gpus_per_worker: input should be greater than or equal to 0"),
        (
            "compute.gpus_per_worker=-0.5",
            "compute.gpus_per_worker: input should be greater than or equal to 0",
        ),
        ("compute.gpus_per_worker=1.5", "compute.gpus_per_worker: 1.5, but a worker has a share of one GPU"),
        ("compute.cpus_per_worker=1e300", "compute.cpus_per_worker: input should be less than or equal to"),
        ("teachers.training.epochs=true", "teachers.training.epochs: input should be a number, got true"),
        ("student.alpha=true", "student.alpha: input should be a number, got true"),
        ("data.image.shape=[8, 8, true]", "data.image.shape.2: input should be a number, got true"),
        ("student.training.batch_size=9" + "0" * 60, "student.training.batch_size: a number of 61 digits"),
        ("name=2024", "name: input should be a valid string, got 2024; put it in quotes"),
        ("name='a/b'", "name: expected letters, digits, .* got 'a/b'"),
        ("tracking.experiment=''", "tracking.experiment: empty; give a value"),
        ("data.columns.label=' '", "data.columns.label: empty; give a value"),
        ('data.path=""', "data.path: empty; give a value"),
        ("data.unlabelled=~nosuchuser/*.csv", "data.unlabelled: .* there is no user 'nosuchuser' here"),
        ('data.unlabelled="a\\0b"', "data.unlabelled: has a NUL character"),
        ("compute.scratch=" + "x" * 5000, "compute.scratch: a text of 5,000 characters, at most 4,096"),
        ("clusters.method=kmean", "clusters.method: .* got 'kmean'; did you mean 'kmeans'"),
        ("student.model={hidden: [3]}", "student.model: name: missing; say which one"),
        ("student.model.name=mpl", "student.model: unknown name; known here: mlp, .* did you mean 'mlp'"),
        ("student.training=3", "student.training: expected a block of settings, got 3"),
        ("teachers.overrides=[3]", "teachers.overrides.0: expected a block of settings, got 3"),
        ("data.image.shape=8", "data.image.shape: expected a list, got 8"),
        ("sweep.space.temperature=[4, .inf]", "sweep.space.temperature: .*finite, got inf"),
    ],
)
def test_the_field_at_fault_is_named(override: str, line: str) -> None:
    found = problems("sweep={}", override) if override.startswith("sweep") else problems(override)
    assert any(re.match(line, each) for each in found), found


def test_a_path_is_complained_of_once() -> None:
    found = problems("data={source: files, path: ~nosuchuser/x, kind: image}")
    assert [each for each in found if each.startswith("data.path")] == [
        "data.path: no such file or folder: ~nosuchuser/x; there is no user 'nosuchuser' here, write the "
        "path out"
    ]


def test_a_setting_that_is_wrong_is_not_called_missing_too() -> None:
    assert [each for each in problems("name=[1]") if each.startswith("name")] == [
        "name: input should be a valid string, got [1]"
    ]


def test_values_that_terminals_obey_are_escaped() -> None:
    (line,) = problems('student.objective={"a\\e[31m\\u0007": 1}', 'student.temperature="\\e[2J"')
    assert "\x1b" not in line and "\x07" not in line and r"\x1b" in line


def test_homes_are_expanded_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndata: {source: files, path: ~/d, kind: numeric}\n")
    (tmp_path / "d").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("~/x.yaml").data.path == "~/d"
