"""How a command runs the pipeline: in this process, or watched by it in another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ensemble_kd.cli_screens import out
from ensemble_kd.mirror import Mirror, is_remote
from ensemble_kd.screen import Screen

if TYPE_CHECKING:  # what takes time to import comes with the command that needs it: --help is quick
    from ensemble_kd.config import Config
    from ensemble_kd.supervised import Job


def run_pipeline(
    until: str,
    settings: Config,
    run_dir: str | None,
    address: str | None,
    fresh: set[str],
    verbose: bool,
    *,
    require_gap: bool = False,
    recipe: str | None = None,
) -> Path:
    """Run it; returns the run folder, or this node's copy of it. `recipe` is kept there."""
    from ensemble_kd import supervised

    job = supervised.Job(until, settings, run_dir, verbose, require_gap, recipe)
    if supervised.wanted(settings, address, fresh):
        if code := supervised.attend(job, Screen(out).warning):
            raise typer.Exit(code)
    else:
        run_job(job, address, fresh)
    return local_folder(run_dir or Path("runs") / settings.name, settings.compute.scratch)


def run_job(job: Job, address: str | None, fresh: set[str]) -> None:
    """Run it in this process."""
    from ensemble_kd import pipeline
    from ensemble_kd.stages.context import Console

    screen = Screen(out)
    pipeline.run(
        job.settings,
        job.run_dir or Path("runs") / job.settings.name,
        until=job.until,
        address=address,
        fresh=fresh,
        require_gap=job.require_gap,
        verbose=job.verbose,
        console=Console(screen.line, screen.warning, screen.progress),
        recipe=job.recipe,
    )


def local_folder(folder: str | Path, scratch: str | None = None) -> Path:
    """The folder of a run on this machine, of one in a store that of its copy."""
    return Mirror.of(str(folder), scratch).root if is_remote(folder) else Path(folder)
