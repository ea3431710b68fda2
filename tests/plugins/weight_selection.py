"""An initialiser: a smaller network takes evenly spaced weights of a larger one (Xu et al., 2311.18823)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ensemble_kd.config.start import INITIALISERS, InitialiserConfig
from ensemble_kd.errors import ConfigError

if TYPE_CHECKING:
    from ensemble_kd.config import Config
    from ensemble_kd.models.build import Network


@INITIALISERS.register
class WeightSelection(InitialiserConfig):
    """Weights of the best teacher, evenly spaced along every axis (arXiv 2311.18823)."""

    name: Literal["weight_selection"] = "weight_selection"
    """`weight_selection`"""
    reads: ClassVar[Literal["nothing", "teacher"]] = "teacher"

    def problems(self, model: Any, config: Config) -> list[str]:
        teacher = config.teachers.model
        if teacher.name == model.name:
            return []
        return [f": takes weights of a network of the same kind, and teachers are {teacher.name!r}"]

    @torch.no_grad()
    def initialise(self, network: Network, source: Network | None, info: dict[str, Any]) -> None:
        assert source is not None, "it reads a teacher"
        given: dict[str, torch.Tensor] = dict(source.body.named_parameters())
        for name, own in network.body.named_parameters():
            old = given.get(name)
            if old is None or old.dim() != own.dim() or any(map(int.__gt__, own.shape, old.shape)):
                found = "none" if old is None else tuple(old.shape)
                raise ConfigError(
                    f"start: {name} is {tuple(own.shape)}, the teacher's {found}; make it smaller"
                )
            for axis, size in enumerate(own.shape):
                old = old.index_select(axis, torch.linspace(0, old.shape[axis] - 1, size).round().long())
            own.copy_(old)
