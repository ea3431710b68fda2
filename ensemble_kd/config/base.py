"""What every block of the configuration is made of."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from ensemble_kd.config_messages import PATTERNS

BLOCKS: list[type[BaseModel]] = []
"""Every class of blocks, in the order of their making."""
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
PHASE_NAME = r"^[a-z0-9][a-z0-9-]{0,40}$"
CALLABLE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
MODULE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
LAYER_CHOICES = r"^(every_second|distilbert|(first|last):[1-9]\d*)$"
PATTERNS |= {
    RUN_NAME: "expected letters, digits, '.', '_' and '-', at most 100 and a letter or digit first",
    PHASE_NAME: "expected small letters, digits and '-', at most 41 and a letter or digit first",
    CALLABLE: "expected module:callable, for example my_models:build",
    MODULE: "expected the name of a module, for example my_methods.networks",
    LAYER_CHOICES: "expected a list of numbers, first:K, last:K, every_second or distilbert",
}


class Block(BaseModel):
    """A block of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that an earlier version did not have: at their default they are left out of what is dumped, so
    that the fingerprints of all that was made before stay."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        BLOCKS.append(cls)

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                found.pop(name, None)
        return found


def replace(block: Any, changes: dict[str, Any]) -> Any:
    return type(block).model_validate({**block.model_dump(), **changes})
