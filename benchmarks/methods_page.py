"""The table and the picture of docs/methods.md, from the results of `benchmarks.methods`.

python -m benchmarks.methods_page        # writes both anew; a test says whether the page is current
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.methods import METHODS, TEACHERS, right
from benchmarks.paper import figure_of
from ensemble_kd.artifacts import write_atomic
from ensemble_kd.train.statistics import Interval, combined_interval, mean_and_error

DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE, PICTURE = DOCS / "results" / "methods", DOCS / "methods.md", "results/methods/methods.svg"
BEGIN, END = "<!-- written by benchmarks.methods_page -->", "<!-- to here -->"
HEAD = (
    "| method | seeds | test accuracy, % | against KD, points | against hard labels | NLL | seconds | MB |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Row:
    """A method's line."""

    name: str
    title: str
    accuracy: float
    """Mean over seeds, in percent."""
    error: float | None
    seeds: int
    nll: float
    against: dict[str, Interval]
    """By name of the baseline, `kd` and `hard`: the paired difference on the same test rows, in points."""
    seconds: float | None
    """Of one processor core, for one student and all that only it needs; mean over seeds."""
    peak_mb: int | None


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured, by name in the order of METHODS, the teachers first.

    Raises ValueError where a result was measured with other settings, seeds aside, or other rows.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in (TEACHERS, *METHODS):
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    first: dict[str, Any] = next(iter(found.values()), {})
    for name, result in found.items():
        if any(_common(result)[key] != _common(first)[key] for key in ("settings", "test_rows")):
            raise ValueError(f"{folder / name}.json: other settings than those of {first['method']}.json")
    return found


def _common(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose settings do not say how many seeds there are."""
    settings = result["settings"]
    return {**result, "settings": {**settings, "student": {**settings["student"], "seeds": None}}}


def rows(found: dict[str, dict[str, Any]]) -> list[Row]:
    """A row a method; the teachers' ensemble is none. Differences are over the seeds that both have."""
    by_seed = {
        name: [right(entry, result["test_rows"]) for entry in result["seeds"]]
        for name, result in found.items()
    }
    table = []
    for name, result in found.items():
        if name == TEACHERS:
            continue
        mean, error = mean_and_error([100 * float(each.mean()) for each in by_seed[name]])
        against: dict[str, Interval] = {
            other: _paired(by_seed[name], by_seed[other])
            for other in ("kd", "hard")
            if other in found and other != name
        }
        seconds = [entry["cpu_seconds"] for entry in result["seeds"]]
        taken = None if None in seconds else float(np.mean(seconds))
        nll = float(np.mean([entry["nll"] for entry in result["seeds"]]))
        table.append(
            Row(
                name, result["title"], mean, error, len(by_seed[name]), nll, against, taken, result["peak_mb"]
            )
        )
    return table


def _paired(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Interval:
    seeds = min(len(ours), len(theirs))
    return combined_interval(ours[:seeds], theirs[:seeds])


def table(found: dict[str, dict[str, Any]]) -> str:
    """The lines between the marks of the page."""
    lines = [HEAD]
    if TEACHERS in found:
        teachers = found[TEACHERS]
        size = teachers["test_rows"]
        ensemble = teachers["ensemble"]
        alone = 100 * float(np.mean([right(entry, size).mean() for entry in teachers["seeds"]]))
        taken = sum(entry["cpu_seconds"] for entry in teachers["seeds"])
        lines.append(
            f"| ensemble of {len(teachers['seeds'])} teachers (one of them {alone:.2f}) "
            f"| | {100 * right(ensemble, size).mean():.2f} | | | {ensemble['nll']:.3f} | {taken:.0f} "
            f"| {_whole(teachers['peak_mb'])} |"
        )
    for row in rows(found):
        cells = [
            f"{row.title} (`{row.name}`)",
            str(row.seeds),
            f"{row.accuracy:.2f} ± {row.error or 0:.2f}",
            _difference(row.against.get("kd")),
            _difference(row.against.get("hard")),
            f"{row.nll:.3f}",
            _whole(row.seconds),
            _whole(row.peak_mb),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _difference(interval: Interval | None) -> str:
    """Bold where the interval leaves 0 out."""
    if interval is None:
        return ""
    text = f"{interval.points:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    return f"**{text}**" if interval.outcome != "no difference shown" else text


def with_table(page: str, lines: str) -> str:
    """The page with other lines between its marks. Raises ValueError where it has none."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs the marks {BEGIN} and {END}, each once")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{lines}\n\n{END}{rest.split(END)[1]}"


def picture(found: dict[str, dict[str, Any]]) -> Figure:
    """Each method's difference to KD with its interval, the best above; hard labels among them."""
    shown = sorted((row for row in rows(found) if "kd" in row.against), key=lambda row: row.accuracy)
    figure = figure_of(6.8, 0.9 + 0.28 * len(shown))
    axes = figure.add_subplot()
    colours = {"helped": "#2a9d5c", "no difference shown": "#7a8594", "hurt": "#d1495b"}
    for place, row in enumerate(shown):
        interval = row.against["kd"]
        colour = colours[interval.outcome]
        axes.plot([interval.low, interval.high], [place, place], color=colour)
        axes.plot(interval.points, place, "o", color=colour)
    axes.axvline(0, color="#444444", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(shown)), [row.title for row in shown])
    axes.set_xlabel("points of test accuracy against KD, 95% interval")
    return figure


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page, with its marks.")] = PAGE,
) -> None:
    """Write the table into the page, and the picture beside the results."""
    found = results(folder)
    write_atomic(page, with_table(page.read_text(encoding="utf-8"), table(found)))
    picture(found).savefig(folder / Path(PICTURE).name, metadata={"Date": None})


if __name__ == "__main__":
    app()
