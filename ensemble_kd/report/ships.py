"""What you ship: the forms of the student beside what it comes from, as a table of the report."""

from __future__ import annotations

import html
from typing import Any

from ensemble_kd.report.pieces import rounded, table

NAMES = {
    "onnx": "student, ONNX",
    "int8": "student, ONNX int8",
    "program": "student, torch.export",
    "huggingface": "student, Hugging Face",
    "mlflow": "student, MLflow (runs the ONNX graph)",
    "student": "student, PyTorch",
    "ensemble": "ensemble, PyTorch",
    "single teacher": "single teacher, PyTorch",
}
TIMES = [(batch, which) for batch in (1, 32) for which in ("p50", "p99")]
QUALITIES = ("accuracy", "ece"), ("r2", "mse")
"""Metrics of test rows that are shown: of classes, and of values."""
TITLES = {"accuracy": "accuracy", "ece": "ECE", "r2": "R²", "mse": "MSE"}


def _entries(section: dict[str, Any]) -> list[dict[str, Any]]:
    return [*section["systems"], *section["forms"].values()]


def _qualities(section: dict[str, Any]) -> tuple[str, str]:
    of_classes, of_values = QUALITIES
    return of_values if any("r2" in entry for entry in _entries(section)) else of_classes


def head_of(section: dict[str, Any]) -> list[str]:
    """Titles of the columns of `ship_rows`."""
    times = (f"{which} at {batch}" for batch, which in TIMES)
    share, error = _qualities(section)
    return ["", "size", *times, "examples/s", TITLES[share], TITLES[error], "agrees"]


def ship_rows(section: dict[str, Any]) -> list[list[str]]:
    """A line of text cells for each system and form, under `head_of`."""
    rows: list[list[str]] = []
    share, error = _qualities(section)
    for entry in _entries(section):
        name = NAMES[entry.get("form") or entry["name"]]
        if entry.get("method"):
            name += f" ({entry['method']})"
        times = [entry["latency_ms"][f"batch_{batch}"][which] for batch, which in TIMES]
        rows.append(
            [
                name,
                f"{entry['model_bytes'] / 1e6:,.2f} MB",
                *(rounded(value, 3) for value in times),
                f"{entry['examples_per_second']:,.0f}",
                f"{100 * entry[share]:.2f}%" if entry.get(share) is not None else "–",
                rounded(entry.get(error), 4),
                f"{100 * entry['agreement']:.2f}%" if "agreement" in entry else "–",
            ]
        )
    return rows


def calibration_text(section: dict[str, Any]) -> str:
    """What was fitted on validation rows, and what it changed on test rows; empty where nothing was."""
    found, text = section["calibration"], ""
    if found["temperature"] != 1.0:
        before, after = section["calibrated"]["before"], section["calibrated"]["after"]
        text = (
            f"Logits are divided by {found['temperature']:.3f}, fitted on validation rows: on test rows the "
            f"calibration error goes from {before['ece']:.4f} to {after['ece']:.4f}, NLL from "
            f"{before['nll']:.4f} to {after['nll']:.4f}."
        )
    if found.get("threshold") is not None:
        text += (
            f" From a confidence of {found['threshold']:.4f} on, {100 * found['precision']:g}% of the "
            f"answers on validation rows are right; {100 * found['coverage']:.1f}% of the rows are "
            "answered then."
        )
    return text.strip()


def ships_html(section: dict[str, Any] | None) -> str:
    """The section of the page; empty without an export."""
    if section is None:
        return ""
    rows = [("", [html.escape(cell) for cell in row]) for row in ship_rows(section)]
    text = "<h2>What you ship</h2>" + table(head_of(section), rows)
    told = "accuracy and calibration error (ECE) on test rows; agrees: share of validation rows with the "
    told += "student's label"
    if "r2" in _qualities(section):
        told = "R² and MSE on test rows; agrees: R² by the student's answers on validation rows"
    text += (
        "<p class=quiet>Milliseconds of one forward pass, and examples per second, on one thread of the "
        f"machine that exported; {told}.</p>"
    )
    fitted = calibration_text(section)
    return f"<section>{text}{f'<p>{html.escape(fitted)}</p>' if fitted else ''}</section>"
