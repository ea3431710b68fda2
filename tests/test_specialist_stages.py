"""Clusters, specialists and their combination as stages of a run: results, choices, damage, wrong inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ensemble_kd import pipeline
from ensemble_kd.artifacts import Manifest, read_manifest
from ensemble_kd.cli import app
from ensemble_kd.config import Config, load_config
from ensemble_kd.data.records import load_labels, load_split
from ensemble_kd.data.store import StoreLayout, load_columns
from ensemble_kd.ensemble.choice import with_specialists
from ensemble_kd.ensemble.combine import mean_logits
from ensemble_kd.errors import ArtifactError, ConfigError, InputError
from ensemble_kd.stages import specialists as specialists_stage
from ensemble_kd.stages.combined_targets import check_classes
from ensemble_kd.stages.context import Console
from ensemble_kd.train.blocks import as_tensor
from ensemble_kd.train.initial import load_network
from ensemble_kd.train.loop import predict

TINY = [
    "teachers.num_members=2",
    "teachers.training.epochs=6",
    "teachers.model={name: mlp, hidden: [16]}",
    "specialists.training={epochs: 3, batch_size: 16}",
    "specialists.weight=1",
    "student.training.epochs=3",
    "student.seeds=1",
    "student.model.hidden=[8]",
    "data.shard_rows=500",
    "compute.executor=local",
    "tracking.enabled=false",
    "sweep=null",
]
STAGES = load_config("digits", TINY).stages
CPU = torch.device("cpu")


def tiny(*overrides: str) -> Config:
    return load_config("digits", [*TINY, *overrides])


def run(folder: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    console = Console(line=said.append, warning=said.append)
    return pipeline.run(tiny(*overrides), folder, console=console, **options), said


def kept(said: list[str]) -> list[str]:
    return [line.split(":")[0] for line in said if line.endswith("(kept)")]


def members(folder: Path, stage: str) -> set[str]:
    return {path.parent.name for path in (folder / stage / "members").glob("*/manifest.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def only(folder: Path, stage: str) -> Path:
    found = {p.parent for p in folder.glob(f"{stage}/*/manifest.json") if p.parent.parent.name == stage}
    (path,) = (p for p in found if not p.name.startswith("."))  # not what --fresh put aside
    return path


# ---------------------------------------------------------------------------------------------- results


@pytest.mark.slow
def test_the_report_shows_what_specialists_changed(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    roles = {system["role"] for system in report["systems"]}
    assert {"generalist_specialists", "ensemble_specialists", "distilled", "from_ensemble"} <= roles
    section = report["specialists"]
    assert len(section["clusters"]) == 2 and section["targets"] == "specialists"
    assert sum(line["rows"] for line in section["coverage"]) == report["counts"]["test"]
    ensemble = next(s for s in report["systems"] if s["role"] == "ensemble")
    assert sum(line["ensemble"] for line in section["coverage"]) == round(
        ensemble["accuracy"] * report["counts"]["test"]
    )
    page = (finished / "report.html").read_text()
    assert "By number of specialists" in page and "by cluster" in page
    assert {"clusters", "specialists", "combined_targets"} <= set(report["lineage"])


@pytest.mark.slow
def test_the_store_holds_each_teacher_combined_with_its_own_specialists(finished: Path) -> None:
    """Computed once more from the weights, in one piece and without the stage."""
    folder = only(finished, "combined_targets")
    manifest = read_manifest(folder)
    assert manifest is not None
    layout = StoreLayout(**manifest.summary["layout"])
    names = sorted(name for name in manifest.files if name.endswith(".parquet"))
    stored = load_columns(folder, names, layout, manifest.summary["rows"])["logits"][:, 0]
    data = only(finished, "data")
    info = json.loads((data / "info.json").read_text()) if (data / "info.json").exists() else None
    info = info or read_manifest(data).summary["info"]  # type: ignore[union-attr]
    inputs = as_tensor(load_split(data, "transfer").inputs)

    def logits(stage: str, name: str) -> torch.Tensor:
        member = finished / stage / "members" / name
        receipt = read_manifest(member)
        assert receipt is not None
        return predict(load_network(receipt.config, info, member), inputs, CPU, precision="auto")

    teachers = read_manifest(only(finished, "teachers"))
    specialists = read_manifest(only(finished, "specialists"))
    assert teachers is not None and specialists is not None
    entries = teachers.summary["members"]
    order = [entry["name"] for entry in entries]
    scale = teachers.summary["calibration"]["temperatures"]
    assert all(t != 1 for t in scale), "fitted on the validation rows"
    own = torch.stack(
        [logits("teachers", e["fingerprint"]) / t for e, t in zip(entries, scale, strict=True)], 1
    )
    clusters: dict[int, tuple[list[int], dict[int, torch.Tensor]]] = {}
    for entry in specialists.summary["members"]:
        group = clusters.setdefault(entry["cluster"], (entry["classes"], {}))
        i = order.index(entry["generalist"])
        group[1][i] = logits("specialists", entry["fingerprint"]) / scale[i]
    weights = manifest.summary["choice"]["weights"]
    expected = with_specialists(own, [clusters[k] for k in sorted(clusters)], weights)
    found = torch.from_numpy(stored).float().log_softmax(2)
    torch.testing.assert_close(found.exp(), expected.exp(), atol=4e-3, rtol=0)


@pytest.mark.slow
def test_held_out_predictions_of_the_combination_agree_with_the_report(finished: Path) -> None:
    combined = load_file(only(finished, "combined_targets") / "combined.safetensors")
    labels = torch.from_numpy(load_labels(only(finished, "data"), "test"))
    report = json.loads((finished / "report.json").read_text())
    for role, kind in (("ensemble_specialists", "ensemble"), ("generalist_specialists", "generalist")):
        system = next(s for s in report["systems"] if s["role"] == role)
        right = (combined[f"{kind}/test"].argmax(1) == labels).float().mean()
        assert system["accuracy"] == pytest.approx(float(right))


@pytest.mark.slow
def test_specialists_at_weight_0_leave_the_ensemble_and_its_students(copy: Path) -> None:
    before = members(copy, "student")
    manifests, said = run(copy, "specialists.weight=0")
    combined = manifests["combined-targets"]
    assert not combined.summary["on"] and not [n for n in combined.files if n.endswith(".parquet")]
    assert kept(said) == ["data", "teachers", "gap", "soft-targets", "clusters", "specialists"]
    assert members(copy, "student") == before, "the student from the ensemble is trained already"
    log_q = load_file(only_with(copy, combined.fingerprint) / "combined.safetensors")["ensemble/test"]
    teachers = manifests["teachers"].summary["members"]
    logits = [
        load_file(copy / "teachers" / "members" / m["fingerprint"] / "predictions.safetensors")["test"]
        for m in teachers
    ]
    scale = manifests["teachers"].summary["calibration"]["temperatures"]
    expected = mean_logits(torch.stack(logits, 1), 1.0, calibration=scale)
    torch.testing.assert_close(log_q, expected, atol=1e-5, rtol=1e-5)
    report = json.loads((copy / "report.json").read_text())["calibration"]
    assert [m["temperature"] for m in report["members"]] == scale and report["ensemble"]["after"]["ece"] < 0.2


def only_with(folder: Path, fingerprint: str) -> Path:
    return folder / "combined_targets" / fingerprint


# --------------------------------------------------------------------------------- what is done again


@pytest.mark.slow
def test_running_again_keeps_every_stage(copy: Path) -> None:
    _, said = run(copy)
    assert kept(said) == list(STAGES)


@pytest.mark.slow
def test_other_targets_train_only_what_is_new(copy: Path) -> None:
    before = members(copy, "student")
    _, said = run(copy, "student.targets=ensemble")
    assert members(copy, "student") == before, "both kinds were trained"
    assert kept(said) == list(STAGES[:7])
    run(copy, "student.targets=both")
    assert len(members(copy, "student") - before) == 1


@pytest.mark.slow
@pytest.mark.long
def test_another_cluster_trains_only_its_specialists(copy: Path) -> None:
    before = members(copy, "specialists")
    manifests, said = run(copy, "clusters.num_clusters=4", until="specialists")
    after = members(copy, "specialists")
    sets = {tuple(m["classes"]) for m in manifests["specialists"].summary["members"]}
    new = len(after - before)
    assert before <= after and new % 2 == 0 and 0 < new <= 2 * len(sets)
    assert any("num_clusters: 2 -> 4" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "redone"),
    [
        pytest.param("combined_targets/*/part-00001.parquet", "combined-targets", marks=pytest.mark.long),
        ("specialists/members/*/weights.safetensors", "specialists"),
        pytest.param("clusters/*/matrix.safetensors", "clusters", marks=pytest.mark.long),
    ],
)
def test_damage_is_repaired_to_the_same_bytes(copy: Path, pattern: str, redone: str) -> None:
    damaged = sorted(copy.glob(pattern))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    _, said = run(copy)
    assert set(kept(said)) == set(STAGES) - {redone} and damaged.read_bytes() == content


@pytest.mark.slow
@pytest.mark.long
def test_a_streamed_transfer_set_reads_ensemble_and_combination(copy: Path) -> None:
    before = members(copy, "student")
    settings = ["compute.memory_budget=1e-9", "student.targets=both"]
    manifests, said = run(copy, *settings, until="student")
    assert any("is streamed" in line for line in said)
    assert len(members(copy, "student") - before) == 1
    losses = [m["validation_loss"] for m in manifests["student"].summary["members"]]
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.augment.shift=1", "soft_targets.views=2", "specialists.output=full"],
        [
            "specialists.output=row",
            "specialists.correction=formula",
            "specialists.generalists=best",
            "soft_targets.top_k=6",
            "clusters={source: confusion, method: spectral, num_clusters: 2, overlap: false}",
        ],
    ],
)
def test_every_form_ends_in_combined_targets(tmp_path: Path, overrides: list[str]) -> None:
    manifests, _ = run(tmp_path / "run", *overrides, until="combined-targets")
    combined = manifests["combined-targets"]
    assert combined.summary["on"] and combined.summary["rows"] == 718
    best = "specialists.generalists=best" in overrides
    generalists = {m["generalist"] for m in manifests["specialists"].summary["members"]}
    assert len(generalists) == (1 if best else 2)


# ---------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["clusters.min_size=1"], r"clusters\.min_size: .*greater than or equal to 2"),
        (["specialists.special_fraction=1"], r"specialists\.special_fraction: .*less than 1"),
        (["specialists.special_fraction=0"], r"specialists\.special_fraction: .*greater than 0"),
        (["clusters.max_size=2"], r"clusters\.classes_per_specialist: 4 lies outside"),
        (["clusters={max_size: 2, min_size: 3}"], r"clusters\.max_size: 2 is below"),
        (["specialists=null", "student.targets=both"], r"student\.targets: 'both', but there are no spec"),
        (["specialists.output=ful"], r"specialists\.output"),
        (
            ["teachers.source=predictions", "teachers.predictions={train: [a]}", "data.label_fraction=1"],
            r"specialists: they start from a teacher's weights",
        ),
    ],
)
def test_settings_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(*overrides)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clusters={num_clusters: 11}", r"clusters\.num_clusters: 11 clusters of 10 classes"),
        ("clusters={classes_per_specialist: 10}", r"clusters\.classes_per_specialist: 10 of 10 classes"),
    ],
)
def test_more_than_the_classes_is_told_before_training(copy: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.check(tiny(override), copy)
    with pytest.raises(ConfigError, match=message):
        run(copy, override)


def headless(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    """A model without a last linear layer of one output a class."""

    class Headless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(int(np.prod(input_shape)), num_classes))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) @ self.weight

    return Headless()


@pytest.mark.slow
def test_a_teacher_without_an_output_layer_is_told_before_it_is_trained(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    model = "teachers.model={name: custom, callable: 'test_specialist_stages:headless'}"
    with pytest.raises(ConfigError, match="start from the teacher's output layer.*shows none"):
        run(copy, model)
    assert len(members(copy, "teachers")) == 2, "none was trained"


def test_specialists_of_another_class_order_are_refused() -> None:
    def manifest(names: list[str]) -> Manifest:
        return Manifest("x", "0", {}, {}, summary={"class_names": names})

    ours, other = ["cat", "dog"], ["dog", "cat"]
    check_classes(manifest(ours), manifest(ours), ours)
    with pytest.raises(ArtifactError, match=r"specialists are of the classes \['dog', 'cat'\]"):
        check_classes(manifest(other), manifest(ours), ours)
    with pytest.raises(ArtifactError, match="soft targets are of the classes"):
        check_classes(manifest(ours), manifest(other), ours)


def test_a_class_without_labelled_rows_is_named() -> None:
    clusters = [{"classes": [0, 1]}, {"classes": [1, 2]}, {"classes": [0, 2, 3]}]
    with pytest.raises(InputError) as caught:
        specialists_stage.check_labels(clusters, np.array([0, 0, 2, 3]), ["cat", "dog", "emu", "fox"])
    assert "cluster 0 has classes without a labelled row: dog" in str(caught.value.problems[0])
    assert "cluster 1" in caught.value.problems[1] and "every labelled row" in caught.value.problems[2]


def test_a_sub_command_of_a_run_without_specialists_says_what_to_add(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    arguments = ["clusters", "digits", "--set", "specialists=null", "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "--set specialists={}" in result.output


@pytest.mark.slow
def test_the_pass_over_the_store_gives_the_same_in_parts(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = only(copy, "clusters")
    matrix = load_file(before / "matrix.safetensors")["matrix"]
    summary = read_manifest(before)
    monkeypatch.setattr("ensemble_kd.stages.clusters.SPREAD_FROM", 0)
    spread, said = run(copy, until="clusters", fresh=["clusters"])
    assert "clusters" not in kept(said) and summary is not None
    again = load_file(only(copy, "clusters") / "matrix.safetensors")["matrix"]
    torch.testing.assert_close(again, matrix, atol=1e-7, rtol=1e-5)
    ours, theirs = ([c["classes"] for c in m.summary["clusters"]] for m in (spread["clusters"], summary))
    assert ours == theirs


@pytest.mark.parametrize("name", ["digits", "banking77"])
def test_recipes_stop_specialists_early(name: str, tmp_path: Path) -> None:
    config = load_config(name, [] if name == "digits" else [f"data.path={tmp_path}"])
    assert config.specialists is not None and config.specialists.training.early_stopping == 3
