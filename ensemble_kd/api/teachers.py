"""Teachers in this process: each is asked once about all rows, and from then on its predictions teach.

So nothing has to be pickled, and a run that is resumed does not need them again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ensemble_kd.api.arrays import as_array, check_finite
from ensemble_kd.api.estimators import as_estimator, is_estimator
from ensemble_kd.api.orders import Task, assumed_order, said_order, some
from ensemble_kd.api.own_models import callable_name
from ensemble_kd.api.problems import InputValueError
from ensemble_kd.api.tables import SPLITS, Rows
from ensemble_kd.config import ColumnsConfig
from ensemble_kd.data.answers import distributions, what_they_are
from ensemble_kd.data.images import Pictures
from ensemble_kd.data.predictions import SMALLEST
from ensemble_kd.data.preprocess import InputReader
from ensemble_kd.errors import ConfigError
from ensemble_kd.model_folder import CONFIG

BATCH = 1024
"""Rows of one call."""
NETWORKS = ("mlp", "cnn", "resnet", "wide_shallow", "bag", "text_cnn", "bilstm", "transformer")
TAKEN = (
    "a torch module, a fitted scikit-learn classifier, a function of a batch, an array of predictions (N, "
    "C), "
    "a transformers model, its folder or hub name, or the name of a network to train "
    f"({', '.join(NETWORKS)})"
)
Follow = Callable[[int, str], None]
"""Rows of a teacher that are done, and what it is called."""


@dataclass(frozen=True)
class Teacher:
    """One that can be asked."""

    where: str
    """What messages call it: `teachers[0] (RandomForestClassifier)`."""
    ask: Callable[[Rows, slice], Any] | None
    """Outputs (B, C) for some rows; None of predictions that are there already."""
    order: list[int] | None
    """The data's class of each output; None where they stand in the data's order."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Predictions by split."""


def settings_of(teachers: Any) -> dict[str, Any] | None:
    """The block `teachers` where these are trained by the run; None where they are asked in this process.

    None, a number of members, a dict of settings, names of networks (or dicts with a `name`) and classes of
    torch modules are trained.
    Raises ValueError for a list that mixes both.
    """
    if teachers is None:
        return {}
    if isinstance(teachers, bool):
        raise InputValueError(f"teachers: {teachers}; give {TAKEN}")
    if isinstance(teachers, int):
        return {"num_members": teachers}
    if isinstance(teachers, Mapping) and not _by_split(teachers):
        return {"num_members": 1, "model": dict(teachers)} if "name" in teachers else dict(teachers)
    models = [_network(each, i) for i, each in enumerate(as_list(teachers))]
    if not any(models):
        return None
    if not all(models):
        at = models.index(None)
        raise InputValueError(
            f"teachers[{at}]: {type(as_list(teachers)[at]).__name__} beside networks to train; a run either "
            "trains "
            "its teachers or is given them: train these first with distill(...) and give the folders of "
            "models, "
            "or leave one kind out"
        )
    return {"num_members": len(models), "overrides": [{"model": model} for model in models]}


def _network(teacher: Any, index: int) -> dict[str, Any] | None:
    if isinstance(teacher, str) and teacher in NETWORKS:
        return {"name": teacher}
    if isinstance(teacher, type) and _makes_modules(teacher):
        return {"name": "custom", "callable": callable_name(teacher, f"teachers[{index}]")}
    return dict(teacher) if isinstance(teacher, Mapping) and "name" in teacher else None


def _makes_modules(kind: type) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and issubclass(kind, torch.nn.Module)


def _by_split(teacher: Any) -> bool:
    return isinstance(teacher, Mapping) and "train" in teacher and set(teacher) <= set(SPLITS)


def as_list(teachers: Any) -> list[Any]:
    """One teacher or several as a list. An array (M, N, C) is M of them."""
    if isinstance(teachers, list):
        return teachers
    if isinstance(teachers, tuple) and not _is_pair(teachers):
        return list(teachers)
    if getattr(teachers, "ndim", None) == 3 and hasattr(teachers, "__array__"):
        return list(teachers)
    return [teachers]


def answers_of(
    teachers: Any, classes: Any, splits: dict[str, Rows], task: Task, follow: Follow = lambda rows, name: None
) -> list[dict[str, np.ndarray]]:
    """Of each teacher its logits (N, C) float32 by split, in the order of the data's classes.

    Raises ValueError for what cannot be asked, classes in an unknown order, and answers that do not fit.
    """
    listed = as_list(teachers)
    if not listed:
        raise InputValueError(f"teachers: an empty list; give {TAKEN}")
    made = [_teacher(each, i, len(listed), classes, task) for i, each in enumerate(listed)]
    return [_answers(teacher, splits, task, follow) for teacher in made]


def _teacher(teacher: Any, index: int, count: int, classes: Any, task: Task) -> Teacher:
    kind = teacher if isinstance(teacher, str) else type(teacher).__name__
    where = f"teachers[{index}] ({getattr(teacher, '__name__', kind)})"
    if isinstance(teacher, type):
        raise InputValueError(f"{where}: a class; give an instance of it, trained")
    order = said_order(classes, index, count, task)
    if _by_split(teacher) or _is_array(teacher):
        if order is None:
            assumed_order(where, task)
        return Teacher(where, None, order, teacher if _by_split(teacher) else {"train": teacher})
    if isinstance(teacher, str | Path) and (folder := _model_folder(Path(teacher))) is not None:
        from ensemble_kd.api.model import load

        teacher = load(folder)
    if is_estimator(teacher):
        ask, own = as_estimator(teacher, where, task, order)
        return Teacher(where, ask, own if order is None else order)
    inputs = _inputs(task, where)
    if isinstance(teacher, str | Path):
        return Teacher(where, _classifier(str(teacher), where, task, order, inputs), order)
    if (parts := _transformers_parts(teacher, where)) is not None:
        return Teacher(where, _saved(parts, where, task, order, inputs), order)
    if order is None and callable(teacher):
        assumed_order(where, task)
    if _is_module(teacher):
        return Teacher(where, lambda rows, part: _run_module(teacher, inputs(rows, part)), order)
    if callable(teacher):
        return Teacher(where, lambda rows, part: teacher(inputs(rows, part)), order)
    raise InputValueError(f"{where}: cannot be asked; give {TAKEN}")


# ------------------------------------------------------------------------------------------ what it sees


def _inputs(task: Task, where: str) -> Callable[[Rows, slice], Any]:
    """X as it was given; of tables numbers (B, F) float32, images (B, H, W, C) uint8, texts or pairs."""
    columns = ColumnsConfig(input=task.inputs if len(task.inputs) > 1 else task.inputs[0], label=task.label)
    shape = list(task.shape) if task.shape is not None else None
    reader = InputReader(task.kind, columns, shape, Pictures(task.resize))

    def read(rows: Rows, part: slice) -> Any:
        if rows.inputs is not None:
            return rows.inputs[part]
        values, bad = reader(rows.table.slice(part.start, part.stop - part.start))
        if bad:
            row, said = next(iter(bad.items()))
            raise InputValueError(f"{where}: row {part.start + row} cannot be asked about: {said}")
        return values

    return read


def _is_module(teacher: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(teacher, torch.nn.Module)


def _run_module(module: Any, inputs: Any) -> Any:
    """Outputs of a torch module on its own device, in evaluation mode; its mode is as before afterwards."""
    import torch

    if isinstance(inputs, np.ndarray):
        kind = np.float32 if inputs.dtype.kind == "f" or inputs.ndim == 2 else inputs.dtype
        inputs = torch.from_numpy(np.ascontiguousarray(inputs, kind))
        if (first := next(module.parameters(), None)) is not None:
            inputs = inputs.to(first.device)
    before = {part: part.training for part in module.modules()}
    try:
        with torch.inference_mode():
            found = module.eval()(inputs)
    finally:
        for part, mode in before.items():
            part.training = mode
    return getattr(found, "logits", found)


# ----------------------------------------------------------------------------------------- transformers


def _model_folder(path: Path) -> Path | None:
    """A model folder of ours, or that of a run folder."""
    for folder in (path / "model", path):
        if (folder / CONFIG).is_file() and (folder / "weights.safetensors").is_file():
            return folder
    return None


def _is_pair(teacher: Any) -> bool:
    return len(teacher) == 2 and _is_module(teacher[0]) and hasattr(teacher[1], "save_pretrained")


def _transformers_parts(teacher: Any, where: str) -> list[Any] | None:
    """Model and tokenizer (or image processor) of a pair, a pipeline or a model; None of anything else."""
    if isinstance(teacher, tuple) and _is_pair(teacher):
        return list(teacher)
    other = getattr(teacher, "tokenizer", None) or getattr(teacher, "image_processor", None)
    if _is_module(getattr(teacher, "model", None)) and other is not None and not _is_module(teacher):
        return [teacher.model, other]
    if _is_module(teacher) and hasattr(teacher, "save_pretrained") and hasattr(teacher.config, "id2label"):
        raise InputValueError(
            f"{where}: a transformers model without what makes its inputs; give (model, tokenizer), or "
            "(model, image_processor), or a pipeline"
        )
    return None


def _saved(
    parts: list[Any], where: str, task: Task, order: list[int] | None, inputs: Callable[[Rows, slice], Any]
) -> Callable[[Rows, slice], Any]:
    """A model in memory by way of a folder, which is read as any other with all its checks."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ensemble-kd-teacher-") as name:
        for part in parts:
            part.save_pretrained(name)
        return _classifier(name, where, task, order, inputs)


def _classifier(
    source: str, where: str, task: Task, order: list[int] | None, inputs: Callable[[Rows, slice], Any]
) -> Callable[[Rows, slice], Any]:
    from ensemble_kd.models.classifier import load_classifier
    from ensemble_kd.models.foreign import UNNAMED, class_names
    from ensemble_kd.models.transformer_config import pretrained_config
    from ensemble_kd.pretrained import resolve_source

    info = {
        "kind": task.kind,
        "class_names": list(task.classes),
        "num_classes": task.outputs,
        "input_shape": list(task.shape or ()),
        "target": None if task.classes else {"mean": 0.0, "std": 1.0},
    }
    if task.kind == "numeric":
        raise InputValueError(
            f"{where}: a classifier of texts or images by its name, and the inputs are numbers; give {TAKEN}"
        )
    try:
        answer = load_classifier(source, info, where, named=order is None)
        names = class_names(pretrained_config(resolve_source(source, where)))
    except ConfigError as error:
        raise InputValueError(error.problems) from None
    if order is None and all(UNNAMED.fullmatch(name) for name in names):
        assumed_order(where, task)
    return lambda rows, part: answer(inputs(rows, part))


# -------------------------------------------------------------------------------------------- its answers


def _is_array(teacher: Any) -> bool:
    if is_estimator(teacher) or _is_module(teacher) or callable(teacher):
        return False
    return hasattr(teacher, "__array__") or isinstance(teacher, pa.Table)


def _answers(teacher: Teacher, splits: dict[str, Rows], task: Task, follow: Follow) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for split, rows in splits.items():
        where = f"{teacher.where}, {split}"
        if teacher.ask is not None:
            numbers = _asked(teacher, rows, where, task, follow, sum(map(len, found.values())))
        elif split in teacher.given:
            numbers = _numbers(teacher.given[split], where, len(rows), task)
        else:
            raise InputValueError(
                f"{teacher.where}: no predictions for the rows of {split}; give a dict by split, "
                "{'train': ..., '" + split + "': ...}"
            )
        check_finite(numbers, where)
        found[split] = numbers
    logits = _as_logits(np.concatenate(list(found.values())), teacher.where) if task.classes else None
    begin = 0
    for split, numbers in found.items():
        if logits is not None:
            numbers = logits[begin : begin + len(numbers)]
            begin += len(numbers)
        if teacher.order is not None:
            numbers = numbers[:, np.argsort(teacher.order)]
        found[split] = np.ascontiguousarray(numbers, np.float32)
    return found


def _asked(teacher: Teacher, rows: Rows, where: str, task: Task, follow: Follow, before: int) -> np.ndarray:
    parts = []
    assert teacher.ask is not None
    for begin in range(0, len(rows), BATCH):
        part = slice(begin, min(begin + BATCH, len(rows)))
        try:
            answer = teacher.ask(rows, part)
        except InputValueError:
            raise
        except Exception as error:  # the user's code may raise anything
            said = str(error).strip() or "no message"
            raise InputValueError(
                f"{where}: raised {type(error).__name__} on rows {part.start} to {part.stop - 1}: {said}; "
                f"{_called_with(rows, task)}, or wrap it in a function that makes its own inputs"
            ) from error
        parts.append(_numbers(answer, where, part.stop - part.start, task))
        follow(before + part.stop, teacher.where)
    return np.concatenate(parts)


def _called_with(rows: Rows, task: Task) -> str:
    if rows.inputs is not None:
        return "it is called with rows of X as they were given"
    return (
        f"it is called with the {len(task.inputs)} input column{'s' * (len(task.inputs) > 1)} "
        f"{some(task.inputs)} ({task.kind}); say which it takes, in its order: input=[...]"
    )


def _numbers(answer: Any, where: str, rows: int, task: Task) -> np.ndarray:
    """(N, C) float32."""
    if isinstance(answer, pa.Table) or hasattr(answer, "iloc"):
        answer = answer.to_pandas().to_numpy() if isinstance(answer, pa.Table) else answer.to_numpy()
    numbers = as_array(answer, where)
    if numbers.dtype.kind not in "fiub":
        raise InputValueError(
            f"{where}: {numbers.dtype} is no prediction; give (N, {task.outputs}) logits or probabilities, "
            "as of "
            "predict_proba"
        )
    if numbers.ndim == 1 and not task.classes:
        numbers = numbers[:, None]
    wanted = (rows, task.outputs)
    if numbers.shape != wanted:
        what = "one number" if task.outputs == 1 else f"one number for each of {some(task.labels)}"
        what = "one number per class" if task.classes else what
        hint = "; of hard labels alone a student learns no more than from labels" if numbers.ndim == 1 else ""
        raise InputValueError(
            f"{where}: predictions of shape {numbers.shape}, expected {wanted}: one row for each of the "
            "rows, "
            f"{what}{hint}"
        )
    return numbers.astype(np.float32)


def _as_logits(numbers: np.ndarray, where: str) -> np.ndarray:
    """Logits of the same distributions: probabilities as their logarithms."""
    kind, _ = what_they_are(numbers)
    if kind == "percentages":
        raise InputValueError(f"{where}: percentages (rows add up to 100); divide them by 100")
    if kind != "probabilities":
        return numbers
    off = ~distributions(numbers)
    if off.any():
        row = int(np.argmax(off))
        raise InputValueError(
            f"{where}: rows add up to 1 as probabilities do, but {int(off.sum()):,} of {len(off):,} do not "
            "(row "
            f"{row}: {numbers[row].sum():.4f}); give probabilities or logits throughout"
        )
    return np.log(np.maximum(numbers, SMALLEST, dtype=np.float32))
