"""The first page: the runs, how far they are, and a leaderboard of those with the same test rows."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

from ensemble_kd.compare import Finished, compared
from ensemble_kd.errors import EnsembleKDError
from ensemble_kd.report.pieces import table
from ensemble_kd.safe_files import problem_inside
from ensemble_kd.targets import target_of
from ensemble_kd.ui.folders import FINGERPRINT, Run
from ensemble_kd.ui.pieces import dig, esc, guarded, number, page, url, when
from ensemble_kd.ui.progress import Standing, standing, text_of

SCORES = (("distilled", "distilled"), ("hard", "hard labels"), ("ensemble", "ensemble"))
MOST_COMPARED = 50
REFRESH = 4
"""Seconds."""


def listing(runs: dict[str, Run], where: str) -> str:
    """The page that lists all runs, as HTML."""
    found = {name: standing(run) for name, run in runs.items()}
    order = sorted(found, key=lambda name: (found[name].state != "running", -found[name].when, name))
    head = ["run", "state", "verdict", *(f"{title}, %" for _, title in SCORES), "when"]
    rows = [("", _row(name, found[name])) for name in order]
    main = f"<p class=quiet>{esc(where)} · {len(runs)} runs</p>" + table(head, rows, "runs")
    main += "".join(
        guarded(lambda group=group: leaderboard(group), "The leaderboard")  # type: ignore[misc]
        for group in groups({name: runs[name] for name in order if found[name].state == "finished"})
    )
    return page("Runs", main, refresh=REFRESH)


def _row(name: str, found: Standing) -> list[str]:
    state = f'<span class="state {found.state}">{found.state}</span> '
    state += f"<span class=quiet>{esc(text_of(found))}</span>"
    if found.state == "running":
        state += f'<progress value="{len(found.done)}" max="{max(len(found.planned), 1)}"></progress>'
    state += "".join(f"<br><span class=wrong>{esc(problem, 200)}</span>" for problem in found.problems[:3])
    outcome = dig(found.report, "verdict", "outcome")
    verdict = esc(outcome, 40) if isinstance(outcome, str) else "–"
    headline = target_of(dig(found.report, "target")).measures.headline
    scores = [_score(dig(found.report, "summary", role, headline)) for role, _ in SCORES]
    return [
        f'<a href="{url("/run", name=name)}">{esc(name, 200)}</a>',
        state,
        verdict,
        *scores,
        when(found.when),
    ]


def _score(entry: Any) -> str:
    mean, error = number(dig(entry, "mean")), number(dig(entry, "standard_error"))
    if mean is None:
        return "–"
    return f"{100 * mean:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


# ------------------------------------------------------------------------------------------ leaderboard


def groups(runs: dict[str, Run]) -> list[list[Run]]:
    """Finished runs that were judged by the same test rows, where there are at least two."""
    found: dict[Any, list[Run]] = defaultdict(list)
    for run in runs.values():
        try:
            report = run.report()
            if report is None or not sound(run, report):
                continue
            rows = Finished(run.folder, report).rows
            if rows:
                found[frozenset(rows.items()), target_of(report.get("target")).measures.headline].append(run)
        except (EnsembleKDError, OSError, KeyError, TypeError, AttributeError, ValueError):
            continue
    return [group[:MOST_COMPARED] for group in found.values() if len(group) > 1]


def sound(run: Run, report: dict[str, Any]) -> bool:
    """Whether all that a comparison reads lies in the run folder: names are fingerprints, nothing a link."""
    data, student = (dig(report, "lineage", name) for name in ("data", "student"))
    if not all(isinstance(name, str) and FINGERPRINT.fullmatch(name) for name in (data, student)):
        return False
    names = [each.get("fingerprint") for each in run.manifest("student", student).summary["members"]]
    if not all(isinstance(name, str) and FINGERPRINT.fullmatch(name) for name in names):
        return False
    read = [f"student/members/{name}/predictions.safetensors" for name in names]
    read += [f"data/{data}/{path.name}" for path in (run.folder / "data" / data).glob("test-*")]
    read += [f"data/{data}/manifest.json", f"student/{student}/manifest.json"]
    return all(problem_inside(run.folder, name) in (None, "missing") for name in read)


_boards: dict[Any, list[dict[str, Any]] | str] = {}
_lock = threading.Lock()


def leaderboard(group: list[Run]) -> str:
    """A table, the best first; comparing is done once for as long as the reports stay the same."""
    key = tuple((run.folder, (run.folder / "report.json").stat().st_mtime_ns) for run in group)
    with _lock:  # the second of two that ask at once finds it done
        if key not in _boards:
            if len(_boards) > 64:
                _boards.clear()
            try:
                _boards[key] = compared([str(run.folder) for run in group])
            except EnsembleKDError as error:
                _boards[key] = str(error)
        rows = _boards[key]
    if isinstance(rows, str):
        return f"<h2>Leaderboard</h2><p class=wrong>{esc(rows, 400)}</p>"
    names = {str(run.folder): run.name for run in group}
    headline = list(rows[0])[2]
    lines = []
    for row in rows:
        spread = row["standard_error"]
        value = f"{100 * row[headline]:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
        behind = ""
        if row is not rows[0]:
            known = row["behind"] is not None
            behind = f"{row['behind']:.2f} ({row['low']:+.2f} to {row['high']:+.2f})" if known else "–"
        name = names.get(row["run"], row["run"])
        lines.append(
            (
                "",
                [
                    f'<a href="{url("/run", name=name)}">{esc(name, 200)}</a>',
                    f"{esc(row['student'], 40)} x {esc(row['seeds'], 20)}",
                    value,
                    behind,
                    f"{row['parameters']:,}" if row["parameters"] else "–",
                    f"{row['latency_ms_batch_1']:.3f}" if row["latency_ms_batch_1"] else "–",
                ],
            )
        )
    head = ["run", "student", f"{headline}, %", "behind the first, 95%", "parameters", "ms"]
    rows_text = f"{rows[0]['test_rows']:,} test rows"
    return f"<h2>Leaderboard on the same {rows_text}</h2>" + table(head, lines, "board")
