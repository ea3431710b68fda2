"""Arguments of `ui`."""

from __future__ import annotations

from typing import Annotated

import typer

Runs = Annotated[str, typer.Argument(metavar="[RUNS]", help="Folder that runs lie in, or a run folder.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens the pages to the network.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")]


def ui(runs: str, host: str, port: int) -> None:
    """Serve the pages until a signal. Raises InputError."""
    from ensemble_kd.serving.stopping import Stopping

    with Stopping() as stop:
        from ensemble_kd.ui.server import serve_runs

        serve_runs(runs, lambda text: print(text, flush=True), host=host, port=port, stop=stop)
