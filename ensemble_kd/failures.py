"""What failed in another process, handed to the driver as text: one paragraph for people, the rest in a file.

An exception that crosses Ray comes back as one of Ray's, with its way through all processes in the message,
and after as many further attempts as Ray makes for what may pass by itself.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ensemble_kd import disk
from ensemble_kd.errors import (
    ArtifactError,
    ConfigError,
    EnsembleKDError,
    InputError,
    ProblemsError,
    TrainingError,
)
from ensemble_kd.redact import redacted

FILE = "failure.txt"
"""In a stage's folder: the traceback of the last failure."""
OURS: dict[str, type[EnsembleKDError]] = {
    kind.__name__: kind for kind in (ArtifactError, ConfigError, InputError, TrainingError, disk.DiskError)
}
KEPT = "what is finished is kept, run the same command again to go on"
LONGEST = 500
"""Characters of a cause's own words."""


def packed(error: BaseException, what: str, path: Path) -> str:
    """A failure of `what` (an actor's shard), which was to write `path`, as JSON for `raise_packed`."""
    if not isinstance(error, EnsembleKDError) and (code := disk.code_of(error)) is not None:
        error = disk.full(code, path)
    lines = error.problems if isinstance(error, ProblemsError) else [str(error)]
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in OURS), "")
    if not kind:
        lines = [f"{what}: {type(error).__name__}: {first_words(error)}"]
    said = "".join(traceback.format_exception(error))
    return json.dumps({"kind": kind, "lines": lines, "traceback": said})


def raise_packed(failure: str, stage: str, folder: Path) -> NoReturn:
    """Raise what `packed` took down; `folder` is the stage's."""
    found = json.loads(failure)
    if found["kind"] in ("ConfigError", "InputError"):
        raise OURS[found["kind"]](found["lines"])
    text = "\n".join(found["lines"])
    if found["kind"] == "DiskError":
        raise disk.DiskError(text).within(stage)
    if found["kind"]:
        raise OURS[found["kind"]](text)
    raise TrainingError(f"{stage}: {text}; {KEPT}{keep(found['traceback'], folder)}")


@contextmanager
def plain(stage: str, folder: Path) -> Iterator[None]:
    """A stage's work on Ray, whose own errors are not for people.

    Raises ours as they were in another process, and of all others a TrainingError of one paragraph; `folder`
    takes the traceback.
    """
    try:
        yield
    except Exception as error:
        if not any(base.__module__.startswith("ray.") for base in type(error).__mro__):
            raise
        cause = getattr(error, "cause", None)
        if isinstance(cause, EnsembleKDError):
            raise cause from error
        if disk.code_of(error) is not None:
            raise
        where = keep("".join(traceback.format_exception(error)), folder)
        text = last_words(str(error)) if cause is None else f"{type(cause).__name__}: {first_words(cause)}"
        raise TrainingError(f"{stage}: {text}; {KEPT}{where}") from error


def keep(said: str, folder: Path) -> str:
    """Write a traceback down; returns where, as the end of a message, or nothing where that is impossible."""
    path = folder / FILE
    try:
        path.write_text(redacted(said), encoding="utf-8")
    except OSError:
        return ""
    return f" (its traceback: {path})"


def first_words(error: BaseException) -> str:
    """An error's own words, without lines of advice and at a length that can be read."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:LONGEST] if lines else "without a message"


def last_words(said: str) -> str:
    """The cause at the end of a traceback that came as text, without Ray's names for its exceptions."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = lines[-1] if lines else "without a message"
    return re.sub(r"^(?:[a-z_]+\.)+(?=[A-Z]\w*:)", "", text)[:LONGEST]
