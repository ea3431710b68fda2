"""How sure the teachers were, how sure they should be, and what dividing by a temperature changed."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from ensemble_kd.report.pieces import rounded, table
from ensemble_kd.targets.metrics import log_softmax
from ensemble_kd.train.calibration import before_and_after, nll_and_ece

if TYPE_CHECKING:
    from ensemble_kd.report.build import ReportInputs


def calibration_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """Temperature, and ECE and NLL on test rows before and after it, of each teacher and of the ensemble.

    None where none was fitted. Of the ensemble: the mean of logits as they are, and of calibrated ones.
    """
    if inputs.temperatures is None or inputs.ensemble_log_probs is None or inputs.plain_ensemble is None:
        return None
    members = []
    for system, temperature in zip(inputs.teachers, inputs.temperatures, strict=True):
        found = before_and_after(system.logits, inputs.labels, temperature)
        members.append({"name": system.name, "temperature": temperature, **found})
    ensemble = {
        "before": nll_and_ece(log_softmax(inputs.plain_ensemble), inputs.labels),
        "after": nll_and_ece(log_softmax(inputs.ensemble_log_probs), inputs.labels),
    }
    return {"members": members, "ensemble": ensemble}


def teachers_calibration_html(section: dict[str, Any] | None) -> str:
    """The section of the page; empty where no temperature was fitted."""
    if section is None:
        return ""
    rows = []
    for entry in [*section["members"], {"name": "ensemble", **section["ensemble"]}]:
        before, after = entry["before"], entry["after"]
        cells = [rounded(entry.get("temperature"), 3)]
        cells += [f"{rounded(before[key])} → {rounded(after[key])}" for key in ("ece", "nll")]
        rows.append(("", [html.escape(entry["name"]), *cells]))
    text = table(["", "temperature", "ECE", "NLL"], rows)
    text += (
        "<p class=quiet>Each teacher's logits are divided by its temperature, fitted on validation rows, "
        "before any mean is made; ECE and NLL on the test rows, before and after. Above 1 it was too sure, "
        "below 1 not sure enough.</p>"
    )
    return f"<section><details><summary>How sure the teachers are</summary>{text}</details></section>"
