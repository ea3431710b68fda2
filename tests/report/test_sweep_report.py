import copy
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_kd.report import (
    ReportInputs,
    build_report,
    histories_of,
    model_card,
    plot_arrays,
    write_report,
)
from ensemble_kd.report.plots import INK
from ensemble_kd.report.sweep import best_first, best_so_far, dimensions, short_names, sweep_section
from ensemble_kd.report.sweep_axes import round_numbers, scale_of
from ensemble_kd.report.sweep_page import sweep_html
from ensemble_kd.report.sweep_parallel import PAPER, parallel_coordinates
from ensemble_kd.report.sweep_plots import (
    best_so_far_plot,
    heat_map,
    importance_bars,
    sweep_curves,
    value_plot,
)

Make = Callable[..., ReportInputs]
EVIL = '<b onload="x">&amp; $x_1$ -- ]]>'
PLOTS = [heat_map, value_plot, parallel_coordinates, importance_bars, sweep_curves, best_so_far_plot]
SPACE: dict[str, Any] = {"temperature": "loguniform(0.5, 20)", "alpha": "uniform(0.1, 1)"}


def trial(number: int, value: float | None, state: str = "finished", **fields: Any) -> dict[str, Any]:
    epochs = 4 if state == "finished" else 2
    history = [
        {"epoch": e + 1, "train_loss": 1.0, "validation_loss": 1 / (e + 1), "validation_accuracy": 0.2 * e}
        for e in range(epochs)
    ]
    record: dict[str, Any] = {
        "name": f"trial-{number:03}",
        "kind": "searched",
        "parameters": {},
        "state": state,
        "reason": None if state == "finished" else f"why {number}",
        "value": value,
        "standard_error": 0.01 if state == "finished" else None,
        "validation_accuracy": value,
        "validation_loss": None if value is None else 1 - value,
        "epochs": epochs,
        "members": [{"name": "m", "seed": 1, "fingerprint": "ab", "validation_accuracy": value}],
        "history": history,
        "began": float(number),
        "ended": number + 1.5,
        "fused": 1,
    }
    return record | fields


def summary(
    trials: list[dict[str, Any]], space: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    done = [t for t in trials if t["state"] == "finished" and t["value"] is not None]
    record: dict[str, Any] = {
        "metric": "validation_accuracy",
        "space": SPACE if space is None else space,
        "search": "tpe",
        "trials": [trial(0, 0.5, kind="hard"), *trials],
        "winner": max(done, key=lambda t: t["value"])["name"] if done else None,
        "baseline": "trial-000",
        "importances": {path: 1.0 for path in (SPACE if space is None else space)},
        "verdict": {"outcome": "helped", "text": "The search helped."},
        "seconds": 31.0,
    }
    return record | fields


def drawn(space: dict[str, Any], draw: Callable[[int], dict[str, Any]], count: int = 12) -> dict[str, Any]:
    """A sweep of `count` trials; some are stopped, and some failed."""
    rng = np.random.default_rng(0)
    trials = []
    for i in range(1, count + 1):
        state = "failed" if i % 11 == 5 else "stopped" if i % 4 == 3 else "finished"
        value = None if state == "failed" else float(rng.uniform(0.8, 0.95))
        trials.append(trial(i, value, state, parameters=draw(i)))
    return summary(trials, space)


def usual(count: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return drawn(
        SPACE, lambda i: {"temperature": float(rng.uniform(0.5, 20)), "alpha": float(rng.uniform())}, count
    )


def grid() -> dict[str, Any]:
    cells = [(t, a) for t in (1, 2, 4, 8, 16) for a in (0.1, 0.4, 0.7, 1.0)]
    space = {"temperature": [1, 2, 4, 8, 16], "alpha": "choice(0.1, 0.4, 0.7, 1)"}
    return drawn(space, lambda i: dict(zip(("temperature", "alpha"), cells[i - 1], strict=True)), 20)


def parsed(svg: str) -> ET.Element:
    assert INK not in svg and PAPER not in svg and "currentColor" in svg
    return ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parsed(svg).iter("text")]


def page(make_inputs: Make, sweep: dict[str, Any], folder: Path) -> str:
    inputs = make_inputs(count=100)
    inputs.sweep = sweep
    report = build_report(inputs)
    write_report(report, histories_of(inputs), plot_arrays(inputs), folder)
    assert json.loads((folder / "report.json").read_text()) == report
    return (folder / "report.html").read_text()


# ------------------------------------------------------------------------------------------------ numbers


def test_best_so_far_of_an_accuracy() -> None:
    values = [0.6, 0.5, 0.9, 0.9, 0.7, 0.95]
    trials = [trial(i + 1, v) for i, v in enumerate(values)]
    trials += [
        trial(7, 0.99, "stopped"),
        trial(8, None, "failed"),
        trial(9, math.nan),
        trial(0, 1.0, kind="hard"),
    ]
    found = best_so_far(summary(trials[::-1])["trials"][1:], "validation_accuracy")
    assert found == [
        {"seconds": 2.5, "value": 0.6, "trial": "trial-001"},
        {"seconds": 4.5, "value": 0.9, "trial": "trial-003"},
        {"seconds": 7.5, "value": 0.95, "trial": "trial-006"},
    ]


def test_best_so_far_of_a_loss() -> None:
    trials = [trial(i + 1, v) for i, v in enumerate([0.6, 0.7, 0.4, 0.5, 0.1])]
    found = best_so_far(trials, "validation_loss")
    assert [entry["value"] for entry in found] == [0.6, 0.4, 0.1]


def test_of_trials_that_end_together_the_best_is_the_step() -> None:
    trials = [trial(i, v, ended=9.0) for i, v in enumerate([0.5, 0.8, 0.6])]
    found = best_so_far(trials, "validation_accuracy")
    assert found == [{"seconds": 9.0, "value": 0.8, "trial": "trial-001"}]


@pytest.mark.parametrize(
    ("metric", "wanted"), [("validation_accuracy", "4201563"), ("validation_loss", "1024653")]
)
def test_order_of_trials(metric: str, wanted: str) -> None:
    """Finished before stopped before failed; a tie goes to the winner; NaN is no value."""
    states = [(0.5, "finished"), (0.4, "finished"), (0.5, "finished"), (None, "failed"), (0.9, "finished")]
    trials = [trial(i, v, s) for i, (v, s) in enumerate(states)]
    trials += [trial(5, 0.7, "stopped"), trial(6, 0.6, "stopped")]
    if metric == "validation_accuracy":  # 2 and 0 are alike but for the loss
        trials[2]["validation_loss"] = 0.3
        winner = "trial-004"
    else:
        winner = "trial-001"
    record = summary([], metric=metric) | {"trials": trials, "winner": winner}
    assert "".join(t["name"][-1] for t in best_first(record)) == wanted
    tied = record | {"winner": "trial-000"}
    names = [t["name"] for t in best_first(tied)]
    assert names.index("trial-000") < names.index("trial-002")
    trials[4]["value"] = math.nan
    assert [t["name"] for t in best_first(record)].index("trial-004") == 3


def test_section() -> None:
    found = sweep_section(usual())
    assert found["counts"] == {"searched": 12, "finished": 8, "stopped": 3, "failed": 1}
    assert found["winner"]["name"] == found["trials"][0]["name"] == found["best_so_far"][-1]["trial"]
    assert found["difference"] == pytest.approx(found["winner"]["value"] - 0.5)
    assert set(found["winner"]["parameters"]) == set(SPACE)
    assert all("history" not in t and t["members"] for t in found["trials"])
    assert found["trials"][-1]["reason"] == "why 5"


def test_section_is_strict_json() -> None:
    record = usual(3)
    record["trials"][1] |= {"value": math.nan, "validation_loss": math.inf, "parameters": {"alpha": math.nan}}
    record["importances"] = {"alpha": math.nan}
    json.dumps(sweep_section(record), allow_nan=False)


def test_dimensions() -> None:
    space = {
        "temperature": "loguniform(0.5, 20)",
        "alpha": "uniform(0.1, 1)",
        "model.width": "choice(8, 64, 512)",
        "training.width": [True, False],
        "model.hidden": [[64, 64], [32]],
        "epochs": "integers(1, 100)",
    }
    values = [
        {
            "temperature": 3.0,
            "alpha": 0.5,
            "model.width": w,
            "training.width": b,
            "model.hidden": h,
            "epochs": 7,
        }
        for w, b, h in [(512, True, [32]), (8, False, [64, 64])]
    ]
    found = dimensions(summary([trial(i + 1, 0.5, parameters=v) for i, v in enumerate(values)], space))
    assert [d.name for d in found] == [
        "temperature",
        "alpha",
        "model.width",
        "training.width",
        "hidden",
        "epochs",
    ]
    assert [(d.low, d.high, d.log) for d in found[:3]] == [(0.5, 20, True), (0.1, 1, False), (8, 512, True)]
    assert [d.categories for d in found[3:5]] == [["true", "false"], ["[64, 64]", "[32]"]]
    assert not found[5].log and found[5].high == 100
    assert short_names(["a.x", "b.x", "b.y"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y"}


def test_round_numbers() -> None:
    assert round_numbers(0.5, 20, log=True) == [0.5, 1, 2, 5, 10, 20]
    assert round_numbers(1e-6, 1, log=True) == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]
    assert round_numbers(0.1, 1) == [0.2, 0.4, 0.6, 0.8, 1]
    assert round_numbers(3.1, 3.2, log=True) == [3.1, 3.2] and round_numbers(5, 5) == [5]


@pytest.mark.parametrize("metric", ["validation_accuracy", "validation_loss"])
def test_colours_leave_outliers_out(metric: str) -> None:
    values = [0.94, 0.95, 0.96, 0.97, 0.1]
    if metric == "validation_loss":
        values = [1 - v for v in values]
    scale = scale_of(summary([trial(i + 1, v) for i, v in enumerate(values)], metric=metric))
    assert scale is not None and scale.cut
    assert (scale.goodness(values[4]), scale.goodness(values[0]), scale.goodness(values[3])) == (0, 0, 1)


# -------------------------------------------------------------------------------------------------- plots

ONE = {"temperature": "loguniform(0.5, 20)"}
WORDS = {"targets": "choice(ensemble, both)", "hidden": [[32], [64, 64]]}
MANY = {f"block.setting_{i}": "uniform(0, 1)" for i in range(12)}
CASES = {
    "usual": usual(),
    "grid": grid(),
    "one trial": summary([trial(1, 0.9, parameters={"temperature": 3.0, "alpha": 0.5})]),
    "all failed": summary(
        [trial(i, None, "failed", parameters={"temperature": 3.0, "alpha": 0.5}) for i in (1, 2)]
    ),
    "no trials": summary([]),
    "all stopped": summary(
        [trial(i, 0.1 * i, "stopped", parameters={"temperature": 2.0, "alpha": 0.1 * i}) for i in (1, 2)]
    ),
    "all alike": summary([trial(i, 1.0, parameters={"temperature": 3.0, "alpha": 0.5}) for i in (1, 2, 3)]),
    "one dimension": drawn(ONE, lambda i: {"temperature": 0.5 * i}),
    "one of words": drawn({"targets": "choice(a, b)"}, lambda i: {"targets": "ab"[i % 2]}),
    "words": drawn(
        WORDS, lambda i: {"targets": ["ensemble", "both"][i % 2], "hidden": [[32], [64, 64]][i % 2]}
    ),
    "12 dimensions": drawn(MANY, lambda i: {path: (i * j % 7) / 7 for j, path in enumerate(MANY)}),
    "300 trials": usual(300),
    "a loss": usual() | {"metric": "validation_loss"},
    "bare": summary([], {"alpha": "?"}, importances={}, seconds=None, baseline=None, winner="trial-001")
    | {"trials": [trial(1, 0.9, parameters={"alpha": 0.5}, history=[], began=None, ended=None)]},
    "never together": summary(
        [trial(1, 0.9, parameters={"alpha": 0.5}), trial(2, 0.8, parameters={"temperature": 2.0})]
    ),
    "escaped": drawn(
        {EVIL: f"choice({EVIL}, $)", "日本": "uniform(0, 1)"},
        lambda i: {EVIL: [EVIL, "$", "\x07\n"][i % 3], "日本": i / 12},
    ),
}
EMPTY = {
    "all failed": {heat_map, value_plot, parallel_coordinates, best_so_far_plot},
    "no trials": {heat_map, value_plot, parallel_coordinates, best_so_far_plot},
    "one dimension": {heat_map, parallel_coordinates},
    "one of words": {heat_map, parallel_coordinates},
    "words": {heat_map, value_plot},
    "12 dimensions": {heat_map, value_plot},
    "bare": {heat_map, parallel_coordinates, importance_bars, sweep_curves, best_so_far_plot},
    "never together": {heat_map, value_plot, parallel_coordinates},
    "escaped": {heat_map, value_plot},
}
"""Plots that a case has no data for; of the others `value_plot` alone is."""


@pytest.mark.parametrize("case", CASES)
def test_plots_are_xml_and_follow_the_page_s_colours(case: str) -> None:
    record = copy.deepcopy(CASES[case])
    for plot in PLOTS:
        text = plot(record)
        assert (text == "") == (plot in EMPTY.get(case, {value_plot})), plot.__name__
        if text:
            parsed(text)
    assert record == CASES[case]


def test_cells_show_values_and_failures() -> None:
    record = grid()
    shown = texts(heat_map(record))
    best = next(t for t in record["trials"] if t["name"] == record["winner"])
    assert f"{100 * best['value']:.2f}" in shown and shown.count("failed") == 2
    assert {"1", "2", "4", "8", "16", "0.1", "0.4", "0.7", "temperature", "alpha"} <= set(shown)


def test_parallel_axes_are_named_and_text_is_escaped() -> None:
    svg = parallel_coordinates(CASES["escaped"])
    assert "var(--card)" in svg
    shown = texts(svg)
    assert "日本" in shown and "validation accuracy" in shown and "$" in shown
    assert not any(element.tag == "b" for element in parsed(svg).iter())


# --------------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize("case", ["usual", "escaped"])
def test_page(make_inputs: Make, tmp_path: Path, case: str) -> None:
    text = page(make_inputs, CASES[case], tmp_path)
    assert text.index("<h2>Sweep</h2>") < text.index("<h2>Training</h2>")
    assert "The search helped." in text and "prefers-color-scheme: dark" in text
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in re.findall(r'href="([^"]*)', text))
    assert "<b onload" not in text and "<script" not in text


@pytest.mark.parametrize("case", CASES)
def test_every_trial_has_a_row(case: str) -> None:
    text = sweep_html(sweep_section(CASES[case]), None)
    count = len(CASES[case]["trials"])
    assert text.count("<tr") == count + len(CASES[case]["space"]) + (2 if count > 15 else 1)
    assert "nan" not in text and "None" not in text


def test_page_tells_the_winner_and_the_trials() -> None:
    record = usual(20)
    section = sweep_section(record)
    text = sweep_html(section, None)
    winner = section["winner"]
    assert f"Winner: {winner['name']} with temperature {winner['parameters']['temperature']:.3g}" in text
    assert f"{100 * winner['value']:.2f}% ± 1.00 against 50.00% ± 1.00 of the baseline" in text
    assert f"a difference of {100 * section['difference']:+.2f} points" in text
    assert "20 configurations (tpe): 13 finished, 5 stopped early, 2 failed; 31 s in all" in text
    assert "failed: why 5" in text and "The other 6 trials" in text
    assert text.index("failed: why 5") > text.index("The other 6 trials") > text.index("(winner)")


def test_nothing_to_win() -> None:
    text = sweep_html(sweep_section(CASES["all failed"]), None)
    assert "There is no winner: no searched trial finished." in text and "failed: why 2" in text


def test_no_sweep_no_section(make_inputs: Make, tmp_path: Path) -> None:
    inputs = make_inputs(count=100)
    report = build_report(inputs)
    write_report(report, histories_of(inputs), plot_arrays(inputs), tmp_path)
    assert report["sweep"] is None and "Sweep" not in (tmp_path / "report.html").read_text()
    assert "Sweep" not in model_card(report, inputs.info, {})


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("usual", "- Sweep: 12 configurations tried on 1,000 validation rows; the winner, trial-"),
        (
            "one trial",
            "the winner, trial-001, has temperature 3, alpha 0.5 (validation accuracy 90.00% ± 1.00)",
        ),
        ("all failed", "- Sweep: 2 configurations tried on 1,000 validation rows; none of them won"),
        ("escaped", '&lt;b onload="x"'),
    ],
)
def test_card(make_inputs: Make, case: str, line: str) -> None:
    inputs = make_inputs(count=100)
    inputs.sweep = CASES[case]
    card = model_card(build_report(inputs), inputs.info, {})
    assert line in card and "<b" not in card
