"""What an ONNX file must not hold, read from its bytes before the runtime opens it. No onnx, no protobuf.

A graph can name other files as its weights, anywhere on the disk, and tensors of any size. Ours does neither.
The walk knows the few messages of onnx.proto in which a tensor can stand, and passes over all else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from ensemble_kd.errors import ArtifactError
from ensemble_kd.safe_files import read_plain

MOST_BYTES = 1 << 31
"""Of one file of protobuf."""
MOST_FIELDS = 2_000_000
"""A graph of BERT has some 20,000."""
DEEPEST = 32
"""Graphs inside nodes of graphs."""
INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""By message and number of its field: the message that stands there."""
DIMS, EXTERNAL, LOCATION = 1, 13, 14
"""Fields of a tensor."""


def check_graph(path: Path) -> None:
    """Raises ArtifactError for a file that is no ONNX model, reads others, or has tensors beyond its size."""
    content = memoryview(read_plain(path, MOST_BYTES))
    left = MOST_FIELDS
    waiting: list[tuple[str, memoryview, int]] = [("model", content, 0)]
    try:
        while waiting:
            message, part, depth = waiting.pop()
            if depth > DEEPEST * 3:  # a graph, its node, and the node's attribute
                raise ArtifactError(f"{path}: graphs nested more than {DEEPEST} deep")
            dims: list[int] = []
            for number, value in _fields(part):
                left -= 1
                if left < 0:
                    raise ArtifactError(f"{path}: more than {MOST_FIELDS:,} fields; no graph of ours")
                if message == "tensor":
                    if number == EXTERNAL or (number == LOCATION and value):
                        raise ArtifactError(
                            f"{path}: its weights lie in another file; a graph is complete in itself here"
                        )
                    if number == DIMS:
                        dims += [value] if isinstance(value, int) else _packed(value)
                elif isinstance(value, memoryview) and number in INSIDE[message]:
                    waiting.append((INSIDE[message][number], value, depth + 1))
            if message == "tensor" and math.prod(dims) > 2 * len(content):  # two numbers of 4 bits a byte
                raise ArtifactError(
                    f"{path}: a tensor of {math.prod(dims):,} numbers in {len(content):,} bytes"
                )
    except (ValueError, IndexError) as error:
        raise ArtifactError(f"{path}: not an ONNX model ({error})") from error


def _fields(part: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message. Raises ValueError or IndexError where it is none."""
    at, end = 0, len(part)
    while at < end:
        tag, at = _varint(part, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(part, at)
            yield number, value
            continue
        if kind == 2:
            length, at = _varint(part, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of type {kind}")
        if at + length > end:
            raise ValueError("it ends in the middle")
        yield number, part[at : at + length]
        at += length


def _varint(part: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = part[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _packed(part: memoryview) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(part):
        if len(found) > 32:
            raise ValueError("a tensor of more than 32 axes")
        value, at = _varint(part, at)
        found.append(value)
    return found
