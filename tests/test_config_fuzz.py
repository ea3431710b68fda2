"""Arbitrary bytes as a configuration, mutated recipes, any text behind `--set`: valid, or one paragraph.

Short here; `long` ones go on for minutes. Nothing of torch, the data or the network is reached.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ensemble_kd import early
from ensemble_kd.config import Config, load_config, recipe_paths
from ensemble_kd.errors import ConfigError

SECONDS, BYTES = 10, 10**9
SHORT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=5_000, deadline=None, suppress_health_check=list(HealthCheck))
RECIPES = {name: path.read_bytes() for name, path in recipe_paths().items()}

SCALARS = (
    "0 -1 1e308 1e-320 .inf -.inf .nan ~ null true no on 010 1:30 2024-13-45 '' [] {} [[]] x é ☃ * & ! @ "
    "*a &a !!int !!python/object:os.system << = ~nosuchuser/x /dev/zero / . .. s3://x http:// 99999999999999 "
    '"" "\\0" "\\ud800" "\\e[31m" uniform(1,2) choice(a,b) module:callable os:sep [1,2,3] {a: 1} - ? : |'
).split(" ")
TOKENS = st.sampled_from(
    [*SCALARS, "\n", " ", "\t", "- ", ": ", "? ", "# ", ",", "{", "}", "[", "]", "---\n", "%"]
)
TEXT = st.one_of(st.text(max_size=60), st.lists(TOKENS, max_size=12).map("".join))


def paths(model: Any, path: str = "") -> Iterator[str]:
    """The paths of all settings, list entries and free blocks left out."""
    for name in type(model).model_fields:
        here = f"{path}.{name}" if path else name
        yield here
        if hasattr(type(value := getattr(model, name)), "model_fields"):
            yield from paths(value, here)


PATHS = sorted(paths(Config(**{"name": "x", "data": {"source": "digits"}})))
PATH = st.one_of(
    st.sampled_from(PATHS),
    st.sampled_from(PATHS).map(lambda path: f"{path}.0"),
    st.lists(st.sampled_from([".", "student", "0", "-1", "²", "sweep", "space", "", "é"]), max_size=8).map(
        "".join
    ),
    st.text(max_size=20),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A recipe of which some places are replaced, doubled, swapped or taken out."""
    content = draw(st.sampled_from(sorted(RECIPES.values())))
    lines = content.split(b"\n")
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["value", "double", "drop", "swap", "bytes", "indent"]))
        if kind == "value" and b":" in lines[i]:
            lines[i] = lines[i].split(b":")[0] + b": " + draw(TEXT).encode("utf-8", "surrogatepass")
        elif kind == "double":
            lines.insert(i, lines[i])
        elif kind == "drop" and len(lines) > 1:
            del lines[i]
        elif kind == "swap":
            j = draw(st.integers(0, len(lines) - 1))
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == "bytes":
            at = draw(st.integers(0, len(lines[i])))
            lines[i] = lines[i][:at] + draw(st.binary(max_size=6)) + lines[i][at:]
        elif kind == "indent":
            lines[i] = b" " * draw(st.integers(0, 9)) + lines[i].lstrip()
    return b"\n".join(lines)


def judged(file: str | Path, overrides: list[str]) -> None:
    """Load and look early, as `check` does; all that may come of it is a configuration or a ConfigError."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        early.check_early(load_config(file, overrides))
    except ConfigError as error:
        assert error.exit_code == 2 and error.problems
        for line in error.problems:
            assert line and "\n" not in line and "\r" not in line and "\x1b" not in line, line
            assert len(line) <= 1500, line
        assert len(error.problems) <= 200
        unforeseen = [line for line in error.problems if "cannot be used as a configuration" in line]
        assert not unforeseen, unforeseen  # the net caught it, but it has a better message
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.yaml"


def _any_bytes(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    judged(file, [])


def _any_override(path: str, text: str) -> None:
    judged("digits", [f"{path}={text}"])


BINARY = st.one_of(
    st.binary(max_size=400),
    TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(TOKENS, max_size=80).map(lambda tokens: "".join(tokens).encode()),
)


@SHORT
@given(content=BINARY)
@example(content=b"[" * 100_000)
@example(content=b"a: " + b"9" * 900_000)
@example(content=b"a: " + b"x " * 400_000)
@example(content=b'a: "' + b"\\x41" * 200_000 + b'"')
@example(content=b"&a " * 50_000)
@example(content=b"a: |\n" + b" x\n" * 200_000)
@example(content=b"{" + b"a, " * 200_000)
@example(content=b"#" * 999_999)
@example(content=b"- " * 400_000)
@example(content=b"\xef\xbb\xbf" * 100)
def test_any_bytes_are_no_configuration_or_one(file: Path, content: bytes) -> None:
    _any_bytes(file, content)


@SHORT
@given(content=mutated())
def test_a_mutated_recipe_is_valid_or_told(file: Path, content: bytes) -> None:
    _any_bytes(file, content)


@SHORT
@given(path=PATH, text=TEXT)
def test_any_override_is_valid_or_told(path: str, text: str) -> None:
    _any_override(path, text)


@SHORT
@given(assignment=TEXT)
def test_any_text_is_an_override_or_told(assignment: str) -> None:
    judged("digits", [assignment])


@pytest.mark.long
@LONG
@given(content=BINARY)
def test_any_bytes_at_length(file: Path, content: bytes) -> None:
    _any_bytes(file, content)


@pytest.mark.long
@LONG
@given(content=mutated())
def test_mutated_recipes_at_length(file: Path, content: bytes) -> None:
    _any_bytes(file, content)


@pytest.mark.long
@LONG
@given(path=PATH, text=TEXT)
def test_any_override_at_length(path: str, text: str) -> None:
    _any_override(path, text)
