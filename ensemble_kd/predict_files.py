"""Predict many files at once: Ray Data hands them to actors, each of which holds the model.

Each input file gets a file of predictions, there whole or not at all; what a killed call finished is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ensemble_kd.config import ComputeConfig
from ensemble_kd.data.folders import open_pictures
from ensemble_kd.errors import InputError
from ensemble_kd.predict import input_files, load_predictor, predict_file, wanted_columns
from ensemble_kd.runtime import Runtime


@dataclass(frozen=True)
class Options:
    """As in `predict_file`."""

    batch_size: int = 1024
    form: str = "auto"
    on_bad_row: str = "skip"
    truncate: bool = False
    strict: bool = False
    suffix: str = ".parquet"
    trust: tuple[str, ...] = ()


def predict_files(
    model: Path,
    source: str,
    output: Path,
    workers: int,
    options: Options,
    *,
    address: str | None = None,
    done: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Predict every file behind `source` into the folder `output`; returns what is wrong with bad rows.

    Rows are numbered within their file where there is no id column. On a cluster every node must see model,
    source and output under the same paths. Raises InputError as `predict_file`, before Ray starts for what
    can be told from columns and names.
    """
    predictor = load_predictor(model, options.form, trust=options.trust)
    if predictor.info.kind == "image" and open_pictures(source, predictor.columns[0]) is not None:
        raise InputError("--workers: INPUT is a folder of pictures, which one process reads; leave it out")
    pieces = input_files(source, predictor, done)
    for piece in pieces:
        wanted_columns(piece, predictor, options.strict, done)
    targets = [output.absolute() / _target(piece.name, options.suffix) for piece in pieces]
    if len(set(targets)) < len(targets):
        raise InputError(f"INPUT: files of {source} differ in their ending only; give one kind at a time")
    todo = [
        {"source": piece.origin, "target": str(target)}
        for piece, target in zip(pieces, targets, strict=True)
        if not target.exists()
    ]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    if len(todo) < len(targets):
        done(f"{len(targets) - len(todo)} of {len(targets)} files are there already")
    if not todo:
        return []
    with Runtime(ComputeConfig(), address) as runtime:
        runtime.start()
        return _run(model, todo, workers, options, done)


def _target(name: str, suffix: str) -> str:
    path = PurePosixPath(name)
    while path.suffix:
        path = path.with_suffix("")
    return f"{path}{suffix}"


def _run(
    model: Path, todo: list[dict[str, str]], workers: int, options: Options, done: Callable[[str], None]
) -> list[str]:
    import ray.data

    problems: list[str] = []
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        _Actor,
        fn_constructor_kwargs={"model": str(model.absolute()), "options": asdict(options)},
        concurrency=(1, min(workers, len(todo))),
        num_cpus=1,
    )
    errors: list[str] = []
    for row in dataset.iter_rows():
        name = PurePosixPath(row["source"]).name
        problems += [f"{name}: {problem}" for problem in row["problems"]]
        errors += [f"{name}: {line}" for line in row["errors"]]
        done(f"{name}: {row['rows']:,} bad rows" if row["rows"] else f"{name}: done")
    if errors:
        raise InputError(errors)
    return problems


class _Actor:
    """Holds nothing but where the model lies: loading it takes a fraction of a file's time."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.model, self.options = Path(model), Options(**options)

    def __call__(self, item: dict[str, str]) -> dict[str, Any]:
        problems: list[str] = []
        errors: list[str] = []
        options = self.options
        try:
            problems = predict_file(
                self.model,
                item["source"],
                Path(item["target"]),
                options.batch_size,
                print,
                form=options.form,
                on_bad_row=options.on_bad_row,
                truncate=options.truncate,
                trust=options.trust,
            )
        except InputError as error:  # one bad file never costs the others
            errors = error.problems
        return {
            "source": item["source"],
            "rows": len(problems),
            "problems": problems[:100],
            "errors": errors,
        }
