"""Teachers in this process: their answers by split, in the data's order of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from torch import nn

from ensemble_kd.api.orders import Task
from ensemble_kd.api.tables import Rows, rows_of
from ensemble_kd.api.teachers import answers_of, settings_of

NAMES = ("ant", "bee", "cat")
GENERATOR = np.random.default_rng(0)
LABELS = np.array(NAMES)[GENERATOR.integers(0, 3, 60)]
NUMBERS = GENERATOR.normal(size=(60, 2)) + 3 * np.array([[NAMES.index(name), 0] for name in LABELS])
FRAME = pd.DataFrame(NUMBERS, columns=["one", "two"]).assign(kind=LABELS, city="x")
PROBABILITIES = GENERATOR.dirichlet([1, 1, 1], 60)


def task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "kind": "numeric",
        "inputs": ["one", "two"],
        "label": "kind",
        "classes": NAMES,
        "natural": False,
    }
    return Task(**(fields | changes))


def frames() -> dict[str, Rows]:
    return {"train": rows_of(FRAME, "train"), "validation": rows_of(FRAME[:10], "validation")}


def test_a_forest_on_a_frame_sees_its_own_columns() -> None:
    features = pd.DataFrame({"two": FRAME["two"], "one": FRAME["one"]})  # in another order than the inputs
    forest = RandomForestClassifier(9, random_state=0).fit(features, LABELS)
    found = answers_of(forest, None, frames(), task())
    wanted = np.log(np.maximum(forest.predict_proba(features), 1e-12))
    assert len(found) == 1 and found[0]["train"].dtype == np.float32
    assert np.allclose(found[0]["train"], wanted, atol=1e-5)
    assert np.allclose(found[0]["validation"], wanted[:10], atol=1e-5)


class Turned:
    """A fitted classifier whose classes stand in another order than the alphabet's."""

    classes_ = np.array(NAMES)[[2, 0, 1]]

    def __init__(self, straight: LogisticRegression) -> None:
        self.straight_ = straight

    def fit(self, X: Any, y: Any) -> Turned:
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        found: np.ndarray = self.straight_.predict_proba(X)[:, [2, 0, 1]]
        return found


def test_classes_in_another_order_are_put_into_the_datas() -> None:
    straight = LogisticRegression().fit(NUMBERS, LABELS)
    turned = Turned(straight)
    one, two = answers_of([straight, turned], None, frames(), task())
    assert np.allclose(one["train"], two["train"], atol=1e-5)
    array = turned.predict_proba(NUMBERS)
    by_split = {"train": array, "validation": array[:10]}
    (three,) = answers_of(by_split, ["cat", "ant", "bee"], frames(), task())
    numbered = LogisticRegression().fit(NUMBERS, [NAMES.index(name) for name in LABELS])
    (four,) = answers_of(numbered, list(NAMES), frames(), task())  # whose classes_ say 0, 1, 2
    assert np.allclose(one["train"], four["train"], atol=1e-3)
    assert np.allclose(one["train"], three["train"], atol=1e-5)


def test_modules_functions_and_arrays() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
    rows = {"train": rows_of((NUMBERS, LABELS), "train")}
    teachers = [network, lambda X: X @ np.ones((2, 3)), PROBABILITIES]
    module, function, array = answers_of(teachers, list(NAMES), rows, task(inputs=["input"]))
    network.eval()
    wanted = network(torch.from_numpy(NUMBERS).float()).detach().numpy()
    assert np.allclose(module["train"], wanted, atol=1e-5)
    assert np.allclose(function["train"], NUMBERS @ np.ones((2, 3)), atol=1e-5)
    assert np.allclose(np.exp(array["train"]), PROBABILITIES, atol=1e-5)


def test_a_modules_mode_is_as_before() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
    network[1].eval()
    answers_of(network, list(NAMES), {"train": rows_of((NUMBERS, LABELS), "train")}, task())
    assert network.training and network[0].training and not network[1].training


def test_texts_margins_and_values() -> None:
    texts = [f"{name} {i}" for i, name in enumerate(LABELS)]
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts, LABELS)
    rows = {"train": rows_of(pd.DataFrame({"text": texts, "kind": LABELS}), "train")}
    (found,) = answers_of(model, None, rows, task(kind="text", inputs=["text"]))
    assert np.allclose(np.exp(found["train"]), model.predict_proba(texts), atol=1e-5)
    two = LinearSVC().fit(NUMBERS, LABELS == "ant")
    (found,) = answers_of(two, None, frames(), task(classes=("false", "true"), natural=True))
    margins = two.decision_function(NUMBERS)
    assert np.allclose(found["train"][:, 1] - found["train"][:, 0], margins, atol=1e-4)
    ridge = Ridge().fit(NUMBERS, NUMBERS.sum(1))
    (found,) = answers_of(ridge, None, frames(), task(classes=()))
    assert found["train"].shape == (60, 1) and np.allclose(found["train"][:, 0], NUMBERS.sum(1), atol=0.1)


def fitted(labels: Any) -> LogisticRegression:
    return LogisticRegression().fit(NUMBERS, labels)


BAD: list[tuple[Any, Any, str]] = [
    (RandomForestClassifier(), None, "not fitted; call fit"),
    (
        fitted(np.where(LABELS == "ant", "ape", LABELS)),
        None,
        "it lacks ['ant']; the data has no ['ape']; fit it on",
    ),
    (
        fitted(np.where(LABELS == "ant", "bee", LABELS)),
        None,
        "2 classes_, the data 3 classes; it lacks ['ant']",
    ),
    (fitted(LABELS), ["cat", "ant", "bee"], "classes says that its outputs are ['cat', 'ant', 'bee'], its"),
    (PROBABILITIES, None, "nothing says which class each of its 3 outputs is"),
    (lambda X: PROBABILITIES, None, "classes=[...]"),
    (nn.Linear(2, 3), None, "classes=[...]"),
    (PROBABILITIES, ["ant", "bee", "dog"], "unknown ['dog']; without ['cat']"),
    ([PROBABILITIES, PROBABILITIES], [list(NAMES)], "1 lists for 2 teachers"),
    (PROBABILITIES, {1: list(NAMES)}, "numbered 0 to 0"),
    (PROBABILITIES, NAMES, "no predictions for the rows of validation"),
    ({"train": PROBABILITIES[:9], "validation": PROBABILITIES[:10]}, NAMES, "shape (9, 3), expected (60, 3)"),
    ({"train": np.array(LABELS), "validation": LABELS}, NAMES, "give (N, 3) logits or probabilities"),
    ({"train": PROBABILITIES * 100, "validation": PROBABILITIES[:10] * 100}, NAMES, "divide them by 100"),
    ({"train": PROBABILITIES * np.nan, "validation": PROBABILITIES}, NAMES, "contains NaN in 60 of 60 rows"),
    (nn.Linear(3, 3), NAMES, "2 input columns ['one', 'two'] (numeric); say which it takes"),
    (nn.Linear, NAMES, "a class; give an instance of it, trained"),
    (Ridge().fit(NUMBERS, NUMBERS[:, 0]), None, "a regressor, and the labels are classes"),
    ([], None, "an empty list"),
    ([3.5], NAMES, "cannot be asked; give a torch module"),
    ("/nowhere/at/all", None, "a classifier of texts or images by its name, and the inputs are numbers"),
]


@pytest.mark.parametrize(("teachers", "classes", "says"), BAD)
def test_teachers_that_cannot_be_used(teachers: Any, classes: Any, says: str) -> None:
    with pytest.raises(ValueError, match="(?s).*") as caught:
        answers_of(teachers, classes, frames(), task())
    assert says in str(caught.value), caught.value


def test_margins_alone_are_taken_from_a_classifier_without_probabilities() -> None:
    model = RidgeClassifier().fit(NUMBERS, LABELS)
    (found,) = answers_of(model, None, frames(), task())
    assert np.allclose(found["train"], model.decision_function(NUMBERS), atol=1e-4)


def test_numbers_have_an_order_of_their_own() -> None:
    answers_of({"train": PROBABILITIES, "validation": PROBABILITIES[:10]}, None, frames(), task(natural=True))


@pytest.mark.parametrize(
    ("teachers", "block"),
    [
        (None, {}),
        (3, {"num_members": 3}),
        ({"num_members": 2}, {"num_members": 2}),
        (["mlp", {"name": "mlp", "hidden": [8]}], 2),
        (PROBABILITIES, None),
        ({"train": PROBABILITIES}, None),
    ],
)
def test_which_teachers_the_run_trains(teachers: Any, block: Any) -> None:
    found = settings_of(teachers)
    assert (
        found == block if not isinstance(block, int) else found is not None and found["num_members"] == block
    )


def test_networks_beside_given_teachers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"teachers\[1\]: ndarray beside networks to train"):
        settings_of(["mlp", PROBABILITIES])


def test_a_transformer_with_its_tokenizer(tmp_path: Path) -> None:
    from test_given_teachers import write_classifier
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = write_classifier(tmp_path / "bert", ["money", "animal"])
    texts = ["card lost", "the cat sat", "pay my bank"]
    rows = {"train": rows_of(pd.DataFrame({"text": texts, "label": ["money", "animal", "money"]}), "train")}
    here = task(kind="text", inputs=["text"], label="label", classes=("animal", "money"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = answers_of([str(folder), (model, tokenizer)], None, rows, here)
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        wanted = model.eval()(**encoded).logits.numpy()[:, ::-1]
    for each in found:
        assert np.allclose(each["train"], wanted, atol=1e-5)
    unnamed = str(write_classifier(tmp_path / "unnamed"))
    with pytest.raises(ValueError, match="nothing says which class each of its 2 outputs is"):
        answers_of(unnamed, None, rows, here)
    (turned,) = answers_of(unnamed, ["money", "animal"], rows, here)
    assert np.allclose(turned["train"], found[0]["train"], atol=1e-5)  # the same weights, without names
    with pytest.raises(ValueError, match=r"give \(model, tokenizer\)"):
        answers_of(model, None, rows, here)


def test_the_name_of_a_package_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    from ensemble_kd.errors import ConfigError
    from ensemble_kd.models.transformer_config import pretrained_config

    def absent(*args: Any, **kwargs: Any) -> None:  # as a hub that has no such name
        raise OSError("not there")

    monkeypatch.setattr(AutoConfig, "from_pretrained", absent)

    with pytest.raises(ConfigError, match="an installed package: .* package:ensemble_kd/model"):
        pretrained_config("ensemble_kd")
