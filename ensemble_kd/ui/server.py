"""`ensemble-kd ui`: check the folder and the port, serve the pages until a signal comes."""

from __future__ import annotations

from collections.abc import Callable

from ensemble_kd.serving.server import check_extra, is_local, listener, url_of
from ensemble_kd.serving.stopping import Stopping
from ensemble_kd.ui.folders import checked_root


def serve_runs(runs: str, write: Callable[[str], None], *, host: str, port: int, stop: Stopping) -> None:
    """Serve until SIGINT or SIGTERM, then return; port 0 takes a free one.

    Raises InputError: the extra is missing, a folder without runs, a port that is taken.
    """
    check_extra("ui")
    root = checked_root(runs)
    with listener(host, port) as bound:
        from ensemble_kd.serving.app import Limits
        from ensemble_kd.serving.http import Server
        from ensemble_kd.ui.app import create_app

        stop.check()
        note = "" if is_local(host) else "; open to the network, for everybody who reaches it"

        def started() -> None:
            server.should_exit = bool(stop.asked)
            write(f"runs of {root} on {url_of(host, bound.getsockname()[1])}{note}")

        server = Server(create_app(root, host), Limits(max_connections=64), started)
        server.run(sockets=[bound])
        write("stopped")
