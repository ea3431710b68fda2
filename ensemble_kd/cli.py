"""The command line: load, check, call one function of the pipeline. All that users read is written here."""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console as Rich
from rich.markup import escape
from rich.table import Table

from ensemble_kd import __version__, cli_compare, cli_data, cli_doctor, cli_inspect, cli_recipes, cli_ui
from ensemble_kd.config_yaml import one_line
from ensemble_kd.disk import full
from ensemble_kd.errors import ConfigError, EnsembleKDError, InputError, ProblemsError
from ensemble_kd.mirror import Mirror, is_remote
from ensemble_kd.redact import redacted
from ensemble_kd.screen import Screen
from ensemble_kd.stage_list import ENTRIES, STAGES

if TYPE_CHECKING:  # what takes time to import comes with the command that needs it: --help is quick
    from ensemble_kd.config import Config
    from ensemble_kd.supervised import Job
    from ensemble_kd.train.measures import Column

app = typer.Typer(
    help="Turn an ensemble of teachers into one small model that people deploy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
WIDTH = None if sys.stdout.isatty() else 120
"""Columns: the terminal's, or enough for the tables where there is none."""
out = Rich(highlight=False, soft_wrap=True, width=WIDTH)
err = Rich(stderr=True, highlight=False, soft_wrap=True, width=WIDTH)

ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file, or the name of a shipped recipe.",
        autocompletion=cli_recipes.completed,
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated.")
]
RunDir = Annotated[
    str | None,
    typer.Option(help="Folder of this run, on disk or in a store (s3://BUCKET/PATH); by default runs/NAME."),
]
SECONDS_FOR_A_STORE = 10.0
"""How long a store that does not answer is asked for a model."""
Model = Annotated[
    str,
    typer.Argument(help="A model folder, for example runs/digits/model; one in a store is fetched."),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster (auto or HOST:PORT); local by default.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Redo a stage that is done; with run, all of them.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE",
        help="Module whose code a custom model in the folder may run; may be repeated.",
    ),
]
RequireGap = Annotated[
    bool,
    typer.Option(
        "--require-gap",
        help="Stop before the soft targets, exit code 3, unless the ensemble is shown to know more.",
    ),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show Ray's own messages too.")]


# ------------------------------------------------------------------------------------------ pipeline


def _pipeline(
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
        _work(job, address, fresh)
    return _local(run_dir or Path("runs") / settings.name, settings.compute.scratch)


def _work(job: Job, address: str | None, fresh: set[str]) -> None:
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


@app.command("supervised-run", hidden=True)
def supervised_run() -> None:
    """What `run` starts where one process does it all; reads from its standard input what to do."""
    from ensemble_kd import supervised

    with reported(False):
        job = supervised.job()
    with reported(job.verbose):
        _work(job, None, set())


def _stage_command(name: str, until: str, text: str) -> None:
    """One sub-command a stage: all take the same options and run everything up to that stage."""

    @app.command(name, help=text)
    def command(
        config: ConfigPath,
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
            folder = _pipeline(until, settings, run_dir, address, redo, verbose, require_gap=require_gap)
            if until == "report":
                _print_results(folder, run_dir)


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
                run=lambda name: _local(run_dir or Path("runs") / name),
            )
            settings, recipe = made.config, made.text
        else:
            settings = load_config(str(config), set_)
        redo = set(STAGES) if fresh else set[str]()
        folder = _pipeline(
            STAGES[-1], settings, run_dir, address, redo, verbose, require_gap=require_gap, recipe=recipe
        )
        _print_results(folder, run_dir)


def _local(folder: str | Path, scratch: str | None = None) -> Path:
    """The folder of a run on this machine, of one in a store that of its copy."""
    return Mirror.of(str(folder), scratch).root if is_remote(folder) else Path(folder)


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
        folder = _pipeline("report", settings, run_dir, address, redo, verbose)
        _print_results(folder, run_dir)


@app.command()
def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|CONFIG",
            help="A model folder, a run folder, or a configuration, which is run first.",
        ),
    ],
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
            _print_ships({"systems": [], "forms": made})
            return
        overrides = list(set_ or [])
        if tolerance is not None:
            overrides.append(f"export.tolerance={tolerance}")
        settings = load_config(target, overrides, export=form or [])
        folder = _pipeline("report", settings, run_dir, address, {"export"} if fresh else set(), verbose)
        _print_results(folder, run_dir)


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
            from ensemble_kd import pipeline  # torch loads only where there is something for it to tell
            from ensemble_kd.stages.context import Console

            folder = pipeline.copied(settings, folder)
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
            table.add_row(name, escape(state), _size(size), _size(expected), work)
        out.print(table)


def _warn(text: str) -> None:
    err.print(f"[yellow]warning:[/] {escape(text)}")


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
) -> None:
    """Print the JSON schema of a configuration, for editors; or the page of all settings."""
    from ensemble_kd.config import json_schema

    if markdown:
        from ensemble_kd.config.reference import reference

        print(reference(), end="")
        return
    print(json.dumps(json_schema(), indent=2))


@app.command()
def predict(
    model: Model,
    input_: Annotated[
        str, typer.Argument(metavar="INPUT", help="Parquet, CSV, JSON lines or Arrow file; or images.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Where to write (.parquet, .csv, .jsonl); JSON lines on the screen without it."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 1024,
    form: Annotated[
        Literal["auto", "pytorch", "onnx", "int8"],
        typer.Option(help="auto is ONNX where it was exported."),
    ] = "auto",
    on_bad_row: Annotated[
        Literal["error", "skip", "null"],
        typer.Option(help="Write nothing, leave it out, or keep it without an answer."),
    ] = "skip",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than the model takes.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse columns that the model does not know.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the forward pass.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Predict the files of a folder side by side on Ray, into a folder."),
    ] = None,
    address: Address = None,
    trust: Trust = None,
) -> None:
    """Predict every row of a file with a model folder alone."""
    with reported(False):
        from ensemble_kd.data.preprocess import TOO_LONG
        from ensemble_kd.predict import predict_file

        if workers is not None or address is not None:
            if is_remote(model):
                raise InputError(f"{model}: with --workers or --address, give a folder that every node sees")
            problems = _predict_files(
                Path(model),
                input_,
                output,
                workers or 1,
                address,
                (batch_size, form, on_bad_row, truncate, strict),
                tuple(trust or ()),
            )
        else:
            problems = predict_file(
                _here(model),
                input_,
                output,
                batch_size,
                write=lambda text: print(text),
                form=form,
                on_bad_row=on_bad_row,
                truncate=truncate,
                threads=threads,
                strict=strict,
                note=lambda text: err.print(f"[yellow]note:[/] {escape(text)}"),
                trust=trust or (),
            )
        how = "skipped" if on_bad_row == "skip" else "no answer"
        for problem in problems[:10]:
            err.print(f"[yellow]{how}:[/] {escape(problem)}")
        if len(problems) > 10:
            err.print(f"[yellow]{how}:[/] and {len(problems) - 10} more rows")
        if any(TOO_LONG in problem for problem in problems):
            err.print("[yellow]note:[/] --truncate cuts texts that are too long and answers them")


@app.command()
def serve(
    model: Model,
    form: Annotated[
        str, typer.Option(help="auto, pytorch, onnx or int8; auto takes ONNX where it was exported.")
    ] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that answer, one CPU each.")] = 1,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of a forward pass, of all requests.")] = 64,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, max=10_000, help="How long a request waits for others.")
    ] = 5.0,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of a request.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request's body.")] = 4_000_000,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Open at once; at most half as many as files may be open.")
    ] = 512,
    token: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="Environment variable that holds the bearer token to ask for."),
    ] = None,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are too long; otherwise they are bad rows.")
    ] = False,
    verbose: Verbose = False,
    trust: Trust = None,
) -> None:
    """Answer HTTP requests with a model folder, on Ray Serve, until Ctrl-C."""
    from ensemble_kd.serving.stopping import Stopping

    with reported(verbose), Stopping() as stop:
        from ensemble_kd.inference.predictor import FORMS
        from ensemble_kd.serving.server import serve_model

        if form not in FORMS:
            raise InputError(f"--form: {form!r}; use {', '.join(FORMS)}")
        serve_model(
            _here(model),
            {
                "max_rows": max_rows,
                "max_bytes": max_bytes,
                "max_connections": max_connections,
                "max_batch": max_batch,
                "max_wait_ms": max_wait_ms,
                "truncate": truncate,
            },
            lambda text: print(text, flush=True),
            form=form,
            host=host,
            port=port,
            replicas=replicas,
            token_variable=token,
            stop=stop,
            verbose=verbose,
            trust=tuple(trust or ()),
        )


def _here(model: str) -> Path:
    """A model folder on this machine; one in a store is fetched, for as long as this process lives."""
    if not is_remote(model):
        return Path(model)
    copy = Path(tempfile.mkdtemp(prefix="ensemble-kd-model-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    mirror = Mirror(model, copy, SECONDS_FOR_A_STORE)
    mirror.argument = "MODEL"
    mirror.warn = lambda text: err.print(f"[yellow]note:[/] {escape(text)}")
    try:
        if "config.json" not in mirror.listed(copy):
            raise InputError(f"{mirror.shown}: there is no model folder; give the one of a run, RUN/model")
        mirror.pull()
    except InputError:
        raise
    except EnsembleKDError as error:
        raise InputError(str(error)) from error
    return copy


def _predict_files(
    model: Path,
    source: str,
    output: Path | None,
    workers: int,
    address: str | None,
    choices: tuple[int, str, str, bool, bool],
    trust: tuple[str, ...],
) -> list[str]:
    from ensemble_kd.predict_files import Options, predict_files

    if output is None or output.suffix:
        raise ConfigError("--output: with --workers or --address, name the folder for the predictions")
    return predict_files(
        model,
        source,
        output,
        workers,
        Options(*choices, trust=trust),
        address=address,
        done=lambda text: out.print(escape(text)),
    )


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


# --------------------------------------------------------------------------------------------- output


def _print_results(folder: Path, run_dir: str | None) -> None:
    """Of the run folder or this machine's copy of it; `run_dir` is where the user put it."""
    from ensemble_kd.report.build import ROLES

    report_ = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    by_role: dict[str, list[dict[str, Any]]] = {}
    for system in report_["systems"]:
        by_role.setdefault(system["role"], []).append(system)
    from ensemble_kd.train.measures import measures_of

    shown = measures_of(report_.get("target")).columns[:3]
    titles = [f"{column.title} %" if column.scale == 100 else column.title for column in shown]
    table = Table("", "runs", *titles, "parameters", "ms")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for role, name in ROLES.items():
        if role in report_["summary"]:
            row = report_["summary"][role]
            cost = by_role[role][0]
            table.add_row(
                name,
                str(row["n"]),
                *(_spread(row[c.key], c) for c in shown),
                f"{cost['parameters']:,}" if cost["parameters"] else "",
                f"{cost['latency_ms_batch_1']:.3f}" if cost["latency_ms_batch_1"] else "",
            )
    out.print(table)
    for row in report_["reference"]:
        values = ", ".join(f"{k} {v}" for k, v in row["values"].items())
        out.print(escape(f"{row['name']}: {values}"))
    if report_.get("ships"):
        _print_ships(report_["ships"])
    out.print(escape(report_["verdict"]["text"]), style="bold")
    where = Mirror.of(run_dir).shown if run_dir and is_remote(run_dir) else str(folder)
    out.print(escape(f"report: {where}/report.html"))
    out.print(escape(f"model:  {where}/model   (ensemble-kd predict {where}/model INPUT)"))


def _print_ships(section: dict[str, Any]) -> None:
    from ensemble_kd.report.ships import HEAD, calibration_text, ship_rows

    table = Table(*HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in ship_rows(section):
        table.add_row(*map(escape, row))
    out.print(table)
    if section.get("calibration") and (text := calibration_text(section)):
        out.print(escape(text))


def _spread(value: dict[str, Any], column: Column) -> str:
    if value["mean"] is None:
        return "–"
    digits = 1 if column.key == "errors" else column.places(value["mean"])
    text = f"{column.scale * value['mean']:.{digits}f}"
    error = value["standard_error"]
    return text if error is None else f"{text} ± {column.scale * error:.{digits}f}"


def _size(size: int | None) -> str:
    if not size:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size = size / 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"


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


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `ensemble-kd`; the job scripts give the arguments."""
    try:
        app(arguments, prog_name="ensemble-kd")
    except Exception as error:  # a bug of ours, or what a library did not expect
        from ensemble_kd.crash import told

        sys.stderr.write(told(error))
        sys.exit(1)
