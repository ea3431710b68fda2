"""The model card: Markdown with Hugging Face's metadata block, from the report alone."""

from __future__ import annotations

import json
from typing import Any

import yaml

from ensemble_kd.report.build import ROLES
from ensemble_kd.report.ships import calibration_text, head_of, ship_rows
from ensemble_kd.report.sweep import metric_text, settings_text
from ensemble_kd.targets import target_in
from ensemble_kd.targets.base import columns_of
from ensemble_kd.targets.values import Values

KINDS = {"image": "An image", "text": "A text", "numeric": "A tabular"}
PIPELINE = {
    "image": "image-classification",
    "text": "text-classification",
    "numeric": "tabular-classification",
}


REGRESSION = {**PIPELINE, "numeric": "tabular-regression"}
"""Hugging Face files texts with a number each under text-classification too."""


def model_card(report: dict[str, Any], info: dict[str, Any], config: dict[str, Any]) -> str:
    """README.md of the model folder; `config` is the run's whole configuration as plain data."""
    shipped = next((s for s in report["systems"] if s["name"] == report["shipped"]), None)
    sections = [
        "---\n"
        + yaml.safe_dump(_metadata(report, info, shipped), sort_keys=False, allow_unicode=True)
        + "---",
        f"# {_text(report['name'])}",
        f"{KINDS[info['kind']]} {_what(info)}, distilled from an ensemble. "
        + _text(report["verdict"]["text"]),
        "## Use\n\n```\nensemble-kd predict FOLDER INPUT\n```\n\n"
        "`FOLDER` is this folder; it holds all that prediction needs. `INPUT` has the training data's "
        f"columns: {_columns(info)}." + _length(info),
        "## Data\n\n" + _data(info),
        "## Teachers\n\n" + _teachers(report, config),
        "## Recipe\n\n" + _recipe(report, config),
        "## Results\n\n" + _results(report),
        *(["## Forms\n\n" + _forms(report["ships"])] if report.get("ships") else []),
        "## Limits\n\n" + _limits(report),
    ]
    return "\n\n".join(sections) + "\n"


def _what(info: dict[str, Any]) -> str:
    target = target_in(info)
    kind = "classifier with" if target.classified else "regressor of"
    return f"{kind} {target.summary(info['class_names'])}"


def _metadata(report: dict[str, Any], info: dict[str, Any], shipped: dict[str, Any] | None) -> dict[str, Any]:
    """`license` is the user's to choose; Hugging Face reads `other` as "see the card"."""
    metadata: dict[str, Any] = {
        "license": "other",
        "library_name": "ensemble-kd",
        "pipeline_tag": (PIPELINE if target_in(info).classified else REGRESSION)[info["kind"]],
        "tags": ["knowledge-distillation", "ensemble", "ensemble-kd", "safetensors"],
    }
    if shipped is not None:
        result = {
            "task": {"type": metadata["pipeline_tag"]},
            "dataset": {"name": report["name"], "type": report["name"], "split": "test"},
            "metrics": [{"type": key, "value": round(shipped[key], 6)} for key in _reported(info)],
        }
        metadata["model-index"] = [{"name": report["name"], "results": [result]}]
    return metadata


def _reported(info: dict[str, Any]) -> list[str]:
    return ["accuracy"] if target_in(info).classified else ["pearson", "spearman", "mse"]


def _columns(info: dict[str, Any]) -> str:
    columns = info.get("preprocess", {}).get("columns", {})
    return f"`{json.dumps(columns.get('input', 'input'), ensure_ascii=False)}`"


def _length(info: dict[str, Any]) -> str:
    if info["kind"] != "text":
        return ""
    return (
        f"\n\nIt takes texts of up to {info['input_shape'][0]:,} tokens. No form cuts a longer one by "
        "itself: `predict` leaves it out and says so, `serve` and the MLflow model refuse it (`--truncate`, "
        "or the parameter `truncate`, cuts it); transformers cuts with `truncation=True`."
    )


def _data(info: dict[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in info.get("counts", {}).items())
    target = target_in(info)
    if isinstance(target, Values):
        return f"Rows: {counts}. Input shape {info['input_shape']}.\n\nLabels are values; {target.moments}."
    names = [f"`{_text(name)}`" for name in info["class_names"][:100]]
    more = info["num_classes"] - len(names)
    classes = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return f"Rows: {counts}. Input shape {info['input_shape']}.\n\nClasses, in order: {classes}."


def _teachers(report: dict[str, Any], config: dict[str, Any]) -> str:
    teachers = config.get("teachers", {})
    members = report["summary"].get("teacher")
    if teachers.get("source") == "predictions":
        text = "Outputs of teachers that existed already."
    elif teachers.get("source", "train") != "train":
        names = ", ".join(f"`{_text(name)}`" for name in teachers.get("given", []))
        text = f"Teachers that existed already ({teachers['source']}): {names}."
    else:
        text = f"{teachers.get('num_members', 'Several')} members, `{json.dumps(teachers.get('model', {}))}`"
        for kind in teachers.get("kinds", []):
            model = kind.get("model") or teachers.get("model", {})
            text += f"; {kind.get('count', 1)} of another kind, `{json.dumps(model)}`"
        text += "."
    if members:
        first = target_in(report).measures.columns[0]
        text += f" Mean {first.title} of one member: {_mean(members[first.key])}."
    if report["excluded"]:
        text += f" Left out: {_text('; '.join(report['excluded']))}."
    return text


def _set(name: str, report: dict[str, Any], student: dict[str, Any]) -> str:
    """The number, or the schedule as it was set."""
    given = student.get(name)
    return f"`{json.dumps(given)}`" if isinstance(given, dict) else f"{report[name]:g}"


def _recipe(report: dict[str, Any], config: dict[str, Any]) -> str:
    student = config.get("student", {})
    lines = [
        f"- Student: `{json.dumps(student.get('model', {}))}`",
        f"- Soft loss: `{report['objective']}`, temperature {_set('temperature', report, student)}, "
        f"weight of the soft loss {_set('alpha', report, student)}"
        + (f", of pseudo-labels {report['pseudo']:g}" if report.get("pseudo") else ""),
        f"- Soft targets: {report['mean']} mean of the members' distributions" + _targets(report),
    ]
    if not target_in(report).classified:
        lines[1:] = [
            f"- Soft loss: `{report['objective']}`, weight of the soft loss {_set('alpha', report, student)}",
            "- Soft targets: mean of the members' values",
        ]
    for term in student.get("terms", []):
        lines.append(f"- Further loss, of a teacher beside the student: `{json.dumps(term)}`")
    for phase in student.get("phases", []):
        what = "words that were masked" if phase.get("task") == "mlm" else "what its teacher says"
        where = "of a corpus" if phase.get("corpus") else "of the transfer set"
        losses = "".join(f"; `{term['name']}`" for term in phase.get("terms", []))
        lines.append(f"- Phase before, `{phase['name']}`: {what}, {where}{losses}")
    training = student.get("training", {})
    if training:
        kept = ("epochs", "batch_size", "optimizer", "learning_rate")
        lines.append("- Training: " + ", ".join(f"{key} {training[key]}" for key in kept if key in training))
    if report.get("sweep"):
        lines.append(_sweep(report["sweep"], report["counts"].get("validation")))
    return "\n".join(lines)


def _sweep(section: dict[str, Any], rows: int | None) -> str:
    tried = section["counts"]["searched"]
    text = f"- Sweep: {tried:,} configuration{'' if tried == 1 else 's'} tried on "
    text += "validation rows" if rows is None else f"{rows:,} validation rows"
    winner = section["winner"]
    if winner is None:
        return text + "; none of them won"
    settings = settings_text(winner, {}) or "the settings of the baseline on hard labels"
    value = metric_text(winner.get("value"), section["metric"], winner.get("standard_error"))
    text += f"; the winner, {_text(winner['name'])}, has {_text(settings)}"
    return f"{text} ({section['metric'].replace('_', ' ')} {value})"


def _targets(report: dict[str, Any]) -> str:
    section = report.get("specialists")
    if not section or section["targets"] == "ensemble":
        return ""
    beside = " and without" if section["targets"] == "both" else ""
    return f", each combined with{beside} its specialists ({_text(section['text'])})"


def _results(report: dict[str, Any]) -> str:
    measures = target_in(report).measures
    shown = [column for column in columns_of(report) if column.key not in ("errors", "brier")]
    lines = ["| | n | " + " | ".join(column.title for column in shown) + " |"]
    lines.append("|---|---|" + "---|" * len(shown))
    for role, entry in report["summary"].items():
        cells = [_mean(entry[c.key], c.scale, c.places(entry[c.key]["mean"])) for c in shown]
        lines.append(f"| {ROLES[role]} | {entry['n']} | " + " | ".join(cells) + " |")
    text = (
        "\n".join(lines) + f"\n\nOn {report['counts']['test']:,} test rows; ± is the standard error over n."
    )
    difference, gap = report["difference"], report["gap_recovered"]
    if difference:
        text += (
            f"\n\nDistilled minus hard labels: {difference['points']:+.2f} points of {measures.noun}, 95% "
            f"interval {difference['low']:+.2f} to {difference['high']:+.2f} ({difference['over']})."
        )
    if gap["value"] is not None:
        text += f" Share of the gap to the ensemble recovered: {100 * gap['value']:.0f}%."
    else:
        text += f" Gap recovered: not defined, {_text(gap['reason'])}."
    return text


def _forms(section: dict[str, Any]) -> str:
    """What lies in export/, beside what it comes from."""
    head = head_of(section)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in ship_rows(section)]
    text = "\n".join(lines) + (
        "\n\nIn `export/`, a folder each. Milliseconds of one forward pass, and examples per second, on one "
        "thread of the machine that exported; `agrees` is the share of validation rows that agree."
    )
    fitted = calibration_text(section)
    return f"{text}\n\n{fitted}" if fitted else text


def _limits(report: dict[str, Any]) -> str:
    lines = [
        "- Measured on the test rows of one data set; other inputs may behave differently.",
        "- The model always answers with one of its classes, also for an input that belongs to none.",
    ]
    if not target_in(report).classified:
        lines[1] = "- The model always answers with a number, also for an input unlike those of train."
    shipped = next((s for s in report["systems"] if s["name"] == report["shipped"]), None)
    if shipped is not None and target_in(report).classified:
        known = [
            (v, n)
            for v, n in zip(shipped["per_class_accuracy"], report["class_names"], strict=True)
            if v is not None
        ]
        value, name = min(known, key=lambda pair: pair[0])
        lines.append(f"- Weakest class on the test rows: `{_text(name)}`, accuracy {100 * value:.1f}%.")
        lines.append(f"- Expected calibration error {shipped['ece']:.4f} (15 bins).")
    if report.get("constant"):
        lines.insert(0, f"- {_text(report['constant']['text'])}")
    if report["verdict"]["outcome"] != "helped":
        lines.append("- Distillation was not shown to help here; a student on hard labels may do as well.")
    return "\n".join(lines)


def _mean(entry: dict[str, Any], scale: int = 100, digits: int = 2) -> str:
    if entry["mean"] is None:
        return "–"
    unit = "%" if scale == 100 else ""
    text = f"{scale * entry['mean']:.{digits}f}{unit}"
    error = entry["standard_error"]
    return text if error is None else f"{text} ± {scale * error:.{digits}f}"


def _text(value: Any) -> str:
    """User text inside Markdown: one line, no markup of its own."""
    text = " ".join(str(value).split())
    for character, safe in (("<", "&lt;"), ("`", "'"), ("|", "\\|")):
        text = text.replace(character, safe)
    return text
