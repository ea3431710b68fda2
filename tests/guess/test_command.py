"""`init` and `run --data` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from guess_cases import ROWS, table, text, texts
from typer.testing import CliRunner

from ensemble_kd.cli import app
from ensemble_kd.config import load_config
from ensemble_kd.guess import pace
from ensemble_kd.guess.command import Asked, make
from ensemble_kd.guess.pace import Pace

SHARED = Path(__file__).parents[3] / "shared" / "data"
PACE = Pace(0.001, 0.0005, 0.0005, 0.0001, 2)
NUMBERS = [[i % 3, i % 7, (i * 37 % 11) / 3, (i * 17 % 23) / 5] for i in range(ROWS)]


def test_init_prints_a_configuration_that_loads(tmp_path: Path) -> None:
    path = texts(tmp_path / "mine" / "train.csv", [i % 2 for i in range(ROWS)])
    done = CliRunner().invoke(app, ["init", str(path), "--source", "none", "--set", "student.seeds=2"])
    assert done.exit_code == 0, done.output
    file = tmp_path / "my.yaml"
    file.write_text(done.stdout)
    config = load_config(file)
    assert config.name == "mine" and config.student.seeds == 2
    assert "# Input: texts of 7 words" in done.stdout and "classes" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "CONFIG: missing"),
        (["run", "digits", "--data", "x"], "both given"),
        (["run", "digits", "--budget", "3m"], "--budget: goes with --data"),
        (["run", "--data", "/nowhere"], "--data: no such file or folder"),
        (["run", "--data", "PATH", "--budget", "soon"], "--budget: 'soon' is no time"),
        (["init", "PATH", "--set", "teachers.num_membres=3"], "did you mean 'num_members'"),
        (["init", "PATH", "--set", "data.path=x"], "--data says where the data is"),
        (["init", "PATH", "--label", "lable"], "--label: no column 'lable'"),
    ],
)
def test_mistakes_end_with_code_2_and_a_remedy(arguments: list[str], says: str, tmp_path: Path) -> None:
    path = str(table(tmp_path / "a.csv", ["label", "a", "b", "c"], NUMBERS))
    done = CliRunner().invoke(app, [path if part == "PATH" else part for part in arguments])
    assert done.exit_code == 2 and says in done.stderr.replace("\n", " "), done.stderr


def test_a_budget_too_short_for_one_teacher_ends_with_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_kd.guess.command.measure", lambda choice, folder: PACE)
    path = str(table(tmp_path / "a.csv", ["label", "a", "b", "c"], NUMBERS))
    done = CliRunner().invoke(app, ["init", path, "--budget", "5s"])
    assert done.exit_code == 2 and "too short for one teacher" in done.stderr.replace("\n", " ")


def test_the_same_command_makes_the_same_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is kept, so that a run that was stopped goes on with what it began."""
    paces = iter([{"teacher_train": 0.001 * n} | dict.fromkeys(OTHERS, 0.0005) for n in range(1, 40)])
    monkeypatch.setattr(pace, "_start", lambda *args: None)
    monkeypatch.setattr(pace, "_answer", lambda job: next(paces))
    asked = Asked(str(table(tmp_path / "a.csv", ["label", "a", "b", "c"], NUMBERS)), budget="4m")
    told: list[str] = []
    texts = [make(asked, told.append, told.append, lambda name: tmp_path / "run").text for _ in range(2)]
    assert texts[0] == texts[1] and "fits --budget 4m" in texts[0]
    other = make(asked, told.append, told.append, lambda name: tmp_path / "another").text
    assert other != texts[0]


OTHERS = ("teacher_predict", "student_train", "student_predict")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("banking77", "77 classes"),
        ("letter", "26 classes"),
        ("adult", "of words (8)"),
        ("cola", "2 classes"),
        ("energy", "2 numbers are to be predicted"),
        ("rf1", "8 numbers are to be predicted"),
        ("reuters", "several labels a row"),
        ("goemotions", "several labels a row"),
        ("wikitext2", "one column only"),
        ("classic_books", "no labels"),
    ],
)
def test_shared_sets_are_understood_or_refused(name: str, says: str) -> None:
    done = CliRunner().invoke(app, ["init", str(SHARED / name), "--source", "none"])
    assert done.exit_code in (0, 2) and says in done.stderr, done.stderr


@pytest.mark.slow
def test_run_data_trains_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_kd.guess.command.measure", lambda choice, folder: PACE)
    path = str(table(tmp_path / "a.csv", ["label", "a", "b", "c"], NUMBERS))
    folder = tmp_path / "run"
    small = ["teachers.num_members=2", "teachers.training.epochs=2", "student.training.epochs=2"]
    small.append("compute.executor=local")
    sets = [part for setting in [*small, "student.seeds=1"] for part in ("--set", setting)]
    done = CliRunner().invoke(app, ["run", "--data", path, "--run-dir", str(folder), *sets])
    assert done.exit_code == 0, done.output
    before = json.loads((folder / "report.json").read_text())["shipped"]
    again = CliRunner().invoke(app, ["run", str(folder / "recipe.yaml"), "--run-dir", str(folder)])
    assert again.exit_code == 0 and "(kept)" in again.output and "running" not in again.output
    assert json.loads((folder / "report.json").read_text())["shipped"] == before


@pytest.mark.slow
def test_timed_steps_are_of_both_networks(tmp_path: Path) -> None:
    """In this process; what is measured are seconds per example, all above 0."""
    from ensemble_kd.config import read_config
    from ensemble_kd.guess import timing

    monkey = pytest.MonkeyPatch()
    monkey.setattr(timing, "SECONDS", 0.05)
    path = table(tmp_path / "a.csv", ["label", "a", "b", "c"], NUMBERS)
    yaml = (
        f"name: t\ndata: {{kind: numeric, path: {path}, columns: {{input: [a, b, c], label: label}}}}\n"
        "teachers: {training: {batch_size: 16}}\nstudent: {training: {batch_size: 16}}\n"
    )
    found = timing.pace(read_config(yaml, "made"), tmp_path / "rows")
    monkey.undo()
    assert set(found) == {"teacher_train", *OTHERS, "busy"}
    assert all(seconds > 0 for seconds in found.values())


def test_texts_are_made_alike() -> None:
    assert text(3) == text(3) != text(4)


def test_rows_that_are_timed_are_encoded_as_the_data_is(tmp_path: Path) -> None:
    """Words and gaps of a table, with labels that are made up."""
    from ensemble_kd.config import validate
    from ensemble_kd.data.prepared import prepare
    from ensemble_kd.guess import pace
    from ensemble_kd.guess.choice import Request
    from ensemble_kd.guess.settings import choose

    rows = [("abc"[i % 3], "" if i % 9 == 0 else i * 37 % 11, i % 2) for i in range(300)]
    choice = choose(Request(str(table(tmp_path / "a.csv", ["job", "hours", "label"], rows))))
    pace._write_rows(choice, tmp_path / "rows.parquet")
    raw = {**choice.settings.raw, "data": pace._data(choice, tmp_path / "rows.parquet")}
    raw["teachers"] = {"training": {"batch_size": 16}}
    raw["student"] = {"training": {"batch_size": 16}}
    info, _ = prepare(validate(raw), tmp_path / "out")
    assert info.input_shape == [5]  # three jobs, hours, and whether these are missing
