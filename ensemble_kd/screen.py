"""Lines and progress bars of a run: on a terminal, in a notebook, and plain lines elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Screen:
    """A progress bar for long work on a terminal and in notebooks, plain lines elsewhere."""

    def __init__(self, rich: Rich) -> None:
        self.rich = rich
        # A notebook's bars are widgets; without that package rich would warn at each of them.
        widgets = rich.is_jupyter and find_spec("ipywidgets") is not None
        self.has_bars = rich.is_terminal or widgets
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=rich,
            transient=True,
        )
        self.tasks: dict[str, TaskID] = {}

    def line(self, text: str) -> None:
        self.rich.print(escape(text))

    def warning(self, text: str) -> None:
        self.rich.print(f"[yellow]warning:[/] {escape(text)}")

    def progress(self, task: str, done: float, total: float, note: str) -> None:
        if not self.has_bars:
            return
        if total == 0:
            if task in self.tasks:
                self.bar.remove_task(self.tasks.pop(task))
            if not self.tasks:
                self.bar.stop()
            return
        if task not in self.tasks:
            self.bar.start()
            self.tasks[task] = self.bar.add_task(task, total=total, note=note)
        self.bar.update(self.tasks[task], completed=done, total=total, note=escape(note))
