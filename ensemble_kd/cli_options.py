"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ensemble_kd import cli_recipes

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
Model = Annotated[
    str,
    typer.Argument(
        help="A model folder, for example runs/digits/model, or a run folder; one in a store is fetched."
    ),
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
