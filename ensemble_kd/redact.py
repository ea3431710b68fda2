"""Secrets never leave: what is written, sent or printed goes through `redacted` first.

Credentials come in by the configuration, as parts of addresses (`postgresql://user:PASSWORD@host`,
`s3://KEY:SECRET@bucket`, `https://host/data?token=...`), and by the environment. Where an address is used
it stays whole; a fingerprint covers it whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"

NAMES = r"(?:pass(?:word|wd|phrase)|pwd|secret|token|signature|sig|credential|access_?key(?:_?id)?|api_?key)"
"""How a name ends that has a secret as its value: `password`, `X-Amz-Signature`, `AWSAccessKeyId`."""

USER = re.compile(
    r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#\"'<>]+|[^\s/:@]*:(?!\d+(?:/|$))[^\s@]*)@", re.IGNORECASE
)
"""All before the last `@` of an address's host; or, of a password with a slash in it, before the first."""
PARAMETER = re.compile(rf"(?<![a-z0-9])((?:[a-z0-9-]*[-_])?[a-z]*{NAMES}=)[^&;,\s\"'<>]+", re.IGNORECASE)
"""`?token=...`, `&X-Amz-Signature=...`, and a database's `password=...`."""
HEADER = re.compile(r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[^\s\"']+", re.IGNORECASE)

KEYS = re.compile(r"(?:^|_)(?:password|passwd|secret|api_?key|access_?key(?:_id)?|auth_token|session_token)$")
VARIABLES = re.compile(r"(?:PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY|ACCESS_KEY_ID|CREDENTIALS)$")
SHORTEST = 8
"""Characters of a variable's value that is looked for; a shorter one would mask words of another meaning."""


def redacted(value: Any) -> Any:
    """The same structure of dicts, lists and strings with every secret in it masked.

    Masked are user and password of an address, parameters and keys that are named like a secret, and the
    values of the environment's secrets (`AWS_SECRET_ACCESS_KEY`, `MLFLOW_TRACKING_TOKEN`, ...) wherever they
    stand.
    """
    return _redacted(value, sorted(_of_environment(), key=len, reverse=True))


def _redacted(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _text(value, secrets)
    if isinstance(value, dict):
        return {
            _redacted(key, secrets): MASK
            if _named(key) and isinstance(inner, str)
            else _redacted(inner, secrets)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_redacted(inner, secrets) for inner in value]
    if isinstance(value, tuple):
        return tuple(_redacted(inner, secrets) for inner in value)
    return value


def _text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    if "=" in text:
        text = PARAMETER.sub(rf"\1{MASK}", text)
    if "://" in text:
        text = USER.sub(rf"\1{MASK}@", text)
    return HEADER.sub(rf"\1{MASK}", text)


def _named(key: Any) -> bool:
    return isinstance(key, str) and KEYS.search(key.lower()) is not None


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if VARIABLES.search(name) and len(value) >= SHORTEST:
            yield value
