"""What specialists changed: per cluster, and by how many of them know the right class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ensemble_kd.train.statistics import paired_interval

if TYPE_CHECKING:
    from ensemble_kd.report.build import ReportInputs

MOST = 10
"""Numbers of covering specialists from which on rows are put together, as in the paper's table."""


def specialists_section(inputs: ReportInputs) -> dict[str, Any] | None:
    """Clusters with every system's accuracy on their classes, and the paper's table 4 (arXiv 1503.02531)."""
    special = inputs.specialised
    if special is None:
        return None
    labels, names = inputs.labels, inputs.info["class_names"]
    right = correct_by_role(inputs)
    coverage = np.zeros(len(names), dtype=np.int64)
    for cluster in special.clusters:
        coverage[cluster["classes"]] += 1
    clusters = []
    for cluster in special.clusters:
        rows = np.isin(labels, cluster["classes"])
        clusters.append(
            {
                **{key: value for key, value in cluster.items() if key != "classes"},
                "names": [names[c] for c in cluster["classes"]],
                "rows": int(rows.sum()),
                "accuracy": {
                    role: float(values[:, rows].mean()) if rows.any() else None
                    for role, values in right.items()
                },
            }
        )
    table = []
    for number in range(min(int(coverage.max(initial=0)), MOST) + 1):
        of = coverage[labels]
        rows = of >= MOST if number == MOST else of == number
        if rows.any():
            table.append(
                {
                    "specialists": f"{MOST} or more" if number == MOST else str(number),
                    "rows": int(rows.sum()),
                    **{role: int(right[role][0, rows].sum()) for role in PAIRED if role in right},
                }
            )
    return {
        "text": special.text,
        "generalist": special.generalist,
        "targets": special.targets,
        "clusters": clusters,
        "without": [names[c] for c in special.without],
        "coverage": table,
        "differences": _differences(right),
    }


PAIRED = ("generalist", "generalist_specialists", "ensemble", "ensemble_specialists")
"""Single systems, of which rows are counted rather than averaged over seeds."""


def correct_by_role(inputs: ReportInputs) -> dict[str, np.ndarray]:
    """(n, N) correctness of the systems of each role, and of the one generalist that is compared."""
    special = inputs.specialised
    assert special is not None
    found: dict[str, list[np.ndarray]] = {}
    for system in [*inputs.teachers, *special.systems, *inputs.students]:
        right = system.logits.argmax(axis=1) == inputs.labels
        found.setdefault(system.role, []).append(right)
        if system.name == special.generalist:
            found["generalist"] = [right]
    if inputs.ensemble_log_probs is not None:
        found["ensemble"] = [inputs.ensemble_log_probs.argmax(axis=1) == inputs.labels]
    return {role: np.stack(rows) for role, rows in found.items()}


def _differences(right: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What specialists add to the generalist and to the ensemble, in points, with 95% intervals."""
    found = []
    for role in ("generalist", "ensemble"):
        after = f"{role}_specialists"
        if role in right and after in right:
            interval = paired_interval(right[after][0], right[role][0])
            found.append(
                {"role": role, "points": interval.points, "low": interval.low, "high": interval.high}
            )
    return found
