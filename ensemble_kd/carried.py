"""What a process of a run tells those that it starts: secret options, and classes that no module has."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_kd import own_code, secret_options


@dataclass(frozen=True)
class Carried:
    """Made by `held` in one process, taken by `hold` in another. Ray sends classes of `__main__` by value."""

    secrets: secret_options.Held
    code: own_code.Known


def held() -> Carried:
    """What this process knows."""
    return Carried(secret_options.held(), own_code.held())


def hold(known: Carried) -> None:
    """What another process of this run knows."""
    secret_options.hold(known.secrets)
    own_code.hold(known.code)
