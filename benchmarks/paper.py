"""Three statements of arXiv 1503.02531 on MNIST, each by one command, from sweeps over one set of teachers.

    python -m benchmarks.paper temperature PATH/TO/mnist --output docs/results/paper
    python -m benchmarks.paper few-labels  PATH/TO/mnist --output docs/results/paper
    python -m benchmarks.paper unseen      PATH/TO/mnist --output docs/results/paper

Each writes NAME.json and NAME.svg. The first trains the teachers, the others find them in the run folder.
Four teachers 784-1200-1200-10 see images shifted by up to two pixels; students see the images as they are,
soft targets alone (alpha = 1). Figures are test errors, mean and standard error over seeds; what is chosen
(a temperature, a bias) is chosen on the 4,998 validation rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import machine, say
from ensemble_kd import pipeline
from ensemble_kd.artifacts import read_manifest, write_atomic
from ensemble_kd.config import load_config
from ensemble_kd.data.records import load_labels
from ensemble_kd.stages.context import Console
from ensemble_kd.train.finishing import load_logits

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
Source = Annotated[Path, typer.Argument(help="Folder with train.parquet and test.parquet of MNIST.")]
Run = Annotated[Path, typer.Option("--run-dir", help="Folder of the run: teachers, soft targets, students.")]
Output = Annotated[Path | None, typer.Option(help="Folder for the JSON and the picture; else the screen.")]
Seeds = Annotated[int, typer.Option(min=2)]
Set = Annotated[list[str] | None, typer.Option("--set", help="Further overrides, to try things.")]

BASE = [
    "teachers.num_members=4",
    "teachers.training.epochs=14",
    "soft_targets.views=1",
    "student.alpha=1",
    "tracking.enabled=false",
    "sweep.search=grid",
    "sweep.scheduler=none",
]
TEMPERATURES = [1, 2, 3, 4, 8, 16, 32]


class Study:
    """Sweeps in one run folder."""

    def __init__(self, source: Path, run: Path, seeds: int, extra: Sequence[str] | None) -> None:
        self.source, self.run, self.seeds, self.extra = source, run, seeds, list(extra or [])

    def sweep(self, *overrides: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The trials, each with `logits`: per seed the test logits (N, C); and the summary of the sweep."""
        sets = [f"data.path={self.source}", *BASE, f"sweep.num_seeds={self.seeds}", *overrides, *self.extra]
        config = load_config("mnist", sets)
        done = pipeline.run(config, self.run, until="sweep", console=Console(say, say))
        self.labels = load_labels(self.run / "data" / done["data"].fingerprint, "test")
        summary = done["sweep"].summary
        trials = []
        for trial in summary["trials"]:
            folders = [self.run / "sweep" / "members" / m["fingerprint"] for m in trial["members"]]
            biases = []
            for folder in folders:
                manifest = read_manifest(folder)
                assert manifest is not None
                biases.append(manifest.summary.get("class_bias"))
            logits = [load_logits(folder, "test").numpy() for folder in folders]
            trials.append({**trial, "logits": logits, "biases": biases})
        return trials, summary

    def errors(self, logits: Sequence[np.ndarray], only: int | None = None) -> list[int]:
        """Wrong test rows per seed, of one class or all."""
        rows = np.ones(len(self.labels), dtype=bool) if only is None else self.labels == only
        return [int((z.argmax(1) != self.labels)[rows].sum()) for z in logits]


def mean_error(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": round(float(array.mean()), 4),
        "standard_error": round(float(array.std(ddof=1) / len(array) ** 0.5), 4),
        "per_seed": [float(value) for value in array],
    }


def finish(name: str, result: dict[str, Any], figure: Figure, output: Path | None) -> None:
    text = json.dumps({**result, "machine": machine()}, indent=1) + "\n"
    if output is None:
        print(text)
        return
    output.mkdir(parents=True, exist_ok=True)
    write_atomic(output / f"{name}.json", text)
    figure.savefig(output / f"{name}.svg", metadata={"Date": None})


def figure_of(width: float = 6.4, height: float = 3.8) -> Figure:
    matplotlib.rcParams.update({"svg.hashsalt": "ensemble-kd", "font.size": 10, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "svg.fonttype": "path"})
    return Figure(figsize=(width, height), layout="constrained")


@app.command()
def temperature(
    source: Source, run: Run = Path("runs/paper"), output: Output = None, seeds: Seeds = 3, set_: Set = None
) -> None:
    """T by width: with 300 or more units all T above 8 are alike, with 30 units T from 2.5 to 4 is best."""
    study, rows = Study(source, run, seeds, set_), {}
    figure = figure_of()
    axes = figure.add_subplot()
    for width, colour in ((30, "#d1495b"), (300, "#2f80d0")):
        trials, summary = study.sweep(
            f"student.model.hidden=[{width}, {width}]",
            "student.training.epochs=20",
            f"sweep.space={{temperature: {TEMPERATURES}}}",
        )
        found = {}
        for trial in trials:
            name = "hard labels" if trial["kind"] == "hard" else f"T = {trial['parameters']['temperature']:g}"
            found[name] = mean_error(study.errors(trial["logits"]))
            found[name]["validation_accuracy"] = trial["validation_accuracy"]
        best = next(t for t in trials if t["name"] == summary["winner"])["parameters"]["temperature"]
        rows[f"{width} units"] = {"chosen on validation": best, "test errors": found}
        means = [found[f"T = {T:g}"] for T in TEMPERATURES]
        axes.errorbar(
            TEMPERATURES,
            [entry["mean"] for entry in means],
            [entry["standard_error"] for entry in means],
            color=colour,
            marker="o",
            capsize=3,
            label=f"two layers of {width}, soft targets",
        )
        axes.axhline(
            found["hard labels"]["mean"], color=colour, linestyle="--", label=f"{width}, hard labels"
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(TEMPERATURES, [str(T) for T in TEMPERATURES])
    ticks = [100, 150, 200, 300, 400]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("temperature")
    axes.set_ylabel("errors of 10,000")
    axes.legend(frameon=False, fontsize=9)
    finish("temperature", {"seeds": seeds, "widths": rows}, figure, output)


@app.command(name="few-labels")
def few_labels(
    source: Source, run: Run = Path("runs/paper"), output: Output = None, seeds: Seeds = 3, set_: Set = None
) -> None:
    """3% of the training set, hard against soft targets, beside hard labels with all of it."""
    study = Study(source, run, seeds, set_)
    trials, summary = study.sweep(
        "student.fraction=0.03",
        "student.training.epochs=100",
        "sweep.space={temperature: [2, 4, 8, 20]}",
    )
    all_data, _ = study.sweep(
        "student.training.epochs=20", "sweep.space={temperature: [4]}", "student.fraction=1"
    )

    def accuracy(trial: dict[str, Any]) -> dict[str, Any]:
        return mean_error([100 - wrong / len(study.labels) * 100 for wrong in study.errors(trial["logits"])])

    winner = next(t for t in trials if t["name"] == summary["winner"])
    hard = next(t for t in trials if t["kind"] == "hard")
    every = next(t for t in all_data if t["kind"] == "hard")
    soft_all = next(t for t in all_data if t["kind"] == "searched")
    T = winner["parameters"]["temperature"]
    rows = {
        "hard labels, 3%": accuracy(hard),
        f"soft targets, 3% (T = {T:g}, chosen on validation)": accuracy(winner),
        "hard labels, all": accuracy(every),
        "soft targets, all (T = 4)": accuracy(soft_all),
    }
    values = [entry["mean"] for entry in rows.values()]
    share = (values[1] - values[0]) / (values[2] - values[0])
    figure = figure_of(6.4, 2.6)
    axes = figure.add_subplot()
    colours = ["#d1495b", "#2f80d0", "#e3a5ad", "#a9cbee"]
    errors = [entry["standard_error"] for entry in rows.values()]
    axes.barh(range(4), values, xerr=errors, color=colours, capsize=3)
    axes.set_yticks(range(4), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(min(values) - 2, 100)
    axes.set_xlabel("test accuracy, %")
    by_temperature = {
        f"T = {t['parameters']['temperature']:g}": {**accuracy(t), "validation": t["validation_accuracy"]}
        for t in trials
        if t["kind"] == "searched"
    }
    result = {"seeds": seeds, "accuracy": rows, "share of the gap": share, "by temperature": by_temperature}
    finish("few-labels", result, figure, output)


@app.command()
def unseen(
    source: Source, run: Run = Path("runs/paper"), output: Output = None, seeds: Seeds = 3, set_: Set = None
) -> None:
    """Classes that no student sees: no 3s, or only 7s and 8s; with and without the fitted class bias."""
    study, rows = Study(source, run, seeds, set_), {}
    for name, without in (("no 3s", [3]), ("only 7s and 8s", [0, 1, 2, 3, 4, 5, 6, 9])):
        trials, summary = study.sweep(
            f"student.without_classes={without}",
            "student.class_bias=fitted",
            "student.training.epochs=12",
            "sweep.space={temperature: [4, 20]}",
        )
        trial = next(t for t in trials if t["name"] == summary["winner"])
        before = [
            z - np.asarray(b, dtype=np.float32) for z, b in zip(trial["logits"], trial["biases"], strict=True)
        ]
        rows[name] = {
            "T, chosen on validation": trial["parameters"]["temperature"],
            "errors before": mean_error(study.errors(before)),
            "errors after": mean_error(study.errors(trial["logits"])),
            "bias": [round(float(b), 3) for b in np.mean(trial["biases"], axis=0)],
        }
        if name == "no 3s":
            threes = int((study.labels == 3).sum())
            rows[name] |= {
                "test threes": threes,
                "threes wrong before": mean_error(study.errors(before, 3)),
                "threes wrong after": mean_error(study.errors(trial["logits"], 3)),
            }
    figure = figure_of(6.4, 2.8)
    axes = figure.add_subplot()
    bars = [
        ("no 3s: errors", rows["no 3s"]["errors before"], rows["no 3s"]["errors after"]),
        ("of these on 3s", rows["no 3s"]["threes wrong before"], rows["no 3s"]["threes wrong after"]),
        ("only 7s and 8s: errors", *(rows["only 7s and 8s"][f"errors {w}"] for w in ("before", "after"))),
    ]
    for offset, part, colour, label in (
        (-0.18, 1, "#d1495b", "as trained"),
        (0.18, 2, "#2f80d0", "with the class bias fitted on validation rows"),
    ):
        places = [i + offset for i in range(len(bars))]
        values = [bar[part]["mean"] for bar in bars]
        errors = [bar[part]["standard_error"] for bar in bars]
        axes.barh(places, values, 0.34, xerr=errors, color=colour, label=label, capsize=2)
        for place, value in zip(places, values, strict=True):
            axes.text(value * 1.12, place, f"{value:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(10, 20_000)
    axes.set_xlabel("test errors of 10,000 (log scale)")
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    finish("unseen", {"seeds": seeds, "transfer sets": rows}, figure, output)


if __name__ == "__main__":
    app()
