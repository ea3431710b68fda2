"""For the reference: lines `name: what it is` of our docstrings as a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ARGUMENT = re.compile(r"^(\*{0,2}[a-z_]+(?:, [a-z_]+)*): (?=\S)")


class Arguments(Extension):
    """Written for `help()`, where they are read as they stand; as Markdown they would run together."""

    def on_object(self, *, obj: Object, **others: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if (found := ARGUMENT.match(line)) is not None:
            if not inside and lines and lines[-1]:
                lines.append("")
            inside = True
            lines.append(f"- **{found[1]}**: {line[found.end() :]}")
        else:
            if inside and line and not line.startswith(" "):
                lines.append("")
                inside = False
            inside = inside and bool(line)
            lines.append(line)
    return "\n".join(lines)
