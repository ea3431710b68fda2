"""What changes a network from step to step besides its optimiser: quantisers, compressors of plug-ins."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter

from ensemble_kd.config.methods import Compressor, CompressorConfig
from ensemble_kd.models.build import Network
from ensemble_kd.train.task import MemberTask


def compressors(task: MemberTask) -> list[CompressorConfig]:
    """Those of a task, in order."""
    if not task.compress:
        return []
    found: list[CompressorConfig] = TypeAdapter(list[Compressor]).validate_python(task.compress)
    return found


def before_steps(task: MemberTask, network: Network) -> Callable[[float], None] | None:
    """What is told before each step which share of them is done; None where nothing wants to know."""
    blocks, quantiser = compressors(task), network.quantiser
    if not blocks:
        return quantiser.at if quantiser is not None else None

    def tell(progress: float) -> None:
        for block in blocks:
            block.before_step(network, progress)

    return tell
