"""Classifiers with their own tokenizers and image processors, held against transformers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_roberta import write_roberta
from test_given_teachers import CLASSES, write_classifier

from ensemble_kd.errors import ConfigError
from ensemble_kd.models.classifier import load_classifier

TEXTS: dict[str, Any] = {
    "kind": "text",
    "input_shape": [16],
    "num_classes": 2,
    "class_names": CLASSES,
}
ROWS = ["my card is lost", "the cat sat on the mat", "it", "payment " * 60]


def reference(folder: Path, rows: list[str]) -> np.ndarray:
    from transformers import pipeline

    ask = pipeline("text-classification", str(folder), top_k=None, function_to_apply="none")
    found = ask(rows, truncation=True, max_length=30)
    config: Any = ask.model.config
    names = [config.id2label[i] for i in range(2)]
    scores: list[Any] = [{entry["label"]: entry["score"] for entry in row} for row in found]  # type: ignore
    return np.array([[row[name] for name in names] for row in scores], np.float32)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_texts_are_read_by_the_models_own_tokenizer(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    write_roberta(folder, ROWS) if kind == "roberta" else write_classifier(folder, CLASSES)
    found = load_classifier(str(folder), TEXTS, "teachers.given.0")(ROWS)
    torch.testing.assert_close(found[:3], torch.from_numpy(reference(folder, ROWS[:3])), rtol=1e-4, atol=1e-5)
    assert torch.isfinite(found[3]).all()  # longer than the model's positions: cut, not refused


def test_outputs_stand_in_the_datas_order_of_classes(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "turned", ["money", "animal"])
    found = load_classifier(str(folder), TEXTS, "teachers.given.0")(ROWS[:2])
    np.testing.assert_allclose(found.flip(1).numpy(), reference(folder, ROWS[:2]), rtol=1e-4)
    as_it_is = load_classifier(str(folder), TEXTS, "teachers.given.0", named=False)(ROWS[:2])
    torch.testing.assert_close(as_it_is, found.flip(1))


def test_pairs_of_texts(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "pairs", CLASSES)
    ask = load_classifier(str(folder), TEXTS, "teachers.given.0")
    both = ask([("my card", "the cat"), ("pay", "it sat on my mat")])
    alone = torch.cat([ask([("my card", "the cat")]), ask([("pay", "it sat on my mat")])])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], ask([("the cat", "my card")])[0])


def test_grey_images_of_another_size(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        initializer_range=1.0,
        id2label={0: "LABEL_0", 1: "LABEL_1"},
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    processor = ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(256, size=(3, 8, 8, 1), dtype=np.uint8)
    info = {"kind": "image", "input_shape": [8, 8, 1], "num_classes": 2, "class_names": ["cat", "dog"]}
    found = load_classifier(str(tmp_path), info, "teachers.given.0")(images)
    ask = pipeline("image-classification", str(tmp_path), function_to_apply="none")
    for row, image in zip(found, images, strict=True):
        told = {e["label"]: e["score"] for e in ask(Image.fromarray(image[..., 0]).convert("RGB"))}
        assert row.tolist() == pytest.approx([told["LABEL_0"], told["LABEL_1"]], rel=1e-3, abs=1e-4)


def test_one_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "bert", CLASSES)
    (folder / "vocab.txt").unlink()
    with pytest.raises(ConfigError, match="teachers.given.2: cannot load the tokenizer"):
        load_classifier(str(folder), TEXTS, "teachers.given.2")


def test_another_number_of_classes_is_told(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "bert", CLASSES)
    info = {**TEXTS, "num_classes": 3, "class_names": ["animal", "money", "other"]}
    with pytest.raises(ConfigError, match="tells 2 classes apart"):
        load_classifier(str(folder), info, "teachers.given.0")
