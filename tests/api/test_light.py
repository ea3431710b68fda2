"""`import ensemble_kd` is quick, and what it offers is what it says."""

from __future__ import annotations

import subprocess
import sys

import ensemble_kd

CODE = """
import sys, time
began = time.perf_counter()
import ensemble_kd
seconds = time.perf_counter() - began
heavy = [name for name in ("torch", "ray", "pandas", "sklearn", "mlflow", "pyarrow") if name in sys.modules]
print(seconds, heavy)
"""


def test_the_import_is_quick_and_takes_neither_torch_nor_ray() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.strip().split(" ", 1)
    assert float(seconds) < 0.3 and heavy == "[]"


def test_all_that_is_offered_is_there_and_nothing_else() -> None:
    for name in ensemble_kd.__all__:
        assert getattr(ensemble_kd, name) is not None and name in dir(ensemble_kd)
    assert not hasattr(ensemble_kd, "distil")


def test_what_reads_rows_and_results_starts_no_ray() -> None:
    code = "import sys, ensemble_kd; ensemble_kd.load, ensemble_kd.Model; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
