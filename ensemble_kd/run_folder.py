"""The folder of a run: made, locked against a second run, and for one in a store this node's copy of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ensemble_kd.attached import attach
from ensemble_kd.config import Config
from ensemble_kd.errors import InputError
from ensemble_kd.lease import leased, locked
from ensemble_kd.mirror import Mirror, is_remote
from ensemble_kd.stages.context import Console
from ensemble_kd.termination import Termination


def copied(config: Config, folder: Path | str) -> Path:
    """A folder to look into: of a run in a store, this node's copy, brought up to date."""
    if not is_remote(folder):
        return Path(folder)
    mirror = Mirror.of(str(folder), config.compute.scratch)
    mirror.pull()
    return mirror.root


@contextmanager
def opened(config: Config, folder: Path | str, console: Console, termination: Termination) -> Iterator[Path]:
    """The run folder, locked against a second run; for one in a store, this node's copy of it."""
    if not is_remote(folder):
        folder = Path(folder).absolute()  # workers run in folders of their own
        prepare_folder(folder)
        attach(None)
        with locked(folder):
            yield folder
        return
    mirror = Mirror.of(str(folder), config.compute.scratch)
    mirror.warn = console.warning
    prepare_folder(mirror.root)

    def lost() -> None:
        termination.reason = f"another run, which took over {mirror.shown}"
        os.kill(os.getpid(), signal.SIGTERM)

    with locked(mirror.root), leased(mirror, lost):
        attach(mirror)
        try:
            mirror.pull()
            console.line(f"{mirror.shown}: copied to and from {mirror.root}")
            with mirror.kept_sent():
                yield mirror.root
        finally:
            attach(None)


def prepare_folder(folder: Path) -> None:
    """Raises InputError where the run folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"--run-dir: {folder} cannot be written ({error.strerror}); choose another"
        ) from error
