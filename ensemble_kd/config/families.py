"""Blocks that are told apart by `name`, to which plug-ins add their own."""

from __future__ import annotations

import functools
import operator
import typing
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from ensemble_kd.config.base import BLOCKS, Block
from ensemble_kd.registry import RegistrationError, Registry

FAMILIES: list[Family] = []
Kind = TypeVar("Kind", bound=type[Block])


class Family:
    """An open union: `Annotated[A | B, FAMILY]` takes A, B, and what plug-ins have registered.

    `own` are the package's blocks; a family without any has a `base`, which stands in the annotation and
    itself is never made.
    """

    def __init__(self, what: str, *own: type[Block], base: type[Block] | None = None) -> None:
        self.own, self.base, self.registry = own, base, Registry(what)
        for block in own:
            self.register(block)
        FAMILIES.append(self)

    def register(self, block: Kind) -> Kind:
        """Enter a block under the names that its field `name` may have. A decorator.

        Raises RegistrationError where the block has no such field, or another one has the name.
        """
        kind: Any = block
        field = kind.model_fields.get("name") if issubclass(kind, Block) else None
        names = typing.get_args(field.annotation) if field is not None else ()
        if not names or not all(isinstance(name, str) for name in names):
            raise RegistrationError(
                f"registers {block.__module__}.{block.__qualname__} as {self.registry.what}, which has no "
                'name; give it a field: name: Literal["..."] = "..."'
            )
        for name in names:
            self.registry.enter(name, block)
        return block

    @property
    def blocks(self) -> list[type[Block]]:
        """All blocks, the package's own first."""
        return [*self.own, *self.added]

    @property
    def added(self) -> list[type[Block]]:
        """Those of plug-ins, in the order of their registration."""
        return list(dict.fromkeys(self.registry.added()))

    def origin(self, name: str) -> str | None:
        """The plug-in that brought the block of this name; None for the package's own."""
        return self.registry.origins.get(name)

    def beside(self, *own: type[Block]) -> Open:
        """For an annotation that takes `own` alone of the package's blocks, and all of plug-ins."""
        return Open(self, own)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return Open(self, self.own).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return Open(self, self.own).__get_pydantic_json_schema__(schema, handler)


@dataclass(frozen=True)
class Open:
    """Some of a family's own blocks, and those of plug-ins: what an annotation is marked with."""

    family: Family
    own: tuple[type[Block], ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        added = self.family.added
        if not added:
            return handler(source) if self.own else core_schema.no_info_plain_validator_function(self._refuse)
        blocks = [*self.own, *added]
        if len(blocks) == 1:
            return handler.generate_schema(blocks[0])
        union = functools.reduce(operator.or_, blocks)
        return handler.generate_schema(Annotated[union, Field(discriminator="name")])

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(schema) if self.own or self.family.added else {"not": {}}

    def _refuse(self, value: Any) -> NoReturn:
        what = self.family.registry.what
        raise PydanticCustomError(
            "none_known", f"there is no {what} by name; list the module that brings one under plugins"
        )


def blocks_in(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that an annotation such as `list[A | B] | None` can hold, those of plug-ins among them."""
    found = list(_named(annotation))
    for family in FAMILIES:
        if family.base in found:
            place = found.index(family.base)
            found[place : place + 1] = family.blocks
        elif set(family.own) & set(found):
            found += [block for block in family.added if block not in found]
    return found


def _named(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _named(part)


_built: list[list[type[Block]]] = []


def rebuild() -> None:
    """Have every block know what plug-ins have registered since the last time."""
    added = [family.added for family in FAMILIES]
    if added == (_built or [[] for _ in FAMILIES]):
        return
    _built[:] = added
    for block in BLOCKS:  # in the order of their making, so that what a block holds comes before it
        block.model_rebuild(force=True)
