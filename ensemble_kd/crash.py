"""What is left of an error that nobody foresaw: one line for people, and the traceback in a file."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, version

from ensemble_kd import __version__
from ensemble_kd.config_yaml import DEBUG, one_line
from ensemble_kd.redact import redacted

PACKAGES = ("ray", "torch", "transformers", "pyarrow", "pydantic", "mlflow")


def told(error: BaseException) -> str:
    """One line: what happened and where its traceback lies; with `ENSEMBLE_KD_DEBUG` set, the traceback.

    Secrets of addresses and of the environment are masked in both.
    """
    trace = redacted("".join(traceback.format_exception(error)))
    if os.environ.get(DEBUG):
        return trace
    said = one_line(redacted(f"{type(error).__name__}: {error}"), 500)
    kept = _kept(f"{_versions()}\n{trace}")
    where = f"its traceback is in {kept}" if kept else f"{DEBUG}=1 shows its traceback"
    return f"error: unexpected, a fault of ensemble-kd or of a library: {said}; {where}, please report it\n"


def _versions() -> str:
    found = [f"ensemble-kd {__version__}", f"Python {platform.python_version()}", platform.platform()]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found) + f"\n{redacted(' '.join(sys.argv[:2]))}"


def _kept(text: str) -> str | None:
    """The file that holds a text from now on; None where none can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ensemble-kd-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
    except OSError:
        return None
    return file.name
