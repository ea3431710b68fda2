"""Connections of strangers: how many there may be, how long one is waited for, how large a head may be.

uvicorn itself times a connection out between two requests alone, and refuses everybody once there are too
many. Here a client that is waited for (it sent nothing yet, half a head, half a body, or does not read its
answer) has a deadline that no single byte moves. And where there are too many connections, the one that was
waited for longest goes: a thousand idle ones cost the next client nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ensemble_kd.serving.app import Limits

CHUNK = 262_144
"""Bytes that one read may bring, of which not all need belong to this request."""
FRAMING = 8
"""Bytes on the line for one byte of a body: chunks of a single byte have six."""
LINGER = 5.0
"""Seconds for the last bytes of an answer after which the connection ends."""
PATIENCE = 10
"""A connection between two requests is kept this many times as long as one whose request is awaited."""


class Connections:
    """Those of one server, and which of them are waited for since when."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open: set[Connection] = set()
        self.asking: dict[Connection, float] = {}
        """The first request is awaited, or one is arriving; the longest first."""
        self.idle: dict[Connection, float] = {}
        """Between two requests; the longest first."""

    def admit(self, new: Connection, now: float) -> bool:
        """Whether there is room, or was made."""
        self.open.add(new)
        if len(self.open) <= self.limits.max_connections:
            return True
        asking, idle = next(iter(self.asking), None), next(iter(self.idle), None)
        if asking and idle and now - self.idle[idle] > PATIENCE * (now - self.asking[asking]):
            asking = None
        victim = asking or idle
        if victim:
            victim.drop()
        return victim is not None

    def settle(self, connection: Connection) -> None:
        """It is not waited for any more."""
        self.asking.pop(connection, None)
        self.idle.pop(connection, None)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a time limit for each part of a request."""

    def __init__(self, book: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.book, self.limits = book, book.limits
        self.stage: Literal["between", "head", "body"] = "between"
        """What of a request is being parsed."""
        self.running: Any = None
        """The request that is being answered: `cycle` is the last one that came."""
        self.served = self.spoilt = False
        self.too_large = False
        self.head = self.raw = self.content = 0
        """Bytes of this request: its head's, on the line, its body's."""
        self.deadline: asyncio.TimerHandle | None = None
        self.stalled: asyncio.TimerHandle | None = None

    @property
    def _busy(self) -> bool:
        """Whether a request is to be answered."""
        return self.cycle is not None and not self.cycle.response_complete

    # ----------------------------------------------------------------------------------- its course

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.book.admit(self, self.loop.time()):
            self._await(self.limits.head_seconds)
        else:
            self._refuse(503, f"{self.limits.max_connections:,} connections are open; try again")

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        if self.stalled is not None:
            self.stalled.cancel()
        self.book.open.discard(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self.spoilt:
            return
        self.raw += len(data)
        super().data_received(data)
        if self.raw > self.limits.max_head + CHUNK + FRAMING * self.content:
            self.drop()  # a header or a trailer without an end, which the parser would collect
        self._linger()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.stage = "head"
        self.head = self.raw = self.content = 0
        if self.served and not self._busy:
            self._await(self.limits.head_seconds)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        queued = self._busy
        super().on_headers_complete()
        self.stage = "body"
        if not queued:
            self._await(None)  # whoever reads the body has a deadline for it

    def on_body(self, body: bytes) -> None:
        self.content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.stage = "between"
        if self._busy:
            self._settle()
        elif self.served:
            self._await(self.limits.idle_seconds)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self.served = True
        if self.spoilt:
            self.transport.close()
        if self._busy:  # with the next one, which came early
            if self.stage == "body":
                self._await(None)
        elif not self.transport.is_closing():
            seconds = {"head": self.limits.head_seconds, "body": self.limits.body_seconds}
            self._await(seconds.get(self.stage, self.limits.idle_seconds))
        self._linger()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = self.loop.call_later(self.limits.write_seconds, self._reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()

    # ------------------------------------------------------------------------------------- its ends

    def _await(self, seconds: float | None) -> None:
        """From now on the client is waited for, at most so long."""
        self._settle()
        waiting = self.book.idle if self.served and self.stage == "between" else self.book.asking
        waiting[self] = self.loop.time()
        if seconds is not None:
            self.deadline = self.loop.call_later(seconds, self._late)

    def _settle(self) -> None:
        self.book.settle(self)
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _late(self) -> None:
        if self.stage == "head":
            self._refuse(408, f"the head did not arrive within {self.limits.head_seconds:g} s")
        else:
            self.drop()

    def drop(self) -> None:
        """End it without a word, and its request with it."""
        self._settle()
        self._leave()
        self.transport.abort()

    def _reset(self) -> None:
        """End it at once for a client that does not read: what was sent would else wait in the kernel."""
        line = self.transport.get_extra_info("socket")
        if line is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.drop()

    def _leave(self) -> None:
        """Whoever answers is not to write any more."""
        if self.running is not None:
            self.running.disconnected = True
            self.running.message_event.set()

    def _count(self, size: int) -> None:
        self.head += size
        if self.head > self.limits.max_head:
            self.too_large = True
            raise ValueError  # which the parser hands on, and uvicorn refuses

    def send_400_response(self, msg: str) -> None:
        """Answer 400 to a request that uvicorn cannot parse."""
        if self.too_large:
            self._refuse(431, f"the head has more than {self.limits.max_head:,} bytes; send fewer headers")
        else:
            self._refuse(400, "this is no HTTP/1.1 request")

    def _refuse(self, status: int, problem: str) -> None:
        """An answer of our own, unless it would stand in the place of another's."""
        if self._busy and self.stage != "body":
            self.spoilt, self.cycle.keep_alive = True, False  # the request before has its answer first
            return
        self._settle()
        if not self._busy or not (self.running.response_started or self.pipeline):
            body = json.dumps({"problems": [problem]}).encode()
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self._leave()
        self.transport.close()
        self._linger()

    def _linger(self) -> None:
        if self.transport.is_closing() and self.deadline is None:
            self.deadline = self.loop.call_later(LINGER, self.transport.abort)
