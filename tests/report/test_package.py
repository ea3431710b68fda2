import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_kd.artifacts import MANIFEST
from ensemble_kd.config import MLPConfig
from ensemble_kd.errors import ArtifactError
from ensemble_kd.models import package
from ensemble_kd.models.build import Network, build
from ensemble_kd.models.package import load_package, save_package

INFO: dict[str, Any] = {
    "kind": "numeric",
    "input_shape": [4],
    "num_classes": 3,
    "class_names": ["a", "b", "c"],
    "mean": [0.0, 1.0, 2.0, 3.0],
    "std": [1.0, 2.0, 1.0, 0.5],
    "vocabulary_size": 0,
    "preprocess": {"columns": {"input": ["w", "x", "y", "z"]}},
    "counts": {"train": 10},
}
MODEL = MLPConfig.model_validate({"hidden": [5]})
LINEAGE = {"data": "0123456789abcdef"}


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build(MODEL, INFO).eval()


def saved(folder: Path, seed: int = 0, tokenizer: Path | None = None) -> Path:
    save_package(folder, network(seed), MODEL.model_dump(), INFO, "# card\n", tokenizer, lineage=LINEAGE)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    tokenizer = tmp_path / "learned.json"
    tokenizer.write_text("{}")
    loaded = load_package(saved(tmp_path / "run" / "model", tokenizer=tokenizer))
    inputs = torch.randn(6, 4)
    assert torch.equal(loaded.network(inputs).logits, network()(inputs).logits)
    assert loaded.info == INFO and loaded.lineage == LINEAGE and not loaded.network.training
    assert loaded.tokenizer is not None and loaded.tokenizer.read_text() == "{}"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model"]


def test_the_card_is_the_users_to_edit(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "README.md").write_text("license: mit")
    load_package(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_a_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model")
    content = bytearray((folder / name).read_bytes())
    content[-3] = ord(" ") if content[-3] != ord(" ") else ord("\t")
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name}: (content differs|not JSON)"):
        load_package(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", MANIFEST])
def test_a_half_written_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing"):
        load_package(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        load_package(tmp_path / "model")


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "weights.PT").write_bytes(b"")
    with pytest.raises(ArtifactError, match="weights.PT: a pickle"):
        load_package(folder)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(ArtifactError, match="config.json: format 99, this version reads format 1; upgrade"):
        load_package(folder)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/hostname"])
def test_paths_outside_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.json").write_text("{}")
    folder = saved(tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 2, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="outside"):
        load_package(folder)


def test_a_link_to_outside_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "weights.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "weights.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ArtifactError, match="outside"):
        load_package(folder)


@pytest.mark.parametrize("files", [[], {"config.json": {}}, {"config.json": None}])
def test_an_odd_manifest_is_refused(tmp_path: Path, files: Any) -> None:
    folder = saved(tmp_path / "model")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}))
    with pytest.raises(ArtifactError, match=MANIFEST):
        load_package(folder)


def test_a_failure_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model", seed=1)
    (tmp_path / ".model.new.1.tmp").mkdir()  # what a killed process left

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(package, "finish", full)
        with pytest.raises(OSError, match="No space"):
            saved(folder, seed=2)
    inputs = torch.randn(2, 4)
    assert torch.equal(load_package(folder).network(inputs).logits, network(1)(inputs).logits)
    saved(folder, seed=2)
    assert torch.equal(load_package(folder).network(inputs).logits, network(2)(inputs).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
