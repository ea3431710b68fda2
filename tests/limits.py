"""A process of its own with bounds on time and memory, for inputs that may be meant to break it."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
GIGABYTE = 10**9
CALLS = 200


class Limited:
    """Calls `module:function` in another process, which ends with an exception that is not expected.

    Each call may take so many seconds, and so many bytes beyond what the process holds when it starts; after
    `CALLS` of them another one starts, so that what allocators keep is not held against the next; they keep
    two arenas at most, since each thread's own would take 64 MB of addresses. A
    process that dies, of a signal or by one of these bounds, is an AssertionError that says of what; the next
    call starts another.
    """

    def __init__(self, target: str, seconds: float = 10, memory: int = GIGABYTE) -> None:
        self.target, self.seconds, self.memory = target, seconds, memory
        self.process: subprocess.Popen[str] | None = None
        self.calls = 0

    def __enter__(self) -> Limited:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns, as JSON."""
        self.calls += 1
        if self.calls % CALLS == 0:
            self._end()
        process = self._started()
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], self.seconds)[0]:
            self._end()
            raise AssertionError(f"{self.target}: no answer within {self.seconds} s")
        line = process.stdout.readline()
        if not line:
            status = process.wait(10)
            said = process.stderr.read()[-3000:]
            self._end()
            raise AssertionError(f"{self.target}: the process ended with status {status}\n{said}")
        return json.loads(line)

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            path = os.pathsep.join([str(TESTS), str(TESTS / "data"), os.environ.get("PYTHONPATH", "")])
            self.process = subprocess.Popen(
                [sys.executable, __file__, self.target, str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )
            assert self.process.stdout is not None
            ready = self.process.stdout.readline()
            if ready.strip() != "ready":
                _, said = self.process.communicate(timeout=60)
                raise AssertionError(f"{self.target}: cannot be started\n{said}")
        return self.process

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _serve(target: str, memory: int) -> None:
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(function(*json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
