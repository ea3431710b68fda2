"""Reading configurations: YAML's traps are none, and whatever a file or an override holds is one line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ensemble_kd.config import load_config, recipe_paths
from ensemble_kd.config_yaml import parse, read
from ensemble_kd.errors import ConfigError

MINIMAL = "name: x\ndata: {source: digits}\n"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    (line,) = caught.value.problems
    assert "\n" not in line and len(line) < 1000
    return line


@pytest.mark.parametrize("path", sorted(recipe_paths().values()), ids=lambda path: path.stem)
def test_shipped_recipes_read_as_pyyaml_reads_them(path: Path) -> None:
    assert read(path) == yaml.safe_load(path.read_text())


TEXT = st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_json_is_read_as_json_reads_it(value: Any) -> None:
    assert parse(json.dumps(value), "f") == value


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", (1, 3)),
        ("a:\n  b: 1\n  c: 2\n\n  b: 3\n", (2, 5)),
        ("a: {b: 1,\n  b: 1}\n", (1, 2)),
        ("- a: 1\n  a: 2\n", (1, 2)),
        ("'a': 1\na: 2\n", (1, 2)),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", (4, 5)),
    ],
)
def test_a_key_given_twice_names_both_lines(text: str, lines: tuple[int, int]) -> None:
    line = refused(text)
    assert f"is given twice, in line {lines[0]} and in line {lines[1]}" in line
    assert line.startswith(f"f.yaml:{lines[1]}:")


def test_a_key_given_twice_is_told_by_the_command(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"{MINIMAL}student:\n  temperature: 2\n  alpha: 0.5\n  temperature: 8\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:6:3: .*'temperature' is given twice, in line 4 and in"):
        load_config(file)


def test_merge_keys_keep_their_order() -> None:
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 5, c: 3}\nz: {<<: [*x, *y], a: 9}\nw: {<<: *x, <<: *y}\n"
    assert parse(text, "f")["z"] == yaml.safe_load(text)["z"] == {"a": 9, "b": 2, "c": 3}
    assert parse(text, "f")["w"] == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("no", "No", "yes", "on", "off", "y", "n", "NO")),
        ("true", True),
        ("False", False),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", "010"),
        ("007", "007"),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        ("=", "="),
        ("~", None),
        ("~x", "~x"),
        ("0", 0),
        ("-0", 0),
        (".inf", float("inf")),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: Any) -> None:
    found = parse(f"a: {text}", "f")["a"]
    assert found == value and type(found) is type(value)


def test_keys_are_names_whatever_they_look_like() -> None:
    assert parse("2024-01-01: a\nno: b\n1: c\n~: d\n", "f") == {
        "2024-01-01": "a",
        "no": "b",
        "1": "c",
        "~": "d",
    }


@pytest.mark.parametrize("word", ["no", "on", "off", "yes"])
def test_words_are_class_names_and_truths(word: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        f"name: {word}\n"
        f"data: {{source: digits, class_names: [{word}, b], augment: {{horizontal_flip: {word}}}}}\n"
    )
    config = load_config(file)
    assert config.name == word and config.data.class_names == [word, "b"]
    assert config.data.augment.horizontal_flip is (word in ("on", "yes"))


def test_blocks_without_types_keep_their_truths() -> None:
    config = load_config(
        "digits", ["student.model={name: custom, callable: 'a:b', options: {gated: no, name: Norway}}"]
    )
    assert config.student.model.options == {"gated": False, "name": "Norway"}  # type: ignore[union-attr]


def test_floats_without_a_dot_are_numbers() -> None:
    assert (
        load_config("digits", ["student.training.learning_rate=1e-3"]).student.training.learning_rate == 1e-3
    )


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
MERGED = LAUGHS.replace("[1,1,1,1,1,1,1,1,1]", "{x: 1}").replace(" [*", " {<<: [*").replace("]\n", "]}\n")
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(400))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [*x]", "the anchor &x contains itself"),
        ("a: &x {b: {c: *x}}", "the anchor &x contains itself"),
        ("a: &x {<<: *x}", "the anchor &x contains itself"),
        ("a: *x", "undefined alias 'x'"),
        ("a: &a 1\nb: &a 2", "an anchor of this name"),
        (LAUGHS, "aliases stand for more than 50,000 values"),
        (MERGED, "aliases stand for more than 50,000 values"),
        (CHAIN, "more than 100 blocks or lists inside one another"),
        ("[" * 5000, "more than 100 blocks"),
        ("{a: " * 5000, "more than 100 blocks"),
        ("- " * 5000, "more than 100 blocks"),
        ("? " * 5000, "more than 100 blocks"),
        ("\n".join(" " * i + "a:" for i in range(1400)), "more than 100 blocks"),
        ("[" + "1," * 60_000 + "]", "more than 50,000 values"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
        ("a: 1." + "9" * 5000, "a number of 5,002 characters"),
        ("a:\n\tb: 1", "a tab where YAML wants spaces"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: b: c", "a second colon"),
        ("? [a]\n: 1", "a block or list as a key"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system means nothing"),
        ("a: !!binary aGk=", "the tag !!binary means nothing"),
        ("a: !!int abc", "'abc' cannot be read as !!int"),
        ("a: !!int {}", "the tag !!int means nothing here"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ('"\\ud800": a', "half of a surrogate pair"),
        ('a: "\\UFFFFFFFF"', "cannot be read as YAML"),
        ("a: \x07", "the character U+0007"),
        ("a: [1", "expected ',' or ']'"),
        ("a: @b", "'@'"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_configuration_is_one_line(text: str, says: str) -> None:
    began = time.process_time()
    line = refused(text)
    assert says in line and line.startswith("f.yaml:")
    assert time.process_time() - began < 10


def test_places_count_from_one() -> None:
    assert refused("a: 1\nb: [1, 2\nc: 3\n").startswith("f.yaml:3:2: ")
    assert refused("ok: 1\nnaïve: \x07").startswith("f.yaml:2:8: ")


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected a block of settings, got nothing"),
        (b"# nothing\n", "expected a block of settings, got nothing"),
        (b"- a\n", r"expected a block of settings, got \['a'\]"),
        (b"digits", "expected a block of settings, got 'digits'"),
        (b"name: \xff\n", r":1:7: .*the byte 0xff is not UTF-8; save the file as UTF-8"),
        ("name: é\n".encode("latin-1"), r":1:7: .*0xe9 is not UTF-8"),
        (b"PAR1\0\0\0\xff", "a binary file, not YAML"),
        (b"a: 1\n\0", "a binary file, not YAML"),
        (b"# " + b"x" * 1_000_001, "more than 1,000,000 bytes, which is no configuration"),
    ],
)
def test_files_that_are_no_configurations(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"x\.yaml.*{says}"):
        load_config(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_byte_order_are_read(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(MINIMAL.encode(encoding))
    assert load_config(file).name == "x"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"pipe\.yaml: a pipe, not a file"):
        load_config(pipe)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/dev/zero", "a device or socket, not a file"),
        ("/", "a folder, not a file"),
        ("", "no such configuration file or recipe"),
        ("x" * 5000, "no such configuration file or recipe"),
        ("a\0b", "no such configuration file or recipe"),
        ("~nosuchuser/x.yaml", "no such configuration file or recipe"),
        ("/etc/hostname/x", "no such configuration file or recipe"),
    ],
)
def test_paths_that_lead_nowhere(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert len(str(caught.value)) < 1000 and "\0" not in str(caught.value)


# -------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("x=[[[[", r"--set x:1:5: cannot be read as YAML"),
        ("student.alpha=&a [*a]", "contains itself"),
        ("student.temperature=" + "9" * 5000, "a number of 5,000 characters"),
        ("a." * 3000 + "b=1", "a path of 3,001 parts"),
        ("student.model.hidden.²=3", "is none of the 2 entries"),
        ("student.model.hidden." + "9" * 5000 + "=3", "is none of the 2 entries"),
        ("student.model.hidden.-1=3", "is none of the 2 entries"),
        ("a\nb=1", r"^a\\nb: unknown setting"),
        ("student.a..b=1", "unknown setting"),
        ("student=[1]", "student: expected a block of settings"),
        ("sweep=[]", "sweep: expected a block of settings"),
        ("sweep.space=" + "x" * 5000, "sweep.space: .*no such search space|5,000 characters"),
        ("sweep.space=~nosuchuser/x", "there is no user 'nosuchuser'"),
        ("sweep.space=/dev/zero", "sweep.space: .*no such search space"),
        ("data.path=\udcff", "the character U\\+DCFF"),
    ],
    ids=lambda text: text[:24],
)
def test_overrides_of_any_kind_are_told(assignment: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config("digits", [assignment])
    assert all("\n" not in line and len(line) <= 1100 for line in caught.value.problems)


@pytest.mark.parametrize("option", [{"search_space": "temperature-alpha"}, {"export": ["onnx"]}])
def test_options_meet_what_is_no_block(option: dict[str, Any], tmp_path: Path) -> None:
    name = "sweep" if "search_space" in option else "export"
    file = tmp_path / "x.yaml"
    file.write_text(f"{MINIMAL}{name}: [1]\n")
    with pytest.raises(ConfigError, match=f"^{name}: expected a block of settings, got"):
        load_config(file, **option)


def test_thousands_of_mistakes_are_not_all_told(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(MINIMAL + "".join(f"k{i}: 1\n" for i in range(20_000)))
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1] == "... and 19,950 more problems"
    assert time.process_time() - began < 10
