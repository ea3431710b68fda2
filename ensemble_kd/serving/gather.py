"""Questions that come while all replicas are busy travel to the next free one together.

A message to a replica costs both processes some milliseconds, many times what a row of a small model does; so
there is one for many requests under load, and one for each where there is none. Nothing waits here for its
own sake: the replicas' `max_wait_ms` is the only delay.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ensemble_kd.serving.answers import Question, Reply


class Gatherer:
    """Answers single questions by sending lists of them, at most `messages` at a time."""

    def __init__(
        self, send: Callable[[list[Question]], Awaitable[list[Reply]]], messages: int, max_rows: int
    ) -> None:
        """`max_rows` of a message, unless one question has more. Use within one event loop."""
        self.send, self.free, self.max_rows = send, messages, max_rows
        self.waiting: deque[tuple[Question, asyncio.Future[Reply]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Question) -> Reply:
        """Raises what `send` raises."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting.append((question, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self.waiting and self.free:
            taken = [self.waiting.popleft()]
            rows = taken[0][0].table.num_rows
            while self.waiting and rows + self.waiting[0][0].table.num_rows <= self.max_rows:
                taken.append(self.waiting.popleft())
                rows += taken[-1][0].table.num_rows
            self.free -= 1
            task = asyncio.create_task(self._answer(taken))
            self._tasks.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, taken: list[tuple[Question, asyncio.Future[Reply]]]) -> None:
        try:
            replies = await self.send([question for question, _ in taken])
        except Exception as error:  # each of the requests fails with it
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), reply in zip(taken, replies, strict=True):
                if not future.done():  # its client may have gone
                    future.set_result(reply)
        finally:
            self.free += 1
            self._start()
