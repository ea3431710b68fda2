"""Teachers that are the user's own: a function, or a model in MLflow, asked about every row once.

    teacher-000.transfer.parquet    id, logits (or probabilities): what the predictions of a user hold too
    teacher-000.validation.parquet, teacher-000.test.parquet

From then on the run goes as one with predictions that exist already. A file is there whole or not at all, so
that a run that was killed asks only the members that are not done.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ensemble_kd.artifacts import checksum, fingerprint, write_atomic
from ensemble_kd.config import Config, PredictionsConfig
from ensemble_kd.data.prepared import raw_rows
from ensemble_kd.data.preprocess import Preprocessor
from ensemble_kd.data.raw import Answer, as_frame, ask, load_callable
from ensemble_kd.data.records import SPLITS, DataInfo, load_labels, shard_paths
from ensemble_kd.data.tokenize import pad
from ensemble_kd.errors import ArtifactError, ConfigError
from ensemble_kd.export.mlflow_form import behind
from ensemble_kd.models.classifier import load_classifier
from ensemble_kd.models.foreign import class_problems, order_by_name
from ensemble_kd.models.package import load_package
from ensemble_kd.pretrained import source_file, source_folder
from ensemble_kd.stages.class_order import orders_of
from ensemble_kd.stages.context import Context, StagePlan
from ensemble_kd.stages.judged import Panel
from ensemble_kd.stages.mlflow_models import MLMODEL
from ensemble_kd.targets import target_in
from ensemble_kd.train.loop import predict

ENOUGH_ROWS, ENOUGH_OF_EACH = 500, 5
"""Rows, and rows of each class, after which a member is looked at while it is still asked."""
ASKED = ("callable", "transformers", "mlflow")
"""Sources of teachers that are asked about raw inputs."""


def digests(config: Config) -> dict[str, str]:
    """Fingerprint of each member by its name: of the callable's own file, or of all of a model's files.

    What the callable reads besides (other modules, weights) does not count: after a change of these run the
    teachers with --fresh. Raises ConfigError where a module is not to be found.
    """
    found = {}
    for i, entry in enumerate(config.teachers.given):
        if config.teachers.source == "callable":
            path = _module_file(entry, f"teachers.given.{i}")
            parts: list[Any] = [entry, checksum(path) if path is not None else None]
        else:
            folder = _folder_of(config, i)
            files = sorted(path for path in folder.rglob("*") if path.is_file() and _counts(path))
            parts = [[str(path.relative_to(folder)), checksum(path)] for path in files]
        found[f"teacher-{i:03d}"] = fingerprint("asked", config.teachers.source, *parts)
    return found


def _folder_of(config: Config, index: int) -> Path:
    """Where the files of a member lie. Raises ConfigError for a hub name of which none are here."""
    entry, where = config.teachers.given[index], f"teachers.given.{index}"
    if config.teachers.source == "mlflow":
        return Path(entry)
    folder = source_folder(entry, where)
    if folder is None and source_file(entry, "config.json", where) is not None:  # fetched by now
        folder = source_folder(entry, where)
    if folder is None:
        raise ConfigError(
            f"{where}: no files of {entry!r} in the cache, and the hub does not answer; give a local folder"
        )
    return folder


def _counts(path: Path) -> bool:
    return path.name != "registered_model_meta" and "__pycache__" not in path.parts


def _module_file(name: str, where: str) -> Path | None:
    """The file of a callable's module; None for a module without one."""
    module = name.split(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        load_callable(name, where)  # says what is wrong
        return None
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


def files_of(config: Config, folder: Path, info: dict[str, Any]) -> PredictionsConfig:
    """The answers as predictions that exist already."""
    names = [f"teacher-{i:03d}" for i in range(len(config.teachers.given))]
    files = {
        split: [str(folder / f"{name}.{split}.parquet") for name in names] if info["counts"][split] else []
        for split in SPLITS
    }
    return PredictionsConfig(
        train=files["transfer"],
        validation=files["validation"],
        test=files["test"],
        values=config.teachers.values,
    )


def predictions_of(
    config: Config, folder: Path, info: dict[str, Any], source: str
) -> PredictionsConfig | None:
    """Files with the teachers' outputs, of a finished stage whose summary says `source`; None of networks."""
    if source != "predictions":
        return None
    asked = config.teachers.source in ASKED
    return files_of(config, folder, info) if asked else config.teachers.predictions


# ------------------------------------------------------------------------------------------------- asking


def answer(context: Context, plan: StagePlan, data: Path, info: dict[str, Any]) -> list[str]:
    """Ask every member that is not done about all rows; returns the names of the files.

    Raises ConfigError or InputError with what is wrong with a member or its answers.
    """
    config = context.config
    for stale in plan.folder.glob(".*.tmp"):  # what a killed run was writing
        stale.unlink()
    files = files_of(config, plan.folder, info)
    names: list[str] = []
    _kept_of_another_order(plan)
    try:
        for i, entry in enumerate(config.teachers.given):
            targets = {
                split: Path(paths[i])
                for split, paths in zip(SPLITS, (files.train, files.validation, files.test), strict=True)
                if paths
            }
            names += [path.name for path in targets.values()]
            if not all(path.exists() for path in targets.values()):
                teacher = _teacher(config, i, info)

                def follow(done: int, i: int = i, entry: str = entry) -> None:
                    rows = sum(info["counts"][split] for split in SPLITS)
                    total = rows * len(config.teachers.given)
                    context.console.progress("teachers", i * rows + done, total, f"asking {entry}")

                where = f"teachers.given.{i}: {entry}"
                early = Early(context, info, plan.folder, i, where, load_labels(data, "transfer"))
                found = _answers(config, teacher, where, info, follow, early)
                for split, path in targets.items():
                    _write(path, _ids(data, split), found[split])
    finally:
        context.console.progress("teachers", 0, 0, "")
    return names


class Early:
    """Looks at a member once while it is asked: one whose classes moved need not be asked about all rows."""

    def __init__(
        self, context: Context, info: dict[str, Any], folder: Path, index: int, where: str, labels: np.ndarray
    ) -> None:
        """`labels` are those of the transfer set."""
        self.panel, self.index, self.where, self.labels = Panel(context, info, folder), index, where, labels
        self.order = orders_of(context.config, info)[index]
        stops = context.config.teachers.on_mismatch == "stop"
        self.wanted = stops and target_in(info).classified

    def look(self, answers: np.ndarray) -> None:
        """Judge the first rows (N, C), as soon as every class is among them; a sorted file shows some alone.

        Raises InputError for a member that does not fit.
        """
        labels = self.labels[: len(answers)]
        if not self.wanted or len(labels) < ENOUGH_ROWS:
            return
        if np.bincount(labels[labels >= 0], minlength=answers.shape[1]).min() < ENOUGH_OF_EACH:
            return
        self.wanted = False
        seen = answers if self.order is None else answers[:, np.argsort(self.order)]
        self.panel.look(self.index, self.where, seen, labels, "transfer", applied=self.order)
        self.panel.tell(given=True)


def _kept_of_another_order(plan: StagePlan) -> None:
    """What was asked before the configuration said in which order the answers stand is good."""
    if plan.config["source"] != "callable":
        return  # a model that names its classes gave answers that are in the data's order already
    settings = {key: value for key, value in plan.config.items() if key != "class_order"}
    before = plan.folder.parent / fingerprint("teachers", settings, plan.inputs)
    if before == plan.folder:
        return
    for path in before.glob("teacher-*.parquet"):
        if not (plan.folder / path.name).exists():
            write_atomic(plan.folder / path.name, path.read_bytes())


def _answers(
    config: Config,
    teacher: Answer,
    where: str,
    info: dict[str, Any],
    follow: Callable[[int], None],
    early: Early,
) -> dict[str, np.ndarray]:
    """(N, C) float32 by split, in the order of the prepared data. Raises InputError as `ask` and `early`."""
    counts, classes = info["counts"], info["num_classes"]
    found = {split: np.empty((counts[split], classes), np.float32) for split in SPLITS}
    done, size = dict.fromkeys(SPLITS, 0), config.soft_targets.batch_size
    for split, first, values in raw_rows(config):
        if first + len(values) > counts[split]:
            break
        for begin in range(0, len(values), size):
            inputs = values[begin : begin + size]
            row = first + begin
            rows = f"rows {row} to {row + len(inputs) - 1} of {split}"
            found[split][row : row + len(inputs)] = ask(
                teacher, inputs, classes, config.teachers.values, where, rows
            )
            done[split] = row + len(inputs)
            if split == "transfer":
                early.look(found[split][: done[split]])
            follow(sum(done.values()))
    if any(done[split] != counts[split] for split in SPLITS):
        raise ArtifactError(
            f"data: the source has other rows than the prepared data, {done} of "
            f"{ ({split: counts[split] for split in SPLITS}) }; it has changed meanwhile, run again"
        )
    return found


def _teacher(config: Config, index: int, info: dict[str, Any]) -> Answer:
    entry, where = config.teachers.given[index], f"teachers.given.{index}"
    if config.teachers.source == "callable":
        return load_callable(entry, where)
    if config.teachers.source == "transformers":
        return load_classifier(entry, info, where, named=orders_of(config, info)[index] is None)
    if (Path(entry) / MLMODEL).is_file():
        return _pyfunc(entry, where, config.data.columns.input)
    return _package(Path(entry), where, info, named=orders_of(config, info)[index] is None)


def _pyfunc(folder: str, where: str, columns: str | list[str]) -> Answer:
    import mlflow

    try:
        with behind():
            model = mlflow.pyfunc.load_model(folder, suppress_warnings=True)
    except Exception as error:  # the code of the model may raise anything
        raise ConfigError(
            f"{where}: {folder} cannot be loaded: {type(error).__name__}: {error}; what its requirements.txt "
            "names must be installed here"
        ) from error
    return lambda inputs: model.predict(as_frame(inputs, columns))


def _package(folder: Path, where: str, info: dict[str, Any], named: bool = True) -> Answer:
    """A model folder of ours, that makes its own inputs of raw ones; `named`: its classes go by name."""
    try:
        package = load_package(folder)
    except ArtifactError as error:
        raise ConfigError([f"{where}: {line}" for line in str(error).splitlines()]) from error
    theirs = DataInfo.from_dict(package.info)
    if named and (
        problems := class_problems(str(folder), theirs.num_classes, theirs.class_names, info, where)
    ):
        raise ConfigError(problems)
    order = order_by_name(theirs.class_names, info["class_names"]) if named else None
    ours, shape = info["input_shape"], theirs.input_shape
    if theirs.kind != info["kind"] or (theirs.kind != "text" and shape != ours):
        raise ConfigError(
            f"{where}: {folder} takes {theirs.kind} inputs of shape {shape}, the data is {info['kind']} of "
            f"{ours}; give a model of such data"
        )
    tokenizer = Preprocessor(theirs, folder).tokenizer

    def answer(inputs: Any) -> torch.Tensor:
        if tokenizer is not None:
            inputs = pad(*tokenizer.encode(inputs), shape[0])
        tensor = torch.from_numpy(np.ascontiguousarray(inputs))
        found = predict(package.network, tensor, torch.device("cpu"), max(1, len(tensor)))
        return found if order is None else found[:, np.argsort(order)]

    return answer


def _ids(data: Path, split: str) -> pa.ChunkedArray:
    return pa.concat_tables([pq.read_table(path, columns=["id"]) for path in shard_paths(data, split)])["id"]


def _write(path: Path, ids: pa.ChunkedArray, answers: np.ndarray) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(answers.reshape(-1)), answers.shape[1])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ids, "logits": lists}), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def as_predictions(context: Context, plan: StagePlan, info: dict[str, Any]) -> Context:
    """The same run with the answers as its predictions."""
    files = files_of(context.config, plan.folder, info)
    teachers = context.config.teachers.model_copy(update={"source": "predictions", "predictions": files})
    return replace(context, config=context.config.model_copy(update={"teachers": teachers}))
