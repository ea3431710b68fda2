"""Errors as readable lines with an exit code; no traceback for what a user can mend."""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.markup import escape

from ensemble_kd.cli_screens import err
from ensemble_kd.config_yaml import one_line
from ensemble_kd.disk import full
from ensemble_kd.errors import EnsembleKDError, ProblemsError
from ensemble_kd.redact import redacted


def printable(text: str) -> str:
    """What a message quotes may hold anything: no control characters reach the terminal, nor a book."""
    return "\n".join(one_line(line, 4000) for line in text.split("\n", 50)[:50])


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """Turn our errors into readable lines and exit codes; anything else is a bug and shows its traceback."""
    if not verbose:
        warnings.filterwarnings("ignore")
        logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    except EnsembleKDError as error:
        lines = error.problems if isinstance(error, ProblemsError) else [str(error)]
        for line in lines:
            err.print(f"[red]error:[/] {escape(printable(line))}")
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = full(error.errno, Path(error.filename or os.getcwd()), said=redacted(str(error)))
        err.print(f"[red]error:[/] {escape(str(text))}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        err.print("stopped; finished stages and the last epoch of every member are kept, run again to go on")
        raise typer.Exit(130) from None
