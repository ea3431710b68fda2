"""The command line: load, check, call one function of the pipeline. The `cli_` files hold what each says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ensemble_kd import __version__, cli_compare, cli_data, cli_doctor, cli_inspect, cli_recipes, cli_ui
from ensemble_kd.cli_errors import reported
from ensemble_kd.cli_models import predict, serve
from ensemble_kd.cli_options import Address, ConfigPath, Fresh, RequireGap, RunDir, Set, Trust, Verbose
from ensemble_kd.cli_results import print_results, print_ships, size_text
from ensemble_kd.cli_run import local_folder, run_job, run_pipeline
from ensemble_kd.cli_screens import err, out
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.mirror import is_remote
from ensemble_kd.screen import Screen
from ensemble_kd.stage_list import ENTRIES, STAGES

app = typer.Typer(
    help="Turn an ensemble of teachers into one small model that people deploy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command("supervised-run", hidden=True)
def supervised_run() -> None:
    """What `run` starts where one process does it all; reads from its standard input what to do."""
    from ensemble_kd import supervised

    with reported(False):
        job = supervised.job()
    with reported(job.verbose):
        run_job(job, None, set())


def _stage_command(name: str, until: str, text: str) -> None:
    """One sub-command a stage: all take the same options and run everything up to that stage."""

    @app.command(name, help=text)
    def command(
        config: ConfigPath,
        *,
        set_: Set = None,
        run_dir: RunDir = None,
        address: Address = None,
        fresh: Fresh = False,
        require_gap: RequireGap = False,
        verbose: Verbose = False,
    ) -> None:
        with reported(verbose):
            from ensemble_kd.config import load_config

            redo = {until} if fresh else set[str]()
            settings = load_config(config, set_)
            folder = run_pipeline(until, settings, run_dir, address, redo, verbose, require_gap=require_gap)
            if until == "report":
                print_results(folder, run_dir)


@app.command()
def run(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="YAML file, or the name of a shipped recipe.",
            autocompletion=cli_recipes.completed,
        ),
    ] = None,
    *,
    data: cli_data.Data = None,
    label: cli_data.Label = None,
    input_: cli_data.Input = None,
    budget: cli_data.Budget = None,
    source: cli_data.Source = None,
    set_: Set = None,
    run_dir: RunDir = None,
    address: Address = None,
    fresh: Fresh = False,
    require_gap: RequireGap = False,
    verbose: Verbose = False,
) -> None:
    """Run all stages, skipping what is done, and print the results. --data PATH chooses a recipe."""
    with reported(verbose):
        from ensemble_kd.config import load_config

        others = {"--label": label, "--input": input_, "--budget": budget, "--source": source}
        cli_data.one_of(config, data, others)
        recipe = None
        if data is not None:
            made = cli_data.made_for(
                data,
                label,
                input_,
                budget,
                source,
                set_,
                screen=out,
                run=lambda name: local_folder(run_dir or Path("runs") / name),
            )
            settings, recipe = made.config, made.text
        else:
            settings = load_config(str(config), set_)
        redo = set(STAGES) if fresh else set[str]()
        folder = run_pipeline(
            STAGES[-1], settings, run_dir, address, redo, verbose, require_gap=require_gap, recipe=recipe
        )
        print_results(folder, run_dir)


@app.command()
def init(
    path: Annotated[str, typer.Argument(metavar="PATH", help="File, folder, glob or URL of the data.")],
    label: cli_data.Label = None,
    input_: cli_data.Input = None,
    budget: cli_data.Budget = None,
    source: cli_data.Source = None,
    set_: Set = None,
) -> None:
    """Print the configuration that run --data PATH would choose, with the reason for each choice."""
    with reported(False):
        made = cli_data.made_for(path, label, input_, budget, source, set_, screen=err)
        sys.stdout.write(made.text)


for entry in ENTRIES:
    if entry.name not in ("sweep", "export"):  # these have options of their own
        _stage_command(entry.name, entry.name, entry.text)


@app.command()
def sweep(
    config: ConfigPath,
    *,
    space: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Search space: a shipped one (see spaces) or a YAML file."),
    ] = None,
    set_: Set = None,
    run_dir: RunDir = None,
    address: Address = None,
    fresh: Fresh = False,
    verbose: Verbose = False,
) -> None:
    """Search the student's settings on validation rows, then do all that run does with the winner."""
    with reported(verbose):
        from ensemble_kd.config import load_config

        redo = {"sweep"} if fresh else set()
        settings = load_config(config, set_, sweep=True, search_space=space)
        folder = run_pipeline("report", settings, run_dir, address, redo, verbose)
        print_results(folder, run_dir)


@app.command()
def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|CONFIG",
            help="A model folder, a run folder, or a configuration, which is run first.",
        ),
    ],
    *,
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="onnx, int8, program, huggingface, mlflow; may be repeated. By default onnx and int8."
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="For a model folder outside its run: rows to hold the forms against."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest difference of a logit; by default 0.001.")
    ] = None,
    set_: Set = None,
    run_dir: RunDir = None,
    address: Address = None,
    fresh: Fresh = False,
    verbose: Verbose = False,
    trust: Trust = None,
) -> None:
    """Hand the student over as ONNX, int8 and others, each held against it."""
    with reported(verbose):
        from ensemble_kd.config import load_config, recipe_paths
        from ensemble_kd.export.folder import export_folder, is_model_folder

        model = None if target in recipe_paths() else is_model_folder(target)
        if model is not None:
            if set_ or run_dir or address or fresh:
                raise ConfigError(
                    f"{target} is a folder; --set, --run-dir, --address and --fresh go with a configuration"
                )
            made = export_folder(
                model, form, rows, tolerance, lambda text: out.print(escape(text)), trust or ()
            )
            print_ships({"systems": [], "forms": made})
            return
        overrides = list(set_ or [])
        if tolerance is not None:
            overrides.append(f"export.tolerance={tolerance}")
        settings = load_config(target, overrides, export=form or [])
        folder = run_pipeline("report", settings, run_dir, address, {"export"} if fresh else set(), verbose)
        print_results(folder, run_dir)


@app.command()
def check(config: ConfigPath, set_: Set = None, run_dir: RunDir = None) -> None:
    """Validate a configuration and its data, and print what a run would do. Starts nothing."""
    with reported(False):
        from ensemble_kd import early
        from ensemble_kd.config import load_config

        settings = load_config(config, set_)
        early.check_early(settings)
        if run_dir is not None and not is_remote(run_dir) and (wrong := early.folder_problems(run_dir)):
            raise InputError(wrong)
        folder: Any = run_dir or Path("runs") / settings.name
        stages: list[tuple[str, str, int, int | None, str]]
        warn = Screen(err).warning
        if not is_remote(folder) and early.quick(settings, Path(folder)):
            first = early.first_plan(settings, Path(folder), warn)
            stages = [(name, state, 0, None, "") for name, state in first]
        else:
            from ensemble_kd import (
                pipeline,  # torch loads only where there is something for it to tell
                run_folder,
            )
            from ensemble_kd.stages.context import Console

            folder = run_folder.copied(settings, folder)
            planned = pipeline.check(settings, folder, Console(warning=warn))
            stages = [(line.name, line.state, line.size, line.expected, line.work) for line in planned]
        table = Table(
            "stage",
            "state",
            "on disk",
            "will take",
            "to train",
            title=f"{settings.name} in {folder}",
            title_justify="left",
        )
        for name, state, size, expected, work in stages:
            table.add_row(name, escape(state), size_text(size), size_text(expected), work)
        out.print(table)


@app.command()
def recipes(show: cli_recipes.Show = None, copy: cli_recipes.Copy = None) -> None:
    """List the shipped recipes; --show prints one, --copy writes it here to be changed."""
    with reported(False):
        cli_recipes.recipes(out, show, copy)


@app.command()
def spaces() -> None:
    """List the shipped search spaces."""
    out.print(cli_recipes.spaces())


@app.command()
def compare(runs: cli_compare.Runs, json_: cli_doctor.Json = False) -> None:
    """Runs side by side, the best first, with paired intervals where their test rows are the same."""
    with reported(False):
        cli_compare.compare(out, runs, json_)


@app.command()
def inspect(path: cli_inspect.Place, json_: cli_doctor.Json = False) -> None:
    """What is in a run, a model folder, a store of soft targets, or any other folder of a run."""
    with reported(False):
        cli_inspect.inspect(out, path, json_)


@app.command()
def ui(runs: cli_ui.Runs = "runs", host: cli_ui.Host = "127.0.0.1", port: cli_ui.Port = 8001) -> None:
    """Pages over run folders in the browser: progress, leaderboard, reports, soft targets. Until Ctrl-C."""
    with reported(False):
        cli_ui.ui(runs, host, port)


@app.command()
def clean(run: cli_inspect.RunFolder, yes: cli_inspect.Yes = False, json_: cli_doctor.Json = False) -> None:
    """Delete what was made for other settings than the last finished run's; lists it and asks."""
    with reported(False):
        cli_inspect.clean(out, run, yes, json_)


@app.command()
def doctor(json_: cli_doctor.Json = False) -> None:
    """What this machine has, and what is missing with the line that installs it."""
    raise typer.Exit(cli_doctor.doctor(out, json_))


@app.command()
def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A page for people: docs/configuration.md.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="A plug-in whose blocks are to be in it; may be repeated."),
    ] = None,
) -> None:
    """Print the JSON schema of a configuration, for editors; or the page of all settings."""
    with reported(False):
        from ensemble_kd.config import json_schema
        from ensemble_kd.config.plugins import load

        load(plugin or [], "--plugin")
        if markdown:
            from ensemble_kd.config.reference import reference

            print(reference(), end="")
            return
        print(json.dumps(json_schema(), indent=2))


for each in (predict, serve):
    app.command()(each)


def version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version_: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Options of every command."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `ensemble-kd`; the job scripts give the arguments."""
    try:
        app(arguments, prog_name="ensemble-kd")
    except Exception as error:  # a bug of ours, or what a library did not expect
        from ensemble_kd.crash import told

        sys.stderr.write(told(error))
        sys.exit(1)
