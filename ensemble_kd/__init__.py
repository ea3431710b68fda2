"""Turn an ensemble of teachers into one small model that people deploy, on Ray.

    run = ensemble_kd.distill(frame, label="intent", teachers=[forest, network])
    run.leaderboard
    model = ensemble_kd.load("runs/distill")

What is offered loads at its first use: importing this module takes no torch and no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemble_kd.api.distill import distill
    from ensemble_kd.api.model import Model, load
    from ensemble_kd.api.run import Run, check, run

__version__ = "0.2.0.dev0"
__all__ = ["Model", "Run", "__version__", "check", "distill", "load", "run"]

_HOMES = {
    "Model": "ensemble_kd.api.model",
    "Run": "ensemble_kd.api.run",
    "check": "ensemble_kd.api.run",
    "distill": "ensemble_kd.api.distill",
    "load": "ensemble_kd.api.model",
    "run": "ensemble_kd.api.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
