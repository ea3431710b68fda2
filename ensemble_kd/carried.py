"""What a process of a run tells those that it starts: plug-ins, secret options, classes without a module."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_kd import own_code, secret_options
from ensemble_kd.config.plugins import loaded, provide


@dataclass(frozen=True)
class Carried:
    """What `held` collects in one process, and `hold` takes over in another that Ray starts.

    Ray sends classes of `__main__` by value.
    """

    secrets: secret_options.Held
    code: own_code.Known
    plugins: list[str]


def held() -> Carried:
    """All that this process knows, to be sent to another."""
    return Carried(secret_options.held(), own_code.held(), loaded())


def hold(known: Carried) -> None:
    """Take over what another process of this run has sent.

    Raises ConfigError for a plug-in that is not here.
    """
    provide(known.plugins)
    secret_options.hold(known.secrets)
    own_code.hold(known.code)
