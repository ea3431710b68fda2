"""Questions that come while all replicas are busy travel to the next free one together.

A message to a replica costs both processes some milliseconds, many times what a row of a small model does; so
there is one for many requests under load, and one for each where there is none. Nothing waits here for its
own sake: the replicas' `max_wait_ms` is the only delay.

A message that fails as a whole (its replica died, say) takes its questions along, of which one may be to
blame. So each is asked once more, with nothing else under way: whatever fails then fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ensemble_kd.serving.answers import Question, Reply

Asked = tuple[Question, asyncio.Future[Reply]]


class Gatherer:
    """Answers single questions by sending lists of them, at most `messages` at a time."""

    def __init__(
        self, send: Callable[[list[Question]], Awaitable[list[Reply]]], messages: int, max_rows: int
    ) -> None:
        """`max_rows` of a message, unless one question has more. Use within one event loop."""
        self.send, self.messages, self.max_rows = send, messages, max_rows
        self.free = messages
        self.waiting: deque[Asked] = deque()
        self.suspects: deque[Asked] = deque()
        """Questions of messages that failed."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Question) -> Reply:
        """Raises what `send` raises."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting.append((question, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self.suspects and self.free == self.messages:
            asked = self.suspects.popleft()
            if not asked[1].done():  # its client may have gone
                self._send([asked], alone=True)
        while self.waiting and self.free and not self.suspects:
            taken = [self.waiting.popleft()]
            rows = taken[0][0].table.num_rows
            while self.waiting and rows + self.waiting[0][0].table.num_rows <= self.max_rows:
                taken.append(self.waiting.popleft())
                rows += taken[-1][0].table.num_rows
            self._send(taken, alone=self.messages == 1 == len(taken))

    def _send(self, taken: list[Asked], alone: bool = False) -> None:
        places = self.messages if alone else 1
        self.free -= places
        task = asyncio.create_task(self._answer(taken, places, alone))
        self._tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, taken: list[Asked], places: int, alone: bool) -> None:
        try:
            replies = await self.send([question for question, _ in taken])
        except Exception as error:
            if not alone:
                self.suspects.extend(taken)
            elif not taken[0][1].done():
                taken[0][1].set_exception(error)
        else:
            for (_, future), reply in zip(taken, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        finally:
            self.free += places
            self._start()
