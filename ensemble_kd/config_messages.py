"""What pydantic says of a setting, in the words of configurations: blocks and lists, not dictionaries."""

from __future__ import annotations

import difflib
import re
from typing import Any

from ensemble_kd.config_checks import shown

BLOCK = "expected a block of settings"
WORDS = {
    "model_type": BLOCK,
    "model_attributes_type": BLOCK,
    "dataclass_type": BLOCK,
    "dict_type": BLOCK,
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "int_parsing_size": "too large a number",
    "string_unicode": "not a text: it has half a surrogate pair",
}
"""By pydantic's type of error."""
PATTERNS: dict[str, str] = {}
"""What a text has to look like, by its regular expression; whoever writes one enters it."""


def said(item: Any) -> str:
    """What is wrong with one setting, and what was found; `item` is one of pydantic's errors."""
    kind, got = item["type"], item["input"]
    message = f"{item['msg'][0].lower()}{item['msg'][1:]}".removeprefix("value error, ")
    hint = ""
    if kind == "missing":
        return "missing; it has no default, so set it"
    if kind == "union_tag_not_found":
        return f"name: missing; say which one, got {shown(got)}"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", str(item["ctx"]["expected_tags"]))
        name = got.get("name") if isinstance(got, dict) else got
        message, got = f"unknown name; known here: {', '.join(known)}", name
        hint = _near(name, known)
    elif kind == "literal_error":
        hint = _near(got, re.findall(r"'([^']*)'", message))
    elif kind == "string_pattern_mismatch":
        message = PATTERNS.get(item["ctx"]["pattern"], message)
    elif kind == "string_type" and isinstance(got, int | float):
        hint = "; put it in quotes if a text is meant"
    return f"{WORDS.get(kind, message)}, got {shown(got)}{hint}"


def _near(got: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(got[:100], known, n=1) if isinstance(got, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
