"""The stages of every combination of blocks: in the configuration, in `check`, on the command line."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ensemble_kd import cli, pipeline
from ensemble_kd.config import Config, validate
from ensemble_kd.stage_list import ENTRIES, STAGES, StageEntry, stages_of
from ensemble_kd.stages.base import Artifact, Done, NotDone, Stage
from ensemble_kd.stages.context import Console, StagePlan

BLOCKS = {
    "data.text_augment": "augment",
    "specialists": "clusters specialists combined-targets",
    "sweep": "sweep",
    "student.pseudo": "choose",
    "export": "export",
}
TEXTS = "text,label\n" + "".join(f"card {i} lost,a\nmoney {i} sent,b\neuro {i} rate,c\n" for i in range(60))


def config_of(folder: Path, blocks: tuple[str, ...]) -> Config:
    data: dict[str, Any] = {"path": str(folder), "kind": "text", "columns": {"input": "text"}}
    model = {"model": {"name": "bag", "embedding": 4}, "training": {"epochs": 1, "batch_size": 16}}
    settings: dict[str, Any] = {
        "name": "graph",
        "data": data,
        "teachers": dict(model, num_members=2),
        "student": dict(model),
    }
    if "data.text_augment" in blocks:
        data["text_augment"] = {"copies": 1}
    if "student.pseudo" in blocks:
        settings["student"]["pseudo"] = "auto"  # no sweep searches it
    return validate({**settings, **{name: {} for name in blocks if "." not in name}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train.csv").write_text(TEXTS)
    return folder


@pytest.mark.parametrize(
    "blocks", [c for n in range(len(BLOCKS) + 1) for c in itertools.combinations(BLOCKS, n)], ids="+".join
)
def test_check_names_the_stages_of_a_run(blocks: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, blocks)
    absent = {stage for block in BLOCKS.keys() - set(blocks) for stage in BLOCKS[block].split()}
    expected = [stage for stage in STAGES if stage not in absent]
    assert list(stages_of(config)) == list(config.stages) == expected
    assert [line.name for line in pipeline.check(config, tmp_path / "run")] == expected


def test_what_cannot_be_planned_yet_says_what_it_waits_for(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, ("specialists", "sweep", "export"))
    states = {line.name: line.state for line in pipeline.check(config, tmp_path)}
    assert states.pop("data") == "to do: not done yet" and set(states.values()) == {"to do: follows data"}
    context: Any = SimpleNamespace(config=config, console=Console(), folder=tmp_path)
    stage = pipeline.stage("data")
    stage.run(context, stage.plan(config, tmp_path, Done()), Done())
    states = {line.name: line.state for line in pipeline.check(config, tmp_path)}
    assert states["data"].startswith("done")
    assert states["teachers"] == states["soft-targets"] == states["clusters"] == "to do: not done yet"
    work = {line.name: line.work for line in pipeline.check(config, tmp_path)}
    assert work["teachers"] == "2 x 126 rows x 1 epoch" and work["data"] == work["report"] == ""
    assert states["specialists"] == "to do: follows teachers"  # which of them get specialists
    assert states["combined-targets"] == "to do: follows specialists"
    assert states["sweep"] == "to do: follows combined-targets"
    assert states["student"].startswith("to do: follows sweep; transfer set of")
    assert states["export"] == states["report"] == "to do: follows sweep"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_its_class_and_its_command(entry: StageEntry) -> None:
    stage = pipeline.stage(entry.name)
    assert isinstance(stage, Stage) and stage.name == entry.name
    shown = CliRunner().invoke(cli.app, [entry.name, "--help"])
    assert shown.exit_code == 0 and "--run-dir" in shown.output


def test_results_that_are_not_there_name_their_stage(tmp_path: Path) -> None:
    done = Done()
    with pytest.raises(NotDone) as caught:
        done["clusters"]
    assert caught.value.name == "clusters"
    done.add(Artifact("teachers", StagePlan.of(tmp_path, "teachers", {}, {}), None, {"members": [1]}))
    assert done["teachers"].known("members") == [1] and done["teachers"].fingerprint
    for ask in (lambda: done["teachers"].summary, lambda: done["teachers"].known("seconds")):
        with pytest.raises(NotDone, match="teachers"):
            ask()
