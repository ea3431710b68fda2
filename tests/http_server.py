"""The HTTP side on a real socket, without Ray: the model answers in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemble_kd.inference.predictor import Predictor
from ensemble_kd.serving.answers import Question, Reply, Responder
from ensemble_kd.serving.app import Description, Limits, create_app
from ensemble_kd.serving.http import Server

DEFAULT = Limits()


@contextmanager
def serving(model: Path, limits: Limits = DEFAULT, token: str | None = None) -> Iterator[tuple[str, int]]:
    """Host and port of a model folder."""
    predictor = Predictor(model)
    responder = Responder(predictor, limits.truncate, limits.max_batch)

    async def answer(question: Question) -> Reply:
        return (await asyncio.to_thread(responder, [question]))[0]

    with listening(create_app(Description.of(predictor), answer, limits, token), limits) as address:
        yield address


@contextmanager
def listening(app: Any, limits: Limits = DEFAULT) -> Iterator[tuple[str, int]]:
    """Host and port of an ASGI application behind our server."""
    started = threading.Event()
    server = Server(app, limits, started.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(30)
            yield "127.0.0.1", listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive(), "the server does not end"
