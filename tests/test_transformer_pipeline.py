"""Transformers end to end: a tiny pretrained BERT, phases, losses on hidden states, what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import wait_for
from safetensors import safe_open
from transformers import BertConfig, BertForMaskedLM

from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.config import Config, load_config
from ensemble_kd.data.records import load_labels, load_split
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.package import load_package
from ensemble_kd.runtime import Runtime
from ensemble_kd.stages import student as student_stage
from ensemble_kd.stages.context import Context
from ensemble_kd.stages.upstream import Upstream
from ensemble_kd.tracking import Tracker
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict

pytestmark = pytest.mark.slow

RAY = "compute.executor=ray"

TOPICS = [
    "card lost stolen card my card blocked".split(),
    "pay payment transfer sent money bank".split(),
    "exchange rate currency euro dollar pound".split(),
]
COMMON = "is it the a my why how can i when please help with of to".split()


def text(topic: int, draw: random.Random) -> str:
    words = draw.choices(COMMON, k=5) + draw.choices(TOPICS[topic], k=2)
    draw.shuffle(words)
    return " ".join(words[: draw.randint(4, 7)] + draw.choices(TOPICS[topic], k=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model, a data set and a corpus."""
    folder = tmp_path_factory.mktemp("texts")
    model = folder / "model"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*COMMON, *sum(TOPICS, [])})]
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    ).save_pretrained(model)
    (model / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    draw = random.Random(0)
    rows = [(i % 3, text(i % 3, draw)) for i in range(600)]
    (folder / "train.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for label, t in rows))
    (folder / "corpus.csv").write_text("text\n" + "".join(f"{text(i % 3, draw)}\n" for i in range(128)))
    return folder


def settings(folder: Path, **student: Any) -> dict[str, Any]:
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "schedule": "linear"}
    source = str(folder / "model")
    states = [{"name": "hidden_mse", "weight": 1}, {"name": "attention_mse", "weight": 0.1}]
    return {
        "name": "tiny",
        "data": {
            "path": str(folder / "train.csv"),
            "kind": "text",
            "columns": {"input": "text", "label": "label"},
            "text": {"tokenizer": "pretrained", "max_length": 16},
            "shard_rows": 64,
        },
        "teachers": {
            "num_members": 2,
            "model": {"name": "transformer", "source": source},
            "training": {**training, "epochs": 8},
        },
        "student": {
            "model": {
                "name": "transformer",
                "source": source,
                "weights": "random",
                "architecture": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32},
                "vocabulary": "used",
            },
            "phases": [
                {
                    "name": "pretraining",
                    "task": "mlm",
                    "shared": True,
                    "corpus": {"path": str(folder / "corpus.csv"), "max_length": 16, "min_length": 4},
                    "alpha": 0.5,
                    "objective": "kl",
                    "temperature": 2.0,
                    "terms": states,
                    "online": {"source": source},
                    "training": training,
                },
                {"name": "intermediate", "terms": states, "training": training},
            ],
            "training": {**training, "epochs": 6},
            "terms": [{"name": "patient", "weight": {"start": 10, "end": 0, "shape": "linear"}}],
            "online": {"teachers": "all"},
            "temperature": 2.0,
            "alpha": 0.7,
            **student,
        },
        "compute": {"executor": "local"},
        "tracking": {"enabled": False},
    }


def configuration(folder: Path, *overrides: str, **student: Any) -> Config:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(folder, **student)))
    return load_config(path, list(overrides))


def entries(run: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in run.glob("student/members/*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["summary"]["name"]] = manifest | {"folder": str(path.parent)}
    return found


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    pipeline.run(configuration(folder), run)
    return run


@pytest.fixture
def taught(undisturbed: Path, tmp_path: Path) -> Path:
    """A run whose data, teachers and soft targets are there."""
    leave = shutil.ignore_patterns("student", "report*", "model", "corpus")
    return Path(shutil.copytree(undisturbed, tmp_path / "run", ignore=leave))


def command(folder: Path, run: Path) -> list[str]:
    configuration(folder)
    return [
        sys.executable,
        "-m",
        "ensemble_kd",
        "run",
        str(folder / "run.yaml"),
        "--run-dir",
        str(run),
        "--set",
        RAY,
    ]


def test_phases_terms_and_teachers_beside(folder: Path, undisturbed: Path) -> None:
    members = entries(undisturbed)
    assert set(members) == {
        "pretraining-seed-0",
        "intermediate-seed-0",
        "distilled-seed-0",
        "hard-seed-0",
    }
    first, second = members["pretraining-seed-0"], members["intermediate-seed-0"]
    last, hard = members["distilled-seed-0"], members["hard-seed-0"]
    assert second["config"]["initial"]["member"] == first["fingerprint"]
    assert last["config"]["initial"]["member"] == second["fingerprint"]
    assert hard["config"]["initial"]["member"] == first["fingerprint"]  # the shared phase alone
    assert len(last["config"]["online"]["teachers"]) == 2
    for member in (first, second):
        history = member["summary"]["history"]
        assert history[-1]["train_loss"] < history[0]["train_loss"]
    with safe_open(Path(last["folder"]) / "weights.safetensors", "pt") as file:
        names = list(file.keys())  # noqa: SIM118 - not a dict
    assert not any("learned" in name or "maps" in name for name in names)
    report = json.loads((undisturbed / "report.json").read_text())
    assert report["summary"]["distilled"]["accuracy"]["mean"] > 0.6  # chance is 0.33


def test_the_package_gives_the_members_predictions(undisturbed: Path) -> None:
    from safetensors.torch import load_file

    package = load_package(undisturbed / "model")
    last = entries(undisturbed)["distilled-seed-0"]
    test = load_split(next(undisturbed.glob("data/*/info.json")).parent, "test")
    logits = predict(package.network, torch.from_numpy(test.inputs), torch.device("cpu"))
    kept = load_file(Path(last["folder"]) / "predictions.safetensors")["test"]
    torch.testing.assert_close(logits, kept, atol=1e-5, rtol=1e-5)


def test_a_second_run_keeps_everything(folder: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("*/members/*/*")}
    pipeline.run(configuration(folder), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("*/members/*/*")} == before


@pytest.mark.long
def test_two_replicas_learn_beside_their_teachers(
    folder: Path, undisturbed: Path, taught: Path, ray_session: None
) -> None:
    """Phases, projections, running teachers on two workers: as on one at first, before dropout parts them."""
    config = configuration(folder, "student.replicas_per_member=2", RAY)
    pipeline.run(config, taught, until="student")
    found, wanted = entries(taught), entries(undisturbed)
    assert {name: entry["fingerprint"] for name, entry in found.items()} == {
        name: entry["fingerprint"] for name, entry in wanted.items()
    }
    for name, entry in found.items():
        assert entry["files"].keys() == wanted[name]["files"].keys()
        losses = [[h["train_loss"] for h in e["summary"]["history"]] for e in (entry, wanted[name])]
        assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02), name
        assert losses[0][-1] < losses[0][0]


@pytest.mark.long
def test_driver_killed_in_the_middle_of_phases(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    members = run / "student/members"

    def done(phases: int) -> bool:
        there = len(list(members.glob("*/manifest.json"))) >= phases
        return there and any(members.glob("*/checkpoint.safetensors"))

    for phases in (0, 2):
        process = subprocess.Popen(
            command(folder, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(partial(done, phases), process, 240, pause=0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(folder, run), check=True, capture_output=True, timeout=400)
    patterns = ("*/members/*/*.safetensors", "soft_targets/*/part-*.parquet", "model/weights.safetensors")
    for pattern in patterns:
        wanted = {str(p.relative_to(undisturbed)): p.read_bytes() for p in undisturbed.glob(pattern)}
        assert wanted and wanted == {str(p.relative_to(run)): p.read_bytes() for p in run.glob(pattern)}


@pytest.mark.long
def test_a_sweep_over_a_terms_weight_goes_through_the_phases(folder: Path, taught: Path) -> None:
    space = "sweep={space: {terms.0.weight: [1, 100], temperature: [2]}, search: grid, scheduler: none}"
    manifests = pipeline.run(configuration(folder, space), taught, until="student")
    assert len(manifests["sweep"].summary["trials"]) == 3  # two points and the baseline
    students = manifests["student"].summary["members"]
    assert {member["role"] for member in students} == {"distilled", "hard"}
    for member in students:  # taken over from the sweep
        assert read_manifest(taught / "sweep" / "members" / member["fingerprint"]) is not None


@pytest.mark.parametrize("weights", ["teacher", pytest.param("pretrained", marks=pytest.mark.long)])
def test_stacked_students_start_from_one_table_of_word_vectors(
    folder: Path, taught: Path, weights: str
) -> None:
    start = {"name": "static_embedding", "weights": weights}
    model = {"name": "bag", "embedding": 16, "hidden": [16], "dropout": 0.2, "start": start}
    plain = {"phases": [], "terms": [], "online": {}, "model": model}
    how = "search: grid, scheduler: none, fuse: 4, concurrent_trials: 1"
    space = f"sweep={{space: {{temperature: [1, 2]}}, {how}}}"
    manifests = pipeline.run(configuration(folder, space, **plain), taught, until="student")
    tables = [path.parent for path in taught.glob("vectors/*/table.safetensors")]
    assert len(tables) == 1 and len(list(taught.glob("vectors/*/states.safetensors"))) == 1
    members = [read_manifest(path.parent) for path in taught.glob("sweep/members/*/manifest.json")]
    assert len(members) == 3 and all(
        m and m.config["initial"] == {"vectors": tables[0].name} for m in members
    )
    fused = {trial["name"]: trial["fused"] for trial in manifests["sweep"].summary["trials"]}
    assert fused == {"hard-000": 1, "trial-000": 2, "trial-001": 2}, "the stage gap trained the first alone"
    assert {m["role"] for m in manifests["student"].summary["members"]} == {"distilled", "hard"}
    pipeline.run(configuration(folder, **plain), taught, until="student")  # another student, the same table
    assert [path.parent for path in taught.glob("vectors/*/table.safetensors")] == tables


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("student.terms=[{name: patient, layers: [[1, 9]]}]", r"student\.terms\.0\.layers: .*layer_9"),
        ("student.terms=[{name: hidden_mse, projection: none}]", r"student\.terms\.0\.projection: .*16.*32"),
        (
            "student.model.architecture.num_attention_heads=4",
            r"student\.phases\.0\.terms\.1\.\w+: .*4.*2",
        ),
        ("data.text.max_length=64", None),
        ("student.phases.0.corpus.max_length=64", r"max_position_embeddings: 32 .*64"),
        (
            "student.phases.1.training.batch_size=1000",
            r"^student\.phases\.1\.training\.batch_size: 1000, but a student sees 420 rows; lower it$",
        ),
        (
            "student.phases.0.corpus.rows=15",
            r"^student\.phases\.0\.training\.batch_size: 16, but its corpus has 15 texts of 4 tokens or more",
        ),
        (
            "student.phases.0.corpus.min_length=16",
            r"^student\.phases\.0\.training\.batch_size: 16, but its corpus has 0 texts of 16 tokens",
        ),
        ("student.phases.0.corpus.rows=16", None),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    folder: Path, tmp_path: Path, override: str, says: str | None
) -> None:
    run = tmp_path / "run"
    if says is None:
        config = configuration(folder, override)
        pipeline.run(config, run, until="data")
        pipeline.check(config, run)
        return
    with pytest.raises(ConfigError, match=says):
        pipeline.run(configuration(folder, override), run)
    assert not (run / "teachers").exists()


KEEP = [
    "student.phases=[]",
    "student.terms=[{name: hidden_mse}, {name: attention_mse, weight: 0.1}, {name: patient, weight: 5}]",
    "student.training.early_stopping=null",
]


@pytest.mark.long
def test_states_in_the_store_take_the_place_of_teachers_beside(
    folder: Path, taught: Path, tmp_path: Path
) -> None:
    """The student stage finds no weights of a teacher, and its losses are nearly those beside them."""
    run = taught
    pipeline.run(configuration(folder, *KEEP), run, until="student")
    beside = entries(run)["distilled-seed-0"]
    assert "stored" not in beside["config"]["online"]
    config = configuration(folder, *KEEP, "soft_targets.keep=[hidden, attention]")
    manifests = pipeline.run(config, run, until="soft-targets")
    layout = manifests["soft-targets"].summary["layout"]
    assert layout["kept"]["depth"] == 4 and len(layout["kept"]["hidden"]) == 5
    assert len(list(run.glob("teachers/members/*"))) == 2  # those of before
    for weights in run.glob("teachers/members/*/weights.safetensors"):
        weights.unlink()
    data, store = run / "data" / manifests["data"].fingerprint, manifests["soft-targets"]
    plan = student_stage.plan(config, run, data.name, store.fingerprint)
    tracker = Tracker(config.tracking, tmp_path, config.name, print)
    with Runtime(config.compute, local=True) as runtime:
        context = Context(config, run, runtime, tracker)
        found = student_stage.run(
            context,
            plan,
            Upstream(
                data,
                manifests["data"].summary["info"],
                (run / "soft_targets" / store.fingerprint, store),
                manifests["teachers"],
            ),
        )
    shipped = read_manifest(run / "student" / "members" / found.summary["members"][0]["fingerprint"])
    assert shipped is not None and shipped.summary["name"] == "distilled-seed-0"
    assert shipped.config["online"]["stored"] is True and shipped.inputs["soft_targets"] == store.fingerprint
    losses = [
        [entry["train_loss"] for entry in summary["history"]]
        for summary in (beside["summary"], shipped.summary)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.long
def test_specialists_start_from_pretrained_transformers(folder: Path, taught: Path) -> None:
    overrides = [
        "clusters={num_clusters: 2, classes_per_specialist: 2}",
        "specialists={weight: 1, training: {epochs: 1}}",
    ]
    manifests = pipeline.run(configuration(folder, *overrides), taught, until="combined-targets")
    for member in manifests["specialists"].summary["members"]:
        path = taught / "specialists" / "members" / member["fingerprint"]
        settings = json.loads((path / "manifest.json").read_text())["config"]
        specialist = load_network(settings, manifests["data"].summary["info"], path)
        assert specialist.head is not None and specialist.head.out_features == len(member["classes"]) == 2
    assert manifests["combined-targets"].summary["rows"] == len(
        load_labels(taught / "data" / manifests["data"].fingerprint, "transfer")
    )


def test_check_tells_how_much_would_be_kept(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = configuration(folder, *KEEP, "soft_targets.keep=[hidden]", "soft_targets.keep_layers=[2, 4]")
    info = pipeline.run(config, run, until="data")["data"].summary["info"]
    (line,) = [line for line in pipeline.check(config, run) if line.name == "soft-targets"]
    length, rows = info["input_shape"][0], info["counts"]["transfer"]
    assert line.expected == rows * 2 * (2 * 3 + 2 * 2 * length * 32)
    config = configuration(folder, *KEEP, "soft_targets.keep=[hidden]", "soft_targets.keep_at_most=0.0001")
    with pytest.raises(
        ConfigError, match=r"soft_targets\.keep_at_most: 0\.0001 GB, but hidden of 2 teachers"
    ):
        pipeline.run(config, run)
    assert not (run / "teachers").exists()
