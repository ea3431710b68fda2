"""python -m benchmarks.same_bits OLD NEW: whether two checkouts make the same bytes and the same numbers.

Six small runs in each, one after the other, on this machine and in this environment: digits with specialists
and a sweep, a transformer with phases, values, a streamed transfer set, a quantised student, two replicas.
Compared are the shipped files, byte by byte, and every number of report.json but those that a clock made.
Exit code 1 where anything differs. About ten minutes on two cores; --only NAME runs one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.stand_ins import write_numbers, write_texts, write_transformer

CLOCK = re.compile("seconds|latency|speed|began$|ended$|best_so_far$|machine$|created$")
"""Keys of report.json that begin so say how long something took: nothing below them is compared."""
SHIPPED = ("model/weights.safetensors", "model/tokenizer.json")


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations by name; the stand-in data lie in `folder`."""
    short = {"epochs": 4, "batch_size": 32, "learning_rate": 2e-3}
    source = str(folder / "model")
    digits: dict[str, Any] = {
        "data": {"source": "digits", "kind": "image", "label_fraction": 0.2},
        "teachers": {
            "num_members": 2,
            "model": {"name": "mlp", "hidden": [32], "dropout": 0.2},
            "training": short,
        },
        "student": {"model": {"name": "mlp", "hidden": [16]}, "training": short, "seeds": 1},
    }
    transformer = {"name": "transformer", "source": source}
    mlm = {
        "name": "words",
        "task": "mlm",
        "corpus": {"path": str(folder / "corpus.csv"), "max_length": 32},
        "alpha": 0,
    }
    return {
        "specialists": {
            **digits,
            "clusters": {"num_clusters": 2, "classes_per_specialist": 4},
            "specialists": {"training": short},
            "sweep": {"search": "grid", "space": {"temperature": [1, 4], "alpha": [0.5, 1]}, "num_seeds": 1},
        },
        "phases": {
            "data": {
                "path": str(folder / "texts"),
                "kind": "text",
                "columns": {"input": "text"},
                "text": {"tokenizer": "pretrained", "max_length": 16},
            },
            "teachers": {"num_members": 1, "model": transformer, "training": {**short, "epochs": 1}},
            "student": {
                "model": {"name": "transformer", "weights": "teacher", "layers": "first:2"},
                "phases": [
                    {
                        **mlm,
                        "terms": [{"name": "hidden_mse", "weight": 1}],
                        "online": {"source": source},
                        "training": {**short, "epochs": 1},
                    }
                ],
                "training": {**short, "epochs": 1},
                "seeds": 1,
            },
        },
        "values": {
            "data": {
                "path": str(folder / "numbers"),
                "kind": "numeric",
                "target": "value",
                "columns": {"input": ["a", "b", "c"]},
            },
            "teachers": digits["teachers"],
            "student": digits["student"],
        },
        "streamed": {**digits, "compute": {"memory_budget": 1e-6}},
        "quantised": {**digits, "student": {**digits["student"], "quantization": {"bits": 8}}},
        "replicas": {**digits, "student": {**digits["student"], "replicas_per_member": 2}},
    }


def run(checkout: Path, name: str, config: dict[str, Any], folder: Path) -> Path:
    """The run's folder; raises RuntimeError with its output where it fails."""
    folder.mkdir(parents=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, **config}))
    done = subprocess.run(
        [sys.executable, "-m", "ensemble_kd", "run", str(file), "--run-dir", str(folder / name)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        output = f"{done.stdout}\n{done.stderr}"
        raise RuntimeError(f"{name} in {checkout} ended with {done.returncode}:\n{output}")
    return folder / name


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, clocks and sentences aside; keys may be added."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(key for key in old if not CLOCK.match(key)):
            at = f"{path}.{key}"
            found += differences(old[key], new[key], at) if key in new else [f"{at} is gone"]
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in differences(pair[0], pair[1], f"{path}.{i}")
        ]
    numbers = isinstance(old, (int, float)) and isinstance(new, (int, float))
    same = old == new or (numbers and old != old and new != new)
    texts = isinstance(old, str) and isinstance(new, str)  # sentences may get plainer
    return [] if same or texts else [f"{path}: {old!r} -> {new!r}"]


def compare(old: Path, new: Path) -> list[str]:
    """What differs between two run folders."""
    found = []
    for name in SHIPPED:
        digests = [
            hashlib.sha256((run / name).read_bytes()).hexdigest() if (run / name).exists() else "absent"
            for run in (old, new)
        ]
        if digests[0] != digests[1]:
            found.append(f"{name}: {digests[0][:12]} -> {digests[1][:12]}")
    reports = [json.loads((run / "report.json").read_text()) for run in (old, new)]
    return found + differences(reports[0], reports[1], "report")


def main(
    old: Annotated[Path, typer.Argument(exists=True, help="A checkout to compare with.")],
    new: Annotated[Path, typer.Argument(exists=True, help="The checkout in question.")],
    only: Annotated[list[str] | None, typer.Option(help="One run by its name; may be repeated.")] = None,
) -> None:
    """Compare the shipped bytes and the report's numbers of six small runs in two checkouts."""
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts")
        write_numbers(folder / "numbers")
        write_transformer(folder / "model")
        for key, config in runs(folder).items():
            if only and key not in only:
                continue
            before, after = (
                run(checkout.resolve(), key, config, folder / label / key)
                for checkout, label in ((old, "old"), (new, "new"))
            )
            found = compare(before, after)
            bad += bool(found)
            print(f"{key}: " + ("same" if not found else f"{len(found)} differences"), flush=True)
            for line in found[:20]:
                print(f"  {line}")
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    app()
