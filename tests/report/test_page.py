import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_kd.report import (
    ReportInputs,
    build_report,
    histories_of,
    model_card,
    plot_arrays,
    write_report,
)

Make = Callable[..., ReportInputs]
EVIL = '<script>alert("x")</script> & $x_1$'


def page(inputs: ReportInputs, folder: Path) -> str:
    report = build_report(inputs)
    assert write_report(report, histories_of(inputs), plot_arrays(inputs), folder) == [
        "report.html",
        "report.json",
    ]
    assert json.loads((folder / "report.json").read_text()) == report
    return (folder / "report.html").read_text()


class Tags(HTMLParser):
    """Checks that elements close in order, and collects what could fetch."""

    VOID = {"meta", "br", "path", "use", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [
            value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"seeds": 3, "pseudo": True},
        {"teachers": 0},
        {"teachers": 1},
        {"num_classes": 2},
        {"num_classes": 77, "teachers": 12},
    ],
)
def test_page_is_whole_and_fetches_nothing(make_inputs: Make, tmp_path: Path, kwargs: dict[str, Any]) -> None:
    text = page(make_inputs(**kwargs), tmp_path)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not tags.names & {"script", "link", "iframe", "img", "object", "embed"}
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in tags.addresses)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text and text.count("<svg") == 4
    assert "istillation" in text.split("</section>")[0]


def test_user_strings_are_escaped(make_inputs: Make, tmp_path: Path) -> None:
    inputs = make_inputs(num_classes=3, names=[EVIL, "日本語\n", "\x07bell" + "long " * 40])
    inputs.name = EVIL
    inputs.settings = {EVIL: EVIL}
    inputs.lineage = {EVIL: EVIL}
    inputs.excluded = [EVIL]
    inputs.reference = [{"name": EVIL, "values": {EVIL: EVIL}}]
    inputs.shipped = inputs.students[1].name = EVIL
    text = page(inputs, tmp_path)
    assert "<script" not in text and "&lt;script&gt;" in text and "日本語" in text


def test_reference_and_excluded_are_shown(make_inputs: Make, tmp_path: Path) -> None:
    inputs = make_inputs()
    inputs.reference = [{"name": "Hinton et al. 2015", "values": {"hard": 146, "distilled": 74}}]
    inputs.excluded = ["teacher-004: loss became nan in epoch 3"]
    text = page(inputs, tmp_path)
    assert "Hinton et al. 2015" in text and "<td>146</td>" in text and "teacher-004: loss became nan" in text


def test_histories_without_validation(make_inputs: Make, tmp_path: Path) -> None:
    inputs = make_inputs()
    for system in [*inputs.teachers, *inputs.students]:
        system.history = [{"epoch": 1, "train_loss": 0.5}]
    text = page(inputs, tmp_path)
    assert "Training loss" in text and "Validation loss" not in text


def test_the_same_report_gives_the_same_page(make_inputs: Make, tmp_path: Path) -> None:
    assert page(make_inputs(), tmp_path) == page(make_inputs(), tmp_path)


def test_model_card(make_inputs: Make) -> None:
    inputs = make_inputs(seeds=3)
    inputs.name = "digits: `x` <b>"
    config = {"teachers": {"num_members": 3}, "student": {"training": {"epochs": 20}}}
    card = model_card(build_report(inputs), inputs.info, config)
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["pipeline_tag"] == "image-classification" and "knowledge-distillation" in metadata["tags"]
    assert metadata["model-index"][0]["results"][0]["metrics"][0]["value"] > 0.5
    assert "ensemble-kd predict FOLDER INPUT" in body and "95% interval" in body and "±" in body
    assert "<b>" not in body
    for title in ("Data", "Teachers", "Recipe", "Results", "Limits"):
        assert f"## {title}" in body


def test_model_card_where_nothing_is_known(make_inputs: Make) -> None:
    inputs = make_inputs(teachers=0, num_classes=150)
    card = model_card(build_report(inputs), inputs.info, {"teachers": {"source": "predictions"}})
    assert "existed already" in card and "and 50 more" in card and "not defined" in card


def test_model_card_of_given_teachers_terms_and_phases(make_inputs: Make) -> None:
    inputs = make_inputs()
    phase = {"name": "pretraining", "task": "mlm", "corpus": {"path": "c"}, "terms": [{"name": "hidden_mse"}]}
    config = {
        "teachers": {"source": "callable", "given": ["mine:predict"]},
        "student": {"terms": [{"name": "patient", "weight": 10}], "phases": [phase]},
    }
    card = model_card(build_report(inputs), inputs.info, config)
    assert "Teachers that existed already (callable): `mine:predict`." in card
    assert '- Further loss, of a teacher beside the student: `{"name": "patient", "weight": 10}`' in card
    assert "- Phase before, `pretraining`: words that were masked, of a corpus; `hidden_mse`" in card
