"""JSON for a parser of lines: arrays are taken apart, and what is nested too deep is refused.

Arrow's parser ends the process on some 10,000 nested lists, and on a row that is null where it expects the
first; so both are looked for before it sees them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

import numpy as np

from ensemble_kd.errors import InputError

DEEPEST = 256
"""Lists and objects within each other."""
NULL = re.compile(rb"^[ \t\r]*null\b", re.MULTILINE)
GAP = re.compile(r"[\s,]*")
SPACE = re.compile(r"\s*")


def json_lines(chunks: Iterator[bytes], name: str, longest: int, guarded: bool = True) -> Iterator[bytes]:
    """Objects on lines, of lines or of an array. `chunks` are UTF-8; `longest`: bytes of a row.

    Raises InputError for what Arrow must not see; lines that are not `guarded` are as they are.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if head.strip():
            break
    start = head.lstrip()
    if start.startswith(b"["):
        yield from _elements(head, chunks, name, longest)
    elif guarded:
        yield from _shallow(head, chunks, name)
    else:
        yield head
        yield from chunks


def _elements(head: bytes, chunks: Iterator[bytes], name: str, longest: int) -> Iterator[bytes]:
    """The elements of an array, each on a line. The standard parser finds where they end."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    parse = json.JSONDecoder(parse_int=float).raw_decode  # float: of any number of digits
    buffer, at, more, count = decoder.decode(head).lstrip()[1:], 0, True, 0
    lines: list[str] = []

    def row() -> str:
        return f"{name}: element {count} of the array (from 0)"

    while True:
        gap = GAP if count else SPACE
        begin = gap.match(buffer, at).end()  # type: ignore[union-attr]
        if begin < len(buffer) and buffer[begin] == "]":
            if rest := buffer[begin + 1 :].strip():
                raise InputError(f"{name}: goes on behind the end of the array: {rest[:40]!r}; remove that")
            break
        try:
            if begin == len(buffer):
                raise json.JSONDecodeError("the array does not end", "", 0)
            if buffer[begin] != "{":
                raise InputError(
                    f"{row()} is {buffer[begin : begin + 40]!r}, not an object; write each row as "
                    '{"COLUMN": VALUE, ...}'
                )
            _, end = parse(buffer, begin)
        except RecursionError as error:
            raise InputError(f"{row()} is nested too deep; {DEEPEST} levels are read") from error
        except json.JSONDecodeError as error:
            chunk = next(chunks, None) if more else None
            if more and len(buffer) - begin <= longest:
                parts, more = [buffer[begin:]], chunk is not None
                at = 0
                # As much again as there is, so that a long row is not parsed once a chunk.
                while chunk is not None:
                    parts.append(decoder.decode(chunk))
                    if sum(map(len, parts[1:])) >= len(parts[0]):
                        break
                    chunk = next(chunks, None)
                buffer = "".join(parts)
                continue
            what = "longer than a row may be" if more else error.msg
            raise InputError(f"{row()} is not JSON: {what}; mend it, or write a row a line") from error
        lines.append(buffer[begin:end].replace("\n", " ").replace("\r", " "))
        at, count = end, count + 1
        if len(lines) == 1000 or sum(map(len, lines[-1:])) > 2**16:
            yield _encoded(lines, name)
            lines = []
    if lines:
        yield _encoded(lines, name)


def _encoded(lines: list[str], name: str) -> bytes:
    data = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    check_depth(data, name)
    return data


def _shallow(head: bytes, chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The lines as they are, cut at their ends, with their depth judged."""
    parts = [head]
    depth = 0

    def judged(parts: list[bytes]) -> bytes:
        nonlocal depth
        data = b"".join(parts)
        depth = check_depth(data, name, depth)
        return data

    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            parts.append(chunk)
            continue
        yield judged([*parts, chunk[:cut]])
        parts = [chunk[cut:]]
    yield judged(parts)


def check_depth(data: bytes, name: str, before: int = 0) -> int:
    """The depth at the end of `data`, which starts at depth `before` and outside of a string.

    Raises InputError where it is above `DEEPEST`, and for a row that is null.
    """
    places, depths = _depths(data, before)
    if len(depths) and depths.max() > DEEPEST:
        raise InputError(
            f"{name}: cannot be read as JSON lines: lists or objects nested more than {DEEPEST} levels deep, "
            "or brackets that are never closed; flatten or mend them"
        )
    for match in NULL.finditer(_unescaped(data)):
        known = int(np.searchsorted(places, match.start()))
        if (int(depths[known - 1]) if known else before) <= 0:
            raise InputError(
                f"{name}: cannot be read as JSON lines: a row is null; each must be an object "
                '{"COLUMN": VALUE, ...}'
            )
    return max(0, int(depths[-1])) if len(depths) else before


def _unescaped(data: bytes) -> bytes:
    """Without backslashes and quotes that are part of strings."""
    return data.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in data else data


def _depths(data: bytes, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Where brackets outside of strings are, of the data without escapes, and the depth after each.

    Strings end with their line, as they have to.
    """
    codes = np.frombuffer(_unescaped(data), np.uint8)
    folded = codes | 0x20  # [ and { are 0x5b and 0x7b, ] and } 0x5d and 0x7d
    places = np.flatnonzero((folded == 0x7B) | (folded == 0x7D))
    quotes, ends = np.flatnonzero(codes == ord('"')), np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate([[0], ends])[np.searchsorted(ends, places)]
    inside = (np.searchsorted(quotes, places) - np.searchsorted(quotes, starts)) & 1
    places = places[inside == 0]
    depths: np.ndarray = before + np.cumsum(np.where(folded[places] == 0x7B, 1, -1))
    return places, depths
