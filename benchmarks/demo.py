"""demo: the whole pipeline on the embedded data, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Measured, benchmark

SECONDS = 120.0
RECIPE = Path(__file__).parent.parent / "jobs" / "recipes" / "digits.yaml"
COUNT = "ENSEMBLE_KD_BENCHMARK_FITS"
TRAIN_RUNS = 3


def counted() -> None:
    """`ensemble-kd`, noting each start of a Ray Train run in the file that COUNT names."""
    from ray.train.torch import TorchTrainer

    original = TorchTrainer.fit

    def fit(self: TorchTrainer) -> object:
        with open(os.environ[COUNT], "a", encoding="utf-8") as file:
            file.write("fit\n")
        return original(self)

    TorchTrainer.fit = fit
    from ensemble_kd.cli import main

    main()


@benchmark(
    "demo",
    "`ensemble-kd run jobs/recipes/digits.yaml` to its end, against 120 s; at most 3 Ray Train runs",
    "s",
    "at most",
    1.0,
)
def demo(quick: bool) -> Measured:
    """One run in a process of its own, start of Python included. Quick: a tenth of the epochs."""
    short = ["--set", "teachers.training.epochs=10", "--set", "student.training.epochs=6"] if quick else []
    with tempfile.TemporaryDirectory() as name:
        fits = Path(name) / "fits"
        fits.touch()
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", "from benchmarks.demo import counted; counted()", "run", str(RECIPE)]
            + ["--run-dir", str(Path(name) / "runs" / "digits"), *short],
            cwd=RECIPE.parent.parent.parent,
            env={**os.environ, COUNT: str(fits)},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"the demo ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        started = len(fits.read_text().splitlines())
    lines = [line for line in done.stdout.splitlines() if line.rstrip().endswith(" s)")]
    detail = {"ray_train_runs": started, "ray_train_runs_allowed": TRAIN_RUNS, "stages": lines}
    problem = None if started <= TRAIN_RUNS else f"{started} Ray Train runs, {TRAIN_RUNS} allowed"
    return Measured(seconds, SECONDS, detail, problem)
