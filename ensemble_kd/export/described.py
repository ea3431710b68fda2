"""What a form's folder needs beside its model to be used elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ensemble_kd.artifacts import write_atomic, write_json
from ensemble_kd.inference.feed import input_names
from ensemble_kd.model_folder import CONFIG, PACKAGE_FORMAT, TOKENIZER, plugins_for
from ensemble_kd.models.package import Package
from ensemble_kd.redact import redacted_model

REQUIREMENTS = "requirements.txt"

NEEDS = {
    "onnx": ["numpy", "onnxruntime"],
    "int8": ["numpy", "onnxruntime"],
    "program": ["torch"],
    "huggingface": ["torch", "transformers"],
    "mlflow": [],  # MLflow writes them
}


def describe(form: str, source: Package, folder: Path, extra: dict[str, Any]) -> None:
    """What a folder needs beside its model to be used elsewhere."""
    write_json(
        folder / CONFIG,
        {
            "format": PACKAGE_FORMAT,
            "form": form,
            "inputs": inputs_of(source.info),
            "output": {"name": "logits", "shape": ["rows", source.info["num_classes"]], "type": "float32"},
            "calibration": source.calibration,
            "info": source.info,
            "lineage": source.lineage,
            "model": redacted_model(source.model),
            **plugins_for(source.model),
            **extra,
        },
    )
    needs = list(NEEDS[form])
    if source.tokenizer is not None:
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
        needs.append("tokenizers")
    write_atomic(folder / REQUIREMENTS, "\n".join(needs) + "\n")


def inputs_of(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, shape, type and meaning of each input of a graph, for those who run it without this package."""
    meanings = {
        "pixels": "0 to 255 as they are decoded; the graph normalises them",
        "numbers": "raw, in the order of the columns; the graph normalises them",
        "input_ids": "numbers that tokenizer.json gives, special tokens included, any number behind the text",
        "attention_mask": "1 for tokens, 0 for padding behind them",
        "tokens": "numbers from 1 on, 0 behind the text: "
        + (
            "those of tokenizer.json (without special tokens) plus 1"
            if info["preprocess"].get("text", {}).get("tokenizer") == "subword"
            else "CRC-32 of words and n-grams modulo the number of buckets, plus 1"
        ),
    }
    kind = {"image": "uint8", "numeric": "float32", "text": "int64"}[info["kind"]]
    shape = info["input_shape"] if info["kind"] != "text" else [f"length, at most {info['input_shape'][0]}"]
    return [
        {"name": name, "shape": ["rows", *shape], "type": kind, "meaning": meanings[name]}
        for name in input_names(info)
    ]


def model_bytes(folder: Path) -> int:
    """Of the weights and the graph alone, without tokenizer and descriptions."""
    ends = (".onnx", ".pt2", ".safetensors")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in ends)
