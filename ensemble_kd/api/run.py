"""`run` and `check`: a configuration's stages from Python, and where their progress is shown."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console as Rich

from ensemble_kd import own_code, pipeline, run_folder
from ensemble_kd.api.own_models import check_sendable, keep_sources
from ensemble_kd.api.problems import as_value_errors, in_python
from ensemble_kd.api.results import Results
from ensemble_kd.api.settings import Settings, check_names, configuration
from ensemble_kd.config import Config
from ensemble_kd.errors import InputError
from ensemble_kd.mirror import is_remote
from ensemble_kd.redact import MASK
from ensemble_kd.screen import Screen
from ensemble_kd.stage_list import STAGES
from ensemble_kd.stages.context import Console


class Voice:
    """Where a call says what it finds and does: on the screen, or nowhere. Says no line of advice twice."""

    def __init__(self, progress: bool) -> None:
        screen = Screen(Rich(highlight=False, soft_wrap=True)) if progress else None
        self.console = Console() if screen is None else Console(screen.line, self.warning, screen.progress)
        self._screen = screen
        self._said: set[str] = set()

    def line(self, text: str) -> None:
        self.console.line(in_python(text))

    def warning(self, text: str) -> None:
        text = in_python(text)
        if self._screen is not None and text not in self._said:
            self._said.add(text)
            self._screen.warning(text)

    note = warning


class Run(Results):
    """A run folder: report, leaderboard, figures, the student and its teachers, and going on with it.

    `Run("runs/digits")` opens one that is there. What needs the report raises ValueError where the run has
    not come that far: `resume` goes on.
    """

    def __init__(self, folder: str | Path, config: Config | None = None, recipe: str | None = None) -> None:
        """`config` and `recipe` (its text) as `run` and `distill` know them; read from the folder otherwise.

        Raises ValueError where there is no run.
        """
        super().__init__(folder)
        self._config, self._recipe = config, recipe

    @property
    def config(self) -> Config:
        """The settings, as they were understood. Raises ValueError where secrets in them were masked."""
        if self._config is None:
            with as_value_errors():
                if MASK in json.dumps(self.settings):
                    raise InputError(
                        f"{self.folder}: its settings hold secrets, which are not kept; give them again: "
                        f"run(config, output={str(self.folder)!r})"
                    )
                self._config = configuration(self.settings, {})
        return self._config

    def resume(self, *, fresh: bool | Collection[str] = (), progress: bool = True, **overrides: Any) -> Run:
        """Go on where the run stands, or with other settings; stages that stay the same are kept.

        fresh: names of stages to redo, or True for all. Raises as `run`.
        """
        with as_value_errors():
            check_names(overrides, self.resume)
            config = configuration(self.config, overrides)
            return execute(
                config, self.folder, Voice(progress), recipe=None if overrides else self._recipe, fresh=fresh
            )


def execute(
    config: Config,
    folder: Path | str,
    voice: Voice,
    *,
    recipe: str | None = None,
    until: str = STAGES[-1],
    address: str | None = None,
    fresh: bool | Collection[str] = (),
    require_gap: bool = False,
    verbose: bool = False,
) -> Run:
    """Run the stages; `folder` is the run folder, on disk or in a store."""
    redo = set(STAGES) if fresh is True else set() if fresh is False else set(fresh)
    if unknown := sorted((redo | {until}) - set(STAGES)):
        raise InputError(f"stage: {unknown[0]!r} is none; there are {', '.join(STAGES)}")
    known = own_code.used(config.model_dump())
    if config.compute.executor != "local":
        check_sendable(known)
    if not is_remote(folder):
        keep_sources(known, Path(folder))
    pipeline.run(
        config,
        folder,
        until=until,
        address=address,
        fresh=redo,
        require_gap=require_gap,
        verbose=verbose,
        console=voice.console,
        recipe=recipe,
    )
    return Run(run_folder.copied(config, folder), config, recipe)


def run(
    config: Settings,
    *,
    output: str | Path | None = None,
    until: str = STAGES[-1],
    address: str | None = None,
    fresh: bool | Collection[str] = (),
    require_gap: bool = False,
    progress: bool = True,
    verbose: bool = False,
    **overrides: Any,
) -> Run:
    """Run a configuration's stages, skipping what is done.

    config: a YAML file, the name of a shipped recipe ("digits"), the same settings as a dict, or a Config.
    output: the run folder, on disk or in a store (s3://BUCKET/PATH); by default runs/NAME.
    until: the last stage to run.
    address: a Ray cluster ("auto" or HOST:PORT); by default Ray starts on this machine, or is that which this
        process has started.
    fresh: names of stages to redo, or True for all.
    require_gap: stop with NoGapError unless the ensemble is shown to know more than the student.
    progress, verbose: whether to print what is done; and Ray's own messages too.
    overrides: settings, as in student__temperature=2 or student={"temperature": 2}.

    Returns the run. Raises ValueError with all problems of settings and data before anything is trained, and
    EnsembleKDError for what goes wrong later.
    """
    with as_value_errors():
        check_names(overrides, run)
        settings = configuration(config, overrides)
        return execute(
            settings,
            _folder(output, settings),
            Voice(progress),
            until=until,
            address=address,
            fresh=fresh,
            require_gap=require_gap,
            verbose=verbose,
        )


def check(config: Settings, *, output: str | Path | None = None, **overrides: Any) -> pd.DataFrame:
    """What `run` would do, without starting Ray or writing anything; takes the same arguments.

    Returns a row a stage: state ("done", or "to do" and why), bytes (on disk), expected_bytes (None where
    that
    cannot be told), work (what is to be trained). Raises ValueError with all problems of settings and data.
    """
    with as_value_errors():
        check_names(overrides, check)
        settings = configuration(config, overrides)
        folder = run_folder.copied(settings, _folder(output, settings))
        lines = pipeline.check(settings, folder, Voice(True).console)
    rows = [(line.name, line.state, line.size, line.expected, line.work) for line in lines]
    return pd.DataFrame(rows, columns=["stage", "state", "bytes", "expected_bytes", "work"]).set_index(
        "stage"
    )


def _folder(output: str | Path | None, settings: Config) -> Path | str:
    return Path("runs") / settings.name if output is None else output
