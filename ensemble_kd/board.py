"""The actor that hands out members to a worker group; by itself, so that its process imports no torch."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]
WAIT = -1
"""In place of a member's number: those that are left start from one that is still being trained."""


class Board:
    """The actor that hands out members and collects what workers report."""

    def __init__(self, tasks: list[int], after: dict[int, int]) -> None:
        """`after` names, for a member that starts from another of them, that other."""
        self.tasks, self.after, self.attempt = tasks, after, ""
        self.stopping = False
        self.queue: list[int] = []
        self.done: set[int] = set()
        self.lost: set[int] = set()
        self.events: list[Event] = []
        self.controller: Any = None

    def claim(self, attempt: str) -> int | None:
        """The next member for a group; a new attempt (after a failure) starts the queue anew.

        WAIT where those that are left start from one that is still being trained; None at the end.
        """
        if self.stopping:
            return None
        if attempt != self.attempt:
            self.attempt, self.queue = attempt, list(self.tasks)
        for i in list(self.queue):
            before = self.after.get(i)
            if before in self.lost or i in self.lost:
                self.lost.add(i)
                self.queue.remove(i)
            elif before is None or before in self.done:
                self.queue.remove(i)
                return i
        return WAIT if self.queue else None

    def post(self, event: Event) -> None:
        if event["kind"] in ("done", "failed"):
            (self.done if event["kind"] == "done" else self.lost).add(event["member"])
        self.events.append(event)

    def stop(self) -> None:
        """Hand out no more; those that train save where they stand and leave."""
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping

    def led_by(self, controller: Any) -> None:
        """The actor of Ray Train that leads the group."""
        self.controller = controller

    def leader(self) -> Any:
        return self.controller

    def skip(self, member: int) -> None:
        """One that was finished already."""
        self.done.add(member)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events
