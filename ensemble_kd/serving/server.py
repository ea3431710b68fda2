"""`ensemble-kd serve`: check everything, start Ray and the replicas, serve until a signal comes."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from ensemble_kd.config import ComputeConfig
from ensemble_kd.errors import InputError
from ensemble_kd.predict import load_predictor
from ensemble_kd.runtime import Runtime, quiet_stderr
from ensemble_kd.serving.stopping import Stopping, ignored

NEEDED = ("fastapi", "uvicorn", "httptools", "prometheus_client", "starlette")
LOGS = {"RAY_ROTATION_MAX_BYTES": "10000000", "RAY_ROTATION_BACKUP_COUNT": "1"}
"""What strangers make a decoder print goes to the replicas' log files, which would grow without a bound."""
BACKLOG = 256
"""Connections that the system may hold for us; they can all come at once, beside those that are open."""


def serve_model(
    folder: Path,
    limits: dict[str, Any],
    write: Callable[[str], None],
    *,
    form: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    token_variable: str | None = None,
    stop: Stopping,
    verbose: bool = False,
    trust: tuple[str, ...] = (),
) -> None:
    """Serve until SIGINT or SIGTERM, then return; while things start, `stop` notes these.

    `limits` are app.Limits' fields; port 0 takes a free one.

    Raises InputError before Ray starts: the extra is missing, no such token, an unusable model folder, a
    port that is taken, more replicas than CPUs.
    """
    check_extra("serving")
    token = _token(token_variable)
    with listener(host, port) as bound:
        predictor = load_predictor(folder, form, threads=1, trust=trust)

        from ensemble_kd.serving.app import Description, Limits, create_app
        from ensemble_kd.serving.http import Server

        model, chosen = Description.of(predictor), Limits(**limits)
        del predictor  # the replicas have their own
        stop.check()
        with Runtime(ComputeConfig(), verbose=verbose) as runtime:
            for name, value in LOGS.items():
                os.environ.setdefault(name, value)
            runtime.start(libraries=False)
            stop.install()  # Ray has a handler of its own
            stop.check()
            cpus = int(runtime.resources()[0])
            if replicas > cpus:
                raise InputError(f"--replicas: {replicas}, but there are {cpus} CPUs; each replica takes one")

            # Whatever Serve is told elsewhere: its router must outlive the HTTP side's event loop.
            os.environ["RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"] = "1"
            from ensemble_kd.serving import replicas as on_ray

            if not verbose:  # after the import, which sets the level itself
                logging.getLogger("ray.serve").setLevel(logging.ERROR)
            try:
                answer = on_ray.deploy(folder, model.form, chosen, replicas, trust)
                stop.check()
                app = create_app(model, answer, chosen, token, replicas)
                url = url_of(host, bound.getsockname()[1])
                note = "" if token or is_local(host) else "; open to the network, without a token"

                def started() -> None:
                    server.should_exit = bool(stop.asked)
                    write(f"serving {folder} ({model.form}) on {url}{note}")

                server = Server(app, chosen, started)
                server.run(sockets=[bound])
                write("stopped")
            finally:
                # Ray reports the actors that it ends here as failures, by way of standard output.
                with ignored(), nullcontext() if verbose else quiet_stderr(), redirect_stdout(StringIO()):
                    on_ray.stop()
                    runtime.__exit__()


def check_extra(what: str) -> None:
    """Raises InputError where the extra `serve` is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}; pip install 'ensemble-kd[serve]'")


def _token(variable: str | None) -> str | None:
    """The token is never an argument: other users of a machine can read those."""
    if variable is None:
        return None
    value = os.environ.get(variable, "")
    if not value:
        raise InputError(
            f"--token: no environment variable {variable!r}, or it is empty; "
            f"export {variable}=... with the token, or leave --token out"
        )
    if not value.isascii() or any(c.isspace() or not c.isprintable() for c in value):
        raise InputError(f"--token: the value of {variable} holds spaces or other than ASCII characters")
    return value


@contextmanager
def listener(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket. Raises InputError where there is none to be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"--host: {host}: {error.strerror}; try 127.0.0.1, or 0.0.0.0 for all") from error
    with found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(BACKLOG)  # from now on it is ours; clients wait until the model is there
        except OSError as error:
            fix = {
                errno.EADDRINUSE: "it is taken; choose another --port, or stop what listens there",
                errno.EACCES: "not allowed; choose a --port above 1023",
                errno.EADDRNOTAVAIL: "this machine has no such address; try --host 127.0.0.1",
            }.get(error.errno or 0, str(error.strerror))
            raise InputError(f"--port: {port} on {host}: {fix}") from error
        yield found


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
