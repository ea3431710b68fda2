"""The report's plots as inline SVG that follows the page's light or dark colours.

Text and lines are drawn in a placeholder colour that becomes CSS `currentColor`; nothing has a background.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ensemble_kd.report.build import ReportInputs, shipped_system
from ensemble_kd.report.chain import CHAIN_ROLES
from ensemble_kd.targets import target_in
from ensemble_kd.targets.metrics import confusion_matrix, log_softmax, reliability_bins

INK = "#010203"  # becomes currentColor
COLOURS = {
    "teacher": "#8a8f98",
    "generalist_specialists": "#5f7f6e",
    "ensemble": "#c28a12",
    "ensemble_specialists": "#2a9d8f",
    "hard": "#d1495b",
    "plain": "#8c4a57",
    "pseudo": "#7b61c9",
    "from_ensemble": "#7fb2e5",
    "from_specialists": "#7fb2e5",
    **dict.fromkeys(CHAIN_ROLES, "#7fb2e5"),
    "distilled": "#2f80d0",
    "together": "#4aa3a2",
    "refit": "#1c5a99",
}
"""One colour per role, readable on white and on near-black."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ensemble-kd",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def histories_of(inputs: ReportInputs) -> dict[str, list[dict[str, Any]]]:
    """Per-epoch entries by `role/name`, for the training curves."""
    return {f"{s.role}/{s.name}": s.history for s in [*inputs.teachers, *inputs.students] if s.history}


def plot_arrays(inputs: ReportInputs) -> dict[str, Any]:
    """What the plots need beyond the report: `confusion` (C, C), `reliability` bins per role, the `sweep`."""
    arrays: dict[str, Any] = {"reliability": {}}
    shipped = shipped_system(inputs)
    if not target_in(inputs.info).classified:
        if shipped is not None:
            names = np.array(target_in(inputs.info).output_names([]))
            arrays["values"] = {"true": inputs.labels, "predicted": shipped.logits, "names": names}
        return arrays | ({"sweep": inputs.sweep} if inputs.sweep else {})
    if shipped is not None:
        num_classes = len(inputs.info["class_names"])
        arrays["confusion"] = confusion_matrix(shipped.logits.argmax(axis=1), inputs.labels, num_classes)
    if inputs.ensemble_log_probs is not None:
        arrays["reliability"]["ensemble"] = reliability_bins(inputs.ensemble_log_probs, inputs.labels)
    hard = next(
        (s for s in inputs.students if s.role == "hard" and shipped is not None and s.seed == shipped.seed),
        next((s for s in inputs.students if s.role == "hard"), None),
    )
    for role, system in (("hard", hard), ("distilled", shipped)):
        if system is not None:
            arrays["reliability"][role] = reliability_bins(log_softmax(system.logits), inputs.labels)
    special = inputs.specialised
    if special is not None and special.matrix is not None:
        arrays["clusters"] = ordered_matrix(special.matrix, [c["classes"] for c in special.clusters])
    if inputs.sweep:
        arrays["sweep"] = inputs.sweep
    return arrays


def ordered_matrix(matrix: np.ndarray, clusters: list[list[int]]) -> dict[str, Any]:
    """The matrix as correlations, classes in the order of the clusters: `image` (C, C), `order`, `edges`.

    A class of several clusters stands in the first of them; those of none come last.
    """
    order: list[int] = []
    edges = [0]
    for members in clusters:
        order += [c for c in members if c not in order]
        edges.append(len(order))
    order += [c for c in range(len(matrix)) if c not in order]
    scale = np.sqrt(np.maximum(np.diagonal(matrix).astype(np.float64), 0))
    if not scale.all():  # a confusion matrix has no variances: its largest entry is the scale
        scale = np.full(len(matrix), np.sqrt(max(float(matrix.max()), 1e-300)))
    image = matrix / scale[:, None] / scale[None, :]
    np.fill_diagonal(image, 0.0)
    return {"image": image[np.ix_(order, order)], "order": order, "edges": edges}


def covariance_plot(ordered: dict[str, Any], names: list[str]) -> str:
    """Which classes rise together (red) in the teachers' predictions; a box is a cluster."""
    image, edges = ordered["image"], ordered["edges"]
    num_classes = len(image)
    limit = max(float(np.abs(image).max()), 1e-12)
    colours = np.empty((num_classes, num_classes, 4))
    colours[..., :3] = np.where((image > 0)[..., None], [0.82, 0.29, 0.36], [0.18, 0.50, 0.82])
    colours[..., 3] = np.sqrt(np.abs(image) / limit)
    labelled = num_classes <= 40
    side = max(3.4, 0.2 * num_classes) if labelled else 7.0  # inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side + 1.2, side + 1.0), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(colours, interpolation="nearest")
        for first, last in zip(edges, edges[1:], strict=False):
            if last > first:
                box = Rectangle((first - 0.5, first - 0.5), last - first, last - first)
                box.set(fill=False, edgecolor=INK, linewidth=0.9)
                axes.add_patch(box)
        if labelled:
            labels = [plain_text(names[c]) for c in ordered["order"]]
            axes.set_xticks(range(num_classes), labels, rotation=90 if _long(names) else 0)
            axes.set_yticks(range(num_classes), labels)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        axes.tick_params(labelsize=8, length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, "Correlation of the teachers' predictions between classes, by cluster")


def training_curves(histories: dict[str, list[dict[str, Any]]]) -> str:
    """Train loss, validation loss and validation accuracy of every member, one panel each."""
    panels = [
        ("train_loss", "Training loss"),
        ("validation_loss", "Validation loss"),
        ("validation_accuracy", "Validation accuracy"),
        ("validation_pearson", "Validation, Pearson's r"),
    ]
    panels = [p for p in panels if any(p[0] in entry for h in histories.values() for entry in h)]
    if not panels:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.3), layout="constrained")
        lines: dict[str, Line2D] = {}
        for column, (key, title) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), column + 1)
            for name, history in histories.items():
                role = name.split("/", 1)[0]
                # The losses of other roles are not comparable (T^2, soft targets), so colour tells the role.
                points = [(e["epoch"], e[key]) for e in history if e.get(key) is not None]
                if not points:
                    continue
                (lines[role],) = axes.plot(
                    *zip(*points, strict=True),
                    color=COLOURS.get(role, COLOURS["teacher"]),
                    linewidth=1.4,
                    alpha=0.55 if role == "teacher" else 0.9,
                    marker="o" if len(points) == 1 else None,
                )
            frame(axes, title, "epoch")
        figure.legend(
            list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines), fontsize=9
        )
        return svg(figure, "Training curves of every member")


def reliability_diagram(bins: dict[str, dict[str, list[Any]]]) -> str:
    """Accuracy against confidence; the diagonal is perfect calibration; dots grow with the examples."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        for role, entry in bins.items():
            keep = [i for i, n in enumerate(entry["count"]) if n]
            count = np.array([entry["count"][i] for i in keep])
            x, y = ([entry[key][i] for i in keep] for key in ("confidence", "accuracy"))
            axes.plot(x, y, color=COLOURS[role], linewidth=1.3, label=role)
            axes.scatter(x, y, s=8 + 60 * np.sqrt(count / count.sum()), color=COLOURS[role], alpha=0.8)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        frame(axes, "", "confidence")
        axes.set_ylabel("accuracy")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
        return svg(figure, "Reliability diagram: accuracy against confidence")


MOST_POINTS, MOST_PANELS = 3000, 4


def scatter_plot(values: dict[str, np.ndarray]) -> str:
    """Predicted against true values of test rows, at most `MOST_POINTS` of them; the diagonal is right.

    `true` is (N,), or (N, K) of the columns `names`, of which the first `MOST_PANELS` have a panel each;
    `predicted` is (N, K).
    """
    true, predicted = values["true"].reshape(len(values["true"]), -1), values["predicted"]
    step, count = -(-len(true) // MOST_POINTS), min(true.shape[1], MOST_PANELS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 if count == 1 else 3.4 * count, 4.4 if count == 1 else 3.4))
        figure.set_layout_engine("constrained")
        for k in range(count):
            axes = figure.add_subplot(1, count, k + 1)
            ends = [float(true[:, k].min()), float(true[:, k].max())]
            axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
            axes.scatter(
                true[::step, k],
                predicted[::step, k],
                s=9,
                color=COLOURS["distilled"],
                alpha=0.5,
                linewidths=0,
            )
            frame(axes, str(values["names"][k]) if true.shape[1] > 1 else "", "true")
            axes.set_ylabel("predicted" if k == 0 else "")
        return svg(figure, "Predicted against true values of the shipped student")


def confusion_plot(matrix: np.ndarray, names: list[str]) -> str:
    """Rows true, columns predicted, shaded by the share of the row; counts in the cells up to 20 classes."""
    num_classes = len(names)
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    image = np.empty((num_classes, num_classes, 4))
    image[..., :3] = np.array([0x2F, 0x80, 0xD0]) / 255
    diagonal = np.eye(num_classes, dtype=bool)
    # Mistakes are rare: their shade grows with the root, in another hue than the diagonal's.
    image[~diagonal, :3] = np.array([0xD1, 0x49, 0x5B]) / 255
    image[..., 3] = np.where(diagonal, 0.85 * share, np.sqrt(share))
    small = num_classes <= 20
    side = max(3.2, (0.42 if small else 0.16) * num_classes)  # inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side + 1.4, side + 1.2), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(image, interpolation="nearest")
        font = 9 if small else 7
        labels = [plain_text(name) for name in names]
        axes.set_xticks(range(num_classes), labels, rotation=90 if num_classes > 10 or _long(names) else 0)
        axes.set_yticks(range(num_classes), labels)
        axes.tick_params(labelsize=font, length=0)
        if small:
            for i, j in zip(*np.nonzero(matrix), strict=True):
                axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=8)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        for spine in axes.spines.values():
            spine.set_visible(False)
        return svg(figure, "Confusion matrix of the shipped student")


def per_class_plot(classes: list[str], accuracy: dict[str, list[float | None]]) -> str:
    """One row per class, one dot per role."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.1 + 0.28 * len(classes)), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(classes))
        known = np.array([[np.nan if v is None else v for v in values] for values in accuracy.values()])
        for row in rows:
            values = known[:, row][~np.isnan(known[:, row])]
            if len(values):
                axes.plot([values.min(), values.max()], [row, row], color=INK, linewidth=0.8, alpha=0.35)
        for offset, role in zip((-0.12, 0.0, 0.12), accuracy, strict=False):
            values = known[list(accuracy).index(role)]
            axes.scatter(values, rows + offset, s=26, color=COLOURS[role], label=role, zorder=3)
        axes.set_yticks(rows, [plain_text(name) for name in classes])
        axes.set_ylim(len(classes) - 0.5, -0.5)
        frame(axes, "", "accuracy", grid="x")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=9)
        return svg(figure, "Accuracy per class")


def frame(axes: Axes, title: str, xlabel: str, grid: str = "y") -> None:
    axes.set_title(title, fontsize=10, loc="left", pad=8)
    axes.set_xlabel(xlabel)
    axes.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    if xlabel == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def plain_text(name: str, longest: int = 32) -> str:
    """A class name as a label: no mathtext, no line breaks or control characters, not too long."""
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")


def _long(names: list[str]) -> bool:
    return max(len(name) for name in names) > 3


def svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element for the page: no prolog, no metadata, no addresses, no fixed size."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the browser has the glyph
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    width = float(box.group(1).split()[2]) if box else 600.0
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # ids of groups would repeat between the plots
    body = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", body)
    view = box.group(1) if box else "0 0 600 400"
    style = f"width:{width * 4 / 3:.0f}px"
    text = f'<svg viewBox="{view}" role="img" aria-label="{title}" style="{style}">{body}'
    return text.replace(INK, "currentColor").strip()
