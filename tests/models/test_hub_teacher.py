"""A classifier by its hub name: what lies in the cache beside its weights counts as in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_kd.config import TransformerConfig, validate
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.foreign import classifier_problems, pixels_of, taken_over
from ensemble_kd.models.transplant import resolve
from ensemble_kd.pretrained import source_file, source_folder
from ensemble_kd.stages.pretrained_files import source_problems
from ensemble_kd.stages.teachers import tasks
from ensemble_kd.train.initial import load_initial

NAME = "somebody/tiny-vit"
INFO = {
    "kind": "image",
    "input_shape": [8, 8, 3],
    "num_classes": 2,
    "class_names": ["cat", "dog"],
    "mean": [0.3, 0.4, 0.5],
    "std": [0.2, 0.2, 0.2],
    "vocabulary_size": 0,
    "preprocess": {},
}
PROCESSOR = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, folder: Path, name: str = NAME) -> Path:
    """A folder as the hub's client leaves it in its cache."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    return snapshot


def write_vit(folder: Path, processor: dict[str, Any] | None, names: list[str] | None = None) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_labels": 2} if names is None else {"id2label": dict(enumerate(names))}
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        initializer_range=1.0,
        **settings,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def plain_logits(folder: Path, images: np.ndarray, mean: float, std: float) -> torch.Tensor:
    from transformers import ViTForImageClassification

    pixels = (torch.from_numpy(images).float() / 255 - mean) / std
    with torch.inference_mode():
        found: torch.Tensor = (
            ViTForImageClassification.from_pretrained(folder).eval()(pixels.permute(0, 3, 1, 2)).logits
        )
    return found


@pytest.mark.parametrize("place", ["folder", "name"])
def test_it_answers_as_with_its_own_processor(tmp_path: Path, cache: Path, place: str) -> None:
    folder = write_vit(tmp_path / "vit", PROCESSOR, ["dog", "cat"])
    put(cache, folder)
    source = str(folder) if place == "folder" else NAME
    assert classifier_problems(source, INFO, "teachers.given.0") == []
    model, initial = resolve(TransformerConfig(source=source))
    assert initial is not None
    initial |= taken_over(source, INFO, None)
    network = build(TransformerConfig.model_validate(model), INFO)
    load_initial(network, initial, None, INFO)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = network.eval()(torch.from_numpy(images)).logits
    assert torch.allclose(found, plain_logits(folder, images, 0.5, 0.25).flip(1), atol=1e-4)
    assert network.mean is not None and network.std is not None
    assert network.mean.tolist() == pytest.approx([0.5] * 3) and network.std.tolist() == pytest.approx(
        [0.25] * 3
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (PROCESSOR, (1 / 255 / 0.25, -2.0)),
        ({**PROCESSOR, "do_normalize": False}, (1 / 255, 0.0)),
        ({**PROCESSOR, "do_rescale": False}, (4.0, -2.0)),
        ({**PROCESSOR, "rescale_factor": 1 / 127.5}, (4 / 127.5, -2.0)),
        ({"image_processor_type": "ViTImageProcessor"}, (2 / 255, -1.0)),
        ({"image_processor_type": "ViTImageProcessorFast", "image_std": [0.25] * 3}, (4 / 255, -2.0)),
        ({"image_processor_type": "MadeUp"}, None),
        (None, None),
    ],
)
def test_what_its_processor_says(tmp_path: Path, said: Any, expected: tuple[float, float] | None) -> None:
    if said is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = pixels_of(str(tmp_path))
    if expected is None or found is None:
        assert found is expected is None
        return
    for values, value in zip(found, expected, strict=True):
        assert values == pytest.approx([value] * len(values), abs=1e-6)


def test_a_processor_inside_another_file_and_one_that_is_not_linear(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PROCESSOR}))
    found = pixels_of(str(tmp_path))
    assert found is not None and found[0] == pytest.approx([4 / 255] * 3) and found[1] == [-2.0] * 3
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"rescale_offset": True}}))
    with pytest.raises(ConfigError, match="teachers.source=transformers"):
        pixels_of(str(tmp_path))


def test_moments_that_are_the_data_s_change_nothing(tmp_path: Path) -> None:
    own = {**PROCESSOR, "image_mean": INFO["mean"], "image_std": INFO["std"]}
    assert taken_over(str(write_vit(tmp_path / "vit", own)), INFO, None) == {}


def test_a_name_that_is_not_in_the_cache(cache: Path) -> None:
    assert source_folder(NAME) is None and source_file(NAME, "preprocessor_config.json") is None
    assert source_folder("no/such/name/at/all") is None


def test_its_task_carries_what_it_needs(tmp_path: Path, cache: Path) -> None:
    put(cache, write_vit(tmp_path / "vit", PROCESSOR))
    config = validate(
        {"name": "x", "data": {"source": "digits"}, "teachers": {"source": "pretrained", "given": [NAME]}}
    )
    (task,) = tasks(config, "data", 10, INFO)
    assert task.initial is not None and set(task.initial["pixels"]) == {"scale", "shift"}
    (plain,) = tasks(config, "data", 10)
    assert plain.initial is not None and "pixels" not in plain.initial


def test_an_encoder_by_name_is_no_classifier(tmp_path: Path, cache: Path) -> None:
    """Its configuration does not say so: the weights in the cache do."""
    from safetensors.torch import load_file, save_file

    folder = write_vit(tmp_path / "vit", None)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    put(cache, folder)
    (problem,) = classifier_problems(NAME, INFO, "teachers.given.0")
    assert problem.startswith(f"teachers.given.0: {NAME} has no classifier for these classes (cat, dog)")


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "task_type": "SEQ_CLS"}


@pytest.mark.parametrize("place", ["folder", "name"])
def test_an_adapter_is_told_with_the_lines_that_merge_it(tmp_path: Path, cache: Path, place: str) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    if place == "name":
        (folder / "config.json").write_text("{}")  # the client caches what was asked for
        put(cache, folder)
    source = str(folder) if place == "folder" else NAME
    config = validate(
        {
            "name": "x",
            "data": {"path": str(tmp_path), "kind": "text", "text": {"tokenizer": "pretrained"}},
            "teachers": {"source": "pretrained", "given": [source]},
            "student": {"model": {"name": "bag"}},
        }
    )
    (problem,) = source_problems(config)
    first, *lines = problem.splitlines()
    assert (
        first.startswith("teachers.given.0: ") and "adapter (PEFT)" in first and "bert-base-uncased" in first
    )
    assert len(lines) == 2 and ".merge_and_unload().save_pretrained('merged')" in lines[0]
    assert "AutoTokenizer.from_pretrained('bert-base-uncased').save_pretrained('merged')" in lines[1]
