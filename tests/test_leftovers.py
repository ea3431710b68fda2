"""`inspect` and `clean`: what a run folder holds, and that nothing goes that a finished run still reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_local import TINY
from test_pipeline import Lines
from test_transformer_pipeline import folder as texts  # noqa: F401
from test_transformer_pipeline import settings as phases
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.cli import app
from ensemble_kd.config import load_config, validate
from ensemble_kd.contents import contents
from ensemble_kd.errors import EnsembleKDError, InputError
from ensemble_kd.lease import locked
from ensemble_kd.leftovers import OTHER, PUT_ASIDE, UNFINISHED, delete, leftovers

FIRST = [*TINY, "compute.executor=local", "student.seeds=1", "export={forms: [program]}"]
SECOND = [*FIRST, "teachers.training.epochs=3", "student.model.hidden=[9]"]
SHORT = [*FIRST, "specialists=null", "sweep=null", "export=null"]

pytestmark = pytest.mark.slow


def run(folder: Path, overrides: list[str], until: str = "report") -> Lines:
    lines = Lines()
    pipeline.run(load_config("digits", overrides), folder, until=until, console=lines)
    return lines


def folders(run_folder: Path) -> set[str]:
    """Of stages and members, but the reports, which stay."""
    found = {path.parent for path in run_folder.glob("*/*/manifest.json")}
    found |= {path.parent for path in run_folder.glob("*/members/*/manifest.json")}
    return {str(p.relative_to(run_folder)) for p in found if p.parent.name != "report"}


def files(run_folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_folder)): path.read_bytes()
        for path in run_folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the second settings alone."""
    folder = tmp_path_factory.mktemp("second") / "run"
    run(folder, SECOND)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the first settings, then of the second."""
    folder = tmp_path_factory.mktemp("both") / "run"
    run(folder, FIRST)
    run(folder, SECOND)
    return folder


@pytest.fixture
def copied(both: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(both, tmp_path / "run"))


# ---------------------------------------------------------------------------------------------------- clean


def test_what_stays_is_what_these_settings_alone_would_have_made(copied: Path, second: Path) -> None:
    assert folders(copied) > folders(second)
    found = leftovers(copied)
    assert {each.reason for each in found} == {OTHER}
    size = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
    assert delete(copied, found) == sum(each.size for each in found)
    left = sum(path.stat().st_size for path in copied.rglob("*") if path.is_file())
    assert size - left == sum(each.size for each in found) > 100_000
    assert folders(copied) == folders(second)
    assert leftovers(copied) == []
    assert len(list((copied / "report").glob("*/report.html"))) == 2


def test_the_cleaned_run_is_all_there(copied: Path) -> None:
    delete(copied, leftovers(copied))
    before = files(copied)
    lines = run(copied, SECOND)
    stages = pipeline.stages_of(load_config("digits", SECOND))
    assert lines.kept() == list(stages)
    assert files(copied) == before


def test_nothing_of_a_run_that_chose_its_temperature_is_left_over(tmp_path: Path) -> None:
    run(tmp_path / "run", [*SHORT, "student.temperature=auto", "student.alpha=auto"])
    assert any(name.startswith("choose/") for name in folders(tmp_path / "run"))
    assert leftovers(tmp_path / "run") == []


def test_nothing_of_a_run_with_phases_is_left_over(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    here = {"compute": {"executor": "local"}, "tracking": {"enabled": False}}
    pipeline.run(validate({**phases(texts), **here}), tmp_path / "run")
    assert len(list((tmp_path / "run/student/members").glob("*/manifest.json"))) > 3
    assert leftovers(tmp_path / "run") == []


def test_going_back_makes_the_other_settings_those_that_stay(copied: Path, tmp_path: Path) -> None:
    run(copied, FIRST)  # all of it is kept, and its report is put in place again
    run(tmp_path / "first", FIRST)
    delete(copied, leftovers(copied))
    assert folders(copied) == folders(tmp_path / "first")


def test_what_was_finished_after_the_report_stays(copied: Path) -> None:
    delete(copied, leftovers(copied))
    before = folders(copied)
    run(copied, [*SECOND, "seed=1"], until="soft-targets")
    assert leftovers(copied) == [] and folders(copied) > before


def test_unfinished_work_goes_only_where_a_run_was_finished_since(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, SHORT, until="teachers")
    half = folder / "soft_targets" / ("0" * 16)
    half.mkdir(parents=True)
    (half / "part-00000.parquet").write_bytes(b"half")
    assert leftovers(folder) == []
    run(folder, SHORT)
    late = folder / "soft_targets" / ("1" * 16)
    late.mkdir()
    assert [(each.path, each.reason) for each in leftovers(folder)] == [(half, UNFINISHED)]


def test_copies_put_aside_and_rows_that_nothing_names(copied: Path) -> None:
    delete(copied, leftovers(copied))
    aside = copied / "teachers/.before-fresh-members"
    aside.mkdir()
    (aside / "x").write_bytes(b"12345")
    rows, named = copied / "input" / ("a" * 16), copied / "input" / ("b" * 16)
    for place in (rows, named):
        place.mkdir(parents=True)
        (place / "train.parquet").write_bytes(b"rows")
    settings = json.loads((copied / "resolved.json").read_text(encoding="utf-8"))
    settings["data"]["path"] = str(named)
    (copied / "resolved.json").write_text(json.dumps(settings), encoding="utf-8")
    (copied / "mine").mkdir()
    old, new = copied / "input/.rows.7.tmp", copied / "input/.rows.8.tmp"
    for place in (old, new):
        place.mkdir()
    os.utime(old, (0, 0))
    found = {each.path: (each.reason, each.size) for each in leftovers(copied)}
    assert found == {aside: (PUT_ASIDE, 5), rows: (OTHER, 4), old: (PUT_ASIDE, 0)}


def test_a_folder_at_work_is_left_alone(copied: Path) -> None:
    found = leftovers(copied)
    with locked(copied), pytest.raises(EnsembleKDError, match="another run is at work here"):
        delete(copied, found)
    assert all(each.path.exists() for each in found)


def test_what_a_run_took_up_in_between_stays(copied: Path) -> None:
    found = leftovers(copied)
    run(copied, FIRST)
    before = folders(copied)
    assert delete(copied, found) == 0 and folders(copied) == before


def test_a_deletion_that_is_cut_off_leaves_unfinished_work(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    found = leftovers(copied)
    with pytest.raises(KeyboardInterrupt):
        delete(copied, found)
    assert found[0].path.is_dir() and not (found[0].path / "manifest.json").exists()
    monkeypatch.undo()
    lines = run(copied, FIRST)
    assert not [line for line in lines.said if "damaged" in line or "checksum" in line]


def test_it_lists_and_asks(copied: Path) -> None:
    before = folders(copied)
    done = CliRunner().invoke(app, ["clean", str(copied)])
    assert done.exit_code == 0 and "nothing deleted; --yes deletes" in done.stdout
    assert "training.epochs: 3 there, here 4" in " ".join(done.stdout.split()) or "epochs" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["clean", str(copied), "--json"]).stdout)
    assert told["bytes"] == sum(each["bytes"] for each in told["leftovers"]) > 0 == told["deleted_bytes"]
    assert folders(copied) == before
    done = CliRunner().invoke(app, ["clean", str(copied), "--yes"])
    assert done.exit_code == 0 and done.stdout.splitlines()[-1].startswith("deleted ")
    done = CliRunner().invoke(app, ["clean", str(copied)])
    assert "nothing to delete" in done.stdout
    done = CliRunner().invoke(app, ["clean", str(copied / "model")])
    assert done.exit_code == 2 and "no run there" in done.stderr


# -------------------------------------------------------------------------------------------------- inspect


def told(path: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run(both: Path, second: Path) -> None:
    found = told(both)
    assert (found["what"], found["name"], found["finished"]) == ("run", "digits", True)
    report = json.loads((both / "report.json").read_text(encoding="utf-8"))
    assert found["verdict"] == report["verdict"]["text"]
    teachers = [stage for stage in found["stages"] if stage["stage"] == "teachers"]
    assert sorted(stage["used"] for stage in teachers) == [False, True]
    assert all("3 members" in stage["text"] for stage in teachers)
    (members,) = (each for each in found["members"] if each["stage"] == "teachers")
    assert (members["finished"], members["used"], members["unfinished"]) == (6, 3, 0)
    assert found["bytes_to_clean"] == sum(each.size for each in leftovers(both))
    assert found["model"]["forms"][0]["form"] == "program"
    shown = CliRunner().invoke(app, ["inspect", str(both)]).stdout
    assert "other settings" in shown and f"ensemble-kd clean {both}" in shown
    assert "ensemble-kd clean" not in CliRunner().invoke(app, ["inspect", str(second)]).stdout


def test_an_unfinished_run(tmp_path: Path) -> None:
    run(tmp_path / "run", SHORT, until="teachers")
    found = told(tmp_path / "run")
    assert not found["finished"] and found["model"] is None and found["bytes_to_clean"] == 0
    assert [stage["stage"] for stage in found["stages"]] == ["data", "teachers"]
    assert "not finished; the same command goes on" in CliRunner().invoke(
        app, ["inspect", str(tmp_path / "run")]
    ).stdout.replace("\n", " ")


def test_a_store(second: Path) -> None:
    (store,) = (path.parent for path in second.glob("soft_targets/*/manifest.json"))
    found = told(store)
    rows = json.loads((second / "report.json").read_text(encoding="utf-8"))["counts"]["transfer"]
    assert (found["what"], found["rows"], found["members"], found["classes"]) == ("store", rows, 3, 10)
    assert found["bytes_per_row"] == 3 * 10 * 2 and found["columns"]["logits"] == [[1, 3, 10], "float16"]
    assert found["problems"] == []
    assert "60 bytes a row" in CliRunner().invoke(app, ["inspect", str(store)]).stdout


def test_a_model_and_what_is_wrong_with_one(second: Path, tmp_path: Path) -> None:
    model = shutil.copytree(second / "model", tmp_path / "model")
    found = told(Path(model))
    assert (found["what"], found["kind"], found["model"]["name"]) == ("model", "image", "mlp")
    assert found["classes"] == [str(i) for i in range(10)] and found["problems"] == []
    (Path(model) / "weights.safetensors").write_bytes(b"")
    found = told(Path(model))
    assert "weights.safetensors: 0 bytes, the manifest says" in found["problems"][0]
    assert "damaged" in CliRunner().invoke(app, ["inspect", str(model)]).stdout


def test_any_other_folder_of_a_run(second: Path) -> None:
    (data,) = (path.parent for path in second.glob("data/*/manifest.json"))
    found = told(data)
    assert found["what"] == "data" and found["files"]["info.json"] > 0
    member = next(second.glob("teachers/members/*/manifest.json")).parent
    assert told(member)["summary"]["role"] == "teacher"
    assert "setting seed" in CliRunner().invoke(app, ["inspect", str(member)]).stdout


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run \(runs/NAME\), model"):
        contents(str(tmp_path))
    with pytest.raises(InputError, match="lies in a store"):
        contents("s3://bucket/run")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "no")])
    assert done.exit_code == 2


# ----------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [("ensemble-kd insp", ["inspect"]), ("ensemble-kd run dig", ["digits"]), ("ensemble-kd check none", [])],
)
def test_a_shell_completes_commands_and_recipes(line: str, expected: list[str]) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_kd"],
        env={**os.environ, **words, "_ENSEMBLE_KD_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == expected, done.stderr


def test_what_is_to_be_typed_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from ensemble_kd.cli_inspect import _run

    found = {"folder": "my run", "name": "mine", "finished": True, "bytes": 9, "stages": [], "members": []}
    _run(Console(width=200), {**found, "model": None, "verdict": None, "bytes_to_clean": 9})
    assert "ensemble-kd clean 'my run'" in capsys.readouterr().out
