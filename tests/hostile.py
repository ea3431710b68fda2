"""Model folders as a stranger would write them: any file changed, and the manifest made to fit it again."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_kd.errors import InputError
from ensemble_kd.predict import load_predictor

MOST_SECONDS, MOST_BYTES = 10.0, 1 << 30


def seal(folder: Path) -> None:
    """The manifest's sizes and checksums once more, of the files that it names and that are there."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["files"][name] = entry
    path.write_text(json.dumps(manifest))


def put(folder: Path, name: str, content: bytes | str) -> None:
    """Replace a file and seal the folder."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    seal(folder)


def change(folder: Path, function: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    """Change a JSON file in place and seal the folder, unless it is the manifest."""
    value = json.loads((folder / name).read_text())
    function(value)
    (folder / name).write_text(json.dumps(value))
    if name != "manifest.json":
        seal(folder)


def refusal(folder: Path, form: str = "auto") -> str | None:
    """What `predict`, `serve` and `export` say of the folder; None where it loads.

    Whatever they say is one paragraph of short lines, within seconds and without much memory.
    """
    with bounded():
        try:
            load_predictor(folder, form)
        except InputError as error:
            text = str(error)
            assert error.exit_code == 2 and 0 < len(text) < 3000, text[:3000]
            assert len(error.problems) < 12 and not any("\n" in line for line in error.problems), text
            assert str(folder) in text, text
            return text
    return None


@contextmanager
def bounded() -> Iterator[None]:
    """At most 10 seconds and 1 GB more than there was."""
    before, began = _peak(), time.monotonic()
    yield
    seconds, grown = time.monotonic() - began, _peak() - before
    assert seconds < MOST_SECONDS and grown < MOST_BYTES, (seconds, grown)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit_memory(bytes_more: int) -> None:
    """From now on this process gets an error, not more memory than so much beyond what it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + bytes_more, now + bytes_more))
