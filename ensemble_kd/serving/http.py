"""The HTTP server: uvicorn with our connections, on a socket that is bound already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn

from ensemble_kd.serving.app import Limits
from ensemble_kd.serving.connections import Connection, Connections
from ensemble_kd.serving.server import BACKLOG
from ensemble_kd.serving.stopping import SIGNALS
from ensemble_kd.serving.throttle import Throttle

LOGGERS = ("ensemble_kd.serving.app", "uvicorn.error", "asyncio")


class Server(uvicorn.Server):
    """Serves until a signal; requests that are being answered then have ten seconds."""

    def __init__(self, app: Any, limits: Limits, started: Callable[[], None] = lambda: None) -> None:
        self.told = started
        self.book = Connections(replace(limits, max_connections=fitting(limits.max_connections)))
        connection: Any = partial(Connection, self.book)
        config = uvicorn.Config(
            app,
            http=connection,
            log_level="critical",  # of errors `app.Counted` tells; the others are clients that left
            access_log=False,
            server_header=False,
            date_header=False,
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=10,
        )
        throttle = Throttle()
        for name in LOGGERS:
            logger = logging.getLogger(name)
            for filter_ in [f for f in logger.filters if isinstance(f, Throttle)]:
                logger.removeFilter(filter_)
            logger.addFilter(throttle)
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.told()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again at the end, which is then the exit code."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def fitting(connections: int) -> int:
    """So many at most that half of the files that this process may open are left for everything else."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return connections if files == resource.RLIM_INFINITY else max(1, min(connections, files // 2))
