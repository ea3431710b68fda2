"""The rows and the teacher of the comparison: letter's 16 numbers, five perceptrons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.given import Teacher, perceptron

HELD_OUT = 1600
"""Rows of train that are for validation: ours looks at them after each epoch, the others have no use for
them."""


def settings(quick: bool) -> dict[str, Any]:
    return {
        "epochs": 1 if quick else 5,
        "batch_size": 64,
        "learning_rate": 0.003,
        "temperature": 2.0,
        "alpha": 0.9,
        "hidden": [64],
        "teacher_hidden": [256],
        "members": 5,
        "teacher_epochs": 1 if quick else 10,
    }


def prepare(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Write rows, teacher and settings; returns what is to be said of them."""
    chosen, arrays = settings(quick), rows(data)
    if quick:
        arrays = {name: array[:1280] for name, array in arrays.items()}
    torch.set_num_threads(1)
    inputs, labels = (torch.from_numpy(arrays[f"train_{name}"]) for name in ("inputs", "labels"))
    members = [_trained(inputs, labels, chosen, seed) for seed in range(chosen["members"])]
    teacher = Teacher(list(members)).eval()
    with torch.no_grad():
        for split in ("train", "validation", "test"):
            arrays[f"{split}_logits"] = teacher(torch.from_numpy(arrays[f"{split}_inputs"])).numpy()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    (folder / "settings.json").write_text(json.dumps(chosen), encoding="utf-8")
    right = arrays["test_logits"].argmax(1) == arrays["test_labels"]
    return chosen | {"rows": len(labels), "test_rows": len(right), "teacher_accuracy": float(right.mean())}


def rows(data: Path) -> dict[str, np.ndarray]:
    """Standardised columns (N, 16) float32 and labels (N,) of train, validation and test."""
    found: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        file = data / "letter" / f"{split}.parquet"
        if not file.exists():
            raise RuntimeError(f"peers: no {file}; name the folder that holds letter/ with --data")
        table = pq.read_table(file)
        columns = [name for name in table.column_names if not name.startswith("label")]
        found[f"{split}_inputs"] = np.stack([table[name].to_numpy() for name in columns], 1)
        found[f"{split}_labels"] = table["label"].to_numpy().astype(np.int64)
    order = np.random.default_rng(0).permutation(len(found["train_labels"]))
    for name in ("inputs", "labels"):
        shuffled = found[f"train_{name}"][order]
        found[f"train_{name}"], found[f"validation_{name}"] = shuffled[:-HELD_OUT], shuffled[-HELD_OUT:]
    mean, std = found["train_inputs"].mean(0), found["train_inputs"].std(0)
    for split in ("train", "validation", "test"):
        found[f"{split}_inputs"] = ((found[f"{split}_inputs"] - mean) / std).astype(np.float32)
    return found


def _trained(inputs: torch.Tensor, labels: torch.Tensor, chosen: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    network = perceptron(inputs.shape[1], chosen["teacher_hidden"], int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for _ in range(chosen["teacher_epochs"]):
        for picked in torch.randperm(len(inputs)).split(128):
            optimizer.zero_grad()
            cross_entropy(network(inputs[picked]), labels[picked]).backward()
            optimizer.step()
    return network
