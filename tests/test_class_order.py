"""Given teachers whose classes stand in another order than the data's: told, mended, or matched by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asked_teachers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights
from test_given_teachers import (
    CLASSES,
    WORDS,
    digits,
    info_of,
    plain_predictions,
    texts_config,
    write_classifier,
)

from ensemble_kd import pipeline
from ensemble_kd.config import Config
from ensemble_kd.data.records import load_split
from ensemble_kd.errors import ConfigError, InputError
from ensemble_kd.models.foreign import order_by_name, taken_over
from ensemble_kd.stages import given_teachers
from ensemble_kd.stages.class_order import orders_of
from ensemble_kd.stages.context import Console

REVERSED = [str(i) for i in range(9, -1, -1)]


def write_predictions(folder: Path, order: list[int] | None = None) -> list[str]:
    """Files of a good teacher of digits, whose columns stand in `order`; the settings that read them."""
    pipeline.run(digits(), folder / "prepared", until="data")
    data = next((folder / "prepared").glob("data/*/manifest.json")).parent
    found = ["teachers.source=predictions"]
    for key, split in (("train", "transfer"), ("validation", "validation"), ("test", "test")):
        arrays, file = load_split(data, split), folder / f"{split}.parquet"
        numbers = asked_teachers.linear(arrays.inputs).numpy()
        numbers = numbers if order is None else numbers[:, order]
        pq.write_table(pa.table({"id": arrays.ids, "logits": numbers.tolist()}), file)
        found.append(f"teachers.predictions.{key}=[{json.dumps(str(file))}]")
    return found


def kept_logits(run: Path) -> np.ndarray:
    """The member's logits on test rows, as the teachers stage keeps them."""
    (manifest,) = run.glob("teachers/*/manifest.json")
    found: np.ndarray = load_file(manifest.with_name("teacher-000.predictions.safetensors"))["test"]
    return found


@pytest.mark.parametrize("order", [list(range(9, -1, -1)), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
def test_a_file_in_another_order_is_told_and_the_remedy_mends_it(tmp_path: Path, order: list[int]) -> None:
    right = write_predictions(tmp_path / "right")
    pipeline.run(digits(*right), tmp_path / "one", until="teachers")
    wrong = write_predictions(tmp_path / "wrong", order)
    with pytest.raises(InputError) as error:
        pipeline.run(digits(*wrong), tmp_path / "two", until="soft-targets")
    (problem,) = error.value.problems
    assert "validation.parquet: teacher-000 is right on " in problem and "on_mismatch=warn" in problem
    assert f"its output 0 is the data's '{order[0]}'" in problem
    assert not list((tmp_path / "two").glob("soft_targets/*/manifest.json")), "nothing was spent on it"
    names = json.dumps([str(i) for i in order])
    assert f"set teachers.class_order={names}" in problem or f"{{0: {names}}}" in problem
    pipeline.run(digits(*wrong, f"teachers.class_order={names}"), tmp_path / "two", until="soft-targets")
    assert np.array_equal(kept_logits(tmp_path / "one"), kept_logits(tmp_path / "two"))


def test_a_member_that_is_off_is_named_among_good_ones(tmp_path: Path) -> None:
    right, wrong = (
        write_predictions(tmp_path / n, o) for n, o in (("a", None), ("b", [1, 0, *range(2, 10)]))
    )
    both = ["teachers.source=predictions"]
    for one, two in zip(right[1:], wrong[1:], strict=True):
        field, path = one.split("=")
        both.append(f"{field}={json.dumps(json.loads(path) + json.loads(two.split('=')[1]))}")
    pipeline.run(digits(*both), tmp_path / "run", until="teachers")  # two of ten: less than 20 points


def test_without_validation_files_the_labelled_rows_tell(tmp_path: Path) -> None:
    wrong = write_predictions(tmp_path / "wrong", list(range(9, -1, -1)))
    only = [line for line in wrong if ".validation" not in line and ".test" not in line]
    with pytest.raises(
        InputError, match=r"transfer.parquet: teacher-000 is right on .* labelled transfer rows"
    ):
        pipeline.run(digits(*only), tmp_path / "run", until="teachers")


def test_on_mismatch_warn_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    wrong = write_predictions(tmp_path / "wrong", list(range(9, -1, -1)))
    config = digits(*wrong, "teachers.on_mismatch=warn")
    pipeline.run(config, tmp_path / "run", until="teachers", console=Console(warning=told.append))
    assert any("teacher-000 is right on" in text and "another order" in text for text in told)


def test_a_function_in_another_order_is_not_asked_to_the_end(tmp_path: Path) -> None:
    asked = ["teachers.source=callable", 'teachers.given=["asked_teachers:backwards"]']
    asked_teachers.CALLS.clear()
    with pytest.raises(
        InputError, match=r"teachers\.given\.0: .* labelled transfer rows.*class_order=\[\"9\""
    ):
        config = digits(*asked, "soft_targets.batch_size=100", "data.test_fraction=0.2")
        pipeline.run(config, tmp_path / "run", until="teachers")
    assert 500 <= sum(asked_teachers.CALLS) < 900
    mended = digits(*asked, "data.test_fraction=0.2", f"teachers.class_order={json.dumps(REVERSED)}")
    pipeline.run(mended, tmp_path / "run", until="teachers")


def test_a_function_in_another_order_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_teachers, "ENOUGH_ROWS", 10**6)
    asked = ["teachers.source=callable", 'teachers.given=["asked_teachers:backwards"]']
    asked_teachers.CALLS.clear()
    with pytest.raises(
        InputError, match=r"teachers\.given\.0: asked_teachers:backwards: teacher-000 is right"
    ):
        pipeline.run(digits(*asked), tmp_path / "run", until="teachers")
    assert sum(asked_teachers.CALLS) == 1797
    mended = digits(*asked, f"teachers.class_order={json.dumps(REVERSED)}")
    pipeline.run(mended, tmp_path / "run", until="soft-targets")
    assert sum(asked_teachers.CALLS) == 1797, "the answers were kept"
    right = ["teachers.source=callable", 'teachers.given=["asked_teachers:linear"]']
    pipeline.run(digits(*right), tmp_path / "right", until="teachers")
    assert np.array_equal(kept_logits(tmp_path / "run"), kept_logits(tmp_path / "right"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("[0,1,2]", "teachers.class_order: 3 for 10 classes; without '3', '4'"),
        ("[0,1,2,3,4,5,6,7,8,x]", "unknown 'x'; without '9'; list each class of the data once"),
        ("{0: [9,8,7,6,5,4,3,2,1,1]}", r"teachers.class_order.0: without '0'; list each"),
        ("absent.txt", "teachers.class_order: 'absent.txt' is no list, and no file"),
    ],
)
def test_what_is_no_order_is_refused(said: str, message: str) -> None:
    config = digits(
        "teachers.source=callable", 'teachers.given=["asked_teachers:linear"]', f"teachers.class_order={said}"
    )
    info = info_of([str(i) for i in range(10)], "image", (8, 8, 1))
    with pytest.raises(ConfigError, match=message):
        orders_of(config, info)


def test_an_order_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_text("\n".join(REVERSED) + "\n")
    config = digits(
        "teachers.source=callable",
        'teachers.given=["asked_teachers:linear"]',
        f"teachers.class_order={tmp_path}/order.txt",
    )
    assert orders_of(config, info_of([str(i) for i in range(10)])) == [list(range(9, -1, -1))]


def test_settings_of_an_order_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"teachers\.class_order: set, but teachers\.source is 'train'"):
        digits("teachers.class_order=[0,1]")
    with pytest.raises(ConfigError, match=r"teachers\.class_order\.3: there are 1 members, 0 to 0"):
        digits(
            "teachers.source=callable",
            'teachers.given=["asked_teachers:linear"]',
            "teachers.class_order={3: [0]}",
        )


# ----------------------------------------------------------------------------------- pretrained, by name


@pytest.mark.parametrize(
    ("names", "ours", "order"),
    [
        (["negative", "neutral", "positive"], ["positive", "neutral", "negative"], [2, 1, 0]),
        (["NEGATIVE", "Not_Sure", "positive"], ["not sure", "negative", "Positive"], [1, 0, 2]),
        (["a", "b"], ["a", "b"], None),
        (["a", "b"], ["0", "1"], None),
        (["a", "b", "c"], ["a", "c", "d"], None),
    ],
)
def test_orders_by_name(names: list[str], ours: list[str], order: list[int] | None) -> None:
    assert order_by_name(names, ours) == order


def write_texts_of(folder: Path, classifier: Path, flip: bool) -> None:
    """Texts labelled by what the classifier says of them, as integers, in the other order with `flip`."""
    generator = np.random.default_rng(3)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 8))) for _ in range(600)]
    labels = plain_predictions(classifier, texts).argmax(1)
    pq.write_table(
        pa.table({"input": texts, "label": 1 - labels if flip else labels}), folder / "data" / "train.parquet"
    )


def pretrained(tmp_path: Path, names: list[str] | None, flip: bool, **data: Any) -> Config:
    classifier = write_classifier(tmp_path / "classifier", names)
    weights = load_weights(classifier / "model.safetensors")
    weights["classifier.bias"] = torch.tensor([0.0, 0.0])
    save_weights(weights, classifier / "model.safetensors", metadata={"format": "pt"})
    config = texts_config(tmp_path, {"source": "pretrained", "given": [str(classifier)]})
    write_texts_of(tmp_path, classifier, flip)
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


@pytest.mark.slow
def test_a_classifier_of_other_numbers_is_told(tmp_path: Path) -> None:
    """Labels without names: nothing but the rows can tell. Other names do not help, the order does."""
    config = pretrained(tmp_path, CLASSES, flip=True)
    for names in (None, CLASSES):
        changed = config.model_copy(update={"data": config.data.model_copy(update={"class_names": names})})
        with pytest.raises(InputError) as error:
            pipeline.run(changed, tmp_path / "run", until="soft-targets")
        (problem,) = error.value.problems
        assert "teachers.given.0: " in problem and "its output 0 ('animal') is the data's" in problem
        assert "teachers.class_order=" in problem and "reorder" not in problem
    teachers = config.teachers.model_copy(update={"class_order": [1, 0]})
    manifests = pipeline.run(
        config.model_copy(update={"teachers": teachers}), tmp_path / "run", until="soft-targets"
    )
    assert manifests["teachers"].summary["members"][0]["validation_accuracy"] > 0.99


@pytest.mark.slow
def test_a_classifier_that_names_the_classes_is_matched_by_name(tmp_path: Path) -> None:
    """Integer labels whose names the configuration lists: 0 is what the classifier has second."""
    config = pretrained(tmp_path, CLASSES, flip=True, class_names=CLASSES[::-1])
    manifests = pipeline.run(config, tmp_path / "run", until="soft-targets")
    assert manifests["teachers"].summary["members"][0]["validation_accuracy"] > 0.99


def test_what_is_taken_over_is_nothing_where_all_is_alike(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "classifier", CLASSES)
    assert taken_over(str(folder), info_of(CLASSES), None) == {}
    assert taken_over(str(folder), info_of(CLASSES[::-1]), None) == {"classes": [1, 0]}
    assert taken_over(str(folder), info_of(["0", "1"]), [1, 0]) == {"classes": [1, 0]}
