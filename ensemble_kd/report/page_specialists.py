"""The page's section on specialists."""

from __future__ import annotations

from typing import Any

from ensemble_kd.report.page_figures import escaped
from ensemble_kd.report.pieces import table, titled_plot
from ensemble_kd.report.plots import covariance_plot

SHOWN = {
    "teacher": "teachers",
    "generalist_specialists": "one + specialists",
    "ensemble": "ensemble",
    "ensemble_specialists": "+ specialists",
    "hard": "hard labels",
    "pseudo": "pseudo-labels",
    "from_ensemble": "from ensemble",
    "from_specialists": "from specialists",
    "distilled": "distilled",
    "together": "together",
}
"""Roles in the table of clusters, and their short names there."""


def specialists_section(report: dict[str, Any], arrays: dict[str, Any]) -> str:
    section = report.get("specialists")
    if not section:
        return ""
    text = f"<h2>Specialists</h2><p>{escaped(section['text'][:1].upper() + section['text'][1:])}.</p>"
    lines = []
    for difference in section["differences"]:
        what = {"generalist": section["generalist"], "ensemble": "the ensemble"}[difference["role"]]
        lines.append(
            f"{what}: {difference['points']:+.2f} points with its specialists, 95% interval "
            f"{difference['low']:+.2f} to {difference['high']:+.2f}"
        )
    text += f"<p class=quiet>{escaped('; '.join(lines))}.</p>" if lines else ""
    roles = [role for role in SHOWN if any(role in c["accuracy"] for c in section["clusters"])]
    rows = []
    for number, cluster in enumerate(section["clusters"]):
        names = ", ".join(cluster["names"][:6]) + (" …" if len(cluster["names"]) > 6 else "")
        before, after = cluster["conditional_before"], cluster["conditional_after"]
        among = "–" if after is None else f"{100 * before:.1f} → {100 * after:.1f}%"
        cells = [
            f"{number}: {escaped(names)}",
            str(len(cluster["names"])),
            f"{100 * cluster['confusion_captured']:.1f}%",
            among,
            f"{cluster['weight']:g}" if cluster["weight"] else "off",
            *(_share(cluster["accuracy"].get(role)) for role in roles),
        ]
        rows.append(("", cells))
    head = ["cluster", "classes", "confusion", "among its classes", "weight"]
    head += [SHOWN[role] for role in roles]
    text += table(head, rows, "clusters")
    text += (
        "<p class=quiet>Confusion: share of all confusion that lies inside. Among its classes: validation "
        "accuracy of generalist and specialist when only these are allowed. The other columns: test accuracy "
        "on the cluster's classes.</p>"
    )
    if section["without"]:
        names = ", ".join(section["without"][:20]) + (" …" if len(section["without"]) > 20 else "")
        text += f"<p class=quiet>Without a specialist: {escaped(names)}.</p>"
    text += _coverage(section)
    ordered = arrays.get("clusters")
    if ordered is not None:
        size = "full" if len(ordered["order"]) > 20 else ""
        plot = covariance_plot(ordered, report["class_names"])
        text += titled_plot("What the teachers confuse, by cluster", plot, size)
        text += (
            "<p class=quiet>Red: the teachers' probabilities of two classes rise together. Boxes are "
            "clusters; a class of several stands in the first.</p>"
        )
    return f"<section>{text}</section>"


def _coverage(section: dict[str, Any]) -> str:
    """The paper's table: what specialists change, by how many of them know the right class."""
    pairs = [("generalist", f"{section['generalist']}"), ("ensemble", "ensemble")]
    pairs = [pair for pair in pairs if f"{pair[0]}specialists_section" in section["coverage"][0]]
    rows = []
    for line in section["coverage"]:
        cells = [line["specialists"], f"{line['rows']:,}"]
        for role, _ in pairs:
            before, after = line[role], line[f"{role}specialists_section"]
            cells += [f"{before:,}", f"{after - before:+,}"]
        rows.append(("", cells))
    head = ["specialists that know the right class", "test rows"]
    for _, name in pairs:
        head += [f"right, {name}", "with specialists"]
    note = "<p class=quiet>Of all specialists, on or off (arXiv 1503.02531, table 4).</p>"
    return "<h2>By number of specialists</h2>" + table(head, rows) + note


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"
