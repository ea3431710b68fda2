"""A model that was trained without padding, as those of the GPT kind are: it teaches as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification

from ensemble_kd.config import ExportConfig, TransformerConfig, validate
from ensemble_kd.data.tokenize import PretrainedTokenizer, pad
from ensemble_kd.errors import ConfigError
from ensemble_kd.models.build import build
from ensemble_kd.models.transplant import resolve
from ensemble_kd.pretrained import read_tokenizer
from ensemble_kd.train.initial import load_initial
from ensemble_kd.train.loop import predict

TEXTS = ["ab", "abcabc", "c", "b <|endoftext|> a", "aaaa"]


def write_gpt(folder: Path, **changes: Any) -> Path:
    """A small GPT-2 classifier, and a tokenizer of bytes whose only special token ends a text."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = end = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_labels": 3,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
        **changes,
    }
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=1.0,
        **settings,
    )
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def info_of(tokenizer: PretrainedTokenizer) -> dict[str, Any]:
    return {
        "kind": "text",
        "input_shape": [24],
        "num_classes": 3,
        "class_names": ["a", "b", "c"],
        "mean": [],
        "std": [],
        "vocabulary_size": tokenizer.size,
        "preprocess": {
            "special": tokenizer.special,
            "columns": {"input": "input"},
            "text": {"tokenizer": "pretrained", "max_length": 24},
        },
    }


def test_a_batch_of_texts_is_answered_as_each_alone(tmp_path: Path) -> None:
    source = str(write_gpt(tmp_path / "gpt"))
    tokenizer = PretrainedTokenizer(read_tokenizer(source), 24)
    assert "pad" not in tokenizer.special
    info = info_of(tokenizer)
    settings, initial = resolve(TransformerConfig(source=source))
    network = build(TransformerConfig.model_validate(settings), info)
    assert initial is not None
    load_initial(network, initial, None, info)
    tokens = torch.from_numpy(pad(*tokenizer.encode(TEXTS), 24))
    found = predict(network, tokens, torch.device("cpu"))
    plain = GPT2ForSequenceClassification.from_pretrained(source).eval()
    for text, logits in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer.tokenizer.encode(text).ids])
        with torch.inference_mode():
            assert torch.allclose(plain(input_ids=ids).logits[0], logits, atol=1e-5), text


def test_without_any_token_that_could_stand_for_it_check_says_so(tmp_path: Path) -> None:
    source = str(write_gpt(tmp_path / "gpt", eos_token_id=None))
    info = info_of(PretrainedTokenizer(read_tokenizer(source), 24))
    settings, _ = resolve(TransformerConfig(source=source))
    with pytest.raises(ConfigError, match=r"architecture\.pad_token_id: a 'gpt2' without a padding token"):
        build(TransformerConfig.model_validate(settings), info)


def test_the_exported_tokenizer_pads(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ensemble_kd.export.huggingface import write_huggingface

    source = str(write_gpt(tmp_path / "gpt"))
    tokenizer = PretrainedTokenizer(read_tokenizer(source), 24)
    info = info_of(tokenizer)
    network = build(
        TransformerConfig.model_validate(resolve(TransformerConfig(source=source))[0]), info
    ).eval()
    write_huggingface(network, info, Path(source) / "tokenizer.json", 1.0, tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    texts = TEXTS[:3]
    with torch.inference_mode():
        found = model(**read(texts, padding=True, return_tensors="pt")).logits.numpy()
    tokens = torch.from_numpy(pad(*tokenizer.encode(texts), 24))
    np.testing.assert_allclose(found, predict(network, tokens, torch.device("cpu")).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            {},
            r"export\.forms: huggingface .* student\.model is 'mlp'; it can have onnx, int8, program, mlflow",
        ),
        ({"model": {"name": "resnet"}}, "student.model is 'resnet'"),
    ],
)
def test_a_form_that_the_student_cannot_have_is_refused(student: dict[str, Any], message: str) -> None:
    raw: dict[str, Any] = {"name": "x", "data": {"source": "digits"}, "student": student}
    with pytest.raises(ConfigError, match=message):
        validate({**raw, "export": {"forms": ["huggingface"]}})
    assert validate({**raw, "export": {}}).export == ExportConfig()
