"""serve: rows a second through HTTP, against `predict` on the same rows; latencies, and no failure.

Two models with random weights: a BERT of two blocks, as a student of texts may be, and an mlp for small
images, whose forward pass is nearly free, so that all that counts is what a request costs. Clients are 16
threads of a second process, each sending requests of 32 rows, one after another.

    python -m benchmarks serve --seconds 60
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Measured, benchmark, fresh_processes, median, rounded, say

CLIENTS, ROWS = 16, 32
"""Connections, and rows of a request."""
TURNS = 3
CLASSES = 77
HEADERS = {"Content-Type": "application/json"}
START = 180
"""Seconds after which a server that has not started is given up."""

# ---------------------------------------------------------------------------------------------- models


def text_model(folder: Path, rows: int) -> Path:
    """A model folder, and rows.parquet beside it: made-up questions of 14 tokens on average."""
    from ensemble_kd.config import TextConfig
    from ensemble_kd.data.tokenize import TOKENIZER_FILE, learn_subwords

    generator = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(generator.choice(letters, generator.integers(2, 9))) for _ in range(3000)]
    lengths = np.clip(np.round(generator.lognormal(np.log(10), 0.6, rows)), 2, 60).astype(int)
    texts = [" ".join(generator.choice(words, length)) for length in lengths]
    text = TextConfig(tokenizer="subword", vocabulary_size=6000, max_length=128)
    folder.mkdir(parents=True)
    tokenizer = learn_subwords(lambda: [texts], text, folder)
    architecture = {
        "model_type": "bert",
        "hidden_size": 192,
        "num_attention_heads": 12,
        "intermediate_size": 768,
        "num_hidden_layers": 2,
        "vocab_size": tokenizer.size,
    }
    special = {name: i for i, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    preprocess = {"text": text.model_dump(mode="json"), "special": special}
    model = {"name": "transformer", "architecture": architecture}
    pq.write_table(pa.table({"input": texts}), folder / "rows.parquet")
    return _save(folder, model, "text", [128], preprocess, folder / TOKENIZER_FILE, tokenizer.size)


def image_model(folder: Path, rows: int) -> Path:
    """A model folder, and rows.parquet beside it: images of 8x8 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 64), dtype=np.uint8)
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"input": pa.array([row.tobytes() for row in pixels])}), folder / "rows.parquet")
    preprocess = {"image": {"shape": [8, 8, 1]}}
    return _save(folder, {"name": "mlp", "hidden": [32, 32]}, "image", [8, 8, 1], preprocess)


def number_model(folder: Path, rows: int) -> Path:
    """A model folder, and rows.parquet beside it: lists of 8 numbers."""
    values = np.random.default_rng(0).normal(size=(rows, 8))
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"input": values.tolist()}), folder / "rows.parquet")
    return _save(folder, {"name": "mlp", "hidden": [32]}, "numeric", [8], {})


def _save(
    folder: Path,
    model: dict[str, Any],
    kind: str,
    shape: list[int],
    preprocess: dict[str, Any],
    tokenizer: Path | None = None,
    vocabulary: int = 0,
) -> Path:
    import torch
    from pydantic import TypeAdapter

    from ensemble_kd.config import ModelConfig
    from ensemble_kd.data.records import DataInfo
    from ensemble_kd.models.build import build
    from ensemble_kd.models.package import save_package

    channels = {"image": shape[-1], "numeric": shape[0]}.get(kind, 0)
    info = DataInfo(
        kind=kind,
        input_shape=shape,
        num_classes=CLASSES,
        class_names=[f"class {c}" for c in range(CLASSES)],
        mean=[0.4] * channels,
        std=[0.3] * channels,
        vocabulary_size=vocabulary,
        preprocess={"columns": {"input": "input", "label": "label", "id": None}, **preprocess},
        counts={},
    ).to_dict()
    torch.manual_seed(0)
    network = build(TypeAdapter(ModelConfig).validate_python(model), info).eval()
    save_package(folder / "model", network, model, info, "# Made for a benchmark", tokenizer, lineage={})
    return folder / "model"


# ---------------------------------------------------------------------------------------------- clients


@contextmanager
def served(
    model: Path,
    *options: str,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
    log: Path | None = None,
    files: int | None = None,
) -> Iterator[tuple[str, int]]:
    """Host and port of `ensemble-kd serve MODEL` in a process of its own, which must end with exit code 0.

    What it says on standard error goes to `log`; it may open so many `files`.
    """
    command = [sys.executable, "-m", "ensemble_kd", "serve", str(model), "--port", "0", *options]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *command]
    with open(log, "w+") if log else tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env)
        assert process.stdout is not None
        # A server that hangs would leave readline waiting.
        watch = threading.Timer(START, process.kill)
        watch.start()
        try:
            line = process.stdout.readline()
            watch.cancel()
            found = re.search(r"http://(\S+):(\d+)", line)
            if found is None:
                process.wait(START)
                errors.seek(0)
                raise RuntimeError(f"the server did not start: {line}{errors.read()}")
            yield found[1], int(found[2])
        finally:
            watch.cancel()
            if process.poll() is None:
                process.send_signal(stop)
            rest, _ = process.communicate(timeout=60)
        errors.seek(0)
        if process.returncode != 0:
            raise RuntimeError(f"the server ended with {process.returncode}: {rest}{errors.read()}")


def load(host: str, port: int, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Answered requests, failed ones, and milliseconds of each; clients send one request after another."""
    times: list[list[float]] = [[] for _ in range(clients)]
    failed = [0] * clients
    end = time.perf_counter() + seconds

    def one(number: int) -> None:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        turn = number
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                connection.request("POST", "/predict", bodies[turn % len(bodies)], HEADERS)
                answer = connection.getresponse()
                answer.read()
                failed[number] += answer.status != 200
            except (OSError, http.client.HTTPException):
                failed[number] += 1
                connection.close()
            times[number].append(1000 * (time.perf_counter() - began))
            turn += clients
        connection.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "seconds": time.perf_counter() - began,
        "requests": sum(map(len, times)),
        "failed": sum(failed),
        "ms": [value for part in times for value in part],
    }


def bodies_of(rows: Path, size: int) -> list[bytes]:
    """Requests of `size` rows each."""
    cells = pq.read_table(rows)["input"].to_pylist()
    values = [base64.b64encode(c).decode() if isinstance(c, bytes) else c for c in cells]
    return [
        json.dumps({"rows": [{"input": value} for value in values[i : i + size]]}).encode()
        for i in range(0, len(values) - size + 1, size)
    ]


# ------------------------------------------------------------------------------------------------ serve


def _predicted(model: Path, rows: Path, seconds: float) -> float:
    """Rows a second of `predict`, its output file included; so many whole runs as the time takes."""
    from ensemble_kd.predict import predict_file

    done, count = 0.0, 0
    while done < seconds or not count:
        began = time.perf_counter()
        predict_file(model, str(rows), rows.with_name("out.jsonl"), 1024, print, on_bad_row="error")
        done += time.perf_counter() - began
        count += pq.read_metadata(rows).num_rows
    return count / done


def _compare(name: str, model: Path, seconds: float, options: list[str]) -> dict[str, Any]:
    """Both, in turns, for `seconds` of each."""
    rows = model.parent / "rows.parquet"
    bodies, single = bodies_of(rows, ROWS), bodies_of(rows, 1)
    part = seconds / TURNS
    ours, reference, ms, failed, requests = [], [], list[float](), 0, 0
    with fresh_processes(1) as pool, served(model, *options) as (host, port):
        _predicted(model, rows, 0)  # imports, caches
        pool.submit(load, host, port, bodies, CLIENTS, min(part, 2)).result()
        for turn in range(TURNS):
            reference.append(_predicted(model, rows, part))
            found = pool.submit(load, host, port, bodies, CLIENTS, part).result()
            ours.append(found["requests"] * ROWS / found["seconds"])
            ms += found["ms"]
            failed += found["failed"]
            requests += found["requests"]
            say(f"{name}, turn {turn + 1}: serve {ours[-1]:,.0f}, predict {reference[-1]:,.0f} rows/s")
        alone = pool.submit(load, host, port, single, 1, part / 2).result()
    return {
        "ours": median(ours),
        "reference": median(reference),
        "ratio": median([a / b for a, b in zip(ours, reference, strict=True)]),
        "serve (rows/s)": rounded(ours, 0),
        "predict (rows/s)": rounded(reference, 0),
        "requests": requests,
        "failed": failed + alone["failed"],
        "p50 (ms)": round(float(np.percentile(ms, 50)), 1),
        "p99 (ms)": round(float(np.percentile(ms, 99)), 1),
        "one client, one row: p50, p99 (ms)": rounded(np.percentile(alone["ms"], [50, 99]).tolist(), 1),
    }


@benchmark(
    "serve",
    f"rows/s over HTTP, {CLIENTS} clients that send {ROWS} rows a request, against predict; a small BERT",
    "rows/s",
    "at least",
    0.7,
)
def serve(quick: bool, seconds: int = 60) -> Measured:
    """One replica, and `predict`, have one thread each; the clients take their share of the same cores."""
    seconds = min(seconds, 6) if quick else seconds
    with tempfile.TemporaryDirectory() as folder:
        text = text_model(Path(folder) / "text", 512 if quick else 4096)
        image = image_model(Path(folder) / "image", 2048 if quick else 32_768)
        found = _compare("small BERT", text, seconds, [])
        cheap = _compare("mlp on 8x8 images", image, seconds, ["--max-batch", "256"])
    failed = found["failed"] + cheap["failed"]
    return Measured(
        found.pop("ours"),
        found.pop("reference"),
        {**found, "mlp on 8x8 images": cheap, "seconds": seconds},
        f"{failed} requests failed" if failed else None,
    )
