"""`predict` and `serve`: the commands that need a model folder alone."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ensemble_kd.cli_errors import reported
from ensemble_kd.cli_options import Address, Model, Trust, Verbose
from ensemble_kd.cli_screens import err, out
from ensemble_kd.errors import ConfigError, EnsembleKDError, InputError
from ensemble_kd.mirror import Mirror, is_remote

if TYPE_CHECKING:  # what takes time to import comes with the command that needs it
    from ensemble_kd.predict_files import Options

SECONDS_FOR_A_STORE = 10.0
"""How long a store that does not answer is asked for a model."""


def predict(
    model: Model,
    input_: Annotated[
        str, typer.Argument(metavar="INPUT", help="Parquet, CSV, JSON lines or Arrow file; or images.")
    ],
    *,
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
            from ensemble_kd.predict_files import Options

            if is_remote(model):
                raise InputError(f"{model}: with --workers or --address, give a folder that every node sees")
            problems = _predict_files(
                _here(model),
                input_,
                output,
                workers or 1,
                address,
                Options(batch_size, form, on_bad_row, truncate, strict, trust=tuple(trust or ())),
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


def serve(
    model: Model,
    *,
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
        from ensemble_kd.model_folder import model_in

        return model_in(Path(model))
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
    options: Options,
) -> list[str]:
    from ensemble_kd.predict_files import predict_files

    if output is None or output.suffix:
        raise ConfigError("--output: with --workers or --address, name the folder for the predictions")
    return predict_files(
        model,
        source,
        output,
        workers,
        options,
        address=address,
        done=lambda text: out.print(escape(text)),
    )
