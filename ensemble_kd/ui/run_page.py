"""The page of one run: its stages, members' curves, what was chosen, the sweep, and the report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ensemble_kd import pipeline
from ensemble_kd.artifacts import fingerprint
from ensemble_kd.disk import size
from ensemble_kd.errors import ArtifactError
from ensemble_kd.report.choose import choose_html
from ensemble_kd.report.pieces import plain, table, titled_plot
from ensemble_kd.report.plots import COLOURS, training_curves
from ensemble_kd.report.sweep_page import sweep_html
from ensemble_kd.ui.folders import Run
from ensemble_kd.ui.pieces import dig, esc, guarded, number, page, url, when
from ensemble_kd.ui.progress import WITH_MEMBERS, Standing, histories, standing, text_of

REFRESH = 4
"""Seconds, while it runs."""
MOST_CURVES = 60
CURVES = ("epoch", "train_loss", "validation_loss", "validation_accuracy", "validation_pearson")
MOST_PLOTS = 64
_plots: dict[str, str] = {}
_drawing = threading.Lock()
"""matplotlib's settings are the process's own."""


def run_page(run: Run) -> str:
    """The page of one run, as HTML."""
    found = standing(run)
    main = (
        f"<p><span class='state {found.state}'>{found.state}</span> "
        f"<span class=quiet>{esc(text_of(found))} · {when(found.when)}</span></p>"
    )
    main += "".join(f"<p class=wrong>{esc(problem, 400)}</p>" for problem in found.problems[:10])
    main += guarded(lambda: _verdict(found.report), "The verdict")
    if run.has("report.html"):
        main += f'<p><a href="{url("/report", name=run.name)}">The whole report</a></p>'
    main += guarded(lambda: _stages(run, found), "The table of stages")
    main += guarded(lambda: _choose(run, found.report), "What was chosen")
    main += guarded(lambda: _sweep(run, found.report), "The sweep")
    main += guarded(lambda: _curves(run, found), "The members' curves")
    return page(run.name, main, run.name, REFRESH if found.state == "running" else 0)


def harmless(value: Any) -> Any:
    """The same values with no `<` and `>` in any text, so that whatever a report's section leaves unescaped
    of a block that should have been a number is no markup."""
    if isinstance(value, dict):
        return {harmless(key): harmless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [harmless(item) for item in value]
    return value.replace("<", "‹").replace(">", "›") if isinstance(value, str) else value


def _verdict(report: dict[str, Any] | None) -> str:
    text, outcome = dig(report, "verdict", "text"), dig(report, "verdict", "outcome")
    if not isinstance(text, str):
        return ""
    css_class = outcome if outcome in ("helped", "hurt") else "unsure"
    return f'<section class="verdict {css_class}"><p>{esc(text)}</p></section>'


# -------------------------------------------------------------------------------------------------- stages


def _stages(run: Run, found: Standing) -> str:
    rows = []
    for name in found.planned:
        rows.append(("", [esc(name), *_stage(run, name, found)]))
    head = ["stage", "state", "seconds", "on disk", "result", "made"]
    return "<h2>Stages</h2>" + table(head, rows, "stages")


def _stage(run: Run, name: str, found: Standing) -> list[str]:
    """State, seconds, size, result, time."""
    if name not in found.done:
        at_work = name == found.current and found.state == "running"
        return [
            "<span class='state running'>running</span>" if at_work else "to do",
            "",
            "",
            _members(found, name),
            "",
        ]
    try:
        stage = run.stage(name)
        if stage is None:
            return ["gone", "", "", "", ""]
    except (ArtifactError, OSError) as error:
        return ["<span class='state damaged'>damaged</span>", "", "", esc(error, 200), ""]
    manifest = stage[1]
    seconds = number(manifest.summary.get("seconds"))
    total = sum(number(dig(entry, "bytes")) or 0 for entry in manifest.files.values())
    total += sum(
        number(dig(entry, "bytes")) or 0
        for entry in _list(manifest.summary.get("members"))
        if name in WITH_MEMBERS
    )
    text = guarded(
        lambda: esc(pipeline.stage(name).describe(manifest.summary, int(total)), 200), "Its result"
    )
    shown = "" if seconds is None else f"{seconds:,.1f}"
    return [
        "done",
        shown,
        size(int(total)) if total else "",
        "" if name == "report" else text,
        when(manifest.created),
    ]


def _members(found: Standing, name: str) -> str:
    training = found.training
    if name != found.current or training is None or not (training.finished or training.running):
        return ""
    wanted = f" of {training.wanted}" if training.wanted else ""
    lines = [f"{training.finished}{wanted} members finished"]
    for member, epoch in training.running[:20]:
        of = f" of {training.epochs}" if training.epochs else ""
        line = f"{esc(member[:8])}: epoch {epoch}{of}"
        if training.epochs:
            line += f'<progress value="{epoch}" max="{training.epochs}"></progress>'
        lines.append(line)
    return "<br>".join(lines)


# ------------------------------------------------------------------------------------ choose, sweep, curves


def _choose(run: Run, report: dict[str, Any] | None) -> str:
    section = dig(report, "choose")
    if not isinstance(section, dict):
        stage = run.stage("choose") if report is None else None
        if stage is None:
            return ""
        section = {**stage[1].summary, "cost": None}
    return choose_html(harmless(section))


def _sweep(run: Run, report: dict[str, Any] | None) -> str:
    section = dig(report, "sweep")
    if not isinstance(section, dict):
        return ""
    stage = run.stage("sweep")
    given = [harmless(section), harmless(stage[1].summary) if stage is not None else None]
    return _drawn("sweep", given, lambda: sweep_html(*given))


def _curves(run: Run, found: Standing) -> str:
    """Of teachers, specialists and students; roles by colour."""
    drawn: dict[str, list[dict[str, Any]]] = {}
    for stage in ("teachers", "specialists", "student"):
        for name, history in histories(run, stage).items():
            role, _, rest = name.partition("/")
            role = role if role in COLOURS or role == "specialist" else "other"
            entries = [
                {key: value for key in CURVES if (value := number(entry.get(key))) is not None}
                for entry in plain(history)
            ]
            entries = [entry for entry in entries if "epoch" in entry]
            if entries and len(drawn) < MOST_CURVES:
                drawn[f"{role}/{rest}"] = entries
    if not drawn:
        return ""
    return _drawn(
        "curves", drawn, lambda: titled_plot("Training of every member", training_curves(drawn), "wide")
    )


def _drawn(what: str, given: Any, make: Callable[[], str]) -> str:
    """Drawn once for the same numbers: a page that refreshes asks again and again."""
    key = fingerprint(what, given)
    with _drawing:
        if key not in _plots:
            if len(_plots) >= MOST_PLOTS:
                _plots.clear()
            _plots[key] = make()
        return _plots[key]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
