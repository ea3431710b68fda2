"""The pages over HTTP: four of them, two files and the reports. GET alone; nothing is written."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ensemble_kd.errors import ArtifactError
from ensemble_kd.safe_files import problem_inside, read_plain, shown
from ensemble_kd.ui.examples import examples_page
from ensemble_kd.ui.folders import LARGEST, Run, runs_below
from ensemble_kd.ui.graph import clusters_page
from ensemble_kd.ui.listing import listing
from ensemble_kd.ui.pieces import SCRIPT, STYLE, esc, page
from ensemble_kd.ui.run_page import run_page

log = logging.getLogger(__name__)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Styles may stand in a plot's elements; scripts come from our one file alone."""
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class NoRunError(Exception):
    """Asked for a run that is not in the list."""


def create_app(root: Path, host: str = "127.0.0.1") -> Any:
    """The application over the runs below `root`; `host` is what it listens on."""

    def run_of(request: Request) -> Run:
        name = request.query_params.get("name", "")
        found = runs_below(root).get(name)
        if found is None:
            raise NoRunError(f"there is no run {shown(name)!r}")
        return found

    def pages(make: Callable[[Request], str]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                return _html(make(request))
            except NoRunError as error:
                return _wrong(404, str(error))
            except (ArtifactError, OSError) as error:
                return _wrong(200, str(error))

        return endpoint

    def report(request: Request) -> Response:
        try:
            run = run_of(request)
            if (problem := problem_inside(run.folder, "report.html")) is not None:
                return _wrong(404, f"report.html: {problem}")
            content = read_plain(run.folder / "report.html", LARGEST)
        except NoRunError as error:
            return _wrong(404, str(error))
        except (ArtifactError, OSError) as error:
            return _wrong(404, str(error))
        headers = HEADERS | {"Content-Security-Policy": REPORT_POLICY}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    routes = [
        Route("/", pages(lambda request: listing(runs_below(root), str(root)))),
        Route("/run", pages(lambda request: run_page(run_of(request)))),
        Route("/examples", pages(lambda request: examples_page(run_of(request), request.query_params))),
        Route("/clusters", pages(lambda request: clusters_page(run_of(request)))),
        Route("/report", report),
        Route("/style.css", lambda request: Response(STYLE, media_type="text/css", headers=HEADERS)),
        Route("/refresh.js", lambda request: Response(SCRIPT, media_type="text/javascript", headers=HEADERS)),
    ]
    app = Starlette(routes=routes, exception_handlers={404: _not_found})
    app.router.redirect_slashes = False  # a redirect holds what the client says that our name is
    return Guarded(app, host)


def _html(text: str, status: int = 200) -> Response:
    content = text.encode("utf-8", "replace")  # a name of the file system may hold what is no character
    return Response(
        content, status, HEADERS | {"Content-Security-Policy": POLICY}, media_type="text/html; charset=utf-8"
    )


def _wrong(status: int, text: str) -> Response:
    return _html(
        page("Not to be shown" if status == 200 else "Not found", f"<p class=wrong>{esc(text)}</p>"), status
    )


def _not_found(request: Request, error: Any) -> Response:
    return _wrong(404, f"no page {request.scope['path'][:80]}")


class Guarded:
    """Refuses requests by another name than ours: a site that gives its name our address (DNS rebinding)
    would otherwise read the pages from a browser on this machine. What fails is logged and told as a page."""

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = {"localhost", host.lower()}
        if not local(host):
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        given = [value for name, value in scope["headers"] if name == b"host"]
        host = given[0].decode("latin-1") if len(given) == 1 else ""
        if not self.known(host):
            text = "Host: this server answers by its address or as localhost, not by another name\n"
            await PlainTextResponse(text, 421, HEADERS)(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("pages are only read\n", 405, HEADERS | {"Allow": "GET, HEAD"})
            await answer(scope, receive, send)
            return
        try:
            await self.app(scope, receive, noted)
        except Exception:
            log.exception("%s failed", scope["path"][:80])
            if not begun:
                await _wrong(500, "this page failed; the server's log says why")(scope, receive, send)

    def known(self, given: str) -> bool:
        """Whether a Host header names us: an address (no site can have that as its name) or our name."""
        name = given.lower()
        if name.startswith("["):
            name, _, rest = name[1:].partition("]")
            if rest and not (rest[0] == ":" and rest[1:].isdigit()):
                return False
        else:
            name, _, port = name.partition(":")
            if port and not port.isdigit():
                return False
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
