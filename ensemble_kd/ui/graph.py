"""Clusters of confusable classes as a graph: a node is a class, a line what the teachers confuse.

The matrix is the one that was clustered: the covariance of the teachers' probabilities, or counts of
mistakes, scaled to correlations as in the report.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ensemble_kd.errors import ArtifactError
from ensemble_kd.report.pieces import table
from ensemble_kd.report.plots import ordered_matrix
from ensemble_kd.safe_files import problem_inside
from ensemble_kd.stages.context import MATRIX
from ensemble_kd.ui.folders import Run
from ensemble_kd.ui.pieces import esc, guarded, number, page
from ensemble_kd.ui.said import LARGEST

COLOURS = ("#2f80d0", "#d1495b", "#2a9d8f", "#c28a12", "#7b61c9", "#5f7f6e", "#8c4a57", "#4aa3a2")
ALONE = "#8a8f98"
MOST_NODES = 60
MOST_LINES, LINES_PER_CLASS = 120, 2
UPRIGHT = 24
"""Nodes up to which their names are not turned."""
MOST_CLASSES = 4096
SIDE, RADIUS = 640, 210


def clusters_page(run: Run) -> str:
    """The page; says so where the run has no clusters."""
    return page(f"{run.name}: confused classes", guarded(lambda: _clusters(run), "The graph"), run.name)


def _clusters(run: Run) -> str:
    stage = run.stage("clusters")
    if stage is None:
        return (
            "<p>This run has no clusters: they come with <code>specialists</code> in its configuration.</p>"
        )
    folder, manifest = stage
    clusters = [each for each in manifest.summary["clusters"] if isinstance(each, dict)]
    data = str(manifest.inputs["data"])
    names = [str(name) for name in run.manifest("data", data).summary["info"]["class_names"]]
    sets = [[c for c in each["classes"] if isinstance(c, int) and 0 <= c < len(names)] for each in clusters]
    text = f"<p>{esc(_summary(manifest.summary, len(sets)))}</p>"
    text += guarded(lambda: _graph(run, folder, sets, names), "The graph")
    rows = []
    for k, (cluster, classes) in enumerate(zip(clusters, sets, strict=True)):
        share = number(cluster.get("confusion_captured"))
        members = ", ".join(names[c] for c in classes)
        cells = [
            f'<span class=dot style="background:{COLOURS[k % len(COLOURS)]}"></span>{k}: {esc(members)}',
            str(len(classes)),
            "–" if share is None else f"{100 * share:.1f}%",
        ]
        rows.append(("", cells))
    return text + "<h2>Clusters</h2>" + table(["cluster", "classes", "of all confusion"], rows, "clusters")


def _summary(summary: dict[str, Any], count: int) -> str:
    share = number(summary.get("confusion_captured"))
    text = f"{count} clusters"
    return text if share is None else f"{text} hold {100 * share:.0f}% of what the teachers confuse."


def _graph(run: Run, folder: str, sets: list[list[int]], names: list[str]) -> str:
    matrix = _matrix(run, f"{folder}/{MATRIX}", len(names))
    ordered = ordered_matrix(matrix, sets)
    order = [int(c) for c in ordered["order"]]
    image = np.nan_to_num(ordered["image"].astype(np.float64))
    upper = np.triu(image, 1)
    most = min(MOST_LINES, LINES_PER_CLASS * len(order))
    places = np.argsort(-upper, axis=None, kind="stable")[:most]
    lines = [
        (int(i), int(j), float(upper[i, j]))
        for i, j in zip(*np.unravel_index(places, upper.shape), strict=True)
    ]
    lines = [line for line in lines if line[2] > 0]
    if len(order) > MOST_NODES:  # those with the strongest lines
        kept: list[int] = []
        for i, j, _ in lines:
            kept += [k for k in (i, j) if k not in kept and len(kept) < MOST_NODES]
        lines = [line for line in lines if line[0] in kept and line[1] in kept]
        places_shown = sorted(kept)
    else:
        places_shown = list(range(len(order)))
    svg = draw([order[i] for i in places_shown], [(order[i], order[j], v) for i, j, v in lines], sets, names)
    note = (
        "A line joins two classes whose probabilities rise together in the teachers' predictions; the wider, "
        "the more. A colour is a cluster; grey stands in none, and a class of several has the first one's."
    )
    if len(places_shown) < len(order):
        note += f" The {len(places_shown)} most confused of {len(order):,} classes."
    return f'<div class="scroll plot graph">{svg}</div><p class=quiet>{note}</p>'


def _matrix(run: Run, name: str, count: int) -> np.ndarray:
    if (problem := problem_inside(run.folder, name)) is not None:
        raise ArtifactError(f"{name}: {problem}; runs of very many classes keep none")
    path = run.folder / name
    if count > MOST_CLASSES or path.stat().st_size > LARGEST:
        raise ArtifactError(f"{name}: too large to be drawn")
    try:
        with safe_open(path, framework="np") as file:
            matrix: np.ndarray = file.get_tensor("matrix").astype(np.float64)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{name}: cannot be read ({error})") from error
    if matrix.shape != (count, count) or not np.isfinite(matrix).all():
        raise ArtifactError(f"{name}: {matrix.shape}, not a number for each pair of {count} classes")
    return matrix


def draw(
    nodes: list[int], lines: list[tuple[int, int, float]], sets: list[list[int]], names: list[str]
) -> str:
    """Classes `nodes` on a circle, in this order, so that a cluster stands together.

    `lines` are two classes and a weight: the least of them is drawn thin, the largest wide.
    """
    middle, count = SIDE / 2, max(len(nodes), 1)
    angle = {c: 2 * math.pi * i / count - math.pi / 2 for i, c in enumerate(nodes)}
    at = {c: _point(a, RADIUS) for c, a in angle.items()}
    colour: dict[int, str] = {}
    for k, members in enumerate(sets):
        for c in members:
            colour.setdefault(c, COLOURS[k % len(COLOURS)])
    weights = [weight for _, _, weight in lines]
    least, most = min(weights, default=0.0), max(weights, default=1.0)
    parts = []
    for one, other, weight in sorted(lines, key=lambda line: line[2]):
        share = (weight - least) / (most - least) if most > least else 1.0
        (x, y), (u, v) = at[one], at[other]
        together = any(one in members and other in members for members in sets)
        title = f"{esc(names[one], 60)} and {esc(names[other], 60)}: {weight:.3f}"
        parts.append(
            f'<path d="M{x:.1f} {y:.1f}Q{middle:.0f} {middle:.0f} {u:.1f} {v:.1f}" fill="none" '
            f'stroke="{colour.get(one, ALONE) if together else ALONE}" stroke-width="{0.8 + 6 * share:.2f}" '
            f'opacity="{0.3 + 0.5 * share:.2f}"><title>{title}</title></path>'
        )
    for c in nodes:
        x, y = at[c]
        title = f"<title>{esc(names[c], 80)}</title>"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour.get(c, ALONE)}">{title}</circle>'
        )
        parts.append(_named(names[c], angle[c], count))
    top = 60 if count <= UPRIGHT else 0  # names that are turned need the room above
    box = f"0 {top} {SIDE} {SIDE - 2 * top}"
    return f'<svg viewBox="{box}" role="img" aria-label="Confused classes">{"".join(parts)}</svg>'


def _named(name: str, angle: float, count: int) -> str:
    """A class's name outside the circle: upright where there are few, else along the radius."""
    x, y = _point(angle, RADIUS + 14)
    side = math.cos(angle)
    anchor = "end" if side < -1e-9 else "start"
    turn = ""
    if count > UPRIGHT:
        turn = (
            f' transform="rotate({math.degrees(angle) + (180 if side < -1e-9 else 0):.1f} {x:.1f} {y:.1f})"'
        )
    elif abs(side) < 0.2:
        anchor = "middle"
    text = esc(name, 26 if count <= UPRIGHT else 14)
    return f'<text x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"{turn}>{text}</text>'


def _point(angle: float, radius: float) -> tuple[float, float]:
    return SIDE / 2 + radius * math.cos(angle), SIDE / 2 + radius * math.sin(angle)
