"""Reads a file as `check`, `run` and `predict` do; for a process of its own (`limits.Limited`)."""

from __future__ import annotations

from data_cases import make_config

from ensemble_kd.data.files import list_files
from ensemble_kd.data.first_pass import inspect_source
from ensemble_kd.data.problems import SHOWN
from ensemble_kd.data.tolerant import batches, columns_of
from ensemble_kd.errors import ConfigError, InputError

READ = ("text", "x", "z", "list", "id", "dictionary", "view", "large", "nested")
LONGEST = 2000
"""Characters of a line for the reader."""


def read(path: str) -> list[str]:
    """What is wrong with the file, each in one line of some length; any other exception is a fault."""
    lines: list[str] = []
    for kind, columns in (
        ("text", {"input": "text", "label": "label"}),
        ("numeric", {"input": ["x", "z"], "label": "label", "id": "id"}),
        ("numeric", {"input": "list", "label": "dictionary"}),
        ("text", {"input": "view", "label": "large"}),
    ):
        try:
            lines += inspect_source(make_config(path=path, kind=kind, columns=columns))
        except (ConfigError, InputError) as error:
            lines += error.problems
    try:
        for piece in list_files(path, "INPUT")[0]:
            held = columns_of(piece)
            wanted = list(dict.fromkeys(name for name in READ if name in held))
            for table, bad in batches(piece, wanted or held[:5], 1000):
                assert table.num_rows or not bad
                lines += list(bad.values())[:SHOWN]
    except InputError as error:
        lines += error.problems
    for line in lines:
        assert line.strip() and "\n" not in line and len(line) <= LONGEST, line[:3000]
    return lines
