"""YAML as configurations need it: bounded, told by file, line and column, and without YAML 1.1's traps.

PyYAML lets the last of two equal keys win, reads `no` as false, `010` as 8, `1:30` as 90 and `1e-3` as a
text. Here a key given twice is an error, only `true` and `false` are booleans, and numbers are decimal. Words
such as `no` and `on` stay texts, of which pydantic makes booleans where a field wants one.

Whatever is wrong with the bytes of a file or the text of an override becomes one ConfigError.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError
from yaml.resolver import BaseResolver

from ensemble_kd.errors import ConfigError

MOST_BYTES = 1_000_000
"""Of a configuration file; the shipped ones have some thousand."""
MOST_VALUES = 50_000
"""Keys and values of one file, aliases counted as what they stand for."""
MOST_NESTED = 100
"""Blocks and lists inside one another."""
MOST_DIGITS = 100
FEW = "a configuration has some hundred, some ten deep: keep data in a file of its own"
DEBUG = "ENSEMBLE_KD_DEBUG"
"""Environment variable; where it is set, unforeseen errors are shown with their traceback."""
SHOWN = 80
"""Characters of a name or a value that a message quotes."""

BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
NULL = re.compile(r"~|null|Null|NULL|")
INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+")
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
HALF = re.compile("[\ud800-\udfff]")
NO_CHARACTER = "a half of a surrogate pair, which is no character; write the character itself"
WORDS = {"yes": True, "on": True, "y": True, "no": False, "off": False, "n": False}
"""What YAML 1.1 reads as booleans; see `with_booleans`."""

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
KINDS: dict[str, type[Node]] = {
    **dict.fromkeys(("null", "bool", "int", "float", "str"), ScalarNode),
    "seq": SequenceNode,
    "map": MappingNode,
}
"""The tags that mean something, and what they stand at."""


class _Loader(
    yaml.reader.Reader,
    yaml.scanner.Scanner,
    yaml.parser.Parser,
    yaml.composer.Composer,
    yaml.constructor.SafeConstructor,
    BaseResolver,
):
    """PyYAML's own loader in pure Python, whose recursion, values, keys and scalars are looked after here."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.constructor.SafeConstructor.__init__(self)
        BaseResolver.__init__(self)
        self.depth = self.deepest = self.values = 0
        self.anchored: dict[str, tuple[int, int]] = {}
        """Values behind each anchor that is complete, and how deep they go."""
        self.merged: set[int] = set()

    # ------------------------------------------------------------------------------- composing, bounded

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        alias, before, outside = isinstance(event, AliasEvent), self.values, self.deepest
        self.depth += 1
        self.values, self.deepest = self.values + 1, self.depth
        if alias and event.anchor in self.anchors:
            if event.anchor not in self.anchored:
                raise _error(event, f"the anchor &{_cut(event.anchor)} contains itself; write the block out")
            values, height = self.anchored[event.anchor]
            self.values, self.deepest = self.values + values, self.deepest + height
        if self.values > MOST_VALUES:
            what = "aliases stand for" if alias else "it has"
            raise _error(event, f"{what} more than {MOST_VALUES:,} values in all; {FEW}")
        if self.deepest > MOST_NESTED:
            raise _error(event, f"more than {MOST_NESTED} blocks or lists inside one another; {FEW}")
        node = super().compose_node(parent, index)
        if not alias and event.anchor is not None:
            self.anchored[event.anchor] = self.values - before, self.deepest - self.depth
        self.depth, self.deepest = self.depth - 1, max(outside, self.deepest)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _error(key, "a block or list as a key; a key is a plain name")
            if key.tag == MERGE:
                continue
            key.value = _whole(key)
            if key.value in seen:
                first = seen[key.value].start_mark
                raise _error(
                    key,
                    f"the key {_cut(key.value)!r} is given twice, in line {first.line + 1} and in "
                    f"line {key.start_mark.line + 1}; keep one of them",
                )
            seen[key.value] = key
        return node

    # ----------------------------------------------------------------------------------- what a scalar is

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            if value == "<<":
                return MERGE
            for name, pattern in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT)):
                if pattern.fullmatch(value):
                    return f"{TAG}{name}"
            return f"{TAG}str"
        return super().resolve(kind, value, implicit)

    def flatten_mapping(self, node: Any) -> None:
        """`<<: *block` and `<<: [*one, *two]`: own keys first, then those of the blocks in their order."""
        if id(node) in self.merged:
            return
        self.merged.add(id(node))
        own = [(key, value) for key, value in node.value if key.tag != MERGE]
        named = {key.value for key, _ in own}
        found = []
        for key, value in node.value:
            if key.tag != MERGE:
                continue
            blocks = value.value if isinstance(value, SequenceNode) else [value]
            for block in blocks:
                if not isinstance(block, MappingNode):
                    raise _error(key, "<< takes a block (<<: *name), or a list of blocks")
                self.flatten_mapping(block)
                for pair in block.value:
                    if pair[0].value not in named:
                        named.add(pair[0].value)
                        found.append(pair)
        node.value = found + own

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Keys are names, as they are written: not numbers, dates or booleans."""
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        written = getattr(node, "value", "")
        kind = node.tag.removeprefix(TAG)
        if kind not in KINDS or not isinstance(node, KINDS[kind]):
            tag = f"!!{kind}" if node.tag != kind else kind
            raise _error(node, f"the tag {_cut(tag)} means nothing here; leave it out")
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError) as error:
            raise _error(node, f"{_cut(str(written))!r} cannot be read as !!{kind}") from error

    def construct_number(self, node: Any) -> int | float:
        text = node.value.replace("_", "")
        if len(text) > MOST_DIGITS:
            raise _error(
                node,
                f"a number of {len(text):,} characters; write a shorter one, or in quotes where "
                "a text is meant",
            )
        if node.tag.endswith("int"):
            return int(text, 0)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def construct_text(self, node: Any) -> str:
        return _whole(node)


_Loader.yaml_constructors = {
    **_Loader.yaml_constructors,
    f"{TAG}int": _Loader.construct_number,
    f"{TAG}float": _Loader.construct_number,
    f"{TAG}str": _Loader.construct_text,
}


def _whole(node: Any) -> str:
    """The text of a scalar; JSON writes characters as two escapes, each half of a surrogate pair."""
    text = str(node.value)
    if not HALF.search(text):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error(node, NO_CHARACTER) from None


def _error(at: Any, text: str) -> MarkedYAMLError:
    return ConstructorError(None, None, text, at.start_mark)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


# ------------------------------------------------------------------------------------------ what is wrong


def _place(error: MarkedYAMLError) -> tuple[int, int] | None:
    mark = error.problem_mark or error.context_mark
    return None if mark is None else (mark.line + 1, mark.column + 1)


def _said(error: MarkedYAMLError) -> str:
    """What a YAML error says, in words for people."""
    text = error.problem or str(error.context or "not YAML")
    if "'\\t'" in text:
        return "a tab where YAML wants spaces; indent with spaces"
    if "expected a single document" in str(error.context or "") or "another document" in text:
        return "a second document (---); a configuration is one"
    if "mapping values are not allowed" in text:
        return "a second colon in a value, or a wrong indentation; quote texts with a colon: 'a: b'"
    if "found undefined alias" in text:
        return f"{text}; define it first: &name"
    if "found duplicate anchor" in str(error.context or ""):
        return "an anchor of this name stands above; name each differently"
    context = error.context or ""
    return f"{context}: {text}" if context else text


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


@contextmanager
def _told(name: str, text: str) -> Iterator[None]:
    """Turns whatever parsing raises into one ConfigError that says where."""
    try:
        yield
    except MarkedYAMLError as error:
        place = _place(error)
        where = name if place is None else f"{name}:{place[0]}:{place[1]}"
        raise ConfigError(one_line(f"{where}: cannot be read as YAML: {_said(error)}")) from error
    except ReaderError as error:
        line, column = _line_and_column(text, error.position)
        character = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError(
            f"{name}:{line}:{column}: cannot be read as YAML: the character U+{character:04X}, which no text "
            "has; write it as an escape in double quotes, or take it out"
        ) from error
    except Exception as error:  # noqa: BLE001 - the net: bytes of any kind are a user's mistake, never a bug
        raise ConfigError(
            one_line(f"{name}: cannot be read as YAML: {type(error).__name__}: {_cut(str(error))}")
        ) from error


def one_line(text: str, most: int = 2000) -> str:
    """A message as one paragraph: control characters written as escapes, and not longer than `most`."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in (text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[-most // 4 :]}")
    )
    return shown


# ---------------------------------------------------------------------------------------------- reading


def parse(text: str, name: str) -> Any:
    """The plain data of a YAML text; `name` is what messages call it.

    Blocks that anchors share are copies of each other. Raises ConfigError.
    """
    with _told(name, text):
        loader = _Loader(text)
        try:
            return unshared(loader.get_single_data())
        finally:
            loader.dispose()


def unshared(value: Any) -> Any:
    """A copy in which anchors stand for blocks of their own, so that an override changes one alone."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def with_booleans(value: Any, keys: frozenset[str], inside: bool = False) -> Any:
    """`yes`, `no`, `on` and `off` as booleans inside the blocks `keys`, which have no types to say so."""
    if isinstance(value, dict):
        return {key: with_booleans(item, keys, inside or key in keys) for key, item in value.items()}
    if isinstance(value, list):
        return [with_booleans(item, keys, inside) for item in value]
    return WORDS.get(value.lower(), value) if inside and isinstance(value, str) else value


@contextmanager
def nothing_unforeseen(name: str) -> Iterator[None]:
    """The net around all that reads what a user wrote: what is not told otherwise is one ConfigError.

    With `ENSEMBLE_KD_DEBUG` set it is raised as it is.
    """
    try:
        yield
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        if os.environ.get(DEBUG):
            raise
        said = one_line(str(error), 300)
        raise ConfigError(
            f"{one_line(name, 300)}: cannot be used as a configuration ({type(error).__name__}: {said}); "
            f"take out what is unusual in it; {DEBUG}=1 shows where it was met"
        ) from error


def read(file: Path, name: str | None = None) -> Any:
    """The plain data of a YAML file. Raises ConfigError, with line and column, for whatever is wrong."""
    name = name or one_line(str(file), 300)
    return parse(decoded(_bytes(file, name), name), name)


def _bytes(file: Path, name: str) -> bytes:
    """The content of a regular file of a size that a configuration has; no pipe is waited for."""
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name}: cannot be read: {said}") from error
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(kind):
        os.close(descriptor)
        raise ConfigError(f"{name}: a folder, not a file; give the YAML file in it")
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(kind):
            what = "a pipe" if stat.S_ISFIFO(kind) else "a device or socket"
            raise ConfigError(
                f"{name}: {what}, not a file; write the configuration into a file and give that"
            )
        try:
            content = opened.read(MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{name}: more than {MOST_BYTES:,} bytes, which is no configuration; a data file goes "
            "into data.path"
        )
    return content


def decoded(content: bytes, name: str) -> str:
    """UTF-8, or UTF-16 with its byte order mark. Raises ConfigError for other bytes."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        if b"\0" in content[:4096]:
            raise ConfigError(f"{name}: a binary file, not YAML; give the configuration") from error
        raise ConfigError(
            f"{name}:{line}:{column}: cannot be read as YAML: the byte 0x{content[error.start]:02x} is not "
            "UTF-8; save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ConfigError(f"{name}: a binary file, not YAML; give the configuration")
    return text
