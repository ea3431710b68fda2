import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ensemble_kd.report import ReportInputs, build_report
from ensemble_kd.report.page import render
from ensemble_kd.targets.metrics import classification_metrics, log_softmax

Make = Callable[..., ReportInputs]


def roles(report: dict[str, Any]) -> list[str]:
    return [system["role"] for system in report["systems"]]


def test_systems_and_summary(make_inputs: Make) -> None:
    inputs = make_inputs(seeds=3, pseudo=True)
    report = build_report(inputs)
    assert roles(report) == ["teacher"] * 3 + ["ensemble"] + ["hard"] * 3 + ["pseudo"] * 3 + ["distilled"] * 3
    first = report["systems"][0]
    metrics = classification_metrics(log_softmax(inputs.teachers[0].logits), inputs.labels)
    assert {key: first[key] for key in metrics} == metrics
    assert first["latency_ms_batch_32"] == 0.9 and first["parameters"] == 12_345
    ensemble = report["systems"][3]
    assert ensemble["parameters"] == 3 * 12_345
    assert ensemble["latency_ms_batch_1"] == pytest.approx(3 * 0.21)
    accuracies = [s["accuracy"] for s in report["systems"] if s["role"] == "hard"]
    summary = report["summary"]["hard"]
    assert summary["n"] == 3
    assert summary["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["accuracy"]["standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / math.sqrt(3))
    assert report["summary"]["ensemble"]["accuracy"]["standard_error"] is None


def test_three_seeds(make_inputs: Make) -> None:
    report = build_report(make_inputs(seeds=3, pseudo=True))
    gap = report["gap_recovered"]
    mean = {role: report["summary"][role]["accuracy"]["mean"] for role in ("hard", "distilled", "ensemble")}
    wanted = (mean["distilled"] - mean["hard"]) / (mean["ensemble"] - mean["hard"])
    assert gap["value"] == pytest.approx(wanted)
    assert len(gap["per_seed"]) == 3 and gap["standard_error"] > 0 and gap["reason"] is None
    assert report["verdict"]["outcome"] == "helped"
    assert "3 seeds, 1,500 test examples" in report["verdict"]["text"]
    assert "Soft targets add" in report["verdict"]["text"]


def test_one_seed_is_judged_over_examples(make_inputs: Make) -> None:
    report = build_report(make_inputs())
    assert report["difference"]["over"] == "one seed, 1,500 test examples"
    assert report["gap_recovered"]["standard_error"] is None


def test_no_help(make_inputs: Make) -> None:
    same = build_report(make_inputs(signal=(3.4, 2.2, 2.2)))
    assert same["verdict"]["outcome"] == "no difference shown"
    worse = build_report(make_inputs(signal=(3.4, 3.2, 2.0)))
    assert worse["verdict"]["outcome"] == "hurt"
    assert "is not shown" in same["verdict"]["text"] and "did not help" not in same["verdict"]["text"]
    assert "did not help here" in worse["verdict"]["text"]


def test_no_ensemble_and_a_weak_ensemble(make_inputs: Make) -> None:
    report = build_report(make_inputs(teachers=0))
    assert "ensemble" not in roles(report)
    assert report["gap_recovered"]["value"] is None and "not known" in report["gap_recovered"]["reason"]
    report = build_report(make_inputs(signal=(1.0, 3.2, 3.2)))
    assert report["gap_recovered"]["value"] is None
    assert "no gap to recover" in report["gap_recovered"]["reason"]
    assert "no gap to recover" in report["verdict"]["text"]


def test_the_gap_check_explains_the_verdict_and_stands_on_the_page(make_inputs: Make) -> None:
    cause = {"name": "few_labels", "found": "too few <labels>", "remedy": "label more"}
    finding = "there is nothing to give: the ensemble has 2.00 points less accuracy"
    check = {
        "outcome": "hurt",
        "finding": finding,
        "text": f"{finding}. Likely cause: too few labels",
        "causes": [cause],
        "settings": "as it stands",
    }
    inputs = make_inputs(signal=(1.0, 3.2, 3.2))
    inputs.gap = check
    report = build_report(inputs)
    assert report["gap_check"] == check and report["gap_recovered"]["advantage"]["high"] < 0
    assert report["verdict"]["text"].endswith("Likely: too few <labels>.")
    page = render(report, {}, {})
    assert "On validation rows, there is nothing to give" in page and "too few &lt;labels&gt;" in page
    inputs.gap = {**check, "outcome": "helped"}
    assert "Before distilling" not in render(build_report(inputs), {}, {})


def test_no_hard_student(make_inputs: Make) -> None:
    inputs = make_inputs()
    inputs.students = [s for s in inputs.students if s.role == "distilled"]
    report = build_report(inputs)
    assert report["verdict"]["outcome"] == "not measured" and report["difference"] is None


def test_most_confused_pairs(make_inputs: Make) -> None:
    inputs = make_inputs(num_classes=2)
    report = build_report(inputs)
    predicted = inputs.students[1].logits.argmax(axis=1)
    for pair in report["confused"]:
        true, other = (inputs.info["class_names"].index(pair[key]) for key in ("true", "predicted"))
        assert pair["count"] == ((inputs.labels == true) & (predicted == other)).sum()
        assert pair["of"] == (inputs.labels == true).sum()


def test_strict_json(make_inputs: Make) -> None:
    inputs = make_inputs(num_classes=3)
    assert inputs.ensemble_log_probs is not None
    inputs.ensemble_log_probs[:, 1] = -np.inf  # a probability of 0: the NLL is infinite
    inputs.settings["odd"] = {"nan": float("nan"), "numpy": np.float32(1), "tuple": (1, 2)}
    report = build_report(inputs)
    back = json.loads(json.dumps(report, allow_nan=False))
    assert back == report
    assert next(s for s in report["systems"] if s["role"] == "ensemble")["nll"] is None
