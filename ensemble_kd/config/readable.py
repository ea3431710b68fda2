"""Messages of pydantic as lines that a reader of the configuration understands."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from ensemble_kd.config.families import blocks_in
from ensemble_kd.config_checks import shown
from ensemble_kd.config_messages import said
from ensemble_kd.errors import Problem

UNTYPED = frozenset({"architecture", "options", "objective", "terms"})
"""Blocks whose fields only those know who read them."""
SHOWN_PROBLEMS = 50


def _known_keys(root: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the block that `loc` (of a pydantic error) ends in."""
    blocks: list[type[BaseModel]] = [root]
    for part in loc:
        if isinstance(part, int):
            continue
        hinted = [b for b in blocks if b.model_fields.get("name") and b.model_fields["name"].default == part]
        if hinted:  # a step into one branch of a union, told apart by `name`
            blocks = hinted
            continue
        blocks = [
            inner
            for b in blocks
            if part in b.model_fields
            for inner in blocks_in(b.model_fields[part].annotation)
        ]
    return sorted({name for block in blocks for name in block.model_fields})


def _plain(loc: tuple[Any, ...], root: type[BaseModel]) -> str:
    """A pydantic location as the user wrote it: the tags of unions left out."""
    kept, blocks = [], [root]
    for part in loc:
        if isinstance(part, int):
            kept.append(str(part))
            continue
        named = [b for b in blocks if "name" in b.model_fields and b.model_fields["name"].default == part]
        if named and not any(part in b.model_fields for b in blocks):
            blocks = named
            continue
        if "[" in part or part.removeprefix("constrained-") in ("str", "int", "float", "bool"):
            continue
        kept.append(part)
        blocks = [
            inner
            for b in blocks
            if part in b.model_fields
            for inner in blocks_in(b.model_fields[part].annotation)
        ]
    return ".".join(kept)


def readable(error: ValidationError, root: type[BaseModel], prefix: str = "") -> list[Problem]:
    """One problem for each field that pydantic has something against; `prefix` is the path of `root`."""
    lines: dict[str, str] = {}
    found = error.errors(include_url=False)
    for item in found[:SHOWN_PROBLEMS]:
        path = ".".join(filter(None, [prefix, _plain(item["loc"], root)]))
        if item["type"] == "extra_forbidden":
            known = _known_keys(root, item["loc"][:-1])
            close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            held = (
                f" (a block with {', '.join(map(shown, list(item['input'])[:10]))})"
                if isinstance(item["input"], dict)
                else ""
            )
            line = f"unknown setting{held}; {hint}"
        else:
            line = said(item)
        # A union reports each branch; one line per path is enough.
        lines[path] = f"{lines[path]}; or {line}" if path in lines and line not in lines[path] else line
    return [Problem(path, line) for path, line in lines.items()]
