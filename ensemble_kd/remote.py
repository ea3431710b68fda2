"""Stores and servers that may not answer: asked for seconds, not for minutes."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

SECONDS = 30.0
"""For one question to a store: does it answer, what does it hold."""
ATTEMPTS = 3
"""Of a request to S3, some 11 s where nothing comes; Arrow's own default asks for 100 s, and waits for the
end of that when the process exits."""

T = TypeVar("T")

_silent: dict[tuple[str, str], tuple[float, OSError]] = {}
"""When a store has last not answered, and what was said of it."""


def bounded(system: Any) -> Any:
    """The same file system with fewer attempts, where it is one that can be told."""
    import pyarrow.fs as pafs

    # What a system pickles as is all its options, those of the environment included.
    made: Any = None
    if isinstance(system, getattr(pafs, "S3FileSystem", ())):
        made = system.__reduce__()
        make, (options,) = made
        strategy = pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        return make({**options, "retry_strategy": strategy})
    if isinstance(system, getattr(pafs, "GcsFileSystem", ())):
        made = system.__reduce__()
        make, (options,) = made
        if options["retry_time_limit"] is None:
            return make({**options, "retry_time_limit": datetime.timedelta(seconds=SECONDS / 3)})
    return system


def check_amazon(url: str) -> None:
    """Raises OSError where Amazon's S3, which a URL means that names no endpoint, cannot be reached.

    Arrow asks it for the bucket's region first, and not even its first attempt can be bounded.
    """
    parts = urlsplit(url)
    named = parse_qs(parts.query)
    elsewhere = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")
    if parts.scheme != "s3" or named.keys() & {"region", "endpoint_override"}:
        return
    if any(os.environ.get(name) for name in elsewhere):
        return
    host = "s3.us-east-1.amazonaws.com"
    try:
        within(SECONDS / 3, lambda: socket.create_connection((host, 443), SECONDS / 3).close())
    except OSError as error:
        raise OSError(f"{host} cannot be reached: {error}") from error


def asked(url: str, work: Callable[[str], T]) -> T:
    """`work(url)`, for `SECONDS` at most. What has just not answered is not asked again."""
    key = urlsplit(url)[:2]
    if (known := _silent.get(key)) is not None and time.monotonic() < known[0] + SECONDS:
        raise known[1]
    try:
        return within(SECONDS, lambda: work(url))
    except FileNotFoundError:
        raise
    except OSError as error:
        _silent[key] = time.monotonic(), error
        raise


def within(seconds: float, work: Callable[[], T]) -> T:
    """`work()`, or TimeoutError after so many seconds; what it raises is raised here."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]
