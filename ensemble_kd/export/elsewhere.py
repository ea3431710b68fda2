"""Whether an exported form runs where this package is not: asked of one process for all forms.

What is imported here already would hide what a form lacks.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.errors import ExportError
from ensemble_kd.export import without_us
from ensemble_kd.safe_files import in_one_line, shown

ROWS = 8
"""Rows that a form answers there."""
SECONDS = 600.0
"""Of one form, libraries' imports included."""


class Elsewhere:
    """The process; it starts with the first form, in an empty folder, and ends with `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        (self.path / "empty").mkdir()

    def logits(
        self, form: str, folder: Path, inputs: dict[str, np.ndarray], rows: pa.Table | None = None
    ) -> np.ndarray:
        """(N, C) of the form in `folder` for its own `inputs`; `rows` as users of an MLflow model send them.

        Raises ExportError with what a user would have seen.
        """
        for name, array in inputs.items():
            np.save(self.path / f"{name}.npy", array, allow_pickle=False)
        asked: dict[str, Any] = {
            "form": form,
            "folder": str(folder.resolve()),
            "inputs": {name: str(self.path / f"{name}.npy") for name in inputs},
            "rows": None,
            "output": str(self.path / "logits.npy"),
        }
        if rows is not None:
            asked["rows"] = str(self.path / "rows.arrow")
            with pa.OSFile(asked["rows"], "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
                writer.write_table(rows)
        error = self._ask(asked)
        if error is not None:
            raise ExportError(
                f"{form}: does not run in a process without this package: {shown(error, 300)}; the other "
                "forms are made all the same"
            )
        return without_us.read(asked["output"])

    def _ask(self, asked: dict[str, Any]) -> str | None:
        """What went wrong; None where nothing did."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        except OSError as error:
            return in_one_line(error)
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            process.kill()
            return f"no answer within {SECONDS:.0f} s"
        line = process.stdout.readline()
        if not line:
            return f"the process ended with code {process.wait()}: {self._said()}"
        answer: str | None = json.loads(line)["error"]
        return answer

    def _start(self) -> subprocess.Popen[str]:
        with (self.path / "said").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-P", without_us.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=self.path / "empty",
                text=True,
            )

    def _said(self) -> str:
        lines = (self.path / "said").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()
