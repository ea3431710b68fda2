"""A configuration as YAML with a comment above each choice."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml

from ensemble_kd.config_yaml import one_line, parse

WIDTH = 110
PLAIN = re.compile(r"(?:(?:\.{1,2})?/)*[A-Za-z_][A-Za-z0-9_./:-]*")
RESERVED = frozenset("y n yes no on off true false null nan inf".split())


@dataclass
class Commented:
    """Settings, and the comment of each by its path (`teachers.training.epochs`)."""

    raw: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, name: str) -> Commented:
        """A recipe with the comments that stand directly above its settings; not those at its beginning."""
        lines = text.splitlines()
        comments: dict[str, str] = {}

        def walk(node: Any, path: str) -> None:
            if not isinstance(node, yaml.MappingNode):
                return
            for key, value in node.value:
                here = f"{path}.{key.value}" if path else str(key.value)
                above, line = list[str](), key.start_mark.line - 1
                own = lines[key.start_mark.line][: key.start_mark.column].strip() == ""
                while own and line >= 0 and lines[line].lstrip().startswith("#"):
                    above.insert(0, lines[line].strip().lstrip("# "))
                    line -= 1
                if above and line >= 0:
                    comments[here] = " ".join(above)
                walk(value, here)

        walk(yaml.compose(text, yaml.SafeLoader), "")
        raw = parse(text, name)
        assert isinstance(raw, dict)
        return cls(raw, comments)

    def get(self, path: str) -> Any:
        """None where there is nothing."""
        here: Any = self.raw
        for part in path.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return here

    def set(self, path: str, value: Any, comment: str | None = None) -> None:
        """A comment takes the place of the one that was there."""
        *parents, last = path.split(".")
        here: Any = self.raw
        for part in parents:
            here = here.setdefault(part, {})
        here[last] = value
        if comment is not None:
            self.comments[path] = comment

    def set_all(self, changes: dict[str, Any]) -> None:
        """Several at once, by path; None takes a setting away."""
        for path, value in changes.items():
            if value is None:
                self.drop(path)
            else:
                self.set(path, value)

    def drop(self, path: str) -> None:
        *parents, last = path.split(".")
        here = self.get(".".join(parents)) if parents else self.raw
        if isinstance(here, dict):
            here.pop(last, None)
        self.comments = {p: c for p, c in self.comments.items() if p != path and not p.startswith(f"{path}.")}

    def text(self, head: list[str]) -> str:
        """The YAML; `head` are the comments at its beginning."""
        lines = [line for paragraph in head for line in _comment(paragraph, 0)]
        return "\n".join([*lines, *self._block(self.raw, "", 0)]) + "\n"

    def _block(self, block: dict[str, Any], path: str, indent: int) -> list[str]:
        lines = []
        for key, value in block.items():
            here = f"{path}.{key}" if path else key
            if here in self.comments:
                lines += _comment(self.comments[here], indent)
            start = f"{' ' * indent}{_scalar(key)}:"
            inside = any(p.startswith(f"{here}.") for p in self.comments)
            if isinstance(value, dict) and value and (not path or inside or len(_flow(value)) > WIDTH - 12):
                lines += [start, *self._block(value, here, indent + 2)]
            else:
                lines += _wrapped(f"{start} {_flow(value)}", indent + 2)
        return lines


def _comment(text: str, indent: int) -> list[str]:
    start = f"{' ' * indent}# "
    return textwrap.wrap(
        one_line(text, 4000), WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(k)}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """Texts in double quotes, as JSON has them, where they could be read as something else."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in RESERVED and not value.endswith(":")
        return value if plain else _printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, float):
        text = f"{value:g}"
        if float(text) != value:
            text = repr(value)
        return text.replace("e", ".0e") if re.fullmatch(r"-?\d+e.*", text) else text
    return json.dumps(value)


def _printable(text: str) -> str:
    """With escapes for what YAML does not take as it is, such as U+007F."""
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text
    )


def _wrapped(line: str, indent: int) -> list[str]:
    """Long lists over several lines; texts in quotes stay whole."""
    if len(line) <= WIDTH:
        return [line]
    parts, lines, now = re.findall(r'(?:"(?:\\.|[^"\\])*"|[^\s"])+', line), list[str](), ""
    lead = line[: len(line) - len(line.lstrip())]
    for part in parts:
        if now and len(now) + 1 + len(part) > WIDTH:
            lines.append(now)
            now = " " * indent + part
        else:
            now = f"{now} {part}" if now else lead + part
    return [*lines, now]
