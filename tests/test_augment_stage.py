"""Augmentation as a stage: what it writes reaches the transfer set, and finished parts are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.cli import app
from ensemble_kd.config import Config, validate
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.stages import augment
from ensemble_kd.stages.context import Console

ROWS = 90


def sentence(i: int) -> str:
    kinds = [["the", "a", "one"], ["old", "red", "new"], ["dog", "cat", "car"], ["sleeps", "runs", "falls"]]
    return " ".join(kind[(i // 3**k) % 3] for k, kind in enumerate(kinds)) + f" {i}."


def write_rows(path: Path, **more: Any) -> str:
    columns = {"text": [sentence(i) for i in range(ROWS)], "label": [i % 2 for i in range(ROWS)], **more}
    pacsv.write_csv(pa.table(columns), path)
    return str(path)


def settings(path: str, **changes: Any) -> Config:
    block = {"model": {"name": "bag", "embedding": 4}, "training": {"batch_size": 16, "epochs": 1}}
    columns = {"input": "text", **changes.pop("columns", {})}
    data = {"path": path, "kind": "text", "columns": columns, "shard_rows": 40}
    data["text_augment"] = {"copies": 4, **changes.pop("text_augment", {})}
    return validate(
        {
            "name": "augmented",
            "data": {**data, **changes},
            "teachers": {"num_members": 2, **block},
            "student": {"seeds": 1, **block},
            "tracking": {"enabled": False},
        }
    )


class Lines(Console):
    def __init__(self) -> None:
        self.said: list[str] = []
        super().__init__(line=self.said.append, warning=self.said.append)


def run(config: Config, folder: Path, until: str = "data") -> tuple[dict[str, Any], list[str]]:
    lines = Lines()
    return pipeline.run(config, folder, until=until, console=lines), lines.said


def texts_in(folder: Path) -> dict[str, list[str]]:
    """Texts of every part of the one augment folder below a run."""
    parts = sorted(folder.glob("augment/[0-9a-f]*/texts/*"))
    return {part.name: pq.read_table(part)["text"].to_pylist() for part in parts}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("augment")
    config = settings(write_rows(folder / "rows.csv"))
    run(config, folder / "run")
    return config, folder / "run"


@pytest.fixture
def copy(finished: tuple[Config, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "run"))


def test_the_transfer_set_is_train_and_the_new_texts(finished: tuple[Config, Path]) -> None:
    folder = finished[1]
    found = texts_in(folder)
    new = [text for texts in found.values() for text in texts]
    assert len(found) == 7, "parts of 40 // 4 rows"
    assert len(set(new)) == len(new) > ROWS, "no text twice"
    data = read_manifest(next(folder.glob("data/*/manifest.json")).parent)
    assert data is not None
    counts = data.summary["info"]["counts"]
    assert counts["train"] == counts["labelled"] == 63 and counts["transfer"] == 63 + len(new)
    transfer = load_split(next(folder.glob("data/*/manifest.json")).parent, "transfer")
    assert (transfer.labels[:63] >= 0).all() and (transfer.labels[63:] == -1).all()


def test_rows_held_out_of_train_are_neither_read_nor_repeated(finished: tuple[Config, Path]) -> None:
    folder = finished[1]
    data = next(folder.glob("data/*/manifest.json")).parent
    train = set(load_split(data, "transfer").ids[:63].tolist())
    held = [sentence(i) for i in range(ROWS) if i not in train]
    new = [text for texts in texts_in(folder).values() for text in texts]
    words = {word for text in new for word in text.split() if word.rstrip(".").isdigit()}
    assert not words & {text.split()[-1].rstrip(".") for text in held}, "every row has a number of its own"
    assert not set(new) & {sentence(i) for i in range(ROWS)}, "what train has is not new"


def test_a_second_run_keeps_it_and_check_says_so(copy: Path, finished: tuple[Config, Path]) -> None:
    config = finished[0]
    _, said = run(config, copy)
    assert [line.split(":")[0] for line in said if line.endswith("(kept)")] == ["augment", "data"]
    assert f"augment: {sum(map(len, texts_in(copy).values()))} texts from 63 rows" in said[0]
    states = {stage.name: stage.state for stage in pipeline.check(config, copy)}
    assert list(states) == ["augment", "data", "teachers", "gap", "soft-targets", "student", "report"]
    assert states["augment"].startswith("done") and states["data"].startswith("done")


def test_check_before_the_first_run_writes_nothing(finished: tuple[Config, Path], tmp_path: Path) -> None:
    states = [stage.state for stage in pipeline.check(finished[0], tmp_path / "none")]
    assert states == ["to do: not done yet", *["to do: follows augment"] * 6]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["removed", "cut", "words"])
def test_only_what_is_damaged_is_made_again(copy: Path, finished: tuple[Config, Path], damage: str) -> None:
    before = {path.name: path.read_bytes() for path in copy.rglob("part-*.parquet")}
    victim = sorted(copy.rglob("part-*.parquet"))[2]
    kept = {path: path.stat().st_mtime_ns for path in copy.rglob("part-*.parquet") if path != victim}
    if damage == "words":
        next(copy.rglob("words.json")).unlink()
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:100])
    else:
        victim.unlink()
    _, said = run(finished[0], copy)
    assert any("redoing what is damaged" in line for line in said)
    assert [line.split(":")[0] for line in said if line.endswith("(kept)")] == ["data"], "the same texts"
    assert {path.name: path.read_bytes() for path in copy.rglob("part-*.parquet")} == before
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_rows(tmp_path / "rows.csv"))
    made: list[str] = []
    make = augment._Maker.make

    def stopped(self: Any, name: str) -> str:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(name)
        return make(self, name)

    monkeypatch.setattr(augment._Maker, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    assert len(texts_in(tmp_path / "run")) == 3

    def noted(self: Any, name: str) -> str:
        made.append(name)
        return make(self, name)

    monkeypatch.setattr(augment._Maker, "make", noted)
    _, said = run(config, tmp_path / "run")
    assert "continuing unfinished work" in said[0] and sorted(made) == sorted(texts_in(tmp_path / "run"))
    monkeypatch.setattr(augment._Maker, "make", make)
    run(config, tmp_path / "whole")
    assert texts_in(tmp_path / "run") == texts_in(tmp_path / "whole")
    assert not list((tmp_path / "run").glob("augment/*/part-*")), "no receipts are left"
    assert not list((tmp_path / "run").glob("augment/*/.*"))


def test_settings_seed_and_content_lead_to_other_texts(finished: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = finished
    first = augment.plan(config, folder)
    path = write_rows(tmp_path / "elsewhere.csv", more=["x"] * ROWS)
    others = [
        settings(str(config.data.path), text_augment={"mask_probability": 0.2}),
        config.model_copy(update={"seed": 1}),
        settings(path),
        settings(str(config.data.path), test_fraction=0.3),
    ]
    assert len({first.folder, *(augment.plan(other, folder).folder for other in others)}) == 5
    student = config.model_copy(update={"student": config.student.model_copy(update={"temperature": 2.0})})
    assert augment.plan(student, folder).folder == first.folder
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("dog 1 0\ncat 1 1\n")
    block = {"word_probability": 0.3, "word_vectors": str(vectors)}
    before = augment.plan(settings(path, text_augment=block), folder)
    vectors.write_text("dog 1 0\ncar 1 1\n")
    assert augment.plan(settings(path, text_augment=block), folder).fingerprint != before.fingerprint


def test_pairs_and_ids_keep_the_names_of_their_columns(tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat"]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("\n".join(pieces))
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "bert", "vocab_size": 7}')
    path = write_rows(
        tmp_path / "rows.csv", other=[f"second {i}" for i in range(ROWS)], key=list(range(ROWS))
    )
    config = settings(
        path,
        columns={"input": ["text", "other"], "id": "key"},
        text={"tokenizer": "pretrained", "source": str(tmp_path / "tokenizer")},
    )
    manifests, _ = run(config, tmp_path / "run")
    table = pa.concat_tables(pq.read_table(part) for part in sorted(tmp_path.glob("run/augment/*/texts/*")))
    assert table.column_names == ["text", "other", "key"]
    assert len(set(table["key"].to_pylist())) == table.num_rows == manifests["augment"].summary["texts"]
    counts = manifests["data"].summary["info"]["counts"]
    assert counts["transfer"] == counts["train"] + table.num_rows


def test_ids_of_the_source_go_together_with_the_new_ones(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", key=list(range(ROWS)))
    manifests, _ = run(settings(path, columns={"id": "key"}), tmp_path / "run")
    transfer = load_split(next((tmp_path / "run").glob("data/*/manifest.json")).parent, "transfer")
    assert len(set(transfer.ids.tolist())) == len(transfer.ids)
    assert manifests["data"].summary["info"]["counts"]["transfer"] == len(transfer.ids)


def test_no_new_text_is_an_error_that_names_the_field(tmp_path: Path) -> None:
    block = {"mask_probability": 1.0, "pos_probability": 0.0}
    config = settings(write_rows(tmp_path / "rows.csv"), text_augment=block)
    with pytest.raises(ConfigError, match=r"^data\.text_augment: no new text came of 63 rows"):
        run(config, tmp_path / "run")


def test_what_is_wrong_with_the_source_is_told_by_this_stage(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv")
    config = settings(path, columns={"input": "txet"})
    with pytest.raises(InputError, match=r"data\.columns\.input: no column 'txet'"):
        run(config, tmp_path / "run")


def test_a_run_without_it_has_no_such_stage(tmp_path: Path) -> None:
    config = settings(write_rows(tmp_path / "rows.csv"))
    plain = config.model_copy(update={"data": config.data.model_copy(update={"text_augment": None})})
    assert config.stages == ("augment", *plain.stages) and "augment" not in plain.stages
    with pytest.raises(ConfigError, match=r"data\.text_augment: this configuration has none"):
        run(plain, tmp_path / "run", until="augment")


def test_the_command_line_has_the_stage(tmp_path: Path) -> None:
    file = tmp_path / "augmented.yaml"
    raw = settings(write_rows(tmp_path / "rows.csv")).model_dump(mode="json")
    file.write_text(json.dumps(raw), encoding="utf-8")
    result = CliRunner().invoke(app, ["augment", str(file), "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "texts from 63 rows" in result.output and texts_in(tmp_path / "run")


@pytest.mark.slow
def test_actors_make_the_same_texts(
    finished: tuple[Config, Path], tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "IN_PROCESS", 0)
    run(finished[0], tmp_path / "run", until="augment")
    assert texts_in(tmp_path / "run") == texts_in(finished[1])
