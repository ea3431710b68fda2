"""Search spaces: what is written is what is tried, and every mistake is named with its path and a remedy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ensemble_kd.config import StudentConfig
from ensemble_kd.errors import ConfigError
from ensemble_kd.space import Choice, Dimension, Kind, Range, grid, parse, parse_space, read_space, to_text
from ensemble_kd.space_problems import apply, problems

STUDENT = StudentConfig()

# ------------------------------------------------------------------------------------ text to dimension


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("loguniform(0.3, 20)", Range("loguniform", 0.3, 20)),
        (" uniform( 0,1 ) ", Range("uniform", 0, 1)),
        ("uniform(-1e-3, 1e-3)", Range("uniform", -1e-3, 1e-3)),
        ("integers(8, 64)", Range("integers", 8, 64)),
        ("integers(1e1, 64.0)", Range("integers", 10, 64)),
        ("logintegers(8, 512)", Range("logintegers", 8, 512)),
        ("choice(ensemble, specialists, both)", Choice(("ensemble", "specialists", "both"))),
        ("choice([32, 32], [64])", Choice(([32, 32], [64]))),
        ("choice(1e-3, 1.0e-2, 5)", Choice((1e-3, 1e-2, 5))),
        ("choice(kl, {name: mse, scale: 1e-3})", Choice(("kl", {"name": "mse", "scale": 1e-3}))),
        ("choice(null, 3)", Choice((None, 3))),
        ("choice(true, 1)", Choice((True, 1))),
        (["1e-3", "7", "nan", [32]], Choice((1e-3, 7, "nan", [32]))),
    ],
)
def test_texts_and_lists_are_read(text: str | list[Any], dimension: Dimension) -> None:
    assert parse(text) == dimension
    assert parse(to_text(dimension)) == dimension


@pytest.mark.parametrize("text", ["loguniform(0.3, 20)", "uniform(0, 1.5)", "choice(ensemble, [8, 8], null)"])
def test_dimensions_are_written_as_they_were_read(text: str) -> None:
    assert to_text(parse(text)) == text


def test_integer_ends_are_integers() -> None:
    read = parse("integers(1e1, 64.0)")
    assert isinstance(read, Range) and type(read.low) is int and type(read.high) is int


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("log_uniform(1, 2)", "unknown function 'log_uniform'; did you mean 'loguniform'?"),
        ("Integer(1, 2)", "unknown function 'Integer'; did you mean 'integers'?"),
        ("gauss(1, 2)", "unknown function 'gauss'; write uniform(low, high), loguniform(low, high)"),
        ("0.3..20", "neither a range nor a choice, got '0.3..20'; write uniform(low, high)"),
        (4, "neither a range nor a choice, got 4; write"),
        ("uniform()", "uniform takes two numbers, got 0 arguments in uniform(); write uniform(low, high)"),
        ("uniform(1)", "uniform takes two numbers, got 1 argument in uniform(1)"),
        ("integers(1, 9, 2)", "integers takes two numbers, got 3 arguments in integers(1, 9, 2)"),
        ("uniform(low, 3)", "not a number: 'low' in uniform(low, 3); write uniform(low, high)"),
        ("uniform(, 3)", "not a number: ''"),
        ("uniform(0, inf)", "not finite: inf in uniform(0, inf)"),
        ("uniform(nan, 1)", "not finite: nan"),
        ("integers(0, 1e999)", "not finite: 1e999"),
        (
            "loguniform(20, 0.3)",
            "inverted: 20 is above 0.3 in loguniform(20, 0.3); write loguniform(0.3, 20)",
        ),
        (
            "uniform(1, 1)",
            "empty range uniform(1, 1); write the value in the configuration itself or choice(1)",
        ),
        (
            "loguniform(0, 1)",
            "loguniform needs a low end above 0, got 0 in loguniform(0, 1); raise it or use",
        ),
        ("logintegers(-2, 8)", "above 0, got -2 in logintegers(-2, 8); raise it or use integers"),
        (
            "integers(1.5, 3)",
            "integers takes whole numbers, got 1.5 in integers(1.5, 3); round it or use uniform",
        ),
        ("choice()", "empty choice; name at least one value"),
        ([], "empty choice"),
        ("choice(8, 4, 8.0)", "duplicate choices: 8; name each value once"),
        (["1e-3", 0.001, [1], [1]], "duplicate choices: 0.001, [1]"),
        ("choice(8, [4)", "cannot be read as YAML: choice(8, [4); write choice(a, b) or a list"),
        ("choice(a: b: c)", "cannot be read as YAML"),
        ("choice(1, .inf)", "a choice must be finite, got inf"),
    ],
)
def test_wrong_dimensions_are_named(text: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert message in str(caught.value)
    with pytest.raises(ConfigError) as gathered:
        parse_space({"student.temperature": text, "alpha": "uniform(0, 1)"})
    assert gathered.value.problems == [f"sweep.space.temperature: {caught.value}"]


def test_spaces_drop_the_student_prefix_and_report_everything() -> None:
    assert list(parse_space({"student.alpha": [1], "temperature": [4]})) == ["alpha", "temperature"]
    with pytest.raises(ConfigError) as caught:
        parse_space({"alpha": [], "student.alpha": [1], "temperature": "gauss(0, 1)"})
    empty, twice, unknown = caught.value.problems
    assert empty.startswith("sweep.space.alpha: empty choice")
    assert twice == "sweep.space.alpha: given twice, with and without 'student.'; keep one of them"
    assert unknown.startswith("sweep.space.temperature: unknown function")
    with pytest.raises(ConfigError, match="sweep.space: empty; name a field of student"):
        parse_space({})


# ------------------------------------------------------------------------------------- points and grids


def ranges() -> st.SearchStrategy[Range]:
    def of(kind: Kind) -> st.SearchStrategy[Range]:
        log = kind.startswith("log")
        ends: st.SearchStrategy[Any] = (
            st.integers(1 if log else -(10**9), 10**9)
            if kind.endswith("integers")
            else st.floats(1e-300 if log else -1e300, 1e300)
        )
        pair = st.lists(ends, min_size=2, max_size=2, unique=True).map(sorted)
        return pair.map(lambda both: Range(kind, both[0], both[1]))

    return st.one_of(of("uniform"), of("loguniform"), of("integers"), of("logintegers"))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(0.01, 0.99),
    st.sampled_from(["kl", "a, b", "1_a: #", ""]),
)
choices = st.lists(
    st.one_of(values, st.lists(values, max_size=3)), min_size=1, max_size=5, unique_by=repr
).map(lambda found: Choice(tuple(found)))


@given(ranges(), st.integers(2, 20))
def test_points_rise_from_end_to_end(dimension: Range, n: int) -> None:
    points = dimension.points(n)
    assert points[0] == dimension.low and points[-1] == dimension.high
    assert len(points) <= n and points == sorted(set(points))
    if dimension.kind.endswith("integers"):
        assert all(type(point) is int for point in points)


def test_points_are_evenly_spaced() -> None:
    assert Range("uniform", 0, 1).points(5) == [0, 0.25, 0.5, 0.75, 1]
    assert Range("loguniform", 0.01, 100).points(5) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert Range("integers", 1, 3).points(9) == [1, 2, 3]
    assert Range("logintegers", 8, 512).points(4) == [8, 32, 128, 512]
    assert Choice(("a", "b")).points(7) == ["a", "b"]
    with pytest.raises(ValueError, match="2 points or more, got 1"):
        Range("uniform", 0, 1).points(1)


@given(st.one_of(ranges(), choices))
def test_text_reads_back(dimension: Dimension) -> None:
    assert parse(to_text(dimension)) == dimension


@given(st.dictionaries(st.sampled_from("abcd"), st.one_of(ranges(), choices), max_size=3), st.integers(2, 4))
def test_grid_has_every_combination(dimensions: dict[str, Dimension], n: int) -> None:
    combinations = grid(dimensions, n)
    assert len(combinations) == math.prod(len(d.points(n)) for d in dimensions.values())
    assert all(list(combination) == list(dimensions) for combination in combinations)
    assert len({repr(combination) for combination in combinations}) == len(combinations)


def test_the_last_dimension_of_a_grid_changes_fastest() -> None:
    found = grid(parse_space({"alpha": [0.5, 1], "temperature": "integers(1, 2)"}), 2)
    assert [tuple(combination.values()) for combination in found] == [(0.5, 1), (0.5, 2), (1, 1), (1, 2)]


# ------------------------------------------------------------------------------------------------ apply

MODELS: list[tuple[dict[str, Any], str, Any]] = [
    ({"name": "mlp", "hidden": [32, 16]}, "hidden.1", 64),
    ({"name": "mlp"}, "hidden", [8, 8]),
    ({"name": "cnn"}, "channels.0", 8),
    ({"name": "resnet"}, "width", 4),
    ({"name": "bag", "hidden": [8]}, "hidden.0", 16),
    ({"name": "bilstm"}, "hidden", 20),
    ({"name": "custom", "callable": "nets:build", "options": {"depth": 2}}, "options.depth", 3),
    ({"name": "custom", "callable": "nets:build"}, "options.width", 0.5),
    ({"name": "custom", "callable": "nets:build"}, "callable", "nets:other"),
]


@pytest.mark.parametrize(("model", "path", "value"), MODELS)
def test_apply_reaches_every_model(model: dict[str, Any], path: str, value: Any) -> None:
    student = StudentConfig.model_validate({"model": model})
    changed = apply(student, {f"model.{path}": value})
    here: Any = changed.model_dump()["model"]
    for part in path.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    assert here == value and changed.model.name == model["name"]
    assert student == StudentConfig.model_validate({"model": model})
    assert problems(student, {f"model.{path}": [value]}) == []


@given(st.floats(0.01, 1000), st.floats(0, 1), st.floats(1e-9, 10))
def test_applied_values_are_in_the_student(temperature: float, alpha: float, rate: float) -> None:
    changed = apply(
        STUDENT, {"temperature": temperature, "alpha": alpha, "training.learning_rate": rate}
    ).model_dump()
    assert (changed["temperature"], changed["alpha"]) == (temperature, alpha)
    assert changed["training"] == {**STUDENT.training.model_dump(), "learning_rate": rate}


def test_apply_of_nothing_changes_nothing() -> None:
    assert apply(STUDENT, {}) == STUDENT


def test_objectives_become_blocks() -> None:
    assert apply(STUDENT, {"objective.weight": 0.5}).objective == {"name": "kl", "weight": 0.5}
    block = StudentConfig(objective={"name": "sum", "terms": [{"name": "kl", "weight": 1}]})
    deep: Any = apply(block, {"objective.terms.0.weight": 2}).objective_fields
    assert deep["terms"] == [{"name": "kl", "weight": 2}]
    # In any order the field goes into the objective chosen beside it, and the choice stays as it was.
    chosen = {"name": "mse"}
    both = {"objective.weight": 0.5, "objective": chosen}
    assert apply(STUDENT, both).objective == {"name": "mse", "weight": 0.5}
    assert chosen == {"name": "mse"}


def test_apply_refuses_unknown_paths_and_wrong_values() -> None:
    with pytest.raises(ConfigError) as caught:
        apply(STUDENT, {"temprature": 4, "model.width": 3, "model.hidden.5": 3, "alpha": 0.5})
    assert [line.split(":")[0] for line in caught.value.problems] == [
        f"sweep.space.{path}" for path in ("temprature", "model.width", "model.hidden.5")
    ]
    with pytest.raises(ConfigError, match="once the other parameters are in place"):
        apply(STUDENT, {"model.hidden": [], "model.hidden.0": 3})
    with pytest.raises(ValidationError):
        apply(STUDENT, {"temperature": 0})


# --------------------------------------------------------------------------------------------- problems


def test_a_good_space_has_no_problems() -> None:
    space: dict[str, str | list[Any]] = {
        "temperature": "loguniform(0.3, 20)",
        "student.alpha": "uniform(0, 1)",
        "training.learning_rate": "loguniform(1e-4, 1e-2)",
        "training.batch_size": "logintegers(16, 256)",
        "training.early_stopping": "choice(null, 3)",
        "model.hidden": "choice([32], [64, 64])",
        "objective": ["kl", {"name": "mse"}],
        "objective.weight": "uniform(0, 1)",
        "targets": "choice(ensemble, specialists, both)",
        "weights": [[1, 0, 1], None],
    }
    assert problems(STUDENT, space) == []


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("temprature", "uniform(1, 2)", "unknown setting; did you mean 'temperature'?"),
        ("learning_rate", "uniform(1, 2)", "unknown setting; did you mean 'training.learning_rate'?"),
        ("trainig.epochs", "integers(1, 2)", "unknown setting; did you mean 'training.epochs'?"),
        (
            "model.width",
            "integers(1, 2)",
            "unknown setting; known in model: hidden, dropout, input_dropout, start",
        ),
        ("T", "uniform(1, 2)", "unknown setting; known here: model, training, temperature, alpha"),
        ("model.hidden.1", "integers(1, 2)", "model.hidden has 1 element(s), counted from 0"),
        ("weights.0", "uniform(0, 1)", "weights is null, which has no parts"),
        ("objective.terms.0.weight", "uniform(0, 1)", "objective is 'kl', which has no parts"),
        ("training", [{"epochs": 3}], "a block, not a field; name a field of it, such as training.epochs"),
        ("model", "choice(mlp)", "a block, not a field; name a field of it, such as model.hidden"),
        ("model.name", "choice(mlp, resnet)", "each architecture has fields of its own"),
        ("seeds", "integers(1, 3)", "cannot be searched; sweep.num_seeds says how many seeds"),
        ("replicas_per_member", [1, 2], "cannot be searched; it does not change the student"),
        ("temperature", "uniform(0, 5)", "input should be greater than 0, got 0 (low end of uniform(0, 5))"),
        ("alpha", "choice(0.5, 1.5)", "should be less than or equal to 1, got 1.5 (in choice(0.5, 1.5))"),
        ("alpha", "uniform(0.5, 1.5)", "equal to 1, got 1.5 (high end of uniform(0.5, 1.5))"),
        ("targets", ["all"], "'specialists' or 'both', got 'all' (in choice(all))"),
        (
            "training.epochs",
            "loguniform(2, 64)",
            "takes whole numbers, got loguniform(2, 64); use logintegers",
        ),
        (
            "training.epochs",
            "uniform(0, 9)",
            "takes whole numbers, got uniform(0, 9); use integers(low, high)",
        ),
        ("model.hidden", "choice([8], [8, 0])", "greater than or equal to 1, got 0 in [8, 0] (in choice("),
        ("objective", [3], "a valid string; or input should be a valid dictionary, got 3 (in choice(3))"),
        ("objective.weight", "uniform(1, 0)", "inverted: 1 is above 0"),
    ],
)
def test_wrong_spaces_are_named(path: str, text: str | list[Any], message: str) -> None:
    (line,) = problems(STUDENT, {path: text, "mean": ["geometric"]})
    assert line.startswith(f"sweep.space.{path}: ") and message in line


def test_all_problems_come_at_once() -> None:
    lines = problems(
        STUDENT, {"alpha": "uniform(-1, 2)", "seeds": [1], "student.temperature": "gauss(0)", "alpa": [1]}
    )
    assert sorted(line.split(":")[0].removeprefix("sweep.space.") for line in lines) == sorted(
        ["alpha", "alpha", "seeds", "temperature", "alpa"]
    )
    assert problems(STUDENT, {})[0].startswith("sweep.space: empty")


def test_a_field_and_a_part_of_it_are_not_searched_together() -> None:
    (line,) = problems(STUDENT, {"model.hidden.0": "integers(8, 64)", "model.hidden": "choice([8], [16])"})
    assert line == "sweep.space.model.hidden.0: part of model.hidden, which is searched too; keep one of them"


# ------------------------------------------------------------------------------------------------ files


def test_spaces_are_read_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = {"temperature": "loguniform(0.5, 20)", "alpha": [0.5, 1.0]}
    (tmp_path / "loss.yaml").write_text(yaml.safe_dump(space))
    (tmp_path / "loss").mkdir()
    monkeypatch.chdir(tmp_path)  # where a folder has the name of a shipped space
    assert read_space("loss", tmp_path) == read_space(tmp_path / "loss.yaml", Path("/nowhere")) == space


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("los", "sweep.space: no such search space: los; did you mean 'loss'?"),
        ("zzz", "sweep.space: no such search space: zzz; shipped: broken, empty, list, loss"),
        ("broken", "broken.yaml:1:10: cannot be read as YAML"),
        ("list", "list.yaml: expected a block with lines such as temperature: loguniform(0.5, 20), got list"),
        ("empty", "got nothing"),
    ],
)
def test_unreadable_spaces_are_named(source: str, message: str, tmp_path: Path) -> None:
    texts = {"loss": "alpha: [1]", "broken": "alpha: [1", "list": "- alpha", "empty": ""}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_space(source, tmp_path)
    assert str(caught.value).startswith("sweep.space: ") and message in str(caught.value)
