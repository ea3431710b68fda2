"""`distill`: rows and teachers in this process, one student in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ensemble_kd.api.frames import read_file, read_splits, write_answers, write_rows
from ensemble_kd.api.orders import Task
from ensemble_kd.api.problems import InputValueError, as_value_errors
from ensemble_kd.api.run import Run, Voice, execute
from ensemble_kd.api.settings import assignments, check_names
from ensemble_kd.api.students import student_settings
from ensemble_kd.api.tables import SPLITS, Rows, check_classes, check_label, rows_of, splits_of
from ensemble_kd.api.teachers import answers_of, as_list, settings_of
from ensemble_kd.config import apply_override
from ensemble_kd.config.base import RUN_NAME
from ensemble_kd.guess.choice import Choice, Request
from ensemble_kd.guess.command import Asked, make, request_of
from ensemble_kd.guess.inspect import run_name
from ensemble_kd.guess.pictures import layout
from ensemble_kd.guess.settings import choose
from ensemble_kd.mirror import is_remote

NAME = "distill"
"""Of a run on rows that have no file's name."""
HELD_OUT = (
    "{splits} rows are held out of train: if the teachers were fitted on these, they know their labels, and "
    "the "
    "ensemble's figures and the share that the student recovers come out wrong; give rows that no teacher "
    "has seen ({arguments})"
)


def distill(
    train: Any,
    validation: Any = None,
    *,
    test: Any = None,
    unlabelled: Any = None,
    input: str | Sequence[str] | None = None,
    label: str | Sequence[str] | None = None,
    teachers: Any = None,
    classes: Any = None,
    student: Any = None,
    source: str | None = None,
    budget: str | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Distil teachers into one small student, on rows that are in memory or in files.

    train, validation, test: a pandas, polars or pyarrow table, a datasets.Dataset, a pair (X, y), a torch
        Dataset of pairs, or a path. X is (N, F) numbers, (N, H, W) or (N, H, W, C) images of 0 to 255, N
        texts,
        or a table. train may also be a dict of splits. Rows of train whose label is missing (None, NaN) are
        unlabelled ones. Without validation or test rows a share of train is held out, the same each time.
    unlabelled: rows without labels, of the same kind; the teachers answer them too.
    input, label: columns of a table; found from their names and values where they are not given. Several
        columns of labels, as in label=["price", "rent"], are numbers that one student predicts together.
    teachers: one or a list. Trained by the run: names of networks ("mlp"), a number of members, or a dict of
        settings; by default an ensemble that suits the data. Given: torch modules, fitted scikit-learn
        classifiers, functions of a batch, transformers models with their tokenizers, folders, hub names,
        arrays
        of predictions (N, C) or dicts of these by split. Given ones are asked once, here, about all rows.
    classes: the labels in the order of the teachers' outputs, where these are texts and a teacher has no
        `classes_`; a list for all, or a list or dict {number: list} of lists.
    student: the name of a network, a dict of a model ({"name": "mlp", "hidden": [32]}) or of the block
        `student`, "module:callable", or a torch module's class from a file.
    source: pretrained weights for texts (a folder, hub name or package:...); "none" for n-grams.
    budget: how long the run may take, as in "30m" or "2h".
    output: the run folder; by default runs/NAME. The same call goes on with what is there.
    progress: whether to print what is found and done.
    overrides: settings of the configuration, as in student__temperature=2 or seed=1.

    Returns the finished run. Raises ValueError, with all problems found, before anything is trained, and
    EnsembleKDError for what goes wrong later.
    """
    voice = Voice(progress)
    with as_value_errors():
        check_names(overrides, distill)
        wanted: list[str] = []
        block = settings_of(teachers)
        given = block is None
        if block:
            wanted += assignments({"teachers": block})
        if student is not None:
            wanted += assignments({"student": student_settings(student)})
        wanted += assignments(overrides)
        parts = {"train": train, "validation": validation, "test": test, "unlabelled": unlabelled}
        found = _gathered(parts, given)
        folder, name = _folder(output, found, wanted)
        wanted.insert(0, f"name={name}")
        labels = [label] if isinstance(label, str) else list(label or ())
        if isinstance(found, str):
            path = found
        else:
            labels = labels or found["train"].labels
            path = str(_written(folder, found, labels, wanted))
        if len(labels) > 1:
            wanted += assignments({"data": {"columns": {"label": labels}}})
        names = (input,) if isinstance(input, str) else tuple(input or ())
        asked = (path, labels[0] if len(labels) == 1 else None, names, budget, source)
        if given:
            assert not isinstance(found, str)
            choice = choose(_request(Asked(*asked, tuple(wanted))))
            wanted = [*_taught(teachers, classes, choice, found, folder, voice), *wanted]
        made = make(
            Asked(*asked, tuple(wanted)), voice.line, voice.note, (lambda _: folder) if budget else None
        )
        return execute(made.config, folder, voice, recipe=made.text)


# ------------------------------------------------------------------------------------------------- rows


def _gathered(parts: dict[str, Any], given: bool) -> str | dict[str, Rows]:
    """All splits as tables; or the path, where the run can read the files itself."""
    train, others = parts["train"], [name for name in SPLITS[1:] if parts[name] is not None]
    splits = splits_of(train)
    if splits is not None:
        if twice := [name for name in others if name in splits]:
            raise InputValueError(
                f"{twice[0]}: given, and train has a split of that name; leave one of them out"
            )
        parts = {**parts, **splits}
    found: dict[str, Rows] = {}
    if isinstance(train, str | Path):
        if not others and not given:
            return str(train)
        found = read_splits(str(train))
        if twice := [name for name in others if name in found]:
            raise InputValueError(f"{twice[0]}: given, and {train} has such a split; leave one of them out")
    for name in SPLITS:
        if parts[name] is None or name in found:
            continue
        data = parts[name]
        if isinstance(data, str | Path):
            found[name] = read_file(str(data), name)
        else:
            found[name] = rows_of(data, name, labelled=name != "unlabelled")
    _alike(found)
    return {name: found[name] for name in SPLITS if name in found}


def _alike(splits: dict[str, Rows]) -> None:
    """Raises ValueError for arrays of other shapes than train's."""
    shape, kind = _shape(splits["train"]), _kind(splits["train"])
    for name, rows in splits.items():
        if _kind(rows) != kind:
            raise InputValueError(f"{name}: {_kind(rows)}, and train is {kind}; give both as the same kind")
        if _shape(rows) != shape:
            raise InputValueError(
                f"{name}: rows of X have shape {_shape(rows)}, those of train {shape}; give the same features"
            )


def _kind(rows: Rows) -> str:
    return "a table" if rows.inputs is None else "an array"


def _shape(rows: Rows) -> tuple[int, ...] | None:
    return tuple(rows.inputs.shape[1:]) if hasattr(rows.inputs, "shape") else None


def _folder(output: str | Path | None, found: str | dict[str, Rows], wanted: list[str]) -> tuple[Path, str]:
    """The run folder and the run's name. Raises ValueError for a store, which rows cannot be written to."""
    raw: dict[str, Any] = {}
    for line in wanted:
        apply_override(raw, line)
    if output is None:
        name = str(raw.get("name") or (run_name(found) if isinstance(found, str) else NAME))
        return (Path("runs") / name).absolute(), name
    if is_remote(output):
        raise InputValueError(
            f"output: {output} is in a store; give a folder on this machine, or write the rows to files and "
            "use run(...) with output"
        )
    folder = Path(output).expanduser().absolute()
    usual = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")[:100]
    name = str(raw.get("name") or (usual if re.match(RUN_NAME, usual) else NAME))
    return folder, name


def _written(folder: Path, splits: dict[str, Rows], labels: list[str], wanted: list[str]) -> Path:
    train = splits["train"]
    for name, rows in splits.items():
        for label in labels if name != "unlabelled" else ():
            check_label(rows, label, name)
            check_classes(train, rows, label, name)
    if train.shape is not None:
        wanted.insert(0, f"data.image.shape={list(train.shape)}")
    return write_rows(folder, splits)


# --------------------------------------------------------------------------------------------- teachers


def _request(asked: Asked) -> Request:
    raw: dict[str, Any] = {}
    for line in asked.overrides:
        apply_override(raw, line)
    return request_of(asked, raw)


def _taught(
    teachers: Any, classes: Any, choice: Choice, splits: dict[str, Rows], folder: Path, voice: Voice
) -> list[str]:
    """Ask the teachers; returns the settings of a run that learns from their predictions."""
    task = _task(choice, splits["train"])
    for name, rows in splits.items():
        for label in task.labels if name != "unlabelled" else ():
            check_label(rows, label, name)
    count = len(as_list(teachers))
    total = sum(map(len, splits.values()))

    def follow(number: int, name: str) -> None:
        voice.console.progress("teachers", number, total, f"asking {name}")

    voice.line(f"asking {count} teacher{'s' if count > 1 else ''} about {total:,} rows")
    try:
        answers = answers_of(teachers, classes, splits, task, follow)
    finally:
        voice.console.progress("teachers", 0, 0, "")
    files: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for found in answers:
        taught = [found[name] for name in ("train", "unlabelled") if name in found]
        files["train"].append(write_answers(folder, taught))
        for name in ("validation", "test"):
            own = write_answers(folder, [found[name]]) if name in found else files["train"][-1]
            files[name].append(own)
    if held := [name for name in ("validation", "test") if name not in splits]:
        arguments = ", ".join(f"{name}=..." for name in held)
        voice.warning(HELD_OUT.format(splits=" and ".join(held), arguments=arguments))
    settings = {"source": "predictions", "predictions": files}
    # They were asked about the rows as they are: nothing is made up of these.
    as_they_are = {"soft_targets": {"views": 1}, "data": {"augment": {"munge": 0}}}
    return assignments({"teachers": settings, **as_they_are})


def _task(choice: Choice, train: Rows) -> Task:
    settings, inputs, label = choice.settings, choice.inputs, choice.label
    assert label is not None, "folders of pictures are refused before"
    names = [inputs.names] if isinstance(inputs.names, str) else list(inputs.names)
    name, shape = label.column.name, settings.get("data.image.shape")
    resize = settings.get("data.image.resize")
    if resize is not None:
        colour = layout(choice.facts, names[0], None).colour
        shape = [*resize, 3 if colour else 1]
    kind = train.table[name].type
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    classes = choice.rows.classes if label.target == "class" else ()
    columns = settings.get("data.columns")["label"]
    return Task(
        inputs.kind,
        names,
        name,
        tuple(classes),
        whole,
        tuple(shape) if shape is not None else None,
        resize is not None,
        tuple(columns[1:]) if isinstance(columns, list) else (),
    )
