"""The reference of all settings as Markdown, made from the typed models: docs/configuration.md."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ensemble_kd.config.families import blocks_in
from ensemble_kd.config.run import Config

SIGNS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
ANY_BLOCK = "block of names (anything)"
HEAD = """# Configuration

Every setting of a run: `ensemble-kd run my.yaml --set PATH=VALUE` changes one. This page is made from the
typed models (`ensemble-kd schema --markdown`), and a test holds the two together; `ensemble-kd schema`
prints the same as a JSON schema for editors. A setting without a default has to be given.
"""


def reference() -> str:
    """The page docs/configuration.md as Markdown."""
    parts = [HEAD]
    for path, block in _blocks(Config, ""):
        title = f"`{path}`" if path else "The whole configuration"
        parts.append(f"\n## {title}\n\n{_sentence(block.__doc__)}\n\n{_table(block)}")
    return "".join(parts)


def _blocks(block: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every block and the path of the first place where it stands, outer ones first."""
    seen: set[type[BaseModel]] = set()
    waiting = [(path, block)]
    while waiting:
        path, block = waiting.pop(0)
        if block in seen:
            continue
        seen.add(block)
        yield path, block
        inside = []
        for name, field in block.model_fields.items():
            for inner in blocks_in(field.annotation):
                own = f"{path}.{name}" if path else name
                kind = inner.model_fields.get("name")
                several = len(blocks_in(field.annotation)) > 1 and kind is not None
                inside.append((f"{own}: {{name: {kind.default}}}" if several and kind else own, inner))
        waiting = inside + waiting


def _table(block: type[BaseModel]) -> str:
    lines = ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, field in block.model_fields.items():
        cells = [f"`{name}`", _values(field), _default(field), _sentence(field.description)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "–"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "a block"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _values(field: FieldInfo) -> str:
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in words: `whole number, at least 1`, `a`, `b` or null, list of numbers."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        inner, *own = get_args(annotation)
        return _kind(inner, own)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        parts = list(dict.fromkeys(_kind(part) for part in get_args(annotation)))
        # beside another value, fields of any kind are those that the text names: "block" is enough
        return " or ".join("block" if part == ANY_BLOCK else part for part in parts) + _bounds(metadata)
    if blocks_in(annotation) and origin is None:
        return "block"
    if origin in (list, tuple, set, frozenset):
        inside = [part for part in get_args(annotation) if part is not Ellipsis]
        several = list(dict.fromkeys(_kind(part) for part in inside)) or ["anything"]
        return f"list ({', '.join(several)})"
    if origin is dict:
        return f"block of names ({_kind(get_args(annotation)[1])})"
    return PLAIN.get(annotation, "anything") + _bounds(metadata)


def _bounds(metadata: Any) -> str:
    """The constraints of a number, of pydantic's or of annotated-types' making."""
    found = []
    for item in metadata:
        for part in getattr(item, "metadata", None) or [item]:
            found += [f"{word} {getattr(part, sign)}" for sign, word in SIGNS.items() if hasattr(part, sign)]
    return "".join(f", {text}" for text in dict.fromkeys(found))
