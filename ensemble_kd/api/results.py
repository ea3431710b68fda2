"""What a run folder holds, as Python objects: report, leaderboard, figures, models."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ensemble_kd.api.problems import InputValueError
from ensemble_kd.artifacts import read_manifest
from ensemble_kd.report.build import ROLES

if TYPE_CHECKING:
    from torch import nn

    from ensemble_kd.api.model import Model

REPORT, PAGE, MODEL, RESOLVED = "report.json", "report.html", "model", "resolved.json"
SVG = re.compile(r"<svg [^>]*>.*?</svg>", re.DOTALL)
TITLE = re.compile(r'aria-label="([^"]*)"')
SYSTEM = ("name", "role", "seed")
LATER = ("parameters", "bytes", "latency_ms_batch_1", "latency_ms_batch_32")
"""Columns of the leaderboard behind the metrics."""


@dataclass(frozen=True)
class Figure:
    """A plot of the report, which a notebook shows."""

    title: str
    svg: str

    def _repr_html_(self) -> str:
        return f'<div style="background:white;max-width:60rem">{self.svg}</div>'

    def save(self, path: str | Path) -> Path:
        """Write it as an SVG file."""
        text = self.svg
        if "xmlns=" not in text.split(">", 1)[0]:
            text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        Path(path).write_text(text, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        return f"Figure({self.title!r})"


class Results:
    """A run folder, to be looked into."""

    def __init__(self, folder: str | Path) -> None:
        """Raises ValueError where there is no run."""
        self.folder = Path(folder).expanduser().absolute()
        if not (self.folder / RESOLVED).is_file():
            raise InputValueError(
                f"{self.folder}: no run there; give the folder of one, for example runs/digits"
            )

    @property
    def name(self) -> str:
        return str(self.settings["name"])

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of the last run in this folder, secrets masked."""
        found: dict[str, Any] = json.loads((self.folder / RESOLVED).read_text(encoding="utf-8"))
        return found

    @cached_property
    def report(self) -> dict[str, Any]:
        """All figures (report.json). Raises ValueError where the run has not come that far."""
        return dict(json.loads(self._file(REPORT).read_text(encoding="utf-8")))

    @property
    def verdict(self) -> str:
        """Whether distillation helped, in words."""
        return str(self.report["verdict"]["text"])

    @property
    def leaderboard(self) -> pd.DataFrame:
        """A row a system (teachers, ensemble, students), the best first, measured on the test rows."""
        systems = self.report["systems"]
        metrics = [
            key
            for key, value in systems[0].items()
            if isinstance(value, int | float) and key not in (*SYSTEM, *LATER, "count", "validation_nll")
        ]
        rows = pd.DataFrame([{key: row.get(key) for key in (*SYSTEM, *metrics, *LATER)} for row in systems])
        for name in ("seed", "parameters", "bytes"):
            rows[name] = rows[name].astype("Int64")
        shipped = rows["name"] == self.report["shipped"]
        rows.insert(3, "shipped", shipped)
        return rows.sort_values(metrics[0], ascending=False, kind="stable").reset_index(drop=True)

    @property
    def figures(self) -> dict[str, Figure]:
        """The report's plots by title."""
        page = self._file(PAGE).read_text(encoding="utf-8")
        found: dict[str, Figure] = {}
        for svg in SVG.findall(page):
            named = TITLE.search(svg)
            title = html.unescape(named[1]) if named else f"Figure {len(found) + 1}"
            found[title] = Figure(title, svg)
        return found

    @cached_property
    def model(self) -> Model:
        """The student, ready to predict: see `ensemble_kd.load`."""
        from ensemble_kd.api.model import load

        self._file(REPORT)
        return load(self.folder / MODEL)

    @property
    def student(self) -> nn.Module:
        """The student as a torch module; its outputs have `.logits` (B, C)."""
        return self.model.to_torch()

    @property
    def teachers(self) -> dict[str, nn.Module]:
        """The trained teachers as torch modules by name; empty where they were given as predictions."""
        from ensemble_kd.stages.members import members_folder
        from ensemble_kd.train.initial import load_network

        data = self.folder / "data" / self.report["lineage"]["data"]
        info = json.loads((data / "info.json").read_text(encoding="utf-8"))
        found: dict[str, nn.Module] = {}
        for name, member in self.report["lineage"]["teachers"].items():
            folder = members_folder(self.folder, "teachers") / member
            manifest = read_manifest(folder) if folder.is_dir() else None
            if manifest is not None:
                found[name] = load_network(manifest.config, info, folder).eval()
        return found

    def _file(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise InputValueError(f"{self.folder}: no {name} yet; the run has not ended, go on with resume()")
        return path

    def __repr__(self) -> str:
        shown = self.verdict if (self.folder / REPORT).is_file() else "not finished; resume() goes on"
        return f"Run({str(self.folder)!r}): {shown}"

    def _repr_html_(self) -> str:
        """Verdict, means by role, and the whole report in a frame, whose style stays inside."""
        if not (self.folder / REPORT).is_file():
            return f"<p>{html.escape(repr(self))}</p>"
        board = self.leaderboard
        metric = board.columns[4]
        by_role = board.groupby("role")[[metric, "parameters"]].agg(
            {metric: ["mean", "count"], "parameters": "max"}
        )
        rows = "".join(
            f"<tr><td>{html.escape(ROLES[role])}</td><td>{by_role.loc[role, (metric, 'mean')]:.4f}</td>"
            f"<td>{by_role.loc[role, (metric, 'count')]}</td></tr>"
            for role in ROLES
            if role in by_role.index
        )
        page = html.escape(self._file(PAGE).read_text(encoding="utf-8"), quote=True)
        return (
            f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.verdict)}</p>"
            f"<table><thead><tr><th></th><th>{html.escape(metric)}</th><th>runs</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><details><summary>Report</summary>"
            f'<iframe srcdoc="{page}" sandbox="" style="width:100%;height:40rem;border:0"></iframe></details>'
        )
