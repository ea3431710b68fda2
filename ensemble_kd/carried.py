"""What a process of a run tells those that it starts: secret options, and classes that no module has."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_kd import own_code, secret_options


@dataclass(frozen=True)
class Carried:
    """What `held` collects in one process, and `hold` takes over in another that Ray starts.

    Ray sends classes of `__main__` by value.
    """

    secrets: secret_options.Held
    code: own_code.Known


def held() -> Carried:
    """All that this process knows, to be sent to another."""
    return Carried(secret_options.held(), own_code.held())


def hold(known: Carried) -> None:
    """Take over what another process of this run has sent."""
    secret_options.hold(known.secrets)
    own_code.hold(known.code)
